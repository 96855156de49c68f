//! Reads a stream continuously and in order, from a sequence on.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_nats::{
    HeaderMap,
    jetstream::{
        Context, Message as Delivered,
        consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull},
        stream::Stream,
    },
};
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture};
use time::OffsetDateTime;
use tokio::time::{Duration, Instant, sleep};

use super::{any, backoff::Backoff, link::Link};

/// How often the server sends a heartbeat while there is nothing to read. After two missing heartbeats, the consumer is
/// recreated.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How often to check whether the stream has a message that the consumer does not deliver. After this many such checks
/// in a row, the consumer is recreated. Heartbeats do not detect this case: a stalled consumer still sends them.
const STALL_CHECK_INTERVAL: Duration = Duration::from_secs(2);
const MAX_STALLED_CHECKS: u32 = 2;

/// When the server removes the consumer of a reader that no longer exists.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(30);

/// The number of messages per request.
const BATCH_SIZE: usize = 500;

/// The delays before a consumer is recreated after an interruption. If interruptions continue, a reader creates one
/// consumer per second, and up to 30 of its former consumers still exist ([`INACTIVE_THRESHOLD`]).
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(20), Duration::from_secs(1), /* forget after */ Duration::from_secs(10));

/// The shortest delay before the next try if a consumer could not be created.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct Message {
    /// Sequence in the stream.
    pub seq: u64,
    /// The stream's timestamp.
    pub time: OffsetDateTime,
    pub subject: String,
    /// [`super::written::Written`] parses the headers that a commit writes.
    pub headers: Option<HeaderMap>,
    pub body: Bytes,
    /// The number of later messages that the filters selected at the time when the server sent this one.
    pub pending: u64,
}

/// A continuous, ordered read. Whenever it could have missed a message, it recreates its consumer, starting after the
/// last message that it returned. So it never skips a message, and never returns one twice.
pub struct Follow {
    context: Context,
    link: Link,
    stream: &'static str,
    filters: Vec<String>,
    next: u64,
    source: Source,
    backoff: Backoff,
    /// Whether to begin with the last message of each subject. It matters until the first message has arrived.
    latest: bool,
}

