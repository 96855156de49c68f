//! The rules of the inventory. No IO, no clock, no randomness.

pub mod rating;
pub mod store;

use garage_events::{
    game::{Placing, Stats},
    svc::Effect,
};

/// The car that every new player owns and drives.
pub const STARTER_CAR: &str = "pebble";
/// Coins in a new player's wallet.
pub const STARTER_COINS: u64 = 1_000;
/// The items that every new player owns, mounted on the starter car: (item, slot).
pub const STARTER_ITEMS: [(&str, &str); 2] = [("tyres-street", "tyres"), ("paint-red", "paint")];

/// Coins for first place among two or more teams. Together with the starter coins, two wins buy the second cheapest
/// car of the default catalogue.
pub const REWARD_FIRST: u64 = 100;
/// Coins for second place.
pub const REWARD_SECOND: u64 = 60;
/// Coins for every other player who finishes, and for the players of a match of one team, who have beaten nobody.
pub const REWARD_FINISHED: u64 = 30;
/// Coins for a player who joins and does not finish. Less than for the slowest finisher, so that it never pays to quit.
pub const REWARD_STARTED: u64 = 10;

/// Coins that a player earns for a result. `place` is the place of their team, and `teams` the number of teams, of which
/// some may not have joined. If each player is a team, these are the place of the player and the number of players. `None`
/// for a player who did not join: they are neither paid nor rated.
pub fn reward(placing: &Placing, place: u32, teams: usize) -> Option<u64> {
    placing.joined.then_some(match (placing.time_ms, place) {
        (None, _) => REWARD_STARTED,
        (Some(_), 1) if teams > 1 => REWARD_FIRST,
        (Some(_), 2) => REWARD_SECOND,
        (Some(_), _) => REWARD_FINISHED,
    })
}

/// The stats of a car with an item's effect added. No stat falls below a hundredth of its previous value, so that every
/// stat stays positive and a game can divide by it.
pub fn with_effect(stats: Stats, effect: Effect) -> Stats {
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

    fn placing(place: u32, time_ms: Option<u64>, joined: bool) -> Placing {
        Placing { player: "anna".parse().unwrap(), place, time_ms, joined }
    }

    #[test]
    fn the_reward_depends_on_the_place() {
        let place = |place, time_ms| reward(&placing(place, time_ms, true), place, 8);
        assert_eq!(place(1, Some(9_000)), Some(100));
        assert_eq!(place(2, Some(9_001)), Some(60));
        assert_eq!(place(3, Some(9_002)), Some(30));
        assert_eq!(place(8, Some(9_003)), Some(30));
    }

    #[test]
    fn a_player_who_does_not_finish_gets_the_smallest_reward_even_in_first_place() {
        assert_eq!(reward(&placing(1, None, true), 1, 2), Some(10));
    }

    #[test]
    fn a_player_who_does_not_join_is_not_paid() {
        assert_eq!(reward(&placing(1, None, false), 1, 2), None);
    }

    #[test]
    fn a_player_who_races_alone_beats_nobody_and_gets_no_first_prize() {
        assert_eq!(reward(&placing(1, Some(9_000), true), 1, 1), Some(30));
        assert_eq!(reward(&placing(1, None, true), 1, 1), Some(10));
        assert_eq!(reward(&placing(1, Some(9_000), true), 1, 2), Some(100), "even if the opponent did not join");
    }

    #[test]
    fn in_a_match_of_teams_the_place_of_the_team_counts() {
        assert_eq!(reward(&placing(4, Some(9_000), true), 1, 2), Some(100));
        assert_eq!(reward(&placing(1, Some(9_000), true), 2, 2), Some(60));
        assert_eq!(reward(&placing(1, Some(9_000), true), 1, 1), Some(30), "one team has beaten nobody");
    }

    #[test]
    fn effects_add_up() {
        let engine = Effect { power_kw: 20.0, mass_kg: 10.0, grip: 0.0, drag_m2: 0.0 };
        let wing = Effect { power_kw: 0.0, mass_kg: 6.0, grip: 0.25, drag_m2: 0.125 };
        let both = with_effect(with_effect(BASE, engine), wing);
        assert_eq!(both, Stats { power_kw: 120.0, mass_kg: 1_016.0, grip: 1.25, drag_m2: 0.625 });
    }

    #[test]
    fn stats_stay_positive_whatever_the_effect() {
        let effect = Effect { power_kw: -1e9, mass_kg: -1e9, grip: -1e9, drag_m2: -1e9 };
        let stats = with_effect(BASE, effect);
        assert!(stats.power_kw > 0.0 && stats.mass_kg > 0.0 && stats.grip > 0.0 && stats.drag_m2 > 0.0);
    }
}
