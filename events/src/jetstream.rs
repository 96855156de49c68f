//! The log on NATS JetStream.
//!
//! All reads that a decision is based on use `STREAM.MSG.GET`, which the stream's leader answers. A replica may answer
//! a direct get, and may not have an acknowledged write yet.

mod backlog;
pub mod backoff;
mod commit;
pub mod follow;
mod link;
pub mod reader;
pub mod rule_store;
pub mod setup;
pub mod storage;
pub mod timer;
pub mod written;

use std::error::Error as _;

use async_nats::{
    Client,
    jetstream::{
        self, Context, ErrorCode,
        context::PublishError,
        message::{PublishMessage, StreamMessage},
        publish::PublishAck,
        stream::{self, LastRawMessageErrorKind, RawMessageError, Stream},
    },
    subject::ToSubject,
};
use futures::StreamExt;
use jetstream_extra::batch_fetch::BatchFetchExt;
use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use self::{backlog::Backlog, link::Link, reader::Reader, storage::Storage};
use crate::{
    crash::{self, Point},
    event::{Event, Recorded},
    id::{PartyId, PlayerId, SessionId},
    inventory,
    log::{Append, AppendError, Decision, Load, Party, Player, ReadError, Reports, Session},
    session,
    subject::{self, Aggregate, Report},
};

/// How many decisions of a process may wait for a commit. An append beyond that waits until there is room.
const QUEUE_CAPACITY: usize = 4_096;

/// The maximum number of events in one batched direct get. It is the server's limit.
const MAX_DIRECT_GET: usize = 1_000;

/// The server's description of the error that [`is_already_stored`] recognises.
const SUBJECT_FULL: &str = "maximum messages per subject exceeded";

/// The log on JetStream. Clones share a connection and a committer.
#[derive(Debug, Clone)]
pub struct JetStreamLog {
    context: Context,
    stream: Stream<()>,
    storage: Storage,
    backlog: Backlog,
    submit: mpsc::Sender<commit::Submission>,
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("there is no stream GARAGE; run `garage init`")]
    Missing,
    /// The stream has a setting that breaks the log's guarantees.
    #[error("stream GARAGE {0}; run `garage init` of this version to repair it")]
    Unfit(&'static str),
    /// The server does not answer. A retry may succeed.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
}

impl JetStreamLog {
    /// Opens the log, which `garage init` must have created, and starts the committer.
    ///
    /// # Errors
    /// [`OpenError`]
    pub async fn open(client: Client) -> Result<Self, OpenError> {
        let context = jetstream::new(client);
        let unavailable = |error: &dyn std::fmt::Display| OpenError::Unavailable(error.to_string());
        let found = context.get_stream(subject::STREAM).await.map_err(|error| match setup::is_missing(&error) {
            true => OpenError::Missing,
            false => unavailable(&error),
        })?;
        setup::check(found.cached_info())?;
        let stream = context.get_stream_no_info(subject::STREAM).await.map_err(|error| unavailable(&error))?;
        let storage = Storage::default();
        let submit = commit::start(context.clone(), stream.clone(), storage.clone(), QUEUE_CAPACITY);
        Ok(Self { context, stream, storage, backlog: Backlog::default(), submit })
    }

    /// The connection's JetStream context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Returns a reader for messages in order.
    pub fn reader(&self) -> Reader {
        Reader::of(self.context.clone(), self.stream.clone(), subject::STREAM)
    }

