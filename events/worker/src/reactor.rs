//! Reacting to messages of a stream, through a durable consumer that the worker's instances share.
//!
//! A message is acknowledged after its effect is durable, so that it may come more than once: a handler must be
//! idempotent. A dependency that is down is no failed delivery: the message is held, with progress reported, and as all
//! places fill, nothing more is fetched.
//!
//! A message that cannot be handled becomes a dead letter. How often it was delivered says little of that: in an outage
//! it may come any number of times. So each instance counts the deliveries whose tries were all in vain (`vain.rs`). An
//! operator may have its handler try it again once the cause is mended (`retry.rs`).
//!
//! A consumer that has stopped is made again (`watchdog.rs`).

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
    log::{AppendError, Behind, ReadError},
    reaction, subject,
};
use time::OffsetDateTime;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};

use self::{failed_deliveries::FailedDeliveries, watchdog::Watchdog};
use crate::{Health, Shutdown};

/// Deliveries in vain after which a message that still cannot be handled goes to the dead letters.
const DELIVERIES: u32 = 10;

/// Deliveries after which a message is taken for one that the process dies of each time, so that it cannot even be tried
/// once more for its error. A connection that comes and goes brings about one in five seconds, and this is a quarter of
/// an hour of them.
const DEADLY: i64 = 180;

/// Tries that one delivery gets, when each ends in a conflict or the like.
const TRIES: u32 = 5;

/// The longest that one try may take, which is several times what its slowest step may: longer, and something that it
/// awaits will never answer.
const TRY: Duration = Duration::from_secs(120);

/// How often the server hears that a delivery that is held is not forgotten: twice within [`setup::ACK_WAIT`], and a
/// second to spare.
const PROGRESS: Duration = Duration::from_secs(2);

/// How long one request for messages stands. When the server that holds it dies, nothing comes until it is over; and a
/// worker that is told to stop waits for its end.
const PULL: Duration = Duration::from_millis(500);

/// Between two attempts to fetch, when one has failed.
const AGAIN: Duration = Duration::from_millis(250);

/// After how long a message comes again whose dead letter could not be stored.
const DEAD_LETTER_RETRY: Duration = Duration::from_secs(10);

/// A message to react to.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Its sequence in its stream.
    pub seq: u64,
    /// Its stream's timestamp.
    pub time: OffsetDateTime,
    /// Its subject.
    pub subject: String,
    /// Its body.
    pub body: Bytes,
    /// How often it has come, this time included.
    pub delivered: i64,
}

impl Delivery {
    /// Reads it as an event of the log.
    ///
    /// # Errors
    /// [`Failure::Newer`], [`Failure::Poison`]
    pub fn event<E: Event>(&self) -> Result<Recorded<E>, Failure> {
        let recorded = Recorded::decode(self.seq, self.time, &self.body);
        recorded.map_err(|source| ReadError::Unreadable { seq: self.seq, source }.into())
    }
}

/// Why a reaction did not come about.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something the reaction needs is down; it is tried for as long as that takes.
    #[error("{0:#}")]
    Unavailable(anyhow::Error),
    /// It may do next time.
    #[error("{0:#}")]
    Retry(anyhow::Error),
    /// It takes a newer build, which may be running beside this one, or about to. It is offered again for some minutes,
    /// more and more seldom, before it is put aside.
    #[error("{0:#}")]
    Newer(anyhow::Error),
    /// It never will.
    #[error("{0:#}")]
    Poison(anyhow::Error),
}

/// What a reactor does with a delivery whose handler has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It keeps it, and tries again after this time.
    Hold(Duration),
    /// It gives it back: it comes again after this time, to any instance.
    Return(Duration),
    /// It puts it aside, with the dead letters.
    DeadLetter,
}

