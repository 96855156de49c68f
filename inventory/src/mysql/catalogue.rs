//! Reads the catalogue: cars, items and their slots.

pub mod apply;

use std::collections::BTreeSet;

use garage_events::{
    game::Stats,
    id::{CarId, ItemId, Slot},
    svc::{Effect, StoreCar, StoreItem},
};
use sqlx::{MySqlConnection, MySqlExecutor};

use super::{row::row, unsigned};
use crate::{
    domain::store::{Product, resale},
    error::Error,
};

row! {
    struct CarRow {
        id: String,
        name: String,
        model: String,
        texture: String,
        price: i64,
        power_kw: f64,
        mass_kg: f64,
        grip: f64,
        drag_m2: f64,
        slot: Option<String>,
        resale_percent: u8,
    }
}

/// All cars for sale, ordered by price.
///
/// # Errors
/// See [`Error`].
pub async fn cars(database: impl MySqlExecutor<'_>) -> Result<Vec<StoreCar>, Error> {
    let rows: Vec<CarRow> = sqlx::query_as(
        "SELECT c.id, c.name, c.model, c.texture, c.price, c.power_kw, c.mass_kg, c.grip, c.drag_m2, s.slot,
                store.resale_percent
         FROM cars c CROSS JOIN store LEFT JOIN car_slots s ON s.car = c.id
         WHERE NOT c.retired
         ORDER BY c.price, c.id, s.slot",
    )
    .fetch_all(database)
    .await?;
    let mut cars: Vec<StoreCar> = Vec::new();
    for row in rows {
        let slot: Option<Slot> = row.slot.map(|slot| slot.parse()).transpose()?;
        match cars.last_mut() {
            Some(car) if car.id.as_str() == row.id => car.slots.extend(slot),
            _ => {
                let price = unsigned(row.price)?;
                cars.push(StoreCar {
                    id: row.id.parse()?,
                    name: row.name,
                    model: row.model,
                    texture: row.texture,
                    price,
                    resale: resale(price, row.resale_percent),
                    stats: Stats { power_kw: row.power_kw, mass_kg: row.mass_kg, grip: row.grip, drag_m2: row.drag_m2 },
                    slots: slot.into_iter().collect(),
                });
            }
        }
    }
    Ok(cars)
}

row! {
    struct ItemRow {
        id: String,
        name: String,
        slot: String,
        model: String,
        texture: String,
        price: i64,
        add_power_kw: f64,
        add_mass_kg: f64,
        add_grip: f64,
        add_drag_m2: f64,
        resale_percent: u8,
    }
}

/// All items for sale, ordered by slot and price.
///
/// # Errors
/// See [`Error`].
pub async fn items(database: impl MySqlExecutor<'_>) -> Result<Vec<StoreItem>, Error> {
    let rows: Vec<ItemRow> = sqlx::query_as(
        "SELECT i.id, i.name, i.slot, i.model, i.texture, i.price,
                i.add_power_kw, i.add_mass_kg, i.add_grip, i.add_drag_m2, store.resale_percent
         FROM items i CROSS JOIN store
         WHERE NOT i.retired
         ORDER BY i.slot, i.price, i.id",
    )
    .fetch_all(database)
    .await?;
    let read = |row: ItemRow| {
        let price = unsigned(row.price)?;
        Ok(StoreItem {
            id: row.id.parse()?,
            name: row.name,
            slot: row.slot.parse()?,
            model: row.model,
            texture: row.texture,
            price,
            resale: resale(price, row.resale_percent),
            effect: Effect {
                power_kw: row.add_power_kw,
                mass_kg: row.add_mass_kg,
                grip: row.add_grip,
                drag_m2: row.add_drag_m2,
            },
        })
    };
    rows.into_iter().map(read).collect()
}

row! {
    struct ProductRow {
        price: i64,
        retired: bool,
        resale_percent: u8,
    }
}

impl TryFrom<ProductRow> for Product {
    type Error = Error;

    fn try_from(row: ProductRow) -> Result<Self, Error> {
        let price = unsigned(row.price)?;
        Ok(Self { price, resale: resale(price, row.resale_percent), retired: row.retired })
    }
}

/// A car's catalogue entry. `None` if the catalogue never had the car.
pub(super) async fn car(connection: &mut MySqlConnection, car: &CarId) -> Result<Option<Product>, Error> {
    let query = "SELECT c.price, c.retired, store.resale_percent FROM cars c CROSS JOIN store WHERE c.id = ?";
    let row: Option<ProductRow> = sqlx::query_as(query).bind(car.as_str()).fetch_optional(connection).await?;
    row.map(Product::try_from).transpose()
}

/// An item's catalogue entry. `None` if the catalogue never had the item.
pub(super) async fn item(connection: &mut MySqlConnection, item: &ItemId) -> Result<Option<Product>, Error> {
    let query = "SELECT i.price, i.retired, store.resale_percent FROM items i CROSS JOIN store WHERE i.id = ?";
    let row: Option<ProductRow> = sqlx::query_as(query).bind(item.as_str()).fetch_optional(connection).await?;
    row.map(Product::try_from).transpose()
}

/// A car's slots. Empty if the catalogue never had the car.
pub(super) async fn slots(connection: &mut MySqlConnection, car: &CarId) -> Result<BTreeSet<Slot>, Error> {
    let query = "SELECT slot FROM car_slots WHERE car = ?";
    let slots: Vec<String> = sqlx::query_scalar(query).bind(car.as_str()).fetch_all(connection).await?;
    slots.iter().map(|slot| Ok(slot.parse()?)).collect()
}

/// The slot that an item fits. `None` if the catalogue never had the item.
pub(super) async fn fits(connection: &mut MySqlConnection, item: &ItemId) -> Result<Option<Slot>, Error> {
    let query = "SELECT slot FROM items WHERE id = ?";
    let slot: Option<String> = sqlx::query_scalar(query).bind(item.as_str()).fetch_optional(connection).await?;
    Ok(slot.map(|slot| slot.parse()).transpose()?)
}
