//! The catalogue as an operator writes it: a TOML file, checked as a whole; and what it would change. Pure.
//!
//! ```toml
//! resale_percent = 50
//! slots = ["tyres"]
//!
//! [[cars]]
//! id = "pebble"
//! name = "Pebble"
//! model = "cars/pebble/model.glb"
//! texture = "cars/pebble/texture.png"
//! price = 500
//! slots = ["tyres"]
//! power_kw = 66
//! mass_kg = 1010
//! grip = 0.9
//! drag_m2 = 0.66
//!
//! [[items]]
//! id = "tyres-street"
//! name = "Street tyres"
//! slot = "tyres"
//! model = "items/tyres-street/model.glb"
//! texture = "items/tyres-street/texture.png"
//! price = 100
//! grip = 0.02 # what it adds to the car; 0 where nothing is said
//! ```

mod file;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use garage_events::{
    id::{CarId, ItemId, Slot},
    svc::{StoreCar, StoreItem},
};

pub use file::{Fault, FileError};

/// All that is sold.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalogue {
    /// The share of its price that a player gets who sells a thing.
    pub resale_percent: u8,
    /// The slots that cars may have.
    pub slots: BTreeSet<Slot>,
    /// The cars.
    pub cars: BTreeMap<CarId, StoreCar>,
    /// The items.
    pub items: BTreeMap<ItemId, StoreItem>,
}

/// What a catalogue changes in the one before it, for a person to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It is sold from now on.
    Added {
        /// Such as `car vixen`.
        what: String,
    },
    /// It is another from now on.
    Changed {
        /// Such as `car vixen`; empty for what is the store's own.
        what: String,
        /// Such as `price`.
        field: &'static str,
        /// What it was.
        from: String,
        /// What it becomes.
        to: String,
    },
    /// It is sold no more.
    Retired {
        /// Such as `car vixen`.
        what: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { what } => write!(f, "+ {what}"),
            Self::Changed { what, field, from, to } if what.is_empty() => write!(f, "~ {field}: {from} → {to}"),
            Self::Changed { what, field, from, to } => write!(f, "~ {what} {field}: {from} → {to}"),
            Self::Retired { what } => write!(f, "- {what}"),
        }
    }
}

/// What a person may change of a thing, field by field, as text.
pub(crate) trait Fields {
    /// The fields, always in the same order.
    fn fields(&self) -> Vec<(&'static str, String)>;
}

impl Fields for StoreCar {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let slots: Vec<_> = self.slots.iter().map(Slot::as_str).collect();
        vec![
            ("name", self.name.clone()),
            ("model", self.model.clone()),
            ("texture", self.texture.clone()),
            ("price", self.price.to_string()),
            ("slots", slots.join(", ")),
            ("power_kw", self.stats.power_kw.to_string()),
            ("mass_kg", self.stats.mass_kg.to_string()),
            ("grip", self.stats.grip.to_string()),
            ("drag_m2", self.stats.drag_m2.to_string()),
        ]
    }
}

impl Fields for StoreItem {
    fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("name", self.name.clone()),
            ("slot", self.slot.to_string()),
            ("model", self.model.clone()),
            ("texture", self.texture.clone()),
            ("price", self.price.to_string()),
            ("power_kw", self.effect.power_kw.to_string()),
            ("mass_kg", self.effect.mass_kg.to_string()),
            ("grip", self.effect.grip.to_string()),
            ("drag_m2", self.effect.drag_m2.to_string()),
        ]
    }
}

impl Catalogue {
    /// What comes of it when `next` takes its place.
    pub fn differences(&self, next: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        if self.resale_percent != next.resale_percent {
            let (from, to) = (self.resale_percent.to_string(), next.resale_percent.to_string());
            found.push(Difference::Changed { what: String::new(), field: "resale_percent", from, to });
        }
        let slot = |slot| format!("slot {slot}");
        found.extend(next.slots.difference(&self.slots).map(|new| Difference::Added { what: slot(new) }));
        found.extend(self.slots.difference(&next.slots).map(|old| Difference::Retired { what: slot(old) }));
        compare("car", &self.cars, &next.cars, &mut found);
        compare("item", &self.items, &next.items, &mut found);
        found
    }
}

fn compare<I: Ord + fmt::Display, T: Fields>(
    kind: &str,
    before: &BTreeMap<I, T>,
    after: &BTreeMap<I, T>,
    found: &mut Vec<Difference>,
) {
    for (id, new) in after {
        let what = format!("{kind} {id}");
        let Some(old) = before.get(id) else {
            found.push(Difference::Added { what });
            continue;
        };
        let fields = old.fields().into_iter().zip(new.fields());
        found.extend(
            fields.filter(|((_, from), (_, to))| from != to).map(|((field, from), (_, to))| Difference::Changed {
                what: what.clone(),
                field,
                from,
                to,
            }),
        );
    }
    let gone = before.keys().filter(|id| !after.contains_key(id));
    found.extend(gone.map(|id| Difference::Retired { what: format!("{kind} {id}") }));
}

#[cfg(test)]
mod tests;
