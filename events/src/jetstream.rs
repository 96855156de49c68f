//! The log on NATS JetStream.
//!
//! Everything that is decided on is read with `STREAM.MSG.GET`, which the stream's leader answers; a direct get may be
//! answered by a replica that has not seen an acknowledged write yet.

mod commit;
pub mod follow;
mod link;
pub mod reader;
pub mod setup;
pub mod timer;
pub mod written;

use async_nats::{
    Client,
    jetstream::{
        self, Context,
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
use tokio::sync::{mpsc, oneshot};

use self::reader::Reader;
use crate::{
    crash::{self, Point},
    event::{Event, Recorded},
    id::{PlayerId, SessionId},
    inventory,
    log::{Append, AppendError, Decision, Head, Load, Player, ReadError, Reports, Session},
    player, session,
    subject::{self, Aggregate, Report},
};

/// Decisions that may wait for a commit in one process; a further one waits for a place.
const QUEUE: usize = 4_096;

/// The most events that one quick read asks for; the server's bound.
const QUICK: usize = 1_000;

/// The log on JetStream. Clones share one connection and one committer.
#[derive(Debug, Clone)]
pub struct JetStreamLog {
    context: Context,
    stream: Stream<()>,
    submit: mpsc::Sender<commit::Submission>,
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("there is no stream GARAGE; run `garage init`")]
    Missing,
    /// There is one on which the log's guarantees do not hold.
    #[error("stream GARAGE {0}; run `garage init` of this version to mend it")]
    Unfit(&'static str),
    /// The server does not answer; trying again later may help.
    #[error("the log does not answer: {0}")]
    Unavailable(String),
}

impl JetStreamLog {
    /// Opens the log, which `garage init` made, and starts the committer.
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
        let submit = commit::start(context.clone(), stream.clone(), QUEUE);
        Ok(Self { context, stream, submit })
    }

    /// The connection's JetStream context.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Reads the log in its order.
    pub fn reader(&self) -> Reader {
        Reader::of(self.context.clone(), self.stream.clone(), subject::STREAM)
    }

    /// Waits until nothing can be appended any more, because the committer has ended; which it does not by itself.
    pub async fn stopped(&self) {
        self.submit.closed().await;
    }

    /// How far the log reaches, told by the stream's leader.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn state(&self) -> Result<stream::State, ReadError> {
        Ok(self.identity().await?.1)
    }

    /// When the log was made, which tells it from any other, and how far it reaches; told by the stream's leader.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn identity(&self) -> Result<(OffsetDateTime, stream::State), ReadError> {
        let stream = self.context.get_stream(subject::STREAM).await.map_err(unavailable)?;
        let info = stream.cached_info();
        Ok((info.created, info.state.clone()))
    }

    /// Sequence of the last message that a filter selects, read at the leader; 0 when there is none.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn last_sequence(&self, filter: &str) -> Result<u64, ReadError> {
        Ok(self.last(filter).await?.map(|message| message.sequence).unwrap_or_default())
    }

    /// The first message from a sequence on that a filter selects, read at the leader.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub async fn next(&self, filter: &str, from: u64) -> Result<Option<StreamMessage>, ReadError> {
        next(&self.stream, filter, from).await
    }

    async fn last(&self, filter: &str) -> Result<Option<StreamMessage>, ReadError> {
        found(self.stream.get_last_raw_message_by_subject(filter).await)
    }

    /// The whole history of an aggregate with one subject an event type, the oldest first.
    async fn history<E: Event>(&self, aggregate: &Aggregate) -> Result<Vec<Recorded<E>>, ReadError> {
        let filter = aggregate.filter();
        let Some(last) = self.last(&filter).await? else { return Ok(Vec::new()) };
        let last = decode::<E>(&last)?;
        if last.n == 1 {
            return Ok(vec![last]);
        }
        // A replica may answer the quick read, and may lag: the leader is asked for what it has not heard of yet.
        let mut history = self.quick_history(&filter, &last).await;
        let mut from = history.last().map_or(1, |end: &Recorded<E>| end.seq + 1);
        while from <= last.seq {
            let Some(message) = self.next(&filter, from).await? else { break };
            from = message.sequence + 1;
            history.push(decode(&message)?);
        }
        match history.last() {
            Some(end) if end.seq >= last.seq => Ok(history),
            // One that led until now may have answered, and not known yet that it leads no more.
            _ => Err(ReadError::Unavailable(format!("{aggregate} could not be read up to its last event"))),
        }
    }

    /// The beginning of a history, as far as whoever answers has it: without a hole, and perhaps without its end.
    async fn quick_history<E: Event>(&self, filter: &str, last: &Recorded<E>) -> Vec<Recorded<E>> {
        let mut history = Vec::new();
        let count = usize::try_from(last.n).unwrap_or(usize::MAX).min(QUICK);
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

/// Whether a stream has a message that one of the filters selects, from a sequence on; its leader answers.
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

/// Sorts "there is none" from "could not ask".
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

/// Publishes a message, and waits until it is stored.
///
/// # Errors
/// What the server said.
pub async fn publish(
    context: &Context,
    point: Point,
    subject: impl ToSubject,
    message: PublishMessage,
) -> Result<PublishAck, PublishError> {
    let stored = async { context.send_publish(subject, message).await?.await };
    crash::effect(point, stored).await
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
        let Some(last) = self.last(&Aggregate::Player(id.clone()).filter()).await? else {
            return Ok(Player::default());
        };
        let last = decode::<player::Event>(&last)?;
        Ok(Player {
            state: player::State::evolve(&last.event),
            head: Head { seq: last.seq, n: last.n },
            last: Some(last),
        })
    }

    async fn session(&self, id: SessionId) -> Result<Session, ReadError> {
        Ok(Session::of(self.history::<session::Event>(&Aggregate::Session(id)).await?))
    }

    async fn inventory(&self, id: &PlayerId) -> Result<Option<Recorded<inventory::Event>>, ReadError> {
        let last = self.last(&Aggregate::Inventory(id.clone()).filter()).await?;
        last.map(|message| decode(&message)).transpose()
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
        let (reply, outcome) = oneshot::channel();
        let submission = commit::Submission::encode(decision, reply)?;
        let point = submission.point();
        let stopped = || AppendError::Unavailable("the committer has stopped".into());
        let appended = async {
            if self.submit.send(submission).await.is_err() {
                return Err(stopped());
            }
            outcome.await.unwrap_or_else(|_| Err(stopped()))
        };
        crash::effect(point, appended).await
    }
}
