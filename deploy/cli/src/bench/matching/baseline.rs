//! The baseline of matching: how long the matcher that rule sets replaced takes to look for matches.

#[path = "../../../../../matchmaker/benches/first_come.rs"]
mod first_come;

use std::{hint::black_box, time::Instant};

use anyhow::ensure;

use super::waiting;
use crate::bench::sample::median;

/// Measurements, of which the median counts.
const RUNS: usize = 5;

/// Seconds that the matcher takes to find out that no two of `players` waiting players can be matched.
pub(super) fn seconds(players: u32) -> anyhow::Result<f64> {
    let (queue, waiting) = (first_come::Queue::of_two()?, waiting::players(players)?);
    let mut took = Vec::new();
    for _ in 0..RUNS {
        let began = Instant::now();
        let found = black_box(first_come::propose(&queue, waiting.iter(), usize::MAX));
        took.push(began.elapsed().as_secs_f64());
        ensure!(found.is_empty(), "{} matches of players who cannot be matched", found.len());
    }
    Ok(median(&took))
}
