//! The pool of waiting players, and the matches that are made from it.

pub mod matches;
pub mod packed;
pub mod pool;
pub mod snapshot;

pub use garage_rules::engine::Bounds;
pub use matches::{Matcher, Proposal, Proposals, bounds, candidates, oldest, propose};
pub use packed::{PackedPlayer, Players, WaitingPlayer};
pub use pool::{Changes, Pool};
