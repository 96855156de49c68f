//! Encodes a decision as messages, and selects the decisions that may share a commit. All implementations of the log
//! use this module.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use serde_json::value::to_raw_value;
use uuid::Uuid;

use super::{AppendError, Decision, Head, MAX_COMMIT};
use crate::{crash::Point, event::Envelope, subject::Aggregate};

/// The maximum size of an event, in bytes. A request for a game server with 200 players needs it. The rest of the
/// server's default limit for a message, 1 MiB, is for the subject and the headers.
pub const MAX_EVENT: usize = 832 << 10;

/// The maximum size of the events in one commit, in bytes, unless the commit is a single decision. The largest decision
/// has one event of [`MAX_EVENT`], or about 2 KiB for each of 200 players. NATS limits the number of messages in a
/// batch, not their size. But a cluster keeps a batch in memory and copies it to the other nodes at once, and a stream
/// drops messages while more than 128 MiB wait for it. Without this limit, a commit could take hundreds of MiB.
const MAX_COMMIT_BYTES: usize = 4 << 20;

/// A decision with its encoded messages.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) changes: Vec<Change>,
    /// The number of messages of all changes together.
    pub(crate) messages: usize,
    /// The size of their bodies together, in bytes.
    bytes: usize,
    /// The crash point of the append.
    pub(crate) point: Point,
}

/// The messages of one aggregate. They are adjacent in the stream.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) aggregate: Aggregate,
    /// The subject filter of the aggregate, which each message's expected sequence refers to.
    pub(crate) filter: Arc<str>,
    /// The aggregate's head before the decision. Each message carries the head's sequence as its expected sequence.
    pub(crate) head: Head,
    pub(crate) messages: Vec<Message>,
}

#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) id: Uuid,
    pub(crate) type_name: &'static str,
    pub(crate) subject: String,
    pub(crate) body: Bytes,
}

impl Encoded {
    /// Encodes a decision.
    ///
    /// # Errors
    /// [`AppendError::Refused`] if the decision breaks a rule of [`Decision`] or exceeds a size limit.
    pub(crate) fn new(decision: Decision) -> Result<Self, AppendError> {
        let messages = decision.len();
        let point = decision.point().filter(|_| messages <= MAX_COMMIT).ok_or_else(|| {
            AppendError::Refused(format!("a decision must have 1 to {MAX_COMMIT} events, this one has {messages}"))
        })?;
        let mut seen = HashSet::new();
        let mut changes = Vec::with_capacity(decision.changes.len());
        for change in decision.changes {
            if change.events.is_empty() || !seen.insert(change.aggregate.clone()) {
                return Err(AppendError::Refused(format!("{} has no event or is named twice", change.aggregate)));
            }
            if change.aggregate.has_one_subject() && change.events.len() > 1 {
                // Only the last event on a subject defines the state.
                return Err(AppendError::Refused(format!("{} has more than one event", change.aggregate)));
            }
            let mut encoded = Vec::with_capacity(change.events.len());
            for (event, n) in change.events.into_iter().zip(change.head.n + 1..) {
                let mut data = event.data.map_err(AppendError::Refused)?;
                if let Some(data) = data.as_object_mut() {
                    data.insert(change.aggregate.id_field().into(), change.aggregate.id().into());
                }
                let envelope = Envelope {
                    id: event.id,
                    n,
                    type_name: event.type_name.into(),
                    v: event.version,
                    at: decision.at,
                    correlation: decision.correlation,
                    cause: decision.cause,
                    data: to_raw_value(&data).map_err(refused)?,
                };
                let body = serde_json::to_vec(&envelope).map_err(refused)?;
                if body.len() > MAX_EVENT {
                    let reason = format!("{} has {} bytes; the limit is {MAX_EVENT}", event.type_name, body.len());
                    return Err(AppendError::Refused(reason));
                }
                encoded.push(Message {
                    id: event.id,
                    type_name: event.type_name,
                    subject: change.aggregate.subject_of(event.token),
                    body: body.into(),
                });
            }
            let filter = change.aggregate.filter().into();
            changes.push(Change { aggregate: change.aggregate, filter, head: change.head, messages: encoded });
        }
        let bytes = changes.iter().flat_map(|change| &change.messages).map(|message| message.body.len()).sum();
        Ok(Self { changes, messages, bytes, point })
    }

