//! Detects that a consumer has stopped, and recreates it.
//!
//! A consumer can stop in three ways. A deleted consumer is reported as missing. A consumer whose leader is permanently
//! lost does not answer. A consumer that has silently stopped answers without an error, but delivers nothing.
//!
//! Its worker recreates the consumer in each case. The new one starts after the acknowledgement floor that this
//! instance saw last; all messages up to the floor are acknowledged. So no message is skipped, and reactions to
//! redelivered messages find their work already done. An instance that has never seen the consumer starts it at the
//! beginning of the stream, which only takes longer.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::Info,
    context::ConsumerInfoErrorKind,
    stream::{ConsumerErrorKind, Stream},
};
use garage_events::{
    crash::{self, Point},
    jetstream::{any, backoff::Backoff, setup},
};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::Shutdown;

/// Interval between checks. Each check costs the consumer's leader one request.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// After this many silent checks in a row, the consumer counts as stopped. A check is silent if there were messages,
/// but none were delivered. A working consumer reaches this number only while its server is overloaded.
const MAX_SILENT_CHECKS: u32 = 3;

/// How long a consumer may be unanswered, while its stream has a leader, before it counts as leaderless. In a cluster
/// an election takes less time.
const LEADERLESS_AFTER: Duration = Duration::from_secs(10);

/// How long a consumer must be missing before it is recreated. nats-server reports a consumer as missing shortly before
/// it removes the files, and it would then remove the files of the new consumer too. The time grows if the consumer
/// does not last.
const BACKOFF: Backoff =
    Backoff::new(Duration::from_secs(1), Duration::from_secs(32), /* forget after */ Duration::from_secs(120));

/// The state of a consumer, as this instance knows it.
#[derive(Debug)]
pub(super) struct Watchdog {
    context: jetstream::Context,
    consumer: setup::Consumer,
    /// `None` if a check is due.
    last_check: Option<Instant>,
    /// The number of deliveries at the last check.
    delivered: Option<u64>,
    /// Number of silent checks in a row.
    silent_checks: u32,
    unanswered_since: Option<Instant>,
    missing_since: Option<Instant>,
    /// How long the consumer must be missing before this instance recreates it.
    backoff: Backoff,
    /// Why this instance removed the consumer. `None` again when the consumer is recreated.
    removal_reason: Option<&'static str>,
    floor: Option<Floor>,
    /// Whether the consumer has shown that it works since the last [`repair`](Self::repair).
    working: bool,
}

/// The acknowledgement floor: all messages up to this one are acknowledged.
#[derive(Debug, Clone, Copy)]
struct Floor {
    /// Sequence in the stream.
    seq: u64,
    /// Creation time of the consumer that reported the floor. If the stream is younger, it was recreated, and the floor
    /// does not apply to it.
    consumer_created: OffsetDateTime,
}

/// Why a consumer needs a repair.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// It exists but does not work. The reason is a label of the metric.
    Broken(&'static str),
    /// It does not exist.
    Missing,
}

/// The error for a consumer that has silently stopped.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("there are messages, but none are delivered; the consumer will be recreated")]
struct Silent;

impl Watchdog {
    pub(super) fn new(context: jetstream::Context, consumer: setup::Consumer) -> Self {
        Self {
            context,
            consumer,
            last_check: None,
            delivered: None,
            silent_checks: 0,
            unanswered_since: None,
            missing_since: None,
            backoff: BACKOFF,
            removal_reason: None,
            floor: None,
            working: false,
        }
    }

    /// Whether the consumer is known to work. False after a repair, until the next sign that it works.
    pub(super) fn is_working(&self) -> bool {
        self.working
    }

    /// Call this after each request for messages. `received` says whether the request returned any. From time to time
    /// it also checks the consumer.
    ///
    /// # Errors
    /// When the consumer does not answer, or has silently stopped.
    pub(super) async fn after_request(&mut self, received: bool) -> Result<(), async_nats::Error> {
        if received {
            self.silent_checks = 0;
            self.working = true;
        }
        if self.last_check.is_some_and(|last_check| last_check.elapsed() < CHECK_INTERVAL) {
            return Ok(());
        }
        let stream = self.context.get_stream_no_info(self.consumer.stream).await?;
        let info = stream.consumer_info(self.consumer.name).await?;
        self.last_check = Some(Instant::now());
        self.record(&info);
        if received || self.may_be_silent(&stream, &info).await? {
            self.silent_checks = 0;
            self.working = true;
            return Ok(());
        }
        self.silent_checks += 1;
        if self.silent_checks >= MAX_SILENT_CHECKS { Err(Silent.into()) } else { Ok(()) }
    }

