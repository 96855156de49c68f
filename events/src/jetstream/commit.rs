//! Group commit: the decisions that wait in this process are committed together, as one atomic batch.
//!
//! Each message carries the expected last sequence of its aggregate, from before the batch. The server does not check
//! messages of one batch against each other if they only share a filter, so it would accept two decisions on the same
//! session in one batch. Therefore a commit holds at most one decision per aggregate, and while a commit is in flight,
//! later decisions on its aggregates wait.

use std::{collections::HashSet, error::Error as _, future::Future, time::Duration};

use async_nats::jetstream::{
    self, Context, ErrorCode, context::traits::Publisher, message::OutboundMessage, stream::Stream,
};
use futures::StreamExt;
use jetstream_extra::batch_publish::{BatchPublishErrorKind, BatchPublishExt};
use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    backlog::{Backlog, Place},
    link::Link,
    storage::{Storage, Trouble},
    written,
};
use crate::{
    crash::Point,
    deadline::{Ended, receive},
    env::{Env, System},
    event::Envelope,
    log::{
        AppendError, Decision, MAX_COMMIT,
        encode::{Change, Encoded, Message, take},
    },
    subject::Aggregate,
};

/// The maximum number of commits in flight per process. While the server writes one to disk, the next one is sent.
const MAX_IN_FLIGHT: usize = 2;

/// How long to wait for the server's answer to one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How many outcomes are looked up concurrently.
const CONCURRENT_LOOKUPS: usize = 32;

/// How long a decision is retried before its append fails with [`AppendError::Unavailable`].
const DEADLINE: Duration = Duration::from_secs(30);

/// How long to wait for the next decision at a time. The committer has nothing to do meanwhile.
const IDLE: Duration = Duration::from_secs(60);

type Reply = oneshot::Sender<Result<Vec<u64>, AppendError>>;

/// A decision that waits for its outcome.
#[derive(Debug)]
pub(super) struct Submission {
    decision: Encoded,
    deadline: Instant,
    place: Place,
    reply: Reply,
}

impl AsRef<Encoded> for Submission {
    fn as_ref(&self) -> &Encoded {
        &self.decision
    }
}

impl Submission {
    /// Encodes a decision, and takes a place in the backlog. Its deadline starts now.
    pub(super) fn encode(decision: Decision, backlog: &Backlog, reply: Reply) -> Result<Self, AppendError> {
        let decision = Encoded::new(decision)?;
        let place = backlog.enter(decision.aggregates())?;
        Ok(Self { decision, deadline: Instant::now() + DEADLINE, place, reply })
    }

    fn aggregates(&self) -> impl Iterator<Item = &Aggregate> {
        self.decision.aggregates()
    }

    /// The crash point of the append.
    pub(super) fn point(&self) -> Point {
        self.decision.point
    }

    /// Answers with the sequences of the messages, which start at `first`. Returns the sequence after the last one.
    fn stored(self, first: u64) -> u64 {
        let after = first + u64::try_from(self.decision.messages).unwrap_or(u64::MAX);
        self.answer(Ok((first..after).collect()));
        after
    }

    fn fail(self, error: AppendError) {
        self.answer(Err(error));
    }

    fn answer(self, outcome: Result<Vec<u64>, AppendError>) {
        // Before the answer, so that the caller can append again at once.
        drop(self.place);
        // If the caller no longer waits, nobody needs the answer. The events stay stored.
        let _ = self.reply.send(outcome);
    }
}

/// Starts the committer, the task that sends the commits. It ends after the last sender is dropped and all submissions
/// are answered.
pub(super) fn start(context: Context, stream: Stream<()>, storage: Storage, queue: usize) -> mpsc::Sender<Submission> {
    let (submit, submissions) = mpsc::channel(queue);
    let link = Link::new(context.client());
    tokio::spawn(run(Committer { context, stream, link, storage }, submissions));
    submit
}