/// The consumer that delivers the messages.
enum Source {
    /// The consumer is being created. The future is kept if a call of `next` is dropped, so that a caller with a short
    /// time-out does not start again each time.
    Creating(BoxFuture<'static, Result<Reading, async_nats::Error>>),
    Created(Box<Reading>),
}

/// A consumer from which no message has been lost so far.
struct Reading {
    messages: pull::Stream,
    /// The number of the connection on which it reads. Messages in transit on a lost connection never arrive, although
    /// the server counts them as delivered.
    connection: u64,
    /// The number of messages received. It must match the server's numbering.
    count: u64,
    /// The sequence after the last message, for `stalled`.
    next: Arc<AtomicU64>,
    /// Completes when the stream has a message that the consumer does not deliver.
    stalled: BoxFuture<'static, ()>,
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("filters", &self.filters).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Follow {
    /// Reads the messages of a stream that one of the filters selects, from a sequence on; 1 is the beginning.
    pub fn new(context: Context, stream: &'static str, filters: Vec<String>, from: u64) -> Self {
        let start = DeliverPolicy::ByStartSequence { start_sequence: from.max(1) };
        Self::begin(context, stream, filters, start, from.max(1))
    }

    /// Reads the last message of each subject that one of the filters selects, in the order of their sequences, and then
    /// every later message. After an interruption, it can also return messages that are not the last of their subject.
    pub fn latest(context: Context, stream: &'static str, filters: Vec<String>) -> Self {
        Self { latest: true, ..Self::begin(context, stream, filters, DeliverPolicy::LastPerSubject, 1) }
    }

    fn begin(context: Context, stream: &'static str, filters: Vec<String>, start: DeliverPolicy, next: u64) -> Self {
        let link = Link::new(context.client());
        let source = create(context.clone(), link.clone(), stream, filters.clone(), (start, next), Duration::ZERO);
        metrics::counter!("garage_readers_created_total", "stream" => stream).increment(0);
        metrics::counter!("garage_readers_silent_total", "stream" => stream).increment(0);
        Self { context, link, stream, filters, next, source, backoff: BACKOFF, latest: false }
    }

    /// Waits until the consumer exists. Messages that are stored after that will be returned.
    ///
    /// # Errors
    /// If the consumer cannot be created.
    pub async fn connect(&mut self) -> Result<(), async_nats::Error> {
        if let Source::Creating(creating) = &mut self.source {
            match creating.await {
                Ok(reading) => self.source = Source::Created(Box::new(reading)),
                Err(error) => {
                    let delay = self.backoff.take(Instant::now()).max(RETRY_DELAY);
                    self.recreate(delay);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Waits for the next message, however long it takes. Dropping the future does not lose a message.
    pub async fn next(&mut self) -> Message {
        loop {
            let Source::Created(reading) = &mut self.source else {
                if let Err(error) = self.connect().await {
                    tracing::warn!(%error, filters = ?self.filters, "cannot create a consumer; trying again");
                }
                continue;
            };
            let delivered = tokio::select! {
                biased;
                () = self.link.replaced(reading.connection) => Err("the connection was lost".into()),
                message = reading.messages.next() => match message {
                    Some(message) => message.map_err(async_nats::Error::from),
                    None => Err("the consumer's message stream has ended".into()),
                },
                () = &mut reading.stalled => {
                    metrics::counter!("garage_readers_silent_total", "stream" => self.stream).increment(1);
                    tracing::warn!(
                        filters = ?self.filters,
                        next = self.next,
                        "the consumer does not deliver existing messages; recreating it"
                    );
                    Err("the consumer has silently stopped".into())
                }
            };
            match delivered.and_then(|message| reading.check_order(message)) {
                Ok(message) => {
                    self.next = message.seq + 1;
                    self.latest = false;
                    return message;
                }
                Err(reason) => {
                    tracing::debug!(%reason, next = self.next, "reading was interrupted; recreating the consumer");
                    let delay = self.backoff.take(Instant::now());
                    self.recreate(delay);
                }
            }
        }
    }

    /// Continues at another sequence, with a new consumer. Like after an interruption, repeated calls make the delay
    /// before that grow.
    pub fn seek(&mut self, next: u64) {
        self.next = next;
        self.latest = false;
        let delay = self.backoff.take(Instant::now());
        self.recreate(delay);
    }

    fn recreate(&mut self, after: Duration) {
        let (context, link) = (self.context.clone(), self.link.clone());
        let start = match self.latest {
            true => DeliverPolicy::LastPerSubject,
            false => DeliverPolicy::ByStartSequence { start_sequence: self.next },
        };
        self.source = create(context, link, self.stream, self.filters.clone(), (start, self.next), after);
    }
}

/// Starts to create a consumer. `next` is the first sequence that it may return.
fn create(
    context: Context,
    link: Link,
    stream: &'static str,
    filter_subjects: Vec<String>,
    (deliver_policy, next): (DeliverPolicy, u64),
    after: Duration,
) -> Source {
    // The client's own ordered consumer is not enough. It takes half a minute to notice that its server is down, and it
    // does not notice that the last message before a pause was lost with the connection.
    Source::Creating(Box::pin(async move {
        sleep(after).await;
        let connection = link.connections();
        let selected = filter_subjects.clone();
        let name = stream;
        let stream = context.get_stream_no_info(stream).await?;
        let config = pull::Config {
            filter_subjects,
            deliver_policy,
            replay_policy: ReplayPolicy::Instant,
            ack_policy: AckPolicy::None,
            max_deliver: 1,
            inactive_threshold: INACTIVE_THRESHOLD,
            num_replicas: 1,
            memory_storage: true,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await?;
        metrics::counter!("garage_readers_created_total", "stream" => name).increment(1);
        let messages = consumer.stream().max_messages_per_batch(BATCH_SIZE).heartbeat(HEARTBEAT).messages().await?;
        let next = Arc::new(AtomicU64::new(next));
        let stalled = Box::pin(stalled(stream, selected, Arc::clone(&next)));
        Ok(Reading { messages, connection, count: 0, next, stalled })
    }))
}

/// Waits until several checks in a row find that the stream has a message from `next` on, but `next` has not moved.
async fn stalled(stream: Stream<()>, filters: Vec<String>, next: Arc<AtomicU64>) {
    let mut stalled_checks = 0;
    let mut before = next.load(Ordering::Relaxed);
    while stalled_checks < MAX_STALLED_CHECKS {
        sleep(STALL_CHECK_INTERVAL).await;
        let at = next.load(Ordering::Relaxed);
        // If the stream does not answer, the consumer is not at fault.
        let is_stalled = at == before && any(&stream, &filters, at).await.unwrap_or(false);
        stalled_checks = if is_stalled { stalled_checks + 1 } else { 0 };
        before = at;
    }
}

impl Reading {
    /// Returns the message if no message before it is missing.
    fn check_order(&mut self, message: Delivered) -> Result<Message, async_nats::Error> {
        let info = message.info()?;
        self.count += 1;
        if info.consumer_sequence != self.count {
            return Err(
                format!("expected message {} of the consumer, got {}", self.count, info.consumer_sequence).into()
            );
        }
        let (seq, time, pending) = (info.stream_sequence, info.published, info.pending);
        self.next.store(seq + 1, Ordering::Relaxed);
        let async_nats::Message { subject, headers, payload: body, .. } = message.message;
        Ok(Message { seq, time, pending, subject: subject.to_string(), headers, body })
    }
}
