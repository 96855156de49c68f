//! Replaces the catalogue in one transaction. Nothing that a player may own is deleted: products that the new catalogue
//! does not contain are retired.

use std::collections::BTreeMap;

use garage_events::svc::{StoreCar, StoreItem};
use sqlx::{MySqlConnection, MySqlPool, QueryBuilder};

use crate::{
    catalogue::{Catalogue, Difference, Fields},
    error::Error,
    mysql::{catalogue, retrying, signed},
};

/// Why a catalogue was not applied. The previous catalogue is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Players have mounted items in slots that would no longer fit. One line per car or item.
    #[error("players have mounted items that would no longer fit:{}", .0.iter().map(|line| format!("\n  {line}")).collect::<String>())]
    InUse(Vec<String>),
    /// A query failed.
    #[error(transparent)]
    Database(#[from] Error),
}

/// Reads the current catalogue.
///
/// # Errors
/// See [`Error`].
pub async fn current(pool: &MySqlPool) -> Result<Catalogue, Error> {
    // A transaction gives all reads the same snapshot.
    read(&mut *pool.begin().await?).await
}

/// Lists what `next` would change, without changing anything.
///
/// # Errors
/// The same as [`apply`].
pub async fn differences(pool: &MySqlPool, next: &Catalogue) -> Result<Vec<Difference>, ApplyError> {
    let mut transaction = pool.begin().await.map_err(Error::from)?;
    let now = read(&mut transaction).await?;
    check_slots_in_use(&mut transaction, &now, next).await?;
    Ok(now.differences(next))
}

/// Replaces the catalogue and returns what changed. Products that `next` does not contain are retired.
///
/// # Errors
/// See [`ApplyError`].
pub async fn apply(pool: &MySqlPool, next: &Catalogue) -> Result<Vec<Difference>, ApplyError> {
    // This check gives a readable error. If a player mounts an item after it, the foreign keys of `mounted_items` make
    // the transaction below fail.
    differences(pool, next).await?;
    Ok(retrying(|| apply_once(pool, next)).await?)
}

async fn apply_once(pool: &MySqlPool, next: &Catalogue) -> Result<Vec<Difference>, Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query("SELECT id FROM store WHERE id = 1 FOR UPDATE").execute(&mut *transaction).await?;
    let now = read(&mut transaction).await?;
    for slot in next.slots.difference(&now.slots) {
        sqlx::query("INSERT INTO slots (id) VALUES (?) ON DUPLICATE KEY UPDATE retired = FALSE")
            .bind(slot.as_str())
            .execute(&mut *transaction)
            .await?;
    }
    for car in changed(&now.cars, &next.cars) {
        write_car(&mut transaction, car).await?;
    }
    for item in changed(&now.items, &next.items) {
        write_item(&mut transaction, item).await?;
    }
    for slot in now.slots.difference(&next.slots) {
        retire(&mut transaction, "UPDATE slots SET retired = TRUE WHERE id = ?", slot.as_str()).await?;
    }
    for car in now.cars.keys().filter(|car| !next.cars.contains_key(*car)) {
        retire(&mut transaction, "UPDATE cars SET retired = TRUE WHERE id = ?", car.as_str()).await?;
    }
    for item in now.items.keys().filter(|item| !next.items.contains_key(*item)) {
        retire(&mut transaction, "UPDATE items SET retired = TRUE WHERE id = ?", item.as_str()).await?;
    }
    sqlx::query("UPDATE store SET resale_percent = ?").bind(next.resale_percent).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(now.differences(next))
}

async fn read(connection: &mut MySqlConnection) -> Result<Catalogue, Error> {
    let resale_percent = sqlx::query_scalar("SELECT resale_percent FROM store").fetch_one(&mut *connection).await?;
    let slots: Vec<String> =
        sqlx::query_scalar("SELECT id FROM slots WHERE NOT retired").fetch_all(&mut *connection).await?;
    let slots = slots.iter().map(|slot| slot.parse()).collect::<Result<_, _>>()?;
    let cars = catalogue::cars(&mut *connection).await?;
    let cars = cars.into_iter().map(|car| (car.id.clone(), car)).collect();
    let items = catalogue::items(connection).await?;
    let items = items.into_iter().map(|item| (item.id.clone(), item)).collect();
    Ok(Catalogue { resale_percent, slots, cars, items })
}

/// The entries of `next` that are new or differ from `now`.
fn changed<'a, I: Ord, T: Fields>(now: &BTreeMap<I, T>, next: &'a BTreeMap<I, T>) -> Vec<&'a T> {
    let same = |id, new: &T| now.get(id).is_some_and(|old| old.fields() == new.fields());
    next.iter().filter(|(id, new)| !same(*id, new)).map(|(_, new)| new).collect()
}

