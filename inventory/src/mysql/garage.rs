//! Reads what players own, and the loadouts that they bring into a match.

use std::collections::{BTreeMap, BTreeSet};

use garage_events::{
    game::{Car, Item, Loadout, Stats},
    id::PlayerId,
    queue::MAX_PLAYERS,
    svc::{Effect, Garage, OwnedCar},
};
use sqlx::{MySqlConnection, MySqlPool, QueryBuilder};

use super::{players::introduce, push_list, row::row, unsigned};
use crate::{domain::with_effect, error::Error};

/// Returns each player's loadout, in the order of `players`. It needs one query for known players, whatever their
/// number. Players that do not exist yet are created first.
///
/// # Errors
/// [`Error::TooMany`] for more than [`MAX_PLAYERS`]; for the others see [`Error`].
pub async fn loadouts(pool: &MySqlPool, players: &[PlayerId]) -> Result<Vec<Loadout>, Error> {
    if players.len() > MAX_PLAYERS {
        return Err(Error::TooMany { requested: players.len(), max: MAX_PLAYERS });
    }
    let wanted: BTreeSet<&PlayerId> = players.iter().collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = read_loadouts(pool, &wanted).await?;
    let unknown: BTreeSet<&PlayerId> = wanted.into_iter().filter(|player| !found.contains_key(*player)).collect();
    if !unknown.is_empty() {
        introduce(pool, &unknown).await?;
        found.extend(read_loadouts(pool, &unknown).await?);
    }
    let loadout = |player| found.get(player).cloned().ok_or_else(|| no_active_car(player));
    players.iter().map(loadout).collect()
}

row! {
    /// A car with one of its mounted items. The item's columns come from a left join: all have a value or all are NULL.
    struct LoadoutRow {
        player: String,
        car: String,
        car_model: String,
        car_texture: String,
        power_kw: f64,
        mass_kg: f64,
        grip: f64,
        drag_m2: f64,
        slot: Option<String>,
        item: Option<String>,
        item_model: Option<String>,
        item_texture: Option<String>,
        add_power_kw: Option<f64>,
        add_mass_kg: Option<f64>,
        add_grip: Option<f64>,
        add_drag_m2: Option<f64>,
    }
}

/// Reads cars and mounted items in one statement. With two, a player could change the active car in between, and get
/// the items of one car on the other.
async fn read_loadouts(pool: &MySqlPool, players: &BTreeSet<&PlayerId>) -> Result<BTreeMap<PlayerId, Loadout>, Error> {
    let mut query = QueryBuilder::new(
        "SELECT a.player, c.id AS car, c.model AS car_model, c.texture AS car_texture,
                c.power_kw, c.mass_kg, c.grip, c.drag_m2,
                m.slot, i.id AS item, i.model AS item_model, i.texture AS item_texture,
                i.add_power_kw, i.add_mass_kg, i.add_grip, i.add_drag_m2
         FROM active_cars a
         JOIN cars c ON c.id = a.car
         LEFT JOIN mounted_items m ON m.player = a.player AND m.car = a.car
         LEFT JOIN items i ON i.id = m.item
         WHERE a.player IN ",
    );
    push_list(&mut query, players.iter().copied());
    // A fixed order of items: a floating point sum depends on its order.
    query.push(" ORDER BY a.player, m.slot");
    let rows: Vec<LoadoutRow> = query.build_query_as().fetch_all(pool).await?;
    let mut loadouts = BTreeMap::new();
    for row in rows {
        let player: PlayerId = row.player.parse()?;
        let stats = Stats { power_kw: row.power_kw, mass_kg: row.mass_kg, grip: row.grip, drag_m2: row.drag_m2 };
        let car = Car { id: row.car.parse()?, model: row.car_model, texture: row.car_texture, stats };
        let loadout = loadouts.entry(player.clone()).or_insert_with(|| Loadout { player, car, items: BTreeMap::new() });
        if let (Some(slot), Some(item), Some(model), Some(texture)) =
            (row.slot, row.item, row.item_model, row.item_texture)
        {
            let effect = Effect {
                power_kw: row.add_power_kw.unwrap_or_default(),
                mass_kg: row.add_mass_kg.unwrap_or_default(),
                grip: row.add_grip.unwrap_or_default(),
                drag_m2: row.add_drag_m2.unwrap_or_default(),
            };
            loadout.car.stats = with_effect(loadout.car.stats, effect);
            loadout.items.insert(slot.parse()?, Item { id: item.parse()?, model, texture });
        }
    }
    Ok(loadouts)
}

/// Returns what a player owns. A player that does not exist yet is created first.
///
/// # Errors
/// See [`Error`].
pub async fn garage(pool: &MySqlPool, player: &PlayerId) -> Result<Garage, Error> {
    // A transaction gives the three reads the same snapshot.
    let found = read_garage(&mut *pool.begin().await?, player).await?;
    if let Some(garage) = found {
        return Ok(garage);
    }
    introduce(pool, &BTreeSet::from([player])).await?;
    read_garage(&mut *pool.begin().await?, player).await?.ok_or_else(|| no_active_car(player))
}

pub(super) fn no_active_car(player: &PlayerId) -> Error {
    Error::Corrupt(format!("{player} has no active car"))
}

/// Reads what a player owns. `None` if the player does not exist yet.
pub(super) async fn read_garage(connection: &mut MySqlConnection, player: &PlayerId) -> Result<Option<Garage>, Error> {
    let wallet: Option<(i64, String)> = sqlx::query_as(
        "SELECT w.balance, a.car FROM wallets w JOIN active_cars a ON a.player = w.player WHERE w.player = ?",
    )
    .bind(player.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    let Some((balance, active_car)) = wallet else { return Ok(None) };

    let rows: Vec<(String, String, Option<String>, Option<String>)> = sqlx::query_as(
        "SELECT o.car, c.name, m.slot, m.item
         FROM owned_cars o
         JOIN cars c ON c.id = o.car
         LEFT JOIN mounted_items m ON m.player = o.player AND m.car = o.car
         WHERE o.player = ?
         ORDER BY o.acquired_at, o.car",
    )
    .bind(player.as_str())
    .fetch_all(&mut *connection)
    .await?;
    let mut cars: Vec<OwnedCar> = Vec::new();
    for (id, name, slot, item) in rows {
        let mounted = match (slot, item) {
            (Some(slot), Some(item)) => Some((slot.parse()?, item.parse()?)),
            _ => None,
        };
        match cars.last_mut() {
            Some(car) if car.id.as_str() == id => car.items.extend(mounted),
            _ => cars.push(OwnedCar { id: id.parse()?, name, items: mounted.into_iter().collect() }),
        }
    }

    let rows: Vec<(String, u32)> = sqlx::query_as("SELECT item, quantity FROM owned_items WHERE player = ?")
        .bind(player.as_str())
        .fetch_all(&mut *connection)
        .await?;
    let items = rows.into_iter().map(|(item, quantity)| Ok((item.parse()?, quantity))).collect::<Result<_, Error>>()?;

    let active_car = active_car.parse()?;
    Ok(Some(Garage { player: player.clone(), balance: unsigned(balance)?, active_car, cars, items }))
}
