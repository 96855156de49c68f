//! Reading the log in its order, from a sequence on, for as long as one likes.

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
use tokio::time::{Duration, sleep};

use super::{any, link::Link};

/// How often the server says that it is still there when there is nothing to read; after two that are missing the
/// consumer is made again.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Between two looks whether the stream has what does not come; and after how many in a row that found so the consumer
/// is made again. It may say all the while that it is there.
const LOOK: Duration = Duration::from_secs(2);
const LOOKS: u32 = 2;

/// When the server forgets the consumer of a reader that is gone.
const FORGET: Duration = Duration::from_secs(30);

/// Messages asked for at a time.
const AHEAD: usize = 500;

/// Before a consumer is made again that could be made and not be read.
const LOST: Duration = Duration::from_millis(20);

/// Before a consumer is made again that could not be made.
const REFUSED: Duration = Duration::from_millis(250);

/// A message of the log.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its sequence in the stream.
    pub seq: u64,
    /// The stream's timestamp.
    pub time: OffsetDateTime,
    /// Its subject.
    pub subject: String,
    /// Its headers; what a commit writes there is read by [`super::written::Written`].
    pub headers: Option<HeaderMap>,
    /// Its body.
    pub body: Bytes,
    /// How many further messages the filter selects at present.
    pub pending: u64,
}

/// An ordered read. Whenever it could have missed something it makes its consumer again, from the message after the
/// last one given out, so that no message is missing and none comes twice.
pub struct Follow {
    context: Context,
    link: Link,
    stream: &'static str,
    filters: Vec<String>,
    next: u64,
    source: Source,
}

/// Where messages come from.
enum Source {
    /// A consumer that is being made. Kept from one wait to the next: who waits for a message only so long must not
    /// begin to make one each time.
    Making(BoxFuture<'static, Result<Reading, async_nats::Error>>),
    Made(Box<Reading>),
}

/// A consumer that has not missed anything.
struct Reading {
    messages: pull::Stream,
    /// The connection that it reads on. What was under way on it when it was lost has been delivered, for the server.
    connection: u64,
    /// Messages that it brought; the server numbers them.
    count: u64,
    /// The sequence after that of the last one, for `silence`.
    next: Arc<AtomicU64>,
    /// Ends when the consumer brings nothing although there is something.
    silence: BoxFuture<'static, ()>,
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("filters", &self.filters).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Follow {
    /// Reads the messages of a stream that one of the filters selects, from a sequence on (1 is the beginning).
    pub fn new(context: Context, stream: &'static str, filters: Vec<String>, from: u64) -> Self {
        let link = Link::new(context.client());
        let next = from.max(1);
        let source = make(context.clone(), link.clone(), stream, filters.clone(), next, Duration::ZERO);
        Self { context, link, stream, filters, next, source }
    }

    /// Waits until the consumer is made, so that what is appended from now on will be given out.
    ///
    /// # Errors
    /// What the server said.
    pub async fn connect(&mut self) -> Result<(), async_nats::Error> {
        if let Source::Making(making) = &mut self.source {
            match making.await {
                Ok(reading) => self.source = Source::Made(Box::new(reading)),
                Err(error) => {
                    self.make_again(REFUSED);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The next message; waits for it as long as it takes. Dropping the wait loses nothing.
    pub async fn next(&mut self) -> Message {
        loop {
            let Source::Made(reading) = &mut self.source else {
                if let Err(error) = self.connect().await {
                    tracing::warn!(%error, filters = ?self.filters, "the log cannot be followed; trying again");
                }
                continue;
            };
            let delivered = tokio::select! {
                biased;
                () = self.link.replaced(reading.connection) => Err("the connection was lost".into()),
                message = reading.messages.next() => match message {
                    Some(message) => message.map_err(async_nats::Error::from),
                    None => Err("the consumer has ended".into()),
                },
                () = &mut reading.silence => {
                    metrics::counter!("garage_readers_silent_total", "stream" => self.stream).increment(1);
                    tracing::warn!(filters = ?self.filters, next = self.next, "the consumer brings nothing of what there is");
                    Err("the consumer has silently stopped".into())
                }
            };
            match delivered.and_then(|message| reading.place(message)) {
                Ok(message) => {
                    self.next = message.seq + 1;
                    return message;
                }
                Err(reason) => {
                    tracing::debug!(%reason, next = self.next, "following the log was interrupted; going on");
                    self.make_again(LOST);
                }
            }
        }
    }

    fn make_again(&mut self, after: Duration) {
        let (context, link) = (self.context.clone(), self.link.clone());
        self.source = make(context, link, self.stream, self.filters.clone(), self.next, after);
    }
}

/// Begins to make a consumer from a sequence on.
fn make(
    context: Context,
    link: Link,
    stream: &'static str,
    filter_subjects: Vec<String>,
    start_sequence: u64,
    after: Duration,
) -> Source {
    // The client's own ordered consumer would do all this, but takes half a minute to see that its server is gone, and
    // never sees that the last message before a pause was lost with the connection.
    Source::Making(Box::pin(async move {
        sleep(after).await;
        let connection = link.connections();
        let selected = filter_subjects.clone();
        let stream = context.get_stream_no_info(stream).await?;
        let config = pull::Config {
            filter_subjects,
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            replay_policy: ReplayPolicy::Instant,
            ack_policy: AckPolicy::None,
            max_deliver: 1,
            inactive_threshold: FORGET,
            num_replicas: 1,
            memory_storage: true,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let messages = consumer.stream().max_messages_per_batch(AHEAD).heartbeat(HEARTBEAT).messages().await?;
        let next = Arc::new(AtomicU64::new(start_sequence));
        let silence = Box::pin(silence(stream, selected, Arc::clone(&next)));
        Ok(Reading { messages, connection, count: 0, next, silence })
    }))
}

/// Waits until the stream, look after look, has a message from `next` on, and the same one.
async fn silence(stream: Stream<()>, filters: Vec<String>, next: Arc<AtomicU64>) {
    let mut looks = 0;
    let mut before = next.load(Ordering::Relaxed);
    while looks < LOOKS {
        sleep(LOOK).await;
        let at = next.load(Ordering::Relaxed);
        // A stream that does not answer is no fault of the consumer's.
        let still = at == before && any(&stream, &filters, at).await.unwrap_or(false);
        looks = if still { looks + 1 } else { 0 };
        before = at;
    }
}

impl Reading {
    /// The message, if none before it is missing.
    fn place(&mut self, message: Delivered) -> Result<Message, async_nats::Error> {
        let info = message.info()?;
        self.count += 1;
        if info.consumer_sequence != self.count {
            return Err(
                format!("message {} of the consumer where {} was due", info.consumer_sequence, self.count).into()
            );
        }
        let (seq, time, pending) = (info.stream_sequence, info.published, info.pending);
        self.next.store(seq + 1, Ordering::Relaxed);
        let async_nats::Message { subject, headers, payload: body, .. } = message.message;
        Ok(Message { seq, time, pending, subject: subject.to_string(), headers, body })
    }
}
