//! Group commit: what is ready in the process is committed as one atomic batch.
//!
//! A commit holds at most one decision per aggregate, and an aggregate in flight waits for the outcome: with two
//! decisions on one aggregate in a batch the server would accept both, and put a player in two matches. Every message
//! carries its aggregate's head from before the batch as expectation.

use std::{collections::HashSet, error::Error as _, time::Duration};

use async_nats::{
    HeaderMap,
    header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
    jetstream::{self, Context, ErrorCode, context::traits::Publisher, message::OutboundMessage, stream::Stream},
};
use jetstream_extra::batch_publish::{BatchPublishErrorKind, BatchPublishExt};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    event::{Envelope, TYPE_HEADER},
    log::{
        AppendError, Decision, MAX_COMMIT,
        encode::{Change, Encoded, Message, take},
    },
    subject::Aggregate,
};

/// Commits that one process has at the server at a time: while one is written to disk, the next travels.
const IN_FLIGHT: usize = 2;

/// How long the server has to answer one try.
const ANSWER: Duration = Duration::from_secs(5);

/// How long a decision is tried before its submitter hears that the log does not answer.
const DEADLINE: Duration = Duration::from_secs(30);

type Reply = oneshot::Sender<Result<Vec<u64>, AppendError>>;

/// A decision on its way.
#[derive(Debug)]
pub(super) struct Submission {
    decision: Encoded,
    deadline: Instant,
    reply: Reply,
}

impl AsRef<Encoded> for Submission {
    fn as_ref(&self) -> &Encoded {
        &self.decision
    }
}

impl Submission {
    /// Makes a decision's messages.
    pub(super) fn encode(decision: Decision, reply: Reply) -> Result<Self, AppendError> {
        Ok(Self { decision: Encoded::new(decision)?, deadline: Instant::now() + DEADLINE, reply })
    }

    fn aggregates(&self) -> impl Iterator<Item = &Aggregate> {
        self.decision.aggregates()
    }

    /// Answers with the sequences of its messages, the first of which is `first`.
    fn stored(self, first: u64) {
        let sequences = (first..).take(self.decision.messages).collect();
        // Who no longer waits for the answer has gone; the events stay.
        let _ = self.reply.send(Ok(sequences));
    }

    fn fail(self, error: AppendError) {
        let _ = self.reply.send(Err(error));
    }
}

/// Starts the committer. It ends when the last sender is dropped and everything submitted has its answer.
pub(super) fn start(context: Context, stream: Stream<()>, queue: usize) -> mpsc::Sender<Submission> {
    let (submit, submissions) = mpsc::channel(queue);
    tokio::spawn(run(Committer { context, stream }, submissions));
    submit
}

async fn run(committer: Committer, mut submissions: mpsc::Receiver<Submission>) {
    let mut waiting: Vec<Submission> = Vec::new();
    let mut busy: HashSet<Aggregate> = HashSet::new();
    let mut flying: JoinSet<()> = JoinSet::new();
    let mut groups: std::collections::HashMap<tokio::task::Id, Vec<Aggregate>> = std::collections::HashMap::new();
    let mut open = true;
    while open || !waiting.is_empty() || !flying.is_empty() {
        while flying.len() < IN_FLIGHT {
            let group = take(&mut waiting, &busy);
            if group.is_empty() {
                break;
            }
            let aggregates: Vec<_> = group.iter().flat_map(Submission::aggregates).cloned().collect();
            busy.extend(aggregates.iter().cloned());
            let committer = committer.clone();
            let task = flying.spawn(async move { committer.commit(group).await });
            groups.insert(task.id(), aggregates);
        }
        tokio::select! {
            // Bounded, so that the channel fills and its senders wait.
            submission = submissions.recv(), if open && waiting.len() < MAX_COMMIT => {
                match submission {
                    Some(submission) => waiting.push(submission),
                    None => open = false,
                }
                while waiting.len() < MAX_COMMIT && let Ok(submission) = submissions.try_recv() {
                    waiting.push(submission);
                }
            }
            Some(done) = flying.join_next_with_id() => {
                // A commit that panicked dropped its replies, which its submitters see; its aggregates are free again.
                let id = match &done { Ok((id, ())) => *id, Err(error) => error.id() };
                for aggregate in groups.remove(&id).unwrap_or_default() {
                    busy.remove(&aggregate);
                }
            }
        }
    }
}

#[derive(Clone)]
struct Committer {
    context: Context,
    stream: Stream<()>,
}

