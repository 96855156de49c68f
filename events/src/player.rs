//! A player's way through matchmaking.
//!
//! Every event carries the whole of his matchmaking state, so that his last message is the player and nothing older
//! need be read.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    event::events,
    id::{QueueName, Region, SessionId, TicketId},
};

events! {
    /// What happens to a player.
    "player" {
        /// He waits for a match.
        Queued = "queued" at Queued,
        /// He no longer wants one.
        Cancelled = "cancelled" at Cancelled,
        /// None was found in time.
        TimedOut = "timed-out" at TimedOut,
        /// One was found; its server is being started.
        Matched = "matched" at Matched,
        /// The server waits for him.
        PlayerMatched = "player-matched" at Opened,
        /// The match is over for him; he may queue again.
        Released = "released" at Finished,
    }
}

/// The ranks that there are. Beyond them is somebody's mistake.
pub const RANKS: RangeInclusive<i32> = -100_000..=100_000;

/// See [`Event::Queued`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Queued {
    /// The wish.
    pub ticket: TicketId,
    /// Where he waits.
    pub queue: QueueName,
    /// His skill, one of [`RANKS`]; players of near ranks are matched.
    pub rank: i32,
    /// Round-trip time to each region, in milliseconds.
    pub latencies: BTreeMap<Region, u32>,
    /// What the studio's rules may look at besides.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// Since when he waits, across tickets that went back to the queue.
    #[serde(with = "time::serde::rfc3339")]
    pub waiting_since: OffsetDateTime,
    /// When the ticket times out.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// See [`Event::Cancelled`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cancelled {
    /// The wish that ended.
    pub ticket: TicketId,
    /// Where he waited.
    pub queue: QueueName,
    /// Why.
    pub reason: CancelReason,
}

/// Why a ticket was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CancelReason {
    /// The player said so.
    Player,
    /// Somebody of his party did.
    Party,
    /// He vanished and did not come back in time.
    Disconnected,
}

/// See [`Event::TimedOut`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimedOut {
    /// The wish that ended.
    pub ticket: TicketId,
    /// Where he waited.
    pub queue: QueueName,
    /// How long.
    pub waited_ms: u64,
}

/// See [`Event::Matched`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Matched {
    /// The wish that was granted.
    pub ticket: TicketId,
    /// Where he waited.
    pub queue: QueueName,
    /// The match.
    pub session: SessionId,
    /// His team in it.
    pub team: String,
    /// Since when he had waited.
    #[serde(with = "time::serde::rfc3339")]
    pub waiting_since: OffsetDateTime,
}

/// See [`Event::PlayerMatched`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlayerMatched {
    /// The wish that was granted.
    pub ticket: TicketId,
    /// Where he waited.
    pub queue: QueueName,
    /// The match.
    pub session: SessionId,
    /// Where the server is and how to know it.
    #[serde(flatten)]
    pub address: Address,
}

/// Where a game server listens, and the key it must show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Public address of its node.
    pub ip: IpAddr,
    /// Port of the TLS WebSocket.
    pub tcp_port: u16,
    /// Port of the datagrams.
    pub udp_port: u16,
    /// SHA-256 of its public key; see [`crate::game::fingerprint`].
    pub fingerprint: String,
}

/// See [`Event::Released`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Released {
    /// The wish that had been granted.
    pub ticket: TicketId,
    /// The match that let him go.
    pub session: SessionId,
    /// Why.
    pub why: Ending,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The game was played and reported its results.
    Finished,
    /// No server, or it died.
    Failed,
    /// Its hard end came first.
    Abandoned,
}

/// Where a player stands.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum State {
    /// Nothing is known of him.
    #[default]
    New,
    /// He waits.
    Waiting(Queued),
    /// He is in a match whose server is being started.
    Matched(Matched),
    /// He is in a match with a server.
    Playing(PlayerMatched),
    /// His last ticket has ended; he may queue.
    Idle {
        /// That ticket.
        ticket: TicketId,
    },
}

impl State {
    /// The state after an event; the state before does not matter, see the module.
    #[must_use]
    pub fn evolve(event: &Event) -> Self {
        match event {
            Event::Queued(data) => Self::Waiting(data.clone()),
            Event::Matched(data) => Self::Matched(data.clone()),
            Event::PlayerMatched(data) => Self::Playing(data.clone()),
            Event::Cancelled(Cancelled { ticket, .. })
            | Event::TimedOut(TimedOut { ticket, .. })
            | Event::Released(Released { ticket, .. }) => Self::Idle { ticket: *ticket },
        }
    }

