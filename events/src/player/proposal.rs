//! A proposed match, as its players see it.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Matched, Queued, Rejection, State, is_zero};
use crate::id::{PartyId, PlayerId, QueueName, SessionId, TicketId};

/// See [`super::Event::MatchProposed`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MatchProposed {
    /// The session that begins when all players have accepted.
    pub session: SessionId,
    /// The name of the player's team, see [`crate::session::Team`].
    pub team: String,
    /// When the proposal ends unless all players have accepted.
    #[serde(with = "time::serde::rfc3339")]
    pub accept_by: OffsetDateTime,
    /// How many players the match has. All of them must accept.
    pub players: u32,
    /// Whether the player is requeued if the accepted match fails. If the match is not accepted, this does not matter:
    /// the tickets of the other players wait again, unless one of their players has left.
    pub may_requeue: bool,
    /// The ticket that waited.
    #[serde(flatten)]
    pub queued: Queued,
}

/// See [`super::Event::MatchDeclined`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatchDeclined {
    pub ticket: TicketId,
    pub queue: QueueName,
    /// The proposed session, which has ended.
    pub session: SessionId,
    pub reason: DeclineReason,
    /// With the reason `party`, the players of the ticket who did not accept. Empty unless the queue names them
    /// ([`crate::queue::Queue::acceptance_names_decliner`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub players: Vec<PlayerId>,
    /// See [`State::absences`]. It includes this match, unless the reason is `party`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub absences: u32,
    /// See [`State::party`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub party: Option<PartyId>,
}

/// Why a ticket ended with a proposed match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeclineReason {
    /// The player declined, or cancelled the ticket.
    Declined,
    /// The player had not accepted, their WebSocket closed, and they did not reconnect within the grace period.
    Disconnected,
    /// The player did not answer before the deadline.
    Unanswered,
    /// Another player of the ticket did not accept.
    Party,
}

impl MatchProposed {
    /// The match, after all players have accepted it.
    pub(super) fn confirmed(self) -> Matched {
        Matched::of(self.queued, self.session, self.team, self.may_requeue)
    }

    /// The end of the ticket. Only the player who did not accept has missed a match.
    pub(super) fn declined(&self, reason: DeclineReason, players: Vec<PlayerId>) -> MatchDeclined {
        let Queued { ticket, queue, absences, party, .. } = &self.queued;
        let absences = match reason {
            DeclineReason::Declined | DeclineReason::Disconnected | DeclineReason::Unanswered => {
                absences.saturating_add(1)
            }
            DeclineReason::Party => *absences,
        };
        let (ticket, queue, session, party) = (*ticket, queue.clone(), self.session, *party);
        MatchDeclined { ticket, queue, session, reason, players, absences, party }
    }
}

/// The proposed match that the player is in.
pub(super) fn of(state: &State, session: SessionId) -> Result<&MatchProposed, Rejection> {
    match state {
        State::Proposed(proposed) if proposed.session == session => Ok(proposed),
        _ => Err(Rejection::NotInSession { session }),
    }
}
