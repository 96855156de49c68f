//! What a person reads.

use std::{
    io::{ErrorKind, Write},
    ops::ControlFlow,
};

/// Prints a line. A reader who has closed the pipe has read enough.
pub(crate) fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Prints rows under headings, the first column to the left, the others to the right.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|heading| heading.chars().count())).max().unwrap_or(0)
    };
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (column, cell) in cells.into_iter().enumerate() {
            let width = width(column);
            let cell = if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            text.push_str("  ");
            text.push_str(&cell);
        }
        say(text.trim_end());
    };
    line(headings.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

/// The value below which a share of the sorted values lies; `None` without values.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    // The ranks of a few thousand values are far from where f64 or u32 lose precision.
    let rank = (f64::from(u32::try_from(last).ok()?) * share).round();
    (0_u32..).zip(sorted).find(|(at, _)| f64::from(*at) >= rank).map(|(_, value)| *value)
}

/// Prints one of many lines; breaks when nobody reads them any more.
pub(crate) fn print(line: impl std::fmt::Display) -> std::io::Result<ControlFlow<()>> {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error),
    }
}

/// Tells whoever typed the command something that does not belong to its output.
pub(crate) fn note(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
