//! Folds events into the projections. Pure: the caller first reads the current state from Redis, and then writes the
//! changes with one script. The script changes nothing if the projections have changed since the read.

use std::collections::{BTreeMap, BTreeSet};

use garage_events::{
    event::{DecodeError, Envelope},
    id::{PlayerId, QueueName, SessionId},
    jetstream::follow::Message,
    player,
    projection::{
        Entry, Flow, LivePlayer, LiveSession, MINUTES, Minute, Server, Step, Timeline, millis, minute_of, waiter,
    },
    session::{self, Status},
    subject::Aggregate,
};
use serde_json::Value;
use time::OffsetDateTime;

/// The maximum length of an event's detail in a timeline, in characters.
const MAX_DETAIL: usize = 300;

/// An event that changes the projections.
#[derive(Debug, Clone)]
pub struct ProjectedEvent {
    /// The sequence in the log.
    pub seq: u64,
    /// The stream's timestamp.
    pub time: OffsetDateTime,
    /// The event, with its player or session.
    pub event: AggregateEvent,
}

/// An event, with its player or session.
#[derive(Debug, Clone)]
pub enum AggregateEvent {
    Player(PlayerId, player::Event),
    Session(SessionId, session::Event),
}

impl ProjectedEvent {
    /// Decodes a message; `None` if it is not an event of a player or a session, or if it cannot be decoded. The latter
    /// is logged and counted.
    pub fn of(message: &Message) -> Option<Self> {
        let read = || -> Result<Option<AggregateEvent>, DecodeError> {
            let envelope = Envelope::from_slice(&message.body)?;
            Ok(match Aggregate::of(&message.subject) {
                Some(Aggregate::Player(player)) => Some(AggregateEvent::Player(player, envelope.event()?)),
                Some(Aggregate::Session(session)) => Some(AggregateEvent::Session(session, envelope.event()?)),
                Some(Aggregate::Inventory(_) | Aggregate::Party(_)) | None => None,
            })
        };
        let event = read().unwrap_or_else(|error| {
            metrics::counter!("garage_projection_skipped_total").increment(1);
            tracing::warn!(event.seq = message.seq, %error, "cannot decode an event; the projections skip it");
            None
        })?;
        Some(Self { seq: message.seq, time: message.time, event })
    }
}

/// The parts of the projections that some events can change. They must be read before the events are folded.
#[derive(Debug, Default)]
pub struct Touched {
    pub players: BTreeSet<PlayerId>,
    /// The sessions whose timelines can change.
    pub sessions: BTreeSet<SessionId>,
    /// The minutes whose statistics can change.
    pub minutes: BTreeSet<i64>,
}

impl Touched {
    /// The parts that these events can change.
    pub fn by(events: &[ProjectedEvent]) -> Self {
        let mut touched = Self::default();
        for ProjectedEvent { time, event, .. } in events {
            touched.minutes.insert(minute_of(*time));
            match event {
                AggregateEvent::Player(player, _) => drop(touched.players.insert(player.clone())),
                AggregateEvent::Session(session, _) => drop(touched.sessions.insert(*session)),
            }
        }
        touched
    }
}

/// The current values of the touched parts.
#[derive(Debug, Default)]
pub struct CurrentState {
    /// The touched players who wait or are in a session.
    pub players: BTreeMap<PlayerId, LivePlayer>,
    /// The timelines of the touched sessions.
    pub timelines: BTreeMap<SessionId, Timeline>,
    /// The statistics of the touched minutes.
    pub minutes: BTreeMap<i64, Minute>,
    /// The numbers of all minutes in the projections.
    pub kept: BTreeSet<i64>,
    /// All queues with waiting players, and the number of these players.
    pub queues: BTreeMap<QueueName, u64>,
}

/// The content of each key: for a hash, the value of each field; for a sorted set, the score of each member.
pub type ProjectedState = BTreeMap<&'static str, BTreeMap<String, Value>>;

/// The changes to write. `None` deletes an entry.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    pub players: BTreeMap<PlayerId, Option<LivePlayer>>,
    /// The number of waiting players.
    pub queues: BTreeMap<QueueName, Option<u64>>,
    /// Members of the sorted set of waiting players: `true` adds the member, `false` removes it.
    pub waits: BTreeMap<String, bool>,
    pub sessions: BTreeMap<SessionId, Option<LiveSession>>,
    pub timelines: BTreeMap<SessionId, Option<Timeline>>,
    /// Closed sessions, with the time in milliseconds since 1970.
    pub closed: BTreeMap<SessionId, i128>,
    pub minutes: BTreeMap<i64, Option<Minute>>,
    /// The oldest minute to keep; `None` if there is no minute at all.
    pub horizon: Option<i64>,
}

