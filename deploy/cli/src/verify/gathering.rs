//! Messages as they were committed.

use garage_events::jetstream::{follow::Message, written::Written};

use super::violation::{Rule, Violation};

/// What was stored at once.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) messages: Vec<Message>,
    pub(crate) extent: Extent,
}

/// How much of a commit there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    Whole,
    /// The log has forgotten its beginning.
    Cut,
    /// Something is missing that should be there.
    Broken,
}

/// Puts messages together again that were committed together.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    /// The log's first message that was seen.
    first: Option<u64>,
    batch: Vec<Message>,
}

impl Gathering {
    /// Whether it is in the midst of a commit.
    pub(crate) fn is_open(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Takes the next message, and gives back what is complete with it: a commit, or one that is broken off and a commit.
    pub(crate) fn take(&mut self, message: Message, found: &mut Vec<Violation>) -> Vec<Commit> {
        self.first.get_or_insert(message.seq);
        let mut commits = Vec::new();
        if !self.continues(&message) {
            commits.extend(self.close(found));
        }
        let alone = Written::of(message.headers.as_ref()).batch.is_none_or(|batch| batch.last);
        self.batch.push(message);
        if alone {
            commits.extend(self.close(found));
        }
        commits
    }

    /// What is left at the log's end.
    pub(crate) fn close(&mut self, found: &mut Vec<Violation>) -> Option<Commit> {
        let messages = std::mem::take(&mut self.batch);
        let (first, last) = (messages.first()?, messages.last()?);
        let [begin, end] = [first, last].map(|message| Written::of(message.headers.as_ref()).batch);
        let begins = begin.is_none_or(|batch| batch.number == 1);
        let ends = end.is_none_or(|batch| batch.last);
        // Only what stands at the log's beginning may have lost its own.
        let forgotten = !begins && self.first == Some(first.seq) && first.seq > 1;
        let extent = match (begins || forgotten, ends) {
            (true, true) if begins => Extent::Whole,
            (true, true) => Extent::Cut,
            _ => Extent::Broken,
        };
        if extent == Extent::Broken {
            let id = begin.map(|batch| batch.id).unwrap_or_default();
            let what = format!("batch {id} lacks its {}", if ends { "beginning" } else { "end" });
            found.push(Violation::new(Rule::Committed, [first.seq, last.seq], what));
        }
        Some(Commit { messages, extent })
    }

    /// Whether a message goes on with the batch that is open.
    fn continues(&self, message: &Message) -> bool {
        let Some(before) = self.batch.last() else { return true };
        let [before, next] = [before, message].map(|message| Written::of(message.headers.as_ref()).batch);
        before.zip(next).is_some_and(|(before, next)| before.id == next.id && before.number + 1 == next.number)
    }
}
