//! The director starts game server instances, monitors them, and removes them.
//!
//! - [`reaction`]: handles the events of the log.
//! - [`watch`]: checks the instances at regular intervals, for changes that no event announces.
//! - [`backend`]: the trait of the systems that run game servers. [`process`] runs them as processes of this machine,
//!   [`kube`] as pods of a Kubernetes cluster.
//! - [`redis`]: reads the games' sealed secrets.

pub mod backend;
pub mod config;
pub mod kube;
pub mod process;
pub mod reaction;
pub mod redis;
pub mod watch;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use garage_events::{
    crash::Point,
    env::System,
    game,
    jetstream::{JetStreamLog, setup::DIRECTOR},
    lease,
};
use garage_worker::{
    Runtime, Shutdown,
    config::nats_urls,
    metrics::Metric,
    reactor,
    redis::Redis,
    seal::{SealKey, SealKeys},
};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};

use crate::backend::Backend;

pub use config::Config;

/// The number of events handled at the same time. Several, because one removal may take seconds.
const REACTIONS: usize = 16;

/// What the worker measures.
const METRICS: [Metric; 5] = [
    Metric::histogram("garage_session_step_seconds", "time from the session's event before to this one")
        .with(&[("step", &["scheduled"])]),
    Metric::gauge("garage_instances", "game servers by state"),
    Metric::counter("garage_instances_created_total", "game servers created"),
    Metric::counter("garage_instances_failed_total", "failed attempts to start or run a game server")
        .with(&[("reason", &["exited", "killed", "not-started", "no-capacity", "node-lost"])]),
    Metric::counter("garage_orphans_removed_total", "game servers removed because no open session needs them"),
];

/// Runs the worker until `shutdown`. Game servers keep running without it.
///
/// # Errors
/// When the configuration is wrong, when the log does not exist, or when a background task ends unexpectedly.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    match config.backend {
        config::Kind::Process => {
            let backend = process::ProcessBackend::open(&config.process)?;
            // No lease is needed: the instances run on this machine, and several directors here do not disturb each
            // other.
            serve(config, backend, shutdown, |_, _| || true).await
        }
        config::Kind::Kube => {
            let backend = kube::KubeBackend::open(&config.kube, &config.process).await?;
            tokio::select! {
                checked = backend.dry_run() => checked?,
                () = shutdown.cancelled() => return Ok(()),
            }
            let name = lease::director(backend.namespace());
            let (watched, end) = (backend.clone(), shutdown.clone());
            let spawn_tasks = move |runtime: &mut Runtime, log: &JetStreamLog| {
                let context = log.context().clone();
                let (names, health) = (vec![name.clone()], runtime.health.clone());
                let (leases, keeping) = garage_worker::lease::keep(context, names, Point::LeaseKept, health);
                runtime.spawn("leases", keeping);
                leases.compete();
                let leases = Arc::new(leases);
                let leads = move || leases.holds(&name);
                let lost_pods = kube::lost_pods::watch(watched.clone(), log.reader(), leads.clone(), end.clone());
                runtime.spawn("lost pods", lost_pods);
                runtime.spawn("cluster", watched.watch(end));
                leads
            };
            serve(config, backend, shutdown, spawn_tasks).await
        }
    }
}

/// Runs the worker with this backend. `spawn_tasks` starts the backend's own background tasks. The function that it
/// returns says whether this director monitors the instances.
async fn serve<B: Backend, F: Fn() -> bool + Send + Sync + 'static>(
    config: Config,
    backend: B,
    shutdown: Shutdown,
    spawn_tasks: impl FnOnce(&mut Runtime, &JetStreamLog) -> F,
) -> anyhow::Result<()> {
    let (seal, settings, redis) = load(&config)?;
    let mut runtime = Runtime::start("director", &config.worker, shutdown.clone()).await?;
    garage_worker::metrics::register(&METRICS);
    let log = runtime.open_log().await?;
    let context = log.context().clone();
    let leads = spawn_tasks(&mut runtime, &log);

    let keys = redis::ParkedKeys { redis: redis.clone(), seal };
    let app = reaction::App { log, env: System, backend, keys, settings: Arc::new(settings) };
    let grace = Duration::from_secs(config.orphan_grace.into());
    runtime.spawn("redis watch", redis.watch(runtime.health.clone(), shutdown.clone()));
    runtime.spawn("watch", watch::run(app.clone(), grace, leads, runtime.health.clone(), shutdown.clone()));
    let reactions = reactor::react(context, DIRECTOR, REACTIONS, runtime.health.clone(), shutdown, move |delivery| {
        let app = app.clone();
        async move { app.on_event(&delivery).await }
    });
    runtime.spawn("events", reactions);
    tracing::info!("director is running");
    runtime.wait().await
}

impl Config {
    /// Checks the configuration without connecting to anything and without creating anything.
    ///
    /// # Errors
    /// The problem that would keep the worker from starting.
    pub fn check(&self) -> anyhow::Result<()> {
        load(self)?;
        match self.backend {
            config::Kind::Process => drop(process::program(&self.process)?),
            config::Kind::Kube => kube::check(&self.kube, &self.process)?,
        }
        self.worker.check()
    }
}

/// Reads the key files, and prepares the game settings and the Redis client.
fn load(config: &Config) -> anyhow::Result<(SealKeys, reaction::GameSettings, Redis)> {
    let additional = config.seal_key_also_file.as_deref().map(SealKey::from_file).transpose()?;
    let seal = SealKeys::new(SealKey::from_file(&config.seal_key_file)?, additional);
    Ok((seal, game_settings(config)?, Redis::new(&config.redis)?))
}

fn game_settings(config: &Config) -> anyhow::Result<reaction::GameSettings> {
    let (kid, token_key) = token_key(&config.token_key_file, "token-key-file")?;
    let mut token_keys = BTreeMap::from([(kid, token_key.clone())]);
    if let Some(file) = &config.token_key_also_file {
        token_keys.extend([self::token_key(file, "token-key-also-file")?]);
    }
    let url = match &config.game_nats_url {
        Some(url) => nats_urls(url, "game-nats")?,
        None => config.worker.nats.urls()?,
    };
    Ok(reaction::GameSettings { token_key, token_keys, nats_url: url.to_owned() })
}

/// Reads a public key that verifies connection tokens. Returns its `kid`, by which tokens name it, and its PEM text.
fn token_key(file: &Path, flag: &str) -> anyhow::Result<(String, String)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let invalid = || format!("{} (--{flag}) is not a public key in PEM", file.display());
    // The text goes to every game server, so it must not contain the private key.
    anyhow::ensure!(!text.contains("PRIVATE KEY"), invalid());
    let key = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).with_context(invalid)?;
    Ok((game::fingerprint(&key), text))
}