impl Failure {
    /// What follows when this is how a try ended, the `tries`-th of a delivery of a message of which so many deliveries were
    /// in vain before.
    pub fn then(&self, failed_deliveries: u32, tries: u32) -> Then {
        // After 1 to 32 s: all [`DELIVERIES`] take three minutes.
        let again_later = Then::Return(Duration::from_millis(1_000 << failed_deliveries.min(5)));
        match self {
            Self::Poison(_) => Then::DeadLetter,
            Self::Unavailable(_) => Then::Hold(Duration::from_millis(100 << tries.clamp(1, 5))),
            Self::Newer(_) | Self::Retry(_) if failed_deliveries >= DELIVERIES => Then::DeadLetter,
            Self::Newer(_) => again_later,
            Self::Retry(_) if tries >= TRIES => again_later,
            Self::Retry(_) => Then::Hold(Duration::from_millis(5 << tries)),
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

impl From<Behind> for Failure {
    fn from(error: Behind) -> Self {
        Self::Retry(error.into())
    }
}

impl From<AppendError> for Failure {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Conflict(_) => Self::Retry(error.into()),
            AppendError::Unavailable(_) => Self::Unavailable(error.into()),
            AppendError::Refused(_) => Self::Poison(error.into()),
        }
    }
}

impl From<reaction::Error> for Failure {
    fn from(error: reaction::Error) -> Self {
        match error {
            reaction::Error::Read(error) => error.into(),
            reaction::Error::Behind(error) => error.into(),
            reaction::Error::Append(error) => error.into(),
        }
    }
}

/// Reacts to a consumer's messages, at most `concurrency` at a time, until `shutdown`; then finishes what it holds.
/// `health` says whether there are messages to be had of the consumer. To be spawned as a long task.
///
/// # Errors
/// When nobody can ask for dead letters to be handled again.
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
    let retrying = retry::serve(&context, consumer, shutdown.clone(), handler.clone()).await?;
    let places = Arc::new(Semaphore::new(concurrency));
    let mut watchdog = Watchdog::new(context.clone(), consumer);
    let reactor = Reactor {
        context,
        consumer,
        places: Arc::clone(&places),
        failed_deliveries: FailedDeliveries::default(),
        health,
        shutdown,
        handler,
    };
    // What is in flight goes on when this ends.
    let reacting = async {
        while !reactor.shutdown.is_cancelled() {
            if let Err(error) = reactor.fetch(&mut watchdog).await {
                tracing::warn!(consumer = consumer.name, %error, "messages cannot be fetched; trying again");
                reactor.health.down(consumer.name, error.to_string());
                watchdog.mend(&reactor.shutdown).await;
                reactor.shutdown.run_until_cancelled(sleep(AGAIN)).await;
            }
        }
        Ok(())
    };
    let ended = tokio::try_join!(retrying, reacting);
    // All places free means that nothing is in flight.
    let _ = places.acquire_many(u32::try_from(concurrency).unwrap_or(u32::MAX)).await;
    ended.map(drop)
}

/// One instance's part in a consumer.
struct Reactor<F> {
    context: jetstream::Context,
    consumer: setup::Consumer,
    places: Arc<Semaphore>,
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
    /// Fetches and begins to react, until `shutdown` or until fetching fails.
    ///
    /// A request that the server has is waited for to its end: what it sends us until then is in nobody else's hands,
    /// and would come to another instance only when its ack_wait is over.
    async fn fetch(&self, watchdog: &mut Watchdog) -> Result<(), async_nats::Error> {
        let (name, shutdown) = (self.consumer.name, &self.shutdown);
        let stream = self.context.get_stream_no_info(self.consumer.stream).await?;
        let Some(pull) = shutdown.run_until_cancelled(stream.get_consumer(name)).await else { return Ok(()) };
        let pull: PullConsumer = pull?;
        loop {
            // No more than there are places for: what is fetched is begun at once. A message that waited in a buffer
            // here would run out of its ack_wait.
            let place = shutdown.run_until_cancelled(Arc::clone(&self.places).acquire_owned()).await;
            let Some(mut free) = place.filter(|_| !shutdown.is_cancelled()).transpose()? else { return Ok(()) };
            let more = u32::try_from(self.places.available_permits()).unwrap_or(u32::MAX);
            if let Ok(more) = Arc::clone(&self.places).try_acquire_many_owned(more) {
                free.merge(more);
            }
            let mut batch = pull.batch().max_messages(free.num_permits()).expires(PULL).messages().await?;
            let mut brought = false;
            while let Some(message) = batch.next().await {
                let message = message?;
                brought = true;
                // There are as many places as messages were asked for.
                let Some(place) = free.split(1) else { break };
                self.begin(message, place);
            }
            drop(free);
            let looking = shutdown.run_until_cancelled(watchdog.after_request(brought));
            let Some(looked) = looking.await else { return Ok(()) };
            looked?;
            if watchdog.works() {
                self.health.up(name);
            }
        }
    }

