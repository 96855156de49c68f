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

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, stream};
use garage_events::{
    event::Recorded,
    id::PlayerId,
    inventory::Event,
    log::{AppendError, Decision, Head, Log, ReadError},
    subject::Aggregate,
    world::World,
};
use sqlx::MySqlPool;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    error::Error,
    mysql::outbox::{self, Row},
};

/// Rows looked at in a round. Of these the oldest of each player goes.
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
    #[error("reading the history of {player}: {source}")]
    Read {
        /// Whose row is held up.
        player: PlayerId,
        /// Why.
        source: ReadError,
    },
    /// The log's writing side.
    #[error("appending an event of {player}: {source}")]
    Append {
        /// Whose row is held up.
        player: PlayerId,
        /// Why.
        source: AppendError,
    },
    /// Something hangs.
    #[error("a round took longer than {} s", ROUND_LIMIT.as_secs())]
    Overdue,
}

/// Publishes until told to stop; a round under way is finished first.
pub async fn publish<L: Log>(pool: MySqlPool, log: L, stop: CancellationToken) {
    let mut failing = false;
    while !stop.is_cancelled() {
        let outcome = tokio::time::timeout(ROUND_LIMIT, round(&pool, &log)).await.unwrap_or(Err(PublishError::Overdue));
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

/// Publishes the oldest row of each player among the oldest rows of all, and tells how many went. Nothing when another
/// instance publishes.
///
/// # Errors
/// See [`PublishError`]; the rows that are held up by one are tried again in the next round, the others went.
pub async fn round<L: Log>(pool: &MySqlPool, log: &L) -> Result<usize, PublishError> {
    let rows = oldest_of_each_player(outbox::oldest(pool, ROUND).await?);
    if rows.is_empty() {
        return Ok(0);
    }
    let Some(lease) = outbox::lease(pool).await? else { return Ok(0) };

    let mut failure = None;
    let mut read = Vec::with_capacity(rows.len());
    let mut reads = stream::iter(rows.into_iter().map(async |row| {
        let last = log.inventory(&row.player).await;
        (row, last)
    }))
    .buffer_unordered(AT_ONCE);
    while let Some((row, last)) = reads.next().await {
        match last {
            Ok(last) => read.push((row, last)),
            Err(source) => failure = Some(PublishError::Read { player: row.player, source }),
        }
    }
    drop(reads);

    let ids: Vec<i64> = read.iter().map(|(row, _)| row.id).collect();
    let remaining: BTreeSet<i64> = outbox::remaining(pool, &ids).await?.into_iter().collect();
    read.retain(|(row, _)| remaining.contains(&row.id));

    let mut stored = Vec::with_capacity(read.len());
    let mut appends =
        stream::iter(read.into_iter().map(|(row, last)| append(log, row, last))).buffer_unordered(AT_ONCE);
    while let Some(outcome) = appends.next().await {
        match outcome {
            Ok(id) => stored.push(id),
            // Another publisher, or one of before this one's restart, moved it: the next round reads it again.
            Err(PublishError::Append { source: AppendError::Conflict(_), .. }) => {}
            Err(error) => failure = Some(error),
        }
    }
    drop(appends);

    outbox::delete(pool, &stored).await?;
    lease.rollback().await.map_err(Error::from)?;
    metrics::counter!("garage_inventory_events_published_total").increment(stored.len() as u64);
    match failure {
        Some(error) => Err(error),
        None => Ok(stored.len()),
    }
}

fn oldest_of_each_player(mut rows: Vec<Row>) -> Vec<Row> {
    let mut seen = BTreeSet::new();
    rows.retain(|row| seen.insert(row.player.clone()));
    rows
}

/// Appends a row behind the last event of its player, if it isn't that event; tells the row's id.
async fn append<L: Log>(log: &L, row: Row, last: Option<Recorded<Event>>) -> Result<i64, PublishError> {
    let head = last.as_ref().map(|last| Head { seq: last.seq, n: last.n }).unwrap_or_default();
    if last.is_some_and(|last| last.id == row.event_id) {
        return Ok(row.id);
    }
    let decision = Decision::new(&Decided(row.decided_at), row.correlation, None).change_with_id(
        row.event_id,
        Aggregate::Inventory(row.player.clone()),
        head,
        &row.event,
    );
    match log.append(decision).await {
        Ok(_) => Ok(row.id),
        Err(source) => Err(PublishError::Append { player: row.player, source }),
    }
}

/// The world as it was when a row was written: an event says when it was decided, not when it was published.
#[derive(Debug, Clone, Copy)]
struct Decided(OffsetDateTime);

impl World for Decided {
    fn now(&self) -> OffsetDateTime {
        self.0
    }

    fn id(&self) -> Uuid {
        // The event has its id already; this one is never asked for.
        Uuid::nil()
    }
}
