//! The faults of the log in memory are the faults of the real log. A successful answer is always true, and after a
//! failed append the event may or may not be stored.

use std::{pin::pin, task::Poll};

use garage_events::{
    env::Simulated,
    log::{Append, AppendError, Head, Load},
    sim::{Faults, SimLog},
    subject::Aggregate,
};

use crate::samples::{Prepared, THEN, cancelled, matched, new_player, new_session, prepare, queued};

/// Appends a hundred times with these faults. Returns for each append whether it succeeded, and whether its event is
/// stored.
async fn appends(faults: Faults, seed: u64) -> Vec<(bool, bool)> {
    let log = SimLog::new(Simulated::at(THEN));
    let mut seen = Vec::new();
    for _ in 0..100 {
        let player = new_player();
        log.set_faults(faults, seed + seen.len() as u64);
        let outcome = log.append(prepare(&player, Head::default(), [queued()]).decision).await;
        log.set_faults(Faults::default(), 0);
        assert!(matches!(outcome, Ok(_) | Err(AppendError::Unavailable(_))), "{outcome:?}");
        seen.push((outcome.is_ok(), log.player(&player).await.unwrap().head.n == 1));
    }
    seen
}

#[tokio::test]
async fn without_faults_each_append_succeeds_and_is_stored() {
    assert_eq!(appends(Faults::default(), 1).await, vec![(true, true); 100]);
}

#[tokio::test]
async fn an_append_whose_answer_is_lost_fails_but_is_stored() {
    let all = Faults { lost_answers: 100, ..Faults::default() };
    assert_eq!(appends(all, 1).await, vec![(false, true); 100]);
}

#[tokio::test]
async fn a_lost_append_fails_and_is_not_stored() {
    let all = Faults { lost_appends: 100, ..Faults::default() };
    assert_eq!(appends(all, 1).await, vec![(false, false); 100]);
}

#[tokio::test]
async fn the_same_seed_gives_the_same_faults() {
    let some = Faults { lost_answers: 30, lost_appends: 30, ..Faults::default() };
    let seen = appends(some, 7).await;
    assert_eq!(appends(some, 7).await, seen);
    assert_ne!(appends(some, 8_000).await, seen);
    for kind in [(true, true), (false, true), (false, false)] {
        assert!(seen.contains(&kind), "{kind:?} never happened");
    }
}

#[tokio::test]
async fn a_lost_read_fails() {
    let log = SimLog::new(Simulated::at(THEN));
    log.set_faults(Faults { lost_reads: 100, ..Faults::default() }, 1);
    assert!(log.player(&new_player()).await.is_err());
    assert!(log.next("garage.>", 1).is_err());
    assert!(log.last_sequence("garage.>").is_err());
}

#[tokio::test]
async fn a_stale_read_lacks_the_last_events_and_an_append_based_on_it_conflicts() {
    let log = SimLog::new(Simulated::at(THEN));
    let player = new_player();
    log.append(prepare(&player, Head::default(), [queued()]).decision).await.unwrap();
    log.set_faults(Faults { stale_reads: 100, ..Faults::default() }, 1);
    let read = log.player(&player).await.unwrap();
    assert_eq!((read.head, log.last_sequence("garage.>").unwrap()), (Head::default(), 0));
    let stale = log.append(prepare(&player, read.head, [queued()]).decision).await;
    assert!(matches!(stale, Err(AppendError::Conflict(_))), "{stale:?}");
}

#[tokio::test]
async fn a_stale_read_includes_all_events_up_to_the_end_of_its_nodes_leadership() {
    let log = SimLog::new(Simulated::at(THEN));
    let (early, late) = (new_player(), new_player());
    let led_until = log.append(prepare(&early, Head::default(), [queued()]).decision).await.unwrap()[0];
    log.append(prepare(&late, Head::default(), [queued()]).decision).await.unwrap();
    log.set_faults(Faults { stale_reads: 100, led_until, ..Faults::default() }, 1);
    for _ in 0..100 {
        assert_eq!(log.player(&early).await.unwrap().head.n, 1);
        assert_eq!(log.player(&late).await.unwrap().head.n, 0);
    }
}

#[tokio::test]
async fn a_conflict_without_a_name_is_reported_for_an_aggregate_that_had_events() {
    let log = SimLog::new(Simulated::at(THEN));
    let (unchanged, changed, session) = (new_player(), new_player(), new_session());
    let mut heads = Vec::new();
    for player in [&unchanged, &changed] {
        log.append(prepare(player, Head::default(), [queued()]).decision).await.unwrap();
        heads.push(log.player(player).await.unwrap().head);
    }
    log.append(prepare(&changed, heads[1], [cancelled()]).decision).await.unwrap();
    let decision = Prepared::empty()
        .and(session, Head::default(), [matched(&[])])
        .and(&unchanged, heads[0], [cancelled()])
        .and(&changed, heads[1], [cancelled()]);
    for (unnamed_conflicts, named) in [(0, &changed), (100, &unchanged)] {
        log.set_faults(Faults { unnamed_conflicts, ..Faults::default() }, 1);
        let outcome = log.append(decision.decision.clone()).await;
        let expected = Aggregate::Player(named.clone());
        assert!(matches!(&outcome, Err(AppendError::Conflict(changed)) if *changed == expected), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_late_message_arrives_and_other_tasks_can_run_before_it() {
    let log = SimLog::new(Simulated::at(THEN));
    let player = new_player();
    log.append(prepare(&player, Head::default(), [queued()]).decision).await.unwrap();
    log.set_faults(Faults { late_messages: 50, ..Faults::default() }, 1);
    let mut late = 0;
    for _ in 0..100 {
        let mut follow = log.follow(vec!["garage.>".into()], 1);
        let mut next = pin!(follow.next());
        let first = futures::poll!(&mut next);
        late += usize::from(first.is_pending());
        let message = if let Poll::Ready(message) = first { message } else { next.await };
        assert_eq!(message.seq, 1);
    }
    assert!((1..100).contains(&late), "{late} of 100 were late");
}
