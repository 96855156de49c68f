//! Reacts to messages of a stream, through a durable consumer that the worker's instances share.
//!
//! A message is acknowledged after its effect is durable. It can therefore arrive more than once, and a handler must be
//! idempotent. An unavailable dependency does not count as a failed delivery: the reactor holds the message and reports
//! progress to the server. When all slots are in use, it fetches no more messages.
//!
//! A message that cannot be handled becomes a dead letter. The server's delivery count does not decide this, because
//! during an outage a message may be delivered any number of times. Instead, each instance counts the deliveries in
//! which all tries failed (`failed_deliveries.rs`). An operator can retry a dead letter when the cause is fixed
//! (`retry.rs`).
//!
//! A consumer that has stopped is recreated (`watchdog.rs`).

mod failed_deliveries;
mod retry;
mod watchdog;

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use async_nats::jetstream::{self, AckKind, consumer::PullConsumer, message::PublishMessage};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use garage_events::{
    crash::{self, Point},
    dead_letter::DeadLetter,
    event::{DecodeError, Event, Recorded},
    jetstream::{publish, setup},
    log::{AppendError, ReadError, StaleRead},
    reaction, subject,
};
use time::OffsetDateTime;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

use self::{failed_deliveries::FailedDeliveries, watchdog::Watchdog};
use crate::{Health, Shutdown};

/// After this many failed deliveries, the next failure makes the message a dead letter.
const MAX_FAILED_DELIVERIES: u32 = 10;

/// After this many deliveries without an acknowledgement, the message is assumed to kill the process each time. It then
/// becomes a dead letter without another try. An unstable connection causes about one redelivery every five seconds, so
/// this is 15 minutes of redeliveries.
const MAX_DELIVERIES: i64 = 180;

/// Tries per delivery, if each of them ends in [`Failure::Retry`].
const MAX_TRIES: u32 = 5;

/// Time-out of one try. It is several times as long as the slowest step of a handler may take. A try that runs longer
/// is assumed to wait for an answer that never comes.
const TRY_TIMEOUT: Duration = Duration::from_secs(120);

/// Interval between progress reports for a delivery in progress: two fit into [`setup::ACK_WAIT`], with one second to
/// spare.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Lifetime of one request for messages. If the server that has the request dies, no messages arrive until the request
/// expires. On shutdown, the worker waits for it to expire.
const PULL_LIFETIME: Duration = Duration::from_millis(500);

/// Pause after a failed fetch.
const FETCH_RETRY: Duration = Duration::from_millis(250);

/// Delay of the redelivery when a dead letter could not be stored.
const DEAD_LETTER_RETRY: Duration = Duration::from_secs(10);

/// A message to react to.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The sequence of the message in its stream.
    pub seq: u64,
    /// When the stream stored the message.
    pub time: OffsetDateTime,
    /// The subject under which it was published.
    pub subject: String,
    /// The payload as published.
    pub body: Bytes,
    /// How often the server has delivered the message, including this delivery. Starts at 1.
    pub delivered: i64,
}

impl Delivery {
    /// Decodes the message as an event of the log.
    ///
    /// # Errors
    /// [`Failure::Newer`], [`Failure::Poison`]
    pub fn event<E: Event>(&self) -> Result<Recorded<E>, Failure> {
        let recorded = Recorded::decode(self.seq, self.time, &self.body);
        recorded.map_err(|source| ReadError::Unreadable { seq: self.seq, source }.into())
    }
}

/// Why a reaction failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A dependency is unavailable. The reactor retries without a limit.
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
    /// A conflict or a similar problem. The next try may succeed.
    #[error("{0:#}")]
    Retry(anyhow::Error),
    /// Only a newer build understands the message. Such a build may already run, or be about to start. The message is
    /// redelivered for about three minutes, with growing pauses, before it becomes a dead letter.
    #[error("{0:#}")]
    Newer(anyhow::Error),
    /// No try can succeed. The message becomes a dead letter at once.
    #[error("{0:#}")]
    Poison(anyhow::Error),
}

