//! Reading the log in its order, from a sequence on, for as long as one likes.

use async_nats::jetstream::{
    Context,
    consumer::{DeliverPolicy, ReplayPolicy, pull},
};
use bytes::Bytes;
use futures::StreamExt;
use time::OffsetDateTime;
use tokio::time::{Duration, sleep};

/// A message of the log.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its sequence in the stream.
    pub seq: u64,
    /// The stream's timestamp.
    pub time: OffsetDateTime,
    /// Its subject.
    pub subject: String,
    /// Its body.
    pub body: Bytes,
    /// How many further messages the filter selects at present.
    pub pending: u64,
}

/// An ordered read. It makes its consumer again when that is lost, from the message after the last one given out, so
/// that no message is missing and none comes twice.
pub struct Follow {
    context: Context,
    stream: &'static str,
    filters: Vec<String>,
    next: u64,
    messages: Option<pull::Ordered>,
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follow").field("filters", &self.filters).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Follow {
    /// Reads the messages of a stream that one of the filters selects, from a sequence on (1 is the beginning).
    pub fn new(context: Context, stream: &'static str, filters: Vec<String>, from: u64) -> Self {
        Self { context, stream, filters, next: from.max(1), messages: None }
    }

    /// Makes the consumer, so that what is appended from now on will be given out.
    ///
    /// # Errors
    /// What the server said.
    pub async fn connect(&mut self) -> Result<(), async_nats::Error> {
        let stream = self.context.get_stream_no_info(self.stream).await?;
        let config = pull::OrderedConfig {
            filter_subjects: self.filters.clone(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.next },
            replay_policy: ReplayPolicy::Instant,
            ..Default::default()
        };
        self.messages = Some(stream.create_consumer(config).await?.messages().await?);
        Ok(())
    }

    /// The next message; waits for it as long as it takes. Dropping the wait loses nothing.
    pub async fn next(&mut self) -> Message {
        loop {
            let Some(messages) = &mut self.messages else {
                if let Err(error) = self.connect().await {
                    tracing::warn!(%error, filters = ?self.filters, "the log cannot be followed; trying again");
                    sleep(Duration::from_millis(250)).await;
                }
                continue;
            };
            match messages.next().await {
                Some(Ok(message)) => {
                    let Ok(info) = message.info() else { continue };
                    // The client makes the consumer again by itself too.
                    if info.stream_sequence < self.next {
                        continue;
                    }
                    self.next = info.stream_sequence + 1;
                    return Message {
                        seq: info.stream_sequence,
                        time: info.published,
                        pending: info.pending,
                        subject: message.subject.to_string(),
                        body: message.payload.clone(),
                    };
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, next = self.next, "following the log was interrupted; going on");
                    self.messages = None;
                    sleep(Duration::from_millis(50)).await;
                }
                None => self.messages = None,
            }
        }
    }
}
