//! Starts a nats-server for one test and creates the log on it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use async_nats::Client;
use futures::StreamExt;
use garage_events::{
    deadline::exit_blocking,
    event::Recorded,
    id::PlayerId,
    inventory::Event,
    jetstream::{JetStreamLog, setup},
    log::Load,
    subject::{Aggregate, STREAM},
};

use crate::support::until;

pub(crate) struct Nats {
    process: Child,
    pub(crate) url: String,
    _folder: tempfile::TempDir,
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = exit_blocking(&mut self.process, Duration::from_secs(60));
    }
}

/// The nats-server that deploy/local/install.sh has installed, or the one in PATH.
fn program() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let installed = home.join(".cache/garage/bin/nats-server-2.15.1/nats-server");
    if installed.exists() { installed } else { "nats-server".into() }
}

impl Nats {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = folder.path().join("nats.conf");
        // Without max_file_store, the log does not fit if less than 14 GiB of the disk are free.
        let store = folder.path().join("store");
        std::fs::write(&config, format!("jetstream {{ store_dir: {store:?}, max_file_store: 64GB }}\n")).unwrap();
        let process = Command::new(program())
            .args(["--addr", "127.0.0.1", "--port", &port.to_string()])
            .arg("--config")
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("nats-server ({error}) is missing; install it with deploy/local/install.sh")
            });
        let nats = Self { process, url: format!("nats://127.0.0.1:{port}"), _folder: folder };
        until("nats-server listens", async || async_nats::connect(&nats.url).await.is_ok()).await;
        setup::init(nats.client().await, 1).await.unwrap();
        nats
    }

    pub(crate) async fn client(&self) -> Client {
        async_nats::connect(&self.url).await.unwrap()
    }

    pub(crate) async fn log(&self) -> JetStreamLog {
        JetStreamLog::open(self.client().await).await.unwrap()
    }
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// All events of a player's inventory aggregate.
pub(crate) async fn history(log: &JetStreamLog, player: &PlayerId) -> Vec<Recorded<Event>> {
    let Some(last) = log.inventory(player).await.unwrap() else { return Vec::new() };
    let stream = log.context().get_stream(STREAM).await.unwrap();
    let consumer = stream
        .create_consumer(async_nats::jetstream::consumer::pull::OrderedConfig {
            filter_subject: Aggregate::Inventory(player.clone()).filter(),
            ..Default::default()
        })
        .await
        .unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let mut history: Vec<Recorded<Event>> = Vec::new();
    while history.last().is_none_or(|recorded| recorded.seq < last.seq) {
        let message = messages.next().await.unwrap().unwrap();
        let info = message.info().unwrap();
        history.push(Recorded::decode(info.stream_sequence, info.published, &message.payload).unwrap());
    }
    history
}
