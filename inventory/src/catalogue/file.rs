//! The file's form, and every rule that it must keep.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
    ops::RangeInclusive,
    str::FromStr,
};

use garage_events::{
    game::Stats,
    id::{CarId, Invalid, ItemId, Slot},
    svc::{Effect, StoreCar, StoreItem},
};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::Catalogue;
use crate::domain::{STARTER_CAR, STARTER_ITEMS, store::resale};

/// Coins. The sum of a whole garage at this price is far from what a wallet holds.
const PRICE: RangeInclusive<i64> = 0..=1_000_000_000;
const RESALE_PERCENT: RangeInclusive<i64> = 0..=100;
/// From a scooter to a dragster.
const POWER_KW: RangeInclusive<f64> = 1.0..=10_000.0;
const MASS_KG: RangeInclusive<f64> = 50.0..=50_000.0;
const GRIP: RangeInclusive<f64> = 0.05..=10.0;
const DRAG_M2: RangeInclusive<f64> = 0.01..=50.0;
/// In characters, as the columns are made.
const NAME: usize = 64;
const PATH: usize = 255;
/// Cars, or items: with the longest names and paths, the store's answer still fits a NATS message of 1 MiB.
const MOST: usize = 500;
/// Slots of one car, for the same reason.
const MOST_SLOTS: usize = 16;

/// Something in the file that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where, from 1.
    pub line: usize,
    /// What.
    pub what: String,
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// Why a file is no catalogue.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is not TOML of the wanted form.
    #[error("the catalogue is malformed: {0}")]
    Malformed(Box<toml::de::Error>),
    /// It says what cannot be; every such thing, in the order of the lines.
    #[error("the catalogue cannot be used:{}", .0.iter().map(|fault| format!("\n  {fault}")).collect::<String>())]
    Faulty(Vec<Fault>),
    /// It cannot be written as TOML.
    #[error("the catalogue cannot be written: {0}")]
    Unwritable(#[from] toml::ser::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    resale_percent: Spanned<i64>,
    slots: Vec<Spanned<String>>,
    #[serde(default)]
    cars: Vec<Spanned<Car>>,
    #[serde(default)]
    items: Vec<Spanned<Item>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Car {
    id: String,
    name: String,
    model: String,
    texture: String,
    price: i64,
    slots: Vec<String>,
    power_kw: f64,
    mass_kg: f64,
    grip: f64,
    drag_m2: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    id: String,
    name: String,
    slot: String,
    model: String,
    texture: String,
    price: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    power_kw: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    mass_kg: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    grip: f64,
    #[serde(default, skip_serializing_if = "is_zero")]
    drag_m2: f64,
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}

impl FromStr for Catalogue {
    type Err = FileError;

    fn from_str(text: &str) -> Result<Self, FileError> {
        let file: File = toml::from_str(text).map_err(|error| FileError::Malformed(Box::new(error)))?;
        let mut check = Check { text, faults: Vec::new(), line: 1, place: String::new() };
        let catalogue = check.catalogue(file);
        check.faults.sort_by_key(|fault| fault.line);
        if check.faults.is_empty() { Ok(catalogue) } else { Err(FileError::Faulty(check.faults)) }
    }
}

/// Goes through a file. What cannot be is noted, and the rest looked at all the same.
struct Check<'a> {
    text: &'a str,
    faults: Vec<Fault>,
    /// What is looked at.
    line: usize,
    place: String,
}

