//! The players who wait, folded from the log.

use std::collections::{BTreeMap, HashMap};

use garage_events::{
    id::{PlayerId, QueueName},
    log::{Head, Player},
    player::{Event, Queued, State},
};
use time::OffsetDateTime;

/// A player who waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Who.
    pub player: PlayerId,
    /// What an append to him expects.
    pub head: Head,
    /// What he wishes.
    pub queued: Queued,
}

/// The players who wait, by queue, the oldest ticket first.
#[derive(Debug, Default)]
pub struct Pool {
    queues: BTreeMap<QueueName, BTreeMap<u64, Entry>>,
    places: HashMap<PlayerId, (QueueName, u64)>,
    /// Players about whom more is known than the fold has come to: his last event, learnt from a commit's outcome.
    ahead: HashMap<PlayerId, u64>,
    seq: u64,
}

impl Pool {
    /// Folds the next event of the log.
    pub fn fold(&mut self, player: &PlayerId, head: Head, event: &Event) {
        self.seq = self.seq.max(head.seq);
        if let Some(known) = self.ahead.get(player) {
            if head.seq < *known {
                return;
            }
            self.ahead.remove(player);
        }
        self.place(player, head, State::evolve(event));
    }

    /// Takes over what was read, or committed, ahead of the fold.
    pub fn learn(&mut self, player: &PlayerId, found: Player) {
        if found.head.seq > self.seq {
            self.ahead.insert(player.clone(), found.head.seq);
        }
        self.place(player, found.head, found.state);
    }

    /// Notes that a player waits no more, by an event of this sequence.
    pub fn gone(&mut self, player: &PlayerId, seq: u64) {
        if seq > self.seq {
            self.ahead.insert(player.clone(), seq);
        }
        self.remove(player);
    }

    fn place(&mut self, player: &PlayerId, head: Head, state: State) {
        self.remove(player);
        if let State::Waiting(queued) = state {
            self.places.insert(player.clone(), (queued.queue.clone(), head.seq));
            let queue = self.queues.entry(queued.queue.clone()).or_default();
            queue.insert(head.seq, Entry { player: player.clone(), head, queued });
        }
    }

    fn remove(&mut self, player: &PlayerId) {
        if let Some((queue, seq)) = self.places.remove(player)
            && let Some(entries) = self.queues.get_mut(&queue)
        {
            entries.remove(&seq);
        }
    }

    /// The last event folded.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Those who wait in a queue, the oldest ticket first.
    pub fn waiting(&self, queue: &QueueName) -> impl Iterator<Item = &Entry> {
        self.queues.get(queue).into_iter().flat_map(BTreeMap::values)
    }

    /// How many wait in a queue.
    pub fn depth(&self, queue: &QueueName) -> usize {
        self.queues.get(queue).map_or(0, BTreeMap::len)
    }

    /// Those whose tickets have expired, in whatever queue.
    pub fn expired(&self, now: OffsetDateTime) -> impl Iterator<Item = &Entry> {
        self.queues.values().flat_map(BTreeMap::values).filter(move |entry| entry.queued.expires_at <= now)
    }

    /// When the next ticket expires.
    pub fn next_expiry(&self) -> Option<OffsetDateTime> {
        self.queues.values().flat_map(BTreeMap::values).map(|entry| entry.queued.expires_at).min()
    }
}

#[cfg(test)]
mod tests {
    use garage_events::{
        id::TicketId,
        player::{CancelReason, Cancelled},
    };
    use time::macros::datetime;

    use super::*;

    fn queued(ticket: u128) -> Event {
        Queued {
            ticket: TicketId::new(uuid::Uuid::from_u128(ticket)),
            queue: "ranked".parse().unwrap(),
            rank: 0,
            latencies: BTreeMap::new(),
            attributes: BTreeMap::new(),
            waiting_since: datetime!(2026-01-01 00:00 UTC),
            expires_at: datetime!(2026-01-01 00:02 UTC),
        }
        .into()
    }

    fn cancelled(ticket: u128) -> Event {
        let ticket = TicketId::new(uuid::Uuid::from_u128(ticket));
        Cancelled { ticket, queue: "ranked".parse().unwrap(), reason: CancelReason::Player }.into()
    }

    fn names(pool: &Pool) -> Vec<String> {
        pool.waiting(&"ranked".parse().unwrap()).map(|entry| entry.player.to_string()).collect()
    }

    fn fold(pool: &mut Pool, player: &str, seq: u64, event: &Event) {
        pool.fold(&player.parse().unwrap(), Head { seq, n: seq }, event);
    }

    #[test]
    fn the_oldest_ticket_comes_first() {
        let mut pool = Pool::default();
        fold(&mut pool, "b", 1, &queued(1));
        fold(&mut pool, "a", 2, &queued(2));
        assert_eq!(names(&pool), ["b", "a"]);
        fold(&mut pool, "b", 3, &cancelled(1));
        fold(&mut pool, "b", 4, &queued(3));
        assert_eq!(names(&pool), ["a", "b"]);
    }

    #[test]
    fn an_event_older_than_what_a_commit_taught_changes_nothing() {
        let mut pool = Pool::default();
        fold(&mut pool, "a", 1, &queued(1));
        pool.gone(&"a".parse().unwrap(), 9);
        fold(&mut pool, "a", 2, &cancelled(1));
        fold(&mut pool, "a", 3, &queued(2));
        assert!(names(&pool).is_empty());
        // The event learnt of comes by, and then what follows it counts again.
        fold(&mut pool, "a", 9, &cancelled(2));
        fold(&mut pool, "a", 10, &queued(3));
        assert_eq!(names(&pool), ["a"]);
    }

    #[test]
    fn a_ticket_expires_at_its_time() {
        let mut pool = Pool::default();
        fold(&mut pool, "a", 1, &queued(1));
        assert_eq!(pool.next_expiry(), Some(datetime!(2026-01-01 00:02 UTC)));
        assert_eq!(pool.expired(datetime!(2026-01-01 00:01 UTC)).count(), 0);
        assert_eq!(pool.expired(datetime!(2026-01-01 00:02 UTC)).count(), 1);
    }
}
