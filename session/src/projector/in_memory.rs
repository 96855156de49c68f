//! A set of projections in memory, folded from the log's beginning. A rebuild writes it to Redis, and `garage verify`
//! compares it with the projections in Redis.

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

use crate::fold::{Changes, CurrentState, ProjectedEvent, ProjectedState, Touched, fold};

/// How many fields one script writes at most. This takes Redis some tens of milliseconds, in which it executes nothing
/// else.
const PART_SIZE: usize = 2_000;

/// The projections of a log, folded from its beginning.
#[derive(Debug, Default)]
pub struct InMemoryProjections {
    players: BTreeMap<PlayerId, LivePlayer>,
    queues: BTreeMap<QueueName, u64>,
    waits: BTreeSet<String>,
    sessions: BTreeMap<SessionId, LiveSession>,
    timelines: BTreeMap<SessionId, Timeline>,
    minutes: BTreeMap<i64, Minute>,
    /// Oldest first.
    closed: BTreeSet<(i128, SessionId)>,
}

impl InMemoryProjections {
    /// Folds the log's next messages.
    pub fn fold_messages(&mut self, messages: &[Message]) {
        self.fold(messages.iter().filter_map(ProjectedEvent::of).collect());
    }

    /// Folds the log's next events.
    pub(super) fn fold(&mut self, events: Vec<ProjectedEvent>) {
        if events.is_empty() {
            return;
        }
        let current = self.take_touched(&Touched::by(&events));
        self.apply(fold(events, current));
    }

    /// The changes that write everything to an empty set of projections, in parts.
    pub(super) fn parts(self) -> Vec<Changes> {
        let Self { players, queues, waits, sessions, timelines, minutes, closed } = self;
        let mut parts = split(set_all(players), |part| &mut part.players);
        parts.extend(split(waits.into_iter().map(|waiter| (waiter, true)), |part| &mut part.waits));
        parts.extend(split(set_all(sessions), |part| &mut part.sessions));
        parts.extend(split(set_all(timelines), |part| &mut part.timelines));
        parts.push(Changes {
            queues: set_all(queues).collect(),
            minutes: set_all(minutes).collect(),
            closed: closed.into_iter().map(|(time, id)| (id, time)).collect(),
            ..Changes::default()
        });
        parts
    }

    /// The contents, in the form in which Redis holds them.
    ///
    /// # Errors
    /// If a value cannot be written as JSON.
    pub fn contents(&self) -> serde_json::Result<ProjectedState> {
        let waits = self.waits.iter().map(|waiter| (waiter.clone(), Value::from(0)));
        let closed = self.closed.iter().map(|(time, id)| Ok((id.to_string(), serde_json::to_value(time)?)));
        Ok([
            (SESSIONS, to_json(&self.sessions)?),
            (PLAYERS, to_json(&self.players)?),
            (QUEUES, to_json(&self.queues)?),
            (WAITS, waits.collect()),
            (COUNTS, to_json(&self.minutes)?),
            (TIMELINES, to_json(&self.timelines)?),
            (CLOSED, closed.collect::<serde_json::Result<_>>()?),
        ]
        .into())
    }

    /// Removes and returns the parts that events touch. The changes of the fold insert all of them again.
    fn take_touched(&mut self, touched: &Touched) -> CurrentState {
        let Touched { players, sessions, minutes } = touched;
        CurrentState {
            kept: self.minutes.keys().copied().collect(),
            players: remove_all(&mut self.players, players),
            timelines: remove_all(&mut self.timelines, sessions),
            minutes: remove_all(&mut self.minutes, minutes),
            queues: self.queues.clone(),
        }
    }

    /// Applies changes, like `apply.lua`.
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

fn set_all<K, V>(all: impl IntoIterator<Item = (K, V)>) -> impl Iterator<Item = (K, Option<V>)> {
    all.into_iter().map(|(key, value)| (key, Some(value)))
}

fn split<K: Ord, V>(
    all: impl Iterator<Item = (K, V)>,
    of: impl Fn(&mut Changes) -> &mut BTreeMap<K, V>,
) -> Vec<Changes> {
    let mut parts = Vec::new();
    let mut part = Changes::default();
    for (key, value) in all {
        if of(&mut part).len() == PART_SIZE {
            parts.push(std::mem::take(&mut part));
        }
        of(&mut part).insert(key, value);
    }
    parts.push(part);
    parts
}

fn remove_all<K: Ord, V>(all: &mut BTreeMap<K, V>, wanted: &BTreeSet<K>) -> BTreeMap<K, V> {
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

fn to_json<K: ToString, V: Serialize>(all: &BTreeMap<K, V>) -> serde_json::Result<BTreeMap<String, Value>> {
    all.iter().map(|(key, value)| Ok((key.to_string(), serde_json::to_value(value)?))).collect()
}