async fn run(committer: Committer, mut submissions: mpsc::Receiver<Submission>) {
    let mut waiting: Vec<Submission> = Vec::new();
    let mut busy: HashSet<Aggregate> = HashSet::new();
    let mut in_flight: JoinSet<()> = JoinSet::new();
    let mut groups: std::collections::HashMap<tokio::task::Id, Vec<Aggregate>> = std::collections::HashMap::new();
    let mut open = true;
    while open || !waiting.is_empty() || !in_flight.is_empty() {
        // While nothing is stored, one commit at a time finds out whether that has changed. The others fail at once.
        if let Some(trouble) = committer.not_storing().filter(|_| !in_flight.is_empty()) {
            waiting.drain(..).for_each(|one| one.fail(AppendError::Unavailable(trouble.to_string())));
        }
        while in_flight.len() < MAX_IN_FLIGHT {
            let group = take(&mut waiting, &busy);
            if group.is_empty() {
                break;
            }
            let aggregates: Vec<_> = group.iter().flat_map(Submission::aggregates).cloned().collect();
            busy.extend(aggregates.iter().cloned());
            let committer = committer.clone();
            let task = in_flight.spawn(async move { committer.commit(group).await });
            groups.insert(task.id(), aggregates);
        }
        tokio::select! {
            // Limited, so that the channel fills up and its senders wait.
            submission = receive(&mut submissions, IDLE), if open && waiting.len() < MAX_COMMIT => {
                match submission {
                    Ok(submission) => waiting.push(submission),
                    Err(ended) => open = ended != Ended::Closed,
                }
                while waiting.len() < MAX_COMMIT && let Ok(submission) = submissions.try_recv() {
                    waiting.push(submission);
                }
            }
            Some(done) = in_flight.join_next_with_id() => {
                // A commit that panicked has dropped its replies, so its callers get an error. Free its aggregates too.
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
    storage: Storage,
}

/// Decisions that are sent in one commit.
struct Part {
    group: Vec<Submission>,
    /// Whether the outcome of an earlier try is unknown: the server may have stored it, or may still store it.
    outcome_unknown: bool,
    /// The last try, if the server has not confirmed it and its outcome is not looked up yet.
    unconfirmed: Option<Try>,
    /// Whether an earlier try failed with a conflict.
    contended: bool,
}

/// A try to store a commit.
#[derive(Clone, Copy)]
struct Try {
    sent: OffsetDateTime,
    connection: u64,
}

/// The server's answer to one try.
enum Outcome {
    /// The commit is stored. Holds the sequence of its last message.
    Stored(u64),
    /// An aggregate has a newer message than expected. Holds that message's sequence, if the server named it.
    Conflict(Option<u64>),
    /// Another append to one of the aggregates is in flight.
    Busy,
    /// The stream is full, and has not stored the commit.
    Full(String),
    /// A server has no room. In a cluster, the other servers may have stored the commit.
    NoRoom(String),
    /// The commit may or may not be stored.
    Unknown(String),
    /// The server does not accept the commit.
    Refused(String),
}

/// What the log shows about the outcome of one decision.
enum Found {
    /// The decision is stored. Holds the sequence of its first message.
    Stored(u64),
    /// This aggregate has changed, so the decision can never be stored.
    Conflict(Aggregate),
    /// The decision is not stored, but still could be.
    Nothing,
}

impl Committer {
    /// Commits a group, with retries, and in several parts if necessary. Each submission gets its answer.
    async fn commit(&self, group: Vec<Submission>) {
        let mut parts = vec![Part { group, outcome_unknown: false, unconfirmed: None, contended: false }];
        while let Some(mut part) = parts.pop() {
            part.fail_expired();
            if part.group.is_empty() {
                continue;
            }
            if !self.link.wait_until_connected(REQUEST_TIMEOUT).await {
                parts.push(part);
                continue;
            }
            if part.outcome_unknown {
                if !self.look_up_outcomes(&mut part).await {
                    pause(100).await;
                    parts.push(part);
                    continue;
                }
                if part.group.is_empty() {
                    continue;
                }
                if let Some(lost) = part.unconfirmed.take() {
                    self.storage.lost(lost.sent, System.now(), lost.connection);
                    if let Some(trouble) = self.not_storing() {
                        // No later try can be stored either, until somebody restarts the server.
                        part.fail(|| AppendError::Unavailable(trouble.to_string()));
                        continue;
                    }
                }
            }
            let this = Try { sent: System.now(), connection: self.link.connections() };
            match self.try_commit(&part.group).await {
                Outcome::Stored(last) => {
                    self.storage.stored();
                    let count: usize = part.group.iter().map(|submission| submission.decision.messages).sum();
                    let mut next = last + 1 - u64::try_from(count).unwrap_or(u64::MAX);
                    // The messages of a batch have consecutive sequences.
                    for submission in part.group {
                        next = submission.stored(next);
                    }
                }
                Outcome::Busy => {
                    pause(3).await;
                    parts.push(part);
                }
                Outcome::Unknown(reason) => {
                    tracing::warn!(%reason, "the outcome of a commit is unknown; looking it up in the log");
                    pause(3).await;
                    let unconfirmed = Some(this).filter(|this| this.connection == self.link.connections());
                    parts.push(Part { outcome_unknown: true, unconfirmed, ..part });
                }
                Outcome::Conflict(seq) => self.resolve_conflict(seq, part, &mut parts).await,
                Outcome::Full(reason) if !part.outcome_unknown => {
                    self.storage.refused(this.sent);
                    part.fail(|| AppendError::Full(reason.clone()));
                }
                Outcome::Full(reason) | Outcome::NoRoom(reason) => {
                    self.storage.refused(this.sent);
                    if self.look_up_outcomes(&mut part).await {
                        part.fail(|| AppendError::Full(reason.clone()));
                    } else {
                        pause(100).await;
                        parts.push(Part { outcome_unknown: true, ..part });
                    }
                }
                Outcome::Refused(reason) => match <[Submission; 1]>::try_from(part.group) {
                    Ok([one]) => one.fail(AppendError::Refused(reason)),
                    Err(group) => Part { group, ..part }.split(&mut parts),
                },
            }
        }
    }

    /// Whether the server is known to store nothing.
    fn not_storing(&self) -> Option<Trouble> {
        self.storage.own_trouble().filter(|trouble| matches!(trouble, Trouble::NotStoring { .. }))
    }

    /// Fails the decision that has the conflict. `seq` is the message that the decision did not expect.
    async fn resolve_conflict(&self, seq: Option<u64>, mut part: Part, parts: &mut Vec<Part>) {
        let Some(seq) = seq else {
            // The server names no sequence if an aggregate has no message although one was expected.
            match part.group.as_slice() {
                [one] => {
                    let changed = one.decision.likely_conflict().cloned();
                    changed.inspect(|aggregate| part.fail_conflict(aggregate));
                }
                _ => part.split(parts),
            }
            return;
        };
        let message = self.request(self.stream.get_raw_message(seq)).await.and_then(Result::ok);
        let named = message.as_ref().and_then(|message| Aggregate::of(&message.subject));
        let id = message.and_then(|message| Some(Envelope::from_slice(&message.payload).ok()?.id));
        let (Some(named), Some(id)) = (named, id) else {
            pause(100).await;
            parts.push(part);
            return;
        };
        let ours = |submission: &Submission| submission.decision.messages().any(|(_, message)| message.id == id);
        if part.group.iter().any(ours) {
            // The message is from an earlier try of this part, which is stored.
            part.outcome_unknown = true;
            pause(3).await;
            parts.push(part);
            return;
        }
        let before = part.group.len();
        part.fail_conflict(&named);
        if part.group.len() == before {
            part.split(parts);
            return;
        }
        // A second conflict in the same part suggests that there are more. Looking up all decisions at once is faster
        // than one try per conflict.
        if part.contended {
            self.look_up_outcomes(&mut part).await;
        }
        parts.push(Part { contended: true, ..part });
    }

    /// Answers the decisions whose outcome is final according to the log, and removes them from the part. Returns
    /// whether all decisions could be looked up.
    async fn look_up_outcomes(&self, part: &mut Part) -> bool {
        let lookups = part.group.drain(..).map(async |submission| {
            let found = self.find(&submission.decision).await;
            (submission, found)
        });
        let mut lookups = futures::stream::iter(lookups).buffered(CONCURRENT_LOOKUPS);
        let (mut left, mut complete) = (Vec::new(), true);
        while let Some((submission, found)) = lookups.next().await {
            match found {
                Ok(Found::Stored(first)) => {
                    self.storage.stored();
                    submission.stored(first);
                }
                Ok(Found::Conflict(aggregate)) => submission.fail(AppendError::Conflict(aggregate)),
                Ok(Found::Nothing) => left.push(submission),
                Err(reason) => {
                    tracing::debug!(%reason, "cannot look up the outcome of a commit yet");
                    complete = false;
                    left.push(submission);
                }
            }
        }
        drop(lookups);
        part.group = left;
        complete
    }

    /// Looks up the outcome of a decision at the leader. A decision is stored completely or not at all, so it is enough
    /// to look up its first message. If another decision has changed one of the aggregates, this decision can never be
    /// stored.
    async fn find(&self, decision: &Encoded) -> Result<Found, String> {
        for (place, change) in decision.changes.iter().enumerate() {
            let next = self.request(super::next(&self.stream, &change.filter, change.head.seq + 1)).await;
            let message = match next {
                Some(Ok(Some(message))) => message,
                Some(Ok(None)) => continue,
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("no answer".into()),
            };
            let ours = change.messages.first().map(|first| first.id);
            let theirs = Envelope::from_slice(&message.payload).ok().map(|envelope| envelope.id);
            return match (ours == theirs, place) {
                (false, _) => Ok(Found::Conflict(change.aggregate.clone())),
                (true, 0) => Ok(Found::Stored(message.sequence)),
                // The answer for an earlier aggregate came from a node that was no longer the leader.
                (true, _) => Err("a later part of the decision is stored, but its first message was not found".into()),
            };
        }
        Ok(Found::Nothing)
    }

    async fn try_commit(&self, group: &[Submission]) -> Outcome {
        let messages = group.iter().flat_map(|submission| submission.decision.messages());
        let messages: Vec<OutboundMessage> = messages.map(|(change, message)| outbound(change, message)).collect();
        self.request(self.send(messages)).await.unwrap_or_else(|| Outcome::Unknown("no answer".into()))
    }

    async fn send(&self, mut messages: Vec<OutboundMessage>) -> Outcome {
        let Some(last) = messages.pop() else { return Outcome::Refused("an empty commit".into()) };
        if messages.is_empty() {
            // One message needs no batch. A plain publish is faster.
            return match self.context.publish_message(last).await {
                Ok(ack) => match ack.await {
                    Ok(ack) => Outcome::Stored(ack.sequence),
                    Err(error) => api_error(&error).map_or_else(|| Outcome::Unknown(error.to_string()), classify),
                },
                Err(error) => Outcome::Unknown(error.to_string()),
            };
        }
        let mut batch = self.context.batch_publish().ack_first(false).timeout(REQUEST_TIMEOUT).build();
        for message in messages {
            if let Err(error) = batch.add_message(message).await {
                return classify_batch(&error);
            }
        }
        match batch.commit_message(last).await {
            Ok(ack) => Outcome::Stored(ack.sequence),
            Err(error) => classify_batch(&error),
        }
    }

    /// Waits for the server's answer. Returns `None` if it does not arrive in time, or if the connection is lost.
    async fn request<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        self.link.on_current_connection(timeout(REQUEST_TIMEOUT, request)).await?.ok()
    }
}

impl Part {
    /// Fails all decisions.
    fn fail(&mut self, error: impl Fn() -> AppendError) {
        self.group.drain(..).for_each(|one| one.fail(error()));
    }

    /// Fails the decisions whose deadline has passed.
    fn fail_expired(&mut self) {
        let now = Instant::now();
        for expired in self.group.extract_if(.., |submission| submission.deadline <= now).collect::<Vec<_>>() {
            expired.fail(AppendError::Unavailable(format!("not confirmed within {} s", DEADLINE.as_secs())));
        }
    }

    /// Fails the decision on an aggregate that has changed. There is at most one.
    fn fail_conflict(&mut self, changed: &Aggregate) {
        let affected = |submission: &mut Submission| submission.aggregates().any(|aggregate| aggregate == changed);
        for submission in self.group.extract_if(.., affected).collect::<Vec<_>>() {
            submission.fail(AppendError::Conflict(changed.clone()));
        }
    }

    /// Splits the part in two, so that a problem in one half does not affect the other.
    fn split(mut self, parts: &mut Vec<Self>) {
        let group = self.group.split_off(self.group.len() / 2);
        parts.push(Self { group, ..self });
        parts.push(self);
    }
}

fn outbound(change: &Change, message: &Message) -> OutboundMessage {
    let headers = Some(written::headers(message.type_name, change.head.seq, &change.filter));
    OutboundMessage { subject: message.subject.as_str().into(), payload: message.body.clone(), headers }
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

fn classify_batch(error: &jetstream_extra::batch_publish::BatchPublishError) -> Outcome {
    let api = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    match (error.kind(), api) {
        (_, Some(api)) => classify(api),
        (BatchPublishErrorKind::MaxMessagesExceeded | BatchPublishErrorKind::BatchPublishUnsupportedHeader, None) => {
            Outcome::Refused(error.to_string())
        }
        (_, None) => Outcome::Unknown(error.to_string()),
    }
}

fn classify(api: &jetstream::Error) -> Outcome {
    match api.error_code() {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE => {
            // For example "wrong last sequence: 123".
            let text = api.to_string();
            let named = text.split("wrong last sequence: ").nth(1).and_then(leading_number);
            Outcome::Conflict(named.filter(|seq| *seq > 0))
        }
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => Outcome::Busy,
        // The server dropped a part of the batch, or the whole batch. Only the log shows what is stored.
        ErrorCode::ATOMIC_PUBLISH_INCOMPLETE_BATCH | ErrorCode::ATOMIC_PUBLISH_TOO_MANY_INFLIGHT => {
            Outcome::Unknown(api.to_string())
        }
        // The server uses the same code for a failing disk.
        ErrorCode::STREAM_STORE_FAILED
            if ["maximum bytes", "maximum messages exceeded"].iter().any(|limit| api.to_string().contains(limit)) =>
        {
            Outcome::Full(api.to_string())
        }
        // The limit of the server (`max_file_store`) or of the account is reached, but not that of the stream.
        ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => Outcome::NoRoom(api.to_string()),
        _ if api.code() >= 500 => Outcome::Unknown(api.to_string()),
        _ => Outcome::Refused(api.to_string()),
    }
}

fn leading_number(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).map_or(text, |end| text.get(..end).unwrap_or_default());
    digits.parse().ok()
}

/// Waits `millis` plus a random time of up to twice that, so that two commits that collided do not collide again.
async fn pause(millis: u64) {
    sleep(Duration::from_millis(millis + rand::random_range(0..=millis * 2))).await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outcome(status: u64, code: u64, description: &str) -> Outcome {
        let error = json!({"code": status, "err_code": code, "description": description});
        classify(&serde_json::from_value(error).unwrap())
    }

    #[test]
    fn a_full_stream_is_distinguished_from_a_server_without_room_and_from_a_write_error() {
        for limit in ["maximum bytes exceeded", "maximum messages exceeded"] {
            assert!(matches!(outcome(503, 10_077, limit), Outcome::Full(_)), "{limit}");
        }
        for (status, code) in [(503, 10_023), (500, 10_047), (400, 10_002)] {
            assert!(matches!(outcome(status, code, "no room"), Outcome::NoRoom(_)), "{code}");
        }
        assert!(matches!(outcome(503, 10_077, "write 1.blk: no space left on device"), Outcome::Unknown(_)));
    }
}
