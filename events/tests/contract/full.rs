//! A log that cannot store: it holds as many bytes as it may, or the server's disk is or was full.

use async_nats::jetstream::{self, stream::Config};
use garage_events::{
    jetstream::{JetStreamLog, storage::Trouble},
    log::{Append, AppendError, Head, Load},
    subject::{ALL, STREAM},
};
use tokio::time::{Duration, Instant, timeout};

use crate::{
    ending::{until, within},
    fixture::Raw,
    samples::{failed_and_closed, matched, new_player, new_session, pod_requested, prepare, queued},
    servers::Cluster,
};

/// When the log has room again, it accepts appends again.
async fn a_full_log_refuses_appends_at_once_and_drops_nothing(nodes: usize) {
    let cluster = Cluster::start(nodes).await;
    let context = jetstream::new(cluster.access.connect_to(0).await);
    let log = cluster.access.log(0).await;
    let config = context.get_stream(STREAM).await.unwrap().cached_info().config.clone();
    context.update_stream(Config { max_bytes: 24 << 10, ..config.clone() }).await.unwrap();

    // Single events and decisions of several events, so that the log becomes full in the middle of a commit.
    let (mut stored, mut refusals) = (Vec::new(), Vec::new());
    while refusals.len() < 20 {
        let events = if refusals.len() % 2 == 0 {
            vec![matched(&[]), pod_requested(1), failed_and_closed()[0].clone()]
        } else {
            vec![matched(&[])]
        };
        let (session, count) = (new_session(), events.len());
        match log.append(prepare(session, Head::default(), events).decision).await {
            Ok(_) => stored.push((session, count)),
            Err(error) => refusals.push((session, error)),
        }
        assert!(stored.len() < 500, "the log does not become full");
    }
    assert!(stored.len() > 5, "only {} decisions were stored", stored.len());
    for (session, error) in refusals {
        assert!(matches!(&error, AppendError::Full(_)), "{error:?}");
        assert_eq!(log.session(session).await.unwrap().history.len(), 0);
    }
    for (session, count) in stored {
        assert_eq!(log.session(session).await.unwrap().history.len(), count);
    }
    let (bytes, limit) = log.measure().await.unwrap();
    assert!(limit == Some(24 << 10) && bytes * 100 / (24 << 10) >= 90, "{bytes} of {limit:?}");
    let since = log.storage().trouble();
    assert!(matches!(since, Some(Trouble::Full { .. })), "{since:?}");

    context.update_stream(config).await.unwrap();
    log.append(prepare(new_session(), Head::default(), [matched(&[]), pod_requested(1)]).decision).await.unwrap();
    assert_eq!(log.storage().trouble(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_a_full_log_refuses_appends_at_once_and_drops_nothing() {
    within(a_full_log_refuses_appends_at_once_and_drops_nothing(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_a_full_log_refuses_appends_at_once_and_drops_nothing() {
    within(a_full_log_refuses_appends_at_once_and_drops_nothing(3)).await;
}

/// The limit of the server is reached before the limit of the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_at_its_own_limit_refuses_appends_as_full() {
    within(async {
        let cluster = Cluster::start_limited(1, 256 << 10).await;
        let log = cluster.access.log(0).await;
        let mut stored = 0;
        let error = loop {
            let decision = prepare(&new_player(), Head::default(), [queued()]).decision;
            match log.append(decision).await {
                Ok(_) => stored += 1,
                Err(error) => break error,
            }
            assert!(stored < 5_000, "the server does not become full");
        };
        assert!(matches!(&error, AppendError::Full(_)), "{error:?}");
        assert_eq!(log.end(ALL).await, stored);
    })
    .await;
}

/// What a log shows after a write error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Symptom {
    /// It says that it stores nothing.
    NotStoring,
    /// The server does not answer any request about the stream: in some runs it has disabled JetStream.
    NoAnswer,
}

/// Appends to a log that stores nothing, until it shows that.
async fn append_until_not_storing(log: &JetStreamLog) -> Symptom {
    let mut unanswered = 0;
    until("the log shows that it stores nothing", async || {
        let append = log.append(prepare(&new_player(), Head::default(), [queued()]).decision);
        if let Ok(outcome) = timeout(Duration::from_secs(1), append).await {
            assert!(matches!(outcome, Ok(_) | Err(AppendError::Unavailable(_))), "{outcome:?}");
        }
        if matches!(log.storage().trouble(), Some(Trouble::NotStoring { .. })) {
            return Some(Symptom::NotStoring);
        }
        let measured = timeout(Duration::from_millis(800), log.measure()).await;
        unanswered = if matches!(measured, Ok(Ok(_))) { 0 } else { unanswered + 1 };
        (unanswered == 10).then_some(Symptom::NoAnswer)
    })
    .await
}

/// nats-server keeps the write error after there is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_disk_was_full_is_noticed_until_it_is_restarted() {
    within(async {
        let (disk, mut cluster) = Cluster::start_on_small_disk(1).await;
        let log = cluster.access.log(0).await;
        let player = new_player();
        log.append(prepare(&player, Head::default(), [queued()]).decision).await.unwrap();
        disk.fill(0).unwrap();
        let symptom = append_until_not_storing(&log).await;
        disk.make_room(0).unwrap();
        assert_eq!(append_until_not_storing(&log).await, symptom);
        if symptom == Symptom::NotStoring {
            // Most appends fail at once, while one of them tries.
            let trying = tokio::spawn({
                let log = log.clone();
                async move { log.append(prepare(&new_player(), Head::default(), [queued()]).decision).await }
            });
            until("an append fails at once", async || {
                let began = Instant::now();
                let error = log.append(prepare(&new_player(), Head::default(), [queued()]).decision).await.unwrap_err();
                assert!(error.to_string().contains("restart this nats-server"), "{error}");
                (began.elapsed() < Duration::from_secs(1)).then_some(())
            })
            .await;
            trying.await.unwrap().unwrap_err();
        }

        cluster.nats.node(0).unwrap().restart().await.unwrap();
        until("the log stores again", async || {
            log.measure().await.ok()?;
            log.append(prepare(&new_player(), Head::default(), [queued()]).decision).await.ok()
        })
        .await;
        assert_eq!(log.storage().trouble(), None);
        assert!(log.player(&player).await.unwrap().last.is_some());
    })
    .await;
}

/// In a cluster, a node whose disk is full stops to take part. The others continue without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_continues_without_the_node_whose_disk_is_full() {
    within(async {
        let (disk, mut cluster) = Cluster::start_on_small_disk(3).await;
        let log = cluster.access.log(1).await;
        disk.fill(0).unwrap();
        for _ in 0..20 {
            log.append(prepare(&new_player(), Head::default(), [queued()]).decision).await.unwrap();
        }
        let monitor = cluster.nats.node(0).unwrap();
        until("the node has stopped", async || monitor.store_fault().await).await;
        disk.make_room(0).unwrap();
        cluster.nats.node(0).unwrap().restart().await.unwrap();
        cluster.nats.wait_healthy().await.unwrap();
        log.append(prepare(&new_player(), Head::default(), [queued()]).decision).await.unwrap();
        assert_eq!(cluster.access.log(0).await.end(ALL).await, 21);
    })
    .await;
}
