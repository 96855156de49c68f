//! The faults of the log in memory are those of the real one: what is answered is true, what is not may be so or so.

use garage_events::{
    log::{Append, AppendError, Head, Load},
    sim::{Faults, SimLog},
    world::Simulated,
};

use crate::samples::{THEN, made, new_player, queued};

/// Of a hundred appends under the faults, which were answered and which are stored.
async fn appends(faults: Faults, seed: u64) -> Vec<(bool, bool)> {
    let log = SimLog::new(Simulated::at(THEN));
    let mut seen = Vec::new();
    for _ in 0..100 {
        let player = new_player();
        log.set_faults(faults, seed + seen.len() as u64);
        let outcome = log.append(made(&player, Head::default(), [queued()]).decision).await;
        log.set_faults(Faults::default(), 0);
        assert!(matches!(outcome, Ok(_) | Err(AppendError::Unavailable(_))), "{outcome:?}");
        seen.push((outcome.is_ok(), log.player(&player).await.unwrap().head.n == 1));
    }
    seen
}

#[tokio::test]
async fn without_faults_each_append_is_stored_and_answered() {
    assert_eq!(appends(Faults::default(), 1).await, vec![(true, true); 100]);
}

#[tokio::test]
async fn an_append_whose_answer_is_lost_is_stored() {
    let all = Faults { lost_answers: 100, ..Faults::default() };
    assert_eq!(appends(all, 1).await, vec![(false, true); 100]);
}

#[tokio::test]
async fn an_append_that_is_lost_is_not_stored() {
    let all = Faults { lost_appends: 100, ..Faults::default() };
    assert_eq!(appends(all, 1).await, vec![(false, false); 100]);
}

#[tokio::test]
async fn a_seed_brings_the_same_faults_again() {
    let some = Faults { lost_answers: 30, lost_appends: 30, ..Faults::default() };
    let seen = appends(some, 7).await;
    assert_eq!(appends(some, 7).await, seen);
    assert_ne!(appends(some, 8_000).await, seen);
    for kind in [(true, true), (false, true), (false, false)] {
        assert!(seen.contains(&kind), "{kind:?} never came");
    }
}

#[tokio::test]
async fn a_read_that_is_lost_says_so() {
    let log = SimLog::new(Simulated::at(THEN));
    log.set_faults(Faults { lost_reads: 100, ..Faults::default() }, 1);
    assert!(log.player(&new_player()).await.is_err());
    assert!(log.next("garage.>", 1).is_err());
    assert!(log.last_sequence("garage.>").is_err());
}

#[tokio::test]
async fn a_read_that_is_stale_lacks_the_last_events_and_an_append_on_it_conflicts() {
    let log = SimLog::new(Simulated::at(THEN));
    let player = new_player();
    log.append(made(&player, Head::default(), [queued()]).decision).await.unwrap();
    log.set_faults(Faults { stale_reads: 100, ..Faults::default() }, 1);
    let read = log.player(&player).await.unwrap();
    assert_eq!((read.head, log.last_sequence("garage.>").unwrap()), (Head::default(), 0));
    let stale = log.append(made(&player, read.head, [queued()]).decision).await;
    assert!(matches!(stale, Err(AppendError::Conflict(_))), "{stale:?}");
}
