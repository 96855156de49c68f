//! Compares the projections in Redis with a fold of the log.

use std::collections::BTreeSet;

use garage_events::{
    id::{PlayerId, SessionId},
    jetstream::follow::Message,
    projection::{CLOSED, COUNTS, MINUTES, PLAYERS, SESSIONS, TIMELINES, minute_of},
    subject::Aggregate,
};
use garage_session::{fold::ProjectedState, projector::InMemoryProjections, redis::ProjectionsCopy};
use serde_json::Value;

use crate::violation::{Rule, Violation};

/// Messages per step of the fold.
const BATCH: usize = 500;

/// Values in violations are cut to this length, in characters.
const MAX_SHOWN: usize = 200;

/// A copy of the projections, and a fold of the log up to the sequence that they have reached.
#[derive(Debug)]
pub struct Projections {
    copied: ProjectionsCopy,
    folded: InMemoryProjections,
    batch: Vec<Message>,
    /// Set if the beginning of the log has expired.
    forgotten: Option<Forgotten>,
    /// Whether a message was folded.
    begun: bool,
    /// Events that the projections have not applied.
    behind: u64,
}

/// The part of the projections that a fold cannot compute, because the beginning of the log has expired.
#[derive(Debug, Clone, Copy)]
struct Forgotten {
    /// Sequence of the first message of the log.
    seq: u64,
    /// The first minute whose events are all in the log.
    minute: i64,
}

impl Projections {
    pub fn new(copied: ProjectionsCopy) -> Self {
        let (folded, batch) = (InMemoryProjections::default(), Vec::with_capacity(BATCH));
        Self { copied, folded, batch, forgotten: None, begun: false, behind: 0 }
    }

    /// Folds the log's next message.
    pub fn take(&mut self, message: &Message) {
        if !self.begun {
            self.begun = true;
            // The fold does not know sessions that were live at the first message. All of them end within MINUTES.
            let minute = minute_of(message.time) + MINUTES;
            self.forgotten = (message.seq > 1).then_some(Forgotten { seq: message.seq, minute });
        }
        if !matches!(Aggregate::of(&message.subject), Some(Aggregate::Player(_) | Aggregate::Session(_))) {
            return;
        }
        if message.seq > self.copied.seq {
            self.behind += 1;
            return;
        }
        self.batch.push(message.clone());
        if self.batch.len() == BATCH {
            self.folded.fold_messages(&std::mem::take(&mut self.batch));
        }
    }

    /// Returns the differences. `log` is the log's identity, and `end` its last sequence when it was read.
    pub fn finish(mut self, log: &str, end: u64) -> serde_json::Result<Vec<Violation>> {
        self.folded.fold_messages(&std::mem::take(&mut self.batch));
        let seq = self.copied.seq;
        let wrong = |what: String| Ok(vec![Violation::new(Rule::Projected, [seq], what)]);
        match &self.copied.log {
            None => return wrong("there are no projections in Redis".into()),
            Some(other) if other != log => return wrong(format!("the projections are of another log, {other}")),
            Some(_) if seq > end => return wrong(format!("the projections are beyond the log's end, {end}")),
            Some(_) => {}
        }
        Ok(self.differences(&self.folded.contents()?))
    }

    /// Number of events that the projections had not applied when they were copied.
    pub fn behind(&self) -> u64 {
        self.behind
    }

    fn differences(&self, made: &ProjectedState) -> Vec<Violation> {
        let empty = Default::default();
        let mut found = Vec::new();
        for (key, made) in made {
            let held = self.copied.contents.get(key).unwrap_or(&empty);
            let fields: BTreeSet<&String> = made.keys().chain(held.keys()).collect();
            for field in fields {
                let (made, held) = (made.get(field), held.get(field));
                if made == held || self.is_forgotten(key, field, held) {
                    continue;
                }
                let what = format!("{key} {field} is {}, but should be {}", shown(held), shown(made));
                found.push(about(Violation::new(Rule::Projected, [self.copied.seq], what), key, field));
            }
        }
        found
    }

    /// Whether the entry may come from events that have expired.
    fn is_forgotten(&self, key: &str, field: &str, held: Option<&Value>) -> bool {
        let Some(Forgotten { seq, minute }) = self.forgotten else { return false };
        let began = |timeline: &Value| timeline.pointer("/events/0/seq").and_then(Value::as_u64);
        match key {
            COUNTS => field.parse().is_ok_and(|one: i64| one < minute),
            TIMELINES => held.and_then(began).is_some_and(|began| began < seq),
            CLOSED | SESSIONS => {
                let timeline = self.copied.contents.get(TIMELINES).and_then(|timelines| timelines.get(field));
                timeline.and_then(began).is_some_and(|began| began < seq)
            }
            _ => false,
        }
    }
}

/// Adds the player or session of a field to a violation.
fn about(violation: Violation, key: &str, field: &str) -> Violation {
    match key {
        PLAYERS => field.parse::<PlayerId>().iter().fold(violation, Violation::player),
        SESSIONS | TIMELINES | CLOSED => match field.parse::<SessionId>() {
            Ok(session) => violation.session(session),
            Err(_) => violation,
        },
        _ => violation,
    }
}

fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "not there".into(), |value| value.to_string().chars().take(MAX_SHOWN).collect())
}
