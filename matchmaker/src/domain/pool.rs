//! The pool of waiting players, folded from the log.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    iter,
    sync::Arc,
};

use garage_events::{
    id::{PlayerId, QueueName, TicketId},
    log::{Head, Player},
    player::{Event, Queued, State},
};
use time::OffsetDateTime;

/// A player who waits for a match.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitingPlayer {
    /// The player's id.
    pub player: PlayerId,
    /// The player's last event. The next append to the player expects it.
    pub head: Head,
    /// The ticket: queue, rank, latencies and expiry.
    pub queued: Queued,
}

impl WaitingPlayer {
    fn of(player: &PlayerId, head: Head, state: State) -> Option<Arc<Self>> {
        match state {
            State::Waiting(queued) => Some(Arc::new(Self { player: player.clone(), head, queued })),
            State::New | State::Matched(_) | State::Playing(_) | State::Idle { .. } => None,
        }
    }

    fn place(&self) -> Place {
        (self.queued.waiting_since, self.head.seq)
    }
}

/// The place of a ticket in its queue: when its wait began, then the sequence of the player's last event. So a requeued
/// ticket is ahead of the tickets that came after it.
type Place = (OffsetDateTime, u64);

/// The waiting players by queue, the oldest ticket first. It is a fold of the log up to a sequence, plus newer states
/// of single players.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pool {
    /// The fold alone: entries by queue and place.
    queues: BTreeMap<QueueName, BTreeMap<Place, Arc<WaitingPlayer>>>,
    /// The position of each player in `queues`.
    positions: HashMap<PlayerId, (QueueName, Place)>,
    /// Players whose state is newer than the fold, known from the outcome of a commit. It overrides the fold.
    ahead: HashMap<PlayerId, PlayerRecord>,
    /// The sequence of the last folded event.
    seq: u64,
}

/// See [`Pool::tickets`].
#[derive(Debug)]
pub struct Tickets<'a> {
    /// The players of each ticket.
    pub all: Vec<Vec<&'a WaitingPlayer>>,
    /// The tickets that were left out.
    pub skipped: Vec<TicketId>,
}

#[derive(Debug, Clone, PartialEq)]
struct PlayerRecord {
    /// The sequence of the player's last known event.
    seq: u64,
    /// `None` if the player no longer waits.
    entry: Option<Arc<WaitingPlayer>>,
}

impl Pool {
    /// A fold up to this sequence, without entries. The caller inserts them.
    pub(super) fn at(seq: u64) -> Self {
        Self { seq, ..Self::default() }
    }

    /// Folds the next event of the log.
    pub fn fold(&mut self, player: &PlayerId, head: Head, event: &Event) {
        self.seq = self.seq.max(head.seq);
        if self.ahead.get(player).is_some_and(|known| known.seq <= head.seq) {
            self.ahead.remove(player);
        }
        self.remove(player);
        if let Some(entry) = WaitingPlayer::of(player, head, State::evolve(event)) {
            self.insert(entry);
        }
    }

    /// Adopts the state of a player that was read from the log. Returns false if the pool already has newer state: a
    /// NATS node may lag behind the other nodes for a while.
    pub fn learn(&mut self, player: &PlayerId, found: Player, now: OffsetDateTime) -> bool {
        let seq = found.head.seq;
        if self.ahead.get(player).is_some_and(|known| seq < known.seq) {
            return false;
        }
        if let Some(entry) = self.folded_entry(player)
            && seq < entry.head.seq
        {
            // A node never lags behind for as long as a ticket is valid. If the ticket has expired, the log has deleted
            // the player's events because of their age.
            let deleted = entry.queued.expires_at <= now;
            if deleted {
                self.remove(player);
            }
            return deleted;
        }
        if seq > self.seq {
            let entry = WaitingPlayer::of(player, found.head, found.state);
            self.ahead.insert(player.clone(), PlayerRecord { seq, entry });
        }
        true
    }

