//! The pool of waiting players, and the rule that makes matches from it.

pub mod census;
pub mod pool;
pub mod rule;
pub mod snapshot;

pub use census::Census;
pub use pool::{Pool, WaitingPlayer};
pub use rule::{Proposal, propose};
