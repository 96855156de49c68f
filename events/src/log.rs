//! The interface to the log: load an aggregate, decide, append the decision.
//!
//! A decision carries the position up to which each aggregate was read. The append fails with a conflict if an
//! aggregate has a newer event by then (optimistic concurrency).

pub(crate) mod encode;

pub use encode::MAX_EVENT;

use std::future::Future;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    crash::Point,
    env::Env,
    event::{DecodeError, Event, Recorded},
    id::{PartyId, PlayerId, SessionId},
    inventory, party, player, session,
    subject::{Aggregate, Report},
};

/// The maximum number of messages in one commit. It is the server's limit for an atomic batch.
pub const MAX_COMMIT: usize = 1_000;

/// The position of an aggregate's last event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// The event's sequence in the stream; 0 if the aggregate has no event.
    pub seq: u64,
    /// The event's number within the aggregate, from 1; 0 if the aggregate has no event.
    pub n: u64,
}

impl Head {
    fn of<E>(last: Option<&Recorded<E>>) -> Self {
        last.map(|last| Self { seq: last.seq, n: last.n }).unwrap_or_default()
    }
}

/// A player, as read from the log.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Player {
    /// The state after the last event.
    pub state: player::State,
    /// The position that a decision on this player must name.
    pub head: Head,
    /// The last event; `None` for a new player.
    pub last: Option<Recorded<player::Event>>,
}

impl Player {
    /// The player after their last event; `None` if the log has no event of them.
    pub fn of(last: Option<Recorded<player::Event>>) -> Self {
        let state = last.as_ref().map(|last| player::State::evolve(&last.event)).unwrap_or_default();
        Self { state, head: Head::of(last.as_ref()), last }
    }

    /// Forgets the player's party, which has ended, so that the player may create or join another one, or queue alone.
    ///
    /// A party that has ended never opens again. So this needs no check when the decision is appended.
    #[must_use]
    pub fn without_party(self) -> Self {
        Self { state: self.state.with_party(None), ..self }
    }
}

/// A party, as read from the log.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Party {
    /// The state after the last event. A party whose time is over still counts as open here: see
    /// [`party::State::open`].
    pub state: party::State,
    /// The position that a decision on this party must name.
    pub head: Head,
    /// The last event; `None` if the log has no event of the party.
    pub last: Option<Recorded<party::Event>>,
}

impl Party {
    /// The party after its last event; `None` if the log has no event of it.
    pub fn of(last: Option<Recorded<party::Event>>) -> Self {
        let state = last.as_ref().map(|last| party::State::evolve(&last.event)).unwrap_or_default();
        Self { state, head: Head::of(last.as_ref()), last }
    }
}

/// A session, as read from the log.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Session {
    /// The state after the last event.
    pub state: session::State,
    /// The position that a decision on this session must name.
    pub head: Head,
    /// All events of the session, oldest first.
    pub history: Vec<Recorded<session::Event>>,
}

impl Session {
    /// Folds all events of a session, oldest first.
    pub fn of(history: Vec<Recorded<session::Event>>) -> Self {
        let state = history.iter().fold(session::State::default(), session::State::evolve);
        Self { state, head: Head::of(history.last()), history }
    }

    /// Checks that the read includes an event that is known to be stored, by its sequence.
    ///
    /// # Errors
    /// [`StaleRead`] if it does not.
    pub fn read_up_to(self, known: u64) -> Result<Self, StaleRead> {
        if self.head.seq < known { Err(StaleRead { read: self.head.seq, known }) } else { Ok(self) }
    }

    /// The id of the last event: the cause to name in a decision that follows from it.
    pub fn cause(&self) -> Option<Uuid> {
        self.history.last().map(|last| last.id)
    }
}

/// A read did not return an event that is known to be stored.
///
/// A node that has just lost the leadership of the stream answers reads from its old state until it notices. Never
/// acknowledge a message because of a stale read. Read again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stale read: it ends at event {read}, but event {known} is stored")]
pub struct StaleRead {
    /// Sequence of the last event that was read; 0 if none was.
    pub read: u64,
    /// Sequence of the event that is known to be stored.
    pub known: u64,
}

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The log does not answer. A retry may succeed.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
    /// A message in the log is not an event that this build can read. A retry does not help.
    #[error("cannot read message {seq} of the log: {source}")]
    Unreadable {
        /// The message's sequence in the stream.
        seq: u64,
        source: DecodeError,
    },
}

/// Why an append failed.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Another event was appended to the aggregate after it was read. Load it again and decide again.
    #[error("{0} has changed since it was read")]
    Conflict(Aggregate),
    /// The log did not answer before the deadline. The decision may still have been stored. Load the aggregates and
    /// decide again: if the events are there, the load returns them.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
    /// The log is full, and has not stored the decision. It stores decisions again when its oldest events have expired.
    #[error("the log is full: {0}")]
    Full(String),
    /// Too many decisions on this aggregate wait in this process. Nothing is stored. Wait, load the aggregates and
    /// decide again: most likely, one of the others has changed the aggregate by then.
    #[error("too many decisions on {0} wait to be stored")]
    Busy(Aggregate),
    /// The log does not accept this decision. A retry does not help.
    #[error("the log refused the decision: {0}")]
    Refused(String),
}

