//! A player's tickets and matches: events, state, and the decider.
//!
//! Every event carries the player's whole matchmaking state. The last event is therefore enough to know the state, and
//! older events need not be read.
//!
//! `proposal` has the events of a match that the players must accept.

use std::{collections::BTreeMap, net::IpAddr, ops::RangeInclusive};

use garage_rules::rule_set::Value;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::{
    event::events,
    failure,
    game::Ports,
    id::{PartyId, PlayerId, QueueName, Region, SessionId, TicketId},
};

mod party;
mod proposal;
mod requeue;

pub use self::proposal::{DeclineReason, MatchDeclined, MatchProposed};
pub use party::{PartyChanged, Past, PastEvent, join_party, leave_party};

events! {
    /// The matchmaking events of a player.
    "player" {
        /// The player entered a queue. A ticket stands for this request until it ends.
        Queued = "queued" at Queued,
        /// The ticket was cancelled while the player waited.
        Cancelled = "cancelled" at Cancelled,
        /// The ticket expired before a match was found.
        TimedOut = "timed-out" at TimedOut,
        /// A match was found, in a queue whose players must accept their matches.
        MatchProposed = "match-proposed" at Proposed,
        /// A player of the ticket did not accept the proposed match. The ticket has ended.
        MatchDeclined = "match-declined" at ProposalEnded,
        /// A match was found and, if its queue says so, accepted. Its game server is being started.
        Matched = "matched" at Matched,
        /// The game server is ready. The event holds its address.
        PlayerMatched = "player-matched" at Opened,
        /// The match failed before the player received a game server's address, or it was proposed and other tickets did
        /// not accept it. The player waits again, with the same ticket.
        Requeued = "requeued" at Failed,
        /// The session has ended. The player may queue again.
        Released = "released" at Finished,
        /// The player joined or left a party, and does not wait. The rest of the player's state is unchanged.
        PartyChanged = "party-changed" at PartyChanged,
    }
}

/// The valid ranks. A rank outside this range is a mistake of the sender.
pub const RANKS: RangeInclusive<i32> = -100_000..=100_000;

/// See [`Event::Queued`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Queued {
    pub ticket: TicketId,
    pub queue: QueueName,
    /// The player's skill, within [`RANKS`]. Players of similar rank are matched.
    pub rank: i32,
    /// Round-trip time to each region, in milliseconds, as measured by the client.
    pub latencies: BTreeMap<Region, u32>,
    /// The player's values for the attributes of the queue's rule set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Value>,
    /// The players of the ticket if it is a group, this player included. Each has an event of their own. Empty if the
    /// player is alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<PlayerId>,
    /// When the wait began. A requeued ticket keeps this time.
    #[serde(with = "time::serde::rfc3339")]
    pub waiting_since: OffsetDateTime,
    /// When the ticket times out. A requeued ticket keeps this time.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// How many matches of the ticket have failed, after each of which it was requeued.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub requeues: u32,
    /// See [`State::absences`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub absences: u32,
    /// See [`State::party`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub party: Option<PartyId>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// How often a ticket is requeued at most. If matches keep failing, their players learn it soon, and not when the ticket
/// expires.
pub const MAX_REQUEUES: u32 = 3;

/// A ticket is requeued only if it is valid for at least this long: the player needs a chance to be matched again.
pub const MIN_CHANCE: Duration = Duration::seconds(5);

/// See [`Event::Cancelled`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cancelled {
    pub ticket: TicketId,
    pub queue: QueueName,
    pub reason: CancelReason,
    /// See [`State::absences`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub absences: u32,
    /// See [`State::party`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub party: Option<PartyId>,
}

/// Why a ticket was cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CancelReason {
    /// The player cancelled it.
    Player,
    /// Another player of the group cancelled it, or disconnected.
    Party,
    /// The player's WebSocket closed, and the player did not reconnect within the grace period.
    Disconnected,
}

/// See [`Event::TimedOut`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimedOut {
    pub ticket: TicketId,
    pub queue: QueueName,
    /// How long the player waited, in milliseconds.
    pub waited_ms: u64,
    /// Absent if a gateway ended the ticket, because only the matchmaker knows the other players. Builds without rule
    /// sets wrote a field `candidates` instead, with other counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub considered: Option<Candidates>,
    /// See [`State::absences`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub absences: u32,
    /// See [`State::party`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub party: Option<PartyId>,
}

/// The other tickets in the queue, when a ticket timed out or when a client asks. Each is counted once, as eligible or as
/// excluded.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Candidates {
    /// The tickets that were considered: at most [`MAX_CONSIDERED`] of the oldest.
    pub count: u32,
    /// The tickets that could be in a match with this one, but were too few, or no combination satisfied all rules.
    pub eligible: u32,
    /// The tickets that could not be in a match with this one, by the first rule that excludes them.
    /// [`NO_COMMON_REGION`] stands for tickets that have no region in common with this one.
    pub excluded: BTreeMap<String, u32>,
}