    fn record(&mut self, info: &Info) {
        (self.unanswered_since, self.missing_since) = (None, None);
        self.floor = Some(Floor { seq: info.ack_floor.stream_sequence, consumer_created: info.created });
    }

    /// Whether even a working consumer could have delivered nothing to this instance.
    async fn may_be_silent(&mut self, stream: &Stream<()>, info: &Info) -> Result<bool, async_nats::Error> {
        let delivered = info.delivered.consumer_sequence;
        let delivered_elsewhere = self.delivered.replace(delivered).is_some_and(|before| before != delivered);
        let pending = i64::try_from(info.num_ack_pending).unwrap_or(i64::MAX);
        let full = info.config.max_ack_pending > 0 && pending >= info.config.max_ack_pending;
        // Ask the stream whether there are messages: the count of a broken consumer may be wrong.
        Ok(delivered_elsewhere
            || full
            || !any(stream, &self.consumer.filters(), info.delivered.stream_sequence + 1).await?)
    }

    /// Call this after each failed fetch. It finds out whether the consumer is the cause, and removes or recreates the
    /// consumer if so. A repair may take several calls.
    pub(super) async fn repair(&mut self, shutdown: &Shutdown) {
        let name = self.consumer.name;
        let repairing = async {
            match self.fault().await? {
                None => {}
                Some(Fault::Broken(reason)) => {
                    tracing::warn!(consumer = name, reason, "removing the consumer to recreate it");
                    self.removal_reason = Some(reason);
                    self.remove().await?;
                }
                Some(Fault::Missing) => {
                    let (after, reason) = (self.recreate().await?, self.removal_reason.take().unwrap_or("missing"));
                    metrics::counter!("garage_consumers_made_again_total", "consumer" => name, "reason" => reason)
                        .increment(1);
                    tracing::warn!(consumer = name, reason, after, "consumer recreated");
                }
            }
            anyhow::Ok(())
        };
        if let Some(Err(error)) = shutdown.run_until_cancelled(repairing).await {
            tracing::warn!(consumer = name, "cannot check or repair the consumer: {error:#}");
        }
        (self.last_check, self.delivered, self.silent_checks, self.working) = (None, None, 0, false);
    }

    /// Why the consumer needs a repair. `None` if the consumer is not known to be the cause.
    async fn fault(&mut self) -> anyhow::Result<Option<Fault>> {
        let stream = self.context.get_stream_no_info(self.consumer.stream).await?;
        match stream.consumer_info(self.consumer.name).await {
            Ok(info) => {
                // Another instance may have recreated the consumer meanwhile. Then the silent checks were about the old
                // consumer.
                let same_consumer = self.floor.is_some_and(|floor| floor.consumer_created == info.created);
                self.record(&info);
                Ok((self.silent_checks >= MAX_SILENT_CHECKS && same_consumer).then_some(Fault::Broken("silent")))
            }
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {
                self.unanswered_since = None;
                let since = self.missing_since.get_or_insert_with(Instant::now);
                Ok((since.elapsed() >= self.backoff.delay(Instant::now())).then_some(Fault::Missing))
            }
            Err(_) => {
                self.missing_since = None;
                if let Err(error) = stream.get_info().await {
                    self.unanswered_since = None;
                    return Err(anyhow::Error::from(error).context("the stream does not answer"));
                }
                let since = self.unanswered_since.get_or_insert_with(Instant::now);
                Ok((since.elapsed() >= LEADERLESS_AFTER).then_some(Fault::Broken("leaderless")))
            }
        }
    }

    async fn remove(&mut self) -> anyhow::Result<()> {
        self.unanswered_since = None;
        let stream = self.context.get_stream_no_info(self.consumer.stream).await?;
        // If the consumer's only server is down, no server confirms the deletion. The next check shows the outcome.
        match stream.delete_consumer(self.consumer.name).await {
            Err(error) if error.kind() != ConsumerErrorKind::TimedOut => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Recreates the consumer, and returns the sequence after which it starts.
    async fn recreate(&mut self) -> anyhow::Result<u64> {
        let stream_created = self.context.get_stream(self.consumer.stream).await?.cached_info().created;
        let floor = self.floor.filter(|floor| stream_created <= floor.consumer_created);
        let after = floor.map_or(0, |floor| floor.seq);
        self.backoff.take(Instant::now());
        crash::effect(Point::ConsumerMade, setup::create_after(&self.context, self.consumer, after)).await?;
        self.missing_since = None;
        Ok(after)
    }
}
