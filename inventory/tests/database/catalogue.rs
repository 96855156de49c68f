use std::collections::BTreeSet;

use garage_inventory::mysql::catalogue;

use crate::support::pool;

#[tokio::test(flavor = "multi_thread")]
async fn eight_cars_have_all_that_a_game_needs() {
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
    assert_eq!(models.len(), 8, "each has its own model");
    assert!(cars.is_sorted_by_key(|car| car.price));
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_items_each_fit_a_car() {
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
        assert!(items.iter().any(|item| item.slot == *slot), "there is nothing for {slot}");
    }
}
