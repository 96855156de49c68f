//! The figures of a run, for programs that compare runs.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_one_object_of_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/figures.json");
        let mut figures = Figures::default();
        figures.set("path.p50_ms", 1.500_000_1);
        figures.set("nothing", f64::NAN);
        figures.write(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "{\n  \"path.p50_ms\": 1.5\n}\n");
    }
}
