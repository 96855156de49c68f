//! How a player joins and leaves a party.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{
    CancelReason, Cancelled, Event, MatchDeclined, MatchProposed, Matched, PlayerMatched, Queued, Rejection, Released,
    State, TimedOut,
};
use crate::{event::Recorded, id::PartyId, log::Player};

/// See [`Event::PartyChanged`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartyChanged {
    /// The party that the player is in now; `null` if they left one. Never absent: it is what the event says.
    #[serde(deserialize_with = "Option::deserialize")]
    pub party: Option<PartyId>,
    /// The player's last event about a ticket. It still defines the rest of the player's state. Absent if the log has no
    /// such event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub past: Option<Past>,
}

/// An earlier event of the player.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// When it was stored, by the stream's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    #[serde(flatten)]
    pub event: PastEvent,
}

/// The last events of players who neither wait nor have a proposed match. Only after these does a [`PartyChanged`]
/// follow: leaving a party while waiting is a `Cancelled`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data")]
pub enum PastEvent {
    Cancelled(Cancelled),
    TimedOut(TimedOut),
    Matched(Matched),
    PlayerMatched(PlayerMatched),
    Released(Released),
    MatchDeclined(MatchDeclined),
}

impl From<PastEvent> for Event {
    fn from(past: PastEvent) -> Self {
        match past {
            PastEvent::Cancelled(data) => data.into(),
            PastEvent::TimedOut(data) => data.into(),
            PastEvent::Matched(data) => data.into(),
            PastEvent::PlayerMatched(data) => data.into(),
            PastEvent::Released(data) => data.into(),
            PastEvent::MatchDeclined(data) => data.into(),
        }
    }
}

impl Past {
    /// What a [`PartyChanged`] after this event must repeat.
    fn of(last: &Recorded<Event>) -> Option<Self> {
        let event = match last.event.clone() {
            Event::Queued(_) | Event::Requeued(_) | Event::MatchProposed(_) => return None,
            Event::PartyChanged(changed) => return changed.past,
            Event::Cancelled(data) => PastEvent::Cancelled(data),
            Event::TimedOut(data) => PastEvent::TimedOut(data),
            Event::Matched(data) => PastEvent::Matched(data),
            Event::PlayerMatched(data) => PastEvent::PlayerMatched(data),
            Event::Released(data) => PastEvent::Released(data),
            Event::MatchDeclined(data) => PastEvent::MatchDeclined(data),
        };
        Some(Self { time: last.time, event })
    }
}

/// Decides that a player joins a party.
///
/// # Errors
/// [`Rejection::InParty`] if the player is in a party, [`Rejection::Waiting`] if they wait, and [`Rejection::InSession`] if
/// they are in a proposed match.
pub fn join_party(player: &Player, party: PartyId) -> Result<Event, Rejection> {
    match (&player.state, player.state.party()) {
        (State::Waiting(Queued { ticket, .. }), _) => Err(Rejection::Waiting { ticket: *ticket }),
        (State::Proposed(MatchProposed { session, .. }), _) => Err(Rejection::InSession { session: *session }),
        (_, Some(party)) => Err(Rejection::InParty { party }),
        (State::New | State::Matched(_) | State::Playing(_) | State::Idle { .. }, None) => {
            Ok(changed(player, Some(party)))
        }
    }
}

/// Decides that a player leaves their party. The ticket of a player who waits is cancelled for this reason.
///
/// # Errors
/// [`Rejection::InSession`] if the player is in a proposed match: they must decline it first, which ends it for all of its
/// players.
pub fn leave_party(player: &Player, reason: CancelReason) -> Result<Event, Rejection> {
    match &player.state {
        State::Waiting(Queued { ticket, queue, absences, .. }) => {
            Ok(Cancelled { ticket: *ticket, queue: queue.clone(), reason, absences: *absences, party: None }.into())
        }
        State::Proposed(MatchProposed { session, .. }) => Err(Rejection::InSession { session: *session }),
        State::New | State::Matched(_) | State::Playing(_) | State::Idle { .. } => Ok(changed(player, None)),
    }
}

fn changed(player: &Player, party: Option<PartyId>) -> Event {
    PartyChanged { party, past: player.last.as_ref().and_then(Past::of) }.into()
}
