//! Publishes the outbox: appends each row to the log as an event, exactly once and in order per player.
//!
//! One instance publishes at a time: the one that holds a lock on the row of `outbox_lease`. The lease only saves work.
//! A publisher that has lost its lease without noticing cannot append an event twice either, because each publisher
//! takes four steps in this order:
//!
//! 1. Read the last event of the player's aggregate at the log's leader.
//! 2. Check that the player's oldest row still exists.
//! 3. Append the row and expect the aggregate at the sequence from step 1. Skip this if step 1 has read this very
//!    event.
//! 4. Delete the row before appending any other event of this player.
//!
//! If another publisher appended the row before step 1, then step 1 reads it as the last event, or, if more events
//! followed, step 2 finds the row deleted. If another publisher appended it after step 1, then step 3 conflicts.
//!
//! A row cannot be published if it cannot be decoded, its player's last event cannot be read, or the log refuses it.
//! Such a row is held: it and later rows of the same player are skipped for a minute, then retried. Other players are
//! not affected: a round reads a limited number of rows, however many wait behind the row that is held.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, stream};
use garage_events::{
    env::Env,
    event::Recorded,
    inventory::Event,
    log::{AppendError, Decision, Head, Log, ReadError},
    subject::Aggregate,
};
use sqlx::MySqlPool;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    error::Error,
    mysql::outbox::{self, Cursor, Row},
};

/// Maximum number of rows per round. Each belongs to a different player.
const ROUND_SIZE: usize = 256;

/// Concurrent reads, and concurrent appends, per round. The log commits concurrent appends in groups.
const CONCURRENCY: usize = 64;

/// Pause after the last players of the outbox if there was nothing to publish: the outbox is empty, all its rows are
/// held, or another instance publishes. It delays a player's reward by at most this time.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Pause after a failed round.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// How long a round may take. After it the round is cancelled and its lease released.
const ROUND_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a round failed. Events that it published before stay published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A query failed, or a row cannot be decoded.
    #[error(transparent)]
    Database(#[from] Error),
    /// The player's last event cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The event cannot be appended.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The round did not end in time.
    #[error("publishing a round of outbox rows took longer than {} s", ROUND_TIMEOUT.as_secs())]
    TimedOut,
}

impl PublishError {
    /// Whether the error concerns only this row or its player, and an immediate retry would fail again.
    fn is_permanent(&self) -> bool {
        match self {
            Self::Database(Error::Corrupt(_))
            | Self::Read(ReadError::Unreadable { .. })
            | Self::Append(AppendError::Refused(_)) => true,
            Self::Database(_) | Self::Read(_) | Self::Append(_) | Self::TimedOut => false,
        }
    }
}

/// Publishes rounds until `stop` is cancelled. A round in progress is finished first.
pub async fn publish<L: Log>(pool: MySqlPool, log: L, stop: CancellationToken) {
    let mut failing = false;
    let mut cursor = Cursor::default();
    while !stop.is_cancelled() {
        let round = async {
            let published = round(&pool, &log, &mut cursor).await?;
            metrics::gauge!("garage_inventory_outbox_held").set(outbox::held(&pool).await?);
            Ok(published)
        };
        let outcome = tokio::time::timeout(ROUND_TIMEOUT, round).await.unwrap_or(Err(PublishError::TimedOut));
        let pause = match outcome {
            Ok(published) => {
                failing = false;
                if published > 0 || !cursor.is_at_start() {
                    continue;
                }
                POLL_INTERVAL
            }
            Err(error) => {
                metrics::counter!("garage_inventory_outbox_failures_total").increment(1);
                // Log only the first of consecutive failures, not one per second.
                if !failing {
                    tracing::warn!(%error, "publishing the outbox failed, retrying");
                }
                failing = true;
                RETRY_DELAY
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Publishes the oldest row of each player after the cursor, up to a limit, and moves the cursor. Returns the number of
/// published rows, 0 if another instance holds the lease.
///
/// # Errors
/// See [`PublishError`]. The failed rows are retried in the next round; the other rows are published.
pub async fn round<L: Log>(pool: &MySqlPool, log: &L, cursor: &mut Cursor) -> Result<usize, PublishError> {
    let due = outbox::due(pool, cursor, ROUND_SIZE).await?;
    if due.is_empty() {
        return Ok(0);
    }
    let Some(lease) = outbox::lease(pool).await? else {
        *cursor = Cursor::default();
        return Ok(0);
    };

    let mut failure = None;
    let mut held = Vec::new();
    let mut read = Vec::with_capacity(due.len());
    let mut reads = stream::iter(due.into_iter().map(async |due| {
        let row = due.map_err(|(id, error)| (id, PublishError::from(error)))?;
        let last = log.inventory(&row.player).await.map_err(|error| (row.id, error.into()))?;
        Ok((row, last))
    }))
    .buffer_unordered(CONCURRENCY);
    while let Some(outcome) = reads.next().await {
        match outcome {
            Ok(one) => read.push(one),
            Err((id, error)) if error.is_permanent() => held.push((id, error)),
            Err((_, error)) => failure = Some(error),
        }
    }
    drop(reads);

    let ids: Vec<i64> = read.iter().map(|(row, _)| row.id).collect();
    let remaining: BTreeSet<i64> = outbox::remaining(pool, &ids).await?.into_iter().collect();
    read.retain(|(row, _)| remaining.contains(&row.id));

    let mut stored = Vec::with_capacity(read.len());
    let mut appends = stream::iter(read.into_iter().map(async |(row, last)| (row.id, append(log, &row, last).await)))
        .buffer_unordered(CONCURRENCY);
    while let Some((id, outcome)) = appends.next().await {
        match outcome {
            Ok(()) => stored.push(id),
            // Another publisher has appended to the aggregate, or this one has before a restart. The next round reads
            // the aggregate again.
            Err(PublishError::Append(AppendError::Conflict(_))) => {}
            Err(error) if error.is_permanent() => held.push((id, error)),
            Err(error) => failure = Some(error),
        }
    }
    drop(appends);

    outbox::delete(pool, &stored).await?;
    for (id, error) in held {
        // Log once per row, not at every attempt.
        if outbox::hold(pool, id, &error.to_string()).await? {
            tracing::error!(outbox.row = id, %error, "cannot publish outbox row, holding the player's events");
        }
    }
    lease.rollback().await.map_err(Error::from)?;
    metrics::counter!("garage_inventory_events_published_total").increment(stored.len() as u64);
    match failure {
        Some(error) => Err(error),
        None => Ok(stored.len()),
    }
}

/// Appends a row after the last event of its player, unless it is that event.
async fn append<L: Log>(log: &L, row: &Row, last: Option<Recorded<Event>>) -> Result<(), PublishError> {
    let head = last.as_ref().map(|last| Head { seq: last.seq, n: last.n }).unwrap_or_default();
    if last.is_some_and(|last| last.id == row.event_id) {
        return Ok(());
    }
    let decision = Decision::new(&DecidedAt(row.decided_at), row.correlation, None).change_with_id(
        row.event_id,
        Aggregate::Inventory(row.player.clone()),
        head,
        &row.event,
    );
    log.append(decision).await?;
    Ok(())
}

/// A clock that shows when the row was written. An event carries the time of its decision, not of its publication.
#[derive(Debug, Clone, Copy)]
struct DecidedAt(OffsetDateTime);

impl Env for DecidedAt {
    fn now(&self) -> OffsetDateTime {
        self.0
    }

    fn id(&self) -> Uuid {
        // Never called: the event already has its id.
        Uuid::nil()
    }
}
