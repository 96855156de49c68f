//! The view of a session for players and operators.

use serde::{Deserialize, Serialize};

use super::{Closed, Event, Matched, Phase, State, Team};
use crate::{
    event::Recorded,
    id::{QueueName, Region, SessionId},
    player::Address,
};

/// The public view of a session, as the REST API returns it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub session: SessionId,
    pub status: Status,
    /// The queue in which the players waited.
    pub queue: QueueName,
    /// The region of the game server.
    pub region: Region,
    pub teams: Vec<Team>,
    /// The game server's address; only while the session is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// The public key of the latest game server, as SubjectPublicKeyInfo PEM; absent until one was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// How the session ended; absent until it is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<Closed>,
}

impl View {
    /// The view of a session with these events, oldest first; `None` if the first one does not begin a session.
    pub fn of(session: SessionId, history: &[Recorded<Event>]) -> Option<Self> {
        let state = history.iter().fold(State::default(), State::evolve);
        let matched = state.matched()?.clone();
        let public_key = history.iter().rev().find_map(|recorded| match &recorded.event {
            Event::PodRequested(requested) => Some(requested.public_key.clone()),
            _ => None,
        });
        let (status, address, closed) = match state {
            State::New => return None,
            State::Proposed(_) => (Status::Proposed, None, None),
            State::Closed(past) => (Status::Closed, None, Some(past.closed)),
            State::Open(open) => match open.phase {
                Phase::NeedsServer { attempts: 0, .. } => (Status::Matched, None, None),
                Phase::Running(opened) => (Status::Open, Some(opened.address), None),
                Phase::NeedsServer { .. } | Phase::Starting(_) | Phase::Broken { .. } | Phase::Ending(..) => {
                    (Status::Starting, None, None)
                }
            },
        };
        let Matched { queue, region, teams, .. } = matched;
        Some(Self { session, status, queue, region, teams, address, public_key, closed })
    }
}

/// The status of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The players must accept the match.
    Proposed,
    /// The first game server has not been requested yet.
    Matched,
    /// A game server is being started, or it has failed.
    Starting,
    /// The match is being played.
    Open,
    /// The session has ended.
    Closed,
}
