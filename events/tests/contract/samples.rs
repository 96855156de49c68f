//! Unique players, sessions and decisions, so that several cases can use the same log.

use std::sync::{Arc, Mutex};

use garage_events::{
    env::{Env, System},
    event::Event,
    id::{PlayerId, SessionId, TicketId},
    log::{Decision, Head},
    player, session,
    subject::Aggregate,
};
use time::{OffsetDateTime, macros::datetime};
use uuid::Uuid;

/// The time in all events.
pub(crate) const THEN: OffsetDateTime = datetime!(2026-02-03 04:05:06 UTC);

/// A player without events.
pub(crate) fn new_player() -> PlayerId {
    format!("p{}", System.id().simple()).parse().unwrap()
}

/// A session without events.
pub(crate) fn new_session() -> SessionId {
    SessionId::new(System.id())
}

/// A new ticket.
pub(crate) fn new_ticket() -> TicketId {
    TicketId::new(System.id())
}

/// The player enters a queue.
pub(crate) fn queued() -> player::Event {
    player::Queued {
        ticket: new_ticket(),
        queue: "ranked".parse().unwrap(),
        rank: 1_500,
        latencies: [("eu".parse().unwrap(), 20)].into(),
        attributes: Default::default(),
        group: Vec::new(),
        waiting_since: THEN,
        expires_at: THEN + time::Duration::minutes(2),
        requeues: 0,
        absences: 0,
        party: None,
    }
    .into()
}

/// The player cancels a ticket.
pub(crate) fn cancelled() -> player::Event {
    let (ticket, queue) = (new_ticket(), "ranked".parse().unwrap());
    player::Cancelled { ticket, queue, reason: player::CancelReason::Player, absences: 0, party: None }.into()
}

/// A session begins with these players.
pub(crate) fn matched(players: &[PlayerId]) -> session::Event {
    let member = |player: &PlayerId| session::Member { player: player.clone(), ticket: new_ticket(), rank: 1_500 };
    session::Matched {
        queue: "ranked".parse().unwrap(),
        region: "eu".parse().unwrap(),
        teams: vec![session::Team { name: "all".into(), players: players.iter().map(member).collect() }],
        latencies: Default::default(),
        rules: "1".into(),
        pool_seq: 1,
        clock: THEN,
        seed: 0,
        skipped: Vec::new(),
        left_out: Vec::new(),
        search_steps: None,
    }
    .into()
}

/// The session requests a server.
pub(crate) fn pod_requested(attempt: u32) -> session::Event {
    session::PodRequested {
        attempt,
        region: "eu".parse().unwrap(),
        loadouts: Vec::new(),
        public_key: "-----BEGIN PUBLIC KEY-----".into(),
        fingerprint: "00".repeat(32),
        ends_at: None,
    }
    .into()
}

/// The server fails.
pub(crate) fn pod_failed(attempt: u32) -> session::Event {
    session::PodFailed { attempt, reason: "no-room".into(), message: "no node has room".into() }.into()
}

/// The session fails, which is two events.
pub(crate) fn failed_and_closed() -> [session::Event; 2] {
    let closed = session::Closed { why: player::Ending::Failed, results: Vec::new(), teams: Vec::new() };
    [session::Failed { reason: "no-server".into() }.into(), closed.into()]
}

/// A decision and the ids of its events, in order. Each decision has a correlation of its own.
#[derive(Debug, Clone)]
pub(crate) struct Prepared {
    pub(crate) decision: Decision,
    ids: Ids,
}

impl Prepared {
    pub(crate) fn empty() -> Self {
        let ids = Ids::default();
        Self { decision: Decision::new(&ids, System.id(), None), ids }
    }

    #[must_use]
    pub(crate) fn and<E: Event>(
        mut self,
        of: impl Into<Target>,
        head: Head,
        events: impl IntoIterator<Item = E>,
    ) -> Self {
        self.decision = self.decision.change(&self.ids, of.into().0, head, events);
        self
    }

    pub(crate) fn ids(&self) -> Vec<Uuid> {
        self.ids.0.lock().unwrap().clone()
    }
}

/// A decision on one aggregate.
pub(crate) fn prepare<E: Event>(of: impl Into<Target>, head: Head, events: impl IntoIterator<Item = E>) -> Prepared {
    Prepared::empty().and(of, head, events)
}

/// An aggregate. It converts from the ids that the cases use.
pub(crate) struct Target(Aggregate);

impl From<&PlayerId> for Target {
    fn from(id: &PlayerId) -> Self {
        Self(Aggregate::Player(id.clone()))
    }
}

impl From<SessionId> for Target {
    fn from(id: SessionId) -> Self {
        Self(Aggregate::Session(id))
    }
}

impl From<Aggregate> for Target {
    fn from(aggregate: Aggregate) -> Self {
        Self(aggregate)
    }
}

/// The filter for a player's events.
pub(crate) fn of_player(id: &PlayerId) -> String {
    Aggregate::Player(id.clone()).filter()
}

/// The filter for a session's events.
pub(crate) fn of_session(id: SessionId) -> String {
    Aggregate::Session(id).filter()
}

/// Generates ids and remembers them.
#[derive(Debug, Clone, Default)]
struct Ids(Arc<Mutex<Vec<Uuid>>>);

impl Env for Ids {
    fn now(&self) -> OffsetDateTime {
        THEN
    }

    fn id(&self) -> Uuid {
        let id = System.id();
        self.0.lock().unwrap().push(id);
        id
    }
}
