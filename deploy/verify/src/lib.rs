//! Checks the log against the invariants of Garage. `garage verify`, the chaos test and the simulation use it.
//!
//! - [`Checker`] takes the log message by message and returns each [`Violation`]; [`Rule`] lists the rules.
//! - [`Projections`] compares the projections in Redis with a fold of the log.
//! - [`instances`] compares the folders of game servers with the sessions of the log.
//! - [`rules`] checks matches against their rule sets, with an evaluator of its own.
//! - [`Secrets`] holds the texts that must not be in the log.
//!
//! This crate does not read from NATS. The caller reads the messages.

mod checker;
mod commits;
mod counterparts;
mod event;
mod heads;
pub mod instances;
mod parties;
mod payments;
mod players;
mod projections;
pub mod rules;
mod secrets;
mod sessions;
mod violation;

pub use self::{
    checker::{Checker, End, Summary},
    projections::Projections,
    secrets::Secrets,
    sessions::{SessionStatus, Sessions},
    violation::{Rule, Violation},
};

#[cfg(test)]
mod tests;
