//! `garage backup` and `garage restore`: copies all NATS streams to a folder and back.
//!
//! A backup contains messages, but not the positions of consumers. After a restore, every reaction runs again on the
//! whole log. It finds the completed work, and does the remaining work. Therefore the streams and the database may be
//! copied one after the other while Garage runs. Streams that are derived from the log are copied before it: a history
//! or a snapshot that is ahead of its log would miss the events that the log appends next.

mod snapshot;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use async_nats::{Client, jetstream};
use garage_events::{
    env::{Env, System},
    jetstream::setup,
    subject::{HISTORY, SNAPSHOTS},
};
use garage_worker::{Shutdown, config::Nats};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::fs;

use self::snapshot::Snapshot;
use crate::{entry::when, report::say};

/// Written last. A folder without this file is not a complete backup.
const MANIFEST: &str = "backup.json";

/// The streams that are derived from the log. They are copied before it, and restored after it.
const DERIVED: [&str; 2] = [HISTORY, SNAPSHOTS];

/// Copies all NATS streams to a new folder, while Garage runs. It does not copy the database: do that afterwards.
#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    /// The folder to create.
    folder: PathBuf,
    #[command(flatten)]
    nats: Nats,
}

/// Creates all streams of a backup, on NATS servers that have no streams. Afterwards, restore the database, run
/// `garage init`, and start the workers.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// The folder that `garage backup` has written.
    folder: PathBuf,
    #[command(flatten)]
    nats: Nats,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    #[serde(with = "time::serde::rfc3339")]
    begun: OffsetDateTime,
    streams: Vec<Snapshot>,
}

impl Backup {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        tokio::select! {
            done = self.copy() => done,
            () = shutdown.cancelled() => bail!("interrupted; remove {}, it is not a backup", self.folder.display()),
        }
    }

    async fn copy(&self) -> anyhow::Result<()> {
        let folder = &self.folder;
        let client = self.nats.connect("cli").await?;
        let not_created = || format!("cannot create {}", folder.display());
        // The folder contains what players did: only its owner may read it.
        fs::DirBuilder::new().mode(0o700).create(folder).await.with_context(not_created)?;
        let mut manifest = Manifest { begun: System.now(), streams: Vec::new() };
        let mut names: Vec<_> = setup::names().collect();
        names.sort_by_key(|name| !DERIVED.contains(&name.as_str()));
        for name in names {
            let taken = Snapshot::take(&client, &name, &file(folder, &name)).await;
            let taken = taken.with_context(|| format!("cannot copy stream {name}"))?;
            say(format!("{name}: {}", taken.summary()));
            manifest.streams.push(taken);
        }
        let not_written = || format!("cannot write {MANIFEST} to {}", folder.display());
        fs::write(folder.join("unfinished"), serde_json::to_vec_pretty(&manifest)?).await.with_context(not_written)?;
        fs::File::open(folder.join("unfinished")).await.with_context(not_written)?.sync_all().await?;
        fs::rename(folder.join("unfinished"), folder.join(MANIFEST)).await.with_context(not_written)?;
        fs::File::open(folder).await.with_context(not_written)?.sync_all().await?;
        say(format!("the backup in {} is complete; now copy the database", folder.display()));
        Ok(())
    }
}

impl Restore {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        tokio::select! {
            done = self.make() => done,
            () = shutdown.cancelled() => bail!("interrupted; empty the data folders of NATS before you run it again"),
        }
    }

    async fn make(&self) -> anyhow::Result<()> {
        let folder = &self.folder;
        let manifest = fs::read(folder.join(MANIFEST)).await;
        let manifest = manifest.with_context(|| format!("{} is not a complete backup", folder.display()))?;
        let mut manifest: Manifest = serde_json::from_slice(&manifest)
            .with_context(|| format!("cannot read {MANIFEST} in {}", folder.display()))?;
        manifest.streams.sort_by_key(|stream| stream.name().is_ok_and(|name| DERIVED.contains(&name)));
        let client = self.nats.connect("cli").await?;
        // All checks come before the first stream is created.
        for stream in &manifest.streams {
            let name = stream.name()?;
            stream.check(&file(folder, name)).await?;
            let found = exists(&client, name).await?;
            ensure!(!found, "stream {name} already exists; restore a backup to servers without streams");
        }
        for stream in &manifest.streams {
            let name = stream.name()?;
            let put = stream.put(&client, &file(folder, name)).await;
            put.with_context(|| format!("cannot restore stream {name}; empty the data folders of NATS and retry"))?;
            say(format!("{name}: {}", stream.summary()));
        }
        say(format!("restored the backup of {}; now restore the database and run `garage init`", when(manifest.begun)));
        Ok(())
    }
}

fn file(folder: &Path, stream: &str) -> PathBuf {
    folder.join(format!("{stream}.snapshot"))
}

async fn exists(client: &Client, stream: &str) -> anyhow::Result<bool> {
    match jetstream::new(client.clone()).get_stream(stream).await {
        Ok(_) => Ok(true),
        Err(error) if setup::is_missing(&error) => Ok(false),
        Err(error) => Err(error).context("cannot look up a stream in NATS"),
    }
}
