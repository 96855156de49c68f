//! A stream as an operator reads it: from one place to another, without deciding anything.

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

/// How long a message that was said to be ahead may take; it may have grown too old in the meantime.
const MAX_WAIT: Duration = Duration::from_secs(2);

/// Reads one of the streams. What it looks up, the stream's leader answers.
#[derive(Debug, Clone)]
pub struct Reader {
    context: Context,
    stream: Stream<()>,
    name: &'static str,
}

/// The sequences that a stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Of its first message, or of the one to come.
    pub first: u64,
    /// Of its last message; 0 before there was any.
    pub last: u64,
}

impl Reader {
    /// Opens a stream, which `garage init` made.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`] when it is not there, with what to do about it.
    pub async fn open(client: Client, name: &'static str) -> Result<Self, ReadError> {
        let context = jetstream::new(client);
        let stream = context.get_stream_no_info(name).await.map_err(unavailable)?;
        let reader = Self { context, stream, name };
        reader.bounds().await?;
        Ok(reader)
    }

    pub(super) fn of(context: Context, stream: Stream<()>, name: &'static str) -> Self {
        Self { context, stream, name }
    }

    /// What the stream holds at present.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn bounds(&self) -> Result<Bounds, ReadError> {
        let info = self.stream.get_info().await.map_err(|error| {
            ReadError::Unavailable(format!("stream {} cannot be opened ({error}); run `garage init`", self.name))
        })?;
        Ok(Bounds { first: info.state.first_sequence, last: info.state.last_sequence })
    }

    /// One message.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn get(&self, seq: u64) -> Result<Option<StreamMessage>, ReadError> {
        found(self.stream.get_raw_message(seq).await)
    }

    /// The sequence of the first message that is not older than a time, or of the one to come.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn since(&self, time: OffsetDateTime) -> Result<u64, ReadError> {
        let bounds = self.bounds().await?;
        let (mut low, mut high) = (bounds.first, bounds.last + 1);
        // A stream's timestamps go up with its sequences.
        while low < high {
            let middle = low + (high - low) / 2;
            match next(&self.stream, ">", middle).await? {
                Some(message) if message.time < time => low = message.sequence + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Reads on from a sequence, for as long as one likes. The filters must not overlap.
    pub fn follow(&self, filters: Vec<String>, from: u64) -> Follow {
        Follow::new(self.context.clone(), self.name, filters, from)
    }

    /// Reads from a sequence to another, both included. The filters must not overlap.
    pub fn range(&self, filters: Vec<String>, from: u64, to: u64) -> Range {
        let (at, follow) = (from.max(1), self.follow(filters.clone(), from));
        Range { reader: self.clone(), filters, follow, at, to, ahead: false }
    }
}

/// An ordered read that ends.
#[derive(Debug)]
pub struct Range {
    reader: Reader,
    filters: Vec<String>,
    follow: Follow,
    /// The next sequence that may come.
    at: u64,
    to: u64,
    /// Whether a message is known to be ahead, so that waiting for it is not in vain.
    ahead: bool,
}

impl Range {
    /// The next message; `None` at the end. Dropping the wait loses nothing.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn next(&mut self) -> Result<Option<Message>, ReadError> {
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
            return Ok((message.seq <= self.to).then_some(message));
        }
    }
}

/// Whether the filters select anything from a sequence to another.
async fn selects(reader: &Reader, filters: &[String], from: u64, to: u64) -> Result<bool, ReadError> {
    for filter in filters {
        let message = next(&reader.stream, filter, from).await?;
        if from <= to && message.is_some_and(|message| message.sequence <= to) {
            return Ok(true);
        }
    }
    Ok(false)
}
