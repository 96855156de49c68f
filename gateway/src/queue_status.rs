//! The queues that an operator has closed (see [`garage_events::queue_status`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use async_nats::jetstream::{Context, stream::LastRawMessageErrorKind};
use garage_events::{
    id::QueueName,
    jetstream::follow::{Follow, Message},
    queue::Queues,
    queue_status::{self, QueueStatus},
};
use garage_worker::{Health, Shutdown, Stopped, keep_trying};
use tokio::time::timeout;

use crate::problem::Problem;

/// The time-out for reading the whole bucket.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

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

/// Reads the status of all queues. Waits until this succeeds, so that a gateway that has just started does not accept a
/// ticket for a closed queue. The returned task follows changes until `shutdown`.
///
/// # Errors
/// [`Stopped`], if `shutdown` comes before the read succeeds.
pub(crate) async fn follow(
    queue_statuses: QueueStatuses,
    context: Context,
    health: Health,
    shutdown: Shutdown,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    health.down("queues", "the list of closed queues is not read yet");
    let reading = keep_trying("the queue status", || async {
        let read =
            timeout(READ_TIMEOUT, read(&queue_statuses, &context)).await.context("no answer").and_then(|read| read);
        read.inspect_err(|error| health.down("queues", format!("{error:#}")))
    });
    let mut follow = shutdown.run_until_cancelled(reading).await.ok_or(Stopped)?;
    health.up("queues");
    Ok(async move {
        let following = async {
            loop {
                queue_statuses.update(&follow.next().await);
            }
        };
        shutdown.run_until_cancelled(following).await;
        Ok(())
    })
}

/// Reads the bucket up to its last entry, as reported by its leader. The returned read continues from there.
async fn read(queue_statuses: &QueueStatuses, context: &Context) -> anyhow::Result<Follow> {
    let bucket = context
        .get_stream(queue_status::STREAM)
        .await
        .context("the bucket QUEUES does not exist; run `garage init`")?;
    let last = match bucket.get_last_raw_message_by_subject(queue_status::ALL).await {
        Ok(last) => last.sequence,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => 0,
        Err(error) => return Err(error.into()),
    };
    let mut follow = Follow::new(context.clone(), queue_status::STREAM, vec![queue_status::ALL.into()], 1);
    let mut seen = 0;
    while seen < last {
        let message = follow.next().await;
        seen = message.seq;
        queue_statuses.update(&message);
    }
    Ok(follow)
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
