//! Follows the entries of a key-value bucket, which operators change.

use std::{future::Future, time::Duration};

use anyhow::Context as _;
use async_nats::jetstream::{Context, stream::LastRawMessageErrorKind};
use garage_events::jetstream::follow::{Follow, Message};
use tokio::time::timeout;

use crate::{Health, Shutdown, Stopped, keep_trying};

/// The time-out for reading all entries.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Takes the entries of a bucket.
pub trait Entries: Send + Sync + 'static {
    /// The name of the bucket, without the prefix of its stream.
    const BUCKET: &'static str;
    /// The stream that stores the bucket.
    const STREAM: &'static str;
    /// Selects the entries.
    const FILTER: &'static str;
    /// What the entries are, for messages.
    const WHAT: &'static str;

    /// Takes an entry that was written or deleted.
    ///
    /// # Errors
    /// If a retry may succeed. An entry that can never be used is not an error here: log it.
    fn take(&self, entry: &Message) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// Reads all entries. Waits until this succeeds, so that a worker that has just started does not act without them. The
/// returned task follows changes until `shutdown`. `check` is the name of the health check.
///
/// # Errors
/// [`Stopped`], if `shutdown` comes before the read succeeds.
pub async fn follow<E: Entries>(
    entries: E,
    check: &'static str,
    context: Context,
    health: Health,
    shutdown: Shutdown,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    health.down(check, format!("{} are not read yet", E::WHAT));
    let reading = keep_trying(E::WHAT, || async {
        let read = timeout(READ_TIMEOUT, read(&entries, &context)).await.context("no answer").and_then(|read| read);
        read.inspect_err(|error| health.down(check, format!("{error:#}")))
    });
    let mut follow = shutdown.run_until_cancelled(reading).await.ok_or(Stopped)?;
    health.up(check);
    Ok(async move {
        let following = async {
            loop {
                let entry = follow.next().await;
                keep_trying(E::WHAT, || entries.take(&entry)).await;
            }
        };
        shutdown.run_until_cancelled(following).await;
        Ok(())
    })
}

/// Reads the bucket up to its last entry, as reported by its leader. The returned read continues from there.
async fn read<E: Entries>(entries: &E, context: &Context) -> anyhow::Result<Follow> {
    let bucket = context.get_stream(E::STREAM).await;
    let bucket = bucket.with_context(|| format!("the bucket {} does not exist; run `garage init`", E::BUCKET))?;
    let last = match bucket.get_last_raw_message_by_subject(E::FILTER).await {
        Ok(last) => last.sequence,
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => 0,
        Err(error) => return Err(error.into()),
    };
    let mut follow = Follow::new(context.clone(), E::STREAM, vec![E::FILTER.into()], 1);
    let mut seen = 0;
    while seen < last {
        let entry = follow.next().await;
        seen = entry.seq;
        entries.take(&entry).await?;
    }
    Ok(follow)
}