    fn folded_entry(&self, player: &PlayerId) -> Option<&WaitingPlayer> {
        let (queue, place) = self.positions.get(player)?;
        self.queues.get(queue)?.get(place).map(Arc::as_ref)
    }

    /// Records that a player no longer waits, because of the event with this sequence.
    pub fn mark_gone(&mut self, player: &PlayerId, seq: u64) {
        if seq > self.seq {
            self.ahead.insert(player.clone(), PlayerRecord { seq, entry: None });
        }
    }

    /// Inserts an entry into the fold.
    pub(super) fn insert(&mut self, entry: Arc<WaitingPlayer>) {
        let (queue, place) = (entry.queued.queue.clone(), entry.place());
        self.positions.insert(entry.player.clone(), (queue.clone(), place));
        self.queues.entry(queue).or_default().insert(place, entry);
    }

    fn remove(&mut self, player: &PlayerId) {
        if let Some((queue, place)) = self.positions.remove(player)
            && let Some(entries) = self.queues.get_mut(&queue)
        {
            entries.remove(&place);
            if entries.is_empty() {
                self.queues.remove(&queue);
            }
        }
    }

    /// The sequence of the last folded event.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The waiting players according to the fold alone, without newer states. Cheap: entries are shared.
    pub fn folded(&self) -> Vec<Arc<WaitingPlayer>> {
        self.queues.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// The queues that have players in the fold.
    pub fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.queues.keys()
    }

    /// The players who wait in a queue, the oldest ticket first.
    pub fn waiting(&self, queue: &QueueName) -> impl Iterator<Item = &WaitingPlayer> {
        let folded = self.queues.get(queue).into_iter().flat_map(BTreeMap::values);
        let folded = folded.filter(|entry| !self.ahead.contains_key(&entry.player));
        let ahead = self.ahead.values().filter_map(|known| known.entry.as_ref());
        let mut ahead: Vec<_> = ahead.filter(|entry| entry.queued.queue == *queue).collect();
        ahead.sort_unstable_by_key(|entry| entry.place());
        // Merges two sorted sequences. `ahead` is short.
        let (mut folded, mut ahead) = (folded.peekable(), ahead.into_iter().peekable());
        iter::from_fn(move || match (folded.peek(), ahead.peek()) {
            (Some(one), Some(other)) if other.place() < one.place() => ahead.next(),
            (Some(_), _) => folded.next(),
            (None, _) => ahead.next(),
        })
        .map(Arc::as_ref)
    }

    /// The tickets that can be matched now: those of the fold, the oldest first, each with its players. A ticket is left
    /// out, and listed in `skipped`, if a newer state of one of its players is known. So everybody can compute the same
    /// tickets again from the log. While the events of one commit are folded, a group is incomplete, and left out too.
    pub fn tickets(&self, queue: &QueueName) -> Tickets<'_> {
        let folded = self.queues.get(queue).into_iter().flat_map(BTreeMap::values).map(Arc::as_ref);
        let (mut all, mut groups) = (Vec::new(), HashMap::new());
        let mut skipped = BTreeSet::new();
        for entry in folded {
            if self.ahead.contains_key(&entry.player) {
                skipped.insert(entry.queued.ticket);
            }
            if entry.queued.group.is_empty() {
                all.push(vec![entry]);
                continue;
            }
            let index = *groups.entry(entry.queued.ticket).or_insert_with(|| {
                all.push(Vec::new());
                all.len() - 1
            });
            if let Some(players) = all.get_mut(index) {
                players.push(entry);
            }
        }
        let complete = |players: &Vec<&WaitingPlayer>| {
            let first = players.first().map(|entry| &entry.queued);
            first.is_some_and(|queued| players.len() == queued.group.len().max(1) && !skipped.contains(&queued.ticket))
        };
        all.retain(complete);
        Tickets { all, skipped: skipped.into_iter().collect() }
    }

    /// The ticket with which a player waits, according to the fold alone.
    pub fn ticket_of(&self, player: &PlayerId) -> Option<&Queued> {
        self.folded_entry(player).map(|entry| &entry.queued)
    }

    /// Whether newer states of some players are known than the fold has.
    pub fn is_behind(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// The number of players who wait in a queue.
    pub fn depth(&self, queue: &QueueName) -> usize {
        let folded = self.queues.get(queue).map_or(0, BTreeMap::len);
        let hidden = self.ahead.keys().filter(|player| self.positions.get(player).is_some_and(|(at, _)| at == queue));
        let ahead = self.ahead.values().filter_map(|known| known.entry.as_ref());
        folded - hidden.count() + ahead.filter(|entry| entry.queued.queue == *queue).count()
    }

    /// The tickets in a queue that have expired, each with those of its players who still wait.
    pub fn expired(&self, queue: &QueueName, now: OffsetDateTime) -> Vec<Vec<&WaitingPlayer>> {
        let mut tickets: BTreeMap<(OffsetDateTime, TicketId), Vec<&WaitingPlayer>> = BTreeMap::new();
        for entry in self.waiting(queue).filter(|entry| entry.queued.expires_at <= now) {
            tickets.entry((entry.queued.waiting_since, entry.queued.ticket)).or_default().push(entry);
        }
        tickets.into_values().collect()
    }

    /// When the next ticket of a queue expires.
    pub fn next_expiry(&self, queue: &QueueName) -> Option<OffsetDateTime> {
        self.waiting(queue).map(|entry| entry.queued.expires_at).min()
    }
}

