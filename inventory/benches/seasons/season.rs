//! A season of matches between players whose true strengths are known, to see how well ratings find them.

use std::f64::consts::TAU;

use fastrand::Rng;
use garage_inventory::domain::rating::{Member, Rating, Team, largest_change};

/// A way to rate a match, such as [`garage_inventory::domain::rating::rate`].
pub(crate) type Rate = fn(&[Team<usize>]) -> Vec<Vec<Option<Rating>>>;

/// 400 points of strength mean odds of 10 to 1.
pub(crate) const ELO: f64 = 400.0 / std::f64::consts::LN_10;

const PLAYERS: usize = 100;

/// What matches are played in a season.
#[derive(Clone, Copy)]
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    /// The team sizes of a match. Each match takes one of them at random.
    pub(crate) layouts: &'static [&'static [usize]],
    pub(crate) pairing: Pairing,
    /// The scale of a team's luck, in points. See [`performance`].
    pub(crate) luck: f64,
    pub(crate) matches: u32,
    pub(crate) start: Start,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pairing {
    /// Any players, in any teams.
    Random,
    /// The nine players out of 29 whose ratings are nearest to a tenth one, in two teams of about equal ratings.
    ByRating,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// All players are new: 1500, deviation 350.
    New,
    /// Ratings are the true strength with an error, and say so: deviation 60.
    Settled,
}

/// What a season showed.
pub(crate) struct Report {
    /// The rank correlation of ratings and strengths, by Spearman and by Kendall (tau-a). 1 for the same order.
    pub(crate) spearman: f64,
    pub(crate) kendall: f64,
    /// The same (Spearman) for the share of opposing teams that a player's teams have beaten.
    pub(crate) wins_spearman: f64,
    /// By how many points the mean rating of all players changed.
    pub(crate) drift: f64,
    /// The largest change of a rating by one match, in points: of all players, and of players with deviations up to 60.
    pub(crate) change: f64,
    pub(crate) settled: f64,
    /// The largest change as a share of [`largest_change`].
    pub(crate) of_bound: f64,
    /// The mean square of a rating's error divided by its deviation. 1 if deviations are honest.
    pub(crate) error: f64,
}

struct Player {
    strength: f64,
    rating: Rating,
    beaten: f64,
    met: f64,
}

/// Plays a season.
pub(crate) fn play(seed: u64, mode: &Mode, rate: Rate) -> Report {
    let mut random = Rng::with_seed(seed);
    let mut players: Vec<_> = (0..PLAYERS).map(|_| player(&mut random, mode.start)).collect();
    let before = mean(players.iter().map(|player| player.rating.rating));
    let (mut change, mut settled, mut of_bound) = (0.0_f64, 0.0_f64, 0.0_f64);
    for _ in 0..mode.matches {
        let Some(sizes) = random.choice(mode.layouts) else { break };
        pair(&mut random, mode.pairing, &mut players);
        let mut waiting = players.as_mut_slice();
        let mut teams: Vec<&mut [Player]> = Vec::new();
        for size in *sizes {
            let (team, rest) = waiting.split_at_mut(*size);
            (waiting, teams) = (rest, teams.into_iter().chain([team]).collect());
        }
        let performances: Vec<f64> = teams.iter().map(|team| performance(&mut random, mode.luck, team)).collect();
        let merit = |own: f64| performances.iter().filter(|other| **other < own).count();
        let rated = performances.iter().zip(&teams).map(|(own, team)| Team {
            merit: merit(*own),
            members: team.iter().map(|player| Member { rating: player.rating, joined: true }).collect(),
        });
        let rated: Vec<_> = rated.collect();
        for ((team, result), after) in teams.into_iter().zip(&rated).zip(rate(&rated)) {
            let size = u32::try_from(team.len()).unwrap_or(u32::MAX);
            for (player, after) in team.iter_mut().zip(after) {
                let before = player.rating;
                player.rating = after.unwrap_or(before);
                let moved = (player.rating.rating - before.rating).abs();
                change = change.max(moved);
                of_bound = of_bound.max(moved / largest_change(&before, size));
                if before.deviation <= 60.0 {
                    settled = settled.max(moved);
                }
                player.beaten += count(result.merit);
                player.met += count(rated.len()) - 1.0;
            }
        }
    }
    let (ratings, strengths): (Vec<_>, Vec<_>) =
        players.iter().map(|player| (player.rating.rating, player.strength)).unzip();
    let wins: Vec<_> = players.iter().map(|player| player.beaten / player.met.max(1.0)).collect();
    let errors = players.iter().map(|player| (player.rating.rating - player.strength) / player.rating.deviation);
    Report {
        spearman: correlation(&ranks(&ratings), &ranks(&strengths)),
        kendall: kendall(&ratings, &strengths),
        wins_spearman: correlation(&ranks(&wins), &ranks(&strengths)),
        drift: mean(ratings.iter().copied()) - before,
        change,
        settled,
        of_bound,
        error: mean(errors.map(|error| error.powi(2))),
    }
}

