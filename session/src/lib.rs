//! Session: drives each session from match to close.
//!
//! - [`reaction`]: what the session's events, reports and deadlines bring about.
//! - [`keys`]: RSA keys, made ahead; [`token`]: connection tokens.
//! - [`query`]: answers to requests; [`projector`]: the projections in Redis; [`dead_letters`]: what is dead, beside them.
//! - [`redis`]: parked secrets and projections.

pub mod config;
pub mod dead_letters;
pub mod keys;
pub mod projector;
pub mod query;
pub mod reaction;
pub mod redis;
pub mod token;

use garage_events::{
    env::System,
    jetstream::setup::{SESSION, SESSION_REPORTS, SESSION_TIMERS},
};
use garage_worker::{Runtime, Shutdown, reactor};

pub use config::Config;
use config::Read;

/// Reactions at a time; each spends its time waiting for the log.
const REACTIONS: usize = 64;

/// Runs the worker until `shutdown`.
///
/// # Errors
/// When something it needs is wrong or missing at the start, or a long task ended by itself.
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
        reactor::react(context.clone(), SESSION, REACTIONS, health.clone(), shutdown.clone(), move |delivery| {
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
            REACTIONS,
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
        reactor::react(context, SESSION_TIMERS, REACTIONS, health.clone(), shutdown.clone(), move |delivery| {
            let app = app.clone();
            async move { app.on_timer(&delivery).await }
        }),
    );
    query::serve(&mut runtime, &log, &redis, signer, limits).await?;
    runtime.spawn("letters", dead_letters::watch(runtime.client.clone(), redis.clone(), shutdown.clone()));
    let projector = projector::Projector::new(log, redis, health);
    runtime.spawn("projector", projector.run(shutdown));
    tracing::info!("session runs");
    runtime.wait().await
}
