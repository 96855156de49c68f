//! Parses, validates and writes the catalogue file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Display},
    ops::RangeInclusive,
    str::FromStr,
};

use garage_events::{
    game::{self, Loadout, Stats},
    id::{CarId, Invalid, ItemId, Slot},
    queue::MAX_PLAYERS,
    session::size,
    svc::{Effect, StoreCar, StoreItem},
};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::Catalogue;
use crate::domain::{STARTER_CAR, STARTER_ITEMS, store::resale};

/// In coins. Even the sum of all products at the highest price fits a wallet, which holds up to `i64::MAX` coins.
const PRICE: RangeInclusive<i64> = 0..=1_000_000_000;
const RESALE_PERCENT: RangeInclusive<i64> = 0..=100;
/// Wide enough for everything from a scooter to a dragster.
const POWER_KW: RangeInclusive<f64> = 1.0..=10_000.0;
const MASS_KG: RangeInclusive<f64> = 50.0..=50_000.0;
const GRIP: RangeInclusive<f64> = 0.05..=10.0;
const DRAG_M2: RangeInclusive<f64> = 0.01..=50.0;
/// In characters, the width of the database column.
const MAX_NAME: usize = 64;
const MAX_PATH: usize = 255;
/// Limit for cars and for items, each. Even with the longest names and paths, the list fits a NATS message of 1 MiB.
const MAX_ENTRIES: usize = 500;
/// Per car, for the same reason.
const MAX_SLOTS: usize = 16;

/// One rule that the file violates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line number, from 1. Inside a car or an item, the line on which its table begins.
    pub line: usize,
    pub message: String,
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

/// Why a catalogue cannot be read from a file, or written to one.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The text is not TOML, a field is unknown or missing, or a value has the wrong type.
    #[error("the catalogue is malformed: {0}")]
    Malformed(Box<toml::de::Error>),
    /// The file violates rules. Contains all violations, ordered by line.
    #[error("the catalogue is not valid:{}", .0.iter().map(|fault| format!("\n  {fault}")).collect::<String>())]
    Invalid(Vec<Fault>),
    /// The catalogue cannot be expressed as TOML.
    #[error("writing the catalogue as TOML: {0}")]
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

/// The beginning of an id that may not be valid. Each fault of a car or an item repeats it.
fn shown(id: &str) -> String {
    id.chars().take(MAX_NAME).collect()
}

impl FromStr for Catalogue {
    type Err = FileError;

    fn from_str(text: &str) -> Result<Self, FileError> {
        let file: File =
            garage_events::toml_file::parse(text).map_err(|error| FileError::Malformed(Box::new(error)))?;
        let mut validator = Validator { text, faults: Vec::new(), line: 1, context: String::new() };
        let catalogue = validator.catalogue(file);
        validator.faults.sort_by_key(|fault| fault.line);
        if validator.faults.is_empty() { Ok(catalogue) } else { Err(FileError::Invalid(validator.faults)) }
    }
}

/// Validates a file. It collects all faults instead of stopping at the first one.
struct Validator<'a> {
    text: &'a str,
    faults: Vec<Fault>,
    /// Line of the value under validation.
    line: usize,
    /// Name of the value under validation, such as `car vixen`. Faults begin with it.
    context: String,
}

