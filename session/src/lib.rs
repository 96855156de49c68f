//! Session: carries out the steps of each session, from the match to its end.
//!
//! - [`reaction`]: reactions to a session's events, game servers' reports and timers.
//! - [`keys`]: RSA keys, generated in advance; [`token`]: connection tokens.
//! - [`query`]: answers requests of other workers.
//! - [`projector`]: the projections in Redis; [`fold`] (pure): how events change them; [`dead_letters`]: the summary of
//!   the dead letters.
//! - [`redis`]: stores the projections and the game servers' secrets.

pub mod config;
pub mod dead_letters;
pub mod fold;
pub mod keys;
pub mod projector;
pub mod query;
pub mod reaction;
pub mod redis;
pub mod token;

use garage_events::{
    crash::Point,
    env::System,
    jetstream::setup::{SESSION, SESSION_REPORTS, SESSION_TIMERS},
    lease,
};
use garage_worker::{Runtime, Shutdown, reactor};

pub use config::Config;
use config::Read;

/// How many messages of each consumer are handled at the same time. A reaction mostly waits for the log.
const CONCURRENCY: usize = 64;

/// Runs the worker until `shutdown`.
///
/// # Errors
/// If the configuration is wrong, if the log does not exist, or if a long-running task ends before the shutdown.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let Read { seal, signer, mint, redis } = config.read()?;
    let redis = redis::Redis::new(redis);
    let mut runtime = Runtime::start("session", &config.worker, shutdown.clone()).await?;
    let log = runtime.open_log().await?;
    let (keys, filling) = keys::Pool::start(config.key_pool);
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
    query::serve(&mut runtime, &log, signer, limits).await?;
    runtime.spawn("dead-letters", dead_letters::watch(runtime.client.clone(), redis.clone(), shutdown.clone()));
    let (context, names) = (log.context().clone(), vec![lease::PROJECTOR.into()]);
    let (leases, keeping) = garage_worker::lease::keep(context, names, Point::ProjectorLeaseKept, health.clone());
    runtime.spawn("leases", keeping);
    let projector = projector::Projector::new(log, redis, leases, health);
    runtime.spawn("projector", projector.run(shutdown));
    tracing::info!("session started");
    runtime.wait().await
}
