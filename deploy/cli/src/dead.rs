//! `garage dead`: lists, shows and retries dead letters, the messages that a worker could not handle.

use anyhow::{Context, bail, ensure};
use async_nats::{
    Client,
    jetstream::{self, message::StreamMessage},
};
use garage_events::{
    dead_letter::DeadLetter,
    jetstream::reader::Reader,
    subject::{self, ALL_DEAD, DEAD},
    svc::{self, CallError},
};
use garage_worker::{Shutdown, config::Nats};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;

use crate::{
    entry::when,
    report::{note, print, say},
};

/// Lists, shows and retries dead letters: messages that a worker could not handle.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Dead {
    /// Lists dead letters, the oldest first.
    List(List),
    /// Shows a dead letter with its message.
    Show(Show),
    /// Asks the worker to handle the message again, and removes the dead letter after a success.
    Retry(Retry),
}

/// Lists dead letters, the oldest first.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only dead letters of this worker (`session`) or of one of its consumers (`session-reports`).
    #[arg(long, value_name = "WORKER")]
    worker: Option<String>,
    /// Prints JSON lines: letter, buried, error, consumer, stream, seq, time, subject, body. A long message also has
    /// length: then body is its beginning.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

/// Shows a dead letter with its message.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// The number of the dead letter, from `garage dead list`.
    #[arg(value_name = "NUMBER")]
    number: u64,
    /// Prints a JSON line: letter, buried, error, consumer, stream, seq, time, subject, body. A long message also has
    /// length: then body is its beginning.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

/// Asks the worker to handle the message again, and removes the dead letter after a success.
#[derive(Debug, clap::Args)]
pub(crate) struct Retry {
    /// The numbers of the dead letters, from `garage dead list`.
    #[arg(required_unless_present = "all", value_name = "NUMBERS")]
    numbers: Vec<u64>,
    /// All dead letters, the oldest first.
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
    /// Only dead letters of this worker (`session`) or of one of its consumers (`session-reports`).
    #[arg(long, value_name = "WORKER", requires = "all")]
    worker: Option<String>,
    #[command(flatten)]
    nats: Nats,
}

/// A dead letter and its number. The field names appear in JSON lines and must not change.
#[derive(Debug, Serialize)]
struct StoredDeadLetter {
    #[serde(rename = "letter")]
    number: u64,
    #[serde(rename = "buried", with = "time::serde::rfc3339")]
    dead_lettered_at: OffsetDateTime,
    #[serde(flatten)]
    content: DeadLetter,
}

impl Dead {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        match self {
            Self::List(list) => list.run().await,
            Self::Show(show) => show.run().await,
            Self::Retry(retry) => retry.run(shutdown).await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let reader = Reader::open(self.nats.connect("cli").await?, DEAD).await?;
        let dead_letters = all(&reader, self.worker.as_deref()).await?;
        if dead_letters.is_empty() && !self.json {
            say("no dead letters");
        }
        for dead_letter in dead_letters {
            let line = if self.json { serde_json::to_string(&dead_letter)? } else { dead_letter.line() };
            if print(line)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let reader = Reader::open(self.nats.connect("cli").await?, DEAD).await?;
        let dead_letter = one(&reader, self.number).await?;
        if self.json {
            say(serde_json::to_string(&dead_letter)?);
        } else {
            dead_letter.show();
        }
        Ok(())
    }
}

impl Retry {
    async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let client = self.nats.connect("cli").await?;
        let reader = Reader::open(client.clone(), DEAD).await?;
        let dead_letters = if self.all {
            all(&reader, self.worker.as_deref()).await?
        } else {
            let mut dead_letters = Vec::new();
            for number in self.numbers {
                dead_letters.push(one(&reader, number).await?);
            }
            dead_letters
        };
        if dead_letters.is_empty() {
            say("no dead letters");
        }
        let (count, mut left) = (dead_letters.len(), 0);
        for (done, dead_letter) in dead_letters.iter().enumerate() {
            let retried = tokio::select! {
                // The worker may still handle the message. Retrying it again does no harm.
                () = shutdown.cancelled() => bail!("interrupted after {done} of {count}; the others are kept"),
                retried = dead_letter.retry(&client, &reader) => retried,
            };
            match retried {
                Ok(()) => say(format!("{}: handled by {}", dead_letter.number, dead_letter.content.consumer)),
                Err(error) => {
                    left += 1;
                    note(format!("{}: {error:#}", dead_letter.number));
                }
            }
        }
        ensure!(left == 0, "{left} of {count} dead letters are kept");
        Ok(())
    }
}

