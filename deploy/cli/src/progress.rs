//! The progress of a long command, shown on a terminal.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

/// Pause between two updates of the line.
const INTERVAL: Duration = Duration::from_millis(200);

/// One line on standard error that is updated in place. Nothing is written if standard error is not a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    enabled: bool,
    began: Instant,
    shown: Option<Instant>,
}

impl Progress {
    /// `prints` says whether the command writes its results to standard output.
    pub(crate) fn new(prints: bool) -> Self {
        // On one terminal, results and progress would mix.
        let enabled = std::io::stderr().is_terminal() && !(prints && std::io::stdout().is_terminal());
        Self { enabled, began: Instant::now(), shown: None }
    }

    /// Updates the line: `events` are processed in total, and the work is at `done` of `all`.
    pub(crate) fn at(&mut self, events: u64, done: u64, all: u64) {
        let now = Instant::now();
        if self.enabled && self.shown.is_none_or(|shown| now - shown >= INTERVAL) {
            self.shown = Some(now);
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", text(events, done, all, now - self.began));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn text(events: u64, done: u64, all: u64, took: Duration) -> String {
    let percent = u128::from(done.min(all)) * 100 / u128::from(all.max(1));
    let rate = u128::from(events) * 1_000 / took.as_millis().max(1);
    format!("{events} events  {percent} %  {rate}/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_count_percentage_and_rate() {
        assert_eq!(text(500, 1, 4, Duration::from_millis(250)), "500 events  25 %  2000/s");
        assert_eq!(text(0, 0, 0, Duration::ZERO), "0 events  0 %  0/s");
        assert_eq!(text(9, 9, 8, Duration::from_secs(3)), "9 events  100 %  3/s");
    }
}
