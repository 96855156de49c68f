//! The streams and consumers that `garage init` creates, and the streams that the log refuses to open.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, pull},
    stream::{Config, DiscardPolicy, Republish, StorageType},
};
use futures::StreamExt;
use garage_events::{
    jetstream::{JetStreamLog, OpenError, setup},
    lease,
    log::{Append, AppendError, Head, Load},
    presence, queue_status,
    subject::{ALL, DEAD, HISTORY, REPORTS, SNAPSHOTS, STREAM, TIMERS},
};
use serde_json::json;

use crate::{
    ending::{until, within},
    fixture::Raw,
    samples::{failed_and_closed, matched, new_session, pod_requested, prepare},
    servers::Cluster,
};

/// All streams that `garage init` creates.
const STREAMS: [&str; 9] =
    [STREAM, HISTORY, TIMERS, REPORTS, DEAD, SNAPSHOTS, presence::STREAM, lease::STREAM, queue_status::STREAM];

async fn a_second_init_changes_nothing_and_keeps_the_data(nodes: usize) {
    let cluster = Cluster::start(nodes).await;
    let client = cluster.access.connect_to(0).await;
    let context = jetstream::new(client.clone());
    let log = cluster.access.log(0).await;
    let session = new_session();
    log.append(prepare(session, Head::default(), [matched(&[]), pod_requested(1)]).decision).await.unwrap();
    // Acknowledge a message, so that a consumer has a position.
    let stream = context.get_stream(STREAM).await.unwrap();
    let director: jetstream::consumer::PullConsumer = stream.get_consumer(setup::DIRECTOR.name).await.unwrap();
    let mut messages = director.messages().await.unwrap();
    messages.next().await.unwrap().unwrap().double_ack().await.unwrap();
    drop(messages);

    let snapshot = async || {
        let mut seen = Vec::new();
        for name in STREAMS {
            let mut stream = context.get_stream(name).await.unwrap();
            let info = stream.info().await.unwrap();
            assert_eq!(info.config.num_replicas, nodes, "{name}");
            // As JSON, because its maps are sorted.
            seen.push(json!([name, info.created.to_string(), info.config, info.state.last_sequence]));
        }
        for consumer in setup::CONSUMERS {
            let stream = context.get_stream(consumer.stream).await.unwrap();
            let info = stream.consumer_info(consumer.name).await.unwrap();
            seen.push(json!([info.name, info.created.to_string(), info.config, info.ack_floor.stream_sequence]));
        }
        seen
    };
    // The mirror lags behind the log.
    until("the history has all events", async || {
        let last = context.get_stream(HISTORY).await.ok()?.cached_info().state.last_sequence;
        (last == log.end(ALL).await).then_some(())
    })
    .await;
    let before = snapshot().await;
    setup::init(client.clone(), nodes).await.unwrap();
    assert_eq!(snapshot().await, before);
    assert_eq!(log.session(session).await.unwrap().history.len(), 2);

    // A setting that somebody changed is restored.
    let wrong = Config { max_age: Duration::from_secs(600), ..stream.cached_info().config.clone() };
    context.update_stream(wrong).await.unwrap();
    setup::init(client.clone(), nodes).await.unwrap();
    assert_eq!(snapshot().await, before);

    // A consumer of an older version, which selected fewer events, is updated and keeps its position.
    let older = pull::Config {
        durable_name: Some(setup::DIRECTOR.name.into()),
        filter_subjects: vec!["garage.session.*.closed".into()],
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(30),
        ..Default::default()
    };
    stream.create_consumer(older).await.unwrap();
    assert_ne!(snapshot().await, before);
    setup::init(client, nodes).await.unwrap();
    assert_eq!(snapshot().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_a_second_init_changes_nothing_and_keeps_the_data() {
    within(a_second_init_changes_nothing_and_keeps_the_data(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_a_second_init_changes_nothing_and_keeps_the_data() {
    within(a_second_init_changes_nothing_and_keeps_the_data(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_the_guarantees_of_the_log_is_not_opened() {
    within(async {
        let cluster = Cluster::start_unconfigured(1).await;
        let client = cluster.access.connect_to(0).await;
        let context = jetstream::new(client.clone());
        let good = || Config {
            name: STREAM.into(),
            subjects: vec![ALL.into()],
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            allow_atomic_publish: true,
            allow_direct: true,
            ..Default::default()
        };
        let republish = Republish { source: ">".into(), destination: "copy.>".into(), headers_only: false };
        let streams = [
            ("good", good()),
            ("no batches", Config { allow_atomic_publish: false, ..good() }),
            ("roll-ups", Config { allow_rollup: true, ..good() }),
            // The server allows schedules only with this discard policy, which is refused as well.
            ("schedules", Config { allow_message_schedules: true, discard: DiscardPolicy::Old, ..good() }),
            ("republishing", Config { republish: Some(republish), ..good() }),
            ("oldest events are dropped", Config { discard: DiscardPolicy::Old, ..good() }),
            ("few events per subject", Config { max_messages_per_subject: 1, ..good() }),
        ];
        assert!(matches!(JetStreamLog::open(client.clone()).await, Err(OpenError::Missing)));
        for (what, config) in streams {
            context.create_stream(config).await.unwrap();
            let opened = JetStreamLog::open(client.clone()).await;
            match what {
                "good" => drop(opened.unwrap()),
                _ => assert!(matches!(opened, Err(OpenError::Unfit(_))), "{what}: {opened:?}"),
            }
            context.delete_stream(STREAM).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_error_when_a_log_grows_from_one_node_to_three_says_what_to_do() {
    within(async {
        let cluster = Cluster::start_unconfigured(3).await;
        let client = cluster.access.connect_to(0).await;
        let context = jetstream::new(client.clone());
        setup::init(client.clone(), 1).await.unwrap();
        let error = setup::init(client.clone(), 3).await.unwrap_err();
        assert!(error.to_string().contains("nats stream rm GARAGE_HISTORY"), "{error}");
        context.delete_stream(HISTORY).await.unwrap();
        setup::init(client.clone(), 3).await.unwrap();
        setup::init(client, 3).await.unwrap();
        for name in STREAMS {
            assert_eq!(context.get_stream(name).await.unwrap().cached_info().config.num_replicas, 3, "{name}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_without_a_leader_is_unavailable() {
    within(async {
        let mut cluster = Cluster::start(3).await;
        let leader = cluster.leader(&cluster.access.connect_to(0).await).await;
        // Connect to a node that was not the leader: a leader that loses the others still answers for a while.
        let client = cluster.access.connect_to(leader + 1).await;
        for node in [leader, (leader + 2) % 3] {
            cluster.nats.node(node).unwrap().kill();
        }
        let opened = JetStreamLog::open(client).await;
        assert!(matches!(opened, Err(OpenError::Unavailable(_))), "{opened:?}");
    })
    .await;
}

/// When the log has room again, it accepts appends again.
async fn a_full_log_refuses_appends_and_drops_nothing(nodes: usize) {
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
        let full = matches!(&error, AppendError::Unavailable(reason) if reason.contains("maximum bytes"));
        assert!(full, "{error:?}");
        assert_eq!(log.session(session).await.unwrap().history.len(), 0);
    }
    for (session, count) in stored {
        assert_eq!(log.session(session).await.unwrap().history.len(), count);
    }

    context.update_stream(config).await.unwrap();
    log.append(prepare(new_session(), Head::default(), [matched(&[]), pod_requested(1)]).decision).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_a_full_log_refuses_appends_and_drops_nothing() {
    within(a_full_log_refuses_appends_and_drops_nothing(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_a_full_log_refuses_appends_and_drops_nothing() {
    within(a_full_log_refuses_appends_and_drops_nothing(3)).await;
}
