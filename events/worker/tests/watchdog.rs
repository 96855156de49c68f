//! What becomes of a consumer that has stopped: its worker makes it again, loses nothing by that, and does nothing
//! again that it knew to be done.
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

    /// Starts an instance of the worker, with no more rights than it has.
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

    /// Stores reports, of attempts that none was of before.
    async fn report(&self, attempts: std::ops::RangeInclusive<u64>) -> anyhow::Result<()> {
        for attempt in attempts {
            let stored = async {
                // While a leader is elected nobody answers.
                while self.context.publish(format!("report.x.{attempt}.ready"), "{}".into()).await?.await.is_err() {}
                anyhow::Ok(())
            };
            timeout(DEADLINE, stored).await.context("the report is stored")??;
        }
        Ok(())
    }

    async fn stream(&self) -> anyhow::Result<Stream> {
        Ok(self.context.get_stream(subject::REPORTS).await?)
    }

    /// Waits until all is acknowledged, and until the worker must have seen that.
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
            // Nobody else asks for it now.
            let asked = format!("$JS.API.CONSUMER.INFO.{}.{}", subject::REPORTS, SESSION_REPORTS.name);
            self.client.subscribe(asked).await?.take(2).count().await;
            anyhow::Ok(())
        };
        timeout(DEADLINE, seen).await.context("settled in time")?
    }

    /// Waits until /readyz says so.
    async fn ready(&self, wanted: bool) -> anyhow::Result<()> {
        let is = async {
            while self.health.report().0 != wanted {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(DEADLINE, is).await.with_context(|| self.health.report().1)
    }
}

/// What was delivered, to whichever instance.
struct Reactions {
    sender: mpsc::UnboundedSender<Delivery>,
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    /// How often which report came, by the end of its subject.
    times: BTreeMap<String, u32>,
}

impl Reactions {
    fn new() -> Self {
        let (sender, deliveries) = mpsc::unbounded_channel();
        Self { sender, deliveries, times: BTreeMap::new() }
    }

    /// Waits until so many different reports have come.
    async fn until(&mut self, count: usize) -> anyhow::Result<()> {
        while self.times.len() < count {
            let delivery = timeout(DEADLINE, self.deliveries.recv()).await;
            let delivery = delivery.with_context(|| format!("{} of {count} came", self.times.len()))?;
            *self.times.entry(delivery.context("the worker runs")?.subject).or_default() += 1;
        }
        Ok(())
    }

    fn came_once(&self) -> bool {
        self.times.values().all(|times| *times == 1)
    }
}

async fn a_consumer_that_is_deleted(nodes: usize) -> anyhow::Result<()> {
    let fixture = Fixture::start(nodes).await?;
    let mut reactions = Reactions::new();
    fixture.react(&reactions).await?;
    fixture.report(1..=20).await?;
    reactions.until(20).await?;
    fixture.settled_and_seen().await?;
    fixture.ready(true).await?;

    fixture.stream().await?.delete_consumer(SESSION_REPORTS.name).await?;
    fixture.ready(false).await?;
    assert!(fixture.health.report().1.starts_with("session-reports: "), "{}", fixture.health.report().1);
    fixture.report(21..=40).await?;
    reactions.until(40).await?;
    fixture.settled_and_seen().await?;
    fixture.ready(true).await?;
    assert!(reactions.came_once(), "{:?}", reactions.times);

    // An upgrade takes it as it is.
    setup::init(fixture.client.clone(), nodes).await?;
    fixture.report(41..=41).await?;
    reactions.until(41).await?;
    assert!(reactions.came_once(), "{:?}", reactions.times);
    Ok(())
}

#[tokio::test]
async fn on_one_node_a_consumer_that_is_deleted_is_made_again() -> anyhow::Result<()> {
    a_consumer_that_is_deleted(1).await
}

#[tokio::test]
async fn on_three_nodes_a_consumer_that_is_deleted_is_made_again() -> anyhow::Result<()> {
    a_consumer_that_is_deleted(3).await
}

/// One that is paused answers that it is there, and that it has messages.
async fn a_consumer_that_silently_stopped(nodes: usize) -> anyhow::Result<()> {
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let fixture = Fixture::start(nodes).await?;
    let mut reactions = Reactions::new();
    fixture.react(&reactions).await?;
    fixture.report(1..=20).await?;
    reactions.until(20).await?;
    fixture.settled_and_seen().await?;
    fixture.ready(true).await?;

    let hour = time::Duration::HOUR;
    fixture.stream().await?.pause_consumer(SESSION_REPORTS.name, System.now() + hour).await?;
    fixture.report(21..=40).await?;
    fixture.ready(false).await?;
    let notified = "session-reports: there are messages, but nothing of them comes here; it is made again\n";
    assert_eq!(fixture.health.report().1, notified);
    reactions.until(40).await?;
    fixture.ready(true).await?;
    assert!(reactions.came_once(), "{:?}", reactions.times);
    let counted = r#"garage_consumers_made_again_total{consumer="session-reports",reason="silent"} 1"#;
    assert!(metrics.render().contains(counted), "{}", metrics.render());
    Ok(())
}

#[tokio::test]
async fn on_one_node_a_consumer_that_silently_stopped_is_made_again() -> anyhow::Result<()> {
    a_consumer_that_silently_stopped(1).await
}

#[tokio::test]
async fn on_three_nodes_a_consumer_that_silently_stopped_is_made_again() -> anyhow::Result<()> {
    a_consumer_that_silently_stopped(3).await
}

#[tokio::test]
async fn a_consumer_without_a_leader_is_made_again() -> anyhow::Result<()> {
    let mut fixture = Fixture::start(3).await?;
    // One that lives on a single node, which dies.
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
    let node = leader.as_deref().and_then(|leader| leader.strip_prefix("nats-")).context("it has a leader")?;
    let node = node.parse::<usize>()? - 1;
    let mut reactions = Reactions::new();
    fixture.react(&reactions).await?;
    fixture.report(1..=20).await?;
    reactions.until(20).await?;
    fixture.settled_and_seen().await?;

    fixture.nats.node(node)?.kill();
    fixture.report(21..=40).await?;
    reactions.until(40).await?;
    fixture.ready(true).await?;
    assert!(reactions.came_once(), "{:?}", reactions.times);
    Ok(())
}

#[tokio::test]
async fn who_has_never_seen_a_consumer_begins_at_the_streams_beginning() -> anyhow::Result<()> {
    let fixture = Fixture::start(1).await?;
    fixture.report(1..=20).await?;
    fixture.stream().await?.delete_consumer(SESSION_REPORTS.name).await?;
    let mut reactions = Reactions::new();
    fixture.react(&reactions).await?;
    reactions.until(20).await
}

#[tokio::test]
async fn nothing_is_skipped_of_a_stream_that_was_made_anew() -> anyhow::Result<()> {
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
async fn instances_do_not_hinder_each_other_in_making_it_again() -> anyhow::Result<()> {
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
    fixture.ready(true).await
}