impl Validator<'_> {
    fn enter<T>(&mut self, spanned: &Spanned<T>, context: String) {
        let before = self.text.get(..spanned.span().start).unwrap_or_default();
        self.line = before.matches('\n').count() + 1;
        self.context = context;
    }

    fn fault(&mut self, message: impl Display) {
        self.faults.push(Fault { line: self.line, message: format!("{}: {message}", self.context) });
    }

    fn catalogue(&mut self, file: File) -> Catalogue {
        self.enter(&file.resale_percent, "resale_percent".into());
        let percent = self.in_range("the value", *file.resale_percent.get_ref(), &RESALE_PERCENT);
        let percent = percent.and_then(|percent| u8::try_from(percent).ok()).unwrap_or_default();
        let mut slots = BTreeSet::new();
        for slot in &file.slots {
            self.enter(slot, "slots".into());
            if let Some(slot) = self.id::<Slot>(slot.get_ref())
                && let Some(duplicate) = slots.replace(slot)
            {
                self.fault(format!("slot {duplicate} is listed twice"));
            }
        }
        let mut cars = BTreeMap::new();
        let mut lines = BTreeMap::new();
        for (number, car) in (1_usize..).zip(file.cars) {
            self.enter(&car, format!("car {}", shown(&car.get_ref().id)));
            if number == MAX_ENTRIES + 1 {
                self.fault(format!("there are more than {MAX_ENTRIES} cars"));
            }
            let Some(car) = self.car(car.into_inner(), &slots, percent) else { continue };
            lines.insert(car.id.clone(), self.line);
            if let Some(duplicate) = cars.insert(car.id.clone(), car) {
                self.fault(format!("another car has the id {}", duplicate.id));
            }
        }
        let mut items = BTreeMap::new();
        for (number, item) in (1_usize..).zip(file.items) {
            self.enter(&item, format!("item {}", shown(&item.get_ref().id)));
            if number == MAX_ENTRIES + 1 {
                self.fault(format!("there are more than {MAX_ENTRIES} items"));
            }
            let Some(item) = self.item(item.into_inner(), &slots, percent) else { continue };
            if let Some(duplicate) = items.insert(item.id.clone(), item) {
                self.fault(format!("another item has the id {}", duplicate.id));
            }
        }
        for car in cars.values() {
            self.line = lines.get(&car.id).copied().unwrap_or(1);
            self.context = format!("car {}", car.id);
            self.loadout(car, &items);
        }
        Catalogue { resale_percent: percent, slots, cars, items }
    }

    /// Checks that a match in which all players drive this car, with the largest items, fits an event of the log.
    fn loadout(&mut self, car: &StoreCar, items: &BTreeMap<ItemId, StoreItem>) {
        // The longest player id, and numbers with the most digits.
        let Ok(player) = "p".repeat(128).parse() else { return };
        let longest = -1.234_567_890_123_456_7e-200;
        let stats = Stats { power_kw: longest, mass_kg: longest, grip: longest, drag_m2: longest };
        let StoreCar { id, model, texture, .. } = car.clone();
        let mut loadout = Loadout { player, car: game::Car { id, model, texture, stats }, items: BTreeMap::new() };
        for slot in &car.slots {
            let mounted = items.values().filter(|item| item.slot == *slot).map(|item| {
                let StoreItem { id, model, texture, .. } = item.clone();
                game::Item { id, model, texture }
            });
            let length = |item: &game::Item| item.id.as_str().len() + item.model.len() + item.texture.len();
            loadout.items.extend(mounted.max_by_key(length).map(|item| (slot.clone(), item)));
        }
        let size = size::of_loadout(&loadout);
        if size > size::MAX_LOADOUT {
            self.fault(format!(
                "with its largest items, it takes up to {size} bytes per player in the request for a game server; the \
                 maximum is {}, so that a match of {MAX_PLAYERS} players fits. Shorten the paths of models and textures, \
                 or give the car fewer slots",
                size::MAX_LOADOUT,
            ));
        }
    }

    fn car(&mut self, car: Car, known: &BTreeSet<Slot>, percent: u8) -> Option<StoreCar> {
        let (id, price) = (self.id::<CarId>(&car.id), self.price(car.price));
        self.texts(&car.name, &car.model, &car.texture);
        let mut slots = BTreeSet::new();
        for slot in &car.slots {
            if let Some(slot) = self.slot(slot, known)
                && let Some(duplicate) = slots.replace(slot)
            {
                self.fault(format!("slot {duplicate} is listed twice"));
            }
        }
        if slots.len() > MAX_SLOTS {
            self.fault(format!("it has {} slots, the maximum is {MAX_SLOTS}", slots.len()));
        }
        let stats = Stats { power_kw: car.power_kw, mass_kg: car.mass_kg, grip: car.grip, drag_m2: car.drag_m2 };
        self.in_range("power_kw", stats.power_kw, &POWER_KW);
        self.in_range("mass_kg", stats.mass_kg, &MASS_KG);
        self.in_range("grip", stats.grip, &GRIP);
        self.in_range("drag_m2", stats.drag_m2, &DRAG_M2);
        if car.id == STARTER_CAR {
            for (item, slot) in STARTER_ITEMS {
                if !slots.iter().any(|has| has.as_str() == slot) {
                    self.fault(format!("new players get this car with {item}, so it must have the slot {slot}"));
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
        // An effect may be negative: a spoiler can reduce drag.
        let symmetric = |range: RangeInclusive<f64>| -range.end()..=*range.end();
        self.in_range("power_kw", effect.power_kw, &symmetric(POWER_KW));
        self.in_range("mass_kg", effect.mass_kg, &symmetric(MASS_KG));
        self.in_range("grip", effect.grip, &symmetric(GRIP));
        self.in_range("drag_m2", effect.drag_m2, &symmetric(DRAG_M2));
        if let Some((_, slot)) = STARTER_ITEMS.into_iter().find(|(starter, _)| *starter == item.id)
            && slot != item.slot
        {
            self.fault(format!("new players get this item mounted on their car, so its slot must be {slot}"));
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
            self.fault(format!("there is no slot {slot}; add it to `slots`"));
            return None;
        }
        Some(slot)
    }

    fn price(&mut self, price: i64) -> Option<u64> {
        self.in_range("price", price, &PRICE).and_then(|price| u64::try_from(price).ok())
    }

    fn in_range<T: PartialOrd + Display + Copy>(
        &mut self,
        name: &str,
        value: T,
        range: &RangeInclusive<T>,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        self.fault(format!("{name} is {value}, it must be between {} and {}", range.start(), range.end()));
        None
    }

    fn texts(&mut self, name: &str, model: &str, texture: &str) {
        for (field, text, max) in [("name", name, MAX_NAME), ("model", model, MAX_PATH), ("texture", texture, MAX_PATH)]
        {
            if !(1..=max).contains(&text.chars().count()) {
                self.fault(format!("{field} must have 1 to {max} characters"));
            }
            if text.chars().any(char::is_control) {
                self.fault(format!("{field} contains control characters"));
            }
        }
    }
}

impl Catalogue {
    /// Writes the catalogue as TOML. Parsing the text gives an equal catalogue.
    ///
    /// # Errors
    /// [`FileError::Unwritable`]
    pub fn to_toml(&self) -> Result<String, FileError> {
        fn without_span<T>(value: T) -> Spanned<T> {
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
        // The order in which the store lists them: cars by price, items by slot and price.
        let mut cars: Vec<_> = self.cars.values().collect();
        cars.sort_by_key(|car| car.price);
        let mut items: Vec<_> = self.items.values().collect();
        items.sort_by_key(|item| (&item.slot, item.price));
        let file = File {
            resale_percent: without_span(self.resale_percent.into()),
            slots: self.slots.iter().map(|slot| without_span(slot.to_string())).collect(),
            cars: cars.into_iter().map(|each| without_span(car(each))).collect(),
            items: items.into_iter().map(|each| without_span(item(each))).collect(),
        };
        Ok(toml::to_string(&file)?)
    }
}
