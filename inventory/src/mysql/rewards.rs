//! Pays coins and changes ratings after a match, once per session and player.

use std::collections::{BTreeMap, BTreeSet};

use garage_events::{
    crash::Point,
    game::{Placing, TeamPlacing},
    id::{PlayerId, SessionId},
    inventory::{Event, RatingChanged, RewardGranted},
    session::results,
};
use sqlx::{MySql, MySqlPool, QueryBuilder};

use super::{commit, lock, out_of_range, outbox, players::introduce, push_list, ratings, retrying, signed};
use crate::{domain, error::Error};

/// Pays the players of a session for the places of their teams and changes their ratings, in one transaction. Idempotent: a player
/// that has already been paid for the session is left out. So is a player who did not join. Players that do not exist
/// yet are created first.
///
/// # Errors
/// See [`Error`]. After an error this call has paid nobody, unless the outcome of the commit is unknown.
pub async fn pay(
    pool: &MySqlPool,
    session: SessionId,
    closed_results: &[Placing],
    teams: &[TeamPlacing],
) -> Result<(), Error> {
    // A game server should list each player once. If it lists a player twice, the first placing counts, because it is
    // the better one.
    let mut placings: BTreeMap<&PlayerId, &Placing> = BTreeMap::new();
    for placing in closed_results.iter().filter(|placing| placing.joined) {
        placings.entry(&placing.player).or_insert(placing);
    }
    if placings.is_empty() {
        return Ok(());
    }
    introduce(pool, &placings.keys().copied().collect()).await?;
    let sides = if teams.is_empty() { closed_results.len() } else { teams.len() };
    retrying(|| pay_once(pool, session, &placings, teams, sides)).await
}

/// `placings` contains the players who joined. `sides` is the number of teams; without `teams`, each player is one.
async fn pay_once(
    pool: &MySqlPool,
    session: SessionId,
    placings: &BTreeMap<&PlayerId, &Placing>,
    teams: &[TeamPlacing],
    sides: usize,
) -> Result<(), Error> {
    let name = format!("reward:{session}");
    let mut transaction = pool.begin().await?;
    let balances = lock(&mut transaction, placings.keys().copied()).await?;

    let mut query = QueryBuilder::new("SELECT player FROM ledger WHERE name = ");
    query.push_bind(&name).push(" AND player IN ");
    push_list(&mut query, placings.keys().copied());
    let paid: Vec<String> = query.build_query_scalar().fetch_all(&mut *transaction).await?;
    let paid: BTreeSet<&str> = paid.iter().map(String::as_str).collect();

    let before = ratings::read(&mut transaction, placings.keys().copied()).await?;
    let placed = placings.iter().filter_map(|(&player, &placing)| Some((player, (placing, *before.get(player)?))));
    let mut rated = domain::rating::rate_players(&placed.collect(), teams);
    rated.retain(|player, _| !paid.contains(player.as_str()));

    let mut entries = Vec::new();
    let mut events = Vec::new();
    for (&player, placing) in placings.iter().filter(|(player, _)| !paid.contains(player.as_str())) {
        let owned = *balances.get(player).ok_or_else(|| Error::Corrupt(format!("{player} has no wallet")))?;
        let place = results::place(placing, teams);
        let Some(amount) = domain::reward(placing, place, sides) else { continue };
        let balance = owned.checked_add(amount).ok_or_else(|| out_of_range(owned))?;
        entries.push((player, signed(amount)?, signed(balance)?));
        if let (Some(before), Some(after)) = (before.get(player), rated.get(player)) {
            let changed = RatingChanged { session, rating: after.rating, before: before.rating };
            events.push((player, Event::from(changed)));
        }
        events.push((player, Event::from(RewardGranted { session, place, amount, balance })));
    }
    if entries.is_empty() {
        return Ok(());
    }

    let mut insert: QueryBuilder<MySql> =
        QueryBuilder::new("INSERT INTO ledger (player, name, reason, about, amount, balance) ");
    insert.push_values(&entries, |mut row, (player, amount, balance)| {
        row.push_bind(player.as_str()).push_bind(&name).push_bind("reward").push_bind(session.to_string());
        row.push_bind(amount).push_bind(balance);
    });
    insert.build().execute(&mut *transaction).await?;

    // Copy the balances of the new entries to the wallets. One statement, whatever the number of players.
    let mut update = QueryBuilder::new(
        "UPDATE wallets w JOIN ledger l ON l.player = w.player SET w.balance = l.balance WHERE l.name = ",
    );
    update.push_bind(&name).push(" AND w.player IN ");
    push_list(&mut update, entries.iter().map(|(player, ..)| *player));
    update.build().execute(&mut *transaction).await?;

    ratings::write(&mut transaction, &rated).await?;
    outbox::put(&mut transaction, Some(session), &events).await?;
    commit(Point::Rewarded, transaction).await?;
    metrics::counter!("garage_inventory_rewards_total").increment(entries.len() as u64);
    Ok(())
}