/// Folds events, in the log's order, into the current state of the parts that they touch.
pub fn fold(events: Vec<ProjectedEvent>, current: CurrentState) -> Changes {
    let CurrentState { players, timelines, minutes, kept, queues } = current;
    let mut fold = Fold { players, timelines, minutes, queues, changes: Changes::default() };
    for ProjectedEvent { seq, time, event } in events {
        match event {
            AggregateEvent::Player(player, event) => fold.player(player, &event, time),
            AggregateEvent::Session(session, event) => fold.session(session, &event, seq, time),
        }
    }
    let Fold { timelines, minutes, mut changes, .. } = fold;
    for (id, timeline) in timelines {
        let live = timeline.ended.is_none().then(|| timeline.session.clone());
        changes.sessions.insert(id, live);
        changes.timelines.insert(id, Some(timeline));
    }
    // The horizon depends on the newest event, not on the clock. Without new events, the projections keep the last hour
    // of the log.
    let newest = kept.iter().chain(minutes.keys()).max();
    changes.horizon = newest.map(|newest| newest - MINUTES + 1);
    let is_too_old = |minute: &i64| changes.horizon.is_some_and(|horizon| *minute < horizon);
    changes.minutes = kept.into_iter().filter(is_too_old).map(|minute| (minute, None)).collect();
    changes
        .minutes
        .extend(minutes.into_iter().filter(|(minute, _)| !is_too_old(minute)).map(|(at, one)| (at, Some(one))));
    changes
}

struct Fold {
    players: BTreeMap<PlayerId, LivePlayer>,
    timelines: BTreeMap<SessionId, Timeline>,
    minutes: BTreeMap<i64, Minute>,
    queues: BTreeMap<QueueName, u64>,
    changes: Changes,
}

impl Fold {
    fn minute(&mut self, time: OffsetDateTime) -> &mut Minute {
        self.minutes.entry(minute_of(time)).or_default()
    }

    fn player(&mut self, id: PlayerId, event: &player::Event, time: OffsetDateTime) {
        let minute = self.minute(time);
        let mut flow = |queue: &QueueName, count: fn(&mut Flow) -> &mut u64| {
            *count(minute.queues.entry(queue.clone()).or_default()) += 1;
        };
        match event {
            player::Event::Queued(data) => flow(&data.queue, |flow| &mut flow.queued),
            player::Event::Cancelled(data) => flow(&data.queue, |flow| &mut flow.cancelled),
            player::Event::TimedOut(data) => {
                flow(&data.queue, |flow| &mut flow.timed_out);
                let excluded = &mut minute.queues.entry(data.queue.clone()).or_default().excluded;
                for (rule, count) in data.considered.iter().flat_map(|candidates| &candidates.excluded) {
                    *excluded.entry(rule.clone()).or_default() += u64::from(*count);
                }
            }
            player::Event::Matched(data) => {
                flow(&data.queue, |flow| &mut flow.matched);
                // The wait of a requeued player includes the failed match.
                if !data.is_rematch() {
                    let waited = &mut minute.queues.entry(data.queue.clone()).or_default().waited;
                    waited.count(took_ms(data.waiting_since, time));
                }
            }
            player::Event::Requeued(data) => flow(&data.queued.queue, |flow| &mut flow.requeued),
            player::Event::MatchDeclined(data) => flow(&data.queue, |flow| &mut flow.cancelled),
            player::Event::MatchProposed(_)
            | player::Event::PlayerMatched(_)
            | player::Event::Released(_)
            | player::Event::PartyChanged(_) => {}
        }
        let state = match player::State::evolve(event) {
            player::State::Waiting(data) => Some(LivePlayer::Waiting { queue: data.queue, since: data.waiting_since }),
            player::State::Proposed(player::MatchProposed { session, .. })
            | player::State::Matched(player::Matched { session, .. })
            | player::State::Playing(player::PlayerMatched { session, .. }) => Some(LivePlayer::InSession { session }),
            player::State::New | player::State::Idle { .. } => None,
        };
        if let Some(LivePlayer::Waiting { queue, since }) = self.players.get(&id) {
            self.changes.waits.insert(waiter(queue, *since, &id), false);
            let depth = self.queues.get(queue).copied().unwrap_or_default().saturating_sub(1);
            self.depth(queue.clone(), depth);
        }
        if let Some(LivePlayer::Waiting { queue, since }) = &state {
            self.changes.waits.insert(waiter(queue, *since, &id), true);
            let depth = self.queues.get(queue).copied().unwrap_or_default() + 1;
            self.depth(queue.clone(), depth);
        }
        match &state {
            Some(state) => drop(self.players.insert(id.clone(), state.clone())),
            None => drop(self.players.remove(&id)),
        }
        self.changes.players.insert(id, state);
    }

    fn depth(&mut self, queue: QueueName, depth: u64) {
        self.queues.insert(queue.clone(), depth);
        self.changes.queues.insert(queue, Some(depth).filter(|depth| *depth > 0));
    }

