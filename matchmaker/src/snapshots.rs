//! The pool's fold in NATS's object store: one snapshot, replaced by the next. A reader who finds none of use reads the
//! log, so that nothing depends on it but the time that a restart takes.

use std::{
    io::Cursor,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{Context, object_store::InfoErrorKind};
use base64::{Engine, engine::general_purpose::URL_SAFE};
use garage_events::{
    crash::{self, Point},
    jetstream::follow::Follow,
    subject::{SNAPSHOT_BUCKET, SNAPSHOTS, snapshot_pieces},
};
use sha2::{Digest, Sha256};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{sleep, timeout},
};

use crate::domain::{
    Pool, WaitingPlayer,
    snapshot::{self, Log},
};

/// The object.
const NAME: &str = "matchmaker";

/// How far the log must have gone on before another one is worth its writing: a restart reads so many events in a tenth
/// of a second.
const ENOUGH: u64 = 10_000;

/// Between two of them, however much happens.
const EVERY: Duration = Duration::from_secs(30);

/// How long one may take to be written. The server syncs each piece, of which 100,000 tickets are some 200.
const WRITE: Duration = Duration::from_secs(20);

/// How long one may take to be read; and how often that is tried, because the next may replace it meanwhile.
const READ: Duration = Duration::from_secs(4);
const READS: usize = 2;

/// Before it is tried again.
const AGAIN: Duration = Duration::from_millis(250);

/// The pool of the last snapshot; an empty one where there is none of use.
pub async fn restore(context: &Context, log: Log) -> Pool {
    for _ in 0..READS {
        let read = timeout(READ, read(context)).await.context("its pieces do not come");
        match read.and_then(|read| read) {
            Ok(None) => {
                tracing::info!("there is no snapshot; the log is read");
                return Pool::default();
            }
            Ok(Some(bytes)) => match snapshot::decode(&bytes, log) {
                Ok(pool) => {
                    tracing::info!(event.seq = pool.seq(), bytes = bytes.len(), "snapshot read");
                    return pool;
                }
                Err(error) => {
                    tracing::warn!(%error, "the snapshot is ignored; the log is read");
                    return Pool::default();
                }
            },
            Err(error) => tracing::warn!("the snapshot cannot be read: {error:#}"),
        }
        sleep(AGAIN).await;
    }
    tracing::warn!("the log is read instead of the snapshot");
    Pool::default()
}

/// The bytes of the object, checked. Not by the client's own reader: it panics when the server is away, and never ends
/// when a piece is missing.
async fn read(context: &Context) -> anyhow::Result<Option<Vec<u8>>> {
    let store = context.get_object_store(SNAPSHOT_BUCKET).await?;
    let info = match store.info(NAME).await {
        Ok(info) => info,
        Err(error) if error.kind() == InfoErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut pieces = Follow::new(context.clone(), SNAPSHOTS, vec![snapshot_pieces(&info.nuid)], 1);
    let mut bytes = Vec::new();
    for _ in 0..info.chunks {
        bytes.extend_from_slice(&pieces.next().await.body);
    }
    let digest = format!("SHA-256={}", URL_SAFE.encode(Sha256::digest(&bytes)));
    ensure!(info.digest == Some(digest), "its digest is another");
    Ok(Some(bytes))
}

/// Writes the bytes in the place of the last snapshot, and removes that one. Whoever is killed meanwhile leaves the last
/// one as it is, and pieces that the server forgets with time.
///
/// # Errors
/// What the server said.
pub async fn write(context: &Context, bytes: Vec<u8>) -> anyhow::Result<()> {
    let store = context.get_object_store(SNAPSHOT_BUCKET).await?;
    let mut bytes = Cursor::new(bytes);
    crash::effect(Point::SnapshotWritten, store.put(NAME, &mut bytes)).await?;
    Ok(())
}

/// Writes snapshots of a pool that goes on meanwhile.
#[derive(Debug)]
pub(crate) struct Writer {
    context: Context,
    log: Log,
    /// How far the last one goes.
    written: Arc<AtomicU64>,
    begun: Option<Instant>,
    writing: Option<JoinHandle<()>>,
}

impl Writer {
    /// One that goes on from the snapshot that ended at `written`.
    pub(crate) fn new(context: Context, log: Log, written: u64) -> Self {
        Self { context, log, written: Arc::new(written.into()), begun: None, writing: None }
    }

    /// Begins to write one, if it is worth it, and none is being written.
    pub(crate) fn offer(&mut self, pool: &Pool) {
        let busy = self.writing.as_ref().is_some_and(|writing| !writing.is_finished());
        let due = self.begun.is_none_or(|begun| begun.elapsed() >= EVERY);
        if !busy && due && pool.seq() >= self.written.load(Ordering::Relaxed) + ENOUGH {
            self.begin(pool);
        }
    }

    /// Writes the last one, if anything has happened since the one before.
    pub(crate) async fn finish(mut self, pool: &Pool) {
        if let Some(writing) = self.writing.take() {
            // It has a deadline, and has said what went wrong.
            let _ = writing.await;
        }
        if pool.seq() > self.written.load(Ordering::Relaxed) {
            self.begin(pool);
        }
        if let Some(writing) = self.writing.take() {
            let _ = writing.await;
        }
    }

    fn begin(&mut self, pool: &Pool) {
        self.begun = Some(Instant::now());
        let (context, log, written) = (self.context.clone(), self.log, Arc::clone(&self.written));
        let (seq, entries) = (pool.seq(), pool.folded());
        self.writing = Some(tokio::spawn(async move {
            let tickets = entries.len();
            match timeout(WRITE, encode_and_write(&context, log, seq, entries)).await.context("no answer") {
                Ok(Ok(())) => {
                    written.store(seq, Ordering::Relaxed);
                    metrics::counter!("garage_snapshots_total").increment(1);
                    tracing::info!(event.seq = seq, tickets, "snapshot written");
                }
                Ok(Err(error)) | Err(error) => tracing::warn!("snapshot not written: {error:#}"),
            }
        }));
    }
}

async fn encode_and_write(
    context: &Context,
    log: Log,
    seq: u64,
    entries: Vec<Arc<WaitingPlayer>>,
) -> anyhow::Result<()> {
    let bytes = spawn_blocking(move || snapshot::encode(log.created, seq, &entries)).await??;
    write(context, bytes).await
}
