use super::*;

const GOOD: &str = r#"resale_percent = 50
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

fn read(text: &str) -> Result<Catalogue, String> {
    text.parse().map_err(|error: FileError| error.to_string())
}

fn good() -> Catalogue {
    read(GOOD).unwrap()
}

#[test]
fn a_good_file_is_read_and_written_as_it_was() {
    let catalogue = good();
    let car = &catalogue.cars[&"pebble".parse().unwrap()];
    assert_eq!((car.price, car.resale, car.stats.power_kw), (500, 250, 66.0));
    assert!(car.slots.is_sorted(), "{:?}", car.slots);
    let item = &catalogue.items[&"tyres-street".parse().unwrap()];
    assert_eq!((item.effect.grip, item.effect.power_kw), (0.02, 0.0));
    assert_eq!(read(&catalogue.to_toml().unwrap()).unwrap(), catalogue);
}

#[test]
fn a_bad_file_is_refused_with_the_place() {
    for (from, to, why) in [
        (
            "resale_percent = 50",
            "resale_percent = 101",
            "line 1: resale_percent: it is 101, it must be within 0 to 100",
        ),
        ("\"paint\", \"tyres\"", "\"paint\", \"tyres\", \"paint\"", "line 2: slots: slot paint is there twice"),
        ("\"paint\", \"tyres\"", "\"paint\", \"tyres\", \"1st\"", "line 2: slots: slot \"1st\" is not valid"),
        ("price = 500", "price = -1", "line 4: car pebble: price is -1"),
        ("price = 100", "price = 1000000001", "line 16: item tyres-street: price is 1000000001"),
        ("\"tyres\", \"paint\"]\np", "\"tyres\", \"paint\", \"wing\"]\np", "line 4: car pebble: there is no slot wing"),
        ("\"tyres\", \"paint\"]\np", "\"tyres\"]\np", "line 4: car pebble: new players get it with paint-red"),
        ("slot = \"tyres\"", "slot = \"wing\"", "line 16: item tyres-street: there is no slot wing"),
        ("slot = \"tyres\"", "slot = \"paint\"", "line 16: item tyres-street: new players get it mounted"),
        ("power_kw = 66", "power_kw = 0", "line 4: car pebble: power_kw is 0"),
        ("mass_kg = 1010", "mass_kg = nan", "line 4: car pebble: mass_kg is NaN"),
        ("grip = 0.9", "grip = inf", "line 4: car pebble: grip is inf"),
        ("drag_m2 = 0.66", "drag_m2 = -0.66", "line 4: car pebble: drag_m2 is -0.66"),
        ("grip = 0.02", "grip = -11.0", "line 16: item tyres-street: grip is -11"),
        ("id = \"pebble\"", "id = \"Pebble\"", "line 4: car Pebble: car \"Pebble\" is not valid"),
        ("name = \"Pebble\"", "name = \"\"", "line 4: car pebble: name must have 1 to 64 characters"),
        ("name = \"Pebble\"", "name = \"a\\tb\"", "line 4: car pebble: name has characters that cannot be shown"),
        ("price = 500\n", "", "missing field `price`"),
        ("price = 500", "price = \"dear\"", "invalid type"),
        ("price = 500", "cost = 500", "unknown field `cost`"),
        ("[[items]]", "[[items]", "TOML parse error at line 16"),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        let error = read(&text).unwrap_err();
        assert!(error.contains(why), "{to}: {error}");
    }
}

#[test]
fn what_is_there_twice_is_told_where_it_is_again() {
    let (head, rest) = GOOD.split_at(GOOD.find("[[cars]]").unwrap());
    let error = read(&format!("{head}{rest}{rest}")).unwrap_err();
    assert!(error.contains("line 24: car pebble: there is a car pebble already"), "{error}");
    assert!(error.contains("line 36: item tyres-street: there is an item tyres-street already"), "{error}");
}

#[test]
fn every_fault_is_told_at_once() {
    let text = GOOD.replace("price = 500", "price = -1").replace("= 1010", "= 1").replace("grip = 0.02", "grip = 11");
    let Err(FileError::Faulty(faults)) = text.parse::<Catalogue>() else { panic!("it was taken") };
    let lines: Vec<_> = faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [4, 4, 16], "{faults:?}");
}

#[test]
fn more_than_a_message_holds_is_refused() {
    let (_, rest) = GOOD.split_at(GOOD.find("[[items]]").unwrap());
    let item = |number| rest.replace("tyres-street", &format!("tyres-{number}"));
    let text = GOOD.to_owned() + &(1..500).map(item).collect::<String>();
    assert_eq!(read(&text).unwrap().items.len(), 500);
    let error = read(&(text + &item(500))).unwrap_err();
    assert!(error.contains("there are more than 500 items"), "{error}");
}

#[test]
fn differences_are_told_line_by_line() {
    let mut next = good();
    next.resale_percent = 60;
    next.slots.insert("wing".parse().unwrap());
    let pebble = next.cars.get_mut(&"pebble".parse().unwrap()).unwrap();
    pebble.price = 550;
    pebble.slots.push("wing".parse().unwrap());
    let mut vixen = pebble.clone();
    vixen.id = "vixen".parse().unwrap();
    next.cars.insert(vixen.id.clone(), vixen);
    next.items.clear();
    let notified: Vec<_> = good().differences(&next).iter().map(ToString::to_string).collect();
    assert_eq!(
        notified,
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