/// What a reactor does with a delivery after a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStep {
    /// Keep the delivery, and try again after this pause.
    Hold(Duration),
    /// Return the message to the server, which redelivers it after this pause to any instance.
    Return(Duration),
    /// Store the message as a dead letter.
    DeadLetter,
}

impl Failure {
    /// The next step after a try ended with this failure. `tries` counts the tries of this delivery, including this
    /// one. `failed_deliveries` counts the failed deliveries of the message before this delivery.
    pub fn next_step(&self, failed_deliveries: u32, tries: u32) -> NextStep {
        // The pause grows from 1 to 32 s. All failed deliveries together take about three minutes.
        let return_message = NextStep::Return(Duration::from_millis(1_000 << failed_deliveries.min(5)));
        match self {
            Self::Poison(_) => NextStep::DeadLetter,
            Self::Unavailable(_) => NextStep::Hold(Duration::from_millis(100 << tries.clamp(1, 5))),
            Self::Newer(_) | Self::Retry(_) if failed_deliveries >= MAX_FAILED_DELIVERIES => NextStep::DeadLetter,
            Self::Newer(_) => return_message,
            Self::Retry(_) if tries >= MAX_TRIES => return_message,
            Self::Retry(_) => NextStep::Hold(Duration::from_millis(5 << tries)),
        }
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unavailable(_) => Self::Unavailable(error.into()),
            ReadError::Unreadable { source: DecodeError::Unknown { .. }, .. } => Self::Newer(error.into()),
            ReadError::Unreadable { source: DecodeError::Corrupt(_), .. } => Self::Poison(error.into()),
        }
    }
}

impl From<StaleRead> for Failure {
    fn from(error: StaleRead) -> Self {
        Self::Retry(error.into())
    }
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Conflict(_) => Self::Retry(error.into()),
            AppendError::Unavailable(_) | AppendError::Full(_) | AppendError::Busy(_) => {
                Self::Unavailable(error.into())
            }
            AppendError::Refused(_) => Self::Poison(error.into()),
        }
    }
}

impl From<reaction::Error> for Failure {
    fn from(error: reaction::Error) -> Self {
        match error {
            reaction::Error::Read(error) => error.into(),
            reaction::Error::StaleRead(error) => error.into(),
            reaction::Error::Append(error) => error.into(),
        }
    }
}

/// Reacts to a consumer's messages, at most `concurrency` at a time. After `shutdown` it finishes the deliveries in
/// progress. It reports in `health` whether messages can be fetched. Spawn it as a long-running task.
///
/// # Errors
/// When the endpoint for retrying dead letters cannot be opened.
pub async fn react<F, R>(
    context: jetstream::Context,
    consumer: setup::Consumer,
    concurrency: usize,
    health: Health,
    shutdown: Shutdown,
    handler: F,
) -> anyhow::Result<()>
where
    F: Fn(Delivery) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<(), Failure>> + Send,
{
    register(consumer.name);
    let retrying = retry::serve(&context, consumer, shutdown.clone(), handler.clone()).await?;
    let slots = Arc::new(Semaphore::new(concurrency));
    let mut watchdog = Watchdog::new(context.clone(), consumer);
    let failed_deliveries = FailedDeliveries::default();
    let reactor =
        Reactor { context, consumer, slots: Arc::clone(&slots), failed_deliveries, health, shutdown, handler };
    // Deliveries in progress run in tasks of their own and continue when this future ends.
    let reacting = async {
        while !reactor.shutdown.is_cancelled() {
            if let Err(error) = reactor.fetch(&mut watchdog).await {
                tracing::warn!(consumer = consumer.name, %error, "cannot fetch messages; will retry");
                reactor.health.down(consumer.name, error.to_string());
                watchdog.repair(&reactor.shutdown).await;
                reactor.shutdown.run_until_cancelled(sleep(FETCH_RETRY)).await;
            }
        }
        Ok(())
    };
    let ended = tokio::try_join!(retrying, reacting);
    // When all slots are free, no delivery is in progress.
    let _ = slots.acquire_many(u32::try_from(concurrency).unwrap_or(u32::MAX)).await;
    ended.map(drop)
}

