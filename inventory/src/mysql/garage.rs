//! What players own and bring into a match.

use std::collections::{BTreeMap, BTreeSet};

use garage_events::{
    game::{Car, Item, Loadout, Stats},
    id::PlayerId,
    svc::{Effect, Garage, OwnedCar},
};
use sqlx::{FromRow, MySqlConnection, MySqlPool, QueryBuilder};

use super::{players::introduce, push_list, unsigned};
use crate::{domain::fitted, error::Error};

/// The most players whose loadouts are told at once; see `garage_events::svc::Loadouts`.
pub const MOST_PLAYERS: usize = 64;

/// What each player brings into a match, in the order asked for. One query, whoever and how many they are; more only
/// when one of them is new, who gets his starter car first.
///
/// # Errors
/// [`Error::TooMany`] beyond [`MOST_PLAYERS`]; else see [`Error`].
pub async fn loadouts(pool: &MySqlPool, players: &[PlayerId]) -> Result<Vec<Loadout>, Error> {
    if players.len() > MOST_PLAYERS {
        return Err(Error::TooMany { asked: players.len(), most: MOST_PLAYERS });
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

#[derive(FromRow)]
struct LoadoutRow {
    player: String,
    car: String,
    car_model: String,
    car_texture: String,
    power_kw: f64,
    mass_kg: f64,
    grip: f64,
    drag_m2: f64,
    #[sqlx(flatten)]
    mounted: MountedRow,
}

/// The item's side of a left join: all or none of it is there.
#[derive(FromRow)]
struct MountedRow {
    slot: Option<String>,
    item: Option<String>,
    item_model: Option<String>,
    item_texture: Option<String>,
    add_power_kw: Option<f64>,
    add_mass_kg: Option<f64>,
    add_grip: Option<f64>,
    add_drag_m2: Option<f64>,
}

/// Cars and mounted items come in one statement: with two, a change of cars between them would put the one's items on
/// the other.
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
    // Sums of floating point numbers depend on their order.
    query.push(" ORDER BY a.player, m.slot");
    let rows: Vec<LoadoutRow> = query.build_query_as().fetch_all(pool).await?;
    let mut loadouts = BTreeMap::new();
    for row in rows {
        let player: PlayerId = row.player.parse()?;
        let stats = Stats { power_kw: row.power_kw, mass_kg: row.mass_kg, grip: row.grip, drag_m2: row.drag_m2 };
        let car = Car { id: row.car.parse()?, model: row.car_model, texture: row.car_texture, stats };
        let loadout = loadouts.entry(player.clone()).or_insert_with(|| Loadout { player, car, items: BTreeMap::new() });
        row.mounted.mount(loadout)?;
    }
    Ok(loadouts)
}

impl MountedRow {
    fn mount(self, loadout: &mut Loadout) -> Result<(), Error> {
        let (Some(slot), Some(item), Some(model), Some(texture)) =
            (self.slot, self.item, self.item_model, self.item_texture)
        else {
            return Ok(());
        };
        let effect = Effect {
            power_kw: self.add_power_kw.unwrap_or_default(),
            mass_kg: self.add_mass_kg.unwrap_or_default(),
            grip: self.add_grip.unwrap_or_default(),
            drag_m2: self.add_drag_m2.unwrap_or_default(),
        };
        loadout.car.stats = fitted(loadout.car.stats, effect);
        loadout.items.insert(slot.parse()?, Item { id: item.parse()?, model, texture });
        Ok(())
    }
}

/// What a player owns. One unknown so far gets his starter first.
///
/// # Errors
/// See [`Error`].
pub async fn garage(pool: &MySqlPool, player: &PlayerId) -> Result<Garage, Error> {
    // A transaction, so that its three reads see one moment.
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

/// What a player owns, as this transaction sees it; `None` for one unknown so far.
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