/// What the server made of one try.
enum Outcome {
    /// Stored; the sequence of the last message.
    Stored(u64),
    /// An aggregate is not where it was expected: the sequence that the server named, which is its last message.
    Moved(Option<u64>),
    /// An append to one of the aggregates is in flight.
    Busy,
    /// Stored or not.
    Unknown(String),
    /// Something about it is not acceptable.
    Refused(String),
}

impl Committer {
    /// Commits a group, in as many tries and parts as it takes; each submission gets its answer.
    async fn commit(&self, group: Vec<Submission>) {
        // Each part, and whether an earlier try of it had an unknown outcome.
        let mut parts = vec![(group, false)];
        while let Some((mut part, doubtful)) = parts.pop() {
            let now = Instant::now();
            for late in part.extract_if(.., |submission| submission.deadline <= now).collect::<Vec<_>>() {
                late.fail(AppendError::Unavailable(format!("not stored within {} s", DEADLINE.as_secs())));
            }
            if part.is_empty() {
                continue;
            }
            if doubtful {
                match self.find(&part).await {
                    Ok(Found::Stored(first)) => {
                        store(part, first);
                        continue;
                    }
                    Ok(Found::Another(aggregate)) => {
                        // Whole or not at all: with one aggregate moved by somebody else, that try can never land.
                        conflict(&mut part, &aggregate);
                        parts.push((part, false));
                        continue;
                    }
                    Ok(Found::Nothing) => {}
                    Err(()) => {
                        pause(100).await;
                        parts.push((part, true));
                        continue;
                    }
                }
            }
            match self.attempt(&part).await {
                Outcome::Stored(last) => {
                    let count: usize = part.iter().map(|submission| submission.decision.messages).sum();
                    store(part, last + 1 - u64::try_from(count).unwrap_or(u64::MAX));
                }
                Outcome::Busy => {
                    pause(3).await;
                    parts.push((part, doubtful));
                }
                Outcome::Unknown(reason) => {
                    tracing::warn!(%reason, "outcome of a commit is unknown; looking it up");
                    pause(3).await;
                    parts.push((part, true));
                }
                Outcome::Moved(seq) => {
                    if doubtful {
                        // The earlier try may have landed since, and be what this one ran into.
                        match self.find(&part).await {
                            Ok(Found::Stored(first)) => {
                                store(part, first);
                                continue;
                            }
                            Ok(Found::Another(_) | Found::Nothing) => {}
                            Err(()) => {
                                parts.push((part, true));
                                continue;
                            }
                        }
                    }
                    match self.moved(seq, &part).await {
                        Some(aggregate) => {
                            conflict(&mut part, &aggregate);
                            parts.push((part, false));
                        }
                        None => halve(part, doubtful, &mut parts),
                    }
                }
                Outcome::Refused(reason) => {
                    if part.len() == 1 {
                        part.into_iter().for_each(|one| one.fail(AppendError::Refused(reason.clone())));
                    } else {
                        halve(part, doubtful, &mut parts);
                    }
                }
            }
        }
    }

    /// The aggregate of a part that is not where it was expected, if it can be told.
    async fn moved(&self, seq: Option<u64>, part: &[Submission]) -> Option<Aggregate> {
        let mut aggregates = part.iter().flat_map(Submission::aggregates);
        if let Some(seq) = seq {
            let message = self.stream.get_raw_message(seq).await.ok()?;
            let moved = Aggregate::of(&message.subject)?;
            return aggregates.find(|aggregate| **aggregate == moved).cloned();
        }
        // The server names no message for an aggregate that has none any more. A lone decision has moved in any case.
        if part.len() == 1 { aggregates.next().cloned() } else { None }
    }

    async fn attempt(&self, part: &[Submission]) -> Outcome {
        let mut messages: Vec<OutboundMessage> = part
            .iter()
            .flat_map(|submission| submission.decision.messages())
            .map(|(change, message)| outbound(change, message))
            .collect();
        let Some(last) = messages.pop() else { return Outcome::Refused("an empty commit".into()) };
        if messages.is_empty() {
            // One message needs no batch, and one round trip through the plain path is the quicker.
            return match self.context.publish_message(last).await {
                Ok(ack) => match tokio::time::timeout(ANSWER, ack).await {
                    Ok(Ok(ack)) => Outcome::Stored(ack.sequence),
                    Ok(Err(error)) => api_error(&error).map_or_else(|| Outcome::Unknown(error.to_string()), judge),
                    Err(_) => Outcome::Unknown(format!("no answer within {} s", ANSWER.as_secs())),
                },
                Err(error) => Outcome::Unknown(error.to_string()),
            };
        }
        let mut batch = self.context.batch_publish().ack_first(false).timeout(ANSWER).build();
        for message in messages {
            if let Err(error) = batch.add_message(message).await {
                return judge_batch(&error);
            }
        }
        match batch.commit_message(last).await {
            Ok(ack) => Outcome::Stored(ack.sequence),
            Err(error) => judge_batch(&error),
        }
    }

