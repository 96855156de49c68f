use proptest::prelude::*;

use super::*;

const SPORTS: Stats = Stats { power_kw: 250.0, mass_kg: 1400.0, grip: 1.0, drag_m2: 0.6 };

fn player(name: &str) -> PlayerId {
    name.parse().unwrap()
}

/// A race whose players have all joined.
fn race(cars: &[(&str, Stats)]) -> Race {
    let mut race = Race::new(cars.iter().map(|(name, stats)| (player(name), *stats)), QUARTER_MILE_M, 60.0);
    (0..cars.len()).for_each(|index| race.join(index));
    race
}

fn at_full_throttle(mut race: Race) -> Race {
    for index in 0..race.cars().len() {
        race.join(index);
        race.set_throttle(index, Throttle(1.0));
    }
    while !race.is_over() {
        race.step();
    }
    race
}

/// Seconds over a quarter mile at full throttle.
fn seconds(stats: Stats, hz: u32) -> f64 {
    let race = at_full_throttle(Race::at_rate([(player("p"), stats)], QUARTER_MILE_M, 600.0, hz));
    race.cars[0].finish_s.unwrap()
}

fn order(race: &Race) -> Vec<(String, Option<u64>)> {
    race.placings().into_iter().map(|p| (p.player.to_string(), p.time_ms)).collect()
}

#[test]
fn a_sports_car_takes_a_realistic_time() {
    let seconds = seconds(SPORTS, TICK_HZ);
    assert!((11.0..13.5).contains(&seconds), "{seconds}");
}

#[test]
fn without_power_limit_and_air_the_time_matches_the_formula() {
    // Only grip limits the acceleration, so it is constant: t = √(2 s / a).
    let rocket = Stats { power_kw: 1e9, drag_m2: 0.0, ..SPORTS };
    let expected = (2.0 * QUARTER_MILE_M / GRAVITY).sqrt();
    assert!((seconds(rocket, TICK_HZ) - expected).abs() < 1e-3);
}

#[test]
fn a_car_without_throttle_does_not_finish() {
    let mut race = race(&[("idle", SPORTS), ("fast", SPORTS)]);
    race.set_throttle(1, Throttle(1.0));
    while !race.is_over() {
        race.step();
    }
    let placings = race.placings();
    assert_eq!((placings[0].player.as_str(), placings[0].place), ("fast", 1));
    assert_eq!((placings[1].player.as_str(), placings[1].place, placings[1].time_ms), ("idle", 2, None));
    assert_eq!(race.cars()[0].position_m(), 0.0);
    assert_eq!(race.ticks(), 60 * TICK_HZ);
}

#[test]
fn cars_that_did_not_finish_are_placed_by_distance() {
    let mut race = race(&[("d", SPORTS), ("c", SPORTS), ("b", SPORTS), ("a", SPORTS)]);
    race.set_throttle(2, Throttle(0.01));
    race.set_throttle(1, Throttle(1.0));
    while !race.is_over() {
        race.step();
    }
    let names: Vec<_> = order(&race).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["c", "b", "a", "d"]);
    let places: Vec<_> = race.placings().iter().map(|placing| placing.place).collect();
    assert_eq!(places, [1, 2, 3, 3], "two cars have not moved");
}

#[test]
fn a_player_who_never_joins_is_last_and_holds_nobody_up() {
    let mut race = race(&[("fast", SPORTS), ("slow", SPORTS)]);
    race.cars[1].joined = false;
    race.set_throttle(0, Throttle(1.0));
    while !race.is_over() {
        race.step();
    }
    assert!(race.ticks() < 20 * TICK_HZ, "over when the present player has finished");
    let placings = race.placings();
    assert_eq!((placings[0].place, placings[0].joined), (1, true));
    assert_eq!((placings[1].place, placings[1].joined, placings[1].time_ms), (2, false, None));
}

