//! What can be owned: cars and items, as the migrations put them.

use std::collections::BTreeMap;

use garage_events::{game::Stats, id::ItemId, id::Slot, svc::StoreCar};
use sqlx::{FromRow, MySqlPool};

use super::unsigned;
use crate::{domain::Effect, error::Error};

#[derive(FromRow)]
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
}

/// The cars, the cheapest first.
///
/// # Errors
/// See [`Error`].
pub async fn cars(pool: &MySqlPool) -> Result<Vec<StoreCar>, Error> {
    let rows: Vec<CarRow> = sqlx::query_as(
        "SELECT c.id, c.name, c.model, c.texture, c.price, c.power_kw, c.mass_kg, c.grip, c.drag_m2, s.slot
         FROM cars c LEFT JOIN car_slots s ON s.car = c.id
         ORDER BY c.price, c.id, s.slot",
    )
    .fetch_all(pool)
    .await?;
    let mut cars: Vec<StoreCar> = Vec::new();
    for row in rows {
        let slot: Option<Slot> = row.slot.map(|slot| slot.parse()).transpose()?;
        match cars.last_mut() {
            Some(car) if car.id.as_str() == row.id => car.slots.extend(slot),
            _ => cars.push(StoreCar {
                id: row.id.parse()?,
                name: row.name,
                model: row.model,
                texture: row.texture,
                price: unsigned(row.price)?,
                stats: Stats { power_kw: row.power_kw, mass_kg: row.mass_kg, grip: row.grip, drag_m2: row.drag_m2 },
                slots: slot.into_iter().collect(),
            }),
        }
    }
    Ok(cars)
}

/// An item of the catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreItem {
    /// What the player reads.
    pub name: String,
    /// The slot it fits.
    pub slot: Slot,
    /// Asset path of the 3D model.
    pub model: String,
    /// Asset path of the texture.
    pub texture: String,
    /// In coins.
    pub price: u64,
    /// What it adds to the car.
    pub effect: Effect,
}

#[derive(FromRow)]
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
}

/// The items.
///
/// # Errors
/// See [`Error`].
pub async fn items(pool: &MySqlPool) -> Result<BTreeMap<ItemId, StoreItem>, Error> {
    let rows: Vec<ItemRow> = sqlx::query_as(
        "SELECT id, name, slot, model, texture, price, add_power_kw, add_mass_kg, add_grip, add_drag_m2 FROM items",
    )
    .fetch_all(pool)
    .await?;
    let read = |row: ItemRow| {
        let item = StoreItem {
            name: row.name,
            slot: row.slot.parse()?,
            model: row.model,
            texture: row.texture,
            price: unsigned(row.price)?,
            effect: Effect {
                power_kw: row.add_power_kw,
                mass_kg: row.add_mass_kg,
                grip: row.add_grip,
                drag_m2: row.add_drag_m2,
            },
        };
        Ok((row.id.parse()?, item))
    };
    rows.into_iter().map(read).collect()
}
