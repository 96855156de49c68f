//! Stores the pool's fold in the NATS object store. There is one snapshot, and each new one replaces it. A matchmaker
//! without a usable snapshot reads the whole log instead, so a snapshot only shortens restarts.

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
    PackedPlayer, Pool,
    snapshot::{self, Log},
};

/// Name of the object.
const NAME: &str = "matchmaker";

/// A new snapshot is due after this many new events. A restart reads this many events in 0.1 s.
const MIN_EVENTS: u64 = 10_000;

/// With more than 40,000 waiting players, a new snapshot is due only when the number of new events is a quarter of the
/// number of players. A restart reads these events faster than the snapshot, so more snapshots would hardly shorten it.
const PLAYERS_PER_EVENT: u64 = 4;

/// Minimum time between two snapshots.
const MIN_INTERVAL: Duration = Duration::from_secs(30);

/// With many waiting players, the minimum time between two snapshots is this time per player: two minutes for a million.
/// Each player is 75 bytes of a snapshot, so snapshots write at most 0.6 MB/s, however many players wait.
const INTERVAL_PER_PLAYER: Duration = Duration::from_micros(120);

/// Time-out of writing a snapshot. The server syncs each chunk to disk, and a million players are about 600 chunks.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time-out of reading the information about a snapshot, and of reading each chunk.
const READ_TIMEOUT: Duration = Duration::from_secs(4);

/// Number of tries to read a snapshot. The first try may fail because a new snapshot replaces the snapshot that is
/// being read.
const READ_TRIES: usize = 2;

/// Pause between these tries.
const READ_RETRY: Duration = Duration::from_millis(250);

/// Reads the pool from the last snapshot. Returns an empty pool if there is no usable snapshot.
pub async fn restore(context: &Context, log: Log) -> Pool {
    for _ in 0..READ_TRIES {
        let began = Instant::now();
        match read(context).await {
            Ok(None) => {
                tracing::info!("there is no snapshot; reading the whole log");
                return Pool::default();
            }
            Ok(Some(bytes)) => {
                let length = bytes.len();
                match spawn_blocking(move || snapshot::decode(&bytes, log)).await {
                    Ok(Ok(pool)) => {
                        let (event_seq, duration_ms) = (pool.seq(), began.elapsed().as_millis());
                        tracing::info!(event.seq = event_seq, bytes = length, duration_ms, "snapshot read");
                        return pool;
                    }
                    Ok(Err(error)) => tracing::warn!(%error, "ignoring the snapshot; reading the whole log"),
                    Err(error) => tracing::error!(%error, "cannot decode the snapshot; reading the whole log"),
                }
                return Pool::default();
            }
            Err(error) => tracing::warn!("cannot read the snapshot: {error:#}"),
        }
        sleep(READ_RETRY).await;
    }
    tracing::warn!("reading the whole log instead of the snapshot");
    Pool::default()
}

/// Reads the bytes of the object and checks their digest. It does not use the client's own reader, which panics if the
/// server is unavailable and hangs if a chunk is missing.
async fn read(context: &Context) -> anyhow::Result<Option<Vec<u8>>> {
    let info = async {
        let store = context.get_object_store(SNAPSHOT_BUCKET).await?;
        match store.info(NAME).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(None),
            Err(error) => Err(anyhow::Error::from(error)),
        }
    };
    let Some(info) = timeout(READ_TIMEOUT, info).await.context("NATS did not answer in time")?? else {
        return Ok(None);
    };
    let mut chunks = Follow::new(context.clone(), SNAPSHOTS, vec![snapshot_pieces(&info.nuid)], 1);
    let mut bytes = Vec::new();
    for _ in 0..info.chunks {
        let chunk = timeout(READ_TIMEOUT, chunks.next()).await.context("its chunks did not arrive in time")?;
        bytes.extend_from_slice(&chunk.body);
    }
    let digest = format!("SHA-256={}", URL_SAFE.encode(Sha256::digest(&bytes)));
    ensure!(info.digest == Some(digest), "its digest does not match");
    Ok(Some(bytes))
}

/// Writes a snapshot that replaces the previous one. If the process is killed meanwhile, the previous snapshot remains,
/// and the server deletes the written chunks when they reach their maximum age.
///
/// # Errors
/// When the object store is unavailable or rejects the object.
pub async fn write(context: &Context, bytes: Vec<u8>) -> anyhow::Result<()> {
    let store = context.get_object_store(SNAPSHOT_BUCKET).await?;
    let mut bytes = Cursor::new(bytes);
    crash::effect(Point::SnapshotWritten, store.put(NAME, &mut bytes)).await?;
    Ok(())
}

/// Writes snapshots in the background while the pool continues to change.
#[derive(Debug)]
pub(crate) struct Writer {
    context: Context,
    log: Log,
    /// The last sequence in the last written snapshot.
    written: Arc<AtomicU64>,
    /// When the last write started.
    started: Option<Instant>,
    writing: Option<JoinHandle<()>>,
}

impl Writer {
    /// `written` is the last sequence in the existing snapshot, or 0.
    pub(crate) fn new(context: Context, log: Log, written: u64) -> Self {
        Self { context, log, written: Arc::new(written.into()), started: None, writing: None }
    }

    /// Starts to write a snapshot if one is due and none is being written.
    pub(crate) fn offer(&mut self, pool: &Pool) {
        let busy = self.writing.as_ref().is_some_and(|writing| !writing.is_finished());
        let players = pool.len();
        let interval = INTERVAL_PER_PLAYER.saturating_mul(u32::try_from(players).unwrap_or(u32::MAX)).max(MIN_INTERVAL);
        let events = (players as u64 / PLAYERS_PER_EVENT).max(MIN_EVENTS);
        let due = self.started.is_none_or(|started| started.elapsed() >= interval);
        if !busy && due && pool.seq() >= self.written.load(Ordering::Relaxed) + events {
            self.start(pool);
        }
    }

    /// Writes a final snapshot if there are events after the previous one.
    pub(crate) async fn finish(mut self, pool: &Pool) {
        if let Some(writing) = self.writing.take() {
            // The task has a time-out, and logs its own failures.
            let _ = writing.await;
        }
        if pool.seq() > self.written.load(Ordering::Relaxed) {
            self.start(pool);
        }
        if let Some(writing) = self.writing.take() {
            let _ = writing.await;
        }
    }

    fn start(&mut self, pool: &Pool) {
        self.started = Some(Instant::now());
        let (context, log, written) = (self.context.clone(), self.log, Arc::clone(&self.written));
        // The entries are shared. So this takes the main loop little time, and the rest happens in the background.
        let (began, seq, entries) = (Instant::now(), pool.seq(), pool.folded());
        self.writing = Some(tokio::spawn(async move {
            let players = entries.len();
            match timeout(WRITE_TIMEOUT, encode_and_write(&context, log, seq, entries)).await.context("timed out") {
                Ok(Ok(())) => {
                    written.store(seq, Ordering::Relaxed);
                    metrics::counter!("garage_snapshots_total").increment(1);
                    let duration_ms = began.elapsed().as_millis();
                    tracing::info!(event.seq = seq, players, duration_ms, "snapshot written");
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
    entries: Vec<Arc<PackedPlayer>>,
) -> anyhow::Result<()> {
    let bytes = spawn_blocking(move || snapshot::encode(log.created, seq, &entries)).await??;
    write(context, bytes).await
}