/// See [`Candidates::count`].
pub const MAX_CONSIDERED: usize = 200;

/// See [`Candidates::excluded`].
pub const NO_COMMON_REGION: &str = "no-common-region";

/// See [`Event::Matched`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Matched {
    pub ticket: TicketId,
    pub queue: QueueName,
    pub session: SessionId,
    /// The name of the player's team, see [`crate::session::Team`].
    pub team: String,
    /// See [`Queued::waiting_since`].
    #[serde(with = "time::serde::rfc3339")]
    pub waiting_since: OffsetDateTime,
    /// The rest of the ticket, to requeue it if the match fails. Absent if the queue does not requeue, and in events of
    /// older builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requeue: Option<Requeue>,
    /// See [`State::absences`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub absences: u32,
    /// See [`State::party`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub party: Option<PartyId>,
}

/// The part of a ticket that [`Matched`] does not contain otherwise. See [`Queued`] for the fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Requeue {
    pub rank: i32,
    pub latencies: BTreeMap<Region, u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group: Vec<PlayerId>,
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub requeues: u32,
    /// The party that the ticket is of. The player may have left it since: see [`Matched::party`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub party: Option<PartyId>,
}

/// See [`Event::Requeued`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Requeued {
    /// The session that has failed.
    pub session: SessionId,
    pub reason: failure::Code,
    /// The ticket that waits again.
    #[serde(flatten)]
    pub queued: Queued,
}

/// See [`Event::PlayerMatched`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlayerMatched {
    pub ticket: TicketId,
    pub queue: QueueName,
    pub session: SessionId,
    #[serde(flatten)]
    pub address: Address,
    /// See [`State::absences`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub absences: u32,
    /// See [`State::party`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub party: Option<PartyId>,
}

/// Where a game server listens, and the fingerprint by which clients authenticate it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The public address of the server's node.
    pub ip: IpAddr,
    #[serde(flatten)]
    pub ports: Ports,
    /// SHA-256 of the server's public key; see [`crate::game::fingerprint`].
    pub fingerprint: String,
}

/// See [`Event::Released`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Released {
    pub ticket: TicketId,
    /// The session that has ended.
    pub session: SessionId,
    pub why: Ending,
    /// Why the match failed; absent if it was finished, and in events of older builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<failure::Code>,
    /// See [`State::absences`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub absences: u32,
    /// See [`State::party`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub party: Option<PartyId>,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The match was played, and the game server reported its results.
    Finished,
    /// No game server could be started, or it died during the match.
    Failed,
    /// The session reached its hard end before it finished or failed.
    Abandoned,
    /// The match was proposed, and not all of its players accepted it.
    NotAccepted,
}

/// A player's state in matchmaking.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum State {
    /// The log has no event of the player.
    #[default]
    New,
    /// The player waits in a queue.
    Waiting(Queued),
    /// The player is in a proposed match.
    Proposed(MatchProposed),
    /// The player is in a match whose game server is being started.
    Matched(Matched),
    /// The player is in a match and knows the game server's address.
    Playing(PlayerMatched),
    /// The last ticket has ended. The player may queue again.
    Idle {
        /// The ticket that has ended; `None` if the player has only been in parties.
        ticket: Option<TicketId>,
        /// See [`State::absences`].
        absences: u32,
        /// See [`State::party`].
        party: Option<PartyId>,
    },
}

impl State {
    /// The state after an event. It does not depend on the state before, because each event carries the whole state.
    #[must_use]
    pub fn evolve(event: &Event) -> Self {
        match event {
            Event::Queued(data) | Event::Requeued(Requeued { queued: data, .. }) => Self::Waiting(data.clone()),
            Event::MatchProposed(data) => Self::Proposed(data.clone()),
            Event::Matched(data) => Self::Matched(data.clone()),
            Event::PlayerMatched(data) => Self::Playing(data.clone()),
            Event::Cancelled(Cancelled { ticket, absences, party, .. })
            | Event::TimedOut(TimedOut { ticket, absences, party, .. })
            | Event::MatchDeclined(MatchDeclined { ticket, absences, party, .. })
            | Event::Released(Released { ticket, absences, party, .. }) => {
                Self::Idle { ticket: Some(*ticket), absences: *absences, party: *party }
            }
            Event::PartyChanged(PartyChanged { party, past: Some(past) }) => {
                Self::evolve(&past.event.clone().into()).with_party(*party)
            }
            Event::PartyChanged(PartyChanged { party, past: None }) => {
                Self::Idle { ticket: None, absences: 0, party: *party }
            }
        }
    }

