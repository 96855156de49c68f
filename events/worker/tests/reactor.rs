//! The reactor handles, retries, redelivers and dead-letters messages.
#![cfg(test)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use async_nats::jetstream::{
    self,
    consumer::{FromConsumer, PullConsumer, pull},
};
use futures::StreamExt;
use garage_events::{
    deadline::{Ended, receive},
    jetstream::setup::{self, SESSION_REPORTS},
    subject::{self, Report, ReportKind},
    svc,
};
use garage_stack::servers::{Nats, Role};
use garage_worker::{
    Health, Shutdown,
    reactor::{Delivery, Failure, react},
};
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

const DEADLINE: Duration = Duration::from_secs(120);

const SESSION: &str = "0198c5a0-7b1e-7c3d-8000-0123456789ab";

struct Fixture {
    context: jetstream::Context,
    health: Health,
    shutdown: Shutdown,
    _nats: Nats,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let nats = Nats::start(folder.path(), 1).await?;
        let client = nats.connect(Role::Admin).await?;
        setup::init(client.clone(), 1).await?;
        let context = jetstream::new(client);
        Ok(Self { context, health: Health::default(), shutdown: Shutdown::new(), _nats: nats, _folder: folder })
    }

    async fn report(&self, body: &'static str) -> anyhow::Result<()> {
        self.context.publish("report.x.1.ready", body.into()).await?.await?;
        Ok(())
    }

    /// Runs the reactor. The handler receives the number of its call, starting at 1.
    fn react<H>(&self, handler: H) -> (JoinHandle<anyhow::Result<()>>, mpsc::UnboundedReceiver<Delivery>)
    where
        H: Fn(u32) -> Result<(), Failure> + Send + Sync + 'static,
    {
        self.react_with_slots(4, handler)
    }

    /// Like `react`, with this many slots.
    fn react_with_slots<H>(
        &self,
        concurrency: usize,
        handler: H,
    ) -> (JoinHandle<anyhow::Result<()>>, mpsc::UnboundedReceiver<Delivery>)
    where
        H: Fn(u32) -> Result<(), Failure> + Send + Sync + 'static,
    {
        let (seen, deliveries) = mpsc::unbounded_channel();
        let calls = Arc::new(AtomicU32::new(0));
        let handler = Arc::new(handler);
        let reacting = react(
            self.context.clone(),
            SESSION_REPORTS,
            concurrency,
            self.health.clone(),
            self.shutdown.clone(),
            move |delivery| {
                let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
                let _ = seen.send(delivery);
                let result = handler(call);
                async move { result }
            },
        );
        (tokio::spawn(reacting), deliveries)
    }

    async fn consumer(&self) -> anyhow::Result<PullConsumer> {
        let stream = self.context.get_stream(subject::REPORTS).await?;
        stream.get_consumer(SESSION_REPORTS.name).await.map_err(anyhow::Error::from_boxed)
    }

    /// Makes the server redeliver unacknowledged messages at once, and restart their delivery counts.
    async fn redeliver(&self) -> anyhow::Result<()> {
        self.context.get_stream(subject::REPORTS).await?.reset_consumer(SESSION_REPORTS.name, None).await?;
        Ok(())
    }

    /// Shortens the consumer's ack_wait to 200 ms. Progress reports are less frequent, so each delivery in progress is
    /// redelivered.
    async fn shorten_ack_wait(&self) -> anyhow::Result<()> {
        let config = self.consumer().await?.cached_info().config.clone();
        let config = pull::Config::try_from_consumer_config(config).map_err(anyhow::Error::from_boxed)?;
        let config = pull::Config { ack_wait: Duration::from_millis(200), ..config };
        self.context.get_stream(subject::REPORTS).await?.update_consumer(config).await?;
        Ok(())
    }

    /// Waits until all messages are delivered and acknowledged.
    async fn settled(&self) -> anyhow::Result<()> {
        let settled = async {
            loop {
                let mut consumer = self.consumer().await?;
                let info = consumer.info().await?;
                if info.num_pending == 0 && info.num_ack_pending == 0 {
                    return anyhow::Ok(());
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, settled).await.context("messages are not all acknowledged in time")?
    }

    async fn dead_letter(&self) -> anyhow::Result<Option<Value>> {
        let stream = self.context.get_stream(subject::DEAD).await?;
        match stream.get_last_raw_message_by_subject(&subject::dead(SESSION_REPORTS.name)).await {
            Ok(message) => Ok(Some(serde_json::from_slice(&message.payload)?)),
            Err(_) => Ok(None),
        }
    }
}

async fn next(deliveries: &mut mpsc::UnboundedReceiver<Delivery>) -> anyhow::Result<Delivery> {
    receive(deliveries, DEADLINE).await.context("no delivery")
}

#[tokio::test]
async fn a_message_is_acknowledged_after_it_was_handled() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let (reacting, mut deliveries) = fixture.react(|_| Ok(()));
    fixture.report("{}").await?;
    assert_eq!(next(&mut deliveries).await?.delivered, 1);
    fixture.settled().await?;
    fixture.shutdown.cancel();
    reacting.await??;
    assert_eq!(receive(&mut deliveries, DEADLINE).await.err(), Some(Ended::Closed), "the message was delivered twice");
    Ok(())
}

