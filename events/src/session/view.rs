//! What players and operators are shown of a session.

use serde::{Deserialize, Serialize};

use super::{Closed, Event, Matched, Phase, State, Team};
use crate::{
    event::Recorded,
    id::{QueueName, Region, SessionId},
    player::Address,
};

/// A session as its players and operators see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Which.
    pub session: SessionId,
    /// `matched`, `starting`, `open` or `closed`.
    pub status: Status,
    /// Where its players had waited.
    pub queue: QueueName,
    /// Where its server runs.
    pub region: Region,
    /// Who plays with whom.
    pub teams: Vec<Team>,
    /// Where the server is, once it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// The game's public key, SubjectPublicKeyInfo PEM, once a server was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closed>,
}

impl View {
    /// The view of a session's events, the oldest first; `None` when they do not begin one.
    pub fn of(session: SessionId, history: &[Recorded<Event>]) -> Option<Self> {
        let state = history.iter().fold(State::default(), State::evolve);
        let matched = state.matched()?.clone();
        let public_key = history.iter().rev().find_map(|recorded| match &recorded.event {
            Event::PodRequested(requested) => Some(requested.public_key.clone()),
            _ => None,
        });
        let (status, address, closed) = match state {
            State::New => return None,
            State::Closed(past) => (Status::Closed, None, Some(past.closed)),
            State::Open(open) => match open.phase {
                Phase::Unserved { attempts: 0, .. } => (Status::Matched, None, None),
                Phase::Running(opened) => (Status::Open, Some(opened.address), None),
                Phase::Unserved { .. } | Phase::Starting(_) | Phase::Broken { .. } | Phase::Ending(..) => {
                    (Status::Starting, None, None)
                }
            },
        };
        let Matched { queue, region, teams, .. } = matched;
        Some(Self { session, status, queue, region, teams, address, public_key, closed })
    }
}

/// Where a session stands, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// A server is about to be asked for.
    Matched,
    /// The server is being started.
    Starting,
    /// The game runs.
    Open,
    /// It is over.
    Closed,
}