impl StoredDeadLetter {
    fn of(number: u64, dead_lettered_at: OffsetDateTime, stored_on: &str, message: &[u8]) -> Self {
        let consumer = subject::dead_of(stored_on).unwrap_or(stored_on).to_owned();
        let content = match serde_json::from_slice::<DeadLetter>(message) {
            Ok(content) => DeadLetter { consumer, ..content },
            // It is shown nevertheless, so that an operator can find and remove it.
            Err(error) => {
                let error = format!("the dead letter itself cannot be read: {error}");
                let (stream, subject) = (DEAD.into(), stored_on.into());
                let (body, raw, length) = (String::new(), None, None);
                DeadLetter { error, consumer, stream, seq: number, time: dead_lettered_at, subject, body, raw, length }
                    .with_body(message)
            }
        };
        Self { number, dead_lettered_at, content }
    }

    fn line(&self) -> String {
        let Self { number, dead_lettered_at, content } = self;
        let DeadLetter { consumer, subject, error, .. } = content;
        format!("{number:>6}  {}  {consumer:<15}  {subject}  {}", when(*dead_lettered_at), error.escape_debug())
    }

    fn show(&self) {
        let Self { number, dead_lettered_at, content } = self;
        say(format!("number    {number}, stored for {} at {}", content.consumer, when(*dead_lettered_at)));
        say(format!("error     {}", content.error.escape_debug()));
        say(format!("message   {} of stream {}, at {}", content.seq, content.stream, when(content.time)));
        say(format!("subject   {}", content.subject));
        if let Some(length) = content.length {
            say(format!("length    {length} bytes; this is the beginning, and a retry reads the rest from the stream"));
        }
        match serde_json::from_str::<Value>(&content.body) {
            Ok(body) => say(format!("body      {body:#}")),
            Err(_) => say(format!("body      {}", content.body.escape_debug())),
        }
    }

    /// Returns when the message is handled and the dead letter is removed.
    async fn retry(&self, client: &Client, reader: &Reader) -> anyhow::Result<()> {
        svc::retry(client, &self.content.consumer, self.number).await.map_err(|error| match error {
            CallError::Refused { message, .. } => anyhow::anyhow!("not handled: {message}"),
            CallError::Unavailable { reason, .. } => {
                anyhow::anyhow!("the worker of consumer {} does not answer: {reason}", self.content.consumer)
            }
            CallError::Malformed { .. } => error.into(),
        })?;
        let dead = jetstream::new(client.clone()).get_stream_no_info(DEAD).await?;
        match dead.delete_message(self.number).await {
            Ok(_) => Ok(()),
            // Another operator has removed it.
            Err(_) if reader.get(self.number).await?.is_none() => Ok(()),
            Err(error) => Err(error).context("handled, but cannot remove the dead letter; retrying it does no harm"),
        }
    }
}

/// The current dead letters, of one worker or of all.
async fn all(reader: &Reader, worker: Option<&str>) -> anyhow::Result<Vec<StoredDeadLetter>> {
    let bounds = reader.bounds().await?;
    let mut range = reader.range(vec![ALL_DEAD.into()], bounds.first, bounds.last);
    let mut dead_letters = Vec::new();
    while let Some(message) = range.next().await? {
        let dead_letter = StoredDeadLetter::of(message.seq, message.time, &message.subject, &message.body);
        if worker.is_none_or(|worker| is_of(&dead_letter.content.consumer, worker)) {
            dead_letters.push(dead_letter);
        }
    }
    Ok(dead_letters)
}

async fn one(reader: &Reader, number: u64) -> anyhow::Result<StoredDeadLetter> {
    let message: Option<StreamMessage> = reader.get(number).await?;
    let message = message.with_context(|| format!("there is no dead letter {number}; see `garage dead list`"))?;
    Ok(StoredDeadLetter::of(message.sequence, message.time, &message.subject, &message.payload))
}

/// Whether a consumer belongs to the worker, or is the consumer with this name. Consumers are named `<worker>` or
/// `<worker>-<source of its messages>`.
fn is_of(consumer: &str, worker: &str) -> bool {
    consumer.strip_prefix(worker).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_selects_a_worker_with_all_its_consumers_or_one_consumer() {
        assert!(is_of("session", "session") && is_of("session-reports", "session"));
        assert!(is_of("session-reports", "session-reports"));
        assert!(!is_of("session", "session-reports") && !is_of("sessions", "session") && !is_of("director", "session"));
    }
}
