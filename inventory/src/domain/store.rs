//! What a player may do with his belongings. Each rule tells what happens, on what he owns and what the catalogue says
//! of the things that he names.

use std::collections::BTreeSet;

use garage_events::{
    id::{CarId, ItemId, Slot},
    inventory::{CarActivated, CarPurchased, CarSold, Event, ItemMounted, ItemPurchased, ItemSold, ItemUnmounted},
    svc::{Garage, OwnedCar},
};

/// A car or an item, as the catalogue has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Product {
    /// What it costs.
    pub price: u64,
    /// What its owner gets for it.
    pub resale: u64,
    /// Whether it is sold no more.
    pub retired: bool,
}

/// What an owner gets for what costs so much.
pub fn resale(price: u64, percent: u8) -> u64 {
    let share = u128::from(price) * u128::from(percent) / 100;
    // With more than a hundred percent it would not fit; the database lets no such catalogue in.
    u64::try_from(share).unwrap_or(price)
}

/// Why a player's command is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The catalogue has no such car, or no longer.
    #[error("the store sells no car {0}")]
    NoSuchCar(CarId),
    /// The catalogue has no such item, or no longer.
    #[error("the store sells no item {0}")]
    NoSuchItem(ItemId),
    /// The car is not his.
    #[error("the player does not own the car {0}")]
    CarNotOwned(CarId),
    /// The item is not his.
    #[error("the player does not own the item {0}")]
    ItemNotOwned(ItemId),
    /// The car is made without it.
    #[error("the car {car} has no slot {slot}")]
    NoSuchSlot {
        /// Which car.
        car: CarId,
        /// What it lacks.
        slot: Slot,
    },
    /// Nobody has a car twice.
    #[error("the player owns the car {0} already")]
    Owned(CarId),
    /// His wallet does not hold enough.
    #[error("not enough coins: the price is {price}, the wallet holds {balance}")]
    TooDear {
        /// What is asked.
        price: u64,
        /// What he has.
        balance: u64,
    },
    /// Who sold the car that he drives, or his last one, would come to a match without one.
    #[error("the car {0} is the active one; activate another one before it is sold")]
    Active(CarId),
    /// Every one that he has is on a car.
    #[error("no {0} is left on the shelf: all that the player owns are mounted")]
    AllMounted(ItemId),
    /// It belongs elsewhere.
    #[error("the item {item} fits the slot {fits}, not {slot}")]
    Misfit {
        /// Which item.
        item: ItemId,
        /// Where it would fit.
        fits: Slot,
        /// Where it was to go.
        slot: Slot,
    },
}

/// What comes of a command: what happens, which is nothing when all is as wanted already.
pub type Outcome = Result<Vec<Event>, Rejection>;

/// He buys a car.
pub fn buy_car(garage: &Garage, car: &CarId, product: Option<Product>) -> Outcome {
    let price = for_sale(product).ok_or_else(|| Rejection::NoSuchCar(car.clone()))?;
    if owned(garage, car).is_ok() {
        return Err(Rejection::Owned(car.clone()));
    }
    let balance = pay(garage, price)?;
    Ok(vec![CarPurchased { car: car.clone(), price, balance }.into()])
}

/// He sells a car; what is mounted on it goes back to the shelf.
pub fn sell_car(garage: &Garage, car: &CarId, product: Option<Product>) -> Outcome {
    let mounted = &owned(garage, car)?.items;
    let price = product.ok_or_else(|| Rejection::NoSuchCar(car.clone()))?.resale;
    if garage.active_car == *car {
        return Err(Rejection::Active(car.clone()));
    }
    let unmounted = mounted.iter().map(|(slot, item)| unmounted(car, slot, item));
    let sold = CarSold { car: car.clone(), price, balance: garage.balance.saturating_add(price) };
    Ok(unmounted.chain([sold.into()]).collect())
}

/// He buys one more of an item.
pub fn buy_item(garage: &Garage, item: &ItemId, product: Option<Product>) -> Outcome {
    let price = for_sale(product).ok_or_else(|| Rejection::NoSuchItem(item.clone()))?;
    let balance = pay(garage, price)?;
    Ok(vec![ItemPurchased { item: item.clone(), price, balance }.into()])
}

/// He sells one of an item.
pub fn sell_item(garage: &Garage, item: &ItemId, product: Option<Product>) -> Outcome {
    on_the_shelf(garage, item)?;
    let price = product.ok_or_else(|| Rejection::NoSuchItem(item.clone()))?.resale;
    let balance = garage.balance.saturating_add(price);
    Ok(vec![ItemSold { item: item.clone(), price, balance }.into()])
}

/// He mounts an item; what is there goes back to the shelf. `slots` are those of the car, `fits` is the item's.
pub fn mount(
    garage: &Garage,
    (car, slot): (&CarId, &Slot),
    item: &ItemId,
    slots: &BTreeSet<Slot>,
    fits: Option<Slot>,
) -> Outcome {
    let there = mounted(garage, car, slot, slots)?;
    let fits = fits.ok_or_else(|| Rejection::ItemNotOwned(item.clone()))?;
    if there == Some(item) {
        return Ok(Vec::new());
    }
    let left = on_the_shelf(garage, item);
    // To who has none of it, where it would fit is no matter.
    if !matches!(left, Err(Rejection::ItemNotOwned(_))) && fits != *slot {
        return Err(Rejection::Misfit { item: item.clone(), fits, slot: slot.clone() });
    }
    left?;
    let replaced = there.map(|there| unmounted(car, slot, there));
    let event = ItemMounted { car: car.clone(), slot: slot.clone(), item: item.clone() };
    Ok(replaced.into_iter().chain([event.into()]).collect())
}

/// He takes off what is in a slot. `slots` are those of the car.
pub fn unmount(garage: &Garage, car: &CarId, slot: &Slot, slots: &BTreeSet<Slot>) -> Outcome {
    let there = mounted(garage, car, slot, slots)?;
    Ok(there.map(|item| unmounted(car, slot, item)).into_iter().collect())
}

/// He takes another car to drive.
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
    balance.checked_sub(price).ok_or(Rejection::TooDear { price, balance })
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

/// Makes sure that one of an item is not mounted.
fn on_the_shelf(garage: &Garage, item: &ItemId) -> Result<(), Rejection> {
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
