//! The queues that an operator has closed (see [`garage_events::queue_status`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use garage_events::{
    id::QueueName,
    jetstream::follow::Message,
    queue::Queues,
    queue_status::{self, QueueStatus},
};
use garage_worker::bucket::Entries;

use crate::problem::Problem;

/// The status of each queue. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct QueueStatuses {
    /// The configured queues. The status of any other queue is ignored.
    queues: Arc<BTreeSet<QueueName>>,
    /// The closed queues, with the operator's reason.
    closed: Arc<Mutex<BTreeMap<QueueName, String>>>,
}

impl QueueStatuses {
    /// Starts with all configured queues open.
    pub fn new(queues: &Queues) -> Self {
        Self { queues: Arc::new(queues.queues.keys().cloned().collect()), closed: Arc::default() }
    }

    /// Checks that a queue is open.
    pub(crate) fn check_open(&self, queue: &QueueName) -> Result<(), Problem> {
        match self.closed().get(queue) {
            Some(reason) => Err(Problem::queue_closed(queue, reason)),
            None => Ok(()),
        }
    }

    /// Handles a change of an entry.
    fn update(&self, message: &Message) {
        let Some(queue) = queue_status::queue_of(&message.subject).filter(|queue| self.queues.contains(queue)) else {
            return;
        };
        // An entry that was deleted with a KV client has no body.
        let queue_status =
            if message.body.is_empty() { Ok(QueueStatus::Open) } else { serde_json::from_slice(&message.body) };
        match queue_status {
            Ok(QueueStatus::Open) => {
                self.closed().remove(&queue);
                tracing::info!(queue = %queue, "queue is open");
            }
            Ok(QueueStatus::Closed { reason }) => {
                tracing::info!(queue = %queue, reason, "queue is closed");
                self.closed().insert(queue, reason);
            }
            Err(error) => {
                tracing::warn!(%error, queue = %queue, "cannot read the status of a queue; keeping its previous status");
            }
        }
    }

    fn closed(&self) -> MutexGuard<'_, BTreeMap<QueueName, String>> {
        // A panic under the lock cannot leave the map half changed: each change is one insert or one removal.
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries for QueueStatuses {
    const BUCKET: &'static str = queue_status::BUCKET;
    const STREAM: &'static str = queue_status::STREAM;
    const FILTER: &'static str = queue_status::ALL;
    const WHAT: &'static str = "the closed queues";

    async fn take(&self, entry: &Message) -> anyhow::Result<()> {
        self.update(entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn message(queue: &str, body: &str) -> Message {
        let subject = format!("$KV.QUEUES.{queue}");
        Message {
            seq: 1,
            time: OffsetDateTime::UNIX_EPOCH,
            subject,
            body: body.to_owned().into(),
            headers: None,
            pending: 0,
        }
    }

    #[test]
    fn a_queue_stays_closed_until_it_is_opened_or_its_entry_deleted() {
        let ranked: QueueName = "ranked".parse().unwrap();
        let queue_statuses = QueueStatuses { queues: Arc::new([ranked.clone()].into()), ..QueueStatuses::default() };
        let closed = r#"{"state":"closed","reason":"r"}"#;
        for (body, open) in [
            (closed, false),
            ("rubbish", false),
            (r#"{"state":"ajar"}"#, false),
            (r#"{"state":"open"}"#, true),
            (closed, false),
            ("", true),
        ] {
            queue_statuses.update(&message("ranked", body));
            assert_eq!(queue_statuses.check_open(&ranked).is_ok(), open, "{body}");
        }
        queue_statuses.update(&message("unheard-of", closed));
        assert!(queue_statuses.closed().is_empty());
    }
}