    /// The session that the player is in.
    pub fn session(&self) -> Option<SessionId> {
        match self {
            Self::Proposed(MatchProposed { session, .. })
            | Self::Matched(Matched { session, .. })
            | Self::Playing(PlayerMatched { session, .. }) => Some(*session),
            Self::New | Self::Waiting(_) | Self::Idle { .. } => None,
        }
    }

    /// The player's latest ticket, whether it has ended or not.
    pub fn ticket(&self) -> Option<TicketId> {
        match self {
            Self::New => None,
            Self::Waiting(Queued { ticket, .. })
            | Self::Proposed(MatchProposed { queued: Queued { ticket, .. }, .. })
            | Self::Matched(Matched { ticket, .. })
            | Self::Playing(PlayerMatched { ticket, .. }) => Some(*ticket),
            Self::Idle { ticket, .. } => *ticket,
        }
    }

    /// The party that the player is in. It may have ended because its time was over: see [`crate::party::LIFETIME`].
    pub fn party(&self) -> Option<PartyId> {
        match self {
            Self::New => None,
            Self::Waiting(Queued { party, .. })
            | Self::Proposed(MatchProposed { queued: Queued { party, .. }, .. })
            | Self::Matched(Matched { party, .. })
            | Self::Playing(PlayerMatched { party, .. })
            | Self::Idle { party, .. } => *party,
        }
    }

    /// The same state, but in another party, or in none.
    #[must_use]
    pub fn with_party(self, party: Option<PartyId>) -> Self {
        match self {
            Self::New if party.is_none() => Self::New,
            Self::New => Self::Idle { ticket: None, absences: 0, party },
            Self::Waiting(data) => Self::Waiting(Queued { party, ..data }),
            Self::Proposed(data) => Self::Proposed(MatchProposed { queued: Queued { party, ..data.queued }, ..data }),
            Self::Matched(data) => Self::Matched(Matched { party, ..data }),
            Self::Playing(data) => Self::Playing(PlayerMatched { party, ..data }),
            Self::Idle { ticket, absences, .. } => Self::Idle { ticket, absences, party },
        }
    }

    /// How many of the player's matches in a row the player has not accepted or not joined, up to now. Of the accepted
    /// matches, only those that finished count.
    pub fn absences(&self) -> u32 {
        match self {
            Self::New => 0,
            Self::Waiting(Queued { absences, .. })
            | Self::Proposed(MatchProposed { queued: Queued { absences, .. }, .. })
            | Self::Matched(Matched { absences, .. })
            | Self::Playing(PlayerMatched { absences, .. })
            | Self::Idle { absences, .. } => *absences,
        }
    }
}

/// What a worker can request for a player.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Enter a queue. A player who is in a party can queue only with it: [`Queued::party`] must name it.
    Queue(Queued),
    /// Cancel a ticket.
    Cancel { ticket: TicketId, reason: CancelReason },
    /// End a ticket that has expired.
    TimeOut {
        ticket: TicketId,
        /// The current time of the caller.
        now: OffsetDateTime,
        /// See [`TimedOut::considered`].
        considered: Option<Candidates>,
    },
    /// Put a waiting player into a proposed match.
    Propose {
        ticket: TicketId,
        session: SessionId,
        /// The name of the player's team.
        team: String,
        accept_by: OffsetDateTime,
        /// How many players the match has.
        players: u32,
        /// See [`MatchProposed::may_requeue`].
        may_requeue: bool,
    },
    /// Record that all players have accepted the proposed match.
    Confirm { session: SessionId },
    /// End the ticket, because the player or another player of the ticket did not accept the proposed match.
    Decline {
        session: SessionId,
        reason: DeclineReason,
        /// See [`MatchDeclined::players`].
        players: Vec<PlayerId>,
    },
    /// Put a waiting player into a session.
    Match {
        ticket: TicketId,
        session: SessionId,
        /// The name of the player's team.
        team: String,
        /// Whether the player may be requeued if the match fails.
        requeue: bool,
    },
    /// Announce the game server's address to a matched player.
    Open { session: SessionId, address: Address },
    /// Put the player back into the queue, because the session failed before they received its address, or because other
    /// tickets did not accept the match.
    Requeue {
        session: SessionId,
        reason: failure::Code,
        /// The current time of the caller.
        now: OffsetDateTime,
    },
    /// Release the player from a session that has ended.
    Release {
        session: SessionId,
        why: Ending,
        reason: Option<failure::Code>,
        /// Whether the player joined the match; `None` if it is not known.
        joined: Option<bool>,
    },
}

