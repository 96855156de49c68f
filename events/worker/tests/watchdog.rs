//! A worker recreates a consumer that has stopped. It skips no message. It does not handle a message again if it knows
//! that the message is acknowledged.
#![cfg(test)]

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context;
use async_nats::{
    Client,
    jetstream::{
        self,
        consumer::{AckPolicy, pull},
        stream::Stream,
    },
};
use futures::StreamExt;
use garage_events::{
    deadline::receive,
    env::{Env, System},
    jetstream::setup::{self, ACK_WAIT, SESSION_REPORTS},
    subject,
};
use garage_stack::servers::{Nats, Role};
use garage_worker::{
    Health, Shutdown,
    reactor::{Delivery, react},
};
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::{sync::mpsc, time::timeout};

const DEADLINE: Duration = Duration::from_secs(60);

struct Fixture {
    client: Client,
    context: jetstream::Context,
    health: Health,
    shutdown: Shutdown,
    nats: Nats,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn start(nodes: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let nats = Nats::start(folder.path(), nodes).await?;
        let client = nats.connect(Role::Admin).await?;
        setup::init(client.clone(), nodes).await?;
        let context = jetstream::new(client.clone());
        Ok(Self { client, context, health: Health::default(), shutdown: Shutdown::new(), nats, _folder: folder })
    }

    /// Starts an instance of the worker, with the rights of the session worker.
    async fn react(&self, reactions: &Reactions) -> anyhow::Result<()> {
        let context = jetstream::new(self.nats.connect(Role::Session).await?);
        let seen = reactions.sender.clone();
        let handler = move |delivery| {
            let _ = seen.send(delivery);
            async { Ok(()) }
        };
        tokio::spawn(react(context, SESSION_REPORTS, 4, self.health.clone(), self.shutdown.clone(), handler));
        Ok(())
    }

    /// Stores one report for each of these attempts. Each attempt must be new.
    async fn report(&self, attempts: std::ops::RangeInclusive<u64>) -> anyhow::Result<()> {
        for attempt in attempts {
            let stored = async {
                // Publishing fails during an election.
                while self.context.publish(format!("report.x.{attempt}.ready"), "{}".into()).await?.await.is_err() {}
                anyhow::Ok(())
            };
            timeout(DEADLINE, stored).await.context("the report is not stored in time")??;
        }
        Ok(())
    }

    async fn stream(&self) -> anyhow::Result<Stream> {
        Ok(self.context.get_stream(subject::REPORTS).await?)
    }

    /// Waits until all messages are acknowledged and the worker has seen the new acknowledgement floor.
    async fn settled_and_seen(&self) -> anyhow::Result<()> {
        let seen = async {
            let stream = self.stream().await?;
            loop {
                let info = stream.consumer_info(SESSION_REPORTS.name).await?;
                if info.num_pending == 0 && info.num_ack_pending == 0 {
                    break;
                }
                tokio::task::yield_now().await;
            }
            // From here on, only the worker's watchdog sends this request.
            let request = format!("$JS.API.CONSUMER.INFO.{}.{}", subject::REPORTS, SESSION_REPORTS.name);
            self.client.subscribe(request).await?.take(2).count().await;
            anyhow::Ok(())
        };
        timeout(DEADLINE, seen).await.context("messages are not all acknowledged in time")?
    }

