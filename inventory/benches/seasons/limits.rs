//! The modes that are played, and what their seasons must show.

use super::season::{ELO, Mode, Pairing, Report, Start};

/// What the seasons of a mode must show. Ratings, changes and drifts are in points.
pub(crate) struct Limits {
    /// The least rank correlation (Spearman) of ratings and strengths: the median season, the first percentile, and any
    /// season.
    spearman: [f64; 3],
    /// The least rank correlation by Kendall, in the same three.
    kendall: [f64; 3],
    /// How far a season may move the mean rating of all players. This should be chance: the mean over `n` seasons may
    /// be at most one part in sqrt(n) of this limit, which is about four standard errors.
    drift: f64,
    /// How far a match may move a rating: of any player, and of a player with a deviation up to 60.
    change: f64,
    settled: f64,
}

const FIVES: Mode = Mode {
    name: "5 against 5, random teams",
    layouts: &[&[5, 5]],
    pairing: Pairing::Random,
    luck: ELO,
    matches: 500,
    start: Start::New,
};

pub(crate) const MODES: [(Mode, Limits); 6] = [
    (
        FIVES,
        Limits { spearman: [0.67, 0.54, 0.40], kendall: [0.48, 0.38, 0.27], drift: 10.0, change: 142.0, settled: 5.0 },
    ),
    (
        Mode { name: "5 against 5, matched by rating", pairing: Pairing::ByRating, ..FIVES },
        Limits { spearman: [0.69, 0.55, 0.45], kendall: [0.50, 0.39, 0.32], drift: 10.0, change: 80.0, settled: 5.0 },
    ),
    (
        // Each member has luck of their own, as in TrueSkill. It evens out in the mean: 2.236 is the square root of 5.
        Mode { name: "5 against 5, own luck", luck: ELO / 2.236, ..FIVES },
        Limits { spearman: [0.83, 0.75, 0.68], kendall: [0.64, 0.56, 0.50], drift: 10.0, change: 142.0, settled: 5.0 },
    ),
    (
        Mode { name: "1 against 4", layouts: &[&[1, 4], &[4, 1]], ..FIVES },
        Limits { spearman: [0.81, 0.73, 0.64], kendall: [0.62, 0.54, 0.47], drift: 40.0, change: 500.0, settled: 22.0 },
    ),
    (
        Mode { name: "many sizes", layouts: &[&[5, 5], &[1, 4], &[2, 3, 5], &[1; 2], &[1; 10], &[2; 8]], ..FIVES },
        Limits { spearman: [0.94, 0.90, 0.85], kendall: [0.80, 0.72, 0.68], drift: 40.0, change: 500.0, settled: 22.0 },
    ),
    (
        Mode { name: "5 against 5, settled players", start: Start::Settled, ..FIVES },
        Limits { spearman: [0.97, 0.95, 0.91], kendall: [0.86, 0.82, 0.77], drift: 2.0, change: 15.0, settled: 5.0 },
    ),
];

/// Which limits the seasons of a mode break.
pub(crate) fn broken(mode: &Mode, limits: &Limits, reports: &[Report]) -> Vec<String> {
    let largest = |of: fn(&Report) -> f64| reports.iter().map(of).fold(0.0, f64::max);
    let mut broken = Vec::new();
    let mut at_most = |what: &str, value: f64, limit: f64| {
        if value.is_nan() || value > limit {
            broken.push(format!("{}: {what} is {value:.4}, the limit is {limit}", mode.name));
        }
    };
    for (what, of, limits) in [
        ("Spearman", (|report| report.spearman) as fn(&Report) -> f64, limits.spearman),
        ("Kendall", |report| report.kendall, limits.kendall),
    ] {
        for (value, limit) in quantiles(reports, of).into_iter().zip(limits) {
            at_most(&format!("minus {what}"), -value, -limit);
        }
    }
    let [by_rating, ..] = quantiles(reports, |report| report.spearman);
    let [by_wins, ..] = quantiles(reports, |report| report.wins_spearman);
    at_most("the order by win rate", by_wins, by_rating);
    at_most("the drift", largest(|report| report.drift.abs()), limits.drift);
    at_most("the inflation", mean(reports, |report| report.drift).abs(), limits.drift / count(reports).sqrt());
    at_most("the change", largest(|report| report.change), limits.change);
    at_most("the change of a settled player", largest(|report| report.settled), limits.settled);
    at_most("the change as a share of the bound", largest(|report| report.of_bound), 1.0);
    // Deviations claim to know no more than they do, if luck is as Glicko-2 expects.
    at_most("the error in deviations", mean(reports, |report| report.error).sqrt(), 1.1);
    broken
}

/// The median, the first percentile and the least.
pub(crate) fn quantiles(reports: &[Report], of: fn(&Report) -> f64) -> [f64; 3] {
    let mut values: Vec<f64> = reports.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    [values.len() / 2, values.len() / 100, 0].map(|at| values.get(at).copied().unwrap_or(f64::NAN))
}

pub(crate) fn mean(reports: &[Report], of: fn(&Report) -> f64) -> f64 {
    reports.iter().map(of).sum::<f64>() / count(reports)
}

fn count(reports: &[Report]) -> f64 {
    f64::from(u32::try_from(reports.len()).unwrap_or(u32::MAX))
}
