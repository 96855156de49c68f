//! Noticing that a consumer has stopped, and making it again.
//!
//! A consumer that was deleted says so, one whose leader is gone for good does not answer, and one that silently stopped
//! answers that all is well. Each is made again by the worker whose it is, behind the last message up to which, as far
//! as this instance knows, all were acknowledged: nothing is lost by that, and what comes twice is found done. An
//! instance that has never seen it begins at the stream's beginning, which only takes longer.

use std::time::Duration;

use async_nats::jetstream::{
    self,
    consumer::Info,
    context::ConsumerInfoErrorKind,
    stream::{ConsumerErrorKind, Stream},
};
use garage_events::{
    crash::{self, Point},
    jetstream::{any, setup},
};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::Shutdown;

/// Between two looks at the consumer, of which each costs its leader one answer.
const LOOK: Duration = Duration::from_secs(2);

/// Looks in a row at which there was something and nothing of it came: so much happens to one that works only while its
/// server is overwhelmed.
const LOOKS: u32 = 3;

/// How long nobody answers for a consumer whose stream has a leader. In a cluster another one is elected in less.
const LEADERLESS: Duration = Duration::from_secs(10);

/// How long one has been gone that is made again. nats-server says so a little before it has removed its files: it would
/// take those of the new one with them.
const GONE: Duration = Duration::from_secs(1);

/// What is known of a consumer.
#[derive(Debug)]
pub(super) struct Watchdog {
    context: jetstream::Context,
    consumer: setup::Consumer,
    /// When the last look was; none if one is due.
    looked: Option<Instant>,
    /// How many deliveries there had been by then.
    delivered: Option<u64>,
    /// Looks in a row at which it brought nothing of what there was.
    silent: u32,
    /// Since when nobody has answered for it.
    unanswered: Option<Instant>,
    /// Since when it has not been there.
    missing: Option<Instant>,
    /// Why it was removed from here, until it is made again.
    removed: Option<&'static str>,
    floor: Option<Floor>,
    /// Whether it has shown that it works since it was last found not to.
    works: bool,
}

/// Up to where all was acknowledged.
#[derive(Debug, Clone, Copy)]
struct Floor {
    /// Its sequence in the stream.
    seq: u64,
    /// When the consumer was made that said so. A stream that is younger is another.
    made: OffsetDateTime,
}

/// What is wrong with a consumer.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// It is there and of no use; in one word.
    Useless(&'static str),
    /// It is not there.
    Gone,
}

/// The consumer brings nothing of what there is.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("there are messages, but nothing of them comes here; it is made again")]
struct Silent;

impl Watchdog {
    pub(super) fn new(context: jetstream::Context, consumer: setup::Consumer) -> Self {
        Self {
            context,
            consumer,
            looked: None,
            delivered: None,
            silent: 0,
            unanswered: None,
            missing: None,
            removed: None,
            floor: None,
            works: false,
        }
    }

    /// Whether there is no reason to think that the consumer has stopped.
    pub(super) fn works(&self) -> bool {
        self.works
    }

