//! Tickets: how a player sees their latest ticket, and the decisions on commands. Pure.
//!
//! The gateway reads only the last event of a player, which belongs to the player's latest ticket. So an idempotency
//! key is known as long as its ticket is the latest: a repeated request returns the same ticket with its current
//! status. The content of the repeated request is ignored.

use std::collections::BTreeMap;

use garage_events::{
    failure,
    id::{PartyId, PlayerId, QueueName, Region, SessionId, TicketId},
    log::Player,
    player::{
        self, Address, CancelReason, Candidates, Command, DeclineReason, Ending, Event, MatchProposed, Queued,
        Rejection, State,
    },
};
use serde::Serialize;
use time::OffsetDateTime;

use crate::absence::AbsenceWait;

/// The status of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    Waiting,
    Proposed,
    Matched,
    Playing,
    Ended,
}

/// How a ticket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum End {
    Cancelled,
    TimedOut,
    /// A proposed match was not accepted.
    NotAccepted,
    Finished,
    Failed,
    Abandoned,
}

/// A ticket as its player sees it. A field is absent if the player's last event does not contain it.
///
/// While the ticket waits, the answer to a repeated `POST` is identical, byte for byte. Therefore only `GET` returns
/// the wait estimate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ticket {
    pub(crate) ticket: TicketId,
    pub(crate) status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue: Option<QueueName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<Address>,
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub(crate) waiting_since: Option<OffsetDateTime>,
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub(crate) expires_at: Option<OffsetDateTime>,
    /// Until when the proposed match must be accepted.
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub(crate) accept_by: Option<OffsetDateTime>,
    /// The measured latencies that count, rounded up.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) latencies: BTreeMap<Region, u32>,
    /// The regions in the request of this answer that do not count. The log does not have them, so only the answer to a
    /// `POST` names them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ignored_regions: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) estimated_wait_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<End>,
    /// Why the match failed that ended the ticket, or after which it waits again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<failure::Code>,
    /// Why the ticket ended with a proposed match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) decline_reason: Option<DeclineReason>,
    /// The other tickets in the queue, when the ticket timed out, or now if it waits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) candidates: Option<Candidates>,
    /// The sequence of the player's last event. A client that opens a socket with `since` set to it misses no later
    /// event.
    pub(crate) seq: u64,
}

impl Ticket {
    /// The ticket according to the player's last event, which has the sequence `seq`; `None` if the player has not had a
    /// ticket.
    pub(crate) fn of(event: &Event, seq: u64) -> Option<Self> {
        let blank = |ticket: TicketId, status| Self {
            ticket,
            status,
            queue: None,
            session: None,
            address: None,
            waiting_since: None,
            expires_at: None,
            accept_by: None,
            latencies: BTreeMap::new(),
            ignored_regions: Vec::new(),
            estimated_wait_ms: None,
            ended: None,
            reason: None,
            decline_reason: None,
            candidates: None,
            seq,
        };
        let waiting = |data: &Queued| Self {
            queue: Some(data.queue.clone()),
            waiting_since: Some(data.waiting_since),
            expires_at: Some(data.expires_at),
            latencies: data.latencies.clone(),
            ..blank(data.ticket, Status::Waiting)
        };
        Some(match event {
            Event::Queued(data) => waiting(data),
            Event::Requeued(data) => Self { reason: Some(data.reason), ..waiting(&data.queued) },
            Event::Cancelled(data) => Self {
                queue: Some(data.queue.clone()),
                ended: Some(End::Cancelled),
                ..blank(data.ticket, Status::Ended)
            },
            Event::TimedOut(data) => Self {
                queue: Some(data.queue.clone()),
                ended: Some(End::TimedOut),
                candidates: data.considered.clone(),
                ..blank(data.ticket, Status::Ended)
            },
            Event::MatchProposed(MatchProposed { session, accept_by, queued, .. }) => Self {
                status: Status::Proposed,
                session: Some(*session),
                accept_by: Some(*accept_by),
                ..waiting(queued)
            },
            Event::MatchDeclined(data) => Self {
                queue: Some(data.queue.clone()),
                session: Some(data.session),
                ended: Some(End::NotAccepted),
                decline_reason: Some(data.reason),
                ..blank(data.ticket, Status::Ended)
            },
            Event::Matched(data) => Self {
                queue: Some(data.queue.clone()),
                session: Some(data.session),
                waiting_since: Some(data.waiting_since),
                ..blank(data.ticket, Status::Matched)
            },
            Event::PlayerMatched(data) => Self {
                queue: Some(data.queue.clone()),
                session: Some(data.session),
                address: Some(data.address.clone()),
                ..blank(data.ticket, Status::Playing)
            },
            Event::Released(data) => Self {
                session: Some(data.session),
                ended: Some(match data.why {
                    Ending::Finished => End::Finished,
                    Ending::Failed => End::Failed,
                    Ending::Abandoned => End::Abandoned,
                    Ending::NotAccepted => End::NotAccepted,
                }),
                reason: data.reason,
                ..blank(data.ticket, Status::Ended)
            },
            Event::PartyChanged(changed) => return Self::of(&changed.past.clone()?.event.into(), seq),
        })
    }

    /// Adds the queue's wait estimate if the ticket still waits.
    pub(crate) fn estimated(mut self, estimate: impl FnOnce(&QueueName) -> Option<u64>) -> Self {
        if self.status == Status::Waiting {
            self.estimated_wait_ms = self.queue.as_ref().and_then(estimate);
        }
        self
    }