impl Check<'_> {
    fn at<T>(&mut self, spanned: &Spanned<T>, place: String) {
        let before = self.text.get(..spanned.span().start).unwrap_or_default();
        self.line = before.matches('\n').count() + 1;
        self.place = place;
    }

    fn fault(&mut self, what: impl Display) {
        self.faults.push(Fault { line: self.line, what: format!("{}: {what}", self.place) });
    }

    fn catalogue(&mut self, file: File) -> Catalogue {
        self.at(&file.resale_percent, "resale_percent".into());
        let percent = self.within("it", *file.resale_percent.get_ref(), &RESALE_PERCENT);
        let percent = percent.and_then(|percent| u8::try_from(percent).ok()).unwrap_or_default();
        let mut slots = BTreeSet::new();
        for slot in &file.slots {
            self.at(slot, "slots".into());
            if let Some(slot) = self.id::<Slot>(slot.get_ref())
                && let Some(twice) = slots.replace(slot)
            {
                self.fault(format!("slot {twice} is there twice"));
            }
        }
        let mut cars = BTreeMap::new();
        for (number, car) in (1_usize..).zip(file.cars) {
            self.at(&car, format!("car {}", car.get_ref().id));
            if number == MOST + 1 {
                self.fault(format!("there are more than {MOST} cars"));
            }
            let Some(car) = self.car(car.into_inner(), &slots, percent) else { continue };
            if let Some(twice) = cars.insert(car.id.clone(), car) {
                self.fault(format!("there is a car {} already", twice.id));
            }
        }
        let mut items = BTreeMap::new();
        for (number, item) in (1_usize..).zip(file.items) {
            self.at(&item, format!("item {}", item.get_ref().id));
            if number == MOST + 1 {
                self.fault(format!("there are more than {MOST} items"));
            }
            let Some(item) = self.item(item.into_inner(), &slots, percent) else { continue };
            if let Some(twice) = items.insert(item.id.clone(), item) {
                self.fault(format!("there is an item {} already", twice.id));
            }
        }
        Catalogue { resale_percent: percent, slots, cars, items }
    }

    fn car(&mut self, car: Car, known: &BTreeSet<Slot>, percent: u8) -> Option<StoreCar> {
        let (id, price) = (self.id::<CarId>(&car.id), self.price(car.price));
        self.texts(&car.name, &car.model, &car.texture);
        let mut slots = BTreeSet::new();
        for slot in &car.slots {
            if let Some(slot) = self.slot(slot, known)
                && let Some(twice) = slots.replace(slot)
            {
                self.fault(format!("slot {twice} is there twice"));
            }
        }
        if slots.len() > MOST_SLOTS {
            self.fault(format!("it has {} slots, it may have {MOST_SLOTS}", slots.len()));
        }
        let stats = Stats { power_kw: car.power_kw, mass_kg: car.mass_kg, grip: car.grip, drag_m2: car.drag_m2 };
        self.within("power_kw", stats.power_kw, &POWER_KW);
        self.within("mass_kg", stats.mass_kg, &MASS_KG);
        self.within("grip", stats.grip, &GRIP);
        self.within("drag_m2", stats.drag_m2, &DRAG_M2);
        if car.id == STARTER_CAR {
            for (item, slot) in STARTER_ITEMS {
                if !slots.iter().any(|has| has.as_str() == slot) {
                    self.fault(format!("new players get it with {item}: it must have slot {slot}"));
                }
            }
        }
        let (id, price) = (id?, price?);
        let (Car { name, model, texture, .. }, slots) = (car, slots.into_iter().collect());
        Some(StoreCar { id, name, model, texture, price, resale: resale(price, percent), stats, slots })
    }

    fn item(&mut self, item: Item, known: &BTreeSet<Slot>, percent: u8) -> Option<StoreItem> {
        let (id, price, slot) = (self.id::<ItemId>(&item.id), self.price(item.price), self.slot(&item.slot, known));
        self.texts(&item.name, &item.model, &item.texture);
        let effect = Effect { power_kw: item.power_kw, mass_kg: item.mass_kg, grip: item.grip, drag_m2: item.drag_m2 };
        // It may take away as much as it may add.
        let either = |range: RangeInclusive<f64>| -range.end()..=*range.end();
        self.within("power_kw", effect.power_kw, &either(POWER_KW));
        self.within("mass_kg", effect.mass_kg, &either(MASS_KG));
        self.within("grip", effect.grip, &either(GRIP));
        self.within("drag_m2", effect.drag_m2, &either(DRAG_M2));
        if let Some((_, slot)) = STARTER_ITEMS.into_iter().find(|(starter, _)| *starter == item.id)
            && slot != item.slot
        {
            self.fault(format!("new players get it mounted: its slot must be {slot}"));
        }
        let (id, price, slot) = (id?, price?, slot?);
        let Item { name, model, texture, .. } = item;
        Some(StoreItem { id, name, slot, model, texture, price, resale: resale(price, percent), effect })
    }

    fn id<T: FromStr<Err = Invalid>>(&mut self, text: &str) -> Option<T> {
        text.parse().map_err(|invalid| self.fault(invalid)).ok()
    }

    fn slot(&mut self, text: &str, known: &BTreeSet<Slot>) -> Option<Slot> {
        let slot: Slot = self.id(text)?;
        if !known.contains(&slot) {
            self.fault(format!("there is no slot {slot}"));
            return None;
        }
        Some(slot)
    }

    fn price(&mut self, price: i64) -> Option<u64> {
        self.within("price", price, &PRICE).and_then(|price| u64::try_from(price).ok())
    }

    fn within<T: PartialOrd + Display + Copy>(&mut self, what: &str, is: T, range: &RangeInclusive<T>) -> Option<T> {
        if range.contains(&is) {
            return Some(is);
        }
        self.fault(format!("{what} is {is}, it must be within {} to {}", range.start(), range.end()));
        None
    }

    fn texts(&mut self, name: &str, model: &str, texture: &str) {
        for (what, text, most) in [("name", name, NAME), ("model", model, PATH), ("texture", texture, PATH)] {
            if !(1..=most).contains(&text.chars().count()) {
                self.fault(format!("{what} must have 1 to {most} characters"));
            }
            if text.chars().any(char::is_control) {
                self.fault(format!("{what} has characters that cannot be shown"));
            }
        }
    }
}