/// Fails if players have mounted items in a slot that a car loses, or mounted an item that changes its slot. A retired
/// car or item that comes back with other slots is checked too.
async fn check_slots_in_use(
    connection: &mut MySqlConnection,
    now: &Catalogue,
    next: &Catalogue,
) -> Result<(), ApplyError> {
    let mut uses = Vec::new();
    for car in changed(&now.cars, &next.cars) {
        let query = "SELECT slot, COUNT(*) FROM mounted_items WHERE car = ? GROUP BY slot ORDER BY slot";
        let mounted: Vec<(String, i64)> =
            sqlx::query_as(query).bind(car.id.as_str()).fetch_all(&mut *connection).await.map_err(Error::from)?;
        let lost = mounted.into_iter().filter(|(slot, _)| !car.slots.iter().any(|has| has.as_str() == slot));
        uses.extend(lost.map(|(slot, count)| format!("car {} loses slot {slot}; mounted there: {count}", car.id)));
    }
    for item in changed(&now.items, &next.items) {
        let query = "SELECT COUNT(*) FROM mounted_items WHERE item = ? AND slot <> ?";
        let count: i64 = sqlx::query_scalar(query)
            .bind(item.id.as_str())
            .bind(item.slot.as_str())
            .fetch_one(&mut *connection)
            .await
            .map_err(Error::from)?;
        if count > 0 {
            uses.push(format!("item {} moves to slot {}; mounted in another slot: {count}", item.id, item.slot));
        }
    }
    if uses.is_empty() { Ok(()) } else { Err(ApplyError::InUse(uses)) }
}

async fn write_car(connection: &mut MySqlConnection, car: &StoreCar) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO cars (id, name, model, texture, price, power_kw, mass_kg, grip, drag_m2)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON DUPLICATE KEY UPDATE name = VALUES(name), model = VALUES(model), texture = VALUES(texture),
            price = VALUES(price), power_kw = VALUES(power_kw), mass_kg = VALUES(mass_kg), grip = VALUES(grip),
            drag_m2 = VALUES(drag_m2), retired = FALSE",
    )
    .bind(car.id.as_str())
    .bind(&car.name)
    .bind(&car.model)
    .bind(&car.texture)
    .bind(signed(car.price)?)
    .bind(car.stats.power_kw)
    .bind(car.stats.mass_kg)
    .bind(car.stats.grip)
    .bind(car.stats.drag_m2)
    .execute(&mut *connection)
    .await?;
    let mut delete = QueryBuilder::new("DELETE FROM car_slots WHERE car = ");
    delete.push_bind(car.id.as_str());
    if !car.slots.is_empty() {
        delete.push(" AND slot NOT IN (");
        let mut list = delete.separated(", ");
        for slot in &car.slots {
            list.push_bind(slot.as_str());
        }
        delete.push(")");
    }
    delete.build().execute(&mut *connection).await?;
    for slot in &car.slots {
        sqlx::query("INSERT INTO car_slots (car, slot) VALUES (?, ?) ON DUPLICATE KEY UPDATE slot = VALUES(slot)")
            .bind(car.id.as_str())
            .bind(slot.as_str())
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn write_item(connection: &mut MySqlConnection, item: &StoreItem) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO items (id, name, slot, model, texture, price, add_power_kw, add_mass_kg, add_grip, add_drag_m2)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON DUPLICATE KEY UPDATE name = VALUES(name), slot = VALUES(slot), model = VALUES(model),
            texture = VALUES(texture), price = VALUES(price), add_power_kw = VALUES(add_power_kw),
            add_mass_kg = VALUES(add_mass_kg), add_grip = VALUES(add_grip), add_drag_m2 = VALUES(add_drag_m2),
            retired = FALSE",
    )
    .bind(item.id.as_str())
    .bind(&item.name)
    .bind(item.slot.as_str())
    .bind(&item.model)
    .bind(&item.texture)
    .bind(signed(item.price)?)
    .bind(item.effect.power_kw)
    .bind(item.effect.mass_kg)
    .bind(item.effect.grip)
    .bind(item.effect.drag_m2)
    .execute(connection)
    .await?;
    Ok(())
}

async fn retire(connection: &mut MySqlConnection, statement: &'static str, id: &str) -> Result<(), Error> {
    sqlx::query(statement).bind(id).execute(connection).await?;
    Ok(())
}
