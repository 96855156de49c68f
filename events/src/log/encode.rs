//! A decision as messages, the same in every log, and the rule which decisions may share a commit.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use serde_json::value::to_raw_value;
use uuid::Uuid;

use super::{AppendError, Decision, Head, MAX_COMMIT};
use crate::{crash::Point, event::Envelope, subject::Aggregate};

/// The largest event, in bytes: a quarter of what the server takes in one message by default.
const MAX_EVENT: usize = 256 << 10;

/// A decision, its messages made.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) changes: Vec<Change>,
    /// How many messages it is.
    pub(crate) messages: usize,
    /// Where a process that appends it can be made to die.
    pub(crate) point: Point,
}

/// The messages of one aggregate, which stand together.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) aggregate: Aggregate,
    /// What the expectation of each message names.
    pub(crate) filter: Arc<str>,
    /// What they expect: the aggregate's head before the decision.
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
    /// Makes a decision's messages.
    ///
    /// # Errors
    /// [`AppendError::Refused`] for a decision that no log may take.
    pub(crate) fn new(decision: Decision) -> Result<Self, AppendError> {
        let messages = decision.len();
        let point = decision.point().filter(|_| messages <= MAX_COMMIT).ok_or_else(|| {
            AppendError::Refused(format!("a decision of {messages} events; 1 to {MAX_COMMIT} fit a commit"))
        })?;
        let mut seen = HashSet::new();
        let mut changes = Vec::with_capacity(decision.changes.len());
        for change in decision.changes {
            if change.events.is_empty() || !seen.insert(change.aggregate.clone()) {
                return Err(AppendError::Refused(format!("{} is empty or twice in a decision", change.aggregate)));
            }
            if matches!(change.aggregate, Aggregate::Player(_)) && change.events.len() > 1 {
                // All of a player's events share one subject, and the last is the player.
                return Err(AppendError::Refused(format!("{} with two events in a decision", change.aggregate)));
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
                    let reason = format!("{} event of {} bytes; at most {MAX_EVENT}", event.type_name, body.len());
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
        Ok(Self { changes, messages, point })
    }

    pub(crate) fn aggregates(&self) -> impl Iterator<Item = &Aggregate> {
        self.changes.iter().map(|change| &change.aggregate)
    }

    /// The aggregate to name where the log refuses the decision without saying which has moved: one of which something
    /// was expected, as it names none where an aggregate has no message.
    pub(crate) fn suspect(&self) -> Option<&Aggregate> {
        let expecting = self.changes.iter().find(|change| change.head.seq > 0);
        expecting.or(self.changes.first()).map(|change| &change.aggregate)
    }

    /// Its messages in their order, each with its aggregate's change.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (&Change, &Message)> {
        self.changes.iter().flat_map(|change| change.messages.iter().map(move |message| (change, message)))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn refused(error: serde_json::Error) -> AppendError {
    AppendError::Refused(error.to_string())
}

/// Takes the oldest decisions that fit one commit and share no aggregate with each other or with one in flight.
pub(crate) fn take<T: AsRef<Encoded>>(waiting: &mut Vec<T>, busy: &HashSet<Aggregate>) -> Vec<T> {
    let mut group: Vec<T> = Vec::new();
    let mut chosen: HashSet<Aggregate> = HashSet::new();
    let mut messages = 0;
    let mut left = Vec::new();
    for candidate in waiting.drain(..) {
        let decision = candidate.as_ref();
        let free = decision.aggregates().all(|aggregate| !busy.contains(aggregate) && !chosen.contains(aggregate));
        // One that must wait keeps its place before later ones on the same aggregates.
        chosen.extend(decision.aggregates().cloned());
        if free && messages + decision.messages <= MAX_COMMIT {
            messages += decision.messages;
            group.push(candidate);
        } else {
            left.push(candidate);
        }
    }
    *waiting = left;
    group
}