#[test]
fn equal_times_are_a_tie() {
    let slow = Stats { mass_kg: 2_000.0, ..SPORTS };
    let placings = at_full_throttle(race(&[("c", slow), ("b", SPORTS), ("a", SPORTS)])).placings();
    let places: Vec<_> = placings.iter().map(|placing| (placing.player.as_str(), placing.place)).collect();
    assert_eq!(places, [("a", 1), ("b", 1), ("c", 3)]);
    assert_eq!(placings[0].time_ms, placings[1].time_ms);
}

#[test]
fn a_throttle_is_clamped_and_must_be_finite() {
    assert_eq!(Throttle::parse(7.0), Some(Throttle(1.0)));
    assert_eq!(Throttle::parse(-1.0), Some(Throttle::NONE));
    assert_eq!(Throttle::parse(f32::NAN), None);
    assert_eq!(Throttle::parse(f32::INFINITY), None);
}

#[test]
fn a_car_with_an_invalid_stat_is_not_drivable() {
    assert!(drivable(&SPORTS));
    for bad in [
        Stats { power_kw: 0.0, ..SPORTS },
        Stats { mass_kg: -1.0, ..SPORTS },
        Stats { grip: f64::NAN, ..SPORTS },
        Stats { drag_m2: f64::INFINITY, ..SPORTS },
    ] {
        assert!(!drivable(&bad), "{bad:?}");
    }
}

fn any_car() -> impl Strategy<Value = Stats> {
    (30.0..900.0, 500.0..3000.0, 0.4..2.0, 0.0..1.5).prop_map(|(power_kw, mass_kg, grip, drag_m2)| Stats {
        power_kw,
        mass_kg,
        grip,
        drag_m2,
    })
}

proptest! {
    #[test]
    fn more_power_is_never_slower(car in any_car(), more in 1.0..200.0) {
        let stronger = Stats { power_kw: car.power_kw + more, ..car };
        prop_assert!(seconds(stronger, TICK_HZ) <= seconds(car, TICK_HZ));
    }

    #[test]
    fn more_mass_without_air_is_never_faster(car in any_car(), more in 1.0..1000.0) {
        // With air resistance, a heavier car at its grip limit is faster: grip grows with mass, but drag does not.
        let car = Stats { drag_m2: 0.0, ..car };
        let heavier = Stats { mass_kg: car.mass_kg + more, ..car };
        prop_assert!(seconds(heavier, TICK_HZ) >= seconds(car, TICK_HZ) - 1e-9);
    }

    #[test]
    fn the_step_rate_changes_the_time_by_less_than_2_ms(car in any_car()) {
        let difference = (seconds(car, TICK_HZ) - seconds(car, 10 * TICK_HZ)).abs();
        prop_assert!(difference < 0.002, "{difference} s");
    }

    #[test]
    fn cars_never_go_backwards_and_races_are_deterministic(
        cars in prop::collection::vec(any_car(), 1..5),
        inputs in prop::collection::vec((0usize..5, -1.0f32..2.0), 0..200),
    ) {
        let named = || cars.iter().zip('a'..).map(|(stats, name)| (player(&name.to_string()), *stats));
        let mut one = Race::new(named(), 100.0, 20.0);
        let mut two = one.clone();
        for (index, throttle) in inputs {
            let before: Vec<f64> = one.cars().iter().map(Car::position_m).collect();
            for race in [&mut one, &mut two] {
                race.set_throttle(index, Throttle::parse(throttle).unwrap());
                race.step();
            }
            for (car, before) in one.cars().iter().zip(before) {
                prop_assert!(car.position_m() >= before && car.speed_mps() >= 0.0 && car.speed_mps().is_finite());
            }
        }
        prop_assert_eq!(&one, &two);
        let placings = one.placings();
        prop_assert_eq!(placings.len(), cars.len());
        let ahead = |placing: &Placing| placings.iter().filter(|other| other.place < placing.place).count();
        prop_assert!(placings.iter().all(|placing| placing.place as usize == ahead(placing) + 1));
    }
}
