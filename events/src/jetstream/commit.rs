//! Group commit: what is ready in the process is committed as one atomic batch.
//!
//! A commit holds at most one decision per aggregate, and an aggregate in flight waits for the outcome: with two
//! decisions on one aggregate in a batch the server would accept both, and put a player in two matches. Every message
//! carries its aggregate's head from before the batch as expectation.

use std::{collections::HashSet, error::Error as _, future::Future, time::Duration};

use async_nats::{
    HeaderMap,
    header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
    jetstream::{self, Context, ErrorCode, context::traits::Publisher, message::OutboundMessage, stream::Stream},
};
use futures::StreamExt;
use jetstream_extra::batch_publish::{BatchPublishErrorKind, BatchPublishExt};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{link::Link, written::EXPECTED_FILTER};
use crate::{
    crash::Point,
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

/// Decisions whose outcome is looked up at a time.
const LOOKUPS: usize = 32;

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

    /// Where a process that appends it can be made to die.
    pub(super) fn point(&self) -> Point {
        self.decision.point
    }

    /// Answers with the sequences of its messages, the first of which is `first`, and says what comes after them.
    fn stored(self, first: u64) -> u64 {
        let after = first + u64::try_from(self.decision.messages).unwrap_or(u64::MAX);
        // Who no longer waits for the answer has gone; the events stay.
        let _ = self.reply.send(Ok((first..after).collect()));
        after
    }

    fn fail(self, error: AppendError) {
        let _ = self.reply.send(Err(error));
    }
}

/// Starts the committer. It ends when the last sender is dropped and everything submitted has its answer.
pub(super) fn start(context: Context, stream: Stream<()>, queue: usize) -> mpsc::Sender<Submission> {
    let (submit, submissions) = mpsc::channel(queue);
    let link = Link::new(context.client());
    tokio::spawn(run(Committer { context, stream, link }, submissions));
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
    link: Link,
}

/// Decisions that are tried together.
struct Part {
    group: Vec<Submission>,
    /// Whether it is unknown what became of an earlier try, which may still be stored.
    doubtful: bool,
    /// Whether some of an earlier try had moved.
    contended: bool,
}

/// What the server made of one try.
enum Outcome {
    /// Stored; the sequence of the last message.
    Stored(u64),
    /// An aggregate is not where it was expected: the sequence that the server named, which is its last message.
    Moved(Option<u64>),
    /// An append to one of the aggregates is in flight.
    Busy,
    /// There is no room.
    Full(String),
    /// Stored or not.
    Unknown(String),
    /// Something about it is not acceptable.
    Refused(String),
}

/// What the log says of one decision.
enum Found {
    /// It is stored, from this sequence on.
    Stored(u64),
    /// This aggregate of it has moved.
    Moved(Aggregate),
    /// It could still be stored.
    Nothing,
}

impl Committer {
    /// Commits a group, in as many tries and parts as it takes; each submission gets its answer.
    async fn commit(&self, group: Vec<Submission>) {
        let mut parts = vec![Part { group, doubtful: false, contended: false }];
        while let Some(mut part) = parts.pop() {
            part.give_up_late();
            if part.group.is_empty() {
                continue;
            }
            if !self.link.up(ANSWER).await {
                parts.push(part);
                continue;
            }
            if part.doubtful {
                if !self.settle(&mut part).await {
                    pause(100).await;
                    parts.push(part);
                    continue;
                }
                if part.group.is_empty() {
                    continue;
                }
            }
            match self.attempt(&part.group).await {
                Outcome::Stored(last) => {
                    let count: usize = part.group.iter().map(|submission| submission.decision.messages).sum();
                    let mut next = last + 1 - u64::try_from(count).unwrap_or(u64::MAX);
                    // A batch's messages stand in the stream one after the other.
                    for submission in part.group {
                        next = submission.stored(next);
                    }
                }
                Outcome::Busy => {
                    pause(3).await;
                    parts.push(part);
                }
                Outcome::Unknown(reason) => {
                    tracing::warn!(%reason, "outcome of a commit is unknown; looking it up");
                    pause(3).await;
                    parts.push(Part { doubtful: true, ..part });
                }
                Outcome::Moved(seq) => self.moved(seq, part, &mut parts).await,
                Outcome::Full(reason) => {
                    part.group.into_iter().for_each(|one| one.fail(AppendError::Unavailable(reason.clone())));
                }
                Outcome::Refused(reason) => match <[Submission; 1]>::try_from(part.group) {
                    Ok([one]) => one.fail(AppendError::Refused(reason)),
                    Err(group) => Part { group, ..part }.halve(&mut parts),
                },
            }
        }
    }

