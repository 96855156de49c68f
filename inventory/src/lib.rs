//! The inventory worker. It stores cars, items, wallets, rewards and ratings in MySQL.
//!
//! - [`domain`]: the rules for rewards, ratings, item effects and the store. Pure.
//! - [`catalogue`]: parses and validates the catalogue file, which defines what the store sells. Pure.
//! - [`mysql`]: all access to the database. The database is the source of truth for what players own; no other
//!   worker uses it.
//! - [`service`]: answers requests of other workers.
//! - [`rewards`]: pays and rates the players when a session closes.
//! - [`outbox`]: publishes the events that transactions wrote to the outbox table.
//! - [`config`]: flags and environment variables.
//! - [`error`]: errors, grouped by what the caller must do.

pub mod catalogue;
pub mod config;
pub mod domain;
pub mod error;
pub mod mysql;
pub mod outbox;
pub mod rewards;
pub mod service;

use std::time::Duration;

use garage_worker::{Health, Runtime, Shutdown, metrics::Metric};
use sqlx::MySqlPool;
use tokio::time::timeout;

pub use config::Config;
pub use error::Error;
pub use mysql::{SchemaError, migrate, rewards::pay};

/// Pause between two health checks of MySQL.
const HEALTH_INTERVAL: Duration = Duration::from_secs(2);

/// How long a health check or a schema check may take.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long background work in the database may take, such as paying a session's players or deleting a batch of old
/// idempotency keys.
const BACKGROUND_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause between two deletions of old idempotency keys.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(600);

/// What the worker measures.
const METRICS: [Metric; 6] = [
    Metric::counter("garage_inventory_rewards_total", "rewards paid"),
    Metric::gauge("garage_inventory_outbox_depth", "events that wait to be published in the log, up to 1,001"),
    Metric::gauge("garage_inventory_outbox_held", "events that could not be published, and are tried again later"),
    Metric::counter("garage_inventory_outbox_failures_total", "failed rounds of publishing"),
    Metric::counter("garage_inventory_events_published_total", "events published in the log"),
    Metric::counter("garage_inventory_refusals_total", "refused requests").with_later_labels(),
];

/// Runs the worker until `shutdown` is cancelled.
///
/// # Errors
/// When the configuration is not valid, `garage init` has not prepared the database or the log for this version, or a
/// long-running task ended by itself.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let requests = config.mysql.pool()?;
    // A pool of its own for what matches need: requests of players can use up the other one.
    let matches = config.mysql.pool_of(config.mysql_match_pool_size)?;
    let mut runtime = Runtime::start("inventory", &config.worker, shutdown).await?;
    garage_worker::metrics::register(&METRICS);
    let stop = runtime.shutdown.clone();

    runtime.health.down("mysql", "not checked yet");
    if !wait_for_database(&matches, &runtime.health, &stop).await? {
        return runtime.wait().await;
    }
    runtime.spawn("mysql watch", watch(matches.clone(), runtime.health.clone(), stop.clone()));
    runtime.spawn("idempotency", delete_old_keys(matches.clone(), stop.clone()));
    let log = runtime.open_log().await?;

    service::start(&mut runtime, (&requests, &matches), config.concurrency.into()).await?;
    let rewards = {
        let (health, concurrency) = (runtime.health.clone(), config.rewards_concurrency.into());
        rewards::react(matches.clone(), log.clone(), concurrency, health, stop.clone())
    };
    runtime.spawn("rewards", rewards);
    let publisher = outbox::publish(matches.clone(), log, stop);
    runtime.spawn("outbox", async move {
        publisher.await;
        Ok(())
    });
    tracing::info!("inventory started");
    let result = runtime.wait().await;
    tokio::join!(requests.close(), matches.close());
    result
}

/// Waits until the database answers, then checks its schema. Returns false if `stop` is cancelled before.
async fn wait_for_database(pool: &MySqlPool, health: &Health, stop: &Shutdown) -> Result<bool, SchemaError> {
    loop {
        match timeout(HEALTH_TIMEOUT, mysql::check_schema(pool)).await {
            Ok(Ok(())) => {
                health.up("mysql");
                return Ok(true);
            }
            Ok(Err(SchemaError::Database(error @ Error::Unavailable(_)))) => {
                tracing::warn!(%error, "waiting for mysql");
                health.down("mysql", "does not answer");
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                tracing::warn!("waiting for mysql: it accepts the connection but does not answer");
                health.down("mysql", "does not answer");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(HEALTH_INTERVAL) => {}
        }
    }
}

/// Updates the state of MySQL in /readyz, and the metric of outbox rows that wait to be published.
async fn watch(pool: MySqlPool, health: Health, stop: Shutdown) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        match timeout(HEALTH_TIMEOUT, mysql::outbox::depth(&pool)).await {
            Ok(Ok(depth)) => {
                metrics::gauge!("garage_inventory_outbox_depth").set(depth);
                health.up("mysql");
            }
            Ok(Err(error)) => health.down("mysql", error.to_string()),
            Err(_) => health.down("mysql", "does not answer"),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(HEALTH_INTERVAL) => {}
        }
    }
    Ok(())
}

/// Deletes old idempotency keys periodically, batch by batch.
async fn delete_old_keys(pool: MySqlPool, stop: Shutdown) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        match timeout(BACKGROUND_TIMEOUT, mysql::idempotency::delete_old(&pool)).await {
            Ok(Ok(mysql::idempotency::BATCH)) => continue,
            Ok(Ok(_)) => {}
            Err(_) => tracing::warn!("deleting old idempotency keys timed out, retrying later"),
            Ok(Err(error)) => tracing::warn!(%error, "deleting old idempotency keys failed, retrying later"),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(CLEANUP_INTERVAL) => {}
        }
    }
    Ok(())
}
