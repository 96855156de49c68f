//! `garage backup` and `garage restore`: all streams, to a folder and back.
//!
//! A backup holds messages, not how far their readers had got. After a restore every reaction runs again over what the log
//! holds, finds done what is done, and does what is not: so that it does not matter that the streams, and the database,
//! are copied one after the other while all goes on. What is made of the log is copied before it: a history or a fold that
//! was ahead of its log would miss what the log appends next.

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

/// Written last: a folder without it is no backup.
const MANIFEST: &str = "backup.json";

/// What is made of the log: copied before it, and restored after it.
const OF_THE_LOG: [&str; 2] = [HISTORY, SNAPSHOTS];

/// Copies all streams to a new folder, while all goes on. The database is not among them: copy it afterwards.
#[derive(Debug, clap::Args)]
pub(crate) struct Backup {
    /// The folder to make.
    folder: PathBuf,
    #[command(flatten)]
    nats: Nats,
}

/// Makes all streams of a backup, on servers that have none. Then run `garage init`, and start the workers.
#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// The folder that `garage backup` made.
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
            () = shutdown.cancelled() => bail!("interrupted; remove {}, it is no backup", self.folder.display()),
        }
    }

    async fn copy(&self) -> anyhow::Result<()> {
        let folder = &self.folder;
        let client = self.nats.connect("cli").await?;
        let unmade = || format!("cannot make {}", folder.display());
        // What players did is nobody else's to read.
        fs::DirBuilder::new().mode(0o700).create(folder).await.with_context(unmade)?;
        let mut manifest = Manifest { begun: System.now(), streams: Vec::new() };
        let mut names: Vec<_> = setup::names().collect();
        names.sort_by_key(|name| !OF_THE_LOG.contains(&name.as_str()));
        for name in names {
            let taken = Snapshot::take(&client, &name, &file(folder, &name)).await;
            let taken = taken.with_context(|| format!("stream {name} is not copied"))?;
            say(format!("{name}: {}", taken.summary()));
            manifest.streams.push(taken);
        }
        let unwritten = || format!("cannot write {MANIFEST} to {}", folder.display());
        fs::write(folder.join("unfinished"), serde_json::to_vec_pretty(&manifest)?).await.with_context(unwritten)?;
        fs::File::open(folder.join("unfinished")).await.with_context(unwritten)?.sync_all().await?;
        fs::rename(folder.join("unfinished"), folder.join(MANIFEST)).await.with_context(unwritten)?;
        fs::File::open(folder).await.with_context(unwritten)?.sync_all().await?;
        say(format!("{} is a backup; now copy the database", folder.display()));
        Ok(())
    }
}

impl Restore {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        tokio::select! {
            done = self.make() => done,
            () = shutdown.cancelled() => bail!("interrupted; empty the servers' folders before you run it again"),
        }
    }

    async fn make(&self) -> anyhow::Result<()> {
        let folder = &self.folder;
        let manifest = fs::read(folder.join(MANIFEST)).await;
        let manifest = manifest.with_context(|| format!("{} is no backup, or not a whole one", folder.display()))?;
        let mut manifest: Manifest = serde_json::from_slice(&manifest)
            .with_context(|| format!("{MANIFEST} of {} cannot be read", folder.display()))?;
        manifest.streams.sort_by_key(|stream| stream.name().is_ok_and(|name| OF_THE_LOG.contains(&name)));
        let client = self.nats.connect("cli").await?;
        // All that can be wrong is looked for before anything is made.
        for stream in &manifest.streams {
            let name = stream.name()?;
            stream.check(&file(folder, name)).await?;
            let there = exists(&client, name).await?;
            ensure!(!there, "there is a stream {name} already; a backup is restored to servers without streams");
        }
        for stream in &manifest.streams {
            let name = stream.name()?;
            let put = stream.put(&client, &file(folder, name)).await;
            put.with_context(|| format!("stream {name} is not restored; empty the servers' folders and begin anew"))?;
            say(format!("{name}: {}", stream.summary()));
        }
        say(format!("restored as of {}; now restore the database and run `garage init`", when(manifest.begun)));
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
        Err(error) => Err(error).context("cannot ask nats for its streams"),
    }
}
