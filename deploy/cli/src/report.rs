//! Output for people: lines and tables on standard output, notes on standard error.

use std::{
    io::{ErrorKind, Write},
    ops::ControlFlow,
};

/// Prints a line. Ignores errors: a reader that has closed the pipe has read enough.
pub(crate) fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Prints a table. The first column is aligned to the left, the others to the right.
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

/// The percentile of the sorted values, where `share` is from 0 to 1. `None` if there are no values.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    // A few thousand values: u32 and f64 represent their ranks exactly.
    let rank = (f64::from(u32::try_from(last).ok()?) * share).round();
    (0_u32..).zip(sorted).find(|(at, _)| f64::from(*at) >= rank).map(|(_, value)| *value)
}

/// Prints one of many lines. Breaks when the reader has closed the pipe.
pub(crate) fn print(line: impl std::fmt::Display) -> std::io::Result<ControlFlow<()>> {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error),
    }
}

/// Prints a note for the user that is not part of the command's output.
pub(crate) fn note(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