#[tokio::test]
async fn an_unavailable_dependency_does_not_count_as_a_failed_delivery() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let (_reacting, mut deliveries) =
        fixture.react(|call| if call <= 6 { Err(Failure::Unavailable(anyhow::anyhow!("down"))) } else { Ok(()) });
    fixture.report("{}").await?;
    // Together the seven tries take longer than the consumer's ack_wait.
    for _ in 0..7 {
        assert_eq!(next(&mut deliveries).await?.delivered, 1);
    }
    fixture.settled().await?;
    assert_eq!(fixture.dead_letter().await?, None);
    Ok(())
}

#[tokio::test]
async fn a_conflict_is_retried_at_once() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let (_reacting, mut deliveries) =
        fixture.react(|call| if call <= 3 { Err(Failure::Retry(anyhow::anyhow!("moved"))) } else { Ok(()) });
    fixture.report("{}").await?;
    for _ in 0..4 {
        assert_eq!(next(&mut deliveries).await?.delivered, 1);
    }
    fixture.settled().await
}

#[tokio::test]
async fn a_message_that_cannot_be_handled_becomes_a_dead_letter_with_its_error() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let (_reacting, mut deliveries) = fixture.react(|_| Err(Failure::Poison(anyhow::anyhow!("not a report"))));
    fixture.report("rubbish").await?;
    next(&mut deliveries).await?;
    fixture.settled().await?;
    let dead_letter = fixture.dead_letter().await?.context("no dead letter")?;
    assert_eq!(dead_letter["error"], "not a report");
    assert_eq!(dead_letter["subject"], "report.x.1.ready");
    assert_eq!(dead_letter["body"], "rubbish");
    Ok(())
}