impl Catalogue {
    /// The file that says this.
    ///
    /// # Errors
    /// [`FileError::Unwritable`]
    pub fn to_toml(&self) -> Result<String, FileError> {
        fn nowhere<T>(value: T) -> Spanned<T> {
            Spanned::new(0..0, value)
        }
        let coins = |coins: u64| i64::try_from(coins).unwrap_or(i64::MAX);
        let car = |car: &StoreCar| Car {
            id: car.id.to_string(),
            name: car.name.clone(),
            model: car.model.clone(),
            texture: car.texture.clone(),
            price: coins(car.price),
            slots: car.slots.iter().map(ToString::to_string).collect(),
            power_kw: car.stats.power_kw,
            mass_kg: car.stats.mass_kg,
            grip: car.stats.grip,
            drag_m2: car.stats.drag_m2,
        };
        let item = |item: &StoreItem| Item {
            id: item.id.to_string(),
            name: item.name.clone(),
            slot: item.slot.to_string(),
            model: item.model.clone(),
            texture: item.texture.clone(),
            price: coins(item.price),
            power_kw: item.effect.power_kw,
            mass_kg: item.effect.mass_kg,
            grip: item.effect.grip,
            drag_m2: item.effect.drag_m2,
        };
        // As the store shows them: what is alike stands together.
        let mut cars: Vec<_> = self.cars.values().collect();
        cars.sort_by_key(|car| car.price);
        let mut items: Vec<_> = self.items.values().collect();
        items.sort_by_key(|item| (&item.slot, item.price));
        let file = File {
            resale_percent: nowhere(self.resale_percent.into()),
            slots: self.slots.iter().map(|slot| nowhere(slot.to_string())).collect(),
            cars: cars.into_iter().map(|each| nowhere(car(each))).collect(),
            items: items.into_iter().map(|each| nowhere(item(each))).collect(),
        };
        Ok(toml::to_string(&file)?)
    }
}
