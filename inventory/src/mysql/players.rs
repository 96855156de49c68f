//! Creates players. A player is created, once, when a request or a reward first names them.

use std::collections::BTreeSet;

use garage_events::{crash::Point, id::PlayerId};
use sqlx::{MySql, MySqlPool, QueryBuilder};

use super::{commit, push_list, retrying, signed};
use crate::{
    domain::{STARTER_CAR, STARTER_COINS, STARTER_ITEMS},
    error::Error,
};

/// Name of the ledger entry for the starter coins. Unique per player.
const STARTER: &str = "starter";

/// Creates the players that do not exist yet, with the starter car, items and coins. Of several concurrent callers one
/// inserts the rows. The others get a duplicate key error, retry, and find the players.
///
/// # Errors
/// See [`Error`].
pub async fn introduce(pool: &MySqlPool, players: &BTreeSet<&PlayerId>) -> Result<(), Error> {
    if players.is_empty() {
        return Ok(());
    }
    retrying(|| introduce_once(pool, players)).await
}

async fn introduce_once(pool: &MySqlPool, players: &BTreeSet<&PlayerId>) -> Result<(), Error> {
    let mut transaction = pool.begin().await?;
    let mut query = QueryBuilder::new("SELECT id FROM players WHERE id IN ");
    push_list(&mut query, players.iter().copied());
    let known: Vec<String> = query.build_query_scalar().fetch_all(&mut *transaction).await?;
    let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
    // Every transaction inserts players in the order of their ids, so that two of them cannot deadlock.
    let new: Vec<&PlayerId> = players.iter().copied().filter(|player| !known.contains(player.as_str())).collect();
    if new.is_empty() {
        return Ok(());
    }
    let coins = signed(STARTER_COINS)?;

    let mut insert: QueryBuilder<MySql> = QueryBuilder::new("INSERT INTO players (id) ");
    insert.push_values(&new, |mut row, player| {
        row.push_bind(player.as_str());
    });
    insert.build().execute(&mut *transaction).await?;

    let mut insert: QueryBuilder<MySql> = QueryBuilder::new("INSERT INTO wallets (player, balance) ");
    insert.push_values(&new, |mut row, player| {
        row.push_bind(player.as_str()).push_bind(coins);
    });
    insert.build().execute(&mut *transaction).await?;

    let mut insert: QueryBuilder<MySql> =
        QueryBuilder::new("INSERT INTO ledger (player, name, reason, amount, balance) ");
    insert.push_values(&new, |mut row, player| {
        row.push_bind(player.as_str()).push_bind(STARTER).push_bind("starter").push_bind(coins).push_bind(coins);
    });
    insert.build().execute(&mut *transaction).await?;

    for table in ["owned_cars", "active_cars"] {
        let mut insert: QueryBuilder<MySql> = QueryBuilder::new(format!("INSERT INTO {table} (player, car) "));
        insert.push_values(&new, |mut row, player| {
            row.push_bind(player.as_str()).push_bind(STARTER_CAR);
        });
        insert.build().execute(&mut *transaction).await?;
    }

    let starters = || new.iter().flat_map(|player| STARTER_ITEMS.map(|(item, slot)| (player.as_str(), item, slot)));
    let mut insert: QueryBuilder<MySql> = QueryBuilder::new("INSERT INTO owned_items (player, item, quantity) ");
    insert.push_values(starters(), |mut row, (player, item, _)| {
        row.push_bind(player).push_bind(item).push_bind(1_u32);
    });
    insert.build().execute(&mut *transaction).await?;

    let mut insert: QueryBuilder<MySql> = QueryBuilder::new("INSERT INTO mounted_items (player, car, slot, item) ");
    insert.push_values(starters(), |mut row, (player, item, slot)| {
        row.push_bind(player).push_bind(STARTER_CAR).push_bind(slot).push_bind(item);
    });
    insert.build().execute(&mut *transaction).await?;

    commit(Point::PlayersIntroduced, transaction).await?;
    Ok(())
}
