//! Reads a stream without deciding anything: single messages, a range of sequences, or continuously.

use std::time::Duration;

use async_nats::{
    Client,
    jetstream::{self, Context, message::StreamMessage, stream::Stream},
};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::{
    follow::{Follow, Message},
    found, next, unavailable,
};
use crate::log::ReadError;

/// How long to wait for a message that is known to exist. The stream may have dropped it in the meantime because of its
/// age, so after this time [`Range`] checks again.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Reads one stream. The stream's leader answers all lookups.
#[derive(Debug, Clone)]
pub struct Reader {
    context: Context,
    stream: Stream<()>,
    name: &'static str,
}

/// The range of sequences in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The sequence of the first message. If the stream is empty, the sequence that the next message will get.
    pub first: u64,
    /// The sequence of the last message; 0 if there has never been one.
    pub last: u64,
}

impl Reader {
    /// Opens a stream, which `garage init` must have created.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] if the stream does not exist or the server does not answer.
    pub async fn open(client: Client, name: &'static str) -> Result<Self, ReadError> {
        let context = jetstream::new(client);
        let stream = context.get_stream_no_info(name).await.map_err(unavailable)?;
        let reader = Self { context, stream, name };
        reader.bounds().await?;
        Ok(reader)
    }

    /// The connection to JetStream.
    pub fn context(&self) -> &Context {
        &self.context
    }

    pub(super) fn of(context: Context, stream: Stream<()>, name: &'static str) -> Self {
        Self { context, stream, name }
    }

    /// The sequences that the stream holds now.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn bounds(&self) -> Result<Bounds, ReadError> {
        let info = self.stream.get_info().await.map_err(|error| {
            ReadError::Unavailable(format!("stream {} cannot be opened ({error}); run `garage init`", self.name))
        })?;
        Ok(Bounds { first: info.state.first_sequence, last: info.state.last_sequence })
    }

    /// The message with a sequence; `None` if the stream does not have it.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn get(&self, seq: u64) -> Result<Option<StreamMessage>, ReadError> {
        found(self.stream.get_raw_message(seq).await)
    }

    /// The sequence of the first message at or after a time. If there is none, the sequence that the next message will
    /// get.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn since(&self, time: OffsetDateTime) -> Result<u64, ReadError> {
        let bounds = self.bounds().await?;
        let (mut low, mut high) = (bounds.first, bounds.last + 1);
        // Binary search: the timestamps of a stream increase with its sequences.
        while low < high {
            let middle = low + (high - low) / 2;
            match next(&self.stream, ">", middle).await? {
                Some(message) if message.time < time => low = message.sequence + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Reads continuously, from a sequence on. The filters must not overlap.
    pub fn follow(&self, filters: Vec<String>, from: u64) -> Follow {
        Follow::new(self.context.clone(), self.name, filters, from)
    }

    /// Reads the messages with the sequences `from` to `to`, inclusive. The filters must not overlap.
    pub fn range(&self, filters: Vec<String>, from: u64, to: u64) -> Range {
        let (at, follow) = (from.max(1), self.follow(filters.clone(), from));
        Range { reader: self.clone(), filters, follow, at, to, ahead: false, beyond: None }
    }
}

/// An ordered read of a range of sequences.
#[derive(Debug)]
pub struct Range {
    reader: Reader,
    filters: Vec<String>,
    follow: Follow,
    /// The lowest sequence that has not been read yet.
    at: u64,
    to: u64,
    /// Whether a further message is known to exist, so that it makes sense to wait for it.
    ahead: bool,
    /// A message that was read and lies beyond the end.
    beyond: Option<Message>,
}

impl Range {
    /// Moves the end to a later sequence. The read continues with the same consumer.
    pub fn extend(&mut self, to: u64) {
        self.to = self.to.max(to);
    }

    /// Returns the next message, or `None` at the end. Dropping the future does not lose a message.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn next(&mut self) -> Result<Option<Message>, ReadError> {
        if let Some(message) = self.beyond.take_if(|message| message.seq <= self.to) {
            return Ok(Some(message));
        }
        if self.beyond.is_some() {
            return Ok(None);
        }
        loop {
            if !self.ahead && !selects(&self.reader, &self.filters, self.at, self.to).await? {
                return Ok(None);
            }
            self.ahead = true;
            let Ok(message) = timeout(MAX_WAIT, self.follow.next()).await else {
                self.ahead = false;
                continue;
            };
            self.at = message.seq + 1;
            self.ahead = message.pending > 0;
            if message.seq <= self.to {
                return Ok(Some(message));
            }
            self.beyond = Some(message);
            return Ok(None);
        }
    }
}

/// Whether the filters select a message with a sequence from `from` to `to`.
async fn selects(reader: &Reader, filters: &[String], from: u64, to: u64) -> Result<bool, ReadError> {
    for filter in filters {
        let message = next(&reader.stream, filter, from).await?;
        if from <= to && message.is_some_and(|message| message.sequence <= to) {
            return Ok(true);
        }
    }
    Ok(false)
}
