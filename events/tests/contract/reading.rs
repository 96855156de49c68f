//! A read returns all acknowledged events, even if a replica does not have them yet.

use std::time::Duration;

use futures::future::join_all;
use garage_events::{
    log::{Append, Head, Load, Player},
    subject::{Aggregate, STREAM},
};

use crate::{
    ending::within,
    samples::{failed_and_closed, matched, new_player, new_session, pod_failed, pod_requested, prepare, queued},
    servers::Cluster,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_through_any_node_returns_an_event_that_was_just_acknowledged() {
    within(async {
        let cluster = Cluster::start_cuttable(3).await;
        let asked = cluster.access.connect_to(0).await;
        let leader = cluster.leader(&asked).await;
        // Delays one node, so that it gets each event a little later than the two nodes that form the majority.
        let laggard = (leader + 1) % 3;
        cluster.nats.delay_routes(laggard, Duration::from_millis(4)).unwrap();
        let writer = cluster.access.log(leader).await;
        let readers = [
            cluster.access.log(laggard).await,
            cluster.access.log(laggard + 1).await,
            cluster.access.log(leader).await,
        ];
        // A direct read from the replica shows that it lags behind. Otherwise this test would prove nothing.
        let replica = readers[0].context().get_stream_no_info(STREAM).await.unwrap();

        let (player, session) = (new_player(), new_session());
        let (mut player_head, mut session_head, mut stale) = (Head::default(), Head::default(), 0);
        for round in 0..200 {
            let seq = writer.append(prepare(&player, player_head, [queued()]).decision).await.unwrap()[0];
            player_head = Head { seq, n: player_head.n + 1 };
            let subject = Aggregate::Player(player.clone()).filter();
            let direct = replica.direct_get_last_for_subject(subject).await;
            stale += usize::from(direct.map_or(0, |message| message.sequence) < seq);
            for read in join_all(readers.iter().map(|log| log.player(&player))).await {
                let Player { head, .. } = read.unwrap();
                assert_eq!(head, player_head, "round {round}");
            }

            let events = match round {
                0 => vec![matched(&[]), pod_requested(1)],
                199 => failed_and_closed().into(),
                _ if round % 2 == 0 => vec![pod_requested(round)],
                _ => vec![pod_failed(round)],
            };
            let count = u64::try_from(events.len()).unwrap();
            let sequences = writer.append(prepare(session, session_head, events).decision).await.unwrap();
            session_head = Head { seq: *sequences.last().unwrap(), n: session_head.n + count };
            for read in join_all(readers.iter().map(|log| log.session(session))).await {
                let read = read.unwrap();
                assert_eq!(read.head, session_head, "round {round}");
                assert!(read.history.iter().map(|one| one.n).eq(1..=session_head.n), "round {round}: {read:?}");
            }
        }
        assert!(stale > 0, "the replica never lagged behind");
    })
    .await;
}
