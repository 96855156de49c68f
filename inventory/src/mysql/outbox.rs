//! The outbox table: events that transactions have written and that [`crate::outbox`] publishes to the log.

use garage_events::{
    crash::{self, Point},
    env::{Env, System},
    event::Event as _,
    id::{PlayerId, SessionId},
    inventory::Event,
};
use sqlx::{MySql, MySqlConnection, MySqlPool, QueryBuilder, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{out_of_range, row::row};
use crate::error::Error;

/// The maximum number of queries in one call of [`due`]. Each query reads a limited number of rows and finds at least
/// one player. So a call reads a limited number of rows, however many of them wait behind one player's oldest row.
const MAX_PARTS: u32 = 16;

/// How long a row that cannot be published is skipped before the next attempt, in seconds. By then a newer build may be
/// running. With a shorter time, rows that always fail would fill the rounds and delay the others.
const HOLD_S: u32 = 60;

/// An event that waits to be published.
#[derive(Debug, Clone)]
pub struct Row {
    /// Ascending in the order in which a player's transactions committed.
    pub id: i64,
    /// The player whose inventory aggregate gets the event.
    pub player: PlayerId,
    /// Assigned when the row was written. The log recognises a repeated append by it.
    pub event_id: Uuid,
    /// The session that the event is about, or the event's own id if there is none.
    pub correlation: Uuid,
    /// When the transaction wrote the row.
    pub decided_at: OffsetDateTime,
    pub event: Event,
}

/// Writes events to the outbox. They can be published once the transaction has committed. The caller holds the players'
/// locks, so that each player's rows are in the order of the player's transactions.
pub(super) async fn put(
    transaction: &mut MySqlConnection,
    session: Option<SessionId>,
    events: &[(&PlayerId, Event)],
) -> Result<(), Error> {
    let env = System;
    let now = env.now();
    let decided_ms = i64::try_from(now.unix_timestamp_nanos() / 1_000_000).ok().ok_or_else(|| out_of_range(now))?;
    let mut rows = Vec::with_capacity(events.len());
    for (player, event) in events {
        let data = event.data().map_err(|error| Error::Corrupt(format!("{}: {error}", event.type_name())))?;
        let id = env.id();
        let correlation = session.map_or(id, |session| session.uuid());
        rows.push((player, event, data.to_string(), id, correlation));
    }
    let mut insert: QueryBuilder<MySql> =
        QueryBuilder::new("INSERT INTO outbox (player, event_type, version, data, event, correlation, decided_ms) ");
    insert.push_values(&rows, |mut row, (player, event, data, id, correlation)| {
        row.push_bind(player.as_str())
            .push_bind(event.type_name())
            .push_bind(event.version())
            .push_bind(data)
            .push_bind(id.as_bytes().as_slice())
            .push_bind(correlation.as_bytes().as_slice())
            .push_bind(decided_ms);
    });
    insert.build().execute(transaction).await?;
    Ok(())
}

row! {
    struct Stored {
        id: i64,
        player: String,
        event_type: String,
        version: u32,
        data: String,
        event: Vec<u8>,
        correlation: Vec<u8>,
        decided_ms: i64,
    }
}

impl TryFrom<Stored> for Row {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self, Error> {
        let corrupt = |cause: &dyn std::fmt::Display| Error::Corrupt(format!("outbox row {}: {cause}", stored.id));
        Ok(Self {
            id: stored.id,
            player: stored.player.parse()?,
            event_id: Uuid::from_slice(&stored.event).map_err(|error| corrupt(&error))?,
            correlation: Uuid::from_slice(&stored.correlation).map_err(|error| corrupt(&error))?,
            decided_at: OffsetDateTime::from_unix_timestamp_nanos(i128::from(stored.decided_ms) * 1_000_000)
                .map_err(|error| corrupt(&error))?,
            event: Event::decode(&stored.event_type, stored.version, &stored.data).map_err(|error| corrupt(&error))?,
        })
    }
}

/// How far a publisher has read the outbox: up to and including the rows of this player. It goes through the players in
/// the order of their ids, and starts again after the last one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor(String);

impl Cursor {
    /// Whether the next call of [`due`] starts with the first player.
    pub fn is_at_start(&self) -> bool {
        self.0.is_empty()
    }
}

/// Returns the oldest row of each player after the cursor unless it is held, at most `limit` rows, and moves the
/// cursor. For a row that cannot be decoded it returns the row's id and the error.
///
/// # Errors
/// See [`Error`].
pub async fn due(pool: &MySqlPool, after: &mut Cursor, limit: usize) -> Result<Vec<Result<Row, (i64, Error)>>, Error> {
    let mut oldest: Vec<i64> = Vec::new();
    for _ in 0..MAX_PARTS {
        let part = limit - oldest.len();
        // The order of the index: the first row of each player is the player's oldest. The query after this one begins
        // behind the last player of this one, and skips the rest of that player's rows.
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT player, id FROM outbox FORCE INDEX (outbox_player) WHERE player > ? ORDER BY player, id LIMIT ?",
        )
        .bind(&after.0)
        .bind(u64::try_from(part).unwrap_or(u64::MAX))
        .fetch_all(pool)
        .await?;
        let is_last = rows.len() < part;
        for (player, id) in rows {
            if player != after.0 {
                oldest.push(id);
                after.0 = player;
            }
        }
        if is_last {
            *after = Cursor::default();
            break;
        }
        if oldest.len() == limit {
            break;
        }
    }
    if oldest.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::new(
        "SELECT id, player, event_type, version, data, event, correlation, decided_ms FROM outbox
         WHERE (held_until IS NULL OR held_until <= CURRENT_TIMESTAMP(6)) AND id IN ",
    );
    push_ids(&mut query, &oldest);
    let rows: Vec<Stored> = query.build_query_as().fetch_all(pool).await?;
    let read = |stored: Stored| {
        let id = stored.id;
        Row::try_from(stored).map_err(|error| (id, error))
    };
    Ok(rows.into_iter().map(read).collect())
}

