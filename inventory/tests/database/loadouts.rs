use garage_events::svc::Command;
use garage_inventory::{
    Error,
    domain::with_effect,
    mysql::{catalogue, commands::execute, garage},
};

use crate::support::{player, pool};

#[tokio::test(flavor = "multi_thread")]
async fn a_loadout_is_the_active_car_with_its_mounted_items() {
    let pool = pool().await;
    let anna = player("anna");
    garage::garage(&pool, &anna).await.unwrap();
    for statement in [
        "INSERT INTO owned_cars (player, car) VALUES ('anna', 'magpie')",
        "INSERT INTO owned_items (player, item, quantity) VALUES ('anna', 'engine-sport', 1), ('anna', 'turbo-small', 2)",
        "INSERT INTO mounted_items (player, car, slot, item) VALUES
            ('anna', 'magpie', 'engine', 'engine-sport'), ('anna', 'magpie', 'turbo', 'turbo-small')",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    execute(&pool, &anna, None, &Command::Activate { car: "magpie".parse().unwrap() }).await.unwrap();

    let loadouts = garage::loadouts(&pool, std::slice::from_ref(&anna)).await.unwrap();
    let [loadout] = loadouts.as_slice() else { panic!("{loadouts:?}") };
    let items = catalogue::items(&pool).await.unwrap();
    let cars = catalogue::cars(&pool).await.unwrap();
    let magpie = cars.iter().find(|car| car.id.as_str() == "magpie").unwrap();
    assert_eq!(loadout.car.id, magpie.id);
    assert_eq!((&loadout.car.model, &loadout.car.texture), (&magpie.model, &magpie.texture));
    let item = |id| items.iter().find(|item| item.id.as_str() == id).unwrap();
    let (engine, turbo) = (item("engine-sport"), item("turbo-small"));
    assert_eq!(loadout.car.stats, with_effect(with_effect(magpie.stats, engine.effect), turbo.effect));
    assert!(loadout.car.stats.power_kw > magpie.stats.power_kw);
    let mounted: Vec<_> = loadout.items.iter().map(|(slot, item)| (slot.as_str(), item.id.as_str())).collect();
    assert_eq!(mounted, [("engine", "engine-sport"), ("turbo", "turbo-small")]);
    let engine_item = &loadout.items[&"engine".parse().unwrap()];
    assert_eq!((&engine_item.model, &engine_item.texture), (&engine.model, &engine.texture));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_starter_items_improve_the_starter_car() {
    let pool = pool().await;
    let loadouts = garage::loadouts(&pool, &[player("anna")]).await.unwrap();
    let cars = catalogue::cars(&pool).await.unwrap();
    let stock = cars.iter().find(|car| car.id == loadouts[0].car.id).unwrap();
    assert!(loadouts[0].car.stats.grip > stock.stats.grip);
    assert_eq!(loadouts[0].car.stats.mass_kg, stock.stats.mass_kg);
}

#[tokio::test(flavor = "multi_thread")]
async fn loadouts_of_new_and_known_players_are_in_the_requested_order() {
    let pool = pool().await;
    garage::garage(&pool, &player("bert")).await.unwrap();
    let requested: Vec<_> = ["carl", "bert", "anna", "bert"].map(player).into();
    let loadouts = garage::loadouts(&pool, &requested).await.unwrap();
    assert!(loadouts.iter().map(|loadout| &loadout.player).eq(&requested));
    assert!(garage::loadouts(&pool, &[]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_name_up_to_200_players() {
    let pool = pool().await;
    let players: Vec<_> = (0..200).map(|number| player(&format!("p{number}"))).collect();
    assert_eq!(garage::loadouts(&pool, &players).await.unwrap().len(), 200);
    let more = vec![player("anna"); 201];
    let error = garage::loadouts(&pool, &more).await.unwrap_err();
    assert!(matches!(error, Error::TooMany { requested: 201, max: 200 }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_refuses_mounted_items_that_break_a_rule() {
    let pool = pool().await;
    garage::garage(&pool, &player("anna")).await.unwrap();
    garage::garage(&pool, &player("bert")).await.unwrap();
    sqlx::query("INSERT INTO owned_items (player, item, quantity) VALUES ('anna', 'spoiler-lip', 1), ('anna', 'engine-tuned', 1)")
        .execute(&pool)
        .await
        .unwrap();
    for (statement, constraint) in [
        ("('anna', 'pebble', 'spoiler', 'spoiler-lip')", "mounted_items_car_has_slot"),
        ("('anna', 'pebble', 'engine', 'spoiler-lip')", "mounted_items_item_fits"),
        ("('bert', 'pebble', 'engine', 'engine-tuned')", "mounted_items_item_owned"),
        ("('bert', 'magpie', 'tyres', 'tyres-street')", "mounted_items_car_owned"),
    ] {
        let insert = format!("INSERT INTO mounted_items (player, car, slot, item) VALUES {statement}");
        let error = sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&pool).await.unwrap_err();
        assert!(error.to_string().contains(constraint), "{statement}: {error}");
    }
}
