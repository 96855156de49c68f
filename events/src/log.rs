//! The log as deciders and reactors see it: load an aggregate, decide, append with what was expected.

pub(crate) mod encode;

use std::future::Future;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    crash::Point,
    env::Env,
    event::{DecodeError, Event, Recorded},
    id::{PlayerId, SessionId},
    inventory, player, session,
    subject::{Aggregate, Report},
};

/// The most messages one commit takes; the server's bound on an atomic batch.
pub const MAX_COMMIT: usize = 1_000;

/// Where an aggregate's history ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head {
    /// Sequence of its last event in the stream; 0 when there is none.
    pub seq: u64,
    /// Number of that event in the aggregate; 0 when there is none.
    pub n: u64,
}

/// A player as the log has him.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Player {
    /// Where he stands.
    pub state: player::State,
    /// What an append to him expects.
    pub head: Head,
    /// His last event.
    pub last: Option<Recorded<player::Event>>,
}

/// A session as the log has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Session {
    /// Where it stands.
    pub state: session::State,
    /// What an append to it expects.
    pub head: Head,
    /// All that happened to it, the oldest first.
    pub history: Vec<Recorded<session::Event>>,
}

impl Session {
    /// Folds a history.
    pub fn of(history: Vec<Recorded<session::Event>>) -> Self {
        let state = history.iter().fold(session::State::default(), session::State::evolve);
        let head = history.last().map(|last| Head { seq: last.seq, n: last.n }).unwrap_or_default();
        Self { state, head, history }
    }

    /// The session, if it was read at least up to an event that is known to be there.
    ///
    /// # Errors
    /// [`Behind`]
    pub fn reaching(self, known: u64) -> Result<Self, Behind> {
        if self.head.seq < known { Err(Behind { read: self.head.seq, known }) } else { Ok(self) }
    }

    /// Its last event's id, to be named as the cause of what follows.
    pub fn cause(&self) -> Option<Uuid> {
        self.history.last().map(|last| last.id)
    }
}

/// A read did not show an event that is known to be there: a node that led until lately, and has not noticed yet that
/// it leads no more, answers with what it has. Nothing may be acknowledged upon it; the next read will show more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("read up to event {read}, and event {known} is known to be there")]
pub struct Behind {
    /// Sequence of the last event read; 0 when none was.
    pub read: u64,
    /// Sequence of the event known.
    pub known: u64,
}

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It does not answer; trying again later may help.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
    /// It answers with something that this build cannot read.
    #[error("message {seq} of the log: {source}")]
    Unreadable {
        /// Which message.
        seq: u64,
        /// Why.
        source: DecodeError,
    },
}

/// Why a decision was not stored.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// An aggregate has moved since it was read. Read it again and decide again.
    #[error("{0} has moved since it was read")]
    Conflict(Aggregate),
    /// It is unknown whether it was stored; the log did not answer until the deadline. Whoever decides again will
    /// meet it, should it be there.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
    /// The log will not take it, and won't later.
    #[error("the log refused the decision: {0}")]
    Refused(String),
}

/// Reads the log at the stream's leader: what was acknowledged before is seen.
pub trait Load: Clone + Send + Sync + 'static {
    /// Reads a player; one without a retained event is new.
    fn player(&self, id: &PlayerId) -> impl Future<Output = Result<Player, ReadError>> + Send;

    /// Reads a session, whole; one without a retained event is new.
    fn session(&self, id: SessionId) -> impl Future<Output = Result<Session, ReadError>> + Send;

    /// Reads where a player's belongings' history ends, and the last event of it.
    fn inventory(
        &self,
        id: &PlayerId,
    ) -> impl Future<Output = Result<Option<Recorded<inventory::Event>>, ReadError>> + Send;
}

/// Appends to the log.
pub trait Append: Clone + Send + Sync + 'static {
    /// Stores a decision, whole or not at all, and tells the sequence of each event in the order given. An error is
    /// never returned for a decision that is known to be stored.
    fn append(&self, decision: Decision) -> impl Future<Output = Result<Vec<u64>, AppendError>> + Send;
}

/// Looks at what game servers have reported, at the leader of the reports' stream.
pub trait Reports {
    /// Whether there is such a report, judged or not.
    fn reported(&self, report: Report) -> impl Future<Output = Result<bool, ReadError>> + Send;
}

/// Both.
pub trait Log: Load + Append {}
impl<T: Load + Append> Log for T {}

/// What was decided: events of one or several aggregates that are stored together or not at all.
///
/// It holds at most one change of each aggregate, and at most one event of each player; [`Decision::change`] keeps it so.
#[derive(Debug, Clone)]
pub struct Decision {
    pub(crate) at: OffsetDateTime,
    pub(crate) correlation: Uuid,
    pub(crate) cause: Option<Uuid>,
    pub(crate) changes: Vec<Change>,
}

/// The events of one aggregate in a decision.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) aggregate: Aggregate,
    pub(crate) head: Head,
    pub(crate) events: Vec<Pending>,
}

/// An event that is not in the log yet.
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
    /// An empty decision. `correlation` is the ticket or session that it is about, `cause` the event that it answers.
    pub fn new(env: &impl Env, correlation: Uuid, cause: Option<Uuid>) -> Self {
        Self { at: env.now(), correlation, cause, changes: Vec::new() }
    }

    /// Adds events of an aggregate, which was read up to `head`.
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

    /// As [`Decision::change`] for one event that has its id already.
    #[must_use]
    pub fn change_with_id<E: Event>(mut self, id: Uuid, aggregate: Aggregate, head: Head, event: &E) -> Self {
        self.changes.push(Change { aggregate, head, events: vec![Pending::new(id, event)] });
        self
    }

    /// Where a process that appends it can be made to die; one that is empty is refused.
    pub(crate) fn point(&self) -> Option<Point> {
        self.changes.iter().flat_map(|change| &change.events).next().map(|event| event.point)
    }

    /// How many messages it is.
    pub fn len(&self) -> usize {
        self.changes.iter().map(|change| change.events.len()).sum()
    }

    /// Whether it holds no event.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it changes.
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