    pub(crate) fn aggregates(&self) -> impl Iterator<Item = &Aggregate> {
        self.changes.iter().map(|change| &change.aggregate)
    }

    /// The aggregate to report as changed if the server does not name one. The server names none if an aggregate has no
    /// message although the decision expects one. So the most likely aggregate is one with a non-zero head.
    pub(crate) fn likely_conflict(&self) -> Option<&Aggregate> {
        let expecting = self.changes.iter().find(|change| change.head.seq > 0);
        expecting.or(self.changes.first()).map(|change| &change.aggregate)
    }

    /// All messages in order, each with the change that it belongs to.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (&Change, &Message)> {
        self.changes.iter().flat_map(|change| change.messages.iter().map(move |message| (change, message)))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err passes the error by value")]
fn refused(error: serde_json::Error) -> AppendError {
    AppendError::Refused(error.to_string())
}

/// Removes the decisions for the next commit from `waiting`, oldest first. They fit into one commit, and share no
/// aggregate with each other or with a commit in flight (`busy`). A decision that exceeds [`MAX_COMMIT_BYTES`] gets a
/// commit of its own.
pub(crate) fn take<T: AsRef<Encoded>>(waiting: &mut Vec<T>, busy: &HashSet<Aggregate>) -> Vec<T> {
    let mut group: Vec<T> = Vec::new();
    let mut chosen: HashSet<Aggregate> = HashSet::new();
    let (mut messages, mut bytes) = (0, 0);
    let mut left = Vec::new();
    for candidate in waiting.drain(..) {
        let decision = candidate.as_ref();
        let free = decision.aggregates().all(|aggregate| !busy.contains(aggregate) && !chosen.contains(aggregate));
        // Reserve the aggregates even if the decision has to wait, so that no later decision overtakes it.
        chosen.extend(decision.aggregates().cloned());
        let fits = messages + decision.messages <= MAX_COMMIT
            && (group.is_empty() || bytes + decision.bytes <= MAX_COMMIT_BYTES);
        if free && fits {
            messages += decision.messages;
            bytes += decision.bytes;
            group.push(candidate);
        } else {
            left.push(candidate);
        }
    }
    *waiting = left;
    group
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::{
        env::{Env, Simulated},
        id::SessionId,
        session::{Event, Failed},
    };

    /// A decision with an event of about this size, on a session of its own.
    fn decision(env: &Simulated, size: usize) -> Box<Encoded> {
        let session = SessionId::new(env.id());
        let event = Event::from(Failed { reason: "x".repeat(size) });
        let decision = Decision::new(env, session.uuid(), None);
        let decision = decision.change(env, Aggregate::Session(session), Head::default(), [event]);
        Box::new(Encoded::new(decision).unwrap())
    }

    #[test]
    fn large_decisions_share_a_commit_up_to_its_limit_in_bytes() {
        let env = Simulated::at(datetime!(2026-01-01 00:00 UTC));
        let (large, small) = (MAX_EVENT - 1_000, 100);
        let sizes = [large, large, large, large, large, small, large];
        let mut waiting: Vec<_> = sizes.map(|size| decision(&env, size)).into();
        let sizes = |group: Vec<Box<Encoded>>| group.iter().map(|one| one.bytes > 1_000).collect::<Vec<_>>();
        assert_eq!(sizes(take(&mut waiting, &HashSet::new())), [true, true, true, true, false]);
        assert_eq!(sizes(take(&mut waiting, &HashSet::new())), [true, true]);
        assert!(waiting.is_empty());
    }
}
