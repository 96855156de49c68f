//! Players' ratings, stored in the table `players`.

use std::collections::{BTreeMap, BTreeSet};

use garage_events::{id::PlayerId, svc::Profile};
use sqlx::{MySql, MySqlConnection, MySqlPool, QueryBuilder};

use super::{players::introduce, push_list};
use crate::{
    domain::rating::{Rating, rank},
    error::Error,
};

/// Returns a player's rating and rank. A player that does not exist yet is created first.
///
/// # Errors
/// See [`Error`].
pub async fn profile(pool: &MySqlPool, player: &PlayerId) -> Result<Profile, Error> {
    if let Some(profile) = read_profile(pool, player).await? {
        return Ok(profile);
    }
    introduce(pool, &BTreeSet::from([player])).await?;
    read_profile(pool, player).await?.ok_or_else(|| Error::Corrupt(format!("{player} has no row in `players`")))
}

async fn read_profile(pool: &MySqlPool, player: &PlayerId) -> Result<Option<Profile>, Error> {
    let row: Option<(f64, f64, u32)> = sqlx::query_as("SELECT rating, deviation, matches FROM players WHERE id = ?")
        .bind(player.as_str())
        .fetch_optional(pool)
        .await?;
    Ok(row.map(|(rating, deviation, matches)| Profile {
        player: player.clone(),
        rank: rank(rating),
        rating,
        deviation,
        matches,
    }))
}

/// Reads the ratings of players. The caller holds the players' locks.
pub(super) async fn read<'a>(
    connection: &mut MySqlConnection,
    players: impl IntoIterator<Item = &'a PlayerId>,
) -> Result<BTreeMap<PlayerId, Rating>, Error> {
    let mut query = QueryBuilder::new("SELECT id, rating, deviation, volatility FROM players WHERE id IN ");
    push_list(&mut query, players);
    let rows: Vec<(String, f64, f64, f64)> = query.build_query_as().fetch_all(connection).await?;
    rows.into_iter()
        .map(|(id, rating, deviation, volatility)| Ok((id.parse()?, Rating { rating, deviation, volatility })))
        .collect()
}

/// Stores the ratings after a match, and counts the match. The caller holds the players' locks.
pub(super) async fn write(
    connection: &mut MySqlConnection,
    ratings: &BTreeMap<&PlayerId, Rating>,
) -> Result<(), Error> {
    if ratings.is_empty() {
        return Ok(());
    }
    // All rows exist, so this inserts nothing. It is a way to update any number of rows in one statement.
    let mut update: QueryBuilder<MySql> =
        QueryBuilder::new("INSERT INTO players (id, rating, deviation, volatility, matches) ");
    update.push_values(ratings, |mut row, (player, Rating { rating, deviation, volatility })| {
        row.push_bind(player.as_str()).push_bind(rating).push_bind(deviation).push_bind(volatility).push_bind(1_u32);
    });
    update.push(
        " ON DUPLICATE KEY UPDATE rating = VALUES(rating), deviation = VALUES(deviation),
          volatility = VALUES(volatility), matches = matches + 1",
    );
    update.build().execute(connection).await?;
    Ok(())
}