    /// Looks up at the leader what became of a part whose outcome is unknown. It is stored whole or not at all, so
    /// that its first message answers for all.
    async fn find(&self, part: &[Submission]) -> Result<Found, ()> {
        let Some(change) = part.iter().flat_map(|submission| &submission.decision.changes).next() else {
            return Ok(Found::Nothing);
        };
        let Some(first) = change.messages.first() else { return Ok(Found::Nothing) };
        match super::next(&self.stream, &change.filter, change.head.seq + 1).await {
            Ok(None) => Ok(Found::Nothing),
            Ok(Some(message)) => match Envelope::from_slice(&message.payload) {
                Ok(envelope) if envelope.id == first.id => Ok(Found::Stored(message.sequence)),
                _ => Ok(Found::Another(change.aggregate.clone())),
            },
            Err(error) => {
                tracing::debug!(%error, "the outcome of a commit cannot be looked up yet");
                Err(())
            }
        }
    }
}

enum Found {
    Stored(u64),
    Another(Aggregate),
    Nothing,
}

/// Answers a part that is stored from `first` on. A batch's messages stand in the stream one after the other.
fn store(part: Vec<Submission>, first: u64) {
    let mut next = first;
    for submission in part {
        let count = u64::try_from(submission.decision.messages).unwrap_or(u64::MAX);
        submission.stored(next);
        next += count;
    }
}

/// Sends the one decision on an aggregate back to who made it.
fn conflict(part: &mut Vec<Submission>, moved: &Aggregate) {
    let hit = |submission: &mut Submission| submission.aggregates().any(|aggregate| aggregate == moved);
    for submission in part.extract_if(.., hit).collect::<Vec<_>>() {
        submission.fail(AppendError::Conflict(moved.clone()));
    }
}

fn halve(mut part: Vec<Submission>, doubtful: bool, parts: &mut Vec<(Vec<Submission>, bool)>) {
    let later = part.split_off(part.len() / 2);
    parts.push((later, doubtful));
    parts.push((part, doubtful));
}

fn outbound(change: &Change, message: &Message) -> OutboundMessage {
    let mut headers = HeaderMap::new();
    headers.insert(TYPE_HEADER, message.type_name);
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, change.head.seq.to_string().as_str());
    headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", change.filter.as_ref());
    OutboundMessage { subject: message.subject.as_str().into(), payload: message.body.clone(), headers: Some(headers) }
}

fn api_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a jetstream::Error> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(api) = inner.downcast_ref::<jetstream::Error>() {
            return Some(api);
        }
        source = inner.source();
    }
    None
}

fn judge_batch(error: &jetstream_extra::batch_publish::BatchPublishError) -> Outcome {
    let api = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    match (error.kind(), api) {
        (_, Some(api)) => judge(api),
        (BatchPublishErrorKind::MaxMessagesExceeded | BatchPublishErrorKind::BatchPublishUnsupportedHeader, None) => {
            Outcome::Refused(error.to_string())
        }
        (_, None) => Outcome::Unknown(error.to_string()),
    }
}

fn judge(api: &jetstream::Error) -> Outcome {
    match api.error_code() {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE => {
            // "wrong last sequence: 123"
            let text = api.to_string();
            let named = text.split("wrong last sequence: ").nth(1).and_then(leading_number);
            Outcome::Moved(named.filter(|seq| *seq > 0))
        }
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => Outcome::Busy,
        // The server gave up on a part of the batch, or on the batch; the log says which.
        ErrorCode::ATOMIC_PUBLISH_INCOMPLETE_BATCH | ErrorCode::ATOMIC_PUBLISH_TOO_MANY_INFLIGHT => {
            Outcome::Unknown(api.to_string())
        }
        _ if api.code() >= 500 => Outcome::Unknown(api.to_string()),
        _ => Outcome::Refused(api.to_string()),
    }
}

fn leading_number(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).map_or(text, |end| text.get(..end).unwrap_or_default());
    digits.parse().ok()
}

/// Waits a little, each time another little, so that two that collided do not collide again.
async fn pause(millis: u64) {
    sleep(Duration::from_millis(millis + rand::random_range(0..=millis * 2))).await;
}