    fn begin(&self, message: jetstream::Message, place: OwnedSemaphorePermit) {
        let reaction = Reaction {
            context: self.context.clone(),
            consumer: self.consumer,
            message,
            failed_deliveries: self.failed_deliveries.clone(),
            shutdown: self.shutdown.clone(),
        };
        let handler = self.handler.clone();
        tokio::spawn(async move {
            reaction.run(handler).await;
            drop(place);
        });
    }
}

/// Tries once. A handler that panics has failed as any other: the next message may fare better.
async fn attempt<F, R>(handler: &F, delivery: &Delivery) -> Result<(), Failure>
where
    F: Fn(Delivery) -> R,
    R: Future<Output = Result<(), Failure>>,
{
    let handled = AssertUnwindSafe(async { handler(delivery.clone()).await }).catch_unwind();
    match timeout(TRY, handled).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(Failure::Retry(anyhow::anyhow!("the handler panicked; the log of this process says where"))),
        Err(_) => Err(Failure::Unavailable(anyhow::anyhow!("no answer within {} s", TRY.as_secs()))),
    }
}

struct Reaction {
    context: jetstream::Context,
    consumer: setup::Consumer,
    message: jetstream::Message,
    failed_deliveries: FailedDeliveries,
    shutdown: Shutdown,
}

impl Reaction {
    /// Reacts, while telling the server that the delivery is not forgotten.
    async fn run<F, R>(self, handler: F)
    where
        F: Fn(Delivery) -> R,
        R: Future<Output = Result<(), Failure>>,
    {
        let progress = async {
            loop {
                sleep(PROGRESS).await;
                self.answer(AckKind::Progress).await;
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
                tracing::error!(consumer = name, %error, "delivery without its place in the stream");
                return;
            }
        };
        if delivery.delivered > DEADLY {
            let reason = format!("delivered {} times and never acknowledged", delivery.delivered);
            return self.dead_letter(&delivery, &reason).await;
        }
        let mut tries = 0;
        loop {
            let failure = match attempt(&handler, &delivery).await {
                Ok(()) => {
                    self.failed_deliveries.forget(delivery.seq);
                    metrics::counter!("garage_reactions_total", "consumer" => name, "outcome" => "done").increment(1);
                    return self.end(AckKind::Ack).await;
                }
                Err(failure) => failure,
            };
            tries += 1;
            let then = failure.then(self.failed_deliveries.so_far(delivery.seq), tries);
            self.note(&delivery, &failure, then);
            match then {
                Then::DeadLetter => return self.dead_letter(&delivery, &failure.to_string()).await,
                Then::Return(pause) => {
                    self.failed_deliveries.count(delivery.seq);
                    return self.answer(AckKind::Nak(Some(pause))).await;
                }
                Then::Hold(pause) => tokio::select! {
                    // When our own last request for messages is over: it would bring this one back to us.
                    () = self.shutdown.cancelled(), if matches!(failure, Failure::Unavailable(_)) => {
                        return self.answer(AckKind::Nak(Some(PULL))).await;
                    }
                    () = sleep(pause) => {}
                },
            }
        }
    }

