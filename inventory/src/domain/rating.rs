//! How results move ratings: Glicko-2 (Glickman, 2013), each match a rating period of its own.
//!
//! A race of many counts as one game in all: the mean of what the pairings of a player with each of the others would
//! make of him, by the ratings that all had before it. Places in one race are not that many games: with the pairings
//! added up, as Glicko-2 does with the games of a period, one of deviation 60 who beats 63 better by 500 would gain
//! 2,976 points instead of 20, and his volatility be 2.19 instead of 0.06.

use std::{cmp::Ordering, collections::BTreeMap};

use garage_events::{game::Placing, id::PlayerId, player::RANKS};
use skillratings::{
    Outcomes,
    glicko2::{Glicko2Config, glicko2},
};

/// How good a player is.
pub use skillratings::glicko2::Glicko2Rating as Rating;

/// The ratings that a match makes of those before it. Whom it does not move is left out: he had nobody to be compared
/// with.
pub fn rate<'a>(before: &BTreeMap<&'a PlayerId, (&Placing, Rating)>) -> BTreeMap<&'a PlayerId, Rating> {
    let rated = before.iter().filter_map(|(player, (placing, rating))| {
        // In the order of the players' ids, whatever that of the results: sums of floating point numbers depend on it.
        let others = before.iter().filter(|(other, _)| *other != player);
        let games = others.filter_map(|(_, (other, against))| {
            let outcome = outcome(placing, other)?;
            Some(glicko2(rating, against, &outcome, &Glicko2Config::new()).0)
        });
        Some((*player, mean(games)?))
    });
    rated.collect()
}

/// How one player fared against another; `None` when that says nothing, as neither finished.
fn outcome(one: &Placing, other: &Placing) -> Option<Outcomes> {
    match (one.time_ms, other.time_ms) {
        (None, None) => None,
        (Some(_), None) => Some(Outcomes::WIN),
        (None, Some(_)) => Some(Outcomes::LOSS),
        (Some(_), Some(_)) => Some(match one.place.cmp(&other.place) {
            Ordering::Less => Outcomes::WIN,
            Ordering::Equal => Outcomes::DRAW,
            Ordering::Greater => Outcomes::LOSS,
        }),
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
        // Nobody is less known than who begins, however hopeless his games.
        deviation: (sum.deviation / count).min(Rating::new().deviation),
        volatility: sum.volatility / count,
    })
}

/// What a player queues with.
pub fn rank(rating: f64) -> i32 {
    // The clamp leaves what fits; of what is no number, the cast makes 0.
    rating.round().clamp(f64::from(*RANKS.start()), f64::from(*RANKS.end())) as i32
}

#[cfg(test)]
mod tests;
