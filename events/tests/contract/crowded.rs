//! Many decisions on one aggregate in one process do not hold up the decisions on others.

use std::pin::pin;

use futures::{FutureExt, future::join_all, poll};
use garage_events::{
    jetstream::JetStreamLog,
    log::{Append, AppendError, Head, Load},
    subject::Aggregate,
};

use crate::{
    ending::within,
    samples::{cancelled, new_player, new_session, pod_requested, prepare, queued},
    servers::shared,
};

/// While the connection is cut, every decision waits.
async fn a_fifth_decision_on_an_aggregate_fails_at_once_and_others_do_not(nodes: usize) {
    let (proxy, client) = shared(nodes).await.proxied(0).await;
    let log = JetStreamLog::open(client).await.unwrap();
    let player = new_player();
    let decision = || prepare(&player, Head::default(), [queued()]).decision;
    proxy.cut();
    let mut four = join_all((0..4).map(|_| log.append(decision())));
    assert!(poll!(&mut four).is_pending());
    let fifth = log.clone().append(decision()).now_or_never();
    let full = Aggregate::Player(player.clone());
    assert!(matches!(&fifth, Some(Err(AppendError::Busy(named))) if *named == full), "{fifth:?}");
    let mut other = pin!(log.append(prepare(new_session(), Head::default(), [pod_requested(1)]).decision));
    assert!(poll!(&mut other).is_pending());

    proxy.mend();
    let (outcomes, other) = tokio::join!(four, other);
    other.unwrap();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    // Each of the four has given its place back.
    let head = log.player(&player).await.unwrap().head;
    assert_eq!(head.n, 1);
    log.append(prepare(&player, head, [cancelled()]).decision).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_a_fifth_decision_on_an_aggregate_fails_at_once_and_others_do_not() {
    within(a_fifth_decision_on_an_aggregate_fails_at_once_and_others_do_not(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_a_fifth_decision_on_an_aggregate_fails_at_once_and_others_do_not() {
    within(a_fifth_decision_on_an_aggregate_fails_at_once_and_others_do_not(3)).await;
}