    fn note(&self, delivery: &Delivery, failure: &Failure, then: Then) {
        let (name, seq) = (self.consumer.name, delivery.seq);
        let outcome = match (failure, then) {
            // That is said where it is buried.
            (Failure::Poison(_), _) | (_, Then::DeadLetter) => return,
            (Failure::Unavailable(error), _) => {
                tracing::warn!(consumer = name, event.seq = seq, "waiting for a dependency: {error:#}");
                "held"
            }
            (Failure::Newer(error), _) => {
                tracing::error!(consumer = name, event.seq = seq, "left to a newer build: {error:#}");
                "newer"
            }
            (Failure::Retry(error), Then::Return(_)) => {
                tracing::warn!(consumer = name, event.seq = seq, "tried in vain; again later: {error:#}");
                "retry"
            }
            (Failure::Retry(_), Then::Hold(_)) => "retry",
        };
        metrics::counter!("garage_reactions_total", "consumer" => name, "outcome" => outcome).increment(1);
    }

    async fn answer(&self, kind: AckKind) {
        if let Err(error) = self.message.ack_with(kind).await {
            // It will come again; the effect is idempotent.
            tracing::debug!(consumer = self.consumer.name, %error, "acknowledgement not sent");
        }
    }

    /// Tells the server that it need not send the message again.
    async fn end(&self, kind: AckKind) {
        crash::effect(self.consumer.acknowledged, self.answer(kind)).await;
    }

    /// Puts the message aside, with the error in front, where an operator finds it.
    async fn dead_letter(&self, delivery: &Delivery, reason: &str) {
        let name = self.consumer.name;
        metrics::counter!("garage_reactions_total", "consumer" => name, "outcome" => "dead").increment(1);
        tracing::error!(
            consumer = name,
            event.seq = delivery.seq,
            subject = delivery.subject,
            reason,
            "message given up"
        );
        let dead_letter = DeadLetter {
            error: reason.into(),
            consumer: name.into(),
            stream: self.consumer.stream.into(),
            seq: delivery.seq,
            time: delivery.time,
            subject: delivery.subject.clone(),
            body: String::new(),
            raw: None,
        };
        let dead_letter = dead_letter.with_body(&delivery.body);
        let sent = async {
            let message = PublishMessage::build().payload(serde_json::to_vec(&dead_letter)?.into());
            anyhow::Ok(publish(&self.context, Point::DeadLetterStored, subject::dead(name), message).await?)
        };
        match sent.await {
            Ok(_) => {
                self.failed_deliveries.forget(delivery.seq);
                self.end(AckKind::Term).await;
            }
            Err(error) => {
                tracing::warn!(consumer = name, %error, "dead letter not stored; the message will come again");
                self.answer(AckKind::Nak(Some(DEAD_LETTER_RETRY))).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_tried_here_then_elsewhere_and_put_aside_in_the_end() {
        let millis = Duration::from_millis;
        let error = || anyhow::anyhow!("in vain");
        let retry = Failure::Retry(error());
        let tries = [1, 4, 5].map(|tries| retry.then(0, tries));
        assert_eq!(tries, [Then::Hold(millis(10)), Then::Hold(millis(80)), Then::Return(millis(1_000))]);
        assert_eq!(retry.then(DELIVERIES - 1, TRIES), Then::Return(millis(32_000)));
        assert_eq!(retry.then(DELIVERIES, 1), Then::DeadLetter);

        let newer = Failure::Newer(error());
        assert_eq!((newer.then(0, 1), newer.then(DELIVERIES, 1)), (Then::Return(millis(1_000)), Then::DeadLetter));
        assert_eq!(Failure::Poison(error()).then(0, 1), Then::DeadLetter);

        // However long it takes, and however often its worker was killed meanwhile.
        let down = Failure::Unavailable(error());
        let tries = [1, 2, 100].map(|tries| down.then(2 * DELIVERIES, tries));
        assert_eq!(tries, [Then::Hold(millis(200)), Then::Hold(millis(400)), Then::Hold(millis(3_200))]);
    }
}
