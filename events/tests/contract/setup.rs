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
    log::{Append, Head, Load},
    presence, queue_status, rules,
    subject::{ALL, DEAD, HISTORY, REPORTS, SNAPSHOTS, STREAM, TIMERS},
};
use serde_json::json;

use crate::{
    ending::{until, within},
    fixture::Raw,
    samples::{matched, new_session, pod_requested, prepare},
    servers::Cluster,
};

/// All streams that `garage init` creates.
const STREAMS: [&str; 10] = [
    STREAM,
    HISTORY,
    TIMERS,
    REPORTS,
    DEAD,
    SNAPSHOTS,
    presence::STREAM,
    lease::STREAM,
    queue_status::STREAM,
    rules::STREAM,
];

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

/// The sizes of all streams, and of the streams together, in bytes.
async fn sizes(context: &jetstream::Context) -> ([i64; STREAMS.len()], i64) {
    let mut sizes = [0; STREAMS.len()];
    for (size, name) in sizes.iter_mut().zip(STREAMS) {
        *size = context.get_stream(name).await.map_or(0, |stream| stream.cached_info().config.max_bytes);
    }
    (sizes, sizes.iter().sum())
}

async fn all_sizes_are_proportional_to_the_size_of_the_log(nodes: usize) {
    let cluster = Cluster::start_unconfigured(nodes).await;
    let client = cluster.access.connect_to(0).await;
    let context = jetstream::new(client.clone());
    setup::init_sized(client.clone(), nodes, 512 << 20).await.unwrap();
    let (small, _) = sizes(&context).await;
    assert_eq!(small[0], 512 << 20);
    assert!(small.iter().all(|size| *size > 0), "a stream without a limit: {small:?}");
    setup::init(client.clone(), nodes).await.unwrap();
    let (default, total) = sizes(&context).await;
    assert_eq!(default, small.map(|size| size * 16));
    assert!(total < 16 << 30, "{total} is more than the manifests allow");

    // Too large for the 16 GiB of each server. Nothing is changed, and a smaller size still works.
    let error = setup::init_sized(client.clone(), nodes, 9 << 30).await.unwrap_err();
    assert!(matches!(error, setup::SetupError::NoRoom { .. }), "{error}");
    let text = error.to_string();
    assert!(["max_file_store", "--log-size", "9216 MiB"].iter().all(|word| text.contains(word)), "{text}");
    assert_eq!(sizes(&context).await.0, default);
    setup::init_sized(client, nodes, 512 << 20).await.unwrap();
    assert_eq!(sizes(&context).await.0, small);
    assert!(context.get_stream("GARAGE_SIZE_CHECK").await.is_err(), "the check left its stream behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_all_sizes_are_proportional_to_the_size_of_the_log() {
    within(all_sizes_are_proportional_to_the_size_of_the_log(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_all_sizes_are_proportional_to_the_size_of_the_log() {
    within(all_sizes_are_proportional_to_the_size_of_the_log(3)).await;
}
