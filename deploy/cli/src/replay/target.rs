//! The targets of a replay: standard output, a file, or NATS subjects.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufWriter, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use async_nats::{
    Client, HeaderMap,
    jetstream::{
        self, Context,
        context::{GetStreamByNameErrorKind, PublishAckFuture},
    },
};
use garage_events::{event::TYPE_HEADER, subject::Prefix};
use tempfile::NamedTempFile;

use crate::{
    entry::LogEntry,
    report::{print, say},
};

/// The header with the sequence that a replayed event has in the log.
const SEQ_HEADER: &str = "Garage-Replay-Seq";

/// Maximum number of published messages that are not yet acknowledged.
const MAX_UNACKNOWLEDGED: usize = 256;

/// Where replayed events go.
pub(super) enum Target {
    /// Standard output, as JSON lines or as text lines.
    Output { json: bool },
    /// A file that appears when it is complete.
    File { path: PathBuf, force: bool, file: BufWriter<NamedTempFile> },
    /// Subjects under a prefix that no stream stores. Subscribers receive the events without an acknowledgement.
    Listeners { prefix: Prefix, client: Client },
    /// Subjects under a prefix that a stream of the operator stores and acknowledges.
    Stream { prefix: Prefix, context: Context, name: String, acks: VecDeque<(u64, PublishAckFuture)> },
}

impl Target {
    /// Opens a temporary file in the folder of `path`, so that it can be renamed to `path` at the end.
    pub(super) fn file(path: &Path, force: bool) -> anyhow::Result<Self> {
        ensure!(force || !path.exists(), "{} already exists; use --force to replace it", path.display());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = NamedTempFile::new_in(folder).with_context(|| format!("cannot write in {}", folder.display()))?;
        Ok(Self::File { path: path.to_owned(), force, file: BufWriter::new(file) })
    }

    /// Subjects under a prefix. Looks up whether a stream stores them.
    pub(super) async fn subjects(client: Client, prefix: Prefix) -> anyhow::Result<Self> {
        let context = jetstream::new(client.clone());
        match context.stream_by_subject(prefix.filter()).await {
            Ok(name) => Ok(Self::Stream { prefix, context, name, acks: VecDeque::new() }),
            Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => Ok(Self::Listeners { prefix, client }),
            Err(error) => Err(error).context("cannot look up which stream stores the prefix"),
        }
    }

    /// Whether the events go to standard output.
    pub(super) fn prints(&self) -> bool {
        matches!(self, Self::Output { .. })
    }

    /// Sends one event. Breaks when the reader has closed the pipe.
    pub(super) async fn take(&mut self, entry: &LogEntry) -> anyhow::Result<ControlFlow<()>> {
        match self {
            Self::Output { json } => return Ok(print(if *json { entry.json()? } else { entry.line() })?),
            Self::File { path, file, .. } => {
                writeln!(file, "{}", entry.json()?).with_context(|| format!("cannot write {}", path.display()))?;
            }
            Self::Listeners { prefix, client } => {
                let (subject, body) = (prefix.of(&entry.subject), entry.event.get().to_owned());
                client.publish_with_headers(subject, headers(entry), body.into()).await?;
            }
            Self::Stream { prefix, context, acks, name } => {
                let (subject, body) = (prefix.of(&entry.subject), entry.event.get().to_owned());
                let mut headers = headers(entry);
                // The stream stores an event once, even if a lost acknowledgement makes us publish it again.
                headers.insert(async_nats::header::NATS_MESSAGE_ID, format!("{subject}:{}", entry.seq));
                let ack = context.publish_with_headers(subject, headers, body.into()).await?;
                acks.push_back((entry.seq, ack));
                acknowledged(acks, name, MAX_UNACKNOWLEDGED).await?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Waits until all events have arrived, and prints where they are.
    pub(super) async fn finish(self, events: u64) -> anyhow::Result<()> {
        match self {
            Self::Output { .. } => {}
            Self::File { path, force, file } => {
                let failed = || format!("cannot write {}", path.display());
                let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(failed)?;
                file.as_file().sync_all().with_context(failed)?;
                let kept: Result<File, _> = if force { file.persist(&path) } else { file.persist_noclobber(&path) };
                kept.with_context(failed)?;
                say(format!("{events} events written to {}", path.display()));
            }
            Self::Listeners { prefix, client } => {
                client.flush().await?;
                say(format!(
                    "{events} events published to {}; no stream stores these subjects, so delivery is not confirmed",
                    prefix.filter()
                ));
            }
            Self::Stream { prefix, name, mut acks, .. } => {
                acknowledged(&mut acks, &name, 0).await?;
                say(format!("{events} events published to {}, and stored in stream {name}", prefix.filter()));
            }
        }
        Ok(())
    }

    /// Ends an unfinished replay. Returns how to continue from the sequence `next`.
    pub(super) async fn interrupt(self, next: u64) -> anyhow::Result<String> {
        match self {
            Self::File { path, .. } => return Ok(format!("{} was not written", path.display())),
            Self::Output { .. } => {}
            Self::Listeners { client, .. } => client.flush().await?,
            Self::Stream { name, mut acks, .. } => acknowledged(&mut acks, &name, 0).await?,
        }
        Ok(format!("continue with --from-seq {next}"))
    }
}

fn headers(entry: &LogEntry) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(TYPE_HEADER, entry.type_name.as_str());
    headers.insert(SEQ_HEADER, entry.seq.to_string());
    headers
}

/// Waits until at most `open` acknowledgements are missing.
async fn acknowledged(acks: &mut VecDeque<(u64, PublishAckFuture)>, stream: &str, open: usize) -> anyhow::Result<()> {
    while acks.len() > open {
        let Some((seq, ack)) = acks.pop_front() else { break };
        ack.await.with_context(|| {
            format!("stream {stream} did not store event {seq}; when it can, continue with --from-seq {seq}")
        })?;
    }
    Ok(())
}
