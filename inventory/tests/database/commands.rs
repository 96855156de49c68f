use garage_events::{
    id::PlayerId,
    inventory::{CarPurchased, CarSold, Event, ItemMounted, ItemPurchased, ItemSold, ItemUnmounted},
    svc::{Command, Garage},
};
use garage_inventory::{
    Error,
    domain::store::Rejection,
    mysql::{commands, garage, ledger},
};
use sqlx::MySqlPool;

use crate::support::{assert_ledger_balances, at_once, count, outbox, player, pool};

pub(crate) fn buy_car(car: &str) -> Command {
    Command::BuyCar { car: car.parse().unwrap() }
}

pub(crate) fn sell_car(car: &str) -> Command {
    Command::SellCar { car: car.parse().unwrap() }
}

pub(crate) fn buy_item(item: &str) -> Command {
    Command::BuyItem { item: item.parse().unwrap() }
}

pub(crate) fn sell_item(item: &str) -> Command {
    Command::SellItem { item: item.parse().unwrap() }
}

pub(crate) fn mount(car: &str, slot: &str, item: &str) -> Command {
    Command::Mount { car: car.parse().unwrap(), slot: slot.parse().unwrap(), item: item.parse().unwrap() }
}

fn unmount(car: &str, slot: &str) -> Command {
    Command::Unmount { car: car.parse().unwrap(), slot: slot.parse().unwrap() }
}

pub(crate) async fn execute(pool: &MySqlPool, player: &PlayerId, command: &Command) -> Result<Garage, Error> {
    commands::execute(pool, player, None, command).await
}

/// Adds coins to a wallet, with a ledger entry.
pub(crate) async fn grant(pool: &MySqlPool, player: &PlayerId, coins: u64) {
    garage::garage(pool, player).await.unwrap();
    for statement in [
        "UPDATE wallets SET balance = balance + ? WHERE player = ?",
        "INSERT INTO ledger (amount, player, name, reason, balance)
            SELECT ?, player, 'grant', 'grant', balance FROM wallets WHERE player = ?",
    ] {
        sqlx::query(statement).bind(coins).bind(player.as_str()).execute(pool).await.unwrap();
    }
}

