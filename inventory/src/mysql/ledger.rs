//! Wallets and the ledger. The ledger has one entry per change of a wallet. An entry's name is unique per player.

use std::collections::BTreeSet;

use garage_events::{
    env::{Env, System},
    id::PlayerId,
    svc::{GetLedger, LedgerEntry},
};
use sqlx::{MySqlConnection, MySqlPool};
use time::OffsetDateTime;

use super::{players::introduce, row::row, signed, unsigned};
use crate::error::Error;

/// Takes `price` coins out of a wallet. `balance` is the balance afterwards. The caller holds the player's lock.
pub(super) async fn debit(
    connection: &mut MySqlConnection,
    player: &PlayerId,
    reason: &str,
    about: &str,
    price: u64,
    balance: u64,
) -> Result<(), Error> {
    add_entry(connection, player, reason, about, -signed(price)?, balance).await
}

/// Puts `price` coins into a wallet. `balance` is the balance afterwards. The caller holds the player's lock.
pub(super) async fn credit(
    connection: &mut MySqlConnection,
    player: &PlayerId,
    reason: &str,
    about: &str,
    price: u64,
    balance: u64,
) -> Result<(), Error> {
    add_entry(connection, player, reason, about, signed(price)?, balance).await
}

async fn add_entry(
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

row! {
    struct Row {
        id: i64,
        reason: String,
        about: Option<String>,
        amount: i64,
        balance: i64,
        at_us: i64,
    }
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

/// Returns one page of a player's ledger, newest entries first, with at most `limit` entries. All entries are older
/// than the entry `before`. Without `before`, the page begins with the newest entry. A player that does not exist yet
/// is created first.
///
/// # Errors
/// [`Error::TooMany`] if `limit` is 0 or more than [`GetLedger::MAX_LIMIT`]; for the others see [`Error`].
pub async fn page(
    pool: &MySqlPool,
    player: &PlayerId,
    before: Option<u64>,
    limit: u32,
) -> Result<Vec<LedgerEntry>, Error> {
    if !(1..=GetLedger::MAX_LIMIT).contains(&limit) {
        let count = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        return Err(Error::TooMany { requested: count(limit), max: count(GetLedger::MAX_LIMIT) });
    }
    introduce(pool, &BTreeSet::from([player])).await?;
    // No entry has an id above i64::MAX, the largest value of the column.
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
