//! Rule sets in the language of Amazon GameLift FlexMatch, version 1.0. Pure: no IO, no clock.
//!
//! - [`mod@check`]: reads the text of a rule set, and explains what is wrong with it.
//! - [`rule_set`]: a rule set that has passed the check.
//! - [`expression`], [`statement`]: the two small languages inside of it.
//! - [`diagnostic`]: what a check finds.
//!
//! `deploy/docs/rule-sets.md` describes the language, and what Garage decided where AWS does not say.

pub mod check;
mod cursor;
pub mod diagnostic;
pub mod evaluate;
pub mod expression;
pub mod matcher;
pub mod rule_set;
mod source;
pub mod statement;
pub mod ticket;

pub use check::{Checked, Options, check};
