//! What events make of the projections. Pure: what is there is read before, and what is to be is written after, by one
//! script that refuses when the projections have moved in between.

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
use time::OffsetDateTime;

/// As much of an event's words as a timeline keeps, in characters.
const DETAIL: usize = 300;

/// An event that the projections are made of.
#[derive(Debug, Clone)]
pub struct ProjectedEvent {
    /// Its sequence in the log.
    pub seq: u64,
    /// The stream's timestamp.
    pub time: OffsetDateTime,
    /// What happened, and to whom.
    pub what: What,
}

/// What happened, and to whom.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the aggregates are those of the log")]
pub enum What {
    Player(PlayerId, player::Event),
    Session(SessionId, session::Event),
}

impl ProjectedEvent {
    /// Reads a message; none when the projections take nothing from it. What cannot be read is skipped and counted.
    pub fn of(message: &Message) -> Option<Self> {
        let read = || -> Result<Option<What>, DecodeError> {
            let envelope = Envelope::from_slice(&message.body)?;
            Ok(match Aggregate::of(&message.subject) {
                Some(Aggregate::Player(player)) => Some(What::Player(player, envelope.event()?)),
                Some(Aggregate::Session(session)) => Some(What::Session(session, envelope.event()?)),
                Some(Aggregate::Inventory(_)) | None => None,
            })
        };
        let what = read().unwrap_or_else(|error| {
            metrics::counter!("garage_projection_skipped_total").increment(1);
            tracing::warn!(event.seq = message.seq, %error, "event skipped by the projections");
            None
        })?;
        Some(Self { seq: message.seq, time: message.time, what })
    }
}

/// What events may change: to be read before they are folded.
#[derive(Debug, Default)]
pub struct Touched {
    /// These players.
    pub players: BTreeSet<PlayerId>,
    /// The timelines of these sessions.
    pub sessions: BTreeSet<SessionId>,
    /// These minutes.
    pub minutes: BTreeSet<i64>,
}

impl Touched {
    /// What these events may change.
    pub fn by(events: &[ProjectedEvent]) -> Self {
        let mut touched = Self::default();
        for ProjectedEvent { time, what, .. } in events {
            touched.minutes.insert(minute_of(*time));
            match what {
                What::Player(player, _) => drop(touched.players.insert(player.clone())),
                What::Session(session, _) => drop(touched.sessions.insert(*session)),
            }
        }
        touched
    }
}

/// What there is of it.
#[derive(Debug, Default)]
pub struct CurrentState {
    /// The players of it who wait or play.
    pub players: BTreeMap<PlayerId, LivePlayer>,
    /// Its timelines.
    pub timelines: BTreeMap<SessionId, Timeline>,
    /// Its minutes.
    pub minutes: BTreeMap<i64, Minute>,
    /// Every minute that there is.
    pub kept: BTreeSet<i64>,
    /// Every queue in which somebody waits, and how many.
    pub queues: BTreeMap<QueueName, u64>,
}

/// What is to be written. Where there is no value, the entry goes.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Players.
    pub players: BTreeMap<PlayerId, Option<LivePlayer>>,
    /// Queues.
    pub queues: BTreeMap<QueueName, Option<u64>>,
    /// Waiters, and whether they wait.
    pub waits: BTreeMap<String, bool>,
    /// Live sessions.
    pub sessions: BTreeMap<SessionId, Option<LiveSession>>,
    /// Timelines.
    pub timelines: BTreeMap<SessionId, Option<Timeline>>,
    /// Sessions that were closed, and when, in milliseconds.
    pub closed: BTreeMap<SessionId, i128>,
    /// Minutes.
    pub minutes: BTreeMap<i64, Option<Minute>>,
    /// The first minute that is looked back on, if there is any.
    pub horizon: Option<i64>,
}

