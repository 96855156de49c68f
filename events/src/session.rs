//! A session: one match, from the matchmaker's decision until it is closed.
//!
//! `event` defines the events, `state` folds them, `decide` decides which events a command results in, `proposal`
//! does both for a match that its players must accept, `results` checks the results of a match, and `view` defines the view for players and operators.

mod decide;
mod event;
mod limits;
mod proposal;
pub mod results;
pub mod size;
mod state;
mod view;

pub use self::{
    decide::{Command, Rejection, decide},
    event::{
        Accepted, Closed, Event, Failed, Finished, Matched, Member, NotAccepted, Opened, PodFailed, PodReady,
        PodRequested, PodScheduled, ProposalEnded, Proposed, Team,
    },
    limits::Limits,
    proposal::Proposal,
    state::{ClosedSession, Failures, Next, Open, Phase, Starting, State},
    view::{Status, View},
};

#[cfg(test)]
mod tests;
