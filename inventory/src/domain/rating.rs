//! Changes players' ratings after a match, by Glicko-2 (Glickman, 2013). Each match is a rating period of its own.
//!
//! A match counts as one game, whatever the number of players. A player's new rating is the mean over all opponents:
//! for each opponent, compute the rating the player would have after a game against that opponent alone, from the
//! ratings before the match. Glicko-2 itself would add the pairings up, as separate games of one period. That
//! overstates a race with many players: a player with deviation 60 who beats 63 opponents rated 500 points higher would
//! gain 2,976 points instead of 20, and get a volatility of 2.19 instead of 0.06.

use std::{cmp::Ordering, collections::BTreeMap};

use garage_events::{game::Placing, id::PlayerId, player::RANKS};
use skillratings::{
    Outcomes,
    glicko2::{Glicko2Config, glicko2},
};

/// A player's rating, deviation and volatility.
pub use skillratings::glicko2::Glicko2Rating as Rating;

/// Computes the ratings after a match from the ratings before it. A player who did not join is not compared with
/// anybody. A player without a comparable opponent is left out: their rating does not change.
pub fn rate<'a>(before: &BTreeMap<&'a PlayerId, (&Placing, Rating)>) -> BTreeMap<&'a PlayerId, Rating> {
    let joined = || before.iter().filter(|(_, (placing, _))| placing.joined);
    let rated = joined().filter_map(|(player, (placing, rating))| {
        // The map is ordered by player id. A floating point sum depends on its order, and the result must not depend on
        // the order of the placings.
        let others = joined().filter(|(other, _)| *other != player);
        let games = others
            .map(|(_, (other, against))| glicko2(rating, against, &outcome(placing, other), &Glicko2Config::new()).0);
        Some((*player, mean(games)?))
    });
    rated.collect()
}

/// The outcome of one player against another. If neither finished, it is a draw, so that what one player gains in a
/// match, the others lose.
fn outcome(one: &Placing, other: &Placing) -> Outcomes {
    match (one.time_ms, other.time_ms) {
        (None, None) => Outcomes::DRAW,
        (Some(_), None) => Outcomes::WIN,
        (None, Some(_)) => Outcomes::LOSS,
        (Some(_), Some(_)) => match one.place.cmp(&other.place) {
            Ordering::Less => Outcomes::WIN,
            Ordering::Equal => Outcomes::DRAW,
            Ordering::Greater => Outcomes::LOSS,
        },
    }
}

fn mean(ratings: impl Iterator<Item = Rating>) -> Option<Rating> {
    let (mut count, mut sum) = (0.0, Rating { rating: 0.0, deviation: 0.0, volatility: 0.0 });
    for Rating { rating, deviation, volatility } in ratings {
        count += 1.0;
        sum.rating += rating;
        sum.deviation += deviation;
        sum.volatility += volatility;
    }
    (count > 0.0).then(|| Rating {
        rating: sum.rating / count,
        // A rating is never less certain than a new player's rating, even after many one-sided games.
        deviation: (sum.deviation / count).min(Rating::new().deviation),
        volatility: sum.volatility / count,
    })
}

/// The rank that a ticket carries: the rating, rounded and clamped to [`RANKS`].
pub fn rank(rating: f64) -> i32 {
    // After the clamp the value fits an i32. The cast turns NaN into 0.
    rating.round().clamp(f64::from(*RANKS.start()), f64::from(*RANKS.end())) as i32
}

#[cfg(test)]
mod tests;
