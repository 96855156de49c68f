//! Each session has one timer, which fires once.

use std::collections::BTreeMap;

use async_nats::jetstream;
use garage_events::{
    env::{Env, System},
    id::SessionId,
    jetstream::{follow, timer},
    subject::{ALL_DUE, TIMERS, timer_session},
};
use time::{Duration, OffsetDateTime};

use crate::{
    ending::{soon, within},
    samples::new_session,
    servers,
};

async fn a_timer_fires_once_at_the_last_time_set_unless_it_is_cancelled(nodes: usize) {
    let access = servers::shared(nodes).await;
    let context = jetstream::new(access.connect_to(0).await);
    let mut follow = follow::Follow::new(context.clone(), TIMERS, vec![ALL_DUE.into()], 1);
    let [plain, past, later, sooner, cancelled, revived, barrier] = [(); 7].map(|()| new_session());
    let now = System.now();
    let set = async |session: SessionId, seconds: i64| {
        timer::set(&context, session, now + Duration::seconds(seconds)).await.unwrap();
    };
    let cancel = async |session: SessionId| timer::cancel(&context, session).await.unwrap();

    // A timer that was never set can be cancelled too, because a session can be closed twice.
    cancel(new_session()).await;
    set(plain, 1).await;
    set(past, -60).await;
    set(later, 1).await;
    set(later, 3).await;
    set(sooner, 3_600).await;
    set(sooner, 2).await;
    set(cancelled, 1).await;
    cancel(cancelled).await;
    cancel(cancelled).await;
    set(revived, 1).await;
    cancel(revived).await;
    set(revived, 2).await;
    // When this timer fires, the times of all others have passed.
    set(barrier, 5).await;

    let mut fired: BTreeMap<SessionId, Vec<OffsetDateTime>> = BTreeMap::new();
    while !fired.contains_key(&barrier) {
        let message = soon("the last timer fires", follow.next()).await;
        fired.entry(timer_session(&message.subject).unwrap()).or_default().push(message.time);
    }
    for (session, seconds) in [(plain, 1), (past, 0), (later, 3), (sooner, 2), (revived, 2), (barrier, 5)] {
        let times = fired.remove(&session).unwrap_or_default();
        assert_eq!(times.len(), 1, "the timer at {seconds} s fired at {times:?}");
        assert!(
            times[0] >= now + Duration::seconds(seconds),
            "the timer at {seconds} s fired {} too soon",
            times[0] - now
        );
    }
    assert_eq!(fired.remove(&cancelled), None);

    // A timer that has fired can be set again.
    set(plain, 6).await;
    let again = soon("it fires again", follow.next()).await;
    assert_eq!(timer_session(&again.subject).unwrap(), plain);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_a_timer_fires_once_at_the_last_time_set_unless_it_is_cancelled() {
    within(a_timer_fires_once_at_the_last_time_set_unless_it_is_cancelled(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_a_timer_fires_once_at_the_last_time_set_unless_it_is_cancelled() {
    within(a_timer_fires_once_at_the_last_time_set_unless_it_is_cancelled(3)).await;
}
