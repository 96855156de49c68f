//! Matchmaker: matches waiting players by rank and latency.
//!
//! - [`domain`]: the pool of waiting players (a fold of the log), its snapshot format, and the rule that makes matches;
//!   pure.
//! - [`app`]: the main loop: fold, decide, commit, and fold the outcome.
//! - [`matching`]: the decisions of that loop, on any implementation of the log.
//! - [`lead`]: which of several instances decides.
//! - [`snapshots`]: stores the pool in NATS, so that a restart does not read the whole log.

pub mod app;
pub mod config;
pub mod domain;
pub mod lead;
pub mod matching;
pub mod snapshots;

use garage_events::{crash::Point, env::System, lease, queue::Queues};
use garage_worker::{Runtime, Shutdown};

pub use config::Config;

/// Runs the worker until `shutdown`.
///
/// # Errors
/// When the configuration or the log is invalid, or a long-running task fails.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let queues = Queues::load(&config.queues)?;
    let mut runtime = Runtime::start("matchmaker", &config.worker, shutdown.clone()).await?;
    let log = runtime.open_log().await?;
    let names = queues.queues.keys().map(lease::matchmaker).collect();
    let context = log.context().clone();
    let (leases, keeping) = garage_worker::lease::keep(context, names, Point::LeaseKept, runtime.health.clone());
    runtime.spawn("leases", keeping);
    let matchmaker = app::Matchmaker::new(log, System, queues, leases, runtime.health.clone());
    runtime.spawn("matching", matchmaker.run(shutdown));
    runtime.wait().await
}
