//! Shows how well ratings find the players' true strengths: plays many seasons of 500 matches between 100 players.
//!
//! ```text
//! cargo bench --package garage-inventory --bench seasons -- [seasons] [compare]
//! ```
//!
//! Plays 10,000 seasons of each mode, or as many as you say, and fails if they break a limit of [`limits`]. With
//! `compare`, it plays them with the other ways to rate a match, too. The same arguments always print the same numbers.
#![expect(clippy::print_stdout, reason = "the report is what this program is for")]

#[path = "seasons/alternatives.rs"]
mod alternatives;
#[path = "seasons/limits.rs"]
mod limits;
#[path = "seasons/season.rs"]
mod season;

use std::{process::ExitCode, thread};

use season::{Mode, Rate, Report, play};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seasons = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(10_000);
    let compare = arguments.iter().any(|argument| argument == "compare");
    let mut broken = Vec::new();
    for (mode, limits) in limits::MODES {
        println!("\n{}, {seasons} seasons of {} matches", mode.name, mode.matches);
        println!(
            "{:30} {:>17} {:>17} {:>17} {:>7} {:>6} {:>9} {:>6} {:>7} {:>8} {:>6}",
            "",
            "Spearman",
            "Kendall",
            "win rate",
            "better",
            "drift",
            "inflation",
            "change",
            "settled",
            "of bound",
            "error"
        );
        let reports = play_all(seasons, &mode, garage_inventory::domain::rating::rate);
        print("this crate", &reports);
        broken.extend(limits::broken(&mode, &limits, &reports));
        for (name, rate) in alternatives::ALL.iter().filter(|_| compare) {
            print(name, &play_all(seasons, &mode, *rate));
        }
    }
    for limit in &broken {
        println!("broken: {limit}");
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The reports of the seasons with the seeds 0, 1 and so on, by two threads.
fn play_all(seasons: u64, mode: &Mode, rate: Rate) -> Vec<Report> {
    let half = seasons / 2;
    thread::scope(|scope| {
        let first = scope.spawn(|| (0..half).map(|seed| play(seed, mode, rate)).collect::<Vec<_>>());
        let second: Vec<_> = (half..seasons).map(|seed| play(seed, mode, rate)).collect();
        first.join().unwrap_or_default().into_iter().chain(second).collect()
    })
}

fn print(name: &str, reports: &[Report]) {
    let three = |of| {
        let [median, first, least] = limits::quantiles(reports, of);
        format!("{median:.3} {first:.3} {least:.3}")
    };
    let largest = |of: fn(&Report) -> f64| reports.iter().map(of).fold(0.0, f64::max);
    let better = |report: &Report| f64::from(u8::from(report.spearman > report.wins_spearman));
    println!(
        "{name:30} {:>17} {:>17} {:>17} {:>6.0}% {:>6.1} {:>9.2} {:>6.1} {:>7.1} {:>8.3} {:>6.2}",
        three(|report| report.spearman),
        three(|report| report.kendall),
        three(|report| report.wins_spearman),
        100.0 * limits::mean(reports, better),
        largest(|report| report.drift.abs()),
        limits::mean(reports, |report| report.drift),
        largest(|report| report.change),
        largest(|report| report.settled),
        largest(|report| report.of_bound),
        limits::mean(reports, |report| report.error).sqrt(),
    );
}