/// Creates the metrics of a consumer, so that its first dead letter is an increase.
fn register(consumer: &'static str) {
    for outcome in ["done", "retry", "held", "newer", "dead", "retried", "still-dead"] {
        metrics::counter!("garage_reactions_total", "consumer" => consumer, "outcome" => outcome).increment(0);
    }
    for reason in ["missing", "silent", "leaderless"] {
        metrics::counter!("garage_consumers_made_again_total", "consumer" => consumer, "reason" => reason).increment(0);
    }
    drop(metrics::histogram!("garage_reaction_seconds", "consumer" => consumer));
}

/// The reactor of one instance.
struct Reactor<F> {
    context: jetstream::Context,
    consumer: setup::Consumer,
    /// One permit per delivery that may be in progress.
    slots: Arc<Semaphore>,
    failed_deliveries: FailedDeliveries,
    health: Health,
    shutdown: Shutdown,
    handler: F,
}

impl<F, R> Reactor<F>
where
    F: Fn(Delivery) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<(), Failure>> + Send,
{
    /// Fetches messages and starts reactions, until `shutdown` or until a fetch fails.
    ///
    /// A request to the server is never abandoned before it expires: the messages that the server sends for it would
    /// reach another instance only after their ack_wait.
    async fn fetch(&self, watchdog: &mut Watchdog) -> Result<(), async_nats::Error> {
        let (name, shutdown) = (self.consumer.name, &self.shutdown);
        let stream = self.context.get_stream_no_info(self.consumer.stream).await?;
        let Some(pull) = shutdown.run_until_cancelled(stream.get_consumer(name)).await else { return Ok(()) };
        let pull: PullConsumer = pull?;
        loop {
            // Fetch only as many messages as there are free slots, so that each reaction starts at once. The ack_wait
            // of a message in a buffer would expire.
            let slot = shutdown.run_until_cancelled(Arc::clone(&self.slots).acquire_owned()).await;
            let Some(mut free) = slot.filter(|_| !shutdown.is_cancelled()).transpose()? else { return Ok(()) };
            let more = u32::try_from(self.slots.available_permits()).unwrap_or(u32::MAX);
            if let Ok(more) = Arc::clone(&self.slots).try_acquire_many_owned(more) {
                free.merge(more);
            }
            let mut batch = pull.batch().max_messages(free.num_permits()).expires(PULL_LIFETIME).messages().await?;
            let mut received = false;
            while let Some(message) = batch.next().await {
                let message = message?;
                received = true;
                // Never `None`: the request asked for as many messages as there are permits.
                let Some(slot) = free.split(1) else { break };
                self.start(message, slot);
            }
            drop(free);
            let checking = shutdown.run_until_cancelled(watchdog.after_request(received));
            let Some(checked) = checking.await else { return Ok(()) };
            checked?;
            if watchdog.is_working() {
                self.health.up(name);
            }
        }
    }

    fn start(&self, message: jetstream::Message, slot: OwnedSemaphorePermit) {
        let reaction = Reaction {
            context: self.context.clone(),
            consumer: self.consumer,
            message,
            failed_deliveries: self.failed_deliveries.clone(),
            shutdown: self.shutdown.clone(),
            began: Instant::now(),
        };
        let handler = self.handler.clone();
        tokio::spawn(async move {
            reaction.run(handler).await;
            drop(slot);
        });
    }
}

/// Calls the handler once. A panic counts as a failure, so that it does not affect other messages.
async fn attempt<F, R>(handler: &F, delivery: &Delivery) -> Result<(), Failure>
where
    F: Fn(Delivery) -> R,
    R: Future<Output = Result<(), Failure>>,
{
    let handled = AssertUnwindSafe(async { handler(delivery.clone()).await }).catch_unwind();
    match timeout(TRY_TIMEOUT, handled).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Failure::Retry(anyhow::anyhow!("the handler panicked; see the log of this process"))),
        Err(_) => Err(Failure::Unavailable(anyhow::anyhow!("the handler timed out after {} s", TRY_TIMEOUT.as_secs()))),
    }
}

