//! The rules for players' cars, items and coins. Each rule takes what the player owns and the catalogue entries
//! that the command names, and returns the events that happen or a rejection.
//!
//! An item is spare if its owner has not mounted it on a car.

use std::collections::BTreeSet;

use garage_events::{
    id::{CarId, ItemId, Slot},
    inventory::{CarActivated, CarPurchased, CarSold, Event, ItemMounted, ItemPurchased, ItemSold, ItemUnmounted},
    svc::{Garage, OwnedCar},
};

/// A car's or an item's entry in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// In coins.
    pub price: u64,
    /// Coins that its owner gets for selling it.
    pub resale: u64,
    /// Whether the store has stopped selling it. Its owners may still use and sell it.
    pub retired: bool,
}

/// Computes the coins that an owner gets for a product with this price, rounded down.
pub fn resale(price: u64, percent: u8) -> u64 {
    let share = u128::from(price) * u128::from(percent) / 100;
    // The conversion fails only above 100 percent, which a constraint in the database excludes.
    u64::try_from(share).unwrap_or(price)
}

/// Why a player's command is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The car is not in the catalogue, or is retired.
    #[error("the store does not sell the car {0}")]
    NoSuchCar(CarId),
    /// The item is not in the catalogue, or is retired.
    #[error("the store does not sell the item {0}")]
    NoSuchItem(ItemId),
    #[error("the player does not own the car {0}")]
    CarNotOwned(CarId),
    #[error("the player does not own the item {0}")]
    ItemNotOwned(ItemId),
    #[error("the car {car} has no slot {slot}")]
    NoSuchSlot { car: CarId, slot: Slot },
    /// A player owns each car at most once.
    #[error("the player already owns the car {0}")]
    AlreadyOwned(CarId),
    #[error("not enough coins: the price is {price}, the wallet holds {balance}")]
    NotEnoughCoins { price: u64, balance: u64 },
    /// A player always has an active car, so that they never enter a match without one.
    #[error("the car {0} is the active car; activate another car before you sell it")]
    CarIsActive(CarId),
    /// The player owns the item, but has no spare one.
    #[error("the player has mounted every {0} that they own; unmount one first")]
    AllMounted(ItemId),
    #[error("the item {item} fits the slot {fits}, not {slot}")]
    WrongSlot {
        item: ItemId,
        /// The slot that the item fits.
        fits: Slot,
        /// The slot that the command names.
        slot: Slot,
    },
}

/// The events that a command causes. Empty if the command changes nothing, such as activating the active car.
pub type Outcome = Result<Vec<Event>, Rejection>;

/// Buys a car.
pub fn buy_car(garage: &Garage, car: &CarId, product: Option<Product>) -> Outcome {
    let price = for_sale(product).ok_or_else(|| Rejection::NoSuchCar(car.clone()))?;
    if owned(garage, car).is_ok() {
        return Err(Rejection::AlreadyOwned(car.clone()));
    }
    let balance = pay(garage, price)?;
    Ok(vec![CarPurchased { car: car.clone(), price, balance }.into()])
}

/// Sells a car. The items mounted on it become spare.
pub fn sell_car(garage: &Garage, car: &CarId, product: Option<Product>) -> Outcome {
    let mounted = &owned(garage, car)?.items;
    let price = product.ok_or_else(|| Rejection::NoSuchCar(car.clone()))?.resale;
    if garage.active_car == *car {
        return Err(Rejection::CarIsActive(car.clone()));
    }
    let unmounted = mounted.iter().map(|(slot, item)| unmounted(car, slot, item));
    let sold = CarSold { car: car.clone(), price, balance: garage.balance.saturating_add(price) };
    Ok(unmounted.chain([sold.into()]).collect())
}

/// Buys one item. A player may own several of a kind.
pub fn buy_item(garage: &Garage, item: &ItemId, product: Option<Product>) -> Outcome {
    let price = for_sale(product).ok_or_else(|| Rejection::NoSuchItem(item.clone()))?;
    let balance = pay(garage, price)?;
    Ok(vec![ItemPurchased { item: item.clone(), price, balance }.into()])
}

