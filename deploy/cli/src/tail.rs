//! `garage tail`: prints the log as it grows.

use std::{str::FromStr, time::Duration};

use anyhow::Context;
use garage_events::{
    env::{Env, System},
    jetstream::reader::Reader,
    subject::STREAM,
};
use garage_worker::{Shutdown, config::Nats};

use crate::{entry::LogEntry, report::print, select::Select};

/// Prints each new event of the log as one line, until Ctrl-C.
#[derive(Debug, clap::Args)]
pub(crate) struct Tail {
    /// Begin at this sequence, or this long ago (90s, 15m, 2h, 1d). Without it, only new events are printed.
    #[arg(long, value_name = "SEQ|DURATION")]
    since: Option<Since>,
    #[command(flatten)]
    select: Select,
    /// Prints JSON lines: seq, time, subject, event.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

/// Where to begin to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    Seq(u64),
    Ago(Duration),
}

impl FromStr for Since {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = "neither a sequence, such as 17, nor a duration, such as 90s, 15m, 2h or 1d";
        text.parse().map(Self::Seq).ok().or_else(|| duration(text).map(Self::Ago)).ok_or(invalid)
    }
}

/// Parses a duration such as 90s, 15m, 2h or 1d.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let number: u32 = text.strip_suffix(char::is_alphabetic)?.parse().ok()?;
    Some(Duration::from_secs(u64::from(number) * unit))
}

impl Tail {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let reader = Reader::open(self.nats.connect("cli").await?, STREAM).await?;
        let from = match self.since {
            None => reader.bounds().await?.last + 1,
            Some(Since::Seq(seq)) => seq,
            Some(Since::Ago(ago)) => reader.since(System.now() - ago).await?,
        };
        let mut follow = reader.follow(self.select.filters()?, from);
        follow.connect().await.map_err(anyhow::Error::from_boxed).context("cannot follow the log")?;
        loop {
            let message = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                message = follow.next() => message,
            };
            let entry = LogEntry::new(message.seq, message.time, &message.subject, &message.body)?;
            if self.select.takes(&entry) && print(if self.json { entry.json()? } else { entry.line() })?.is_break() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_sequence_or_a_duration() {
        assert_eq!("17".parse(), Ok(Since::Seq(17)));
        assert_eq!("90s".parse(), Ok(Since::Ago(Duration::from_secs(90))));
        assert_eq!("2h".parse(), Ok(Since::Ago(Duration::from_secs(7_200))));
        assert_eq!("1d".parse(), Ok(Since::Ago(Duration::from_secs(86_400))));
        for bad in ["", "s", "-1s", "2 h", "1w", "1.5h", "yesterday"] {
            assert!(bad.parse::<Since>().is_err(), "{bad}");
        }
    }
}
