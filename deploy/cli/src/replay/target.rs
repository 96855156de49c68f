//! Where replayed events go.

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

/// The header that tells where in the log a replayed event stands.
const SEQ_HEADER: &str = "Garage-Replay-Seq";

/// Messages whose acknowledgement may be awaited at a time.
const UNACKNOWLEDGED: usize = 256;

/// Where replayed events go.
pub(super) enum Target {
    /// To standard output, as JSON or for people.
    Output { json: bool },
    /// To a file that appears once it is whole.
    File { path: PathBuf, force: bool, file: BufWriter<NamedTempFile> },
    /// To whoever listens on subjects of a prefix.
    Listeners { prefix: Prefix, client: Client },
    /// Into a stream of the operator's, which acknowledges each.
    Stream { prefix: Prefix, context: Context, name: String, acks: VecDeque<(u64, PublishAckFuture)> },
}

impl Target {
    /// A file beside the one to be, so that it can be renamed to it.
    pub(super) fn file(path: &Path, force: bool) -> anyhow::Result<Self> {
        ensure!(force || !path.exists(), "{} exists already; --force replaces it", path.display());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = NamedTempFile::new_in(folder).with_context(|| format!("cannot write in {}", folder.display()))?;
        Ok(Self::File { path: path.to_owned(), force, file: BufWriter::new(file) })
    }

    /// Subjects of a prefix: the stream that takes them, if there is one, or else who listens.
    pub(super) async fn subjects(client: Client, prefix: Prefix) -> anyhow::Result<Self> {
        let context = jetstream::new(client.clone());
        match context.stream_by_subject(prefix.filter()).await {
            Ok(name) => Ok(Self::Stream { prefix, context, name, acks: VecDeque::new() }),
            Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => Ok(Self::Listeners { prefix, client }),
            Err(error) => Err(error).context("cannot ask which stream takes the prefix"),
        }
    }

    /// Whether it writes to standard output.
    pub(super) fn prints(&self) -> bool {
        matches!(self, Self::Output { .. })
    }

    /// Takes one event; breaks when there is nobody who would take another.
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
                // One that is published again, because its acknowledgement was lost, is stored once.
                headers.insert(async_nats::header::NATS_MESSAGE_ID, format!("{subject}:{}", entry.seq));
                let ack = context.publish_with_headers(subject, headers, body.into()).await?;
                acks.push_back((entry.seq, ack));
                acknowledged(acks, name, UNACKNOWLEDGED).await?;
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Sees to it that all that was taken has arrived, and tells where.
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
                    "{events} events published to {}; no stream takes these, so nobody acknowledged",
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

    /// What there is of an unfinished replay, and how to go on with it from a sequence.
    pub(super) async fn interrupt(self, next: u64) -> anyhow::Result<String> {
        match self {
            Self::File { path, .. } => return Ok(format!("{} was not written", path.display())),
            Self::Output { .. } => {}
            Self::Listeners { client, .. } => client.flush().await?,
            Self::Stream { name, mut acks, .. } => acknowledged(&mut acks, &name, 0).await?,
        }
        Ok(format!("go on with --from-seq {next}"))
    }
}

fn headers(entry: &LogEntry) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(TYPE_HEADER, entry.type_name.as_str());
    headers.insert(SEQ_HEADER, entry.seq.to_string());
    headers
}

/// Waits until at most so many acknowledgements are open.
async fn acknowledged(acks: &mut VecDeque<(u64, PublishAckFuture)>, stream: &str, open: usize) -> anyhow::Result<()> {
    while acks.len() > open {
        let Some((seq, ack)) = acks.pop_front() else { break };
        ack.await.with_context(|| {
            format!("stream {stream} did not store event {seq}; go on with --from-seq {seq} once it does")
        })?;
    }
    Ok(())
}
