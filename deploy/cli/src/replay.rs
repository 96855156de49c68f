//! `garage replay`: reads the history again.

mod pace;
mod target;

use std::{path::PathBuf, time::Duration};

use anyhow::{bail, ensure};
use async_nats::Client;
use garage_events::{
    jetstream::reader::{Range, Reader},
    subject::{HISTORY, Prefix, STREAM},
};
use garage_worker::{Shutdown, config::Nats};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::{Instant, sleep, sleep_until};

use self::{
    pace::{Pace, Speed},
    target::Target,
};
use crate::{entry::LogEntry, progress::Progress, report::note, select::Select};

/// How long the mirror may take to receive the events that the log had when the replay began. Normally, the mirror is
/// milliseconds behind.
const MIRROR_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two checks of the mirror.
const MIRROR_POLL: Duration = Duration::from_millis(20);

/// The longest pause before an event, a year. It keeps the addition to an `Instant` in range.
const MAX_PAUSE: Duration = Duration::from_secs(365 * 86_400);

/// Reads the log of the last 72 hours again: prints it, writes it to a file, or publishes it.
///
/// A replay ends where the log ends when the replay starts.
#[derive(Debug, clap::Args)]
pub(crate) struct Replay {
    /// First sequence. The default is the first that the history still has.
    #[arg(long, value_name = "SEQ", conflicts_with = "from")]
    from_seq: Option<u64>,
    /// First time, in RFC 3339, for example 2026-11-22T10:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    from: Option<OffsetDateTime>,
    /// Last sequence. The default is the last of the log.
    #[arg(long, value_name = "SEQ", conflicts_with = "to")]
    to_seq: Option<u64>,
    /// Last time, in RFC 3339.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    to: Option<OffsetDateTime>,
    #[command(flatten)]
    select: Select,
    /// Writes JSON lines to this file. It appears only when it is complete.
    #[arg(long, value_name = "FILE", conflicts_with = "publish")]
    out: Option<PathBuf>,
    /// Replaces the file if it exists.
    #[arg(long, requires = "out")]
    force: bool,
    /// Publishes each event to PREFIX.SUBJECT, with the headers Garage-Type and Garage-Replay-Seq. If a stream stores
    /// these subjects, the command waits for its acknowledgements.
    #[arg(long, value_name = "PREFIX")]
    publish: Option<Prefix>,
    /// `full`, `recorded`, or a factor of the recorded speed, such as 10.
    #[arg(long, default_value = "full")]
    speed: Speed,
    /// Prints JSON lines: seq, time, subject, event.
    #[arg(long, conflicts_with_all = ["out", "publish"])]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

impl Replay {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let client = self.nats.connect("cli").await?;
        let history = Reader::open(client.clone(), HISTORY).await?;
        let (from, to) = self.range(&client, &history).await?;
        let mut target = match (&self.out, &self.publish) {
            (Some(path), _) => Target::file(path, self.force)?,
            (None, Some(prefix)) => Target::subjects(client, prefix.clone()).await?,
            (None, None) => Target::Output { json: self.json },
        };
        let events = history.range(self.select.filters()?, from, to);
        let mut events = Paced { events, select: self.select, pace: Pace::new(self.speed), began: Instant::now() };
        let mut progress = Progress::new(target.prints());
        let (mut next, mut count) = (from, 0);
        loop {
            let entry = tokio::select! {
                biased;
                () = shutdown.cancelled() => {
                    drop(progress);
                    let how = target.interrupt(next).await?;
                    bail!("interrupted after {count} events, before sequence {next}; {how}");
                }
                entry = events.next() => entry?,
            };
            let Some(entry) = entry else { break };
            if target.take(&entry).await?.is_break() {
                return Ok(());
            }
            (next, count) = (entry.seq + 1, count + 1);
            progress.at(count, next - from, to + 1 - from);
        }
        drop(progress);
        ensure!(count > 0, "none of the events from {from} to {to} is selected; widen the filter or the range");
        target.finish(count).await
    }

    /// The first and the last sequence of the replay. Waits for the mirror if it is behind the log.
    async fn range(&self, client: &Client, history: &Reader) -> anyhow::Result<(u64, u64)> {
        let last = Reader::open(client.clone(), STREAM).await?.bounds().await?.last;
        let deadline = Instant::now() + MIRROR_TIMEOUT;
        let mut bounds = history.bounds().await?;
        while bounds.last < last {
            ensure!(
                Instant::now() < deadline,
                "stream {HISTORY} is at {} but stream {STREAM} is at {last}: the mirror has stopped; check `nats \
                 stream info {HISTORY}`, or end the replay earlier with --to-seq {}",
                bounds.last,
                bounds.last
            );
            // The mirror already has all requested events.
            if self.to_seq.is_some_and(|to| to <= bounds.last) {
                break;
            }
            sleep(MIRROR_POLL).await;
            bounds = history.bounds().await?;
        }
        let from = match (self.from_seq, self.from) {
            (Some(seq), _) => seq.max(1),
            (None, Some(time)) => history.since(time).await?,
            (None, None) => bounds.first,
        };
        let to = match (self.to_seq, self.to) {
            (Some(seq), _) => seq,
            // Includes events at exactly that time.
            (None, Some(time)) => history.since(time + time::Duration::NANOSECOND).await?.saturating_sub(1),
            (None, None) => last,
        };
        let to = to.min(last);
        ensure!(bounds.last > 0, "the log is empty: nothing has happened yet");
        ensure!(
            from <= to && to >= bounds.first,
            "the range from {from} to {to} is empty; stream {HISTORY} has {} to {}",
            bounds.first,
            bounds.last
        );
        if from < bounds.first {
            note(format!("events before sequence {} have expired", bounds.first));
        }
        Ok((from.max(bounds.first), to))
    }
}

/// The selected events of a replay, at the replay's speed.
struct Paced {
    events: Range,
    select: Select,
    pace: Pace,
    began: Instant,
}

impl Paced {
    async fn next(&mut self) -> anyhow::Result<Option<LogEntry>> {
        while let Some(message) = self.events.next().await? {
            let entry = LogEntry::new(message.seq, message.time, &message.subject, &message.body)?;
            if self.select.takes(&entry) {
                sleep_until(self.began + self.pace.due(entry.time).min(MAX_PAUSE)).await;
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

fn moment(text: &str) -> Result<OffsetDateTime, String> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|error| format!("{error}; use a form such as 2026-11-22T10:00:00Z"))
}
