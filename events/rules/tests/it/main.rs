//! Reads, evaluates and matches rule sets.
#![cfg(test)]

mod checks;
mod engine;
mod evaluations;
mod matches;
mod schema;
mod support;
