use std::str::FromStr;

use super::*;

const PRODUCT: Product = Product { price: 300, resale: 150, retired: false };
const RETIRED: Product = Product { retired: true, ..PRODUCT };

fn id<T: FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Anna has 1,000 coins, an active pebble with red paint, a vixen without items, and a spare red paint and sport tyres.
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
fn the_resale_is_a_percentage_of_the_price_rounded_down() {
    for (price, percent, expected) in [(500, 50, 250), (99, 50, 49), (7, 0, 0), (7, 100, 7), (u64::MAX, 100, u64::MAX)]
    {
        assert_eq!(resale(price, percent), expected, "{percent} % of {price}");
    }
}

#[test]
fn a_purchase_reduces_the_balance() {
    let car = CarPurchased { car: id("adder"), price: 300, balance: 700 };
    assert_eq!(buy_car(&anna(), &id("adder"), Some(PRODUCT)), Ok(vec![car.into()]));
    let item = ItemPurchased { item: id("red"), price: 300, balance: 700 };
    assert_eq!(buy_item(&anna(), &id("red"), Some(PRODUCT)), Ok(vec![item.into()]));
    let all = Product { price: 1_000, ..PRODUCT };
    let last = ItemPurchased { item: id("red"), price: 1_000, balance: 0 };
    assert_eq!(buy_item(&anna(), &id("red"), Some(all)), Ok(vec![last.into()]));
}

#[test]
fn a_purchase_is_rejected_if_the_product_is_not_for_sale_or_too_expensive() {
    let expensive = Some(Product { price: 1_001, ..PRODUCT });
    let not_enough = Rejection::NotEnoughCoins { price: 1_001, balance: 1_000 };
    assert_eq!(buy_car(&anna(), &id("adder"), expensive), Err(not_enough.clone()));
    assert_eq!(buy_item(&anna(), &id("red"), expensive), Err(not_enough));
    for product in [None, Some(RETIRED)] {
        assert_eq!(buy_car(&anna(), &id("adder"), product), Err(Rejection::NoSuchCar(id("adder"))));
        assert_eq!(buy_item(&anna(), &id("red"), product), Err(Rejection::NoSuchItem(id("red"))));
    }
    assert_eq!(buy_car(&anna(), &id("vixen"), expensive), Err(Rejection::AlreadyOwned(id("vixen"))));
}

#[test]
fn selling_a_car_unmounts_its_items_first() {
    let garage = Garage { active_car: id("vixen"), ..anna() };
    let unmounted = ItemUnmounted { car: id("pebble"), slot: id("paint"), item: id("red") };
    let sold = CarSold { car: id("pebble"), price: 150, balance: 1_150 };
    let events = vec![unmounted.into(), sold.into()];
    assert_eq!(sell_car(&garage, &id("pebble"), Some(PRODUCT)), Ok(events.clone()));
    assert_eq!(sell_car(&garage, &id("pebble"), Some(RETIRED)), Ok(events), "a retired car can still be sold");
}

#[test]
fn the_active_car_and_cars_of_others_cannot_be_sold() {
    assert_eq!(sell_car(&anna(), &id("pebble"), Some(PRODUCT)), Err(Rejection::CarIsActive(id("pebble"))));
    assert_eq!(sell_car(&anna(), &id("adder"), Some(PRODUCT)), Err(Rejection::CarNotOwned(id("adder"))));
}

#[test]
fn only_a_spare_item_can_be_sold() {
    let sold = ItemSold { item: id("red"), price: 150, balance: 1_150 };
    assert_eq!(sell_item(&anna(), &id("red"), Some(PRODUCT)), Ok(vec![sold.into()]));
    let mut garage = anna();
    garage.items.insert(id("red"), 1);
    assert_eq!(sell_item(&garage, &id("red"), Some(PRODUCT)), Err(Rejection::AllMounted(id("red"))));
    assert_eq!(sell_item(&anna(), &id("blue"), Some(PRODUCT)), Err(Rejection::ItemNotOwned(id("blue"))));
}

#[test]
fn an_item_can_be_mounted_as_often_as_it_is_owned() {
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
    assert_eq!(mount_on(&one, "pebble", "paint", "red", Some("paint")), Ok(vec![]), "it is already mounted there");
}

#[test]
fn a_replaced_item_is_unmounted_first() {
    let mut garage = anna();
    garage.items.insert(id("blue"), 1);
    let off = ItemUnmounted { car: id("pebble"), slot: id("paint"), item: id("red") };
    let on = ItemMounted { car: id("pebble"), slot: id("paint"), item: id("blue") };
    assert_eq!(mount_on(&garage, "pebble", "paint", "blue", Some("paint")), Ok(vec![off.into(), on.into()]));
}

#[test]
fn an_item_that_cannot_be_mounted_is_rejected_with_the_reason() {
    let cases = [
        (("adder", "paint", "red", Some("paint")), Rejection::CarNotOwned(id("adder"))),
        (("pebble", "wing", "red", Some("paint")), Rejection::NoSuchSlot { car: id("pebble"), slot: id("wing") }),
        (("pebble", "tyres", "ghost", None), Rejection::ItemNotOwned(id("ghost"))),
        (("pebble", "tyres", "blue", Some("paint")), Rejection::ItemNotOwned(id("blue"))),
        (
            ("pebble", "tyres", "red", Some("paint")),
            Rejection::WrongSlot { item: id("red"), fits: id("paint"), slot: id("tyres") },
        ),
    ];
    for ((car, slot, item, fits), rejection) in cases {
        assert_eq!(mount_on(&anna(), car, slot, item, fits), Err(rejection));
    }
}

#[test]
fn unmounting_an_empty_slot_does_nothing() {
    let off = ItemUnmounted { car: id("pebble"), slot: id("paint"), item: id("red") };
    assert_eq!(unmount(&anna(), &id("pebble"), &id("paint"), &slots()), Ok(vec![off.into()]));
    assert_eq!(unmount(&anna(), &id("pebble"), &id("tyres"), &slots()), Ok(vec![]));
    let no_slot = Rejection::NoSuchSlot { car: id("pebble"), slot: id("wing") };
    assert_eq!(unmount(&anna(), &id("pebble"), &id("wing"), &slots()), Err(no_slot));
    assert_eq!(unmount(&anna(), &id("adder"), &id("paint"), &slots()), Err(Rejection::CarNotOwned(id("adder"))));
}

#[test]
fn activating_the_active_car_does_nothing() {
    let event = CarActivated { car: id("vixen") };
    assert_eq!(activate(&anna(), &id("vixen")), Ok(vec![event.into()]));
    assert_eq!(activate(&anna(), &id("pebble")), Ok(vec![]));
    assert_eq!(activate(&anna(), &id("adder")), Err(Rejection::CarNotOwned(id("adder"))));
}
