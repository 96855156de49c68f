use garage_events::{
    inventory::{CarActivated, Event},
    svc::Command,
};
use garage_inventory::{
    Error,
    domain::store::Rejection,
    mysql::{commands::execute, garage},
};

use crate::support::{at_once, outbox, player, pool};

fn activate(car: &str) -> Command {
    Command::Activate { car: car.parse().unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_activations_of_a_car_write_one_event() {
    let pool = pool().await;
    let anna = player("anna");
    let car = "vixen".parse().unwrap();
    garage::garage(&pool, &anna).await.unwrap();
    sqlx::query("INSERT INTO owned_cars (player, car) VALUES ('anna', 'vixen')").execute(&pool).await.unwrap();
    let outcomes = at_once(16, |_| {
        let (pool, anna) = (pool.clone(), anna.clone());
        async move { execute(&pool, &anna, None, &activate("vixen")).await }
    })
    .await;
    for outcome in outcomes {
        assert_eq!(outcome.unwrap().active_car, car);
    }
    assert_eq!(garage::garage(&pool, &anna).await.unwrap().active_car, car);
    assert_eq!(garage::loadouts(&pool, std::slice::from_ref(&anna)).await.unwrap()[0].car.id, car);
    let rows = outbox(&pool).await;
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((&row.player, &row.event), (&anna, &Event::CarActivated(CarActivated { car })));
}

#[tokio::test(flavor = "multi_thread")]
async fn activating_a_car_of_another_player_is_rejected() {
    let pool = pool().await;
    garage::garage(&pool, &player("bert")).await.unwrap();
    sqlx::query("INSERT INTO owned_cars (player, car) VALUES ('bert', 'vixen')").execute(&pool).await.unwrap();
    let anna = player("anna");
    for car in ["vixen", "no-such-car"] {
        let error = execute(&pool, &anna, None, &activate(car)).await.unwrap_err();
        assert!(matches!(error, Error::Rejected(Rejection::CarNotOwned(_))), "{error:?}");
    }
    assert_eq!(garage::garage(&pool, &anna).await.unwrap().active_car.as_str(), "pebble");
    assert!(outbox(&pool).await.is_empty());
}
