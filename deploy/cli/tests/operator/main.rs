//! Runs the operator's commands of `garage` as processes, on real servers.
#![cfg(test)]

mod backup;
mod block;
mod dead;
mod queue;
mod rebuild;
mod refused;
mod replay;
mod rules;
mod shown;
mod support;
mod tail;
mod verify;