/// Sells one spare item.
pub fn sell_item(garage: &Garage, item: &ItemId, product: Option<Product>) -> Outcome {
    ensure_spare(garage, item)?;
    let price = product.ok_or_else(|| Rejection::NoSuchItem(item.clone()))?.resale;
    let balance = garage.balance.saturating_add(price);
    Ok(vec![ItemSold { item: item.clone(), price, balance }.into()])
}

/// Mounts a spare item. An item that is already in the slot becomes spare. `slots` are the car's slots; `fits` is the
/// slot that the item fits, `None` if the catalogue never had the item.
pub fn mount(
    garage: &Garage,
    (car, slot): (&CarId, &Slot),
    item: &ItemId,
    slots: &BTreeSet<Slot>,
    fits: Option<Slot>,
) -> Outcome {
    let current = mounted(garage, car, slot, slots)?;
    let fits = fits.ok_or_else(|| Rejection::ItemNotOwned(item.clone()))?;
    if current == Some(item) {
        return Ok(Vec::new());
    }
    let spare = ensure_spare(garage, item);
    // "Not owned" takes precedence over "wrong slot", and "wrong slot" over "all mounted".
    if !matches!(spare, Err(Rejection::ItemNotOwned(_))) && fits != *slot {
        return Err(Rejection::WrongSlot { item: item.clone(), fits, slot: slot.clone() });
    }
    spare?;
    let replaced = current.map(|current| unmounted(car, slot, current));
    let event = ItemMounted { car: car.clone(), slot: slot.clone(), item: item.clone() };
    Ok(replaced.into_iter().chain([event.into()]).collect())
}

/// Unmounts the item in a slot, if there is one. `slots` are the car's slots.
pub fn unmount(garage: &Garage, car: &CarId, slot: &Slot, slots: &BTreeSet<Slot>) -> Outcome {
    let current = mounted(garage, car, slot, slots)?;
    Ok(current.map(|item| unmounted(car, slot, item)).into_iter().collect())
}

/// Makes a car the active one, which the player drives in matches.
pub fn activate(garage: &Garage, car: &CarId) -> Outcome {
    owned(garage, car)?;
    let event = CarActivated { car: car.clone() };
    Ok(if garage.active_car == *car { Vec::new() } else { vec![event.into()] })
}

fn for_sale(product: Option<Product>) -> Option<u64> {
    product.filter(|product| !product.retired).map(|product| product.price)
}

fn pay(garage: &Garage, price: u64) -> Result<u64, Rejection> {
    let balance = garage.balance;
    balance.checked_sub(price).ok_or(Rejection::NotEnoughCoins { price, balance })
}

fn owned<'a>(garage: &'a Garage, car: &CarId) -> Result<&'a OwnedCar, Rejection> {
    garage.cars.iter().find(|owned| owned.id == *car).ok_or_else(|| Rejection::CarNotOwned(car.clone()))
}

fn mounted<'a>(
    garage: &'a Garage,
    car: &CarId,
    slot: &Slot,
    slots: &BTreeSet<Slot>,
) -> Result<Option<&'a ItemId>, Rejection> {
    let owned = owned(garage, car)?;
    if !slots.contains(slot) {
        return Err(Rejection::NoSuchSlot { car: car.clone(), slot: slot.clone() });
    }
    Ok(owned.items.get(slot))
}

/// Rejects the command unless the player owns more of the item than are mounted.
fn ensure_spare(garage: &Garage, item: &ItemId) -> Result<(), Rejection> {
    let owned = garage.items.get(item).copied().unwrap_or_default();
    let mounted = garage.cars.iter().flat_map(|car| car.items.values()).filter(|mounted| *mounted == item).count();
    match usize::try_from(owned) {
        Ok(0) => Err(Rejection::ItemNotOwned(item.clone())),
        Ok(owned) if owned <= mounted => Err(Rejection::AllMounted(item.clone())),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn unmounted(car: &CarId, slot: &Slot, item: &ItemId) -> Event {
    ItemUnmounted { car: car.clone(), slot: slot.clone(), item: item.clone() }.into()
}

#[cfg(test)]
mod tests;