/// Folds events, in the log's order, into what there is of what they touch.
pub fn fold(events: Vec<ProjectedEvent>, present: CurrentState) -> Changes {
    let CurrentState { players, timelines, minutes, kept, queues } = present;
    let mut fold = Fold { players, timelines, minutes, queues, changes: Changes::default() };
    for ProjectedEvent { seq, time, what } in events {
        match what {
            What::Player(player, event) => fold.player(player, &event, time),
            What::Session(session, event) => fold.session(session, &event, seq, time),
        }
    }
    let Fold { timelines, minutes, mut changes, .. } = fold;
    for (id, timeline) in timelines {
        let live = timeline.ended.is_none().then(|| timeline.session.clone());
        changes.sessions.insert(id, live);
        changes.timelines.insert(id, Some(timeline));
    }
    // By the log's own time: a log that stands still looks back on the same.
    let newest = kept.iter().chain(minutes.keys()).max();
    changes.horizon = newest.map(|newest| newest - MINUTES + 1);
    let is_over = |minute: &i64| changes.horizon.is_some_and(|horizon| *minute < horizon);
    changes.minutes = kept.into_iter().filter(is_over).map(|minute| (minute, None)).collect();
    changes.minutes.extend(minutes.into_iter().filter(|(minute, _)| !is_over(minute)).map(|(at, one)| (at, Some(one))));
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
            player::Event::TimedOut(data) => flow(&data.queue, |flow| &mut flow.timed_out),
            player::Event::Matched(data) => {
                flow(&data.queue, |flow| &mut flow.matched);
                let waited = &mut minute.queues.entry(data.queue.clone()).or_default().waited;
                waited.count(took_ms(data.waiting_since, time));
            }
            player::Event::PlayerMatched(_) | player::Event::Released(_) => {}
        }
        let state = match player::State::evolve(event) {
            player::State::Waiting(data) => Some(LivePlayer::Waiting { queue: data.queue, since: data.waiting_since }),
            player::State::Matched(player::Matched { session, .. })
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
        if let session::Event::Matched(matched) = event {
            self.timelines.entry(id).or_insert_with(|| begun(matched, time));
        }
        // A session whose beginning the log no longer has is not shown.
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

fn begun(matched: &session::Matched, time: OffsetDateTime) -> Timeline {
    let session = LiveSession {
        status: Status::Matched,
        server: None,
        queue: matched.queue.clone(),
        region: matched.region.clone(),
        players: matched.players().cloned().collect(),
        attempt: 0,
        since: time,
    };
    Timeline { session, ended: None, events: Vec::new() }
}

/// Counts that a session came to a step, if it is the first time, and how long that took.
fn count(minute: &mut Minute, timeline: &Timeline, step: Step, time: OffsetDateTime) {
    let last = |step: Step| timeline.events.iter().rev().find(|entry| entry.type_name == step.type_name());
    if last(step).is_some() {
        return;
    }
    let reached = minute.steps.entry(step).or_default();
    reached.sessions += 1;
    reached.players += timeline.session.players.len() as u64;
    // A server's report may come before the word of where it is; then this step took no time that could be told.
    if let Some(before) = step.previous().and_then(last) {
        reached.took.count(took_ms(before.time, time));
    }
}

fn evolve(session: &mut LiveSession, event: &session::Event) {
    match event {
        session::Event::Matched(_) | session::Event::Failed(_) => {}
        session::Event::PodRequested(data) => {
            (session.status, session.attempt, session.server) =
                (Status::Starting, data.attempt, Some(Server::Requested));
        }
        // Not when its report came first.
        session::Event::PodScheduled(_) => session.server = session.server.max(Some(Server::Scheduled)),
        session::Event::PodReady(_) => session.server = session.server.max(Some(Server::Ready)),
        session::Event::Opened(_) => (session.status, session.server) = (Status::Open, Some(Server::Running)),
        session::Event::PodFailed(_) | session::Event::Finished(_) => session.server = None,
        session::Event::Closed(_) => (session.status, session.server) = (Status::Closed, None),
    }
}

fn entry(event: &session::Event, seq: u64, time: OffsetDateTime) -> Entry {
    let (attempt, detail) = match event {
        session::Event::Matched(_) => (None, None),
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
    Entry { seq, time, type_name, attempt, detail: detail.map(|text| text.chars().take(DETAIL).collect()) }
}

/// Milliseconds from one time to another; none where two clocks disagree on which was first.
fn took_ms(from: OffsetDateTime, to: OffsetDateTime) -> u64 {
    u64::try_from(millis(to) - millis(from)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
