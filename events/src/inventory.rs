//! What happens to a player's belongings. Inventory's database is their truth; these events tell the rest of Garage.

use serde::{Deserialize, Serialize};

use crate::{
    event::events,
    id::{CarId, ItemId, SessionId, Slot},
};

events! {
    /// What happens to a player's belongings.
    "inventory" {
        /// He bought a car.
        CarPurchased = "car-purchased" at Published,
        /// He sold a car.
        CarSold = "car-sold" at Published,
        /// He bought an item.
        ItemPurchased = "item-purchased" at Published,
        /// He sold an item.
        ItemSold = "item-sold" at Published,
        /// He mounted an item on a car. The slot was empty.
        ItemMounted = "item-mounted" at Published,
        /// He took an item off a car, to put another in its place, to sell the car, or to have it off.
        ItemUnmounted = "item-unmounted" at Published,
        /// He chose the car he drives.
        CarActivated = "car-activated" at Published,
        /// A match moved his rating.
        RatingChanged = "rating-changed" at Published,
        /// He was paid for a match. Where it moved his rating too, that is told right before.
        RewardGranted = "reward-granted" at Published,
    }
}

/// See [`Event::CarPurchased`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarPurchased {
    /// What.
    pub car: CarId,
    /// Coins paid.
    pub price: u64,
    /// Coins left.
    pub balance: u64,
}

/// See [`Event::CarSold`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarSold {
    /// What.
    pub car: CarId,
    /// Coins got.
    pub price: u64,
    /// Coins he has now.
    pub balance: u64,
}

/// See [`Event::ItemPurchased`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemPurchased {
    /// What.
    pub item: ItemId,
    /// Coins paid.
    pub price: u64,
    /// Coins left.
    pub balance: u64,
}

/// See [`Event::ItemSold`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemSold {
    /// What.
    pub item: ItemId,
    /// Coins got.
    pub price: u64,
    /// Coins he has now.
    pub balance: u64,
}

/// See [`Event::ItemMounted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemMounted {
    /// On which car.
    pub car: CarId,
    /// Where on it.
    pub slot: Slot,
    /// What.
    pub item: ItemId,
}

/// See [`Event::ItemUnmounted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemUnmounted {
    /// From which car.
    pub car: CarId,
    /// Where on it.
    pub slot: Slot,
    /// What.
    pub item: ItemId,
}

/// See [`Event::CarActivated`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarActivated {
    /// Which.
    pub car: CarId,
}

/// See [`Event::RatingChanged`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RatingChanged {
    /// The match.
    pub session: SessionId,
    /// His rating now.
    pub rating: f64,
    /// What it was.
    pub before: f64,
}

/// See [`Event::RewardGranted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardGranted {
    /// The match.
    pub session: SessionId,
    /// How he did, 1 for the winner.
    pub place: u32,
    /// Coins paid.
    pub amount: u64,
    /// Coins he has now.
    pub balance: u64,
}
