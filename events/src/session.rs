//! A session: one match, from the matchmaker's decision until it is closed.
//!
//! `event` defines the events, `state` folds them, `decide` decides which events a command results in, `results` checks
//! the results of a match, and `view` defines the view for players and operators.

mod decide;
mod event;
mod limits;
pub mod results;
pub mod size;
mod state;
mod view;

pub use self::{
    decide::{Command, Rejection, decide},
    event::{
        Closed, Event, Failed, Finished, Matched, Member, Opened, PodFailed, PodReady, PodRequested, PodScheduled, Team,
    },
    limits::Limits,
    state::{ClosedSession, Failures, Next, Open, Phase, Starting, State},
    view::{Status, View},
};

#[cfg(test)]
mod tests;
