//! The requests that the inventory worker answers.

use std::{collections::BTreeMap, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};
use time::OffsetDateTime;

use super::{Call, request};
use crate::{
    game::{Loadout, Stats},
    id::{CarId, ItemId, PlayerId, Slot},
};

/// Requests the loadout of each player. A new player gets their starter car first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loadouts {
    /// At most [`MAX_PLAYERS`](crate::queue::MAX_PLAYERS).
    pub players: Vec<PlayerId>,
}
request!(Loadouts => Vec<Loadout>, "svc.inventory.loadouts");

/// Requests the cars that the store sells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreCars {}
request!(StoreCars => Vec<StoreCar>, "svc.inventory.cars");

/// A car in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreCar {
    pub id: CarId,
    /// The name to show to players.
    pub name: String,
    /// Asset path of the 3D model.
    pub model: String,
    /// Asset path of the texture.
    pub texture: String,
    /// The price in coins.
    pub price: u64,
    /// Coins that a player receives for selling it.
    pub resale: u64,
    /// Without any items mounted.
    pub stats: Stats,
    pub slots: Vec<Slot>,
}

/// Requests the items that the store sells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StoreItems {}
request!(StoreItems => Vec<StoreItem>, "svc.inventory.items");

/// An item in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreItem {
    pub id: ItemId,
    /// The name to show to players.
    pub name: String,
    /// The slot that the item fits.
    pub slot: Slot,
    /// Asset path of the 3D model.
    pub model: String,
    /// Asset path of the texture.
    pub texture: String,
    /// The price in coins.
    pub price: u64,
    /// Coins that a player receives for selling it.
    pub resale: u64,
    pub effect: Effect,
}

/// Added to the car's [`Stats`] while the item is mounted, in the same units. Values may be negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Effect {
    pub power_kw: f64,
    pub mass_kg: f64,
    pub grip: f64,
    pub drag_m2: f64,
}

/// Requests the cars, items and coins of a player. A new player gets their starter car and coins first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetGarage {
    pub player: PlayerId,
}
request!(GetGarage => Garage, "svc.inventory.garage");

/// Executes a player's command, and returns the cars, items and coins that the player owns afterwards.
///
/// Refused with 404 if the car or item does not exist or the player does not own it, with 409 if the player's current
/// state does not allow the command, and with 422 if the key was used with another command.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Execute {
    pub player: PlayerId,
    /// A command with a key is executed only once. If it is sent again within 24 h, it returns the same reply.
    pub key: Option<IdempotencyKey>,
    pub command: Command,
}
impl Call for Execute {
    const SUBJECT: &'static str = "svc.inventory.execute";
    type Reply = Garage;

    fn may_repeat(&self) -> bool {
        self.key.is_some()
    }

    // Commands of one player wait for the same lock in the database. Each of them would occupy a connection meanwhile.
    fn in_turn(&self) -> Option<&PlayerId> {
        Some(&self.player)
    }
}

/// What a player can do with their cars and items.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Command {
    /// Buy a car that the player does not own.
    BuyCar { car: CarId },
    /// Sell a car that is not the active one. The player keeps the items that were mounted on it.
    SellCar { car: CarId },
    /// Buy one piece of an item.
    BuyItem { item: ItemId },
    /// Sell one piece of an item that is not mounted.
    SellItem { item: ItemId },
    /// Mount an item. It replaces the item in the slot.
    Mount { car: CarId, slot: Slot, item: ItemId },
    /// Take off the item in a slot.
    Unmount { car: CarId, slot: Slot },
    /// Make a car the active one.
    Activate { car: CarId },
}

/// A key that the client chooses for a request. A second request with the same key is recognised as a repetition.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// The maximum length, in characters.
    pub const MAX_LENGTH: usize = 128;

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not a valid idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key must be 1 to {} visible ASCII characters", IdempotencyKey::MAX_LENGTH)]
pub struct InvalidKey;

impl FromStr for IdempotencyKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let legal = (1..=Self::MAX_LENGTH).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if legal { Ok(Self(text.into())) } else { Err(InvalidKey) }
    }
}

impl<'de> Deserialize<'de> for IdempotencyKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Requests a player's rating. A new player has the initial rating.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetProfile {
    pub player: PlayerId,
}
request!(GetProfile => Profile, "svc.inventory.profile");

/// A player's rating, computed from the results of their matches with Glicko-2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    pub player: PlayerId,
    /// The rank with which the player queues: the rating as a whole number, within [`crate::player::RANKS`].
    pub rank: i32,
    /// 1,500 for a new player.
    pub rating: f64,
    /// The uncertainty of the rating. With 95 % probability, the player's true skill is within two deviations of it.
    pub deviation: f64,
    /// The number of matches that have changed the rating.
    pub matches: u32,
}

/// Requests entries of a player's ledger, newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GetLedger {
    pub player: PlayerId,
    /// Return only entries with a lower id; `None` for the newest ones.
    pub before: Option<u64>,
    /// The maximum number of entries, 1 to [`GetLedger::MAX_LIMIT`]. Any other value is refused with 400.
    pub limit: u32,
}
request!(GetLedger => Vec<LedgerEntry>, "svc.inventory.ledger");

impl GetLedger {
    /// The maximum number of entries in one reply.
    pub const MAX_LIMIT: u32 = 100;
}

/// A change of a player's wallet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Higher than the ids of the player's earlier entries.
    pub id: u64,
    /// `starter`, `reward`, `car-purchased`, `car-sold`, `item-purchased` or `item-sold`.
    pub reason: String,
    /// The car, item or session that the entry is about; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// Coins; negative if the player paid them.
    pub amount: i64,
    /// Coins in the wallet after the change.
    pub balance: u64,
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// The cars, items and coins of a player.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Garage {
    pub player: PlayerId,
    /// Coins in the wallet.
    pub balance: u64,
    pub active_car: CarId,
    /// In the order in which the player got them.
    pub cars: Vec<OwnedCar>,
    /// The number of pieces of each item, mounted or not.
    pub items: BTreeMap<ItemId, u32>,
}

/// A car that a player owns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnedCar {
    pub id: CarId,
    /// The name to show to players.
    pub name: String,
    /// The mounted items.
    pub items: BTreeMap<Slot, ItemId>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idempotency_key_is_short_and_visible_ascii() {
        for good in ["k", "0198c5a0-7b1e", "a/b+c=", &"k".repeat(128)] {
            assert_eq!(good.parse::<IdempotencyKey>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "\u{e9}", "a\n", &"k".repeat(129)] {
            assert!(bad.parse::<IdempotencyKey>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<IdempotencyKey>(bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_json_of_a_command_has_its_type_and_fields() {
        let command = Command::Unmount { car: "vixen".parse().unwrap(), slot: "turbo".parse().unwrap() };
        let text = r#"{"type":"unmount","car":"vixen","slot":"turbo"}"#;
        assert_eq!(serde_json::to_string(&command).unwrap(), text);
        assert_eq!(serde_json::from_str::<Command>(text).unwrap(), command);
    }
}
