//! Wallets and their ledgers: an entry for each change of a wallet, under a name of its own.

use std::collections::BTreeSet;

use garage_events::{
    env::{Env, System},
    id::PlayerId,
    svc::{GetLedger, LedgerEntry},
};
use sqlx::{FromRow, MySqlConnection, MySqlPool};
use time::OffsetDateTime;

use super::{players::introduce, signed, unsigned};
use crate::error::Error;

/// Takes coins out of a wallet, which then holds `balance`. The caller holds the player's lock.
pub(super) async fn pay(
    connection: &mut MySqlConnection,
    player: &PlayerId,
    reason: &str,
    about: &str,
    price: u64,
    balance: u64,
) -> Result<(), Error> {
    enter(connection, player, reason, about, -signed(price)?, balance).await
}

/// Puts coins into a wallet, which then holds `balance`. The caller holds the player's lock.
pub(super) async fn earn(
    connection: &mut MySqlConnection,
    player: &PlayerId,
    reason: &str,
    about: &str,
    price: u64,
    balance: u64,
) -> Result<(), Error> {
    enter(connection, player, reason, about, signed(price)?, balance).await
}

async fn enter(
    connection: &mut MySqlConnection,
    player: &PlayerId,
    reason: &str,
    about: &str,
    amount: i64,
    balance: u64,
) -> Result<(), Error> {
    let balance = signed(balance)?;
    sqlx::query("INSERT INTO ledger (player, name, reason, about, amount, balance) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(player.as_str())
        .bind(format!("{reason}:{}", System.id()))
        .bind(reason)
        .bind(about)
        .bind(amount)
        .bind(balance)
        .execute(&mut *connection)
        .await?;
    sqlx::query("UPDATE wallets SET balance = ? WHERE player = ?")
        .bind(balance)
        .bind(player.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

#[derive(FromRow)]
struct Row {
    id: i64,
    reason: String,
    about: Option<String>,
    amount: i64,
    balance: i64,
    at_us: i64,
}

impl TryFrom<Row> for LedgerEntry {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self, Error> {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(row.at_us) * 1_000);
        Ok(Self {
            id: u64::try_from(row.id).map_err(|error| Error::Corrupt(format!("ledger entry {}: {error}", row.id)))?,
            reason: row.reason,
            about: row.about,
            amount: row.amount,
            balance: unsigned(row.balance)?,
            at: at.map_err(|error| Error::Corrupt(format!("ledger entry {}: {error}", row.id)))?,
        })
    }
}

/// A player's entries before one of them, or the newest, at most `limit` of them. One unknown so far gets his starter
/// first.
///
/// # Errors
/// [`Error::TooMany`] for none, or more than [`GetLedger::MOST`]; else see [`Error`].
pub async fn page(
    pool: &MySqlPool,
    player: &PlayerId,
    before: Option<u64>,
    limit: u32,
) -> Result<Vec<LedgerEntry>, Error> {
    if !(1..=GetLedger::MOST).contains(&limit) {
        let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        return Err(Error::TooMany { asked: count(limit), most: count(GetLedger::MOST) });
    }
    introduce(pool, &BTreeSet::from([player])).await?;
    // Beyond the column's numbers there are no entries.
    let before = before.and_then(|before| i64::try_from(before).ok()).unwrap_or(i64::MAX);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, reason, about, amount, balance, CAST(UNIX_TIMESTAMP(created_at) * 1000000 AS SIGNED) AS at_us
         FROM ledger WHERE player = ? AND id < ? ORDER BY id DESC LIMIT ?",
    )
    .bind(player.as_str())
    .bind(before)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(LedgerEntry::try_from).collect()
}
