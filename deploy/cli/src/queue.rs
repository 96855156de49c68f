//! `garage queue`: closes, opens and lists queues.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{
    self, Context,
    message::StreamMessage,
    stream::{LastRawMessageErrorKind, Stream},
};
use futures::TryStreamExt;
use garage_events::{
    id::QueueName,
    lease,
    queue_status::{self, QueueStatus},
};
use garage_worker::config::Nats;
use serde::Serialize;
use time::OffsetDateTime;

use crate::{
    entry::when,
    report::{note, print, say},
};

/// Closes, opens and lists queues.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Queue {
    /// Closes a queue: it accepts no new tickets until you open it. Players who already wait are still matched.
    Close(Close),
    /// Opens a closed queue.
    Open(Open),
    /// Lists the queues: whether each is open, since when, and why a queue is closed.
    List(List),
}

/// Closes a queue: it accepts no new tickets until you open it. Players who already wait are still matched.
#[derive(Debug, clap::Args)]
pub(crate) struct Close {
    /// The name of the queue.
    name: QueueName,
    /// The reason, one line of at most 200 characters. Players who try to queue receive it.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    #[command(flatten)]
    nats: Nats,
}

/// Opens a closed queue.
#[derive(Debug, clap::Args)]
pub(crate) struct Open {
    /// The name of the queue.
    name: QueueName,
    #[command(flatten)]
    nats: Nats,
}

/// Lists the queues that had a matchmaker in the last hour, and all queues that were ever closed.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Prints JSON lines: queue, state (open or closed), since, reason.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

/// One line of the list. The field names appear in JSON lines and must not change.
#[derive(Debug, Serialize)]
struct QueueLine {
    queue: QueueName,
    #[serde(flatten)]
    queue_status: QueueStatus,
    /// When the status was set, by the stream's clock. `None` if the queue was never closed.
    #[serde(with = "time::serde::rfc3339::option")]
    since: Option<OffsetDateTime>,
}

/// The queues and their status, read from the buckets LEASES and QUEUES.
struct QueueReader {
    context: Context,
    /// Queues that had a matchmaker in the last hour, from the leases. This command does not read the queues file.
    matched: Vec<QueueName>,
    /// Queues that were ever closed: the status, and when it was set.
    queue_statuses: BTreeMap<QueueName, (QueueStatus, OffsetDateTime)>,
}

impl Queue {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Close(Close { name, reason, nats }) => {
                let known = QueueReader::read(&nats).await?;
                known.check(&name)?;
                known.put(&name, &QueueStatus::Closed { reason }).await?;
                say(format!("queue {name} is closed; players who already wait are still matched"));
            }
            Self::Open(Open { name, nats }) => {
                let known = QueueReader::read(&nats).await?;
                known.check(&name)?;
                known.put(&name, &QueueStatus::Open).await?;
                say(format!("queue {name} is open"));
            }
            Self::List(list) => list.run().await?,
        }
        Ok(())
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let lines = QueueReader::read(&self.nats).await?.lines();
        if lines.is_empty() && !self.json {
            say("no queues: no matchmaker has run in the last hour");
        }
        for line in lines {
            let line = if self.json { serde_json::to_string(&line)? } else { line.text() };
            if print(line)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl QueueLine {
    fn text(&self) -> String {
        let (state, reason) = match &self.queue_status {
            QueueStatus::Open => ("open", String::new()),
            // Another tool may have written it, with control characters for the terminal.
            QueueStatus::Closed { reason } => ("closed", format!("  {}", reason.replace(char::is_control, " "))),
        };
        let since = self.since.map_or_else(|| "-".into(), when);
        format!("{:<32}  {state:<6}  {since:<24}{reason}", self.queue).trim_end().into()
    }
}

impl QueueReader {
    async fn read(nats: &Nats) -> anyhow::Result<Self> {
        let context = jetstream::new(nats.connect("cli").await?);
        let leases = entries(&bucket(&context, lease::STREAM).await?, lease::MATCHMAKERS).await?;
        let matched = leases.iter().filter_map(|entry| lease::queue_of(&entry.subject)).collect();
        let mut queue_statuses = BTreeMap::new();
        for entry in entries(&bucket(&context, queue_status::STREAM).await?, queue_status::ALL).await? {
            // An entry that a KV client has deleted has no body.
            if let (Some(queue), false) = (queue_status::queue_of(&entry.subject), entry.payload.is_empty()) {
                let queue_status = serde_json::from_slice(&entry.payload);
                let queue_status = queue_status.with_context(|| format!("cannot read the status of queue {queue}"))?;
                queue_statuses.insert(queue, (queue_status, entry.time));
            }
        }
        Ok(Self { context, matched, queue_statuses })
    }

    fn lines(self) -> Vec<QueueLine> {
        let open = self.matched.into_iter().map(|queue| (queue, None));
        let mut lines: BTreeMap<_, _> = open.collect();
        lines.extend(self.queue_statuses.into_iter().map(|(queue, queue_status)| (queue, Some(queue_status))));
        let line = |(queue, queue_status): (_, Option<_>)| match queue_status {
            Some((queue_status, since)) => QueueLine { queue, queue_status, since: Some(since) },
            None => QueueLine { queue, queue_status: QueueStatus::Open, since: None },
        };
        lines.into_iter().map(line).collect()
    }

    /// Fails if no matchmaker has the queue and it was never closed. If no matchmaker has run in the last hour, it only
    /// prints a note.
    fn check(&self, name: &QueueName) -> anyhow::Result<()> {
        if self.matched.is_empty() {
            note(format!(
                "no matchmaker has run in the last hour, so this command cannot check that queue {name} exists"
            ));
            return Ok(());
        }
        let names: Vec<_> = self.matched.iter().map(QueueName::as_str).collect();
        ensure!(
            self.matched.contains(name) || self.queue_statuses.contains_key(name),
            "no matchmaker has a queue {name}; the queues are: {}",
            names.join(", ")
        );
        Ok(())
    }

    async fn put(&self, queue: &QueueName, queue_status: &QueueStatus) -> anyhow::Result<()> {
        let body = serde_json::to_vec(queue_status)?;
        let stored = async { self.context.publish(queue_status::subject(queue), body.into()).await?.await };
        stored.await.context("cannot store the status of the queue")?;
        Ok(())
    }
}

/// Opens the stream of a bucket.
pub(crate) async fn bucket(context: &Context, name: &str) -> anyhow::Result<Stream> {
    let opened = context.get_stream(name).await;
    opened.with_context(|| format!("cannot open stream {name}; run `garage init`"))
}

/// The current entries of a bucket.
pub(crate) async fn entries(bucket: &Stream, filter: &str) -> anyhow::Result<Vec<StreamMessage>> {
    let subjects: Vec<_> = bucket.info_with_subjects(filter).await?.try_collect().await?;
    let mut entries = Vec::new();
    for (subject, _) in subjects {
        match bucket.get_last_raw_message_by_subject(&subject).await {
            Ok(entry) => entries.push(entry),
            // Somebody has removed it in the meantime.
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(entries)
}

/// Parses a reason: one line, without control characters.
pub(crate) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > queue_status::MAX_REASON || text.chars().any(char::is_control) {
        return Err(format!("use one line of 1 to {} characters", queue_status::MAX_REASON));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_of_limited_length() {
        assert_eq!(reason(" season's end ").unwrap(), "season's end");
        for bad in ["", "  ", "two\nlines", &"x".repeat(queue_status::MAX_REASON + 1)] {
            reason(bad).unwrap_err();
        }
    }
}
