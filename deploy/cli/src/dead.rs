//! `garage dead`: the messages that workers gave up.

use anyhow::{Context, bail, ensure};
use async_nats::{
    Client,
    jetstream::{self, message::StreamMessage},
};
use garage_events::{
    jetstream::reader::Reader,
    letter::Letter,
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

/// The messages that workers gave up, each with its error.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Dead {
    /// Lists them, the oldest first.
    List(List),
    /// Shows one.
    Show(Show),
    /// Has the worker that gave a message up handle it again; removes the letter once it has.
    Retry(Retry),
}

/// Lists them, the oldest first.
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only those of this worker, as session, or of one of its consumers, as session-reports.
    #[arg(long, value_name = "WORKER")]
    worker: Option<String>,
    /// Prints JSON lines: letter, buried, error, consumer, stream, seq, time, subject, body.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

/// Shows one.
#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// Its number, as `garage dead list` has it.
    letter: u64,
    /// Prints a JSON line: letter, buried, error, consumer, stream, seq, time, subject, body.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

/// Has the worker that gave a message up handle it again; removes the letter once it has.
#[derive(Debug, clap::Args)]
pub(crate) struct Retry {
    /// Their numbers, as `garage dead list` has them.
    #[arg(required_unless_present = "all")]
    letters: Vec<u64>,
    /// All of them, the oldest first.
    #[arg(long, conflicts_with = "letters")]
    all: bool,
    /// Only those of this worker, as session, or of one of its consumers, as session-reports.
    #[arg(long, value_name = "WORKER", requires = "all")]
    worker: Option<String>,
    #[command(flatten)]
    nats: Nats,
}

/// A letter with its place. Its fields are those of a JSON line, and stay.
#[derive(Debug, Serialize)]
struct Buried {
    letter: u64,
    #[serde(with = "time::serde::rfc3339")]
    buried: OffsetDateTime,
    #[serde(flatten)]
    content: Letter,
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
        let letters = all(&reader, self.worker.as_deref()).await?;
        if letters.is_empty() && !self.json {
            say("no dead letters");
        }
        for letter in letters {
            let line = if self.json { serde_json::to_string(&letter)? } else { letter.line() };
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
        let letter = one(&reader, self.letter).await?;
        if self.json {
            say(serde_json::to_string(&letter)?);
        } else {
            letter.show();
        }
        Ok(())
    }
}

impl Retry {
    async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let client = self.nats.connect("cli").await?;
        let reader = Reader::open(client.clone(), DEAD).await?;
        let letters = if self.all {
            all(&reader, self.worker.as_deref()).await?
        } else {
            let mut letters = Vec::new();
            for number in self.letters {
                letters.push(one(&reader, number).await?);
            }
            letters
        };
        if letters.is_empty() {
            say("no dead letters");
        }
        let (count, mut left) = (letters.len(), 0);
        for (done, letter) in letters.iter().enumerate() {
            let retried = tokio::select! {
                // Whether a letter that was asked for is handled is unknown then; it is retried without harm.
                () = shutdown.cancelled() => bail!("interrupted after {done} of {count} letters; the others are kept"),
                retried = letter.retry(&client, &reader) => retried,
            };
            match retried {
                Ok(()) => say(format!("{}: handled by {}", letter.letter, letter.content.consumer)),
                Err(error) => {
                    left += 1;
                    note(format!("{}: {error:#}", letter.letter));
                }
            }
        }
        ensure!(left == 0, "{left} of {count} letters are kept");
        Ok(())
    }
}

impl Buried {
    fn of(letter: u64, buried: OffsetDateTime, at: &str, message: &[u8]) -> Self {
        let consumer = subject::dead_of(at).unwrap_or(at).to_owned();
        let content = match serde_json::from_slice::<Letter>(message) {
            Ok(content) => Letter { consumer, ..content },
            // Shown all the same: somebody wrote it, and somebody looks for it.
            Err(error) => {
                let error = format!("the letter itself cannot be read: {error}");
                let (stream, subject) = (DEAD.into(), at.into());
                let (body, raw) = (String::new(), None);
                Letter { error, consumer, stream, seq: letter, time: buried, subject, body, raw }.with_body(message)
            }
        };
        Self { letter, buried, content }
    }

    fn line(&self) -> String {
        let Self { letter, buried, content } = self;
        let Letter { consumer, subject, error, .. } = content;
        format!("{letter:>6}  {}  {consumer:<15}  {subject}  {}", when(*buried), error.escape_debug())
    }

    fn show(&self) {
        let Self { letter, buried, content } = self;
        say(format!("letter    {letter}, given up by {} at {}", content.consumer, when(*buried)));
        say(format!("error     {}", content.error.escape_debug()));
        say(format!("message   {} of stream {}, at {}", content.seq, content.stream, when(content.time)));
        say(format!("subject   {}", content.subject));
        match serde_json::from_str::<Value>(&content.body) {
            Ok(body) => say(format!("body      {body:#}")),
            Err(_) => say(format!("body      {}", content.body.escape_debug())),
        }
    }

    /// Returns once the message is handled and the letter is gone.
    async fn retry(&self, client: &Client, reader: &Reader) -> anyhow::Result<()> {
        svc::retry(client, &self.content.consumer, self.letter).await.map_err(|error| match error {
            CallError::Refused { message, .. } => anyhow::anyhow!("not handled: {message}"),
            CallError::Unavailable { reason, .. } => {
                anyhow::anyhow!("the worker of consumer {} does not answer: {reason}", self.content.consumer)
            }
            CallError::Malformed { .. } => error.into(),
        })?;
        let dead = jetstream::new(client.clone()).get_stream_no_info(DEAD).await?;
        match dead.delete_message(self.letter).await {
            Ok(_) => Ok(()),
            // Another operator did the same.
            Err(_) if reader.get(self.letter).await?.is_none() => Ok(()),
            Err(error) => Err(error).context("handled, but the letter cannot be removed; retrying it does no harm"),
        }
    }
}

/// The letters at present, of a worker or of all.
async fn all(reader: &Reader, worker: Option<&str>) -> anyhow::Result<Vec<Buried>> {
    let bounds = reader.bounds().await?;
    let mut range = reader.range(vec![ALL_DEAD.into()], bounds.first, bounds.last);
    let mut letters = Vec::new();
    while let Some(message) = range.next().await? {
        let letter = Buried::of(message.seq, message.time, &message.subject, &message.body);
        if worker.is_none_or(|worker| is_of(&letter.content.consumer, worker)) {
            letters.push(letter);
        }
    }
    Ok(letters)
}

async fn one(reader: &Reader, number: u64) -> anyhow::Result<Buried> {
    let message: Option<StreamMessage> = reader.get(number).await?;
    let message = message.with_context(|| format!("there is no dead letter {number}; see `garage dead list`"))?;
    Ok(Buried::of(message.sequence, message.time, &message.subject, &message.payload))
}

/// A consumer is named after its worker, or after it and what it reads.
fn is_of(consumer: &str, worker: &str) -> bool {
    consumer.strip_prefix(worker).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_all_its_consumers() {
        assert!(is_of("session", "session") && is_of("session-reports", "session"));
        assert!(is_of("session-reports", "session-reports"));
        assert!(!is_of("session", "session-reports") && !is_of("sessions", "session") && !is_of("director", "session"));
    }
}
