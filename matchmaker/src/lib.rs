//! Matchmaker: matches waiting players by the rule sets of their queues.
//!
//! - [`domain`]: the pool of waiting players (a fold of the log), its snapshot format, and matches by rule sets; pure.
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
use garage_worker::{Runtime, Shutdown, metrics::Metric};

pub use config::Config;

/// What the worker measures.
const METRICS: [Metric; 7] = [
    Metric::gauge("garage_queue_depth", "waiting players; every instance reports all of them"),
    Metric::gauge("garage_queue_players", "players of one match"),
    Metric::histogram("garage_queue_wait_seconds", "time from a ticket to its match").with_later_labels(),
    Metric::counter("garage_matches_total", "matches made").with_later_labels(),
    Metric::counter("garage_timeouts_total", "tickets that timed out"),
    Metric::counter(
        "garage_conflicts_total",
        "matches and time-outs that were not stored because a player had changed",
    ),
    Metric::counter("garage_snapshots_total", "snapshots written"),
];

/// Runs the worker until `shutdown`.
///
/// # Errors
/// When the configuration or the log is invalid, or a long-running task fails.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let queues = Queues::load(&config.queues)?;
    let mut runtime = Runtime::start("matchmaker", &config.worker, shutdown.clone()).await?;
    garage_worker::metrics::register(&METRICS);
    let log = runtime.open_log().await?;
    let names = queues.queues.keys().map(lease::matchmaker).collect();
    let context = log.context().clone();
    let (leases, keeping) = garage_worker::lease::keep(context, names, Point::LeaseKept, runtime.health.clone());
    runtime.spawn("leases", keeping);
    let matchmaker = app::Matchmaker::new(log, System, queues, leases, runtime.health.clone());
    runtime.spawn("matching", matchmaker.run(shutdown));
    runtime.wait().await
}
