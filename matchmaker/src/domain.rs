//! Who waits, and the rule that makes matches of them.

pub mod pool;
pub mod rule;
pub mod snapshot;

pub use pool::{Pool, WaitingPlayer};
pub use rule::{Proposal, propose};
