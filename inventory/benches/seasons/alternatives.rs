//! Other ways to rate a match of teams, to compare with. All members must have joined.

use garage_inventory::domain::rating::{Member, Rating, Team};
use skillratings::{
    MultiTeamOutcome, Outcomes,
    glicko2::{Glicko2Config, glicko2},
    weng_lin::{WengLinConfig, WengLinRating, weng_lin_multi_team},
};

use super::season::Rate;

/// All of them, with their names.
pub(crate) const ALL: [(&str, Rate); 6] = [
    ("Glicko-2, each opponent alone", |teams| glicko(teams, pairwise)),
    ("Glicko-2, player against team", |teams| glicko(teams, composite_opponent)),
    ("Glicko-2, team against team", |teams| glicko(teams, composite_team)),
    ("Glicko-2, steps over sqrt(n)", |teams| glicko(teams, root)),
    ("Weng-Lin, default beta", |teams| weng_lin(teams, false)),
    ("Weng-Lin, beta times n", |teams| weng_lin(teams, true)),
];

type Update = fn(&Rating, &[Member], &[Member], &Outcomes) -> Rating;

/// The mean over the opposing teams of an update by one of them.
fn glicko(teams: &[Team<usize>], update: Update) -> Vec<Vec<Option<Rating>>> {
    let rated = teams.iter().enumerate().map(|(at, own)| {
        let others = || teams.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, team)| team);
        let outcome = |other: &Team<usize>| match own.merit.cmp(&other.merit) {
            std::cmp::Ordering::Less => Outcomes::LOSS,
            std::cmp::Ordering::Equal => Outcomes::DRAW,
            std::cmp::Ordering::Greater => Outcomes::WIN,
        };
        let after = |member: &Member| {
            let after = others().map(|other| update(&member.rating, &own.members, &other.members, &outcome(other)));
            Some(mean(after))
        };
        own.members.iter().map(after).collect()
    });
    rated.collect()
}

/// As before there were teams, but without the teammates.
fn pairwise(before: &Rating, _: &[Member], others: &[Member], outcome: &Outcomes) -> Rating {
    mean(others.iter().map(|other| glicko2(before, &other.rating, outcome, &Glicko2Config::new()).0))
}

/// Williams' "composite opponent update": the player alone against the mean of the opponents.
fn composite_opponent(before: &Rating, _: &[Member], others: &[Member], outcome: &Outcomes) -> Rating {
    glicko2(before, &composite(others), outcome, &Glicko2Config::new()).0
}

/// Like Williams' "composite team update": the mean of the team against the mean of the opponents, with the player's
/// own deviation.
fn composite_team(before: &Rating, own: &[Member], others: &[Member], outcome: &Outcomes) -> Rating {
    scaled(before, own, others, outcome, 1.0)
}

/// Between [`composite_team`] and what this crate does.
fn root(before: &Rating, own: &[Member], others: &[Member], outcome: &Outcomes) -> Rating {
    scaled(before, own, others, outcome, size(own).sqrt())
}

fn scaled(before: &Rating, own: &[Member], others: &[Member], outcome: &Outcomes, by: f64) -> Rating {
    let mut against = composite(others);
    against.rating += before.rating - composite(own).rating;
    let share = Rating { deviation: before.deviation / by, volatility: before.volatility / by, ..*before };
    let after = glicko2(&share, &against, outcome, &Glicko2Config::new()).0;
    Rating {
        rating: before.rating + (after.rating - before.rating) * by,
        deviation: (after.deviation * by).min(350.0),
        volatility: after.volatility * by,
    }
}

fn composite(members: &[Member]) -> Rating {
    mean(members.iter().map(|member| member.rating))
}

/// Weng and Lin, "A Bayesian Approximation Method for Online Ranking" (2011), as in OpenSkill, on the scale of Glicko.
/// It takes a team for the sum of its members. With beta times their number, it expects a mean's odds.
fn weng_lin(teams: &[Team<usize>], of_mean: bool) -> Vec<Vec<Option<Rating>>> {
    let weng_lin = |member: &Member| WengLinRating {
        rating: member.rating.rating - 1_500.0,
        uncertainty: member.rating.deviation,
    };
    let players: Vec<Vec<_>> = teams.iter().map(|team| team.members.iter().map(weng_lin).collect()).collect();
    let ranked = players.iter().zip(teams).map(|(team, Team { merit, .. })| {
        let better = teams.iter().filter(|other| other.merit > *merit).count();
        (team.as_slice(), MultiTeamOutcome::new(better + 1))
    });
    let largest = teams.iter().map(|team| size(&team.members)).fold(1.0, f64::max);
    let beta = 175.0 * if of_mean { largest } else { 1.0 };
    let after = weng_lin_multi_team(&ranked.collect::<Vec<_>>(), &WengLinConfig { beta, ..WengLinConfig::new() });
    let glicko = |after: WengLinRating| {
        Some(Rating { rating: after.rating + 1_500.0, deviation: after.uncertainty, volatility: 0.06 })
    };
    after.into_iter().map(|team| team.into_iter().map(glicko).collect()).collect()
}

fn mean(ratings: impl Iterator<Item = Rating>) -> Rating {
    let (mut count, mut sum) = (0.0, Rating { rating: 0.0, deviation: 0.0, volatility: 0.0 });
    for Rating { rating, deviation, volatility } in ratings {
        count += 1.0;
        sum.rating += rating;
        sum.deviation += deviation;
        sum.volatility += volatility;
    }
    Rating {
        rating: sum.rating / count,
        deviation: f64::min(sum.deviation / count, 350.0),
        volatility: sum.volatility / count,
    }
}

fn size(members: &[Member]) -> f64 {
    f64::from(u32::try_from(members.len()).unwrap_or(u32::MAX))
}
