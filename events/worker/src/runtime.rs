//! A worker's connection, admin port and long tasks.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
use garage_events::jetstream::{JetStreamLog, OpenError};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::task::JoinSet;

use crate::{Health, Pages, Shutdown, admin, config};

/// How long a worker may take to finish what is in flight once it is told to stop.
const DRAIN: Duration = Duration::from_secs(30);

/// Long tasks that are the ground's own: the admin port and the watch over NATS.
const OWN_TASKS: usize = 2;

/// Between two attempts at something that is waited for, at most.
const AGAIN: Duration = Duration::from_secs(5);

/// What a worker stands on.
#[derive(Debug)]
pub struct Runtime {
    /// The connection to NATS.
    pub client: async_nats::Client,
    /// Cancelled when the worker is to stop.
    pub shutdown: Shutdown,
    /// What /readyz says.
    pub health: Health,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Runtime {
    /// Opens the admin port and connects to NATS, for which it waits.
    ///
    /// # Errors
    /// When the configuration is wrong or the port cannot be opened; [`Stopped`].
    pub async fn start(name: &'static str, config: &config::Worker, shutdown: Shutdown) -> anyhow::Result<Self> {
        Self::start_with(name, config, None, shutdown).await
    }

    /// As [`start`](Self::start), with pages of the worker's own on the admin port.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub async fn start_with(
        name: &'static str,
        config: &config::Worker,
        pages: Option<Arc<dyn Pages>>,
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        let metrics = recorder()?;
        let listener = admin::bind(config.admin).await?;
        let health = Health::default();
        // Until all is set up; see `wait`.
        health.down("worker", "starting");
        let mut tasks = JoinSet::new();
        let admin = admin::serve(listener, health.clone(), metrics, pages);
        tasks.spawn(async { ("admin", admin.await) });
        // Before, so that a file that is not there is no reason to wait.
        config.check()?;
        let urls = config.nats.urls()?;
        let connecting = keep_trying("nats", || async {
            let connected = config.nats.options(name)?.connect(urls.split(',').collect::<Vec<_>>()).await;
            connected.inspect_err(|error| health.down("nats", error.to_string())).map_err(anyhow::Error::from)
        });
        let client = shutdown.run_until_cancelled(connecting).await.ok_or(Stopped)?;
        health.up("nats");
        let mut runtime = Self { client, shutdown, health, tasks };
        runtime.spawn("nats watch", watch(runtime.client.clone(), runtime.health.clone()));
        Ok(runtime)
    }

    /// Opens the log, for which it waits. The worker ends should the log's committer end.
    ///
    /// # Errors
    /// When there is no log, or one on which its guarantees do not hold, with what to do about it; or [`Stopped`].
    pub async fn open_log(&mut self) -> anyhow::Result<JetStreamLog> {
        let opening = keep_trying("the log", || async {
            match JetStreamLog::open(self.client.clone()).await {
                Err(OpenError::Unavailable(reason)) => {
                    self.health.down("log", reason.clone());
                    Err(reason)
                }
                opened => Ok(opened),
            }
        });
        let log = self.shutdown.run_until_cancelled(opening).await.ok_or(Stopped)??;
        self.health.up("log");
        let (committer, shutdown) = (log.clone(), self.shutdown.clone());
        self.spawn("committer", async move {
            shutdown.run_until_cancelled(committer.stopped()).await;
            Ok(())
        });
        Ok(log)
    }

    /// Runs a long task. It should end once `shutdown` is cancelled and what it holds is done; if it ends before, the
    /// worker ends.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Says that the worker is set up, and runs until it is told to stop, or until a long task ends by itself.
    ///
    /// # Errors
    /// When a long task ended by itself; names it.
    pub async fn wait(mut self) -> anyhow::Result<()> {
        self.health.up("worker");
        let ended = tokio::select! {
            () = self.shutdown.cancelled() => None,
            ended = self.tasks.join_next() => ended,
        };
        if let Some(ended) = ended.filter(|_| !self.shutdown.is_cancelled()) {
            self.shutdown.cancel();
            let (name, result) = ended.context("a task panicked")?;
            result.with_context(|| format!("task {name} failed"))?;
            anyhow::bail!("task {name} ended by itself");
        }
        tracing::info!("stopping");
        let drain = async {
            // Those that answer for the process itself run until there is nothing left to answer for.
            while self.tasks.len() > OWN_TASKS
                && let Some(ended) = self.tasks.join_next().await
            {
                match ended {
                    Ok((name, Err(error))) => tracing::warn!(task = name, %error, "task failed while stopping"),
                    Ok((name, Ok(()))) => tracing::debug!(task = name, "task ended"),
                    Err(error) => tracing::warn!(%error, "task panicked while stopping"),
                }
            }
        };
        if tokio::time::timeout(DRAIN, drain).await.is_err() {
            tracing::warn!("not everything in flight was finished in time; the log will have it done again");
        }
        self.tasks.abort_all();
        // What was published last must leave before the process does.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.client.flush()).await;
        Ok(())
    }
}

/// Told to stop while something was waited for at the start; no failure.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("told to stop before all was there")]
pub struct Stopped;

/// Does something for as long as it takes: what a worker needs may be started later than it, or just be electing.
pub async fn keep_trying<T, E, F>(what: &str, attempt: impl Fn() -> F) -> T
where
    E: std::fmt::Display,
    F: Future<Output = Result<T, E>>,
{
    let mut pause = Duration::from_millis(100);
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => tracing::warn!("waiting for {what}: {error:#}"),
        }
        tokio::time::sleep(pause).await;
        pause = AGAIN.min(pause * 2);
    }
}

/// Reports in /readyz whether NATS is there.
async fn watch(client: async_nats::Client, health: Health) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        match client.connection_state() {
            async_nats::connection::State::Connected => health.up("nats"),
            state => health.down("nats", state.to_string()),
        }
    }
}

/// The process's one recorder of metrics; several workers in one process (tests) share it.
fn recorder() -> anyhow::Result<PrometheusHandle> {
    static RECORDER: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    let handle =
        RECORDER.get_or_init(|| PrometheusBuilder::new().install_recorder().map_err(|error| error.to_string()));
    handle.clone().map_err(|error| anyhow::anyhow!("metrics cannot be recorded: {error}"))
}
