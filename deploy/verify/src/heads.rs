//! Checks the number and the expected sequence of every event.

use std::collections::HashMap;

use garage_events::{log::Head, subject::Aggregate};

use crate::{
    event::Event,
    violation::{Rule, Violation},
};

/// What the log contains of an aggregate before a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PriorState {
    /// The log has earlier events.
    Known,
    /// The aggregate begins with this change.
    New,
    /// The earlier events have expired.
    Truncated,
}

/// The last event of each aggregate.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    heads: HashMap<Aggregate, Head>,
    /// Sequence of the first message of the log.
    first: u64,
    /// Number of aggregates whose first events have expired.
    pub(crate) truncated: u64,
}

impl Heads {
    /// Sets the sequence of the first message of the log.
    pub(crate) fn begin(&mut self, seq: u64) {
        self.first = seq;
    }

    /// Checks the events of one aggregate in one commit.
    pub(crate) fn check(&mut self, events: &[Event], found: &mut Vec<Violation>) -> PriorState {
        let Some(begin) = events.first() else { return PriorState::Known };
        let known = self.heads.get(&begin.aggregate).copied();
        let (prior, before) = match known {
            Some(head) => (PriorState::Known, head),
            None => self.before_first(begin),
        };
        self.truncated += u64::from(prior == PriorState::Truncated);
        for (event, n) in events.iter().zip(before.n + 1..) {
            let wrong = |rule, seqs: &[u64], what: String| {
                Violation::new(rule, seqs.iter().copied(), what).of(&event.aggregate)
            };
            match event.expected {
                Ok(seq) if seq == before.seq => {}
                Ok(seq) => {
                    let what = format!("{} expected sequence {seq} but found {}", event.type_name(), before.seq);
                    found.push(wrong(Rule::Expected, &[event.seq, before.seq], what));
                }
                Err(reason) => found.push(wrong(Rule::Expected, &[event.seq], reason.into())),
            }
            if event.n != n {
                let what = format!("{} has number {} instead of {n}", event.type_name(), event.n);
                found.push(wrong(Rule::Numbered, &[event.seq, before.seq], what));
            }
        }
        if let Some(last) = events.last() {
            self.heads.insert(last.aggregate.clone(), Head { seq: last.seq, n: last.n });
        }
        prior
    }

    /// The state of an aggregate before the first event that the log has of it.
    fn before_first(&self, event: &Event) -> (PriorState, Head) {
        match event.expected {
            // It expects a message that is older than the log.
            Ok(seq) if seq > 0 && seq < self.first && event.n > 1 => {
                (PriorState::Truncated, Head { seq, n: event.n - 1 })
            }
            _ => (PriorState::New, Head::default()),
        }
    }

    /// Counts a message that cannot be read as one event of its aggregate.
    pub(crate) fn skip(&mut self, aggregate: Aggregate, seq: u64) {
        let head = self.heads.entry(aggregate).or_default();
        *head = Head { seq, n: head.n + 1 };
    }
}