    /// Waits until /readyz reports this state.
    async fn until_ready(&self, expected: bool) -> anyhow::Result<()> {
        let reported = async {
            while self.health.report().0 != expected {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(DEADLINE, reported).await.with_context(|| self.health.report().1)
    }
}

/// The deliveries of all instances.
struct Reactions {
    sender: mpsc::UnboundedSender<Delivery>,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    /// The number of deliveries of each report, by subject.
    counts: BTreeMap<String, u32>,
}

impl Reactions {
    fn new() -> Self {
        let (sender, deliveries) = mpsc::unbounded_channel();
        Self { sender, deliveries, counts: BTreeMap::new() }
    }

    /// Waits until this many different reports have been delivered.
    async fn until(&mut self, total: usize) -> anyhow::Result<()> {
        while self.counts.len() < total {
            let delivery = receive(&mut self.deliveries, DEADLINE).await;
            let delivery = delivery.with_context(|| format!("{} of {total} reports delivered", self.counts.len()))?;
            *self.counts.entry(delivery.subject).or_default() += 1;
        }
        Ok(())
    }

    fn each_delivered_once(&self) -> bool {
        self.counts.values().all(|count| *count == 1)
    }
}

async fn deleted_consumer(nodes: usize) -> anyhow::Result<()> {
    let fixture = Fixture::start(nodes).await?;
    let mut reactions = Reactions::new();
    fixture.react(&reactions).await?;
    fixture.report(1..=20).await?;
    reactions.until(20).await?;
    fixture.settled_and_seen().await?;
    fixture.until_ready(true).await?;

    fixture.stream().await?.delete_consumer(SESSION_REPORTS.name).await?;
    fixture.until_ready(false).await?;
    assert!(fixture.health.report().1.starts_with("session-reports: "), "{}", fixture.health.report().1);
    fixture.report(21..=40).await?;
    reactions.until(40).await?;
    fixture.settled_and_seen().await?;
    fixture.until_ready(true).await?;
    assert!(reactions.each_delivered_once(), "{:?}", reactions.counts);

    // `garage init` during an upgrade accepts the recreated consumer.
    setup::init(fixture.client.clone(), nodes).await?;
    fixture.report(41..=41).await?;
    reactions.until(41).await?;
    assert!(reactions.each_delivered_once(), "{:?}", reactions.counts);
    Ok(())
}

#[tokio::test]
async fn on_one_node_a_deleted_consumer_is_recreated() -> anyhow::Result<()> {
    deleted_consumer(1).await
}

#[tokio::test]
async fn on_three_nodes_a_deleted_consumer_is_recreated() -> anyhow::Result<()> {
    deleted_consumer(3).await
}

/// Simulates a silently stopped consumer by pausing it: a paused consumer answers that it exists and has messages.
async fn silently_stopped_consumer(nodes: usize) -> anyhow::Result<()> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let fixture = Fixture::start(nodes).await?;
    let mut reactions = Reactions::new();
    fixture.react(&reactions).await?;
    fixture.report(1..=20).await?;
    reactions.until(20).await?;
    fixture.settled_and_seen().await?;
    fixture.until_ready(true).await?;

    let hour = time::Duration::HOUR;
    fixture.stream().await?.pause_consumer(SESSION_REPORTS.name, System.now() + hour).await?;
    fixture.report(21..=40).await?;
    fixture.until_ready(false).await?;
    let report = "session-reports: there are messages, but none are delivered; the consumer will be recreated\n";
    assert_eq!(fixture.health.report().1, report);
    reactions.until(40).await?;
    fixture.until_ready(true).await?;
    assert!(reactions.each_delivered_once(), "{:?}", reactions.counts);
    let metric = r#"garage_consumers_made_again_total{consumer="session-reports",reason="silent"} 1"#;
    assert!(metrics.render().contains(metric), "{}", metrics.render());
    Ok(())
}

#[tokio::test]
async fn on_one_node_a_silently_stopped_consumer_is_recreated() -> anyhow::Result<()> {
    silently_stopped_consumer(1).await
}

#[tokio::test]
async fn on_three_nodes_a_silently_stopped_consumer_is_recreated() -> anyhow::Result<()> {
    silently_stopped_consumer(3).await
}

#[tokio::test]
async fn a_consumer_without_a_leader_is_recreated() -> anyhow::Result<()> {
    let mut fixture = Fixture::start(3).await?;
    // Create the consumer on a single node, which is then killed.
    let stream = fixture.stream().await?;
    stream.delete_consumer(SESSION_REPORTS.name).await?;
    let config = pull::Config {
        durable_name: Some(SESSION_REPORTS.name.into()),
        filter_subjects: SESSION_REPORTS.filters(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        num_replicas: 1,
        ..Default::default()
    };
    let alone = stream.create_consumer(config).await?;
    let leader = alone.cached_info().cluster.as_ref().and_then(|cluster| cluster.leader.clone());
    let node = leader.as_deref().and_then(|leader| leader.strip_prefix("nats-")).context("no leader")?;
    let node = node.parse::<usize>()? - 1;
    let mut reactions = Reactions::new();
    fixture.react(&reactions).await?;
    fixture.report(1..=20).await?;
    reactions.until(20).await?;
    fixture.settled_and_seen().await?;

    fixture.nats.node(node)?.kill();
    fixture.report(21..=40).await?;
    reactions.until(40).await?;
    fixture.until_ready(true).await?;
    assert!(reactions.each_delivered_once(), "{:?}", reactions.counts);
    Ok(())
}

#[tokio::test]
async fn an_instance_that_has_never_seen_the_consumer_starts_it_at_the_beginning_of_the_stream() -> anyhow::Result<()> {
    let fixture = Fixture::start(1).await?;
    fixture.report(1..=20).await?;
    fixture.stream().await?.delete_consumer(SESSION_REPORTS.name).await?;
    let mut reactions = Reactions::new();
    fixture.react(&reactions).await?;
    reactions.until(20).await
}

#[tokio::test]
async fn no_message_of_a_recreated_stream_is_skipped() -> anyhow::Result<()> {
    let fixture = Fixture::start(1).await?;
    let mut reactions = Reactions::new();
    fixture.react(&reactions).await?;
    fixture.report(1..=20).await?;
    reactions.until(20).await?;
    fixture.settled_and_seen().await?;
    fixture.context.delete_stream(subject::REPORTS).await?;
    setup::init(fixture.client.clone(), 1).await?;
    fixture.report(21..=30).await?;
    reactions.until(30).await
}

#[tokio::test]
async fn several_instances_can_recreate_the_consumer_at_the_same_time() -> anyhow::Result<()> {
    let fixture = Fixture::start(1).await?;
    let mut reactions = Reactions::new();
    for _ in 0..3 {
        fixture.react(&reactions).await?;
    }
    for round in 1..=5 {
        fixture.stream().await?.delete_consumer(SESSION_REPORTS.name).await?;
        fixture.report(round * 10 - 9..=round * 10).await?;
        reactions.until(usize::try_from(round)? * 10).await?;
    }
    fixture.settled_and_seen().await?;
    fixture.until_ready(true).await
}
