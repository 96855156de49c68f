use proptest::prelude::*;

use super::*;

/// A race: each player's place, whether he finished, and his rating before it.
type Entry = (u32, bool, Rating);

fn of(rating: f64, deviation: f64) -> Rating {
    Rating { rating, deviation, volatility: 0.06 }
}

/// The ratings after a race; `None` for whom it did not move.
fn raced(entries: &[Entry]) -> Vec<Option<Rating>> {
    let players: Vec<PlayerId> = (0..entries.len()).map(|number| format!("p{number:02}").parse().unwrap()).collect();
    let placing = |(player, (place, finished, _)): (&PlayerId, &Entry)| Placing {
        player: player.clone(),
        place: *place,
        time_ms: finished.then_some(9_000),
    };
    let placings: Vec<Placing> = players.iter().zip(entries).map(placing).collect();
    let before = placings.iter().zip(entries).map(|(placing, (_, _, rating))| (&placing.player, (placing, *rating)));
    let after = rate(&before.collect());
    players.iter().map(|player| after.get(player).copied()).collect()
}

/// By how much each rating of equal ones moved, in whole points.
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
fn a_tie_moves_unequal_ratings_towards_each_other() {
    assert_eq!(moved(&[(1, true), (1, true)]), [Some(0), Some(0)]);
    let after = raced(&[(1, true, of(1_400.0, 100.0)), (1, true, of(1_600.0, 100.0))]);
    assert!(after[0].unwrap().rating > 1_400.0 && after[1].unwrap().rating < 1_600.0);
}

#[test]
fn who_did_not_finish_loses_to_who_did_whatever_his_place() {
    assert_eq!(moved(&[(1, false), (2, true)]), [Some(-162), Some(162)]);
}

#[test]
fn those_who_did_not_finish_are_not_compared() {
    assert_eq!(moved(&[(1, false), (2, false)]), [None, None]);
    assert_eq!(moved(&[(1, true), (2, false), (3, false)]), [Some(162), Some(-162), Some(-162)]);
    assert_eq!(moved(&[(1, true)]), [None]);
}

#[test]
fn a_large_field_is_one_game() {
    let places: Vec<_> = (1..=64).map(|place| (place, true)).collect();
    let moved = moved(&places);
    assert_eq!((moved[0], moved[63]), (Some(162), Some(-162)));
    assert!(moved.is_sorted_by(|one, next| one >= next));
}

#[test]
fn an_upset_of_a_large_field_leaves_a_sound_rating() {
    let mut field = vec![(2, true, of(2_000.0, 60.0)); 63];
    field.push((1, true, of(1_500.0, 60.0)));
    let winner = raced(&field)[63].unwrap();
    assert_eq!((winner.rating.round(), (winner.volatility * 1_000.0).round()), (1_520.0, 60.0));
}

#[test]
fn who_wins_on_and_on_rises_and_turns_when_he_begins_to_lose() {
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
    assert!(race([2, 1]) < -100.0, "that is not what was expected of him");
}

#[test]
fn a_rank_is_the_rounded_rating_and_one_that_a_ticket_may_have() {
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
    fn whatever_happens_a_rating_is_sound(race in any_race()) {
        for after in raced(&race).into_iter().flatten() {
            prop_assert!(after.rating.is_finite(), "{after:?}");
            prop_assert!(after.deviation > 0.0 && after.deviation <= 350.0, "{after:?}");
            prop_assert!(after.volatility > 0.0 && after.volatility < 0.3, "{after:?}");
        }
    }

    #[test]
    fn who_beats_all_does_not_fall_and_who_loses_to_all_does_not_rise(mut race in any_race()) {
        for (place, entry) in (1..).zip(&mut race) {
            (entry.0, entry.1) = (place, true);
        }
        let after = raced(&race);
        let last = race.len() - 1;
        // In a hopeless game the step may be lost in rounding.
        prop_assert!(after[0].unwrap().rating >= race[0].2.rating - 1e-6);
        prop_assert!(after[last].unwrap().rating <= race[last].2.rating + 1e-6);
    }

    #[test]
    fn the_order_in_which_results_come_means_nothing(race in any_race(), turn in any::<prop::sample::Index>()) {
        let mut turned = race.clone();
        let turn = turn.index(race.len());
        turned.rotate_left(turn);
        let mut after = raced(&race);
        after.rotate_left(turn);
        for (one, other) in after.into_iter().zip(raced(&turned)) {
            let near = one.zip(other).is_none_or(|(one, other)| (one.rating - other.rating).abs() < 1e-6);
            prop_assert!(near && one.is_some() == other.is_some(), "{one:?} {other:?}");
        }
    }
}