/// Loads aggregates from the stream's leader, so that a load returns every event that was acknowledged before. The one
/// exception is a node that has just lost the leadership: see [`StaleRead`].
pub trait Load: Clone + Send + Sync + 'static {
    /// Loads a player. A player without an event in the log is new.
    fn player(&self, id: &PlayerId) -> impl Future<Output = Result<Player, ReadError>> + Send;

    /// Loads a party. A party without an event in the log is new.
    fn party(&self, id: PartyId) -> impl Future<Output = Result<Party, ReadError>> + Send;

    /// Loads a session with all its events. A session without an event in the log is new.
    fn session(&self, id: SessionId) -> impl Future<Output = Result<Session, ReadError>> + Send;

    /// Loads the last event of a player's inventory; `None` if there is none in the log.
    fn inventory(
        &self,
        id: &PlayerId,
    ) -> impl Future<Output = Result<Option<Recorded<inventory::Event>>, ReadError>> + Send;
}

/// Appends to the log.
pub trait Append: Clone + Send + Sync + 'static {
    /// Stores a decision completely or not at all. Returns the sequence of each event, in the order of the decision.
    /// Never returns an error for a decision that is known to be stored.
    fn append(&self, decision: Decision) -> impl Future<Output = Result<Vec<u64>, AppendError>> + Send;
}

/// Looks up reports of game servers, at the leader of their stream.
pub trait Reports {
    /// Whether the game server has sent the report. The session worker may not have processed it yet.
    fn reported(&self, report: Report) -> impl Future<Output = Result<bool, ReadError>> + Send;
}

/// A log that can be read and appended to.
pub trait Log: Load + Append {}
impl<T: Load + Append> Log for T {}

/// The events of one or more aggregates that are stored together or not at all.
///
/// It must hold at most one change per aggregate, and at most one event per player and per party. The append refuses any other
/// decision with [`AppendError::Refused`].
#[derive(Debug, Clone)]
pub struct Decision {
    pub(crate) at: OffsetDateTime,
    pub(crate) correlation: Uuid,
    pub(crate) cause: Option<Uuid>,
    pub(crate) changes: Vec<Change>,
}

/// The part of a decision that concerns one aggregate.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) aggregate: Aggregate,
    pub(crate) head: Head,
    pub(crate) events: Vec<Pending>,
}

/// An event that is not stored yet.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) id: Uuid,
    pub(crate) type_name: &'static str,
    pub(crate) token: &'static str,
    pub(crate) point: Point,
    pub(crate) version: u32,
    pub(crate) data: Result<serde_json::Value, String>,
}

impl Decision {
    /// Creates an empty decision. `correlation` is the id of the ticket or session that it is about. `cause` is the id
    /// of the event or report that it responds to.
    pub fn new(env: &impl Env, correlation: Uuid, cause: Option<Uuid>) -> Self {
        Self { at: env.now(), correlation, cause, changes: Vec::new() }
    }

    /// Adds events to an aggregate that was read up to `head`.
    #[must_use]
    pub fn change<E: Event>(
        mut self,
        env: &impl Env,
        aggregate: Aggregate,
        head: Head,
        events: impl IntoIterator<Item = E>,
    ) -> Self {
        let events = events.into_iter().map(|event| Pending::new(env.id(), &event)).collect();
        self.changes.push(Change { aggregate, head, events });
        self
    }

    /// Like [`Decision::change`], for one event whose id is already fixed.
    #[must_use]
    pub fn change_with_id<E: Event>(mut self, id: Uuid, aggregate: Aggregate, head: Head, event: &E) -> Self {
        self.changes.push(Change { aggregate, head, events: vec![Pending::new(id, event)] });
        self
    }

    /// The crash point of the append. It is the crash point of the first event. `None` if the decision is empty.
    pub(crate) fn point(&self) -> Option<Point> {
        self.changes.iter().flat_map(|change| &change.events).next().map(|event| event.point)
    }

    /// The number of events, each of which becomes one message.
    pub fn len(&self) -> usize {
        self.changes.iter().map(|change| change.events.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The aggregates that it changes.
    pub fn aggregates(&self) -> impl Iterator<Item = &Aggregate> {
        self.changes.iter().map(|change| &change.aggregate)
    }
}

impl Pending {
    fn new<E: Event>(id: Uuid, event: &E) -> Self {
        let data = event.data().map_err(|error| error.to_string());
        Self {
            id,
            type_name: event.type_name(),
            token: event.token(),
            point: event.point(),
            version: event.version(),
            data,
        }
    }
}
