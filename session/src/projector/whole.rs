//! A set of projections as a whole: folded in memory from the log's beginning, to be written to Redis, or compared with
//! what was read from there.

use std::collections::{BTreeMap, BTreeSet};

use garage_events::{
    id::{PlayerId, QueueName, SessionId},
    jetstream::follow::Message,
    projection::{
        CLOSED, CLOSED_KEPT, COUNTS, LivePlayer, LiveSession, Minute, PLAYERS, QUEUES, SESSIONS, TIMELINES, Timeline,
        WAITS,
    },
};
use serde::Serialize;
use serde_json::Value;

use super::fold::{Changes, CurrentState, ProjectedEvent, Touched, fold};

/// Fields written in one script; Redis does nothing else meanwhile, for some tens of milliseconds.
const PART: usize = 2_000;

/// What each key holds, by field or member: that of a hash, the score of a sorted set.
pub type ProjectedState = BTreeMap<&'static str, BTreeMap<String, Value>>;

/// The projections of a log, folded from its beginning.
#[derive(Debug, Default)]
pub struct Whole {
    players: BTreeMap<PlayerId, LivePlayer>,
    queues: BTreeMap<QueueName, u64>,
    waits: BTreeSet<String>,
    sessions: BTreeMap<SessionId, LiveSession>,
    timelines: BTreeMap<SessionId, Timeline>,
    minutes: BTreeMap<i64, Minute>,
    /// The oldest first.
    closed: BTreeSet<(i128, SessionId)>,
}

impl Whole {
    /// Folds the log's next messages.
    pub fn take(&mut self, messages: &[Message]) {
        self.fold(messages.iter().filter_map(ProjectedEvent::of).collect());
    }

    /// Folds the log's next events.
    pub(super) fn fold(&mut self, events: Vec<ProjectedEvent>) {
        if events.is_empty() {
            return;
        }
        let present = self.present(&Touched::by(&events));
        self.apply(fold(events, present));
    }

    /// What is to be written where nothing is, a part at a time.
    pub(super) fn parts(self) -> Vec<Changes> {
        let Self { players, queues, waits, sessions, timelines, minutes, closed } = self;
        let mut parts = split(changed(players), |part| &mut part.players);
        parts.extend(split(waits.into_iter().map(|waiter| (waiter, true)), |part| &mut part.waits));
        parts.extend(split(changed(sessions), |part| &mut part.sessions));
        parts.extend(split(changed(timelines), |part| &mut part.timelines));
        parts.push(Changes {
            queues: changed(queues).collect(),
            minutes: changed(minutes).collect(),
            closed: closed.into_iter().map(|(time, id)| (id, time)).collect(),
            ..Changes::default()
        });
        parts
    }

    /// What they hold, as Redis would.
    ///
    /// # Errors
    /// When something cannot be written as JSON.
    pub fn held(&self) -> serde_json::Result<ProjectedState> {
        let waits = self.waits.iter().map(|waiter| (waiter.clone(), Value::from(0)));
        let closed = self.closed.iter().map(|(time, id)| Ok((id.to_string(), serde_json::to_value(time)?)));
        Ok([
            (SESSIONS, fields(&self.sessions)?),
            (PLAYERS, fields(&self.players)?),
            (QUEUES, fields(&self.queues)?),
            (WAITS, waits.collect()),
            (COUNTS, fields(&self.minutes)?),
            (TIMELINES, fields(&self.timelines)?),
            (CLOSED, closed.collect::<serde_json::Result<_>>()?),
        ]
        .into())
    }

    /// Takes out what events touch: the fold's changes bring all of it back.
    fn present(&mut self, touched: &Touched) -> CurrentState {
        let Touched { players, sessions, minutes } = touched;
        CurrentState {
            kept: self.minutes.keys().copied().collect(),
            players: some(&mut self.players, players),
            timelines: some(&mut self.timelines, sessions),
            minutes: some(&mut self.minutes, minutes),
            queues: self.queues.clone(),
        }
    }

    /// As `apply.lua` does.
    fn apply(&mut self, changes: Changes) {
        let Changes { players, queues, waits, sessions, timelines, closed, minutes, horizon } = changes;
        write(&mut self.players, players);
        write(&mut self.queues, queues);
        write(&mut self.sessions, sessions);
        write(&mut self.timelines, timelines);
        write(&mut self.minutes, minutes);
        for (waiter, waits) in waits {
            if waits {
                self.waits.insert(waiter);
            } else {
                self.waits.remove(&waiter);
            }
        }
        self.closed.extend(closed.into_iter().map(|(id, time)| (time, id)));
        let horizon = horizon.map_or(i128::MIN, |minute| i128::from(minute) * 60_000);
        while self.closed.first().is_some_and(|(time, _)| *time < horizon || self.closed.len() > CLOSED_KEPT)
            && let Some((_, id)) = self.closed.pop_first()
        {
            self.timelines.remove(&id);
        }
    }
}

fn changed<K, V>(all: impl IntoIterator<Item = (K, V)>) -> impl Iterator<Item = (K, Option<V>)> {
    all.into_iter().map(|(key, value)| (key, Some(value)))
}

fn split<K: Ord, V>(
    all: impl Iterator<Item = (K, V)>,
    of: impl Fn(&mut Changes) -> &mut BTreeMap<K, V>,
) -> Vec<Changes> {
    let mut parts = Vec::new();
    let mut part = Changes::default();
    for (key, value) in all {
        if of(&mut part).len() == PART {
            parts.push(std::mem::take(&mut part));
        }
        of(&mut part).insert(key, value);
    }
    parts.push(part);
    parts
}

fn some<K: Ord, V>(all: &mut BTreeMap<K, V>, wanted: &BTreeSet<K>) -> BTreeMap<K, V> {
    wanted.iter().filter_map(|key| all.remove_entry(key)).collect()
}

fn write<K: Ord, V>(all: &mut BTreeMap<K, V>, changes: BTreeMap<K, Option<V>>) {
    for (key, value) in changes {
        match value {
            Some(value) => drop(all.insert(key, value)),
            None => drop(all.remove(&key)),
        }
    }
}

fn fields<K: ToString, V: Serialize>(all: &BTreeMap<K, V>) -> serde_json::Result<BTreeMap<String, Value>> {
    all.iter().map(|(key, value)| Ok((key.to_string(), serde_json::to_value(value)?))).collect()
}
