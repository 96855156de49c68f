//! Measurements: latencies, and the memory of a process.

use std::time::Duration;

use anyhow::Context;

use crate::report::percentile;

/// Latencies of one kind of operation, in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Latencies(Vec<f64>);

impl Latencies {
    pub(super) fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64() * 1_000.0);
    }

    /// A row of a table: the name, the number of samples, the median and the 99th percentile in milliseconds, and the
    /// ratio of the 99th percentile to the 99th percentile of the limit.
    pub(super) fn row(&self, name: &str, limit: Option<&Self>) -> Vec<String> {
        let ratio = limit.and_then(|limit| Some(self.at(0.99)? / limit.at(0.99)?));
        let show = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2}"));
        vec![
            name.into(),
            self.0.len().to_string(),
            show(self.at(0.5)),
            show(self.at(0.99)),
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.1}")),
        ]
    }

    /// The percentile, where `share` is from 0 to 1. `None` if there are no latencies.
    pub(super) fn at(&self, share: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        percentile(&sorted, share)
    }
}

impl Extend<Duration> for Latencies {
    fn extend<I: IntoIterator<Item = Duration>>(&mut self, took: I) {
        took.into_iter().for_each(|took| self.add(took));
    }
}

impl FromIterator<Duration> for Latencies {
    fn from_iter<I: IntoIterator<Item = Duration>>(took: I) -> Self {
        let mut latencies = Self::default();
        latencies.extend(took);
        latencies
    }
}

/// The headings of [`Latencies::row`].
pub(super) const HEADINGS: [&str; 5] = ["", "count", "p50 ms", "p99 ms", "p99 / limit"];

/// The median, which is the higher of the two in the middle if their number is even. Not a number if there are none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    percentile(&sorted, 0.5).unwrap_or(f64::NAN)
}

/// The median, and the lowest and highest value in parentheses.
pub(super) fn spread(values: &[f64], decimals: usize) -> String {
    let (low, high) = (values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max));
    match (low, high) {
        (Some(low), Some(high)) => format!("{:.decimals$} ({low:.decimals$}..{high:.decimals$})", median(values)),
        _ => "-".into(),
    }
}

/// The proportional set size of a process, in KiB: its own memory, and its share of memory that it shares with others.
///
/// # Errors
/// If the process does not exist, or belongs to another user.
pub(super) fn memory_kib(pid: u32) -> anyhow::Result<u64> {
    let file = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    let pss = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse().ok());
    pss.with_context(|| format!("{file} has no Pss"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_percentiles_and_their_ratio_to_the_limit() {
        let millis = |range: std::ops::RangeInclusive<u64>| range.map(Duration::from_millis).collect::<Latencies>();
        let limit = millis(1..=11);
        assert_eq!(limit.row("limit", None), ["limit", "11", "6.00", "11.00", ""]);
        assert_eq!(millis(22..=22).row("ours", Some(&limit)), ["ours", "1", "22.00", "22.00", "2.0"]);
        assert_eq!(Latencies::default().row("none", Some(&limit)), ["none", "0", "-", "-", ""]);
    }

    #[test]
    fn a_spread_has_the_median_and_the_extremes() {
        assert_eq!(spread(&[3.0, 1.0, 2.26], 1), "2.3 (1.0..3.0)");
        assert_eq!(spread(&[4.0, 2.0], 0), "4 (2..4)");
        assert_eq!(spread(&[], 1), "-");
    }

    #[test]
    fn the_memory_of_this_process_is_measured() {
        assert!(memory_kib(std::process::id()).unwrap() > 100);
    }
}
