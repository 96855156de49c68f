//! Which queues an operator has closed (see [`garage_events::door`]).

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

/// How long the server has to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The queues that are closed. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct QueueStatuses {
    /// Those there are: no other is kept.
    queues: Arc<BTreeSet<QueueName>>,
    /// The closed ones, and why.
    closed: Arc<Mutex<BTreeMap<QueueName, String>>>,
}

impl QueueStatuses {
    /// Of these queues; all are open.
    pub fn new(queues: &Queues) -> Self {
        Self { queues: Arc::new(queues.queues.keys().cloned().collect()), closed: Arc::default() }
    }

    /// Lets a player into a queue, or tells him why not.
    pub(crate) fn admit(&self, queue: &QueueName) -> Result<(), Problem> {
        match self.closed().get(queue) {
            Some(reason) => Err(Problem::queue_closed(queue, reason)),
            None => Ok(()),
        }
    }

    /// An entry has changed.
    fn see(&self, message: &Message) {
        let Some(queue) = queue_status::queue_of(&message.subject).filter(|queue| self.queues.contains(queue)) else {
            return;
        };
        // One that was deleted with a KV client has no body.
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
                tracing::warn!(%error, queue = %queue, "whether the queue is closed cannot be read; it stays as it is");
            }
        }
    }

    fn closed(&self) -> MutexGuard<'_, BTreeMap<QueueName, String>> {
        // Each change is one insert or removal.
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads which queues are closed, for which it waits: nobody is to slip into one because its gateway has just started.
/// The task that is returned follows what changes until `shutdown`.
///
/// # Errors
/// [`Stopped`]
pub(crate) async fn follow(
    queue_statuses: QueueStatuses,
    context: Context,
    health: Health,
    shutdown: Shutdown,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    health.down("queues", "reading which are closed");
    let reading = keep_trying("which queues are closed", || async {
        let read = timeout(ANSWER, read(&queue_statuses, &context)).await.context("no answer").and_then(|read| read);
        read.inspect_err(|error| health.down("queues", format!("{error:#}")))
    });
    let mut follow = shutdown.run_until_cancelled(reading).await.ok_or(Stopped)?;
    health.up("queues");
    Ok(async move {
        let see_all = async {
            loop {
                queue_statuses.see(&follow.next().await);
            }
        };
        shutdown.run_until_cancelled(see_all).await;
        Ok(())
    })
}

/// Reads the bucket up to its last entry, told by its leader; what is returned goes on from there.
async fn read(queue_statuses: &QueueStatuses, context: &Context) -> anyhow::Result<Follow> {
    let bucket =
        context.get_stream(queue_status::STREAM).await.context("there is no bucket of queues; run `garage init`")?;
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
        queue_statuses.see(&message);
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
    fn a_queue_is_closed_from_when_it_is_said_until_it_is_taken_back() {
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
            queue_statuses.see(&message("ranked", body));
            assert_eq!(queue_statuses.admit(&ranked).is_ok(), open, "{body}");
        }
        queue_statuses.see(&message("unheard-of", closed));
        assert!(queue_statuses.closed().is_empty());
    }
}
