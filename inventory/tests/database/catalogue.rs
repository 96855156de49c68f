use std::collections::BTreeSet;

use garage_events::svc::Command;
use garage_inventory::{
    Error,
    catalogue::{Catalogue, Difference},
    mysql::{
        catalogue::{self, apply},
        garage,
    },
};

use crate::{
    commands::{buy_car, buy_item, execute, grant, mount, sell_car},
    support::{assert_ledger_balances, at_once, player, pool},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_default_catalogue_has_eight_complete_cars() {
    let cars = catalogue::cars(&pool().await).await.unwrap();
    assert_eq!(cars.len(), 8);
    for car in &cars {
        assert!(!car.name.is_empty() && !car.model.is_empty() && !car.texture.is_empty(), "{car:?}");
        assert!(car.price > 0 && !car.slots.is_empty(), "{car:?}");
        let stats = car.stats;
        assert!((50.0..1_000.0).contains(&stats.power_kw), "{car:?}");
        assert!((800.0..2_500.0).contains(&stats.mass_kg), "{car:?}");
        assert!((0.5..2.0).contains(&stats.grip) && (0.4..1.0).contains(&stats.drag_m2), "{car:?}");
    }
    let models: BTreeSet<&str> = cars.iter().map(|car| car.model.as_str()).collect();
    assert_eq!(models.len(), 8, "each car has its own model");
    assert!(cars.is_sorted_by_key(|car| car.price));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_catalogue_has_twenty_items_that_each_fit_a_car() {
    let pool = pool().await;
    let items = catalogue::items(&pool).await.unwrap();
    assert_eq!(items.len(), 20);
    let cars = catalogue::cars(&pool).await.unwrap();
    for item in &items {
        assert!(!item.name.is_empty() && !item.model.is_empty() && !item.texture.is_empty(), "{item:?}");
        assert!(item.price > 0 && item.resale == item.price / 2, "{item:?}");
        assert!(cars.iter().any(|car| car.slots.contains(&item.slot)), "{item:?} fits no car");
    }
    assert!(items.is_sorted_by_key(|item| (item.slot.clone(), item.price)));
    let slots: BTreeSet<_> = cars.iter().flat_map(|car| &car.slots).collect();
    for slot in slots {
        assert!(items.iter().any(|item| item.slot == *slot), "no item fits the slot {slot}");
    }
}

/// The default catalogue as a file.
const FILE: &str = include_str!("../../../deploy/local/catalogue.toml");

fn shipped() -> Catalogue {
    FILE.parse().unwrap()
}

fn lines(differences: &[Difference]) -> Vec<String> {
    differences.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_file_is_equal_to_the_default_catalogue() {
    let pool = pool().await;
    let current = apply::current(&pool).await.unwrap();
    assert_eq!(current, shipped());
    assert_eq!(current.to_toml().unwrap().parse::<Catalogue>().unwrap(), current);
    assert_eq!(apply::differences(&pool, &shipped()).await.unwrap(), []);
    assert_eq!(apply::apply(&pool, &shipped()).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_changes_what_the_dry_run_lists_and_can_be_reverted() {
    let pool = pool().await;
    let anna = player("anna");
    grant(&pool, &anna, 100_000).await;
    for command in [buy_car("magpie"), buy_item("turbo-small"), mount("magpie", "turbo", "turbo-small")] {
        execute(&pool, &anna, &command).await.unwrap();
    }
    let mut next = shipped();
    next.resale_percent = 10;
    next.slots.insert("nitro".parse().unwrap());
    let vixen = next.cars.get_mut(&"vixen".parse().unwrap()).unwrap();
    (vixen.price, vixen.slots) = (4_000, ["engine", "nitro"].map(|slot| slot.parse().unwrap()).into());
    let magpie = next.cars.remove(&"magpie".parse().unwrap()).unwrap();
    next.items.remove(&"turbo-small".parse().unwrap());
    next.items.get_mut(&"paint-flames".parse().unwrap()).unwrap().effect.mass_kg = 0.5;
    let mut wren = magpie;
    wren.id = "wren".parse().unwrap();
    next.cars.insert(wren.id.clone(), wren);

    let expected = [
        "~ resale_percent: 50 → 10",
        "+ slot nitro",
        "~ car vixen price: 5000 → 4000",
        "~ car vixen slots: chassis, engine, paint, spoiler, turbo, tyres → engine, nitro",
        "+ car wren",
        "- car magpie",
        "~ item paint-flames mass_kg: 0 → 0.5",
        "- item turbo-small",
    ];
    assert_eq!(lines(&apply::differences(&pool, &next).await.unwrap()), expected);
    assert_eq!(apply::differences(&pool, &shipped()).await.unwrap(), [], "listing differences changes nothing");
    assert_eq!(lines(&apply::apply(&pool, &next).await.unwrap()), expected);
    assert_eq!(apply::differences(&pool, &next).await.unwrap(), []);

    // Anna keeps her retired car and item, may activate the car, and may sell her cars.
    execute(&pool, &anna, &Command::Activate { car: "magpie".parse().unwrap() }).await.unwrap();
    let loadout = garage::loadouts(&pool, std::slice::from_ref(&anna)).await.unwrap().remove(0);
    assert_eq!(loadout.items[&"turbo".parse().unwrap()].id.as_str(), "turbo-small");
    execute(&pool, &anna, &buy_car("wren")).await.unwrap();
    for retired in [buy_car("magpie"), buy_item("turbo-small")] {
        let error = execute(&pool, &player("bert"), &retired).await.unwrap_err();
        assert!(matches!(error, Error::Rejected(_)), "{error:?}");
    }
    let before = garage::garage(&pool, &anna).await.unwrap().balance;
    let after = execute(&pool, &anna, &sell_car("wren")).await.unwrap().balance;
    assert_eq!(after - before, 120, "a tenth of the price");

    let mut reverted: Vec<_> = lines(&apply::apply(&pool, &shipped()).await.unwrap());
    reverted.retain(|line| !line.starts_with('~'));
    assert_eq!(reverted, ["- slot nitro", "+ car magpie", "- car wren", "+ item turbo-small"]);
    assert_eq!(apply::current(&pool).await.unwrap(), shipped());
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_slot_in_use_is_rejected_and_nothing_changes() {
    let pool = pool().await;
    garage::garage(&pool, &player("anna")).await.unwrap();
    let mut next = shipped();
    next.resale_percent = 10;
    let pebble = next.cars.get_mut(&"pebble".parse().unwrap()).unwrap();
    pebble.slots.retain(|slot| slot.as_str() != "paint");
    next.items.get_mut(&"tyres-street".parse().unwrap()).unwrap().slot = "engine".parse().unwrap();
    for outcome in [apply::differences(&pool, &next).await, apply::apply(&pool, &next).await] {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("car pebble loses slot paint; mounted there: 1"), "{error}");
        assert!(error.contains("item tyres-street moves to slot engine; mounted in another slot: 1"), "{error}");
    }
    assert_eq!(apply::current(&pool).await.unwrap(), shipped());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_balances_after_concurrent_purchases_and_catalogue_changes() {
    let pool = pool().await;
    let anna = player("anna");
    grant(&pool, &anna, 1_000_000).await;
    at_once(32, |number| {
        let (pool, anna) = (pool.clone(), anna.clone());
        async move {
            if number % 4 == 0 {
                let mut next = shipped();
                next.items.get_mut(&"paint-red".parse().unwrap()).unwrap().price = u64::try_from(number).unwrap();
                apply::apply(&pool, &next).await.unwrap();
            } else {
                execute(&pool, &anna, &buy_item("paint-red")).await.unwrap();
            }
        }
    })
    .await;
    assert_ledger_balances(&pool).await;
    assert_eq!(garage::garage(&pool, &anna).await.unwrap().items[&"paint-red".parse().unwrap()], 25);
}
