//! Changes players' ratings after a match, by Glicko-2 (Glickman, 2013). Each match is a rating period of its own.
//!
//! Teams are compared with teams, never teammates with each other. A team is rated as the mean of its joined members,
//! not as the sum: a designer balances 1 against 4 for players of equal ratings, so the number of members says nothing
//! about who should win. A difference of 400 points between two teams means odds of 10 to 1, as between two players.
//!
//! If a member of a team of `n` is 100 points stronger, the team is only `100 / n` points stronger. So one match says
//! little about one member. To make Glicko-2 see that, [`rate`] gives it the member's *share* of the team's rating: one
//! `n`th of their deviation and volatility. It multiplies the change by `n`. The uncertainty about teammates and
//! opponents together is the opponent's deviation. For a team of one, all this is plain Glicko-2.
//!
//! The composite updates of Williams ("Abstracting Glicko-2 for Team Games", 2013) do not divide by `n`. They are
//! certain of the members' ratings after a few matches, while the order of those ratings is still mostly chance.
//! `benches/seasons.rs` compares such updates and Weng-Lin's with this one.
//!
//! A match counts as one game, whatever the number of teams. A player's new rating is the mean over all opposing teams:
//! for each of them, compute the rating the player would have after a game against that team alone, from the ratings
//! before the match. Glicko-2 itself would add the pairings up, as separate games of one period. That overstates a
//! race with many players: a player with deviation 60 who beats 63 opponents rated 500 points higher would gain 2,976
//! points instead of 20, and get a volatility of 2.19 instead of 0.06.
//!
//! However great the upset, one match moves a rating by less than [`largest_change`]. A settled player (deviation 60,
//! volatility 0.06) moves by less than 22 points, and a new player by less than 706. In a team of five it is a fifth of
//! that: 5 and 142. If all deviations are equal and the teams are of one size, the winners gain what the losers lose.
//! Otherwise the mean rating of all players drifts by chance, either way: in 10,000 seasons of 500 matches between 100
//! new players by at most 10 points if 5 play against 5, and by at most 40 if 1 plays against 4.

use std::{
    cmp::{Ordering, Reverse},
    collections::BTreeMap,
};

use garage_events::{
    game::{Placing, TeamPlacing},
    id::PlayerId,
    player::RANKS,
};
use skillratings::{
    Outcomes,
    glicko2::{Glicko2Config, glicko2},
};

/// A player's rating, deviation and volatility.
pub use skillratings::glicko2::Glicko2Rating as Rating;

/// How many points of rating and deviation are 1 on the scale of Glicko-2's formulas (step 2 of Glickman's paper).
const POINTS: f64 = 173.7178;

/// A team and how it did in the match.
#[derive(Debug, Clone, PartialEq)]
pub struct Team<M> {
    /// The team with the greater merit wins against the other. Teams with equal merits draw.
    pub merit: M,
    pub members: Vec<Member>,
}

/// A player of a team.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Member {
    /// The rating before the match.
    pub rating: Rating,
    /// False for a player who never connected to the game server.
    pub joined: bool,
}

/// Computes the ratings after a match, in the order of the teams and their members. `None` for a player whose rating
/// does not change: they did not join, or no other team has a member who joined. A player who did not join changes
/// nobody's rating.
///
/// The order of the members does not matter. The order of the teams changes only the last bits of the ratings, as in
/// any floating point sum. If the same match can be rated twice, pass the teams in the same order.
pub fn rate<M: Ord>(teams: &[Team<M>]) -> Vec<Vec<Option<Rating>>> {
    let composites: Vec<_> = teams.iter().map(|team| (&team.merit, Composite::of(&team.members))).collect();
    let rated = composites.iter().zip(teams).enumerate().map(|(at, ((merit, own), team))| {
        let others = || composites.iter().enumerate().filter(|(other, _)| *other != at);
        let rated = team.members.iter().map(|member| {
            let own = own.as_ref().filter(|_| member.joined)?;
            mean(others().filter_map(|(_, (other, against))| {
                Some(own.member_after(&member.rating, against.as_ref()?, &outcome(merit.cmp(other))))
            }))
        });
        rated.collect()
    });
    rated.collect()
}

/// An upper bound, in points, for how far one match moves the rating of a member of a team with `joined` joined members
/// (at least 1).
///
/// In Glicko-2, the rating moves by `φ'² g (s - E)`, where `φ'² < φ² + σ'²`, `g < 1` and `|s - E| <= 1` (steps 6 and 7
/// of the paper). In a team, φ and σ' are divided by the number of members and the result is multiplied by it. The mean
/// over the opposing teams is not greater than the greatest of them.
///
/// The volatility after the match, σ', is not known here, but it is at most 1.006 σ if σ is below 0.3. In step 5 of the
/// paper, `f(x) = 0` means `x - a < τ² e^x Δ² / (2 v²)`. As `Δ² / v² <= 1` and τ is 0.5, σ' is at most
/// `σ e^(σ'² / 16)`.
pub fn largest_change(before: &Rating, joined: u32) -> f64 {
    let Rating { deviation, volatility, .. } = before;
    POINTS * ((deviation / POINTS).powi(2) + (1.006 * volatility).powi(2)) / f64::from(joined.max(1))
}