    /// To be told of each request for messages that has come to its end: looks at the consumer from time to time, and
    /// judges it by whether the request brought anything.
    ///
    /// # Errors
    /// When the consumer cannot be asked, or has silently stopped.
    pub(super) async fn after_request(&mut self, brought: bool) -> Result<(), async_nats::Error> {
        if brought {
            self.silent = 0;
            self.works = true;
        }
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return Ok(());
        }
        let stream = self.context.get_stream_no_info(self.consumer.stream).await?;
        let info = stream.consumer_info(self.consumer.name).await?;
        self.looked = Some(Instant::now());
        self.note(&info);
        if brought || self.goes_on(&stream, &info).await? {
            self.silent = 0;
            self.works = true;
            return Ok(());
        }
        self.silent += 1;
        if self.silent >= LOOKS { Err(Silent.into()) } else { Ok(()) }
    }

    fn note(&mut self, info: &Info) {
        (self.unanswered, self.missing) = (None, None);
        self.floor = Some(Floor { seq: info.ack_floor.stream_sequence, made: info.created });
    }

    /// Whether a request may rightly have brought nothing.
    async fn goes_on(&mut self, stream: &Stream<()>, info: &Info) -> Result<bool, async_nats::Error> {
        let delivered = info.delivered.consumer_sequence;
        // To another instance.
        let moved = self.delivered.replace(delivered).is_some_and(|before| before != delivered);
        let held = i64::try_from(info.num_ack_pending).unwrap_or(i64::MAX);
        let full = info.config.max_ack_pending > 0 && held >= info.config.max_ack_pending;
        // It is the stream that is asked: the consumer's own count may be what is wrong with it.
        Ok(moved || full || !any(stream, &self.consumer.filters(), info.delivered.stream_sequence + 1).await?)
    }

    /// To be called when messages cannot be fetched, again and again: finds out whether it is the consumer's fault, and
    /// does what is to be done about it.
    pub(super) async fn mend(&mut self, shutdown: &Shutdown) {
        let name = self.consumer.name;
        let mending = async {
            match self.fault().await? {
                None => {}
                Some(Fault::Useless(reason)) => {
                    tracing::warn!(consumer = name, reason, "consumer removed, to be made again");
                    self.removed = Some(reason);
                    self.remove().await?;
                }
                Some(Fault::Gone) => {
                    let (after, reason) = (self.make().await?, self.removed.take().unwrap_or("missing"));
                    metrics::counter!("garage_consumers_made_again_total", "consumer" => name, "reason" => reason)
                        .increment(1);
                    tracing::warn!(consumer = name, reason, after, "consumer made again");
                }
            }
            anyhow::Ok(())
        };
        if let Some(Err(error)) = shutdown.run_until_cancelled(mending).await {
            tracing::warn!(consumer = name, "cannot look after the consumer: {error:#}");
        }
        (self.looked, self.delivered, self.silent, self.works) = (None, None, 0, false);
    }

    /// What is wrong with the consumer; nothing when it is not known to be its fault.
    async fn fault(&mut self) -> anyhow::Result<Option<Fault>> {
        let stream = self.context.get_stream_no_info(self.consumer.stream).await?;
        match stream.consumer_info(self.consumer.name).await {
            Ok(info) => {
                // Not one that another instance has made again meanwhile.
                let judged = self.floor.is_some_and(|floor| floor.made == info.created);
                self.note(&info);
                Ok((self.silent >= LOOKS && judged).then_some(Fault::Useless("silent")))
            }
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => {
                self.unanswered = None;
                let since = self.missing.get_or_insert_with(Instant::now);
                Ok((since.elapsed() >= GONE).then_some(Fault::Gone))
            }
            Err(_) => {
                self.missing = None;
                if let Err(error) = stream.get_info().await {
                    self.unanswered = None;
                    return Err(anyhow::Error::from(error).context("the stream does not answer"));
                }
                let since = self.unanswered.get_or_insert_with(Instant::now);
                Ok((since.elapsed() >= LEADERLESS).then_some(Fault::Useless("leaderless")))
            }
        }
    }

    async fn remove(&mut self) -> anyhow::Result<()> {
        self.unanswered = None;
        let stream = self.context.get_stream_no_info(self.consumer.stream).await?;
        // Of one whose only server is down nobody confirms the end. The next look finds out.
        match stream.delete_consumer(self.consumer.name).await {
            Err(error) if error.kind() != ConsumerErrorKind::TimedOut => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Makes it, and tells behind which sequence it begins.
    async fn make(&mut self) -> anyhow::Result<u64> {
        let created = self.context.get_stream(self.consumer.stream).await?.cached_info().created;
        let floor = self.floor.filter(|floor| created <= floor.made);
        let after = floor.map_or(0, |floor| floor.seq);
        crash::effect(Point::ConsumerMade, setup::make_after(&self.context, self.consumer, after)).await?;
        self.missing = None;
        Ok(after)
    }
}
