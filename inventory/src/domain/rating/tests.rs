use proptest::prelude::*;

use super::*;

/// One player in a race of teams of one: place, whether they finished, and their rating before the race.
type Entry = (u32, bool, Rating);

/// A team and how it did. The greater number wins.
type TeamResult = Team<u32>;

fn rating(rating: f64, deviation: f64) -> Rating {
    Rating { rating, deviation, volatility: 0.06 }
}

const fn joined(rating: Rating) -> Member {
    Member { rating, joined: true }
}

const fn absent(rating: Rating) -> Member {
    Member { rating, joined: false }
}

fn team(merit: u32, members: impl IntoIterator<Item = Member>) -> TeamResult {
    Team { merit, members: members.into_iter().collect() }
}

/// A team of `size` members with the same rating.
fn same(merit: u32, size: usize, rating: Rating) -> TeamResult {
    team(merit, vec![joined(rating); size])
}

/// The merit of a player in a race. One who finished beats one who did not, whatever the places. If neither finished,
/// it is a draw, so that what one player gains in a match, the others lose.
fn merit(place: u32, finished: bool) -> Option<Reverse<u32>> {
    finished.then_some(Reverse(place))
}

/// The ratings after a race. `None` for a player whose rating did not change.
fn raced(entries: &[Entry]) -> Vec<Option<Rating>> {
    let team =
        |(place, finished, rating): &Entry| Team { merit: merit(*place, *finished), members: vec![joined(*rating)] };
    rate(&entries.iter().map(team).collect::<Vec<_>>()).concat()
}

/// By how many points a race changes each rating, if all players had the default rating before.
fn moved(entries: &[(u32, bool)]) -> Vec<Option<i64>> {
    let entries: Vec<Entry> = entries.iter().map(|(place, finished)| (*place, *finished, Rating::new())).collect();
    raced(&entries).into_iter().map(|after| Some((after?.rating - 1_500.0).round() as i64)).collect()
}

/// By how many points a match changes each rating. `None` for a player whose rating did not change.
fn moves(teams: &[TeamResult]) -> Vec<Vec<Option<f64>>> {
    let moves = |(team, after): (&TeamResult, Vec<Option<Rating>>)| {
        let players = team.members.iter().zip(after);
        players.map(|(member, after)| Some(after?.rating - member.rating.rating)).collect()
    };
    teams.iter().zip(rate(teams)).map(moves).collect()
}

