use std::str::FromStr;

use super::*;

const PRODUCT: Product = Product { price: 300, resale: 150, retired: false };
const RETIRED: Product = Product { retired: true, ..PRODUCT };

fn id<T: FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// 1,000 coins; a pebble, which is driven, with red paint; a vixen with nothing; a second red, and sport tyres.
fn anna() -> Garage {
    let car = |car, items: &[(&str, &str)]| OwnedCar {
        id: id(car),
        name: car.to_owned(),
        items: items.iter().map(|(slot, item)| (id(slot), id(item))).collect(),
    };
    Garage {
        player: id("anna"),
        balance: 1_000,
        active_car: id("pebble"),
        cars: vec![car("pebble", &[("paint", "red")]), car("vixen", &[])],
        items: [(id("red"), 2), (id("sport"), 1)].into(),
    }
}

fn slots() -> BTreeSet<Slot> {
    [id("paint"), id("tyres")].into()
}

fn mount_on(garage: &Garage, car: &str, slot: &str, item: &str, fits: Option<&str>) -> Outcome {
    mount(garage, (&id(car), &id(slot)), &id(item), &slots(), fits.map(id))
}

#[test]
fn a_resale_is_a_share_without_fractions() {
    for (price, percent, expected) in [(500, 50, 250), (99, 50, 49), (7, 0, 0), (7, 100, 7), (u64::MAX, 100, u64::MAX)]
    {
        assert_eq!(resale(price, percent), expected, "{percent} % of {price}");
    }
}

#[test]
fn who_buys_pays() {
    let car = CarPurchased { car: id("adder"), price: 300, balance: 700 };
    assert_eq!(buy_car(&anna(), &id("adder"), Some(PRODUCT)), Ok(vec![car.into()]));
    let item = ItemPurchased { item: id("red"), price: 300, balance: 700 };
    assert_eq!(buy_item(&anna(), &id("red"), Some(PRODUCT)), Ok(vec![item.into()]));
    let all = Product { price: 1_000, ..PRODUCT };
    let last = ItemPurchased { item: id("red"), price: 1_000, balance: 0 };
    assert_eq!(buy_item(&anna(), &id("red"), Some(all)), Ok(vec![last.into()]));
}

#[test]
fn what_is_not_sold_or_too_dear_is_not_bought() {
    let dear = Some(Product { price: 1_001, ..PRODUCT });
    let too_dear = Rejection::TooDear { price: 1_001, balance: 1_000 };
    assert_eq!(buy_car(&anna(), &id("adder"), dear), Err(too_dear.clone()));
    assert_eq!(buy_item(&anna(), &id("red"), dear), Err(too_dear));
    for product in [None, Some(RETIRED)] {
        assert_eq!(buy_car(&anna(), &id("adder"), product), Err(Rejection::NoSuchCar(id("adder"))));
        assert_eq!(buy_item(&anna(), &id("red"), product), Err(Rejection::NoSuchItem(id("red"))));
    }
    assert_eq!(buy_car(&anna(), &id("vixen"), dear), Err(Rejection::Owned(id("vixen"))));
}

#[test]
fn a_car_is_sold_without_what_is_mounted_on_it() {
    let garage = Garage { active_car: id("vixen"), ..anna() };
    let unmounted = ItemUnmounted { car: id("pebble"), slot: id("paint"), item: id("red") };
    let sold = CarSold { car: id("pebble"), price: 150, balance: 1_150 };
    let events = vec![unmounted.into(), sold.into()];
    assert_eq!(sell_car(&garage, &id("pebble"), Some(PRODUCT)), Ok(events.clone()));
    assert_eq!(sell_car(&garage, &id("pebble"), Some(RETIRED)), Ok(events), "who owns it may still sell it");
}

#[test]
fn neither_the_active_car_nor_another_players_is_sold() {
    assert_eq!(sell_car(&anna(), &id("pebble"), Some(PRODUCT)), Err(Rejection::Active(id("pebble"))));
    assert_eq!(sell_car(&anna(), &id("adder"), Some(PRODUCT)), Err(Rejection::CarNotOwned(id("adder"))));
}