    /// Answers the decision that the server named, by the sequence of the message which it did not expect.
    async fn moved(&self, seq: Option<u64>, mut part: Part, parts: &mut Vec<Part>) {
        let Some(seq) = seq else {
            // It names none where an aggregate has no message, and one was expected.
            match part.group.as_slice() {
                [one] => {
                    let moved = one.decision.suspect().cloned();
                    moved.inspect(|aggregate| part.conflict(aggregate));
                }
                _ => part.halve(parts),
            }
            return;
        };
        let message = self.ask(self.stream.get_raw_message(seq)).await.and_then(Result::ok);
        let named = message.as_ref().and_then(|message| Aggregate::of(&message.subject));
        let id = message.and_then(|message| Some(Envelope::from_slice(&message.payload).ok()?.id));
        let (Some(named), Some(id)) = (named, id) else {
            pause(100).await;
            parts.push(part);
            return;
        };
        let ours = |submission: &Submission| submission.decision.messages().any(|(_, message)| message.id == id);
        if part.group.iter().any(ours) {
            // An earlier try is stored.
            part.doubtful = true;
            pause(3).await;
            parts.push(part);
            return;
        }
        let before = part.group.len();
        part.conflict(&named);
        if part.group.len() == before {
            part.halve(parts);
            return;
        }
        // Where two have moved there are more, and one sweep is quicker than a try for each.
        if part.contended {
            self.settle(&mut part).await;
        }
        parts.push(Part { contended: true, ..part });
    }

    /// Answers those of a part that the log knows to be stored, or never to be; whether all could be looked up.
    async fn settle(&self, part: &mut Part) -> bool {
        let lookups = part.group.drain(..).map(async |submission| {
            let found = self.find(&submission.decision).await;
            (submission, found)
        });
        let mut lookups = futures::stream::iter(lookups).buffered(LOOKUPS);
        let (mut left, mut sure) = (Vec::new(), true);
        while let Some((submission, found)) = lookups.next().await {
            match found {
                Ok(Found::Stored(first)) => drop(submission.stored(first)),
                Ok(Found::Moved(aggregate)) => submission.fail(AppendError::Conflict(aggregate)),
                Ok(Found::Nothing) => left.push(submission),
                Err(reason) => {
                    tracing::debug!(%reason, "the outcome of a commit cannot be looked up yet");
                    sure = false;
                    left.push(submission);
                }
            }
        }
        drop(lookups);
        part.group = left;
        sure
    }

    /// Looks up at the leader what became of a decision: it is stored whole or not at all, so that its first message
    /// answers for all, and once an aggregate of it was moved by another it never will be.
    async fn find(&self, decision: &Encoded) -> Result<Found, String> {
        for (place, change) in decision.changes.iter().enumerate() {
            let next = self.ask(super::next(&self.stream, &change.filter, change.head.seq + 1)).await;
            let message = match next {
                Some(Ok(Some(message))) => message,
                Some(Ok(None)) => continue,
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("no answer".into()),
            };
            let ours = change.messages.first().map(|first| first.id);
            let theirs = Envelope::from_slice(&message.payload).ok().map(|envelope| envelope.id);
            return match (ours == theirs, place) {
                (false, _) => Ok(Found::Moved(change.aggregate.clone())),
                (true, 0) => Ok(Found::Stored(message.sequence)),
                // Who answered before was no longer the leader.
                (true, _) => Err("it is stored, and its beginning was not found".into()),
            };
        }
        Ok(Found::Nothing)
    }

    async fn attempt(&self, group: &[Submission]) -> Outcome {
        let messages = group.iter().flat_map(|submission| submission.decision.messages());
        let messages: Vec<OutboundMessage> = messages.map(|(change, message)| outbound(change, message)).collect();
        self.ask(self.send(messages)).await.unwrap_or_else(|| Outcome::Unknown("no answer".into()))
    }

    async fn send(&self, mut messages: Vec<OutboundMessage>) -> Outcome {
        let Some(last) = messages.pop() else { return Outcome::Refused("an empty commit".into()) };
        if messages.is_empty() {
            // One message needs no batch, and one round trip through the plain path is the quicker.
            return match self.context.publish_message(last).await {
                Ok(ack) => match ack.await {
                    Ok(ack) => Outcome::Stored(ack.sequence),
                    Err(error) => api_error(&error).map_or_else(|| Outcome::Unknown(error.to_string()), judge),
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

    /// The server's answer, unless it does not come in time, or the connection it would have come on was lost.
    async fn ask<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        self.link.through(timeout(ANSWER, request)).await?.ok()
    }
}

impl Part {
    /// Answers those whose time is over.
    fn give_up_late(&mut self) {
        let now = Instant::now();
        for late in self.group.extract_if(.., |submission| submission.deadline <= now).collect::<Vec<_>>() {
            late.fail(AppendError::Unavailable(format!("not stored within {} s", DEADLINE.as_secs())));
        }
    }

    /// Sends the one decision on an aggregate back to who made it.
    fn conflict(&mut self, moved: &Aggregate) {
        let hit = |submission: &mut Submission| submission.aggregates().any(|aggregate| aggregate == moved);
        for submission in self.group.extract_if(.., hit).collect::<Vec<_>>() {
            submission.fail(AppendError::Conflict(moved.clone()));
        }
    }

    /// Puts back both halves; what is the matter with one does not concern the other.
    fn halve(mut self, parts: &mut Vec<Self>) {
        let group = self.group.split_off(self.group.len() / 2);
        parts.push(Self { group, doubtful: self.doubtful, contended: self.contended });
        parts.push(self);
    }
}

fn outbound(change: &Change, message: &Message) -> OutboundMessage {
    let mut headers = HeaderMap::new();
    headers.insert(TYPE_HEADER, message.type_name);
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, change.head.seq.to_string().as_str());
    headers.insert(EXPECTED_FILTER, change.filter.as_ref());
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
        // Nothing of it is stored then, which the server says with the code of a failing disk.
        ErrorCode::STREAM_STORE_FAILED if api.to_string().contains("maximum") => Outcome::Full(api.to_string()),
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
