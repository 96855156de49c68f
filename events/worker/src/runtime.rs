//! A worker's connection to NATS, its admin port and its long-running tasks.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::Context;
use garage_events::jetstream::{JetStreamLog, OpenError};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinSet;

use crate::{Health, Pages, Shutdown, admin, config, log_watch, metrics};

/// How long a worker may take to finish its work in progress after the shutdown signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Tasks of the runtime itself: the admin port, the upkeep of the metrics and the NATS watch.
const OWN_TASKS: usize = 3;

/// How often the recorder of the metrics sorts new measurements into its buckets. Until then it keeps each of them.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How long NATS may take to answer a request, unless the request has its own time-out. Half the time that a client of
/// the gateway waits for an answer, so that the answer can say that NATS does not answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest pause between two attempts of [`keep_trying`].
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// The runtime of one worker: connection, readiness, tasks and shutdown.
#[derive(Debug)]
pub struct Runtime {
    /// The connection to NATS. It reconnects by itself.
    pub client: async_nats::Client,
    /// Cancelled when the worker must stop: by a signal, or because a long-running task ended.
    pub shutdown: Shutdown,
    /// The content of /readyz.
    pub health: Health,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
}

impl Runtime {
    /// Opens the admin port, then connects to NATS. Retries until NATS is available.
    ///
    /// # Errors
    /// When the configuration is invalid or the port cannot be opened. [`Stopped`] if `shutdown` comes first.
    pub async fn start(name: &'static str, config: &config::Worker, shutdown: Shutdown) -> anyhow::Result<Self> {
        Self::start_with(name, config, None, shutdown).await
    }

    /// Like [`start`](Self::start), with additional pages on the admin port.
    ///
    /// # Errors
    /// See [`start`](Self::start).
    pub async fn start_with(
        name: &'static str,
        config: &config::Worker,
        pages: Option<Arc<dyn Pages>>,
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        let recorder = metrics::recorder()?;
        metrics::register(&metrics::COMMON);
        let listener = admin::bind(config.admin).await?;
        let health = Health::default();
        // `wait` reports it as up when the setup is complete.
        health.down("worker", "starting");
        let mut tasks = JoinSet::new();
        tasks.spawn(upkeep(recorder.clone()));
        let admin = admin::serve(listener, name, health.clone(), recorder, pages, config.admin_hosts.clone());
        tasks.spawn(async { ("admin", admin.await) });
        // Check first: an invalid URL or a missing file must fail at once and not be retried.
        config.check()?;
        let urls = config.nats.urls()?;
        let connecting = keep_trying("NATS", || async {
            let options = config.nats.options(name)?.request_timeout(Some(REQUEST_TIMEOUT));
            let connected = options.connect(urls.split(',').collect::<Vec<_>>()).await;
            connected.inspect_err(|error| health.down("nats", error.to_string())).map_err(anyhow::Error::from)
        });
        let client = shutdown.run_until_cancelled(connecting).await.ok_or(Stopped)?;
        health.up("nats");
        let mut runtime = Self { client, shutdown, health, tasks };
        runtime.spawn("nats watch", watch(runtime.client.clone(), runtime.health.clone()));
        Ok(runtime)
    }

    /// Opens the log. Retries until it is available. If the log's committer ends later, the worker ends too.
    ///
    /// # Errors
    /// When the log does not exist, or its settings do not provide the guarantees that Garage needs. The error says
    /// what to do. [`Stopped`] if `shutdown` comes first.
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
        self.spawn("log watch", log_watch::run(log.clone(), self.health.clone(), self.shutdown.clone()));
        Ok(log)
    }

    /// Runs a long-running task. After `shutdown` the task should finish its work and end. If it ends earlier, the
    /// worker stops.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Reports the worker as ready, and runs until `shutdown` or until a long-running task ends. Then it drains.
    ///
    /// # Errors
    /// When a task ended before `shutdown`. The error names the task.
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
            anyhow::bail!("task {name} ended unexpectedly");
        }
        tracing::info!("stopping");
        let drain = async {
            // The runtime's own tasks run until all other tasks have ended.
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
        if tokio::time::timeout(DRAIN_TIMEOUT, drain).await.is_err() {
            tracing::warn!("work in progress was not finished in time; it will be redelivered from the log");
        }
        self.tasks.abort_all();
        // Send buffered messages before the process exits.
        let _ = tokio::time::timeout(Duration::from_secs(5), self.client.flush()).await;
        Ok(())
    }
}

/// The worker was stopped during startup, before all dependencies were available. This is not a failure.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("stopped before all dependencies were available")]
pub struct Stopped;

/// Repeats `attempt` until it succeeds, with growing pauses, and logs each failure as "waiting for `what`". A worker
/// may start before its dependencies, or while they elect a leader.
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
        pause = MAX_PAUSE.min(pause * 2);
    }
}

async fn upkeep(recorder: PrometheusHandle) -> (&'static str, anyhow::Result<()>) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        recorder.run_upkeep();
    }
}

/// Reports in /readyz whether NATS is connected.
async fn watch(client: async_nats::Client, health: Health) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        match client.connection_state() {
            async_nats::connection::State::Connected => health.up("nats"),
            state => health.down("nats", state.to_string()),
        }
    }
}
