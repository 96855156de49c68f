//! A new catalogue in the place of the present one, in one transaction. Nothing is deleted that a player may own.

use std::collections::BTreeMap;

use garage_events::svc::{StoreCar, StoreItem};
use sqlx::{MySqlConnection, MySqlPool, QueryBuilder};

use crate::{
    catalogue::{Catalogue, Difference, Fields},
    error::Error,
    mysql::{catalogue, retrying, signed},
};

/// Why a catalogue was not applied. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Things are mounted where they would no longer fit; each such place is named.
    #[error("players have mounted what would no longer fit:{}", .0.iter().map(|place| format!("\n  {place}")).collect::<String>())]
    InUse(Vec<String>),
    /// The database.
    #[error(transparent)]
    Database(#[from] Error),
}

/// The catalogue as it is.
///
/// # Errors
/// See [`Error`].
pub async fn present(pool: &MySqlPool) -> Result<Catalogue, Error> {
    // A transaction, so that its reads see one moment.
    read(&mut *pool.begin().await?).await
}

/// What a catalogue would change.
///
/// # Errors
/// [`ApplyError`], as [`apply`] would say.
pub async fn differences(pool: &MySqlPool, next: &Catalogue) -> Result<Vec<Difference>, ApplyError> {
    let mut transaction = pool.begin().await.map_err(Error::from)?;
    let now = read(&mut transaction).await?;
    in_use(&mut transaction, &now, next).await?;
    Ok(now.differences(next))
}

/// Puts a catalogue in the place of the present one, and tells what it changed. What it does not name is retired.
///
/// # Errors
/// [`ApplyError`]
pub async fn apply(pool: &MySqlPool, next: &Catalogue) -> Result<Vec<Difference>, ApplyError> {
    // Looked at again by the database as the rows are written: who mounts something meanwhile makes it fail.
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

/// What is new, or another than it was.
fn changed<'a, I: Ord, T: Fields>(now: &BTreeMap<I, T>, next: &'a BTreeMap<I, T>) -> Vec<&'a T> {
    let same = |id, thing: &T| now.get(id).is_some_and(|old| old.fields() == thing.fields());
    next.iter().filter(|(id, thing)| !same(*id, thing)).map(|(_, thing)| thing).collect()
}

/// Finds what is mounted in a slot that its car, or on which its item, is to lose. That of a retired car or item counts
/// too, as it may come back with other slots.
async fn in_use(connection: &mut MySqlConnection, now: &Catalogue, next: &Catalogue) -> Result<(), ApplyError> {
    let mut places = Vec::new();
    for car in changed(&now.cars, &next.cars) {
        let query = "SELECT slot, COUNT(*) FROM mounted_items WHERE car = ? GROUP BY slot ORDER BY slot";
        let mounted: Vec<(String, i64)> =
            sqlx::query_as(query).bind(car.id.as_str()).fetch_all(&mut *connection).await.map_err(Error::from)?;
        let lost = mounted.into_iter().filter(|(slot, _)| !car.slots.iter().any(|has| has.as_str() == slot));
        places.extend(lost.map(|(slot, times)| format!("car {} loses slot {slot}; mounted there: {times}", car.id)));
    }
    for item in changed(&now.items, &next.items) {
        let query = "SELECT COUNT(*) FROM mounted_items WHERE item = ? AND slot <> ?";
        let times: i64 = sqlx::query_scalar(query)
            .bind(item.id.as_str())
            .bind(item.slot.as_str())
            .fetch_one(&mut *connection)
            .await
            .map_err(Error::from)?;
        if times > 0 {
            places.push(format!("item {} goes to slot {}; mounted elsewhere: {times}", item.id, item.slot));
        }
    }
    if places.is_empty() { Ok(()) } else { Err(ApplyError::InUse(places)) }
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
