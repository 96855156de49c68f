//! Follows which rule sets operators apply to the queues, so that they take effect without a restart.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use async_nats::jetstream::{Context, stream::LastRawMessageErrorKind};
use garage_events::{
    jetstream::{
        follow::{Follow, Message},
        rule_store,
    },
    queue::{Queue, Queues},
    rules::{self, Applied},
};
use tokio::time::timeout;

use crate::{Health, Shutdown, Stopped, keep_trying};

/// The time-out for reading all entries.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the rule sets that operators have applied, and sets them in `queues`. Waits until this succeeds. The returned task
/// follows changes until `shutdown`.
///
/// # Errors
/// [`Stopped`], if `shutdown` comes before the read succeeds.
pub async fn follow(
    queues: Queues,
    context: Context,
    health: Health,
    shutdown: Shutdown,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    health.down("rules", "the rule sets in use are not read yet");
    let reading = keep_trying("the rule sets in use", || async {
        let read = timeout(READ_TIMEOUT, read(&queues, &context)).await.context("no answer").and_then(|read| read);
        read.inspect_err(|error| health.down("rules", format!("{error:#}")))
    });
    let mut follow = shutdown.run_until_cancelled(reading).await.ok_or(Stopped)?;
    health.up("rules");
    Ok(async move {
        let following = async {
            loop {
                let message = follow.next().await;
                let taken = || async { take(&queues, &context, &message).await };
                keep_trying("an applied rule set", taken).await;
            }
        };
        shutdown.run_until_cancelled(following).await;
        Ok(())
    })
}

/// Reads the entries up to the last one, as reported by the bucket's leader. The returned read continues from there.
async fn read(queues: &Queues, context: &Context) -> anyhow::Result<Follow> {
    let bucket = context.get_stream(rules::STREAM).await;
    let bucket = bucket.context("the bucket RULES does not exist; run `garage init`")?;
    let last = match bucket.get_last_raw_message_by_subject(rules::APPLIED).await {
        Ok(last) => last.sequence,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => 0,
        Err(error) => return Err(error.into()),
    };
    let mut follow = Follow::new(context.clone(), rules::STREAM, vec![rules::APPLIED.into()], 1);
    let mut seen = 0;
    while seen < last {
        let message = follow.next().await;
        seen = message.seq;
        take(queues, context, &message).await?;
    }
    Ok(follow)
}

/// Sets the rule set of an entry. A rule set that the queue cannot use changes nothing: it is logged.
///
/// # Errors
/// If the text of the rule set cannot be read. A retry may succeed.
async fn take(queues: &Queues, context: &Context, message: &Message) -> anyhow::Result<()> {
    let Some(name) = Applied::queue_of(&message.subject) else { return Ok(()) };
    let Some(queue) = queues.get(&name) else { return Ok(()) };
    match find(queue, context, &message.body).await? {
        Ok(rules) => {
            tracing::info!(queue = %name, rules = %rules.id, "rule set in use");
            queue.use_rules(rules);
        }
        Err(reason) => {
            let rules = queue.rules();
            tracing::error!(queue = %name, reason, rules = %rules.id, "cannot use the applied rule set; keeping the one before");
        }
    }
    Ok(())
}

/// The rule set that an entry names, or why the queue cannot use it.
async fn find(queue: &Queue, context: &Context, entry: &[u8]) -> anyhow::Result<Result<Arc<rules::Rules>, String>> {
    // An entry that was deleted with a KV client has no body.
    let applied = if entry.is_empty() { Ok(Applied { rules: None }) } else { serde_json::from_slice(entry) };
    let id = match applied {
        Ok(Applied { rules: Some(id) }) => id,
        Ok(Applied { rules: None }) => return Ok(Ok(Arc::clone(&queue.configured))),
        Err(error) => return Ok(Err(format!("the entry cannot be read: {error}"))),
    };
    let text = rule_store::text(context, &id).await?;
    let text = text.ok_or_else(|| anyhow!("the rule set {id} is not stored"))?;
    Ok(queue.configuration().read(&text).map(Arc::new))
}
