//! Where each aggregate's history ends: its events' numbers, and what they expected.

use std::collections::HashMap;

use garage_events::{log::Head, subject::Aggregate};

use super::{
    event::Event,
    violation::{Rule, Violation},
};

/// What is known of an aggregate before a change of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// All of it.
    Known,
    /// It begins with this change.
    Begins,
    /// It began before the log does.
    Midway,
}

/// Where each aggregate's history ends.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    heads: HashMap<Aggregate, Head>,
    /// The log's first message that was seen.
    first: u64,
    /// Aggregates whose beginning the log has forgotten.
    pub(crate) midway: u64,
}

impl Heads {
    /// The log begins with this message.
    pub(crate) fn begin(&mut self, seq: u64) {
        self.first = seq;
    }

    /// Judges the events of one aggregate in one commit.
    pub(crate) fn judge(&mut self, events: &[Event], found: &mut Vec<Violation>) -> Sight {
        let Some(begin) = events.first() else { return Sight::Known };
        let known = self.heads.get(&begin.aggregate).copied();
        let (sight, before) = match known {
            Some(head) => (Sight::Known, head),
            None => self.meet(begin),
        };
        self.midway += u64::from(sight == Sight::Midway);
        for (event, n) in events.iter().zip(before.n + 1..) {
            let wrong = |rule, seqs: &[u64], what: String| {
                Violation::new(rule, seqs.iter().copied(), what).of(&event.aggregate)
            };
            match event.expected {
                Ok(seq) if seq == before.seq => {}
                Ok(seq) => {
                    let what = format!("{} expected {seq} and {} was there", event.type_name(), before.seq);
                    found.push(wrong(Rule::Expected, &[event.seq, before.seq], what));
                }
                Err(reason) => found.push(wrong(Rule::Expected, &[event.seq], reason.into())),
            }
            if event.n != n {
                let what = format!("{} is number {} where {n} was due", event.type_name(), event.n);
                found.push(wrong(Rule::Numbered, &[event.seq, before.seq], what));
            }
        }
        if let Some(last) = events.last() {
            self.heads.insert(last.aggregate.clone(), Head { seq: last.seq, n: last.n });
        }
        sight
    }

    /// What must have been before an aggregate's first event that the log has.
    fn meet(&self, event: &Event) -> (Sight, Head) {
        match event.expected {
            // It had a history, all of which is older than the log.
            Ok(seq) if seq > 0 && seq < self.first && event.n > 1 => (Sight::Midway, Head { seq, n: event.n - 1 }),
            _ => (Sight::Begins, Head::default()),
        }
    }

    /// Notes a message of an aggregate that could not be read.
    pub(crate) fn lose(&mut self, aggregate: Aggregate, seq: u64) {
        let head = self.heads.entry(aggregate).or_default();
        *head = Head { seq, n: head.n + 1 };
    }
}