/// Holds a row: for a minute, neither the row nor later rows of its player are published. Returns whether this is the
/// first time that the row is held.
///
/// # Errors
/// See [`Error`].
pub async fn hold(pool: &MySqlPool, id: i64, reason: &str) -> Result<bool, Error> {
    let hold = sqlx::query("UPDATE outbox SET held_until = CURRENT_TIMESTAMP(6) + INTERVAL ? SECOND WHERE id = ?");
    crash::effect(Point::OutboxHeld, hold.bind(HOLD_S).bind(id).execute(pool)).await?;
    // This statement comes last: if the process dies before it, the next attempt still counts as the first.
    let first = sqlx::query("UPDATE outbox SET held_why = ? WHERE id = ? AND held_why IS NULL");
    let first = crash::effect(Point::OutboxReasonNoted, first.bind(reason).bind(id).execute(pool)).await?;
    Ok(first.rows_affected() > 0)
}

/// Counts the held rows, up to 1,001 like [`depth`].
///
/// # Errors
/// See [`Error`].
pub async fn held(pool: &MySqlPool) -> Result<f64, Error> {
    let held: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM (SELECT id FROM outbox WHERE held_until IS NOT NULL LIMIT 1001) held")
            .fetch_one(pool)
            .await?;
    Ok(i32::try_from(held).map(f64::from).unwrap_or(f64::MAX))
}

/// Counts the rows, up to 1,001. The limit keeps the query fast when there is a backlog.
///
/// # Errors
/// See [`Error`].
pub async fn depth(pool: &MySqlPool) -> Result<f64, Error> {
    let depth: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM (SELECT id FROM outbox LIMIT 1001) oldest").fetch_one(pool).await?;
    Ok(i32::try_from(depth).map(f64::from).unwrap_or(f64::MAX))
}

/// Returns the ids of the given rows that still exist.
///
/// # Errors
/// See [`Error`].
pub async fn remaining(pool: &MySqlPool, ids: &[i64]) -> Result<Vec<i64>, Error> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = QueryBuilder::new("SELECT id FROM outbox WHERE id IN ");
    push_ids(&mut query, ids);
    Ok(query.build_query_scalar().fetch_all(pool).await?)
}

/// Deletes rows that are stored in the log.
///
/// # Errors
/// See [`Error`].
pub async fn delete(pool: &MySqlPool, ids: &[i64]) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut query = QueryBuilder::new("DELETE FROM outbox WHERE id IN ");
    push_ids(&mut query, ids);
    crash::effect(Point::OutboxCleared, query.build().execute(pool)).await?;
    Ok(())
}

fn push_ids(query: &mut QueryBuilder<MySql>, ids: &[i64]) {
    query.push("(");
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(*id);
    }
    query.push(")");
}

/// Tries to become the publisher. The lease lasts until the returned transaction ends. `None` if another instance holds
/// it.
///
/// # Errors
/// See [`Error`].
pub async fn lease(pool: &MySqlPool) -> Result<Option<Transaction<'static, MySql>>, Error> {
    let mut transaction = pool.begin().await?;
    let row: Option<u8> = sqlx::query_scalar("SELECT id FROM outbox_lease WHERE id = 1 FOR UPDATE SKIP LOCKED")
        .fetch_optional(&mut *transaction)
        .await?;
    Ok(row.map(|_| transaction))
}
