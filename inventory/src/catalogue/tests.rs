use super::*;

const VALID: &str = r#"resale_percent = 50
slots = ["paint", "tyres"]

[[cars]]
id = "pebble"
name = "Pebble"
model = "cars/pebble/model.glb"
texture = "cars/pebble/texture.png"
price = 500
slots = ["tyres", "paint"]
power_kw = 66
mass_kg = 1010
grip = 0.9
drag_m2 = 0.66

[[items]]
id = "tyres-street"
name = "Street tyres"
slot = "tyres"
model = "items/tyres-street/model.glb"
texture = "items/tyres-street/texture.png"
price = 100
grip = 0.02
"#;

fn parse(text: &str) -> Result<Catalogue, String> {
    text.parse().map_err(|error: FileError| error.to_string())
}

fn valid() -> Catalogue {
    parse(VALID).unwrap()
}

#[test]
fn a_valid_file_is_parsed_and_written_back_unchanged() {
    let catalogue = valid();
    let car = &catalogue.cars[&"pebble".parse().unwrap()];
    assert_eq!((car.price, car.resale, car.stats.power_kw), (500, 250, 66.0));
    assert!(car.slots.is_sorted(), "{:?}", car.slots);
    let item = &catalogue.items[&"tyres-street".parse().unwrap()];
    assert_eq!((item.effect.grip, item.effect.power_kw), (0.02, 0.0));
    assert_eq!(parse(&catalogue.to_toml().unwrap()).unwrap(), catalogue);
}

