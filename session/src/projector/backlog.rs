//! The messages that were read and that the projections may not include yet.

use std::collections::VecDeque;

use garage_events::jetstream::follow::{Follow, Message};
use tokio::time::timeout;

use super::{BATCH_SIZE, IDLE_INTERVAL, LINGER, is_relevant};

/// The maximum number of messages that are kept. If an instance that stands by reads more before the projections
/// include them, it drops the oldest, and needs a new consumer if it takes over.
const MAX_KEPT: usize = 10_000;

/// If the projections are further ahead than this, a new consumer is faster than to read and skip the messages.
const MAX_SKIPPED: u64 = 10_000;

/// Messages of players and sessions, in order.
#[derive(Debug)]
pub(super) struct Backlog {
    /// All messages after this sequence, up to the last one read, are kept.
    after: u64,
    messages: VecDeque<Message>,
    /// The sequence of the last message read.
    read: u64,
    /// How many messages were still unread after the last one read; `None` before the first one.
    unread: Option<u64>,
}

impl Backlog {
    /// An empty backlog of a read that starts after this sequence.
    pub(super) fn new(after: u64) -> Self {
        Self { after, messages: VecDeque::new(), read: after, unread: None }
    }

    /// The sequence that the projections have as far as it is known, or a later one if messages were dropped.
    pub(super) fn after(&self) -> u64 {
        self.after
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    /// Reads the messages that are available, up to [`BATCH_SIZE`]. Waits for the first one only if nothing is kept,
    /// and for at most [`IDLE_INTERVAL`]. Dropping the future loses no message.
    pub(super) async fn gather(&mut self, follow: &mut Follow) {
        let mut max_wait = if self.messages.is_empty() { IDLE_INTERVAL } else { LINGER };
        for _ in 0..BATCH_SIZE {
            let Ok(message) = timeout(max_wait, follow.next()).await else { return };
            let unread = message.pending;
            self.push(message);
            if unread == 0 {
                return;
            }
            max_wait = LINGER;
        }
    }

    fn push(&mut self, message: Message) {
        (self.read, self.unread) = (message.seq, Some(message.pending));
        if message.seq > self.after && is_relevant(&message) {
            self.messages.push_back(message);
        }
        if self.messages.len() > MAX_KEPT
            && let Some(dropped) = self.messages.pop_front()
        {
            self.after = dropped.seq;
        }
    }

    /// The next messages, up to [`BATCH_SIZE`], and how many messages follow them; `None` if that is unknown.
    pub(super) fn batch(&mut self) -> (&[Message], Option<u64>) {
        let kept = self.messages.make_contiguous();
        let (batch, rest) = kept.split_at_checked(BATCH_SIZE).unwrap_or((kept, &[]));
        let behind = self.unread.map(|unread| unread + rest.len() as u64);
        (batch, behind)
    }

    /// Removes the messages that projections at this sequence include. Returns false if the read cannot continue from
    /// there, because it lacks messages or is far behind.
    pub(super) fn advance(&mut self, seq: u64) -> bool {
        if seq < self.after || seq > self.read + MAX_SKIPPED {
            return false;
        }
        self.after = seq;
        while self.messages.pop_front_if(|message| message.seq <= seq).is_some() {}
        true
    }

    /// Starts again after this sequence.
    pub(super) fn restart(&mut self, after: u64) {
        *self = Self::new(after);
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn message(seq: u64) -> Message {
        Message {
            seq,
            time: OffsetDateTime::UNIX_EPOCH,
            subject: "garage.player.ann".into(),
            headers: None,
            body: Default::default(),
            pending: 3,
        }
    }

    fn kept(backlog: &mut Backlog) -> Vec<u64> {
        backlog.batch().0.iter().map(|message| message.seq).collect()
    }

    #[test]
    fn it_keeps_what_the_projections_lack() {
        let mut backlog = Backlog::new(10);
        for seq in [11, 13, 14] {
            backlog.push(message(seq));
        }
        assert_eq!((kept(&mut backlog), backlog.batch().1), (vec![11, 13, 14], Some(3)));
        assert!(backlog.advance(13));
        assert_eq!((kept(&mut backlog), backlog.after()), (vec![14], 13));
        // Another projector has read more than this one.
        assert!(backlog.advance(16));
        for seq in [15, 16, 17] {
            backlog.push(message(seq));
        }
        assert_eq!(kept(&mut backlog), [17]);
    }

    #[test]
    fn a_read_that_lacks_messages_or_is_far_behind_cannot_continue() {
        let mut backlog = Backlog::new(10);
        backlog.push(message(11));
        assert!(backlog.advance(11));
        assert!(!backlog.advance(10), "Redis went back");
        assert!(!backlog.advance(11 + MAX_SKIPPED + 1));
        assert!(backlog.advance(11 + MAX_SKIPPED));
        backlog.restart(5);
        assert_eq!((backlog.after(), backlog.len(), backlog.batch().1), (5, 0, None));
    }

    #[test]
    fn it_is_bounded_and_drops_the_oldest_messages() {
        let mut backlog = Backlog::new(0);
        for seq in 1..=MAX_KEPT as u64 + 2 {
            backlog.push(message(seq));
        }
        assert_eq!((backlog.len(), backlog.after(), kept(&mut backlog)[0]), (MAX_KEPT, 2, 3));
        assert_eq!(backlog.batch().0.len(), BATCH_SIZE);
        assert!(!backlog.advance(1));
    }
}