    /// Whether the log stores what is appended.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Reads the size of the stream at the leader, for [`storage`](Self::storage). Returns the size and its limit in
    /// bytes; the limit is `None` if the stream has none.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn measure(&self) -> Result<(u64, Option<u64>), ReadError> {
        let stream = self.context.get_stream(subject::STREAM).await.map_err(unavailable)?;
        let info = stream.cached_info();
        let (bytes, limit) = (info.state.bytes, u64::try_from(info.config.max_bytes).ok().filter(|limit| *limit > 0));
        let connection = Link::new(self.context.client()).connections();
        self.storage.measured(bytes, limit, info.state.last_sequence, connection);
        Ok((bytes, limit))
    }

    /// Waits until the committer has stopped, so that nothing can be appended any more. While a clone of the log
    /// exists, the committer stops only if it panics.
    pub async fn stopped(&self) {
        self.submit.closed().await;
    }

    /// The stream's first and last sequence and its counts, read at the leader.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn state(&self) -> Result<stream::State, ReadError> {
        Ok(self.identity().await?.1)
    }

    /// When the stream was created, and its state, read at the leader. The creation time identifies the log: a
    /// recreated stream has another one.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn identity(&self) -> Result<(OffsetDateTime, stream::State), ReadError> {
        let stream = self.context.get_stream(subject::STREAM).await.map_err(unavailable)?;
        let info = stream.cached_info();
        Ok((info.created, info.state.clone()))
    }

    /// The sequence of the last message that a filter selects, read at the leader; 0 if there is none.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn last_sequence(&self, filter: &str) -> Result<u64, ReadError> {
        Ok(self.last(filter).await?.map(|message| message.sequence).unwrap_or_default())
    }

    /// The first message with at least this sequence that a filter selects, read at the leader.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn next(&self, filter: &str, from: u64) -> Result<Option<StreamMessage>, ReadError> {
        next(&self.stream, filter, from).await
    }

    async fn last(&self, filter: &str) -> Result<Option<StreamMessage>, ReadError> {
        found(self.stream.get_last_raw_message_by_subject(filter).await)
    }

    async fn last_event<E: Event>(&self, aggregate: &Aggregate) -> Result<Option<Recorded<E>>, ReadError> {
        self.last(&aggregate.filter()).await?.map(|message| decode(&message)).transpose()
    }

    /// All events of an aggregate that has one subject per event type, oldest first.
    async fn history<E: Event>(&self, aggregate: &Aggregate) -> Result<Vec<Recorded<E>>, ReadError> {
        let filter = aggregate.filter();
        let Some(last) = self.last(&filter).await? else { return Ok(Vec::new()) };
        let last = decode::<E>(&last)?;
        if last.n == 1 {
            return Ok(vec![last]);
        }
        // A replica may answer the direct get, and may lag behind. Read the missing events at the leader.
        let mut history = self.history_from_any_node(&filter, &last).await;
        let mut from = history.last().map_or(1, |end: &Recorded<E>| end.seq + 1);
        while from <= last.seq {
            let Some(message) = self.next(&filter, from).await? else { break };
            from = message.sequence + 1;
            history.push(decode(&message)?);
        }
        match history.last() {
            Some(end) if end.seq >= last.seq => Ok(history),
            // A node that has just lost the leadership may have answered.
            _ => Err(ReadError::Unavailable(format!("{aggregate} could not be read up to its last event"))),
        }
    }

    /// The first events of an aggregate, without gaps. The last ones are missing if the node that answers lags behind.
    async fn history_from_any_node<E: Event>(&self, filter: &str, last: &Recorded<E>) -> Vec<Recorded<E>> {
        let mut history = Vec::new();
        let count = usize::try_from(last.n).unwrap_or(usize::MAX).min(MAX_DIRECT_GET);
        let batch = self.context.get_batch(subject::STREAM, count).subject(filter).sequence(1).send().await;
        let Ok(mut batch) = batch else { return history };
        while let Some(Ok(message)) = batch.next().await {
            match decode::<E>(&message) {
                Ok(recorded) if recorded.n == history.len() as u64 + 1 => history.push(recorded),
                _ => break,
            }
        }
        history
    }
}

pub(crate) async fn next(stream: &Stream<()>, filter: &str, from: u64) -> Result<Option<StreamMessage>, ReadError> {
    found(stream.get_first_raw_message_by_subject(filter, from).await)
}