#[test]
fn an_invalid_file_is_rejected_with_line_and_reason() {
    for (from, to, expected) in [
        (
            "resale_percent = 50",
            "resale_percent = 101",
            "line 1: resale_percent: the value is 101, it must be between 0 and 100",
        ),
        ("\"paint\", \"tyres\"", "\"paint\", \"tyres\", \"paint\"", "line 2: slots: slot paint is listed twice"),
        ("\"paint\", \"tyres\"", "\"paint\", \"tyres\", \"1st\"", "line 2: slots: slot \"1st\" is not valid"),
        ("price = 500", "price = -1", "line 4: car pebble: price is -1"),
        ("price = 100", "price = 1000000001", "line 16: item tyres-street: price is 1000000001"),
        ("\"tyres\", \"paint\"]\np", "\"tyres\", \"paint\", \"wing\"]\np", "line 4: car pebble: there is no slot wing"),
        ("\"tyres\", \"paint\"]\np", "\"tyres\"]\np", "line 4: car pebble: new players get this car with paint-red"),
        ("slot = \"tyres\"", "slot = \"wing\"", "line 16: item tyres-street: there is no slot wing"),
        ("slot = \"tyres\"", "slot = \"paint\"", "line 16: item tyres-street: new players get this item mounted"),
        ("power_kw = 66", "power_kw = 0", "line 4: car pebble: power_kw is 0"),
        ("mass_kg = 1010", "mass_kg = nan", "line 4: car pebble: mass_kg is NaN"),
        ("grip = 0.9", "grip = inf", "line 4: car pebble: grip is inf"),
        ("drag_m2 = 0.66", "drag_m2 = -0.66", "line 4: car pebble: drag_m2 is -0.66"),
        ("grip = 0.02", "grip = -11.0", "line 16: item tyres-street: grip is -11"),
        ("id = \"pebble\"", "id = \"Pebble\"", "line 4: car Pebble: car \"Pebble\" is not valid"),
        ("name = \"Pebble\"", "name = \"\"", "line 4: car pebble: name must have 1 to 64 characters"),
        ("name = \"Pebble\"", "name = \"a\\tb\"", "line 4: car pebble: name contains control characters"),
        ("price = 500\n", "", "missing field `price`"),
        ("price = 500", "price = \"dear\"", "invalid type"),
        ("price = 500", "cost = 500", "unknown field `cost`"),
        ("[[items]]", "[[items]", "TOML parse error at line 16"),
    ] {
        let text = VALID.replacen(from, to, 1);
        assert_ne!(text, VALID, "{from}");
        let error = parse(&text).unwrap_err();
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn a_car_whose_loadout_does_not_fit_a_request_for_a_game_server_is_rejected() {
    let long = "\u{1f697}".repeat(255);
    let text = VALID.replace("cars/pebble/model.glb", &long).replace("cars/pebble/texture.png", &long);
    assert!(parse(&text).is_ok(), "without large items it fits");
    let text = text.replace("items/tyres-street/model.glb", &long).replace("items/tyres-street/texture.png", &long);
    let error = parse(&text).unwrap_err();
    assert!(error.contains("line 4: car pebble: with its largest items, it takes up to 4"), "{error}");
    assert!(error.contains("a match of 200 players"), "{error}");
}

#[test]
fn a_fault_contains_only_the_beginning_of_a_long_id() {
    for id in ["pebble", "tyres-street"] {
        let Err(FileError::Invalid(faults)) = VALID.replace(id, &id.repeat(10_000)).parse::<Catalogue>() else {
            panic!("the file was accepted")
        };
        assert!(faults.iter().all(|fault| fault.message.len() < 500), "{id}");
    }
}

#[test]
fn a_duplicate_id_is_reported_at_its_second_line() {
    let (head, rest) = VALID.split_at(VALID.find("[[cars]]").unwrap());
    let error = parse(&format!("{head}{rest}{rest}")).unwrap_err();
    assert!(error.contains("line 24: car pebble: another car has the id pebble"), "{error}");
    assert!(error.contains("line 36: item tyres-street: another item has the id tyres-street"), "{error}");
}

#[test]
fn all_faults_are_reported_at_once() {
    let text = VALID.replace("price = 500", "price = -1").replace("= 1010", "= 1").replace("grip = 0.02", "grip = 11");
    let Err(FileError::Invalid(faults)) = text.parse::<Catalogue>() else { panic!("the file was accepted") };
    let lines: Vec<_> = faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [4, 4, 16], "{faults:?}");
}

#[test]
fn more_than_500_items_are_rejected() {
    let (_, rest) = VALID.split_at(VALID.find("[[items]]").unwrap());
    let item = |number| rest.replace("tyres-street", &format!("tyres-{number}"));
    let text = VALID.to_owned() + &(1..500).map(item).collect::<String>();
    assert_eq!(parse(&text).unwrap().items.len(), 500);
    let error = parse(&(text + &item(500))).unwrap_err();
    assert!(error.contains("there are more than 500 items"), "{error}");
}

#[test]
fn differences_are_listed_field_by_field() {
    let mut next = valid();
    next.resale_percent = 60;
    next.slots.insert("wing".parse().unwrap());
    let pebble = next.cars.get_mut(&"pebble".parse().unwrap()).unwrap();
    pebble.price = 550;
    pebble.slots.push("wing".parse().unwrap());
    let mut vixen = pebble.clone();
    vixen.id = "vixen".parse().unwrap();
    next.cars.insert(vixen.id.clone(), vixen);
    next.items.clear();
    let differences: Vec<_> = valid().differences(&next).iter().map(ToString::to_string).collect();
    assert_eq!(
        differences,
        [
            "~ resale_percent: 50 → 60",
            "+ slot wing",
            "~ car pebble price: 500 → 550",
            "~ car pebble slots: paint, tyres → paint, tyres, wing",
            "+ car vixen",
            "- item tyres-street",
        ]
    );
    assert_eq!(next.differences(&next), []);
}

#[test]
fn any_bytes_are_a_catalogue_within_its_bounds_or_an_error_with_its_place() {
    let starter = VALID.replace("tyres-street", "paint-red").replace("slot = \"tyres\"", "slot = \"paint\"");
    garage_fuzz::feed(&[VALID, &starter], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let lines = text.matches('\n').count() + 1;
        match text.parse::<Catalogue>() {
            Ok(catalogue) => {
                check(&catalogue);
                let written = catalogue.to_toml().unwrap();
                assert_eq!(written.parse::<Catalogue>().unwrap(), catalogue, "{written}");
                return true;
            }
            Err(FileError::Invalid(faults)) => {
                assert!(!faults.is_empty() && faults.is_sorted_by_key(|fault| fault.line));
                for fault in &faults {
                    assert!((1..=lines).contains(&fault.line) && fault.message.len() <= 2_000, "{fault}");
                }
            }
            Err(error @ FileError::Malformed(_)) => {
                // It may quote a line of the file, and a key twice. `Debug` writes a byte as up to 6 characters.
                assert!(error.to_string().len() <= 20 * text.len() + 2_000);
            }
            Err(error @ FileError::Unwritable(_)) => panic!("{error}"),
        }
        false
    });
}

fn check(catalogue: &Catalogue) {
    let Catalogue { resale_percent, slots, cars, items } = catalogue;
    assert!(*resale_percent <= 100 && cars.len() <= 500 && items.len() <= 500);
    let texts = |name: &str, paths: [&str; 2]| {
        assert!((1..=64).contains(&name.chars().count()), "{name}");
        assert!(paths.iter().all(|path| (1..=255).contains(&path.chars().count())), "{paths:?}");
    };
    for car in cars.values() {
        texts(&car.name, [&car.model, &car.texture]);
        assert!(car.price <= 1_000_000_000 && car.resale <= car.price && car.slots.len() <= 16, "{car:?}");
        assert!(car.slots.iter().all(|slot| slots.contains(slot)), "{car:?}");
        let stats = [car.stats.power_kw, car.stats.mass_kg, car.stats.grip, car.stats.drag_m2];
        assert!(stats.iter().all(|value| value.is_finite() && *value > 0.0), "{car:?}");
    }
    for item in items.values() {
        texts(&item.name, [&item.model, &item.texture]);
        assert!(item.price <= 1_000_000_000 && item.resale <= item.price && slots.contains(&item.slot), "{item:?}");
        let effect = [item.effect.power_kw, item.effect.mass_kg, item.effect.grip, item.effect.drag_m2];
        assert!(effect.iter().all(|value| value.is_finite()), "{item:?}");
    }
}
