//! A set of projections as a whole: folded in memory from the log's beginning, or read from Redis, to be compared.

use std::collections::{BTreeMap, BTreeSet};

use garage_events::{
    id::{PlayerId, QueueName, SessionId},
    jetstream::follow::Message,
    projection::{
        CLOSED, CLOSED_KEPT, COUNTS, LivePlayer, LiveSession, Minute, PLAYERS, QUEUES, SESSIONS, TIMELINES, Timeline,
        WAITS, millis,
    },
};
use serde::Serialize;
use serde_json::Value;

use super::fold::{Changes, Present, Seen, Touched, fold};

/// What each key holds, by field or member: that of a hash, the score of a sorted set.
pub type Held = BTreeMap<&'static str, BTreeMap<String, Value>>;

/// The projections of a log, folded from its beginning.
#[derive(Debug, Default)]
pub struct Whole {
    players: BTreeMap<PlayerId, LivePlayer>,
    queues: BTreeMap<QueueName, u64>,
    waits: BTreeSet<String>,
    sessions: BTreeMap<SessionId, LiveSession>,
    timelines: BTreeMap<SessionId, Timeline>,
    minutes: BTreeMap<i64, Minute>,
    closed: BTreeMap<SessionId, i128>,
}

impl Whole {
    /// Folds the log's next messages.
    pub fn take(&mut self, messages: &[Message]) {
        let events: Vec<_> = messages.iter().filter_map(Seen::of).collect();
        if events.is_empty() {
            return;
        }
        let present = self.present(&Touched::by(&events));
        self.apply(fold(events, present));
    }

    /// What they hold, as Redis would.
    ///
    /// # Errors
    /// When something cannot be written as JSON.
    pub fn held(&self) -> serde_json::Result<Held> {
        let waits = self.waits.iter().map(|waiter| (waiter.clone(), Value::from(0)));
        let closed = self.closed.iter().map(|(id, time)| Ok((id.to_string(), serde_json::to_value(time)?)));
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

    fn present(&self, touched: &Touched) -> Present {
        let Touched { players, sessions, minutes } = touched;
        Present {
            players: some(&self.players, players),
            timelines: some(&self.timelines, sessions),
            minutes: some(&self.minutes, minutes),
            kept: self.minutes.keys().copied().collect(),
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
        self.closed.extend(closed.into_iter().map(|(id, time)| (id, millis(time))));
        let horizon = horizon.map(|minute| i128::from(minute) * 60_000);
        self.forget(|time| horizon.is_some_and(|horizon| time < horizon));
        while self.closed.len() > CLOSED_KEPT
            && let Some((id, _)) = self.closed.iter().min_by_key(|(id, time)| (**time, id.to_string()))
        {
            let id = *id;
            self.closed.remove(&id);
            self.timelines.remove(&id);
        }
    }

    fn forget(&mut self, is_over: impl Fn(i128) -> bool) {
        let timelines = &mut self.timelines;
        self.closed.retain(|id, time| {
            if is_over(*time) {
                timelines.remove(id);
            }
            !is_over(*time)
        });
    }
}

fn some<K: Ord + Clone, V: Clone>(all: &BTreeMap<K, V>, wanted: &BTreeSet<K>) -> BTreeMap<K, V> {
    wanted.iter().filter_map(|key| Some((key.clone(), all.get(key)?.clone()))).collect()
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