fn player(random: &mut Rng, start: Start) -> Player {
    let strength = 1_500.0 + 300.0 * normal(random);
    let rating = match start {
        Start::New => Rating::new(),
        Start::Settled => Rating { rating: strength + 60.0 * normal(random), deviation: 60.0, volatility: 0.06 },
    };
    Player { strength, rating, beaten: 0.0, met: 0.0 }
}

/// Moves the players of the next match to the front, in the order of its teams.
fn pair(random: &mut Rng, pairing: Pairing, players: &mut [Player]) {
    random.shuffle(players);
    if pairing == Pairing::Random {
        return;
    }
    let Some((first, others)) = players.split_first_mut() else { return };
    let distance = |player: &Player| (player.rating.rating - first.rating.rating).abs();
    if let Some(waiting) = others.get_mut(..29) {
        waiting.sort_by(|one, other| distance(one).total_cmp(&distance(other)));
    }
    let Some(ten) = players.get_mut(..10) else { return };
    // The best and the fourth for one team, the second and the third for the other, and so on.
    ten.sort_by(|one, other| other.rating.rating.total_cmp(&one.rating.rating));
    let mut teams = [0, 1, 1, 0, 0, 1, 1, 0, 0, 1].into_iter();
    ten.sort_by_cached_key(|_| teams.next());
}

/// How well a team plays: the mean of its members' strengths, and luck. The luck is Gumbel distributed, because the
/// difference of two such numbers is logistic: one team beats another with the probability of Elo's and Glicko's
/// formula, with `luck` in place of [`ELO`]. So [`ELO`] says that 400 points between two teams are the same odds as
/// between two players. With less luck, a team is more reliable than its members.
fn performance(random: &mut Rng, luck: f64, team: &[Player]) -> f64 {
    let uniform = 1.0 - random.f64();
    mean(team.iter().map(|player| player.strength)) - luck * (-uniform.ln()).max(f64::MIN_POSITIVE).ln()
}

/// A standard normal number, by Box and Muller.
fn normal(random: &mut Rng) -> f64 {
    // Not 0, whose logarithm is infinite.
    let uniform = 1.0 - random.f64();
    (-2.0 * uniform.ln()).sqrt() * (TAU * random.f64()).cos()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    // Equal values get the mean of their ranks.
    let rank = |own: &f64| {
        let less = values.iter().filter(|other| *other < own).count();
        let equal = values.iter().filter(|other| *other == own).count();
        count(less) + (count(equal) - 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

fn correlation(ones: &[f64], others: &[f64]) -> f64 {
    let (one_mean, other_mean) = (mean(ones.iter().copied()), mean(others.iter().copied()));
    let (mut both, mut one_square, mut other_square) = (0.0, 0.0, 0.0);
    for (one, other) in ones.iter().map(|one| one - one_mean).zip(others.iter().map(|other| other - other_mean)) {
        both += one * other;
        one_square += one * one;
        other_square += other * other;
    }
    both / (one_square * other_square).sqrt()
}

fn kendall(ones: &[f64], others: &[f64]) -> f64 {
    let both: Vec<_> = ones.iter().zip(others).collect();
    let pairs = both.iter().enumerate().flat_map(|(at, one)| both.iter().take(at).map(move |other| (one, other)));
    let sign = |one: f64, other: f64| if one > other { 1.0 } else { -1.0 };
    mean(pairs.map(|(one, other)| sign(*one.0, *other.0) * sign(*one.1, *other.1)))
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
    sum / f64::max(count, 1.0)
}

/// A small number as a float.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