/// Computes the ratings of a match's players. `before` contains the players who joined, each with their result and
/// their rating before the match. Without `teams`, each player is a team. Players whose rating does not change are left
/// out.
pub fn rate_players<'a>(
    before: &BTreeMap<&'a PlayerId, (&Placing, Rating)>,
    teams: &[TeamPlacing],
) -> BTreeMap<&'a PlayerId, Rating> {
    let member = |player: &PlayerId| {
        let (player, (placing, rating)) = before.get_key_value(player)?;
        Some((*player, *placing, Member { rating: *rating, joined: true }))
    };
    let sides: Vec<(Option<Reverse<u32>>, Vec<_>)> = if teams.is_empty() {
        // A player who finished beats one who did not, whatever the places. If neither finished, it is a draw, so that
        // what one player gains in a match, the others lose.
        let merit = |placing: &Placing| placing.time_ms.map(|_| Reverse(placing.place));
        before.keys().filter_map(|player| member(player)).map(|one| (merit(one.1), vec![one])).collect()
    } else {
        let members = |team: &TeamPlacing| team.players.iter().filter_map(member).collect();
        teams.iter().map(|team| (Some(Reverse(team.place)), members(team))).collect()
    };
    let rated: Vec<_> = sides
        .iter()
        .map(|(merit, members)| Team { merit: *merit, members: members.iter().map(|(.., member)| *member).collect() })
        .collect();
    let after = rate(&rated);
    let players = sides.iter().flat_map(|(_, members)| members).map(|(player, ..)| *player);
    players.zip(after.into_iter().flatten()).filter_map(|(player, rating)| Some((player, rating?))).collect()
}

/// The rank that a ticket carries: the rating, rounded and clamped to [`RANKS`].
pub fn rank(rating: f64) -> i32 {
    // After the clamp the value fits an i32. The cast turns NaN into 0.
    rating.round().clamp(f64::from(*RANKS.start()), f64::from(*RANKS.end())) as i32
}

const fn outcome(merits: Ordering) -> Outcomes {
    match merits {
        Ordering::Less => Outcomes::LOSS,
        Ordering::Equal => Outcomes::DRAW,
        Ordering::Greater => Outcomes::WIN,
    }
}

/// The joined members of a team, seen as one player.
struct Composite {
    /// The number of joined members.
    size: f64,
    /// The mean of their ratings.
    rating: f64,
    /// The square of the deviation of that mean, if the errors of the members' ratings are independent.
    variance: f64,
}

impl Composite {
    fn of(members: &[Member]) -> Option<Self> {
        let joined = || members.iter().filter(|member| member.joined).map(|member| member.rating);
        let size = sum(joined().map(|_| 1.0));
        (size > 0.0).then(|| Self {
            size,
            rating: sum(joined().map(|rating| rating.rating)) / size,
            variance: sum(joined().map(|rating| rating.deviation.powi(2))) / (size * size),
        })
    }

    /// A member's rating after a game of their team against another one.
    fn member_after(&self, before: &Rating, against: &Self, outcome: &Outcomes) -> Rating {
        let (deviation, volatility) = (before.deviation / self.size, before.volatility / self.size);
        // A rounding error may make the teammates' part less than 0.
        let teammates = (self.variance - deviation.powi(2)).max(0.0);
        let share = Rating { deviation, volatility, ..*before };
        // Glicko-2 uses only the difference of the two ratings. Here this must be the difference between the teams.
        let rating = against.rating + (before.rating - self.rating);
        let opponent = Rating { rating, deviation: (teammates + against.variance).sqrt(), volatility };
        let after = glicko2(&share, &opponent, outcome, &Glicko2Config::new()).0;
        Rating {
            // This is before + size * (after - before), but without a rounding error for a team of one.
            rating: after.rating * self.size + before.rating * (1.0 - self.size),
            deviation: after.deviation * self.size,
            volatility: after.volatility * self.size,
        }
    }
}

/// The sum, which does not depend on the order of the values. Otherwise, the order of a team's members could change a
/// rating by up to a thousandth of a point: Glicko-2's search for the new volatility enlarges a rounding error.
fn sum(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.iter().sum()
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

#[cfg(test)]
mod tests;