/// The two subjects of a game server, and a body of this size that is not a report.
async fn flood(fixture: &Fixture, attempt: u32, size: usize) -> anyhow::Result<()> {
    for kind in [ReportKind::Ready, ReportKind::Finished] {
        let subject = Report { session: SESSION.parse()?, attempt, kind }.to_string();
        for _ in 0..2 {
            fixture.context.publish(subject.clone(), vec![b'x'; size].into()).await?.await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_game_server_has_at_most_one_dead_letter_per_attempt_with_the_beginning_of_its_report() -> anyhow::Result<()>
{
    let fixture = Fixture::start().await?;
    let (_reacting, _deliveries) = fixture.react(|_| Err(Failure::Poison(anyhow::anyhow!("not a report"))));
    for attempt in [1, 2] {
        flood(&fixture, attempt, 20_000).await?;
    }
    fixture.settled().await?;
    let mut stream = fixture.context.get_stream(subject::DEAD).await?;
    let state = stream.info().await?.state.clone();
    assert_eq!(state.messages, 2);
    assert!(state.bytes < 5_000, "{} bytes", state.bytes);
    let dead_letter = fixture.dead_letter().await?.context("no dead letter")?;
    assert_eq!((dead_letter["body"].as_str().map(str::len), &dead_letter["length"]), (Some(1_024), &20_000.into()));
    Ok(())
}

#[tokio::test]
async fn a_retry_of_a_long_report_reads_the_whole_report_from_its_stream() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let (_reacting, mut deliveries) =
        fixture.react(|call| if call <= 4 { Err(Failure::Poison(anyhow::anyhow!("a mistake"))) } else { Ok(()) });
    flood(&fixture, 1, 20_000).await?;
    for _ in 0..4 {
        next(&mut deliveries).await?;
    }
    fixture.settled().await?;
    let client = fixture.context.client();
    svc::retry(&client, SESSION_REPORTS.name, 1).await?;
    assert_eq!(next(&mut deliveries).await?.body.len(), 20_000);

    fixture.context.get_stream(subject::REPORTS).await?.purge().await?;
    let error = svc::retry(&client, SESSION_REPORTS.name, 1).await.unwrap_err().to_string();
    assert!(error.contains("REPORTS has dropped message"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_message_that_needs_a_newer_build_is_redelivered_until_that_build_runs() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let (old, mut deliveries) = fixture.react(|_| Err(Failure::Newer(anyhow::anyhow!("event type Paused v1"))));
    fixture.report("{}").await?;
    assert_eq!(next(&mut deliveries).await?.delivered, 1);
    // The old build returns the message with a pause. It may receive the message several times before the new build
    // starts.
    assert_eq!(next(&mut deliveries).await?.delivered, 2);
    fixture.shutdown.cancel();
    old.await??;
    assert_eq!(fixture.dead_letter().await?, None);

    let fixture = Fixture { shutdown: Shutdown::new(), ..fixture };
    let (_new, mut deliveries) = fixture.react(|_| Ok(()));
    assert!(next(&mut deliveries).await?.delivered >= 3);
    fixture.settled().await?;
    assert_eq!(fixture.dead_letter().await?, None);
    Ok(())
}

#[tokio::test]
async fn a_message_with_ten_failed_deliveries_becomes_a_dead_letter() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let (_reacting, mut deliveries) = fixture.react(|_| Err(Failure::Retry(anyhow::anyhow!("still moving"))));
    fixture.report("{}").await?;
    for _ in 0..10 {
        for _ in 0..5 {
            assert_eq!(next(&mut deliveries).await?.delivered, 1);
        }
        assert_eq!(fixture.dead_letter().await?, None);
        // Do not wait for the regular redelivery, which comes after up to 32 s.
        fixture.redeliver().await?;
    }
    next(&mut deliveries).await?;
    fixture.settled().await?;
    let dead_letter = fixture.dead_letter().await?.context("no dead letter")?;
    assert_eq!(dead_letter["error"], "still moving");
    Ok(())
}

#[tokio::test]
async fn a_panic_of_the_handler_counts_as_a_failed_try() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let (_reacting, mut deliveries) = fixture.react(|call| if call <= 6 { panic!("call {call}") } else { Ok(()) });
    fixture.report("{}").await?;
    for _ in 0..5 {
        assert_eq!(next(&mut deliveries).await?.delivered, 1);
    }
    for _ in 0..2 {
        assert_eq!(next(&mut deliveries).await?.delivered, 2);
    }
    fixture.settled().await
}

/// A dependency is down, and an unstable connection causes many redeliveries of the held message.
#[tokio::test]
async fn redeliveries_during_an_outage_do_not_count_as_failed() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture.shorten_ack_wait().await?;
    let down = Arc::new(AtomicBool::new(true));
    let moved = Arc::new(AtomicU32::new(0));
    let outage = Arc::clone(&down);
    let handler = move |_| match outage.load(Ordering::SeqCst) {
        true => Err(Failure::Unavailable(anyhow::anyhow!("down"))),
        // After the outage, the held deliveries of the message conflict with each other.
        false if moved.fetch_add(1, Ordering::SeqCst) < 3 => Err(Failure::Retry(anyhow::anyhow!("moved"))),
        false => Ok(()),
    };
    let (_reacting, mut deliveries) = fixture.react_with_slots(40, handler);
    fixture.report("{}").await?;
    // More than the ten failed deliveries that would make a dead letter.
    while next(&mut deliveries).await?.delivered < 25 {}
    down.store(false, Ordering::SeqCst);
    fixture.settled().await?;
    assert_eq!(fixture.dead_letter().await?, None);
    Ok(())
}

#[tokio::test]
async fn no_more_messages_are_fetched_than_there_are_slots() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    for attempt in 1..=20 {
        fixture.context.publish(format!("report.x.{attempt}.ready"), "{}".into()).await?.await?;
    }
    let (_reacting, mut deliveries) = fixture.react(|_| Err(Failure::Unavailable(anyhow::anyhow!("down"))));
    // The four messages in the slots are held and retried.
    for _ in 0..12 {
        assert_eq!(next(&mut deliveries).await?.delivered, 1);
    }
    assert_eq!(fixture.consumer().await?.info().await?.num_ack_pending, 4);
    Ok(())
}

#[tokio::test]
async fn a_held_message_is_returned_on_shutdown_for_another_instance() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let (reacting, mut deliveries) = fixture.react(|_| Err(Failure::Unavailable(anyhow::anyhow!("down"))));
    fixture.report("{}").await?;
    next(&mut deliveries).await?;
    fixture.shutdown.cancel();
    timeout(DEADLINE, reacting).await???;
    let mut batch = fixture.consumer().await?.fetch().max_messages(1).expires(DEADLINE).messages().await?;
    let message = batch.next().await.context("the message is redelivered")?.map_err(anyhow::Error::from_boxed)?;
    assert_eq!(message.info().map_err(anyhow::Error::from_boxed)?.delivered, 2);
    Ok(())
}
