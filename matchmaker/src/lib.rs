//! Matchmaker: matches waiting players by rank and latency.
//!
//! - [`domain`]: who waits (a fold of the log), and the rule that makes matches; pure.
//! - [`app`]: fold, decide, commit, and fold the outcome.

pub mod app;
pub mod config;
pub mod domain;

use garage_events::{queue::Queues, world::System};
use garage_worker::{Ground, Shutdown};

pub use config::Config;

/// Runs the worker until `shutdown`.
///
/// # Errors
/// When something it needs is wrong or missing at the start, or a long task ended by itself.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let queues = Queues::load(&config.queues)?;
    let mut ground = Ground::start("matchmaker", &config.worker, shutdown.clone()).await?;
    let log = ground.open_log().await?;
    let matchmaker = app::Matchmaker::new(log, System, queues, ground.health.clone());
    ground.spawn("matching", matchmaker.run(shutdown));
    ground.wait().await
}