    fn session(&mut self, id: SessionId, event: &session::Event, seq: u64, time: OffsetDateTime) {
        let minute = self.minutes.entry(minute_of(time)).or_default();
        let begun = match event {
            session::Event::Proposed(proposed) => Some((&proposed.matched, Status::Proposed)),
            session::Event::Matched(matched) => Some((matched, Status::Matched)),
            _ => None,
        };
        if let Some((matched, status)) = begun {
            self.timelines.entry(id).or_insert_with(|| new_timeline(matched, status, time));
        }
        // If the log no longer has the beginning of a session, the projections leave the session out.
        let Some(timeline) = self.timelines.get_mut(&id) else { return };
        if let Some(step) = Step::of(event) {
            count(minute, timeline, step, time);
        }
        evolve(&mut timeline.session, event);
        match event {
            session::Event::PodFailed(data) => {
                *minute.servers_failed.entry(data.reason.clone()).or_default() += 1;
            }
            session::Event::Failed(data) => *minute.sessions_failed.entry(data.reason.clone()).or_default() += 1,
            session::Event::Closed(data) => {
                timeline.ended = Some(data.why);
                self.changes.closed.insert(id, millis(time));
            }
            _ => {}
        }
        timeline.events.push(entry(event, seq, time));
    }
}

fn new_timeline(matched: &session::Matched, status: Status, time: OffsetDateTime) -> Timeline {
    let session = LiveSession {
        status,
        server: None,
        queue: matched.queue.clone(),
        region: matched.region.clone(),
        players: matched.players().cloned().collect(),
        attempt: 0,
        since: time,
    };
    Timeline { session, ended: None, events: Vec::new() }
}

/// Counts that a session reached a step for the first time, and the time since the previous step.
fn count(minute: &mut Minute, timeline: &Timeline, step: Step, time: OffsetDateTime) {
    let last = |step: Step| timeline.events.iter().rev().find(|entry| entry.type_name == step.type_name());
    if last(step).is_some() {
        return;
    }
    let reached = minute.steps.entry(step).or_default();
    reached.sessions += 1;
    reached.players += timeline.session.players.len() as u64;
    // A game server's ready report may come before its placement. Then the duration of the step is unknown.
    if let Some(before) = step.previous().and_then(last) {
        reached.took.count(took_ms(before.time, time));
    }
}

fn evolve(session: &mut LiveSession, event: &session::Event) {
    match event {
        session::Event::Proposed(_)
        | session::Event::Accepted(_)
        | session::Event::ProposalEnded(_)
        | session::Event::Failed(_) => {}
        session::Event::Matched(_) => session.status = Status::Matched,
        session::Event::PodRequested(data) => {
            (session.status, session.attempt, session.server) =
                (Status::Starting, data.attempt, Some(Server::Requested));
        }
        // Does not replace `Ready`, which comes first if the report arrives before the placement.
        session::Event::PodScheduled(_) => session.server = session.server.max(Some(Server::Scheduled)),
        session::Event::PodReady(_) => session.server = session.server.max(Some(Server::Ready)),
        session::Event::Opened(_) => (session.status, session.server) = (Status::Open, Some(Server::Running)),
        session::Event::PodFailed(_) | session::Event::Finished(_) => session.server = None,
        session::Event::Closed(_) => (session.status, session.server) = (Status::Closed, None),
    }
}

fn entry(event: &session::Event, seq: u64, time: OffsetDateTime) -> Entry {
    let (attempt, detail) = match event {
        session::Event::Proposed(_) | session::Event::Matched(_) => (None, None),
        session::Event::Accepted(data) => (None, Some(format!("{} of {}: {}", data.accepted, data.of, data.player))),
        session::Event::ProposalEnded(data) => {
            let players: Vec<_> = data.players.iter().map(PlayerId::as_str).collect();
            (None, Some(format!("{}: {}", data.why.label(), players.join(", "))))
        }
        session::Event::PodRequested(data) => (Some(data.attempt), None),
        session::Event::PodScheduled(data) => (Some(data.attempt), Some(format!("{} on {}", data.pod, data.node))),
        session::Event::PodFailed(data) => (Some(data.attempt), Some(format!("{}: {}", data.reason, data.message))),
        session::Event::PodReady(data) => (Some(data.attempt), None),
        session::Event::Opened(data) => (Some(data.attempt), None),
        session::Event::Failed(data) => (None, Some(data.reason.clone())),
        session::Event::Finished(data) => (Some(data.attempt), None),
        session::Event::Closed(_) => (None, None),
    };
    let type_name = garage_events::event::Event::type_name(event).to_owned();
    Entry { seq, time, type_name, attempt, detail: detail.map(|text| text.chars().take(MAX_DETAIL).collect()) }
}

/// The milliseconds from one time to another; 0 if `to` is earlier, because two clocks differ.
fn took_ms(from: OffsetDateTime, to: OffsetDateTime) -> u64 {
    u64::try_from(millis(to) - millis(from)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
