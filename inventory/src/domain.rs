//! The rules of the inventory, without IO.

pub mod rating;
pub mod store;

use garage_events::{
    game::{Placing, Stats},
    svc::Effect,
};

/// The car given to a player on first sight.
pub const STARTER_CAR: &str = "pebble";
/// The coins given to a player on first sight.
pub const STARTER_COINS: u64 = 1_000;
/// The items given to a player on first sight and mounted on his starter car: (item, its slot).
pub const STARTER_ITEMS: [(&str, &str); 2] = [("tyres-street", "tyres"), ("paint-red", "paint")];

/// Coins for the winner: ten wins buy the second car of the catalogue.
pub const REWARD_FIRST: u64 = 100;
/// Coins for the second.
pub const REWARD_SECOND: u64 = 60;
/// Coins for everyone else who finished.
pub const REWARD_FINISHED: u64 = 30;
/// Coins for who started but did not finish: less than the slowest finisher, so that nobody gains by giving up.
pub const REWARD_STARTED: u64 = 10;

/// What a player earns with his place.
pub fn reward(placing: &Placing) -> u64 {
    match (placing.time_ms, placing.place) {
        (None, _) => REWARD_STARTED,
        (Some(_), 1) => REWARD_FIRST,
        (Some(_), 2) => REWARD_SECOND,
        (Some(_), _) => REWARD_FINISHED,
    }
}

/// The stats of a car with an item's effect added. None falls below a hundredth of what it was: whatever is mounted, a
/// game may divide by each of them.
pub fn fitted(stats: Stats, effect: Effect) -> Stats {
    let add = |base: f64, effect: f64| (base + effect).max(base / 100.0);
    Stats {
        power_kw: add(stats.power_kw, effect.power_kw),
        mass_kg: add(stats.mass_kg, effect.mass_kg),
        grip: add(stats.grip, effect.grip),
        drag_m2: add(stats.drag_m2, effect.drag_m2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Stats = Stats { power_kw: 100.0, mass_kg: 1_000.0, grip: 1.0, drag_m2: 0.5 };

    #[test]
    fn coins_go_by_place() {
        let place = |place, time_ms| reward(&Placing { player: "anna".parse().unwrap(), place, time_ms });
        assert_eq!(place(1, Some(9_000)), 100);
        assert_eq!(place(2, Some(9_001)), 60);
        assert_eq!(place(3, Some(9_002)), 30);
        assert_eq!(place(8, Some(9_003)), 30);
    }

    #[test]
    fn who_does_not_finish_gets_the_least_even_as_first() {
        assert_eq!(reward(&Placing { player: "anna".parse().unwrap(), place: 1, time_ms: None }), 10);
    }

    #[test]
    fn effects_add_up() {
        let engine = Effect { power_kw: 20.0, mass_kg: 10.0, grip: 0.0, drag_m2: 0.0 };
        let wing = Effect { power_kw: 0.0, mass_kg: 6.0, grip: 0.25, drag_m2: 0.125 };
        let both = fitted(fitted(BASE, engine), wing);
        assert_eq!(both, Stats { power_kw: 120.0, mass_kg: 1_016.0, grip: 1.25, drag_m2: 0.625 });
    }

    #[test]
    fn no_effect_makes_a_stat_zero_or_less() {
        let void = Effect { power_kw: -1e9, mass_kg: -1e9, grip: -1e9, drag_m2: -1e9 };
        let rest = fitted(BASE, void);
        assert!(rest.power_kw > 0.0 && rest.mass_kg > 0.0 && rest.grip > 0.0 && rest.drag_m2 > 0.0);
    }
}
