//! Whether the projections are what a fold of the log makes.

use std::collections::BTreeSet;

use garage_events::{
    id::{PlayerId, SessionId},
    jetstream::follow::Message,
    projection::{CLOSED, COUNTS, MINUTES, PLAYERS, SESSIONS, TIMELINES, minute_of},
    subject::Aggregate,
};
use garage_session::{
    projector::{ProjectedState, Whole},
    redis::Copied,
};
use serde_json::Value;

use super::violation::{Rule, Violation};

/// Messages folded at a time.
const BATCH: usize = 500;

/// As much of a value as is shown, in characters.
const SHOWN: usize = 200;

/// Projections that were copied, and the fold of the log up to where they stood.
#[derive(Debug)]
pub(crate) struct Projections {
    copied: Copied,
    whole: Whole,
    batch: Vec<Message>,
    /// What the log has forgotten, if it has forgotten anything.
    forgotten: Option<Forgotten>,
    begun: bool,
    /// Events of theirs that they have not applied.
    behind: u64,
}

/// What a fold of a log without its beginning lacks.
#[derive(Debug, Clone, Copy)]
struct Forgotten {
    /// The log's first message.
    seq: u64,
    /// The first minute of which the log surely has all.
    minute: i64,
}

impl Projections {
    pub(crate) fn new(copied: Copied) -> Self {
        let (whole, batch) = (Whole::default(), Vec::with_capacity(BATCH));
        Self { copied, whole, batch, forgotten: None, begun: false, behind: 0 }
    }

    /// Folds the log's next message.
    pub(crate) fn take(&mut self, message: &Message) {
        if !self.begun {
            self.begun = true;
            // A session that was under way then is not in the fold; it is over within the time looked back on.
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
            self.whole.take(&std::mem::take(&mut self.batch));
        }
    }

    /// What is not as the log makes it. `log` is the log's identity, and `end` its last message when it was read.
    pub(crate) fn finish(mut self, log: &str, end: u64) -> serde_json::Result<Vec<Violation>> {
        self.whole.take(&std::mem::take(&mut self.batch));
        let seq = self.copied.seq;
        let wrong = |what: String| Ok(vec![Violation::new(Rule::Projected, [seq], what)]);
        match &self.copied.log {
            None => return wrong("there are no projections in redis".into()),
            Some(other) if other != log => return wrong(format!("the projections are of another log, {other}")),
            Some(_) if seq > end => return wrong(format!("the projections are beyond the log's end, {end}")),
            Some(_) => {}
        }
        Ok(self.differences(&self.whole.held()?))
    }

    /// Events of theirs that the projections had not applied when they were copied.
    pub(crate) fn behind(&self) -> u64 {
        self.behind
    }

    fn differences(&self, made: &ProjectedState) -> Vec<Violation> {
        let empty = Default::default();
        let mut found = Vec::new();
        for (key, made) in made {
            let held = self.copied.held.get(key).unwrap_or(&empty);
            let fields: BTreeSet<&String> = made.keys().chain(held.keys()).collect();
            for field in fields {
                let (made, held) = (made.get(field), held.get(field));
                if made == held || self.is_forgotten(key, field, held) {
                    continue;
                }
                let what = format!("{key} {field} is {} and the log makes it {}", shown(held), shown(made));
                found.push(about(Violation::new(Rule::Projected, [self.copied.seq], what), key, field));
            }
        }
        found
    }

    /// Whether the log may have forgotten what an entry was made of.
    fn is_forgotten(&self, key: &str, field: &str, held: Option<&Value>) -> bool {
        let Some(Forgotten { seq, minute }) = self.forgotten else { return false };
        let began = |timeline: &Value| timeline.pointer("/events/0/seq").and_then(Value::as_u64);
        match key {
            COUNTS => field.parse().is_ok_and(|one: i64| one < minute),
            TIMELINES => held.and_then(began).is_some_and(|began| began < seq),
            CLOSED | SESSIONS => {
                let timeline = self.copied.held.get(TIMELINES).and_then(|timelines| timelines.get(field));
                timeline.and_then(began).is_some_and(|began| began < seq)
            }
            _ => false,
        }
    }
}

/// The violation, about whom a field is of.
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
    value.map_or_else(|| "not there".into(), |value| value.to_string().chars().take(SHOWN).collect())
}
