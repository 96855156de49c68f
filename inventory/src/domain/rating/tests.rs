use proptest::prelude::*;

use super::*;

/// One player in a race: place, whether they finished, and their rating before the race.
type Entry = (u32, bool, Rating);

fn rating(rating: f64, deviation: f64) -> Rating {
    Rating { rating, deviation, volatility: 0.06 }
}

/// The ratings after a race. `None` for a player whose rating did not change.
fn raced(entries: &[Entry]) -> Vec<Option<Rating>> {
    let players: Vec<PlayerId> = (0..entries.len()).map(|number| format!("p{number:02}").parse().unwrap()).collect();
    let placing = |(player, (place, finished, _)): (&PlayerId, &Entry)| Placing {
        player: player.clone(),
        place: *place,
        time_ms: finished.then_some(9_000),
        joined: true,
    };
    let placings: Vec<Placing> = players.iter().zip(entries).map(placing).collect();
    let before = placings.iter().zip(entries).map(|(placing, (_, _, rating))| (&placing.player, (placing, *rating)));
    let after = rate(&before.collect());
    players.iter().map(|player| after.get(player).copied()).collect()
}

/// By how many points a race changes each rating, if all players had the default rating before.
fn moved(entries: &[(u32, bool)]) -> Vec<Option<i64>> {
    let entries: Vec<Entry> = entries.iter().map(|(place, finished)| (*place, *finished, Rating::new())).collect();
    raced(&entries).into_iter().map(|after| Some((after?.rating - 1_500.0).round() as i64)).collect()
}

#[test]
fn the_winner_rises_as_far_as_the_loser_falls() {
    assert_eq!(moved(&[(1, true), (2, true)]), [Some(162), Some(-162)]);
    assert_eq!(moved(&[(2, true), (1, true)]), [Some(-162), Some(162)]);
}

#[test]
fn a_tie_brings_unequal_ratings_closer_together() {
    assert_eq!(moved(&[(1, true), (1, true)]), [Some(0), Some(0)]);
    let after = raced(&[(1, true, rating(1_400.0, 100.0)), (1, true, rating(1_600.0, 100.0))]);
    assert!(after[0].unwrap().rating > 1_400.0 && after[1].unwrap().rating < 1_600.0);
}

#[test]
fn a_player_who_did_not_finish_loses_to_one_who_did_whatever_the_places() {
    assert_eq!(moved(&[(1, false), (2, true)]), [Some(-162), Some(162)]);
}

#[test]
fn players_who_did_not_finish_draw_against_each_other() {
    assert_eq!(moved(&[(1, false), (2, false)]), [Some(0), Some(0)]);
    // The points that the winner gains are those that the others lose.
    assert_eq!(moved(&[(1, true), (2, false), (3, false)]), [Some(162), Some(-81), Some(-81)]);
    assert_eq!(moved(&[(1, true)]), [None]);
}

#[test]
fn a_player_who_did_not_join_is_not_compared() {
    let names = ["anna", "bert", "carl"].map(|name| name.parse::<PlayerId>().unwrap());
    let placing = |at: usize, time_ms: Option<u64>, joined| Placing {
        player: names[at].clone(),
        place: u32::try_from(at + 1).unwrap(),
        time_ms,
        joined,
    };
    let [winner, second, absent] = [placing(0, Some(9), true), placing(1, Some(10), true), placing(2, None, false)];
    let rated = |placings: &[&Placing]| {
        let before = placings.iter().map(|placing| (&placing.player, (*placing, Rating::new())));
        rate(&before.collect()).into_iter().map(|(player, rating)| (player.clone(), rating.rating.round())).collect()
    };
    let expected = vec![(names[0].clone(), 1_662.0), (names[1].clone(), 1_338.0)];
    let found: Vec<_> = rated(&[&winner, &second, &absent]);
    assert_eq!(found, expected);
    let alone: Vec<_> = rated(&[&winner, &absent]);
    assert_eq!(alone, []);
}

#[test]
fn a_race_of_64_counts_as_one_game() {
    let places: Vec<_> = (1..=64).map(|place| (place, true)).collect();
    let moved = moved(&places);
    assert_eq!((moved[0], moved[63]), (Some(162), Some(-162)));
    assert!(moved.is_sorted_by(|one, next| one >= next));
}

#[test]
fn an_upset_against_63_stronger_players_gains_20_points() {
    let mut field = vec![(2, true, rating(2_000.0, 60.0)); 63];
    field.push((1, true, rating(1_500.0, 60.0)));
    let winner = raced(&field)[63].unwrap();
    assert_eq!((winner.rating.round(), (winner.volatility * 1_000.0).round()), (1_520.0, 60.0));
}

#[test]
fn a_player_who_always_wins_rises_and_drops_with_the_first_loss() {
    let mut ratings = [Rating::new(); 2];
    let mut race = |places: [u32; 2]| {
        let before = ratings[0].rating;
        let entries = [0, 1].map(|at| (places[at], true, ratings[at]));
        ratings = [0, 1].map(|at| raced(&entries)[at].unwrap());
        ratings[0].rating - before
    };
    for _ in 0..100 {
        assert!(race([1, 2]) > 0.0);
    }
    assert!(race([2, 1]) < -100.0, "an unexpected loss costs many points");
}

#[test]
fn a_rank_is_the_rating_rounded_and_clamped() {
    for (rating, expected) in [
        (1_500.0, 1_500),
        (1_499.5, 1_500),
        (-0.4, 0),
        (100_000.4, 100_000),
        (1e300, 100_000),
        (f64::NEG_INFINITY, -100_000),
    ] {
        assert_eq!(rank(rating), expected, "{rating}");
    }
}

prop_compose! {
    fn any_rating()(rating in -100_000.0..100_000.0, deviation in 20.0..=350.0, volatility in 0.01..0.2) -> Rating {
        Rating { rating, deviation, volatility }
    }
}

fn any_race() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec((1..=64_u32, prop::bool::weighted(0.8), any_rating()), 2..=64)
}

proptest! {
    #[test]
    fn ratings_stay_finite_and_in_range(race in any_race()) {
        for after in raced(&race).into_iter().flatten() {
            prop_assert!(after.rating.is_finite(), "{after:?}");
            prop_assert!(after.deviation > 0.0 && after.deviation <= 350.0, "{after:?}");
            prop_assert!(after.volatility > 0.0 && after.volatility < 0.3, "{after:?}");
        }
    }

    #[test]
    fn the_first_never_falls_and_the_last_never_rises(mut race in any_race()) {
        for (place, entry) in (1..).zip(&mut race) {
            (entry.0, entry.1) = (place, true);
        }
        let after = raced(&race);
        let last = race.len() - 1;
        // In a one-sided game the change may be smaller than the rounding error.
        prop_assert!(after[0].unwrap().rating >= race[0].2.rating - 1e-6);
        prop_assert!(after[last].unwrap().rating <= race[last].2.rating + 1e-6);
    }

    #[test]
    fn the_order_of_the_results_does_not_matter(race in any_race(), shift in any::<prop::sample::Index>()) {
        let mut rotated = race.clone();
        let shift = shift.index(race.len());
        rotated.rotate_left(shift);
        let mut after = raced(&race);
        after.rotate_left(shift);
        for (one, other) in after.into_iter().zip(raced(&rotated)) {
            let near = one.zip(other).is_none_or(|(one, other)| (one.rating - other.rating).abs() < 1e-6);
            prop_assert!(near && one.is_some() == other.is_some(), "{one:?} {other:?}");
        }
    }
}