    /// A player's latest ticket.
    pub(crate) fn latest(player: &Player) -> Option<Self> {
        player.last.as_ref().and_then(|last| Self::of(&last.event, last.seq))
    }
}

/// The answer to `POST /v1/matchmaking/groups`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct GroupTicket {
    pub(crate) ticket: TicketId,
    /// The status of the first player's ticket.
    pub(crate) status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue: Option<QueueName>,
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub(crate) expires_at: Option<OffsetDateTime>,
    /// The `sub` of each player's token.
    pub(crate) players: Vec<String>,
}

impl GroupTicket {
    pub(crate) fn of(ticket: &Ticket, players: Vec<String>) -> Self {
        Self {
            ticket: ticket.ticket,
            status: ticket.status,
            queue: ticket.queue.clone(),
            expires_at: ticket.expires_at,
            players,
        }
    }
}

/// The answer to `GET /v1/players/me`, and the data of a `resync` frame.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Me {
    /// The id that events and sessions contain.
    pub(crate) player: PlayerId,
    /// `idle`, or the status of the ticket: `waiting`, `proposed`, `matched` or `playing`.
    pub(crate) status: &'static str,
    /// The latest ticket, even if it has ended; absent if there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ticket: Option<TicketId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue: Option<QueueName>,
    /// The session that the player is in, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<Address>,
    /// The party that the player is in, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) party: Option<PartyId>,
    /// Until when the proposed match must be accepted.
    #[serde(skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub(crate) accept_by: Option<OffsetDateTime>,
    /// The sequence of the player's last event; 0 if the log has none.
    pub(crate) seq: u64,
}

impl Me {
    pub(crate) fn of(id: PlayerId, player: &Player) -> Self {
        let (status, queue, address) = match &player.state {
            State::New | State::Idle { .. } => ("idle", None, None),
            State::Waiting(data) => ("waiting", Some(&data.queue), None),
            State::Proposed(data) => ("proposed", Some(&data.queued.queue), None),
            State::Matched(data) => ("matched", Some(&data.queue), None),
            State::Playing(data) => ("playing", Some(&data.queue), Some(&data.address)),
        };
        Self {
            player: id,
            status,
            ticket: player.state.ticket(),
            queue: queue.cloned(),
            session: player.state.session(),
            address: address.cloned(),
            party: player.state.party(),
            accept_by: match &player.state {
                State::Proposed(data) => Some(data.accept_by),
                State::New | State::Waiting(_) | State::Matched(_) | State::Playing(_) | State::Idle { .. } => None,
            },
            seq: player.head.seq,
        }
    }
}

/// The effect of a request for a ticket.
#[derive(Debug, PartialEq)]
pub(crate) enum Queueing {
    /// The ticket exists already.
    Have(Ticket),
    /// Append this event first: an older ticket has expired. A decision holds one event per player, so decide on the
    /// request again after it.
    First(Event),
    /// The player may be queued.
    Append,
    /// The player has missed this number of matches in a row, and must wait until this time.
    Wait(OffsetDateTime, u32),
}

/// Decides on a request for `ticket`.
pub(crate) fn queue(
    player: &Player,
    ticket: TicketId,
    now: OffsetDateTime,
    absence_wait: &AbsenceWait,
) -> Result<Queueing, Rejection> {
    if let Some(have) = Ticket::latest(player).filter(|latest| latest.ticket == ticket) {
        return Ok(Queueing::Have(have));
    }
    match &player.state {
        State::Waiting(Queued { ticket, expires_at, .. }) if *expires_at <= now => {
            player::decide(&player.state, Command::TimeOut { ticket: *ticket, now, considered: None })
                .map(Queueing::First)
        }
        state => {
            player::may_queue(state)?;
            let waits = absence_wait.until(player).filter(|(until, _)| now < *until);
            Ok(waits.map_or(Queueing::Append, |(until, absences)| Queueing::Wait(until, absences)))
        }
    }
}

/// When the ticket of a player who waits, or whose match is proposed, was requested. It is by the stream's clock if the
/// player waits and was not requeued. `None` if the player neither waits nor is in a proposed match.
pub(crate) fn requested_at(player: &Player) -> Option<OffsetDateTime> {
    match player.last.as_ref().map(|last| (&last.event, last.time))? {
        (Event::Queued(_), time) => Some(time),
        (Event::Requeued(requeued), _) => Some(requeued.queued.waiting_since),
        (Event::MatchProposed(proposed), _) => Some(proposed.queued.waiting_since),
        _ => None,
    }
}

/// The effect of a request to cancel a ticket.
#[derive(Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one per request, and it is not stored")]
pub(crate) enum Cancelling {
    /// Append this event.
    Append(Event),
    /// The ticket has already ended without a match. There is nothing to do.
    Done,
    /// It is too late: the player is or was in this session.
    Matched(SessionId),
    /// The ticket is not the player's latest one.
    Unknown,
}

/// Decides on a request to cancel a ticket.
pub(crate) fn cancel(player: &Player, ticket: TicketId, reason: CancelReason) -> Cancelling {
    let Some(latest) = Ticket::latest(player).filter(|latest| latest.ticket == ticket) else {
        return Cancelling::Unknown;
    };
    let command = Command::Cancel { ticket, reason };
    match (player::decide(&player.state, command), latest.session) {
        (Ok(event), _) => Cancelling::Append(event),
        (Err(_), Some(session)) if latest.ended != Some(End::NotAccepted) => Cancelling::Matched(session),
        (Err(_), _) => Cancelling::Done,
    }
}

#[cfg(test)]
mod tests;