/// One delivery in progress.
struct Reaction {
    context: jetstream::Context,
    consumer: setup::Consumer,
    message: jetstream::Message,
    failed_deliveries: FailedDeliveries,
    shutdown: Shutdown,
    /// When the message was delivered.
    began: Instant,
}

impl Reaction {
    /// Reacts, and meanwhile reports progress to the server so that it does not redeliver the message.
    async fn run<F, R>(self, handler: F)
    where
        F: Fn(Delivery) -> R,
        R: Future<Output = Result<(), Failure>>,
    {
        let progress = async {
            loop {
                sleep(PROGRESS_INTERVAL).await;
                self.send_ack(AckKind::Progress).await;
            }
        };
        tokio::select! {
            () = self.react(handler) => {}
            () = progress => {}
        }
    }

    async fn react<F, R>(&self, handler: F)
    where
        F: Fn(Delivery) -> R,
        R: Future<Output = Result<(), Failure>>,
    {
        let name = self.consumer.name;
        let delivery = match self.message.info() {
            Ok(info) => Delivery {
                seq: info.stream_sequence,
                time: info.published,
                subject: self.message.subject.to_string(),
                body: self.message.payload.clone(),
                delivered: info.delivered,
            },
            Err(error) => {
                tracing::error!(consumer = name, %error, "cannot read the stream sequence of a delivery; ignoring it");
                return;
            }
        };
        if delivery.delivered > MAX_DELIVERIES {
            let reason = format!("delivered {} times and never acknowledged", delivery.delivered);
            return self.dead_letter(&delivery, &reason).await;
        }
        let mut tries = 0;
        loop {
            let failure = match attempt(&handler, &delivery).await {
                Ok(()) => {
                    self.failed_deliveries.forget(delivery.seq);
                    metrics::counter!("garage_reactions_total", "consumer" => name, "outcome" => "done").increment(1);
                    return self.finish(AckKind::Ack).await;
                }
                Err(failure) => failure,
            };
            tries += 1;
            let next_step = failure.next_step(self.failed_deliveries.so_far(delivery.seq), tries);
            self.record(&delivery, &failure, next_step);
            match next_step {
                NextStep::DeadLetter => return self.dead_letter(&delivery, &failure.to_string()).await,
                NextStep::Return(pause) => {
                    self.failed_deliveries.count(delivery.seq);
                    return self.send_ack(AckKind::Nak(Some(pause))).await;
                }
                NextStep::Hold(pause) => tokio::select! {
                    // Delay the redelivery until this instance's last request for messages has expired. Otherwise that
                    // request would fetch the message again.
                    () = self.shutdown.cancelled(), if matches!(failure, Failure::Unavailable(_)) => {
                        return self.send_ack(AckKind::Nak(Some(PULL_LIFETIME))).await;
                    }
                    () = sleep(pause) => {}
                },
            }
        }
    }

    /// Logs and counts a failed try.
    fn record(&self, delivery: &Delivery, failure: &Failure, next_step: NextStep) {
        let (name, seq) = (self.consumer.name, delivery.seq);
        let outcome = match (failure, next_step) {
            // `dead_letter` logs and counts these failures.
            (Failure::Poison(_), _) | (_, NextStep::DeadLetter) => return,
            (Failure::Unavailable(error), _) => {
                tracing::warn!(consumer = name, event.seq = seq, "waiting for a dependency: {error:#}");
                "held"
            }
            (Failure::Newer(error), _) => {
                tracing::error!(
                    consumer = name,
                    event.seq = seq,
                    "only a newer build can handle this message: {error:#}"
                );
                "newer"
            }
            (Failure::Retry(error), NextStep::Return(_)) => {
                tracing::warn!(consumer = name, event.seq = seq, "delivery failed; it will be redelivered: {error:#}");
                "retry"
            }
            (Failure::Retry(_), NextStep::Hold(_)) => "retry",
        };
        metrics::counter!("garage_reactions_total", "consumer" => name, "outcome" => outcome).increment(1);
    }

