//! Matchmaker: matches waiting players by the rule sets of their queues.
//!
//! - [`domain`]: the pool of waiting players (a fold of the log), its snapshot format, and matches by rule sets; pure.
//! - [`app`]: the main loop: fold, decide, and decide again while the decisions are being stored.
//! - [`matching`]: makes matches and times out tickets, on any implementation of the log.
//! - [`lead`]: which of several instances decides.
//! - [`snapshots`]: stores the pool in NATS, so that a restart does not read the whole log.

pub mod app;
pub mod config;
pub mod domain;
pub mod lead;
pub mod matching;
pub mod snapshots;

use garage_events::{crash::Point, env::System, lease, queue::Queues, svc::CountCandidates};
use garage_worker::{
    Runtime, Shutdown, bucket,
    metrics::Metric,
    rules::AppliedRules,
    service::{Refusal, Service},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::spawn_blocking,
};

use app::Question;

pub use config::Config;

/// What the worker measures.
const METRICS: [Metric; 9] = [
    Metric::gauge("garage_queue_depth", "waiting players; every instance reports all of them"),
    Metric::gauge("garage_queue_players", "players of one match"),
    Metric::histogram("garage_queue_wait_seconds", "time from a ticket to its match").with_later_labels(),
    Metric::counter("garage_matches_total", "matches made").with_later_labels(),
    Metric::counter("garage_incomplete_searches_total", "searches that ended before they had tried every match")
        .with_later_labels(),
    Metric::counter("garage_timeouts_total", "tickets that timed out"),
    Metric::counter("garage_excluded_total", "candidates that a rule excluded, counted when a ticket times out")
        .with_later_labels(),
    Metric::counter(
        "garage_conflicts_total",
        "matches and time-outs that were not stored because a player had changed",
    ),
    Metric::counter("garage_snapshots_total", "snapshots written"),
];

/// The maximum number of questions that wait for an answer of the main loop.
const MAX_QUESTIONS: usize = 16;

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
    let (context, health) = (log.context().clone(), runtime.health.clone());
    let applied = AppliedRules { queues: queues.clone(), context: context.clone() };
    let follow = bucket::follow(applied, "rules", context, health, shutdown.clone()).await?;
    runtime.spawn("rules", follow);
    let (asked, questions) = mpsc::channel(MAX_QUESTIONS);
    let service = Service::start(&runtime.client, "matchmaker", "who can be matched with whom").await?;
    let answering = service.serve::<CountCandidates, _, _>(1, shutdown.clone(), move |CountCandidates { player }| {
        let asked = asked.clone();
        async move {
            let (reply, answer) = oneshot::channel();
            let refuse = |cause: &dyn std::fmt::Display| Refusal::new(503, format!("the matchmaker is busy: {cause}"));
            asked.try_send(Question { player, reply }).map_err(|error| refuse(&error))?;
            answer.await.map_err(|error| refuse(&error))
        }
    });
    runtime.spawn("svc.matchmaker.candidates", answering.await?);
    let matchmaker = app::Matchmaker::new(log, System, queues, leases, runtime.health.clone(), questions);
    // Matching takes much of a processor's time. On a thread of its own, it does not delay the renewal of leases.
    let matching = spawn_blocking(move || Handle::current().block_on(matchmaker.run(shutdown)));
    runtime.spawn("matching", async { matching.await? });
    runtime.wait().await
}
