//! The events of a player's cars, items, coins and rating. The inventory worker's database is the source of truth. The
//! worker publishes these events after each change, for the other parts of Garage.

use serde::{Deserialize, Serialize};

use crate::{
    event::events,
    id::{CarId, ItemId, SessionId, Slot},
};

events! {
    /// The events of a player's cars, items, coins and rating.
    "inventory" {
        /// The player bought a car.
        CarPurchased = "car-purchased" at Published,
        /// The player sold a car.
        CarSold = "car-sold" at Published,
        /// The player bought an item.
        ItemPurchased = "item-purchased" at Published,
        /// The player sold an item.
        ItemSold = "item-sold" at Published,
        /// The player mounted an item in an empty slot of a car.
        ItemMounted = "item-mounted" at Published,
        /// An item was taken off a car, because the player removed it, replaced it, or sold the car.
        ItemUnmounted = "item-unmounted" at Published,
        /// The player chose the active car.
        CarActivated = "car-activated" at Published,
        /// A match changed the player's rating.
        RatingChanged = "rating-changed" at Published,
        /// The player received the reward for a match. If the match also changed their rating, `RatingChanged` comes
        /// directly before this event.
        RewardGranted = "reward-granted" at Published,
    }
}

/// See [`Event::CarPurchased`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarPurchased {
    pub car: CarId,
    /// Coins paid.
    pub price: u64,
    /// Coins in the wallet after the purchase.
    pub balance: u64,
}

/// See [`Event::CarSold`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarSold {
    pub car: CarId,
    /// Coins received.
    pub price: u64,
    /// Coins in the wallet after the sale.
    pub balance: u64,
}

/// See [`Event::ItemPurchased`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemPurchased {
    pub item: ItemId,
    /// Coins paid.
    pub price: u64,
    /// Coins in the wallet after the purchase.
    pub balance: u64,
}

/// See [`Event::ItemSold`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemSold {
    pub item: ItemId,
    /// Coins received.
    pub price: u64,
    /// Coins in the wallet after the sale.
    pub balance: u64,
}

/// See [`Event::ItemMounted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemMounted {
    pub car: CarId,
    pub slot: Slot,
    pub item: ItemId,
}

/// See [`Event::ItemUnmounted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemUnmounted {
    pub car: CarId,
    pub slot: Slot,
    pub item: ItemId,
}

/// See [`Event::CarActivated`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarActivated {
    pub car: CarId,
}

/// See [`Event::RatingChanged`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RatingChanged {
    pub session: SessionId,
    /// The rating after the match.
    pub rating: f64,
    /// The rating before the match.
    pub before: f64,
}

/// See [`Event::RewardGranted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardGranted {
    pub session: SessionId,
    /// The player's place in the match; 1 for the winner.
    pub place: u32,
    /// Coins received.
    pub amount: u64,
    /// Coins in the wallet after the reward.
    pub balance: u64,
}