    async fn send_ack(&self, kind: AckKind) {
        if let Err(error) = self.message.ack_with(kind).await {
            // The server will redeliver the message, and the handler is idempotent.
            tracing::debug!(consumer = self.consumer.name, %error, "acknowledgement not sent");
        }
    }

    /// Acknowledges or terminates the message, so that the server does not redeliver it.
    async fn finish(&self, kind: AckKind) {
        let (name, took) = (self.consumer.name, self.began.elapsed());
        metrics::histogram!("garage_reaction_seconds", "consumer" => name).record(took);
        crash::effect(self.consumer.acknowledged, self.send_ack(kind)).await;
    }

    /// Stores the message with its error as a dead letter, where an operator can find it.
    async fn dead_letter(&self, delivery: &Delivery, reason: &str) {
        let name = self.consumer.name;
        metrics::counter!("garage_reactions_total", "consumer" => name, "outcome" => "dead").increment(1);
        let dead_letter = DeadLetter {
            error: String::new(),
            consumer: name.into(),
            stream: self.consumer.stream.into(),
            seq: delivery.seq,
            time: delivery.time,
            subject: delivery.subject.clone(),
            body: String::new(),
            raw: None,
            length: None,
        };
        let dead_letter = dead_letter.with_error(reason).with_body(&delivery.body);
        tracing::error!(
            consumer = name,
            event.seq = delivery.seq,
            subject = delivery.subject,
            reason = dead_letter.error,
            "message becomes a dead letter"
        );
        let sent = async {
            let mut message = PublishMessage::build().payload(serde_json::to_vec(&dead_letter)?.into());
            if let Some(id) = dead_letter.message_id() {
                message = message.message_id(id);
            }
            anyhow::Ok(publish(&self.context, Point::DeadLetterStored, subject::dead(name), message).await?)
        };
        match sent.await {
            Ok(_) => {
                self.failed_deliveries.forget(delivery.seq);
                self.finish(AckKind::Term).await;
            }
            Err(error) => {
                tracing::warn!(consumer = name, %error, "dead letter not stored; the message will be redelivered");
                self.send_ack(AckKind::Nak(Some(DEAD_LETTER_RETRY))).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_retried_then_redelivered_and_finally_becomes_a_dead_letter() {
        let millis = Duration::from_millis;
        let error = || anyhow::anyhow!("failed");
        let retry = Failure::Retry(error());
        let steps = [1, 4, 5].map(|tries| retry.next_step(0, tries));
        assert_eq!(steps, [NextStep::Hold(millis(10)), NextStep::Hold(millis(80)), NextStep::Return(millis(1_000))]);
        assert_eq!(retry.next_step(MAX_FAILED_DELIVERIES - 1, MAX_TRIES), NextStep::Return(millis(32_000)));
        assert_eq!(retry.next_step(MAX_FAILED_DELIVERIES, 1), NextStep::DeadLetter);

        let newer = Failure::Newer(error());
        assert_eq!(newer.next_step(0, 1), NextStep::Return(millis(1_000)));
        assert_eq!(newer.next_step(MAX_FAILED_DELIVERIES, 1), NextStep::DeadLetter);
        assert_eq!(Failure::Poison(error()).next_step(0, 1), NextStep::DeadLetter);

        // An outage never makes a dead letter, however many tries and failed deliveries there were.
        let down = Failure::Unavailable(error());
        let steps = [1, 2, 100].map(|tries| down.next_step(2 * MAX_FAILED_DELIVERIES, tries));
        assert_eq!(steps, [NextStep::Hold(millis(200)), NextStep::Hold(millis(400)), NextStep::Hold(millis(3_200))]);
    }
}
