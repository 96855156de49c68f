//! Publishes the outbox: each row becomes an event in the log, once and in each player's order.
//!
//! One instance publishes at a time, by a lock on the row of `outbox_lease`; that saves work and is not what makes it
//! right. A publisher that lost its lease without knowing still cannot show an event twice, by the order of four steps:
//!
//! 1. read the end of the player's aggregate at the log's leader;
//! 2. then look whether the player's oldest row is still there;
//! 3. append it, expecting what step 1 read, unless step 1 read this very event;
//! 4. delete it before anything else of this player is appended.
//!
//! Had another one appended the row before step 1, step 1 would see it as the last event, or, if others followed, step 2
//! would find it deleted; had it done so after step 1, step 3 would conflict.
//!
//! What cannot be published, because the row or its player's history cannot be read, or the log refuses it, holds up
//! nobody else: its row is held, and with it those of its player behind it, and tried again a minute later.

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
    mysql::outbox::{self, Row},
};

/// Rows that go in a round, each of another player.
const ROUND: u32 = 256;

/// Loads and appends under way at once; the log commits them in groups.
const AT_ONCE: usize = 64;

/// How long an empty outbox, or one that another instance publishes, is left alone. A player sees his reward that
/// much later at most.
const POLL: Duration = Duration::from_millis(250);

/// How long after a failed round.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a round may take; then its lease is given up.
const ROUND_LIMIT: Duration = Duration::from_secs(30);

/// Why a round could not be finished. What it did publish stays published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The database.
    #[error(transparent)]
    Database(#[from] Error),
    /// The log's reading side.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log's writing side.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// Something hangs.
    #[error("a round took longer than {} s", ROUND_LIMIT.as_secs())]
    Overdue,
}

impl PublishError {
    /// Whether it is the row's own, or its player's, and trying again at once would meet the same.
    fn lasts(&self) -> bool {
        match self {
            Self::Database(Error::Corrupt(_))
            | Self::Read(ReadError::Unreadable { .. })
            | Self::Append(AppendError::Refused(_)) => true,
            Self::Database(_) | Self::Read(_) | Self::Append(_) | Self::Overdue => false,
        }
    }
}

/// Publishes until told to stop; a round under way is finished first.
pub async fn publish<L: Log>(pool: MySqlPool, log: L, stop: CancellationToken) {
    let mut failing = false;
    while !stop.is_cancelled() {
        let round = async {
            let published = round(&pool, &log).await?;
            metrics::gauge!("garage_inventory_outbox_held").set(outbox::held(&pool).await?);
            Ok(published)
        };
        let outcome = tokio::time::timeout(ROUND_LIMIT, round).await.unwrap_or(Err(PublishError::Overdue));
        let pause = match outcome {
            Ok(published) => {
                failing = false;
                if published > 0 {
                    continue;
                }
                POLL
            }
            Err(error) => {
                metrics::counter!("garage_inventory_outbox_failures_total").increment(1);
                // Said once for each time that it begins to fail, not once a second.
                if !failing {
                    tracing::warn!(%error, "outbox cannot be published, will go on trying");
                }
                failing = true;
                PAUSE
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Publishes the oldest row of each player, and tells how many went. Nothing when another instance publishes.
///
/// # Errors
/// See [`PublishError`]; the rows that are held up by one are tried again in the next round, the others went.
pub async fn round<L: Log>(pool: &MySqlPool, log: &L) -> Result<usize, PublishError> {
    let due = outbox::due(pool, ROUND).await?;
    if due.is_empty() {
        return Ok(0);
    }
    let Some(lease) = outbox::lease(pool).await? else { return Ok(0) };

    let mut failure = None;
    let mut held = Vec::new();
    let mut read = Vec::with_capacity(due.len());
    let mut reads = stream::iter(due.into_iter().map(async |due| {
        let row = due.map_err(|(id, error)| (id, PublishError::from(error)))?;
        let last = log.inventory(&row.player).await.map_err(|error| (row.id, error.into()))?;
        Ok((row, last))
    }))
    .buffer_unordered(AT_ONCE);
    while let Some(outcome) = reads.next().await {
        match outcome {
            Ok(one) => read.push(one),
            Err((id, error)) if error.lasts() => held.push((id, error)),
            Err((_, error)) => failure = Some(error),
        }
    }
    drop(reads);

    let ids: Vec<i64> = read.iter().map(|(row, _)| row.id).collect();
    let remaining: BTreeSet<i64> = outbox::remaining(pool, &ids).await?.into_iter().collect();
    read.retain(|(row, _)| remaining.contains(&row.id));

    let mut stored = Vec::with_capacity(read.len());
    let mut appends = stream::iter(read.into_iter().map(async |(row, last)| (row.id, append(log, &row, last).await)))
        .buffer_unordered(AT_ONCE);
    while let Some((id, outcome)) = appends.next().await {
        match outcome {
            Ok(()) => stored.push(id),
            // Another publisher, or one of before this one's restart, moved it: the next round reads it again.
            Err(PublishError::Append(AppendError::Conflict(_))) => {}
            Err(error) if error.lasts() => held.push((id, error)),
            Err(error) => failure = Some(error),
        }
    }
    drop(appends);

    outbox::delete(pool, &stored).await?;
    for (id, error) in held {
        // Said once for each row, not at each try.
        if outbox::hold(pool, id, &error.to_string()).await? {
            tracing::error!(outbox.row = id, %error, "an event cannot be published, and holds up its player's");
        }
    }
    lease.rollback().await.map_err(Error::from)?;
    metrics::counter!("garage_inventory_events_published_total").increment(stored.len() as u64);
    match failure {
        Some(error) => Err(error),
        None => Ok(stored.len()),
    }
}

/// Appends a row behind the last event of its player, if it isn't that event.
async fn append<L: Log>(log: &L, row: &Row, last: Option<Recorded<Event>>) -> Result<(), PublishError> {
    let head = last.as_ref().map(|last| Head { seq: last.seq, n: last.n }).unwrap_or_default();
    if last.is_some_and(|last| last.id == row.event_id) {
        return Ok(());
    }
    let decision = Decision::new(&Decided(row.decided_at), row.correlation, None).change_with_id(
        row.event_id,
        Aggregate::Inventory(row.player.clone()),
        head,
        &row.event,
    );
    log.append(decision).await?;
    Ok(())
}

/// The world as it was when a row was written: an event says when it was decided, not when it was published.
#[derive(Debug, Clone, Copy)]
struct Decided(OffsetDateTime);

impl Env for Decided {
    fn now(&self) -> OffsetDateTime {
        self.0
    }

    fn id(&self) -> Uuid {
        // The event has its id already; this one is never asked for.
        Uuid::nil()
    }
}