/// By how many points a match changes the rating of the first member of each team.
fn first_moves(teams: &[TeamResult]) -> Vec<f64> {
    moves(teams).iter().map(|team| (team[0].unwrap() * 10.0).round() / 10.0).collect()
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
fn a_match_of_new_players_moves_them_by_at_most_175_points() {
    let new = |merit, size| same(merit, size, Rating::new());
    for (teams, expected) in [
        (vec![new(2, 1), new(1, 1)], vec![162.3, -162.3]),
        (vec![new(2, 5), new(1, 5)], vec![57.1, -57.1]),
        (vec![new(1, 5), new(1, 5)], vec![0.0, 0.0]),
        // The one gains less than the four lose together, 219, and loses less than the four would gain.
        (vec![new(2, 1), new(1, 4)], vec![173.7, -54.8]),
        (vec![new(1, 1), new(2, 4)], vec![-173.7, 54.8]),
        (vec![new(3, 2), new(2, 3), new(1, 5)], vec![119.4, 4.0, -52.8]),
        (vec![new(2, 2), new(2, 3), new(1, 5)], vec![60.8, 44.4, -52.8]),
    ] {
        assert_eq!(first_moves(&teams), expected);
    }
}

#[test]
fn the_greatest_upset_moves_no_rating_by_more_than_the_bound() {
    // The others are so strong, and so certain of it, that Glicko-2 expects a score of 0 from the first team.
    let stars = |size| same(1, size, rating(6_000.0, 1.0));
    for (deviation, size, expected) in
        [(60.0, 1, 21.3), (60.0, 2, 10.6), (60.0, 5, 4.3), (350.0, 1, 705.8), (350.0, 2, 308.5), (350.0, 5, 129.0)]
    {
        for others in [vec![stars(1)], vec![stars(4)], vec![stars(4); 199]] {
            let before = rating(1_500.0, deviation);
            let teams: Vec<_> = [same(2, size, before)].into_iter().chain(others).collect();
            let moved = moves(&teams)[0][0].unwrap();
            assert!(moved <= largest_change(&before, size as u32), "{moved}");
            assert_eq!((moved * 10.0).round() / 10.0, expected, "{deviation} {size}");
        }
    }
}

#[test]
fn the_bounds_in_the_documentation_are_right() {
    let bound = |deviation, joined| (largest_change(&rating(1_500.0, deviation), joined) * 10.0).round() / 10.0;
    assert_eq!([bound(60.0, 1), bound(60.0, 5), bound(350.0, 1), bound(350.0, 5)], [21.4, 4.3, 705.8, 141.2]);
}

#[test]
fn the_mean_of_a_team_counts_not_the_sum() {
    // 1 against 4 of the same rating is an even match: the four gain by a win what they lose by a defeat.
    let before = rating(1_500.0, 60.0);
    let won = moves(&[same(1, 1, before), same(2, 4, before)]);
    let lost = moves(&[same(2, 1, before), same(1, 4, before)]);
    assert!((won[1][0].unwrap() + lost[1][0].unwrap()).abs() < 1e-9);
    // What the four gain together is about what the one loses.
    let four: f64 = won[1].iter().flatten().sum();
    assert!((four + won[0][0].unwrap()).abs() < 0.5, "{won:?}");
}

#[test]
fn a_carried_player_is_rated_by_the_team() {
    // The weak member of a strong team is a favourite like their teammates, and gains as little.
    let favourites = || [2_100.0, 2_100.0, 900.0].map(|points| joined(rating(points, 100.0)));
    let outsiders = || [1_300.0, 1_300.0, 1_300.0].map(|points| joined(rating(points, 100.0)));
    let won = moves(&[team(2, favourites()), team(1, outsiders())]);
    assert!((won[0][2].unwrap() - won[0][0].unwrap()).abs() < 1e-9, "{won:?}");
    let lost = moves(&[team(1, favourites()), team(2, outsiders())]);
    assert!(-lost[0][2].unwrap() > 5.0 * won[0][2].unwrap(), "{won:?} {lost:?}");
}

#[test]
fn the_less_certain_teammate_moves_further() {
    let pair = [joined(rating(1_500.0, 350.0)), joined(rating(1_500.0, 60.0))];
    let moves = moves(&[team(2, pair), team(1, pair)]);
    assert!(moves[0][0].unwrap() > 10.0 * moves[0][1].unwrap(), "{moves:?}");
}

#[test]
fn a_match_says_less_about_a_member_of_a_larger_team() {
    for (size, expected) in [(1, 290), (2, 329), (5, 345), (50, 350)] {
        let after = rate(&[same(2, size, Rating::new()), same(1, size, Rating::new())])[0][0].unwrap();
        assert_eq!(after.deviation.round() as i64, expected, "{size}");
    }
}

#[test]
fn a_player_who_did_not_join_is_not_compared() {
    let new = Rating::new();
    let [one, two, away] = [joined(new), joined(new), absent(rating(3_000.0, 20.0))];
    let with_absent = rate(&[team(2, [away, one]), team(1, [two, away]), team(3, [away])]);
    let without = rate(&[team(2, [one]), team(1, [two])]);
    let expected = vec![vec![None, without[0][0]], vec![without[1][0], None], vec![None]];
    assert_eq!(with_absent, expected);
}

#[test]
fn without_an_opponent_who_joined_no_rating_changes() {
    let here = joined(Rating::new());
    let away = absent(Rating::new());
    assert_eq!(rate::<u32>(&[]), Vec::<Vec<_>>::new());
    assert_eq!(rate(&[team(1, [here, here])]), [[None, None]]);
    assert_eq!(
        rate(&[team(2, [here, here]), team(1, [away, away]), team(0, [])]),
        [vec![None; 2], vec![None; 2], vec![]]
    );
}

/// How players were rated before there were teams.
fn rated_alone(race: &[Entry]) -> Vec<Option<Rating>> {
    let after = |at: usize, (place, finished, rating): &Entry| {
        let others = race.iter().enumerate().filter(|(other, _)| *other != at);
        mean(others.map(|(_, (other_place, other_finished, against))| {
            let outcome = outcome(merit(*place, *finished).cmp(&merit(*other_place, *other_finished)));
            glicko2(rating, against, &outcome, &Glicko2Config::new()).0
        }))
    };
    race.iter().enumerate().map(|(at, entry)| after(at, entry)).collect()
}

prop_compose! {
    fn any_rating()(rating in -100_000.0..100_000.0, deviation in 20.0..=350.0, volatility in 0.01..0.2) -> Rating {
        Rating { rating, deviation, volatility }
    }
}

prop_compose! {
    /// Near enough to others for any outcome to be possible.
    fn usual_rating()(rating in 0.0..3_000.0, deviation in 20.0..=350.0, volatility in 0.01..0.2) -> Rating {
        Rating { rating, deviation, volatility }
    }
}

fn either_rating() -> impl Strategy<Value = Rating> {
    prop_oneof![usual_rating(), any_rating()]
}

fn any_race() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec((1..=64_u32, prop::bool::weighted(0.8), either_rating()), 2..=64)
}

