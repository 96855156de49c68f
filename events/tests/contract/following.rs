//! Reading the log in its order.

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
    samples::{Made, made, matched, new_player, new_session, of_player, of_session, pod_requested, queued},
};

/// Decisions on aggregates of their own: the filters that select them, and each event's id at its sequence.
async fn story<L: Append>(log: &L) -> (Vec<String>, BTreeMap<u64, Uuid>) {
    let mut filters = Vec::new();
    let mut decisions = Vec::new();
    for _ in 0..50 {
        let (player, session): (PlayerId, _) = (new_player(), new_session());
        filters.extend([of_player(&player), of_session(session)]);
        let events = [matched(std::slice::from_ref(&player)), pod_requested(1)];
        let begin = Made::nothing().and(&player, Head::default(), [queued()]).and(session, Head::default(), events);
        decisions.push(begin);
    }
    let outcomes = join_all(decisions.iter().map(|made| log.append(made.decision.clone()))).await;
    let places =
        decisions.iter().zip(outcomes).flat_map(|(made, outcome)| outcome.unwrap().into_iter().zip(made.ids()));
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
    let (mut filters, mut story) = story(&log).await;
    // The last of all, by which it shows that nothing comes twice.
    let end = new_player();
    filters.push(of_player(&end));
    let made = made(&end, Head::default(), [queued()]);
    story.insert(log.append(made.decision.clone()).await.unwrap()[0], made.ids()[0]);

    let seen = read(&mut other.follow(filters, 1), story.len()).await;
    assert_eq!(seen, story.into_iter().collect::<Vec<_>>());
}

pub(crate) async fn a_reader_may_begin_in_the_middle(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let (filters, story) = story(&log).await;
    for skip in [1, 74, story.len() - 1] {
        let wanted: Vec<(u64, Uuid)> = story.clone().into_iter().skip(skip).collect();
        let seen = read(&mut other.follow(filters.clone(), wanted[0].0), wanted.len()).await;
        assert_eq!(seen, wanted);
        // Between two of its events.
        let seen = read(&mut other.follow(filters.clone(), wanted[0].0 + 1), wanted.len() - 1).await;
        assert_eq!(seen, wanted[1..]);
    }
}

pub(crate) async fn a_reader_that_waits_sees_what_comes(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let (player, from) = (new_player(), other.end("garage.>").await + 1);
    let mut follow = other.follow(vec![of_player(&player)], from);
    let mut head = Head::default();
    for n in 1..=20 {
        let made = made(&player, head, [queued()]);
        // It waits before the event is there, and a wait that is given up loses nothing.
        let early = futures::poll!(Box::pin(follow.next()));
        assert!(early.is_pending(), "{early:?} came before it was appended");
        let seq = log.append(made.decision.clone()).await.unwrap()[0];
        let (seen, _, envelope) = soon("the event", follow.next()).await;
        assert_eq!((seen, envelope.id, envelope.n), (seq, made.ids()[0], n));
        head = Head { seq, n };
    }
}

pub(crate) async fn a_reader_without_patience_gets_there(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let player = new_player();
    let made = made(&player, Head::default(), [queued()]);
    let seq = log.append(made.decision.clone()).await.unwrap()[0];
    let mut follow = other.follow(vec![of_player(&player)], 1);
    // Each wait ends before anything can have come of it; what they began must not end with them.
    let looks = async {
        loop {
            if let std::task::Poll::Ready(found) = futures::poll!(Box::pin(follow.next())) {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    let (seen, _, envelope) = soon("the event", looks).await;
    assert_eq!((seen, envelope.id), (seq, made.ids()[0]));
}
