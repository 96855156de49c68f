//! Session: carries out the steps of each session, from the match to its end.
//!
//! - [`reaction`]: reactions to a session's events, game servers' reports and timers.
//! - [`answers`]: players' answers to proposed matches.
//! - [`keys`]: RSA keys, generated in advance; [`token`]: connection tokens.
//! - [`query`]: answers requests of other workers; [`recent`]: the sessions that it has read last.
//! - [`projector`]: the projections in Redis; [`fold`] (pure): how events change them; [`dead_letters`]: the summary of
//!   the dead letters.
//! - [`streams`]: how full the streams are, as metrics.
//! - [`redis`]: stores the projections and the game servers' secrets.

pub mod answers;
pub mod config;
pub mod dead_letters;
pub mod fold;
pub mod keys;
pub mod projector;
pub mod query;
pub mod reaction;
pub mod recent;
pub mod redis;
pub mod streams;
pub mod token;

use garage_events::{
    crash::Point,
    env::System,
    jetstream::setup::{SESSION, SESSION_REPORTS, SESSION_TIMERS},
    lease,
};
use garage_worker::{Runtime, Shutdown, metrics::Metric, reactor};

pub use config::Config;
use config::Read;

/// How many messages of each consumer are handled at the same time. A reaction mostly waits for the log.
const CONCURRENCY: usize = 64;

/// What the worker measures.
const METRICS: [Metric; 15] = [
    Metric::gauge("garage_key_pool", "RSA keys that are generated and not used yet"),
    Metric::gauge("garage_key_pool_capacity", "RSA keys that the pool holds when it is full"),
    Metric::counter("garage_key_waits_total", "game servers that waited for a key"),
    Metric::histogram("garage_session_start_seconds", "time from a match to the server's address at its players"),
    Metric::histogram("garage_session_step_seconds", "time from the session's event before to this one")
        .with(&[("step", &["requested", "ready", "opened"])]),
    Metric::counter("garage_proposals_total", "proposed matches that ended, by how")
        .with(&[("outcome", &["accepted", "declined", "disconnected", "unanswered"])]),
    Metric::counter("garage_proposal_answers_total", "answers of players to proposed matches")
        .with(&[("answer", &["accept", "decline"]), ("outcome", &["ok", "unknown", "late", "failed"])]),
    Metric::gauge("garage_projection_seq", "sequence of the last event that the projections include"),
    Metric::counter("garage_projection_skipped_total", "events that the projections lack because they cannot be read"),
    Metric::gauge("garage_stream_bytes", "bytes in a stream; every instance reports them"),
    Metric::gauge("garage_stream_bytes_max", "bytes that a stream may hold; infinite without a limit"),
    Metric::gauge("garage_stream_messages", "messages in a stream; every instance reports them"),
    Metric::gauge("garage_stream_messages_max", "messages that a stream may hold; infinite without a limit"),
    Metric::gauge("garage_consumer_pending", "messages that a durable consumer has not delivered yet"),
    Metric::gauge("garage_consumer_in_progress", "messages that are delivered and not acknowledged yet"),
];

/// Runs the worker until `shutdown`.
///
/// # Errors
/// If the configuration is wrong, if the log does not exist, or if a long-running task ends before the shutdown.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let Read { seal, signer, mint, redis } = config.read()?;
    let redis = redis::Redis::new(redis);
    let mut runtime = Runtime::start("session", &config.worker, shutdown.clone()).await?;
    garage_worker::metrics::register(&METRICS);
    let log = runtime.open_log().await?;
    let (keys, filling) = keys::Pool::start(config.key_pool)?;
    runtime.spawn("keys", filling);
    let limits = config.limits();
    let (context, health) = (log.context().clone(), runtime.health.clone());

    let app = reaction::App {
        log: log.clone(),
        env: System,
        effects: reaction::Live {
            client: runtime.client.clone(),
            keys,
            mint,
            seal,
            redis: redis.clone(),
            context: context.clone(),
        },
        limits,
    };
    let reactor = app.clone();
    runtime.spawn(
        "events",
        reactor::react(context.clone(), SESSION, CONCURRENCY, health.clone(), shutdown.clone(), move |delivery| {
            let app = reactor.clone();
            async move { app.on_event(&delivery).await }
        }),
    );
    let answering = app.clone();
    let reactor = app.clone();
    runtime.spawn(
        "reports",
        reactor::react(
            context.clone(),
            SESSION_REPORTS,
            CONCURRENCY,
            health.clone(),
            shutdown.clone(),
            move |delivery| {
                let app = reactor.clone();
                async move { app.on_report(&delivery).await }
            },
        ),
    );
    runtime.spawn(
        "timers",
        reactor::react(context, SESSION_TIMERS, CONCURRENCY, health.clone(), shutdown.clone(), move |delivery| {
            let app = app.clone();
            async move { app.on_timer(&delivery).await }
        }),
    );
    query::serve(&mut runtime, &log, signer, answering).await?;
    runtime.spawn("streams", streams::watch(log.context().clone(), shutdown.clone()));
    runtime.spawn("dead-letters", dead_letters::watch(runtime.client.clone(), redis.clone(), shutdown.clone()));
    let (context, names) = (log.context().clone(), vec![lease::PROJECTOR.into()]);
    let (leases, keeping) = garage_worker::lease::keep(context, names, Point::ProjectorLeaseKept, health.clone());
    runtime.spawn("leases", keeping);
    let projector = projector::Projector::new(log, redis, leases, health);
    runtime.spawn("projector", projector.run(shutdown));
    tracing::info!("session started");
    runtime.wait().await
}
