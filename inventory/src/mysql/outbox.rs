//! Events that a transaction leaves to be published; see [`crate::outbox`] for how they go.

use garage_events::{
    crash::{self, Point},
    env::{Env, System},
    event::Event as _,
    id::{PlayerId, SessionId},
    inventory::Event,
};
use sqlx::{FromRow, MySql, MySqlConnection, MySqlPool, QueryBuilder, Transaction};
use time::OffsetDateTime;
use uuid::Uuid;

use super::beyond;
use crate::error::Error;

/// Seconds for which a row that cannot be published is passed over. It is tried again then, by a newer build perhaps;
/// sooner, rows that never go would take the places of those that do.
const HOLD_S: u32 = 60;

/// An event on its way to the log.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its place in the order.
    pub id: i64,
    /// To whose aggregate it belongs.
    pub player: PlayerId,
    /// The event's id.
    pub event_id: Uuid,
    /// The session that it is about, or itself.
    pub correlation: Uuid,
    /// When it was decided.
    pub decided_at: OffsetDateTime,
    /// The event.
    pub event: Event,
}

/// Leaves events to be published once the transaction is committed. The caller holds the players' locks, so that the
/// rows of a player stand in the order of his transactions.
pub(super) async fn put(
    transaction: &mut MySqlConnection,
    session: Option<SessionId>,
    events: &[(&PlayerId, Event)],
) -> Result<(), Error> {
    let env = System;
    let now = env.now();
    let decided_ms = i64::try_from(now.unix_timestamp_nanos() / 1_000_000).ok().ok_or_else(|| beyond(now))?;
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

#[derive(FromRow)]
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

impl TryFrom<Stored> for Row {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self, Error> {
        let corrupt = |what: &dyn std::fmt::Display| Error::Corrupt(format!("outbox row {}: {what}", stored.id));
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

/// The oldest row of each player whose oldest is not held, the oldest of all first; of one that cannot be read, its id
/// and why.
///
/// # Errors
/// See [`Error`].
pub async fn due(pool: &MySqlPool, most: u32) -> Result<Vec<Result<Row, (i64, Error)>>, Error> {
    // It goes along the primary key and looks each player's oldest up, so that it ends with the last row it tells.
    let rows: Vec<Stored> = sqlx::query_as(
        "SELECT id, player, event_type, version, data, event, correlation, decided_ms FROM outbox o
         WHERE id = (SELECT MIN(id) FROM outbox WHERE player = o.player)
           AND (held_until IS NULL OR held_until <= CURRENT_TIMESTAMP(6))
         ORDER BY id LIMIT ?",
    )
    .bind(most)
    .fetch_all(pool)
    .await?;
    let read = |stored: Stored| {
        let id = stored.id;
        Row::try_from(stored).map_err(|error| (id, error))
    };
    Ok(rows.into_iter().map(read).collect())
}

/// Has a row passed over for a while, and all of its player's behind it; tells whether it was not held before.
///
/// # Errors
/// See [`Error`].
pub async fn hold(pool: &MySqlPool, id: i64, why: &str) -> Result<bool, Error> {
    let hold = sqlx::query("UPDATE outbox SET held_until = CURRENT_TIMESTAMP(6) + INTERVAL ? SECOND WHERE id = ?");
    crash::effect(Point::OutboxHeld, hold.bind(HOLD_S).bind(id).execute(pool)).await?;
    // Last: whoever dies before it is told of it next time.
    let first = sqlx::query("UPDATE outbox SET held_why = ? WHERE id = ? AND held_why IS NULL");
    let first = crash::effect(Point::OutboxReasonNoted, first.bind(why).bind(id).execute(pool)).await?;
    Ok(first.rows_affected() > 0)
}

/// How many rows are held, counted as [`depth`] counts.
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

/// How many events wait, counted up to 1,000 and 1: a backlog must not make the count of it slow.
///
/// # Errors
/// See [`Error`].
pub async fn depth(pool: &MySqlPool) -> Result<f64, Error> {
    let depth: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM (SELECT id FROM outbox LIMIT 1001) oldest").fetch_one(pool).await?;
    Ok(i32::try_from(depth).map(f64::from).unwrap_or(f64::MAX))
}

/// Which of these rows are still there.
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

/// Deletes rows that the log has.
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

/// Tries to become the one who publishes, until the transaction that comes back ends. None when another one is.
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