    /// The match that he is in.
    pub fn session(&self) -> Option<SessionId> {
        match self {
            Self::Matched(Matched { session, .. }) | Self::Playing(PlayerMatched { session, .. }) => Some(*session),
            Self::New | Self::Waiting(_) | Self::Idle { .. } => None,
        }
    }

    /// His latest ticket, whether it has ended or not.
    pub fn ticket(&self) -> Option<TicketId> {
        match self {
            Self::New => None,
            Self::Waiting(Queued { ticket, .. })
            | Self::Matched(Matched { ticket, .. })
            | Self::Playing(PlayerMatched { ticket, .. })
            | Self::Idle { ticket } => Some(*ticket),
        }
    }
}

/// What can be asked of a player.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// To wait for a match.
    Queue(Queued),
    /// To stop waiting.
    Cancel {
        /// The wish to end.
        ticket: TicketId,
        /// Why.
        reason: CancelReason,
    },
    /// To give up a ticket past its expiry.
    TimeOut {
        /// The wish to end.
        ticket: TicketId,
        /// The clock of who asks.
        now: OffsetDateTime,
    },
    /// To join a match.
    Match {
        /// The wish granted.
        ticket: TicketId,
        /// The match.
        session: SessionId,
        /// His team in it.
        team: String,
    },
    /// To be told where the server is.
    Open {
        /// The match.
        session: SessionId,
        /// The server.
        address: Address,
    },
    /// To be let go.
    Release {
        /// The match.
        session: SessionId,
        /// Why.
        why: Ending,
    },
}

/// Why a command brings no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// He waits already, on this ticket.
    #[error("player already waits with ticket {ticket}")]
    Waiting {
        /// The ticket he waits with.
        ticket: TicketId,
    },
    /// He is in a match.
    #[error("player is in session {session}")]
    InSession {
        /// The match.
        session: SessionId,
    },
    /// The ticket is not the one he waits with: it has ended, or never was.
    #[error("player does not wait with ticket {ticket}")]
    NotWaiting {
        /// The ticket named.
        ticket: TicketId,
    },
    /// The ticket is not past its expiry yet.
    #[error("ticket {ticket} has not expired")]
    NotExpired {
        /// The ticket named.
        ticket: TicketId,
    },
    /// He is in no match, in another one, or has been told already.
    #[error("player is not there in session {session}")]
    NotInSession {
        /// The match named.
        session: SessionId,
    },
}

/// Decides on a player: one command, one event.
///
/// # Errors
/// [`Rejection`] when his state does not admit the command.
pub fn decide(state: &State, command: Command) -> Result<Event, Rejection> {
    match command {
        Command::Queue(queued) => match state {
            State::New | State::Idle { .. } => Ok(queued.into()),
            State::Waiting(Queued { ticket, .. }) => Err(Rejection::Waiting { ticket: *ticket }),
            State::Matched(Matched { session, .. }) | State::Playing(PlayerMatched { session, .. }) => {
                Err(Rejection::InSession { session: *session })
            }
        },
        Command::Cancel { ticket, reason } => {
            let waiting = waiting(state, ticket)?;
            Ok(Cancelled { ticket, queue: waiting.queue.clone(), reason }.into())
        }
        Command::TimeOut { ticket, now } => {
            let waiting = waiting(state, ticket)?;
            if now < waiting.expires_at {
                return Err(Rejection::NotExpired { ticket });
            }
            let waited_ms = u64::try_from((now - waiting.waiting_since).whole_milliseconds()).unwrap_or(0);
            Ok(TimedOut { ticket, queue: waiting.queue.clone(), waited_ms }.into())
        }
        Command::Match { ticket, session, team } => {
            let waiting = waiting(state, ticket)?;
            let (queue, waiting_since) = (waiting.queue.clone(), waiting.waiting_since);
            Ok(Matched { ticket, queue, session, team, waiting_since }.into())
        }
        Command::Open { session, address } => match state {
            State::Matched(matched) if matched.session == session => {
                Ok(PlayerMatched { ticket: matched.ticket, queue: matched.queue.clone(), session, address }.into())
            }
            _ => Err(Rejection::NotInSession { session }),
        },
        Command::Release { session, why } => match (state.session(), state.ticket()) {
            (Some(present), Some(ticket)) if present == session => Ok(Released { ticket, session, why }.into()),
            _ => Err(Rejection::NotInSession { session }),
        },
    }
}

fn waiting(state: &State, ticket: TicketId) -> Result<&Queued, Rejection> {
    match state {
        State::Waiting(queued) if queued.ticket == ticket => Ok(queued),
        _ => Err(Rejection::NotWaiting { ticket }),
    }
}

#[cfg(test)]
mod tests;
