//! The figures of a run, for programs that compare runs.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;

use crate::report::percentile;

/// Named numbers.
#[derive(Debug, Default)]
pub(super) struct Figures(BTreeMap<String, f64>);

impl Figures {
    /// Adds a figure, rounded to six decimals. A number that is not finite is left out, because JSON has none.
    pub(super) fn set(&mut self, key: impl Into<String>, value: f64) {
        if value.is_finite() {
            self.0.insert(key.into(), (value * 1e6).round() / 1e6);
        }
    }

    /// Writes all figures as one JSON object. An existing file is overwritten.
    pub(super) fn write(&self, file: &Path) -> anyhow::Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(&self.0)?;
        fs::write(file, text + "\n").with_context(|| format!("write {}", file.display()))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_the_median_and_the_extremes() {
        assert_eq!(spread(&[3.0, 1.0, 2.26], 1), "2.3 (1.0..3.0)");
        assert_eq!(spread(&[4.0, 2.0], 0), "4 (2..4)");
        assert_eq!(spread(&[], 1), "-");
    }

    #[test]
    fn the_file_is_one_object_of_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/figures.json");
        let mut figures = Figures::default();
        figures.set("path.p50_ms", 1.500_000_1);
        figures.set("nothing", median(&[]));
        figures.write(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\n  \"path.p50_ms\": 1.5\n}\n");
    }
}
