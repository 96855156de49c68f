use garage_inventory::{
    domain::{STARTER_CAR, STARTER_COINS, STARTER_ITEMS},
    mysql::garage,
};

use crate::support::{assert_ledger_balances, at_once, count, player, pool};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_player_gets_the_starter_car_items_and_coins() {
    let pool = pool().await;
    let anna = player("anna");
    let garage = garage::garage(&pool, &anna).await.unwrap();
    assert_eq!(garage.player, anna);
    assert_eq!(garage.balance, STARTER_COINS);
    assert_eq!(garage.active_car.as_str(), STARTER_CAR);
    assert_eq!(garage.cars.len(), 1);
    assert_eq!(garage.cars[0].id.as_str(), STARTER_CAR);
    assert_eq!(garage.cars[0].items.len(), STARTER_ITEMS.len());
    assert!(garage.items.values().all(|quantity| *quantity == 1));
    assert_eq!(garage::garage(&pool, &anna).await.unwrap(), garage, "a second request gives nothing more");
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_concurrent_requests_create_a_player_once() {
    let pool = pool().await;
    let outcomes = at_once(64, |number| {
        let pool = pool.clone();
        async move {
            // Both requests create a player that does not exist.
            let anna = player("anna");
            if number % 2 == 0 {
                garage::garage(&pool, &anna).await.map(drop)
            } else {
                garage::loadouts(&pool, &[anna]).await.map(drop)
            }
        }
    })
    .await;
    for outcome in outcomes {
        outcome.unwrap();
    }
    for (table, rows) in [
        ("SELECT COUNT(*) FROM players", 1),
        ("SELECT COUNT(*) FROM owned_cars", 1),
        ("SELECT COUNT(*) FROM active_cars", 1),
        ("SELECT COUNT(*) FROM owned_items", 2),
        ("SELECT COUNT(*) FROM mounted_items", 2),
        ("SELECT COUNT(*) FROM ledger", 1),
        ("SELECT COUNT(*) FROM outbox", 0),
    ] {
        assert_eq!(count(&pool, table).await, rows, "{table}");
    }
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_for_overlapping_groups_create_each_player_once() {
    let pool = pool().await;
    // Request k asks for the players k to k + 7. Most players are in eight requests, in a different order in each.
    let outcomes = at_once(64, |number| {
        let pool = pool.clone();
        async move {
            let mut players: Vec<_> = (number..number + 8).map(|number| player(&format!("p{number}"))).collect();
            players.rotate_left(number % 8);
            let loadouts = garage::loadouts(&pool, &players).await?;
            assert!(loadouts.iter().map(|loadout| &loadout.player).eq(&players), "not in the requested order");
            Ok::<_, garage_inventory::Error>(())
        }
    })
    .await;
    for outcome in outcomes {
        outcome.unwrap();
    }
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM players").await, 71);
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM ledger").await, 71);
    assert_ledger_balances(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn player_ids_are_case_sensitive_and_have_up_to_128_characters() {
    let pool = pool().await;
    for name in ["anna", "Anna", "ANNA", &"x".repeat(128), &"X".repeat(128)] {
        let garage = garage::garage(&pool, &player(name)).await.unwrap();
        assert_eq!(garage.player, player(name));
    }
    assert_eq!(count(&pool, "SELECT COUNT(*) FROM players").await, 5);
}