/// Whether a stream has a message with at least this sequence that one of the filters selects, read at the leader.
///
/// # Errors
/// [`ReadError::Unavailable`]
pub async fn any(stream: &Stream<()>, filters: &[String], from: u64) -> Result<bool, ReadError> {
    for filter in filters {
        if next(stream, filter, from).await?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Turns the error "no message found" into `None`.
fn found(result: Result<StreamMessage, RawMessageError>) -> Result<Option<StreamMessage>, ReadError> {
    match result {
        Ok(message) => Ok(Some(message)),
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            LastRawMessageErrorKind::JetStream(api) if api.error_code() == jetstream::ErrorCode::NO_MESSAGE_FOUND => {
                Ok(None)
            }
            _ => Err(unavailable(error)),
        },
    }
}

/// Publishes a message to a stream, and waits for the server's acknowledgement.
///
/// # Errors
/// If the server refuses the message or does not acknowledge it. In the latter case it may be stored.
pub async fn publish(
    context: &Context,
    point: Point,
    subject: impl ToSubject,
    message: PublishMessage,
) -> Result<PublishAck, PublishError> {
    let stored = async { context.send_publish(subject, message).await?.await };
    crash::effect(point, stored).await
}

/// Whether the server refused a message because the stream already has as many messages on its subject as it may have.
/// For a report this means: an earlier publication of the report is stored.
///
/// The error code alone does not say so. The server also uses it when the stream has reached its maximum size.
pub fn is_already_stored(error: &PublishError) -> bool {
    let refusal = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    refusal.is_some_and(|refusal| {
        refusal.error_code() == ErrorCode::STREAM_STORE_FAILED && refusal.to_string().starts_with(SUBJECT_FULL)
    })
}

fn unavailable(error: impl std::fmt::Display) -> ReadError {
    ReadError::Unavailable(error.to_string())
}

pub(crate) fn decode<E: Event>(message: &StreamMessage) -> Result<Recorded<E>, ReadError> {
    let seq = message.sequence;
    Recorded::decode(seq, message.time, &message.payload).map_err(|source| ReadError::Unreadable { seq, source })
}

impl Load for JetStreamLog {
    async fn player(&self, id: &PlayerId) -> Result<Player, ReadError> {
        Ok(Player::of(self.last_event(&Aggregate::Player(id.clone())).await?))
    }

    async fn party(&self, id: PartyId) -> Result<Party, ReadError> {
        Ok(Party::of(self.last_event(&Aggregate::Party(id)).await?))
    }

    async fn session(&self, id: SessionId) -> Result<Session, ReadError> {
        Ok(Session::of(self.history::<session::Event>(&Aggregate::Session(id)).await?))
    }

    async fn inventory(&self, id: &PlayerId) -> Result<Option<Recorded<inventory::Event>>, ReadError> {
        self.last_event(&Aggregate::Inventory(id.clone())).await
    }
}

impl Reports for JetStreamLog {
    async fn reported(&self, report: Report) -> Result<bool, ReadError> {
        let stream = self.context.get_stream_no_info(subject::REPORTS).await.map_err(unavailable)?;
        Ok(found(stream.get_last_raw_message_by_subject(&report.to_string()).await)?.is_some())
    }
}

impl Append for JetStreamLog {
    async fn append(&self, decision: Decision) -> Result<Vec<u64>, AppendError> {
        let measured = Measured::start();
        let (reply, outcome) = oneshot::channel();
        let stopped = || AppendError::Unavailable("the committer has stopped".into());
        let outcome = match commit::Submission::encode(decision, &self.backlog, reply) {
            Ok(submission) => {
                let point = submission.point();
                let appended = async {
                    if self.submit.send(submission).await.is_err() {
                        return Err(stopped());
                    }
                    outcome.await.unwrap_or_else(|_| Err(stopped()))
                };
                crash::effect(point, appended).await
            }
            Err(error) => Err(error),
        };
        measured.end(&outcome);
        outcome
    }
}

/// Measures how long an append takes, and how many wait. An append whose future is dropped is not measured.
struct Measured(Instant);

impl Measured {
    fn start() -> Self {
        metrics::gauge!("garage_append_waiting").increment(1);
        Self(Instant::now())
    }

    fn end<T>(self, outcome: &Result<T, AppendError>) {
        let outcome = match outcome {
            Ok(_) => "stored",
            Err(AppendError::Conflict(_)) => "conflict",
            Err(AppendError::Unavailable(_)) => "unavailable",
            Err(AppendError::Full(_)) => "full",
            Err(AppendError::Busy(_)) => "busy",
            Err(AppendError::Refused(_)) => "refused",
        };
        metrics::histogram!("garage_append_seconds", "outcome" => outcome).record(self.0.elapsed());
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        metrics::gauge!("garage_append_waiting").decrement(1);
    }
}
