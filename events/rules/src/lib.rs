//! Rule sets in the language of Amazon GameLift FlexMatch, version 1.0. Pure: no IO, no clock.
//!
//! - [`mod@check`]: reads the text of a rule set, and explains what is wrong with it.
//! - [`rule_set`]: a rule set that has passed the check.
//! - [`expression`], [`statement`]: the two small languages inside of it.
//! - [`diagnostic`]: what a check finds.
//! - [`ticket`]: the tickets that a rule set matches.
//! - [`evaluate`]: whether a match satisfies the rules, and why.
//! - [`matcher`]: which match is made of a ticket and younger ones; what excludes tickets from one match.
//! - [`engine`]: makes the matches of a pool that changes.
//!
//! `deploy/docs/rule-sets.md` describes the language, and what Garage decided where AWS does not say.

pub mod check;
mod cursor;
pub mod diagnostic;
pub mod engine;
pub mod evaluate;
pub mod expression;
pub mod matcher;
mod plan;
pub mod rule_set;
mod search;
mod source;
pub mod statement;
pub mod ticket;

pub use check::{Checked, Options, check};