async fn events(pool: &MySqlPool) -> Vec<Event> {
    outbox(pool).await.into_iter().map(|row| row.event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_changes_the_garage_and_writes_its_events() {
    let pool = pool().await;
    let anna = player("anna");
    grant(&pool, &anna, 500).await;
    let mut last = None;
    for (command, balance) in [
        (buy_car("magpie"), 300),
        (buy_item("paint-flames"), 0),
        (mount("magpie", "paint", "paint-flames"), 0),
        (mount("pebble", "paint", "paint-red"), 0),
        (unmount("pebble", "tyres"), 0),
        (unmount("pebble", "tyres"), 0),
        (mount("magpie", "tyres", "tyres-street"), 0),
        (sell_car("magpie"), 600),
        (sell_item("paint-flames"), 750),
    ] {
        let garage = execute(&pool, &anna, &command).await.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert_eq!(garage.balance, balance, "{command:?}");
        assert_eq!(garage, garage::garage(&pool, &anna).await.unwrap());
        last = Some(garage);
    }
    let last = last.unwrap();
    assert_eq!(last.cars.len(), 1);
    let items: Vec<_> = last.items.iter().map(|(item, quantity)| (item.as_str(), *quantity)).collect();
    assert_eq!(items, [("paint-red", 1), ("tyres-street", 1)]);
    assert_ledger_balances(&pool).await;

    let (magpie, pebble) = ("magpie".parse().unwrap(), "pebble".parse().unwrap());
    let (flames, street) = ("paint-flames".parse().unwrap(), "tyres-street".parse().unwrap());
    let (paint, tyres) = ("paint".parse().unwrap(), "tyres".parse().unwrap());
    let on = |car: &_, slot: &_, item: &_| {
        Event::from(ItemMounted { car: Clone::clone(car), slot: Clone::clone(slot), item: Clone::clone(item) })
    };
    let off = |car: &_, slot: &_, item: &_| {
        Event::from(ItemUnmounted { car: Clone::clone(car), slot: Clone::clone(slot), item: Clone::clone(item) })
    };
    let expected = [
        CarPurchased { car: Clone::clone(&magpie), price: 1_200, balance: 300 }.into(),
        ItemPurchased { item: Clone::clone(&flames), price: 300, balance: 0 }.into(),
        on(&magpie, &paint, &flames),
        off(&pebble, &tyres, &street),
        on(&magpie, &tyres, &street),
        off(&magpie, &paint, &flames),
        off(&magpie, &tyres, &street),
        CarSold { car: magpie, price: 600, balance: 600 }.into(),
        ItemSold { item: flames, price: 150, balance: 750 }.into(),
    ];
    assert_eq!(events(&pool).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_command_changes_nothing() {
    let pool = pool().await;
    let anna = player("anna");
    let before = garage::garage(&pool, &anna).await.unwrap();
    for command in [
        buy_car("pebble"),
        buy_car("magpie"),
        buy_car("ghost"),
        buy_item("ghost"),
        buy_item("tyres-drag-slick"),
        sell_car("pebble"),
        sell_car("magpie"),
        sell_item("tyres-street"),
        sell_item("ghost"),
        mount("pebble", "engine", "engine-tuned"),
        mount("pebble", "spoiler", "spoiler-lip"),
        mount("pebble", "engine", "tyres-street"),
        mount("magpie", "tyres", "tyres-street"),
        unmount("pebble", "ghost"),
        unmount("magpie", "tyres"),
    ] {
        let error = execute(&pool, &anna, &command).await.unwrap_err();
        assert!(matches!(error, Error::Rejected(_)), "{command:?}: {error:?}");
    }
    assert_eq!(garage::garage(&pool, &anna).await.unwrap(), before);
    assert_eq!(events(&pool).await, []);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM ledger").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_concurrent_purchases_never_overdraw_the_wallet() {
    let pool = pool().await;
    let anna = player("anna");
    // 32 purchases at 100 coins and 32 at 350: in any order, 1,000 coins do not pay for all of them.
    let outcomes = at_once(64, |number| {
        let (pool, anna) = (pool.clone(), anna.clone());
        async move { execute(&pool, &anna, &buy_item(["tyres-street", "tyres-sport"][number % 2])).await }
    })
    .await;
    let (bought, rejected): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    for rejection in rejected {
        let error = rejection.unwrap_err();
        assert!(matches!(error, Error::Rejected(Rejection::NotEnoughCoins { .. })), "{error:?}");
    }
    assert_ledger_balances(&pool).await;
    let garage = garage::garage(&pool, &anna).await.unwrap();
    let quantity = |item: &str| u64::from(garage.items.get(&item.parse().unwrap()).copied().unwrap_or_default());
    // Every new player owns one set of street tyres.
    assert_eq!(100 * (quantity("tyres-street") - 1) + 350 * quantity("tyres-sport"), 1_000 - garage.balance);
    assert!(garage.balance < 100, "a purchase was rejected although {} coins were left", garage.balance);
    let times = i64::try_from(bought.len()).unwrap();
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM outbox").await, times);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM ledger WHERE reason = 'item-purchased'").await, times);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_sixty_four_concurrent_purchases_of_a_car_one_succeeds() {
    let pool = pool().await;
    let anna = player("anna");
    grant(&pool, &anna, 100_000).await;
    let outcomes = at_once(64, |_| {
        let (pool, anna) = (pool.clone(), anna.clone());
        async move { execute(&pool, &anna, &buy_car("magpie")).await }
    })
    .await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert!(matches!(error, Error::Rejected(Rejection::AlreadyOwned(_))), "{error:?}");
    }
    assert_eq!(garage::garage(&pool, &anna).await.unwrap().balance, 99_800);
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_commands_mount_or_sell_one_item_once() {
    let pool = pool().await;
    let anna = player("anna");
    grant(&pool, &anna, 100_000).await;
    execute(&pool, &anna, &buy_car("magpie")).await.unwrap();
    execute(&pool, &anna, &buy_item("tyres-sport")).await.unwrap();
    let outcomes = at_once(48, |number| {
        let (pool, anna) = (pool.clone(), anna.clone());
        let command = match number % 3 {
            0 => mount("pebble", "tyres", "tyres-sport"),
            1 => mount("magpie", "tyres", "tyres-sport"),
            _ => sell_item("tyres-sport"),
        };
        async move { (number % 3, execute(&pool, &anna, &command).await) }
    })
    .await;
    let kinds: std::collections::BTreeSet<_> =
        outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(kind, _)| kind).collect();
    assert_eq!(kinds.len(), 1, "the item was used more than once: {kinds:?}");
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retired_car_is_not_for_sale_and_its_owners_keep_it() {
    let pool = pool().await;
    let anna = player("anna");
    sqlx::query("UPDATE cars SET retired = TRUE WHERE id = 'pebble'").execute(&pool).await.unwrap();
    let error = execute(&pool, &player("bert"), &buy_car("pebble")).await.unwrap_err();
    assert!(matches!(error, Error::Rejected(Rejection::NoSuchCar(_))), "{error:?}");
    assert_eq!(garage::loadouts(&pool, &[anna]).await.unwrap()[0].car.id.as_str(), "pebble");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_read_page_by_page_from_the_newest_entry() {
    let pool = pool().await;
    let anna = player("anna");
    for command in [buy_item("tyres-street"), buy_item("paint-midnight"), sell_item("paint-midnight")] {
        execute(&pool, &anna, &command).await.unwrap();
    }
    execute(&pool, &player("bert"), &buy_item("paint-midnight")).await.unwrap();
    let all = ledger::page(&pool, &anna, None, 100).await.unwrap();
    let entries: Vec<_> = all.iter().map(|e| (&*e.reason, e.about.as_deref(), e.amount, e.balance)).collect();
    assert_eq!(
        entries,
        [
            ("item-sold", Some("paint-midnight"), 25, 875),
            ("item-purchased", Some("paint-midnight"), -50, 850),
            ("item-purchased", Some("tyres-street"), -100, 900),
            ("starter", None, 1_000, 1_000),
        ]
    );
    assert!(all.iter().all(|entry| entry.at.year() >= 2025), "{all:?}");
    let mut paged = Vec::new();
    while let page = ledger::page(&pool, &anna, paged.last().map(|entry: &garage_events::svc::LedgerEntry| entry.id), 3)
        .await
        .unwrap()
        && !page.is_empty()
    {
        paged.extend(page);
    }
    assert_eq!(paged, all);
    assert_eq!(ledger::page(&pool, &anna, Some(u64::MAX), 100).await.unwrap(), all);
    assert_eq!(ledger::page(&pool, &player("new"), None, 1).await.unwrap().len(), 1);
}
