mod model;

use garage_events::{
    failure::Code,
    id::SessionId,
    player::{CancelReason, Cancelled, Queued, Requeued},
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
        party: None,
    }
    .into()
}

fn cancelled(ticket: u128) -> Event {
    let ticket = TicketId::new(uuid::Uuid::from_u128(ticket));
    Cancelled { ticket, queue: "ranked".parse().unwrap(), reason: CancelReason::Player, absences: 0, party: None }
        .into()
}

fn ranked() -> QueueName {
    "ranked".parse().unwrap()
}

fn id(player: &str) -> PlayerId {
    player.parse().unwrap()
}

/// The players who wait according to the fold, the first in the queue first.
fn folded(pool: &Pool) -> Vec<String> {
    pool.folded().iter().map(|entry| entry.player().to_string()).collect()
}

/// The players of the tickets that can be matched, the oldest ticket first.
fn names(pool: &Pool) -> Vec<String> {
    pool.tickets(&ranked()).map(|players| joined(&players)).collect()
}

fn joined(players: &Players<'_>) -> String {
    players.iter().map(|player| player.player().as_str()).collect::<Vec<_>>().join(" ")
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
fn a_requeued_ticket_is_ahead_of_newer_tickets() {
    let mut pool = Pool::default();
    fold(&mut pool, "b", 1, &queued(1));
    fold(&mut pool, "c", 2, &queued(2));
    fold(&mut pool, "a", 3, &requeued(3, -10));
    assert_eq!(names(&pool), ["a", "b", "c"]);
    // A second fold of the same events, in the form of a snapshot, has the same order.
    let mut restored = Pool::at(3);
    pool.folded().iter().rev().for_each(|entry| restored.insert(entry.unpack()));
    assert_eq!(names(&restored), ["a", "b", "c"]);
}

#[test]
fn an_event_older_than_the_outcome_of_a_commit_changes_nothing() {
    let mut pool = Pool::default();
    fold(&mut pool, "a", 1, &queued(1));
    pool.mark_gone(&id("a"), 9);
    fold(&mut pool, "a", 2, &cancelled(1));
    fold(&mut pool, "a", 3, &queued(2));
    assert!(names(&pool).is_empty());
    assert_eq!((folded(&pool), pool.depth(&ranked())), (vec!["a".into()], 0));
    // When the fold reaches the event of that outcome, later events count again.
    fold(&mut pool, "a", 9, &cancelled(2));
    fold(&mut pool, "a", 10, &queued(3));
    assert_eq!(names(&pool), ["a"]);
}

#[test]
fn a_ticket_expires_at_its_expiry_time() {
    let mut pool = Pool::default();
    let ranked = ranked();
    fold(&mut pool, "a", 1, &queued(1));
    assert_eq!(pool.next_expiry(&ranked), Some(EXPIRED));
    assert_eq!(pool.expired(&ranked, WAITING, 10).len(), 0);
    assert_eq!(pool.expired(&ranked, EXPIRED, 10).len(), 1);
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
    pool.mark_gone(&id("a"), 7);
    assert!(pool.learn(&id("b"), found(9, &queued(9)), WAITING));
    assert!(pool.learn(&id("d"), found(8, &queued(8)), WAITING));
    assert_eq!(names(&pool), ["c"]);
    assert_eq!(pool.depth(&ranked()), 3);
    assert_eq!(pool.folded(), fold_alone.folded());
    // When the fold has reached the last of these events, it alone defines the pool.
    for (seq, player, event) in [(7, "a", cancelled(1)), (8, "d", queued(8)), (9, "b", queued(9))] {
        fold(&mut pool, player, seq, &event);
    }
    assert_eq!(names(&pool), ["c", "d", "b"]);
    let mut folded = Pool::at(9);
    pool.folded().iter().for_each(|entry| folded.insert(entry.unpack()));
    assert_eq!(folded, pool);
}

#[test]
fn an_answer_of_a_lagging_node_changes_nothing() {
    let mut pool = Pool::default();
    fold(&mut pool, "a", 3, &queued(1));
    fold(&mut pool, "b", 4, &queued(2));
    pool.mark_gone(&id("b"), 9);
    let before = pool.clone();
    assert!(!pool.learn(&id("a"), Player::default(), WAITING));
    assert!(!pool.learn(&id("a"), found(2, &cancelled(7)), WAITING));
    assert!(!pool.learn(&id("b"), found(4, &queued(2)), WAITING));
    assert_eq!(pool, before);
}

#[test]
fn a_player_whose_events_the_log_has_deleted_leaves_the_pool_when_the_ticket_has_expired() {
    let mut pool = Pool::default();
    fold(&mut pool, "a", 1, &queued(1));
    fold(&mut pool, "b", 2, &queued(2));
    assert!(pool.learn(&id("b"), found(2, &queued(2)), EXPIRED));
    assert!(pool.learn(&id("a"), Player::default(), EXPIRED));
    assert_eq!(names(&pool), ["b"]);
}

/// The event that queues a group with a ticket.
fn queued_group(ticket: u128, group: &[&str]) -> Event {
    let Event::Queued(queued) = queued(ticket) else { unreachable!() };
    Queued { group: group.iter().map(|player| id(player)).collect(), ..queued }.into()
}

#[test]
fn a_group_is_a_ticket_when_all_of_its_players_are_in_the_fold() {
    let mut pool = Pool::default();
    let group = queued_group(1, &["a", "c"]);
    fold(&mut pool, "a", 1, &group);
    fold(&mut pool, "b", 2, &queued(2));
    assert_eq!(names(&pool), ["b"]);
    fold(&mut pool, "c", 3, &group);
    assert_eq!(names(&pool), ["a c", "b"]);
    let ticket = pool.ticket_of(&id("a")).unwrap().ticket();
    for player in ["a", "c"] {
        assert_eq!(pool.available(ticket, &id(player)).map(|players| joined(&players)), Some("a c".into()));
    }
    assert_eq!(pool.available(ticket, &id("b")), None);
    // The players share the list of the group.
    let shared = |player| Arc::clone(pool.ticket_of(&id(player)).unwrap().shared_group());
    assert!(Arc::ptr_eq(&shared("a"), &shared("c")));
    // It expires as one ticket.
    let expired: Vec<_> = pool.expired(&ranked(), EXPIRED, 10).iter().map(joined).collect();
    assert_eq!(expired, ["a c", "b"]);
    assert_eq!(pool.expired(&ranked(), EXPIRED, 1).len(), 1);
    fold(&mut pool, "a", 4, &cancelled(1));
    assert_eq!(names(&pool), ["b"]);
}

#[test]
fn a_claim_hides_a_ticket_until_its_outcome_is_known() {
    let mut pool = Pool::default();
    for (seq, player) in [(1, "a"), (2, "b"), (3, "c")] {
        fold(&mut pool, player, seq, &queued(seq.into()));
    }
    let unclaimed = pool.clone();
    for player in ["a", "b", "c"] {
        pool.claim(&id(player));
        pool.claim(&id(player));
    }
    assert_eq!((names(&pool).len(), pool.left_out(&ranked(), WAITING, 3)), (0, Some(vec![0, 1, 2])));
    assert_eq!(pool.left_out(&ranked(), WAITING, 2), None);
    assert_eq!((pool.depth(&ranked()), pool.folded()), (3, unclaimed.folded()), "they still wait");
    assert_eq!(pool.expired(&ranked(), EXPIRED, 10), []);
    assert_eq!(pool.next_expiry(&ranked()), None);
    pool.release(&id("a"));
    pool.mark_gone(&id("b"), 9);
    assert!(pool.learn(&id("c"), found(3, &queued(3)), WAITING));
    assert_eq!(names(&pool), ["a", "c"]);
    assert_eq!(pool.left_out(&ranked(), WAITING, 9), Some(vec![1]));
    assert_eq!(pool.expired(&ranked(), EXPIRED, 10).len(), 2);
}

#[test]
fn a_claim_remains_when_an_event_of_its_player_is_folded() {
    let mut pool = Pool::default();
    fold(&mut pool, "a", 1, &queued(1));
    pool.claim(&id("a"));
    fold(&mut pool, "a", 2, &cancelled(1));
    assert_eq!(pool.left_out(&ranked(), WAITING, 0), Some(Vec::new()));
    fold(&mut pool, "a", 3, &queued(2));
    assert_eq!((names(&pool).len(), pool.left_out(&ranked(), WAITING, 9)), (0, Some(vec![0])));
    // A decision that failed, and an outcome that is already folded.
    pool.mark_gone(&id("a"), 2);
    assert_eq!(names(&pool), ["a"]);
}

#[test]
fn changes_name_the_tickets_that_may_have_changed() {
    let mut pool = Pool::default();
    fold(&mut pool, "a", 1, &queued(1));
    assert_eq!(pool.changes(&ranked()), Changes::All);
    assert_eq!(pool.changes(&ranked()), Changes::Only(BTreeMap::new()));
    let ticket = |number| TicketId::new(uuid::Uuid::from_u128(number));
    let only = |changes: &[(u128, &str)]| {
        Changes::Only(changes.iter().map(|(number, player)| (ticket(*number), id(player))).collect())
    };
    fold(&mut pool, "b", 2, &queued(2));
    pool.claim(&id("a"));
    assert_eq!(pool.changes(&ranked()), only(&[(1, "a"), (2, "b")]));
    pool.release(&id("a"));
    fold(&mut pool, "b", 3, &queued(3));
    assert_eq!(pool.changes(&ranked()), only(&[(1, "a"), (2, "b"), (3, "b")]));
    pool.mark_gone(&id("b"), 9);
    fold(&mut pool, "a", 4, &cancelled(1));
    assert_eq!(pool.changes(&ranked()), only(&[(1, "a"), (3, "b")]));
}

#[test]
fn a_queue_forgets_its_changes_when_nobody_reads_them() {
    let mut pool = Pool::default();
    pool.changes(&ranked());
    for seq in 1..=u64::try_from(MAX_CHANGES).unwrap() + 1 {
        fold(&mut pool, "a", seq, &queued(seq.into()));
    }
    assert_eq!(pool.changes(&ranked()), Changes::All);
    assert_eq!(pool.changes(&ranked()), Changes::Only(BTreeMap::new()));
}

#[test]
fn names_are_shared_and_do_not_accumulate() {
    let mut pool = Pool::default();
    let Event::Queued(queued) = queued(1) else { unreachable!() };
    for seq in 1..=5_000_u64 {
        let queue = format!("q{seq}").parse().unwrap();
        let latencies = [(format!("r{seq}").parse().unwrap(), 20)].into();
        fold(&mut pool, "a", seq, &Queued { queue, latencies, ..queued.clone() }.into());
    }
    assert!(pool.names.len() <= 3_000);
    assert_eq!(pool.queues().count(), 1);
    assert_eq!(pool.queues.len(), 1);
}