#[cfg(test)]
mod tests {
    use garage_events::{
        failure::Code,
        id::SessionId,
        player::{CancelReason, Cancelled, Requeued},
    };
    use time::macros::datetime;

    use super::*;

    /// A time before the tickets expire.
    const WAITING: OffsetDateTime = datetime!(2026-01-01 00:01 UTC);
    /// The time at which the tickets expire.
    const EXPIRED: OffsetDateTime = datetime!(2026-01-01 00:02 UTC);

    fn queued(ticket: u128) -> Event {
        Queued {
            ticket: TicketId::new(uuid::Uuid::from_u128(ticket)),
            queue: "ranked".parse().unwrap(),
            rank: 0,
            latencies: BTreeMap::new(),
            attributes: BTreeMap::new(),
            group: Vec::new(),
            waiting_since: datetime!(2026-01-01 00:00 UTC),
            expires_at: EXPIRED,
            requeues: 0,
            absences: 0,
        }
        .into()
    }

    fn cancelled(ticket: u128) -> Event {
        let ticket = TicketId::new(uuid::Uuid::from_u128(ticket));
        Cancelled { ticket, queue: "ranked".parse().unwrap(), reason: CancelReason::Player, absences: 0 }.into()
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

    /// The event that requeues a ticket whose wait began this many seconds after the others.
    fn requeued(ticket: u128, seconds: i64) -> Event {
        let Event::Queued(queued) = queued(ticket) else { unreachable!() };
        let waiting_since = queued.waiting_since + time::Duration::seconds(seconds);
        let queued = Queued { waiting_since, requeues: 1, ..queued };
        let session = SessionId::new(uuid::Uuid::from_u128(7));
        Requeued { session, reason: Code::ServerFailed, queued }.into()
    }

    #[test]
    fn a_requeued_ticket_is_ahead_of_newer_tickets_also_before_it_is_folded() {
        let mut pool = Pool::default();
        fold(&mut pool, "b", 1, &queued(1));
        fold(&mut pool, "c", 2, &queued(2));
        fold(&mut pool, "a", 3, &requeued(3, -10));
        assert_eq!(names(&pool), ["a", "b", "c"]);
        assert!(pool.learn(&"d".parse().unwrap(), found(9, &requeued(4, -5)), WAITING));
        assert!(pool.learn(&"e".parse().unwrap(), found(8, &requeued(5, 5)), WAITING));
        assert_eq!(names(&pool), ["a", "d", "b", "c", "e"]);
        // A second fold of the same events, in the form of a snapshot, has the same order.
        let mut restored = Pool::at(3);
        pool.folded().into_iter().rev().for_each(|entry| restored.insert(entry));
        assert_eq!(names(&restored), ["a", "b", "c"]);
    }

    #[test]
    fn an_event_older_than_the_outcome_of_a_commit_changes_nothing() {
        let mut pool = Pool::default();
        fold(&mut pool, "a", 1, &queued(1));
        pool.mark_gone(&"a".parse().unwrap(), 9);
        fold(&mut pool, "a", 2, &cancelled(1));
        fold(&mut pool, "a", 3, &queued(2));
        assert!(names(&pool).is_empty());
        // When the fold reaches the event of that outcome, later events count again.
        fold(&mut pool, "a", 9, &cancelled(2));
        fold(&mut pool, "a", 10, &queued(3));
        assert_eq!(names(&pool), ["a"]);
    }

    #[test]
    fn a_ticket_expires_at_its_expiry_time() {
        let mut pool = Pool::default();
        let ranked = "ranked".parse().unwrap();
        fold(&mut pool, "a", 1, &queued(1));
        assert_eq!(pool.next_expiry(&ranked), Some(EXPIRED));
        assert_eq!(pool.expired(&ranked, WAITING).len(), 0);
        assert_eq!(pool.expired(&ranked, EXPIRED).len(), 1);
    }

    /// A player as read from the log.
    fn found(seq: u64, event: &Event) -> Player {
        Player { state: State::evolve(event), head: Head { seq, n: seq }, last: None }
    }

    #[test]
    fn the_outcome_of_a_commit_is_not_part_of_the_fold() {
        let mut pool = Pool::default();
        for (seq, player) in [(1, "a"), (2, "b"), (3, "c")] {
            fold(&mut pool, player, seq, &queued(seq.into()));
        }
        let fold_alone = pool.clone();
        pool.mark_gone(&"a".parse().unwrap(), 7);
        assert!(pool.learn(&"b".parse().unwrap(), found(9, &queued(9)), WAITING));
        assert!(pool.learn(&"d".parse().unwrap(), found(8, &queued(8)), WAITING));
        assert_eq!(names(&pool), ["c", "d", "b"]);
        assert_eq!(pool.depth(&"ranked".parse().unwrap()), 3);
        assert_eq!(pool.folded(), fold_alone.folded());
        // When the fold has reached the last of these events, it alone defines the pool.
        for (seq, player, event) in [(7, "a", cancelled(1)), (8, "d", queued(8)), (9, "b", queued(9))] {
            fold(&mut pool, player, seq, &event);
        }
        assert_eq!(names(&pool), ["c", "d", "b"]);
        let mut folded = Pool::at(9);
        pool.folded().into_iter().for_each(|entry| folded.insert(entry));
        assert_eq!(folded, pool);
    }

    #[test]
    fn an_answer_of_a_lagging_node_changes_nothing() {
        let mut pool = Pool::default();
        fold(&mut pool, "a", 3, &queued(1));
        fold(&mut pool, "b", 4, &queued(2));
        pool.mark_gone(&"b".parse().unwrap(), 9);
        let before = pool.clone();
        assert!(!pool.learn(&"a".parse().unwrap(), Player::default(), WAITING));
        assert!(!pool.learn(&"a".parse().unwrap(), found(2, &cancelled(7)), WAITING));
        assert!(!pool.learn(&"b".parse().unwrap(), found(4, &queued(2)), WAITING));
        assert_eq!(pool, before);
    }

    #[test]
    fn a_player_whose_events_the_log_has_deleted_leaves_the_pool_when_the_ticket_has_expired() {
        let mut pool = Pool::default();
        fold(&mut pool, "a", 1, &queued(1));
        fold(&mut pool, "b", 2, &queued(2));
        assert!(pool.learn(&"b".parse().unwrap(), found(2, &queued(2)), EXPIRED));
        assert!(pool.learn(&"a".parse().unwrap(), Player::default(), EXPIRED));
        assert_eq!(names(&pool), ["b"]);
    }
}