fn any_team() -> impl Strategy<Value = TeamResult> {
    let member = (either_rating(), prop::bool::weighted(0.9)).prop_map(|(rating, joined)| Member { rating, joined });
    (0..6_u32, prop::collection::vec(member, 0..=6)).prop_map(|(merit, members)| Team { merit, members })
}

fn any_match() -> impl Strategy<Value = Vec<TeamResult>> {
    prop::collection::vec(any_team(), 2..=12)
}

/// Two teams. The first wins.
fn any_duel() -> impl Strategy<Value = [TeamResult; 2]> {
    [any_team(), any_team()].prop_map(|[mut winners, mut losers]| {
        (winners.merit, losers.merit) = (1, 0);
        [winners, losers]
    })
}

/// Whether two results of a match differ by rounding only.
fn near(ones: &[Vec<Option<Rating>>], others: &[Vec<Option<Rating>>]) -> bool {
    let near = |(one, other): (&Option<Rating>, &Option<Rating>)| match (one, other) {
        (Some(one), Some(other)) => {
            (one.rating - other.rating).abs() < 1e-6 && (one.deviation - other.deviation).abs() < 1e-6
        }
        (one, other) => one.is_none() && other.is_none(),
    };
    ones.len() == others.len()
        && ones.iter().zip(others).all(|(one, other)| one.len() == other.len() && one.iter().zip(other).all(near))
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: prop::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

    #[test]
    fn teams_of_one_are_rated_as_before_there_were_teams(race in any_race()) {
        // Equal to the last bit.
        prop_assert_eq!(raced(&race), rated_alone(&race));
    }

    #[test]
    fn ratings_stay_finite_and_in_range(teams in any_match()) {
        for after in rate(&teams).into_iter().flatten().flatten() {
            prop_assert!(after.rating.is_finite(), "{after:?}");
            prop_assert!(after.deviation > 0.0 && after.deviation <= 350.0, "{after:?}");
            prop_assert!(after.volatility > 0.0 && after.volatility < 0.3, "{after:?}");
        }
    }

    #[test]
    fn no_match_moves_a_rating_further_than_the_bound(teams in any_match()) {
        for (team, moves) in teams.iter().zip(moves(&teams)) {
            let joined = team.members.iter().filter(|member| member.joined).count() as u32;
            for (member, moved) in team.members.iter().zip(moves) {
                let bound = largest_change(&member.rating, joined);
                prop_assert!(moved.is_none_or(|moved| moved.abs() <= bound + 1e-6), "{moved:?} {bound}");
            }
        }
    }

    #[test]
    fn no_match_changes_a_volatility_by_more_than_the_bound(teams in any_match()) {
        for (member, after) in teams.iter().flat_map(|team| &team.members).zip(rate(&teams).concat()) {
            let times = after.map(|after| after.volatility / member.rating.volatility);
            prop_assert!(times.is_none_or(|times| times > 0.99 && times <= 1.006), "{times:?}");
        }
    }

    #[test]
    fn only_players_with_an_opponent_are_rated(teams in any_match()) {
        let joined: Vec<bool> = teams.iter().map(|team| team.members.iter().any(|member| member.joined)).collect();
        let comparable = joined.iter().filter(|joined| **joined).count() > 1;
        for (team, after) in teams.iter().zip(rate(&teams)) {
            for (member, after) in team.members.iter().zip(after) {
                prop_assert_eq!(after.is_some(), member.joined && comparable);
            }
        }
    }

    #[test]
    fn winners_never_fall_and_losers_never_rise(duel in any_duel()) {
        let moves = moves(&duel);
        // In a one-sided game the change may be smaller than the rounding error.
        prop_assert!(moves[0].iter().flatten().all(|moved| *moved >= -1e-6), "{moves:?}");
        prop_assert!(moves[1].iter().flatten().all(|moved| *moved <= 1e-6), "{moves:?}");
    }

    #[test]
    fn the_first_team_never_falls_and_the_last_never_rises(mut teams in any_match()) {
        for (merit, team) in (0..).zip(&mut teams) {
            team.merit = merit;
        }
        let moves = moves(&teams);
        prop_assert!(moves[0].iter().flatten().all(|moved| *moved <= 1e-6), "{moves:?}");
        prop_assert!(moves[teams.len() - 1].iter().flatten().all(|moved| *moved >= -1e-6), "{moves:?}");
    }

    #[test]
    fn equally_certain_teams_of_one_size_exchange_points(
        points in prop::collection::vec(0.0..3_000.0, 10),
        deviation in 20.0..300.0,
    ) {
        let members: Vec<Member> = points.iter().map(|points| joined(rating(*points, deviation))).collect();
        let (winners, losers) = members.split_at(5);
        let moves = moves(&[team(2, winners.to_vec()), team(1, losers.to_vec())]);
        let sum: f64 = moves.iter().flatten().flatten().sum();
        prop_assert!(sum.abs() < 1e-6, "{sum}");
    }

    #[test]
    fn the_order_of_teams_and_members_does_not_matter(teams in any_match(), shift in any::<prop::sample::Index>()) {
        let mut rotated = teams.clone();
        let mut after = rate(&teams);
        for (team, after) in rotated.iter_mut().zip(&mut after) {
            if !after.is_empty() {
                let shift = shift.index(after.len());
                team.members.rotate_left(shift);
                after.rotate_left(shift);
            }
        }
        let shift = shift.index(teams.len());
        rotated.rotate_left(shift);
        after.rotate_left(shift);
        prop_assert!(near(&after, &rate(&rotated)), "{after:?}");
    }

    #[test]
    fn players_who_did_not_join_change_nothing(teams in any_match()) {
        let mut present = teams.clone();
        for team in &mut present {
            team.members.retain(|member| member.joined);
        }
        let mut after = rate(&teams);
        for (team, after) in teams.iter().zip(&mut after) {
            let mut joined = team.members.iter().map(|member| member.joined);
            after.retain(|_| joined.next().unwrap());
        }
        prop_assert_eq!(after, rate(&present));
    }
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

/// By how many points a match changes the ratings of new players: (name, place, finished).
fn moved_players(results: &[(&str, u32, bool)], teams: &[(u32, &[&str])]) -> Vec<(String, i64)> {
    let placing = |(name, place, finished): &(&str, u32, bool)| Placing {
        player: name.parse().unwrap(),
        place: *place,
        time_ms: finished.then_some(9_000),
        joined: true,
    };
    let placings: Vec<Placing> = results.iter().map(placing).collect();
    let before = placings.iter().map(|placing| (&placing.player, (placing, Rating::new()))).collect();
    let team = |(place, players): &(u32, &[&str])| TeamPlacing {
        team: String::new(),
        place: *place,
        players: players.iter().map(|name| name.parse().unwrap()).collect(),
    };
    let teams: Vec<TeamPlacing> = teams.iter().map(team).collect();
    let after = rate_players(&before, &teams);
    after.into_iter().map(|(player, after)| (player.to_string(), (after.rating - 1_500.0).round() as i64)).collect()
}

#[test]
fn without_teams_each_player_is_rated_against_each_other_player() {
    let moved = moved_players(&[("ann", 1, true), ("bob", 2, true)], &[]);
    assert_eq!(moved, [("ann".into(), 162), ("bob".into(), -162)]);
    // Bob finished and ann did not, so the places do not count.
    let moved = moved_players(&[("ann", 1, false), ("bob", 2, true)], &[]);
    assert_eq!(moved, [("ann".into(), -162), ("bob".into(), 162)]);
}

#[test]
fn in_a_match_of_teams_the_places_of_the_teams_count() {
    // Dora is the fastest, but her team is second. Emil did not join, and is not in the results.
    let results = [("ann", 2, true), ("bob", 4, true), ("carl", 3, true), ("dora", 1, true)];
    let moved = moved_players(&results, &[(1, &["ann", "bob"]), (2, &["carl", "dora", "emil"])]);
    let names: Vec<_> = moved.iter().map(|(name, points)| (name.as_str(), *points > 0)).collect();
    assert_eq!(names, [("ann", true), ("bob", true), ("carl", false), ("dora", false)]);
    assert_eq!(moved[0].1, -moved[3].1, "{moved:?}");
}
