//! Director: owns game server instances; starts, finds again, and removes them.
//!
//! - [`reaction`]: what the log's events bring about; [`watch`]: what happens without one.
//! - [`backend`]: what runs game servers, as a trait; [`process`]: as processes of this machine; [`kube`]: as pods of a
//!   Kubernetes cluster.
//! - [`redis`]: the games' sealed secrets.

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
    env::System,
    game,
    jetstream::{JetStreamLog, setup::DIRECTOR},
    lease,
};
use garage_worker::{
    Runtime, Shutdown,
    config::nats_urls,
    reactor,
    redis::Redis,
    seal::{SealKey, SealKeys},
};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};

use crate::backend::Backend;

pub use config::Config;

/// Reactions at a time; a removal may take seconds.
const REACTIONS: usize = 16;

/// Runs the worker until `shutdown`. Game servers go on without it.
///
/// # Errors
/// When something it needs is wrong or missing at the start, or a long task ended by itself.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    match config.backend {
        config::Kind::Process => {
            let backend = process::ProcessBackend::open(&config.process)?;
            // Its instances are of this machine, where nobody else looks after them, or it does no harm.
            serve(config, backend, shutdown, |_, _| || true).await
        }
        config::Kind::Kube => {
            let backend = kube::KubeBackend::open(&config.kube, &config.process).await?;
            let name = lease::director(backend.namespace());
            let (watched, end) = (backend.clone(), shutdown.clone());
            let session = time::Duration::seconds(config.session_s.into());
            let look_after = move |runtime: &mut Runtime, log: &JetStreamLog| {
                let context = log.context().clone();
                let (leases, keeping) = garage_worker::lease::keep(context, vec![name.clone()], runtime.health.clone());
                runtime.spawn("leases", keeping);
                leases.compete();
                let leases = Arc::new(leases);
                let leads = move || leases.holds(&name);
                let missing =
                    kube::lost_pods::watch(watched.clone(), log.reader(), session, leads.clone(), end.clone());
                runtime.spawn("missing pods", missing);
                runtime.spawn("cluster", watched.watch(end));
                leads
            };
            serve(config, backend, shutdown, look_after).await
        }
    }
}

async fn serve<B: Backend, F: Fn() -> bool + Send + Sync + 'static>(
    config: Config,
    backend: B,
    shutdown: Shutdown,
    look_after: impl FnOnce(&mut Runtime, &JetStreamLog) -> F,
) -> anyhow::Result<()> {
    let (seal, terms, redis) = read(&config)?;
    let mut runtime = Runtime::start("director", &config.worker, shutdown.clone()).await?;
    let log = runtime.open_log().await?;
    let context = log.context().clone();
    let leads = look_after(&mut runtime, &log);

    let keys = redis::Parked { redis: redis.clone(), seal };
    let app = reaction::App { log, env: System, backend, keys, terms: Arc::new(terms) };
    let grace = Duration::from_secs(config.orphan_grace.into());
    runtime.spawn("redis watch", redis.watch(runtime.health.clone(), shutdown.clone()));
    runtime.spawn("watch", watch::run(app.clone(), grace, leads, runtime.health.clone(), shutdown.clone()));
    let reactions = reactor::react(context, DIRECTOR, REACTIONS, runtime.health.clone(), shutdown, move |delivery| {
        let app = app.clone();
        async move { app.on_event(&delivery).await }
    });
    runtime.spawn("events", reactions);
    tracing::info!("director runs");
    runtime.wait().await
}

impl Config {
    /// Checks what can be checked before anything connects, or is made.
    ///
    /// # Errors
    /// What the worker would refuse to start for.
    pub fn check(&self) -> anyhow::Result<()> {
        read(self)?;
        match self.backend {
            config::Kind::Process => drop(process::program(&self.process)?),
            config::Kind::Kube => kube::check(&self.kube)?,
        }
        self.worker.check()
    }
}

/// Reads the keys and what games are told, and says where Redis is.
fn read(config: &Config) -> anyhow::Result<(SealKeys, reaction::Terms, Redis)> {
    let also = config.seal_key_also_file.as_deref().map(SealKey::from_file).transpose()?;
    let seal = SealKeys::new(SealKey::from_file(&config.seal_key_file)?, also);
    Ok((seal, terms(config)?, Redis::new(&config.redis)?))
}

fn terms(config: &Config) -> anyhow::Result<reaction::Terms> {
    let (kid, token_key) = token_key(&config.token_key_file, "token-key-file")?;
    let mut token_keys = BTreeMap::from([(kid, token_key.clone())]);
    if let Some(file) = &config.token_key_also_file {
        token_keys.extend([self::token_key(file, "token-key-also-file")?]);
    }
    let url = match &config.game_nats_url {
        Some(url) => nats_urls(url, "game-nats")?,
        None => config.worker.nats.urls()?,
    };
    let session = time::Duration::seconds(config.session_s.into());
    Ok(reaction::Terms { token_key, token_keys, nats_url: url.to_owned(), session })
}

/// A key that tokens are verified with, and before it the `kid` by which they name it.
fn token_key(file: &Path, flag: &str) -> anyhow::Result<(String, String)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let wrong = || format!("{} (--{flag}) is no public key in PEM", file.display());
    // The private half here would go to every game server.
    anyhow::ensure!(!text.contains("PRIVATE KEY"), wrong());
    let key = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).with_context(wrong)?;
    Ok((game::fingerprint(&key), text))
}
