//! The pool of waiting players, and the matches that are made from it.

pub mod matches;
pub mod pool;
pub mod snapshot;

pub use matches::{Proposal, candidates, oldest, propose};
pub use pool::{Pool, WaitingPlayer};
