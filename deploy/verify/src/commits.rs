//! Groups messages into commits.

use garage_events::jetstream::{follow::Message, written::Written};

use crate::violation::{Rule, Violation};

/// Messages that were stored together.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) messages: Vec<Message>,
    pub(crate) extent: Extent,
}

/// How much of a commit the log has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The whole commit.
    Complete,
    /// The beginning of the commit has expired.
    Truncated,
    /// The beginning or the end is missing, although the log should have it.
    Incomplete,
}

/// Assembles the messages of an atomic batch.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    /// Sequence of the first message of the log.
    first: Option<u64>,
    /// The messages of the batch that is not complete yet.
    batch: Vec<Message>,
}

impl Assembler {
    /// Whether the current batch is not complete yet.
    pub(crate) fn is_open(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Adds the next message. Returns the commits that end with or before it: at most two, the first one incomplete.
    pub(crate) fn take(&mut self, message: Message, found: &mut Vec<Violation>) -> Vec<Commit> {
        self.first.get_or_insert(message.seq);
        let mut commits = Vec::new();
        if !self.continues(&message) {
            commits.extend(self.close(found));
        }
        let ends_commit = Written::of(message.headers.as_ref()).batch.is_none_or(|batch| batch.last);
        self.batch.push(message);
        if ends_commit {
            commits.extend(self.close(found));
        }
        commits
    }

    /// Returns the current batch as a commit, if there is one.
    pub(crate) fn close(&mut self, found: &mut Vec<Violation>) -> Option<Commit> {
        let messages = std::mem::take(&mut self.batch);
        let (first, last) = (messages.first()?, messages.last()?);
        let [begin, end] = [first, last].map(|message| Written::of(message.headers.as_ref()).batch);
        let begins = begin.is_none_or(|batch| batch.number == 1);
        let ends = end.is_none_or(|batch| batch.last);
        // Only the first commit of the log can have an expired beginning.
        let expired = !begins && self.first == Some(first.seq) && first.seq > 1;
        let extent = match (begins || expired, ends) {
            (true, true) if begins => Extent::Complete,
            (true, true) => Extent::Truncated,
            _ => Extent::Incomplete,
        };
        if extent == Extent::Incomplete {
            let id = begin.map(|batch| batch.id).unwrap_or_default();
            let what = format!("batch {id} has no {}", if ends { "beginning" } else { "end" });
            found.push(Violation::new(Rule::Committed, [first.seq, last.seq], what));
        }
        Some(Commit { messages, extent })
    }

    /// Whether a message is the next one of the current batch.
    fn continues(&self, message: &Message) -> bool {
        let Some(before) = self.batch.last() else { return true };
        let [before, next] = [before, message].map(|message| Written::of(message.headers.as_ref()).batch);
        before.zip(next).is_some_and(|(before, next)| before.id == next.id && before.number + 1 == next.number)
    }
}