#[test]
fn an_item_is_sold_from_the_shelf() {
    let sold = ItemSold { item: id("red"), price: 150, balance: 1_150 };
    assert_eq!(sell_item(&anna(), &id("red"), Some(PRODUCT)), Ok(vec![sold.into()]));
    let mut garage = anna();
    garage.items.insert(id("red"), 1);
    assert_eq!(sell_item(&garage, &id("red"), Some(PRODUCT)), Err(Rejection::AllMounted(id("red"))));
    assert_eq!(sell_item(&anna(), &id("blue"), Some(PRODUCT)), Err(Rejection::ItemNotOwned(id("blue"))));
}

#[test]
fn an_item_is_mounted_where_it_fits_once_for_each_owned() {
    let mounted = |car, slot, item| Event::from(ItemMounted { car: id(car), slot: id(slot), item: id(item) });
    let garage = anna();
    let tyres = mount_on(&garage, "pebble", "tyres", "sport", Some("tyres"));
    assert_eq!(tyres, Ok(vec![mounted("pebble", "tyres", "sport")]));
    let second = mount_on(&garage, "vixen", "paint", "red", Some("paint"));
    assert_eq!(second, Ok(vec![mounted("vixen", "paint", "red")]));
    let mut one = anna();
    one.items.insert(id("red"), 1);
    let all_mounted = Rejection::AllMounted(id("red"));
    assert_eq!(mount_on(&one, "vixen", "paint", "red", Some("paint")), Err(all_mounted));
    assert_eq!(mount_on(&one, "pebble", "paint", "red", Some("paint")), Ok(vec![]), "it is there already");
}

#[test]
fn what_is_replaced_is_taken_off_first() {
    let mut garage = anna();
    garage.items.insert(id("blue"), 1);
    let off = ItemUnmounted { car: id("pebble"), slot: id("paint"), item: id("red") };
    let on = ItemMounted { car: id("pebble"), slot: id("paint"), item: id("blue") };
    assert_eq!(mount_on(&garage, "pebble", "paint", "blue", Some("paint")), Ok(vec![off.into(), on.into()]));
}

#[test]
fn what_cannot_be_mounted_is_refused_with_the_reason() {
    let cases = [
        (("adder", "paint", "red", Some("paint")), Rejection::CarNotOwned(id("adder"))),
        (("pebble", "wing", "red", Some("paint")), Rejection::NoSuchSlot { car: id("pebble"), slot: id("wing") }),
        (("pebble", "tyres", "ghost", None), Rejection::ItemNotOwned(id("ghost"))),
        (("pebble", "tyres", "blue", Some("paint")), Rejection::ItemNotOwned(id("blue"))),
        (
            ("pebble", "tyres", "red", Some("paint")),
            Rejection::Misfit { item: id("red"), fits: id("paint"), slot: id("tyres") },
        ),
    ];
    for ((car, slot, item, fits), rejection) in cases {
        assert_eq!(mount_on(&anna(), car, slot, item, fits), Err(rejection));
    }
}

#[test]
fn taking_off_twice_is_harmless() {
    let off = ItemUnmounted { car: id("pebble"), slot: id("paint"), item: id("red") };
    assert_eq!(unmount(&anna(), &id("pebble"), &id("paint"), &slots()), Ok(vec![off.into()]));
    assert_eq!(unmount(&anna(), &id("pebble"), &id("tyres"), &slots()), Ok(vec![]));
    let no_slot = Rejection::NoSuchSlot { car: id("pebble"), slot: id("wing") };
    assert_eq!(unmount(&anna(), &id("pebble"), &id("wing"), &slots()), Err(no_slot));
    assert_eq!(unmount(&anna(), &id("adder"), &id("paint"), &slots()), Err(Rejection::CarNotOwned(id("adder"))));
}

#[test]
fn an_owned_car_is_activated_once() {
    let event = CarActivated { car: id("vixen") };
    assert_eq!(activate(&anna(), &id("vixen")), Ok(vec![event.into()]));
    assert_eq!(activate(&anna(), &id("pebble")), Ok(vec![]));
    assert_eq!(activate(&anna(), &id("adder")), Err(Rejection::CarNotOwned(id("adder"))));
}
