//! The catalogue: what the store sells. An operator writes it as a TOML file. This module parses and validates the file
//! and compares two catalogues. It does no IO.
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
//! grip = 0.02 # added to the car's grip; power_kw, mass_kg and drag_m2 default to 0
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

/// Everything the store sells.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalogue {
    /// Percentage of the price that a player receives for selling a car or an item, 0 to 100.
    pub resale_percent: u8,
    /// All slots that a car or an item may use.
    pub slots: BTreeSet<Slot>,
    pub cars: BTreeMap<CarId, StoreCar>,
    pub items: BTreeMap<ItemId, StoreItem>,
}

/// One change from a catalogue to the next, in a form for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The store starts to sell it.
    Added {
        /// Kind and id, such as `car vixen`.
        name: String,
    },
    /// One of its fields has a new value.
    Changed {
        /// Kind and id, such as `car vixen`. Empty for a field of the catalogue itself.
        name: String,
        /// The field's name in the file, such as `price`.
        field: &'static str,
        from: String,
        to: String,
    },
    /// The store stops selling it. Players who own it keep it.
    Retired {
        /// Kind and id, such as `car vixen`.
        name: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { name } => write!(f, "+ {name}"),
            Self::Changed { name, field, from, to } if name.is_empty() => write!(f, "~ {field}: {from} → {to}"),
            Self::Changed { name, field, from, to } => write!(f, "~ {name} {field}: {from} → {to}"),
            Self::Retired { name } => write!(f, "- {name}"),
        }
    }
}

/// The fields of a car or an item that an operator may change.
pub(crate) trait Fields {
    /// Name and value of each field, always in the same order.
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
    /// Lists what changes when `next` replaces this catalogue.
    pub fn differences(&self, next: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        if self.resale_percent != next.resale_percent {
            let (from, to) = (self.resale_percent.to_string(), next.resale_percent.to_string());
            differences.push(Difference::Changed { name: String::new(), field: "resale_percent", from, to });
        }
        let slot = |slot| format!("slot {slot}");
        differences.extend(next.slots.difference(&self.slots).map(|new| Difference::Added { name: slot(new) }));
        differences.extend(self.slots.difference(&next.slots).map(|old| Difference::Retired { name: slot(old) }));
        compare("car", &self.cars, &next.cars, &mut differences);
        compare("item", &self.items, &next.items, &mut differences);
        differences
    }
}

fn compare<I: Ord + fmt::Display, T: Fields>(
    kind: &str,
    before: &BTreeMap<I, T>,
    after: &BTreeMap<I, T>,
    differences: &mut Vec<Difference>,
) {
    for (id, new) in after {
        let name = format!("{kind} {id}");
        let Some(old) = before.get(id) else {
            differences.push(Difference::Added { name });
            continue;
        };
        let fields = old.fields().into_iter().zip(new.fields());
        differences.extend(
            fields.filter(|((_, from), (_, to))| from != to).map(|((field, from), (_, to))| Difference::Changed {
                name: name.clone(),
                field,
                from,
                to,
            }),
        );
    }
    let retired = before.keys().filter(|id| !after.contains_key(id));
    differences.extend(retired.map(|id| Difference::Retired { name: format!("{kind} {id}") }));
}

#[cfg(test)]
mod tests;
