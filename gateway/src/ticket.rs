//! Tickets: what a player is told of his latest one, and what a command on it leads to. Pure.
//!
//! A player's log tells of his latest ticket only, so that an idempotency key is remembered for as long as its ticket
//! is the player's latest: the same request again brings the same ticket, with its present status. The first request
//! holds, whatever a later one with the same key says.

use garage_events::{
    id::{PlayerId, QueueName, SessionId, TicketId},
    log::Player,
    player::{self, Address, CancelReason, Command, Ending, Event, Queued, Rejection, State},
};
use serde::Serialize;
use time::OffsetDateTime;

/// Where a ticket stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    Waiting,
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
    Finished,
    Failed,
    Abandoned,
}

/// A ticket as its player sees it. Fields that the last event of the player does not tell are absent. While he waits the
/// answer to the wish to queue is the same, byte for byte, however often it is repeated: that is why only who asks for the
/// ticket itself is told an estimate.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) estimated_wait_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<End>,
    /// The sequence of the player's last event: what a socket is opened with to miss nothing after it.
    pub(crate) seq: u64,
}

impl Ticket {
    /// The ticket that a player's last event, at `seq`, is about.
    pub(crate) fn of(event: &Event, seq: u64) -> Self {
        let blank = |ticket: TicketId, status| Self {
            ticket,
            status,
            queue: None,
            session: None,
            address: None,
            waiting_since: None,
            expires_at: None,
            estimated_wait_ms: None,
            ended: None,
            seq,
        };
        match event {
            Event::Queued(data) => Self {
                queue: Some(data.queue.clone()),
                waiting_since: Some(data.waiting_since),
                expires_at: Some(data.expires_at),
                ..blank(data.ticket, Status::Waiting)
            },
            Event::Cancelled(data) => Self {
                queue: Some(data.queue.clone()),
                ended: Some(End::Cancelled),
                ..blank(data.ticket, Status::Ended)
            },
            Event::TimedOut(data) => Self {
                queue: Some(data.queue.clone()),
                ended: Some(End::TimedOut),
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
                }),
                ..blank(data.ticket, Status::Ended)
            },
        }
    }

    /// With how long one waits in its queue, if somebody still waits with it.
    pub(crate) fn estimated(mut self, estimate: impl FnOnce(&QueueName) -> Option<u64>) -> Self {
        if self.status == Status::Waiting {
            self.estimated_wait_ms = self.queue.as_ref().and_then(estimate);
        }
        self
    }

    /// A player's latest ticket.
    pub(crate) fn latest(player: &Player) -> Option<Self> {
        player.last.as_ref().map(|last| Self::of(&last.event, last.seq))
    }
}

/// A player as he sees himself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Me {
    /// As events and sessions name him.
    pub(crate) player: PlayerId,
    /// `idle`, or that of his ticket: `waiting`, `matched`, `playing`.
    pub(crate) status: &'static str,
    /// His latest ticket, also when it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ticket: Option<TicketId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) queue: Option<QueueName>,
    /// The session he is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<Address>,
    /// The sequence of his last event; 0 when the log knows none.
    pub(crate) seq: u64,
}

impl Me {
    pub(crate) fn of(id: PlayerId, player: &Player) -> Self {
        let (status, queue, address) = match &player.state {
            State::New | State::Idle { .. } => ("idle", None, None),
            State::Waiting(data) => ("waiting", Some(&data.queue), None),
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
            seq: player.head.seq,
        }
    }
}

/// What becomes of the wish to queue.
#[derive(Debug, PartialEq)]
pub(crate) enum Queueing {
    /// The ticket is there already.
    Have(Ticket),
    /// This event first: an older ticket is past its expiry. A decision holds one event of a player, so that the wish
    /// is decided on again after it.
    First(Event),
    /// The wish, which is an event.
    Append,
}

/// Decides on the wish to queue.
pub(crate) fn queue(player: &Player, ticket_request: &Queued, now: OffsetDateTime) -> Result<Queueing, Rejection> {
    if let Some(have) = Ticket::latest(player).filter(|latest| latest.ticket == ticket_request.ticket) {
        return Ok(Queueing::Have(have));
    }
    match &player.state {
        State::Waiting(Queued { ticket, expires_at, .. }) if *expires_at <= now => {
            player::decide(&player.state, Command::TimeOut { ticket: *ticket, now }).map(Queueing::First)
        }
        state => player::decide(state, Command::Queue(ticket_request.clone())).map(|_queued| Queueing::Append),
    }
}

/// What becomes of the wish to cancel.
#[derive(Debug, PartialEq)]
pub(crate) enum Cancelling {
    /// This event.
    Append(Event),
    /// Nothing: he no longer waits, whoever ended it.
    Done,
    /// Too late: he is, or was, in this session.
    Matched(SessionId),
    /// The ticket is not his latest, or not his at all.
    Unknown,
}

/// Decides on the wish to cancel a ticket.
pub(crate) fn cancel(player: &Player, ticket: TicketId, reason: CancelReason) -> Cancelling {
    let Some(latest) = Ticket::latest(player).filter(|latest| latest.ticket == ticket) else {
        return Cancelling::Unknown;
    };
    let command = Command::Cancel { ticket, reason };
    match (player::decide(&player.state, command), latest.session) {
        (Ok(event), _) => Cancelling::Append(event),
        (Err(_), Some(session)) => Cancelling::Matched(session),
        (Err(_), None) => Cancelling::Done,
    }
}

#[cfg(test)]
mod tests;