/// Why a command was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The player already waits, with this ticket.
    #[error("player already waits with ticket {ticket}")]
    Waiting { ticket: TicketId },
    /// The player is in this session.
    #[error("player is in session {session}")]
    InSession { session: SessionId },
    /// The player is in this party, and the command is not about it.
    #[error("player is in party {party}")]
    InParty { party: PartyId },
    /// The player does not wait with the ticket of the command: it has ended, or it never existed.
    #[error("player does not wait with ticket {ticket}")]
    NotWaiting { ticket: TicketId },
    /// The ticket of the command has not expired yet.
    #[error("ticket {ticket} has not expired")]
    NotExpired { ticket: TicketId },
    /// The ticket cannot wait again after a failed match: its queue does not requeue, it was requeued [`MAX_REQUEUES`]
    /// times, it expires soon, or the player is no longer in its party.
    #[error("ticket {ticket} is not requeued")]
    NotRequeued { ticket: TicketId },
    /// The player is not in the session of the command. For [`Command::Open`] and [`Command::Requeue`] also: the player
    /// already has the address.
    #[error("player is not in session {session}, or already has its address")]
    NotInSession { session: SessionId },
}

/// Decides on a player. An accepted command results in exactly one event.
///
/// # Errors
/// [`Rejection`] if the state does not allow the command.
pub fn decide(state: &State, command: Command) -> Result<Event, Rejection> {
    let (absences, party) = (state.absences(), state.party());
    match command {
        Command::Queue(queued) => {
            may_queue(state)?;
            match party.filter(|_| party != queued.party) {
                Some(party) => Err(Rejection::InParty { party }),
                None => Ok(Queued { absences, ..queued }.into()),
            }
        }
        Command::Cancel { ticket, reason } => {
            let waiting = waiting(state, ticket)?;
            Ok(Cancelled { ticket, queue: waiting.queue.clone(), reason, absences, party }.into())
        }
        Command::TimeOut { ticket, now, considered } => {
            let waiting = waiting(state, ticket)?;
            if now < waiting.expires_at {
                return Err(Rejection::NotExpired { ticket });
            }
            let waited_ms = u64::try_from((now - waiting.waiting_since).whole_milliseconds()).unwrap_or(0);
            Ok(TimedOut { ticket, queue: waiting.queue.clone(), waited_ms, considered, absences, party }.into())
        }
        Command::Match { ticket, session, team, requeue } => {
            Ok(Matched::of(waiting(state, ticket)?.clone(), session, team, requeue).into())
        }
        Command::Propose { ticket, session, team, accept_by, players, may_requeue } => {
            let queued = waiting(state, ticket)?.clone();
            Ok(MatchProposed { session, team, accept_by, players, may_requeue, queued }.into())
        }
        Command::Confirm { session } => {
            proposal::of(state, session).map(|proposed| proposed.clone().confirmed().into())
        }
        Command::Decline { session, reason, players } => {
            proposal::of(state, session).map(|proposed| proposed.declined(reason, players).into())
        }
        Command::Open { session, address } => match state {
            State::Matched(matched) if matched.session == session => {
                let (ticket, queue) = (matched.ticket, matched.queue.clone());
                Ok(PlayerMatched { ticket, queue, session, address, absences, party }.into())
            }
            _ => Err(Rejection::NotInSession { session }),
        },
        Command::Requeue { session, reason, now } => match state {
            State::Matched(matched) if matched.session == session => {
                let queued = matched.requeued(now).ok_or(Rejection::NotRequeued { ticket: matched.ticket })?;
                Ok(Requeued { session, reason, queued }.into())
            }
            // The match did not fail, so this neither counts as a requeue nor depends on the queue.
            State::Proposed(proposed) if proposed.session == session => {
                Ok(Requeued { session, reason, queued: proposed.queued.clone() }.into())
            }
            _ => Err(Rejection::NotInSession { session }),
        },
        Command::Release { session, why, reason, joined } => match (state.session(), state.ticket()) {
            (Some(present), Some(ticket)) if present == session => {
                let absences = match joined {
                    None => absences,
                    Some(true) => 0,
                    Some(false) => absences.saturating_add(1),
                };
                Ok(Released { ticket, session, why, reason, absences, party }.into())
            }
            _ => Err(Rejection::NotInSession { session }),
        },
    }
}

/// Checks that a player neither waits nor is in a session, so that [`Command::Queue`] is accepted.
///
/// # Errors
/// [`Rejection::Waiting`], [`Rejection::InSession`]
pub fn may_queue(state: &State) -> Result<(), Rejection> {
    match state {
        State::New | State::Idle { .. } => Ok(()),
        State::Waiting(Queued { ticket, .. }) => Err(Rejection::Waiting { ticket: *ticket }),
        State::Proposed(MatchProposed { session, .. })
        | State::Matched(Matched { session, .. })
        | State::Playing(PlayerMatched { session, .. }) => Err(Rejection::InSession { session: *session }),
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
