//! Reading the log continuously and in order.

use std::collections::BTreeMap;

use futures::future::join_all;
use garage_events::{
    id::PlayerId,
    log::{Append, Head},
};
use uuid::Uuid;

use crate::{
    ending::soon,
    fixture::{Fixture, Follow, Raw},
    samples::{Prepared, matched, new_player, new_session, of_player, of_session, pod_requested, prepare, queued},
};

/// Appends decisions on new aggregates. Returns the filters that select their events, and the id of the event at each
/// sequence.
async fn append_events<L: Append>(log: &L) -> (Vec<String>, BTreeMap<u64, Uuid>) {
    let mut filters = Vec::new();
    let mut decisions = Vec::new();
    for _ in 0..50 {
        let (player, session): (PlayerId, _) = (new_player(), new_session());
        filters.extend([of_player(&player), of_session(session)]);
        let events = [matched(std::slice::from_ref(&player)), pod_requested(1)];
        let begin = Prepared::empty().and(&player, Head::default(), [queued()]).and(session, Head::default(), events);
        decisions.push(begin);
    }
    let outcomes = join_all(decisions.iter().map(|prepared| log.append(prepared.decision.clone()))).await;
    let places =
        decisions.iter().zip(outcomes).flat_map(|(prepared, outcome)| outcome.unwrap().into_iter().zip(prepared.ids()));
    (filters, places.collect())
}

async fn read<F: Follow>(follow: &mut F, count: usize) -> Vec<(u64, Uuid)> {
    let mut seen = Vec::new();
    for i in 0..count {
        let (seq, _, envelope) = soon(&format!("event {i} of {count}"), follow.next()).await;
        seen.push((seq, envelope.id));
    }
    seen
}

pub(crate) async fn a_reader_sees_each_event_once_and_in_order(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let (mut filters, mut events) = append_events(&log).await;
    // One more event at the end: if an earlier event came twice, the reader would not get this one in time.
    let end = new_player();
    filters.push(of_player(&end));
    let prepared = prepare(&end, Head::default(), [queued()]);
    events.insert(log.append(prepared.decision.clone()).await.unwrap()[0], prepared.ids()[0]);

    let seen = read(&mut other.follow(filters, 1), events.len()).await;
    assert_eq!(seen, events.into_iter().collect::<Vec<_>>());
}

pub(crate) async fn a_reader_can_start_in_the_middle(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let (filters, events) = append_events(&log).await;
    for skip in [1, 74, events.len() - 1] {
        let wanted: Vec<(u64, Uuid)> = events.clone().into_iter().skip(skip).collect();
        let seen = read(&mut other.follow(filters.clone(), wanted[0].0), wanted.len()).await;
        assert_eq!(seen, wanted);
        // Start between two of the events.
        let seen = read(&mut other.follow(filters.clone(), wanted[0].0 + 1), wanted.len() - 1).await;
        assert_eq!(seen, wanted[1..]);
    }
}

pub(crate) async fn a_waiting_reader_sees_new_events(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let (player, from) = (new_player(), other.end("garage.>").await + 1);
    let mut follow = other.follow(vec![of_player(&player)], from);
    let mut head = Head::default();
    for n in 1..=20 {
        let prepared = prepare(&player, head, [queued()]);
        // The wait starts before the event is appended. Dropping the wait must not lose the event.
        let early = futures::poll!(Box::pin(follow.next()));
        assert!(early.is_pending(), "{early:?} came before it was appended");
        let seq = log.append(prepared.decision.clone()).await.unwrap()[0];
        let (seen, _, envelope) = soon("the event", follow.next()).await;
        assert_eq!((seen, envelope.id, envelope.n), (seq, prepared.ids()[0], n));
        head = Head { seq, n };
    }
}

pub(crate) async fn a_reader_that_keeps_dropping_its_wait_still_gets_the_event(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let player = new_player();
    let prepared = prepare(&player, Head::default(), [queued()]);
    let seq = log.append(prepared.decision.clone()).await.unwrap()[0];
    let mut follow = other.follow(vec![of_player(&player)], 1);
    // Each wait is dropped before it can complete. The work that it began must continue.
    let polls = async {
        loop {
            if let std::task::Poll::Ready(found) = futures::poll!(Box::pin(follow.next())) {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    let (seen, _, envelope) = soon("the event", polls).await;
    assert_eq!((seen, envelope.id), (seq, prepared.ids()[0]));
}
