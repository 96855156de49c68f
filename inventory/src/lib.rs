//! Cars, items, wallets, rewards and ratings, kept in MySQL.
//!
//! - [`domain`]: what a place earns, how it moves a rating, what an item adds, what a player may do with his belongings; pure.
//! - [`catalogue`]: what is sold, as an operator's file says it.
//! - [`mysql`]: the database, the one store of truth beside the log, and for this worker alone.
//! - [`service`]: what other workers ask; [`rewards`]: what a closed session brings.
//! - [`outbox`]: what the database decided, told to the log.
//! - [`config`]: flags and variables; [`error`]: what can go wrong, by what the caller must do.

pub mod catalogue;
pub mod config;
pub mod domain;
pub mod error;
pub mod mysql;
pub mod outbox;
pub mod rewards;
pub mod service;

use std::time::Duration;

use garage_worker::{Health, Runtime, Shutdown};
use sqlx::MySqlPool;
use tokio::time::timeout;

pub use config::Config;
pub use error::Error;
pub use mysql::{SchemaError, migrate, rewards::pay};

/// How often MySQL is looked at for /readyz.
const WATCH: Duration = Duration::from_secs(2);

/// How long it may take to answer that, and about its schema.
const ANSWER: Duration = Duration::from_secs(10);

/// The longest that the database may take for what nobody waits for: the payment of a session's players, a batch of old
/// keys.
const LIMIT: Duration = Duration::from_secs(30);

/// How often idempotency keys that are old enough are forgotten.
const FORGET: Duration = Duration::from_secs(600);

/// Runs the worker until `shutdown`.
///
/// # Errors
/// When the configuration is wrong, the schema of the database or the log is not what `garage init` makes, or a long
/// task ended by itself.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    let pool = config.mysql.pool()?;
    let mut runtime = Runtime::start("inventory", &config.worker, shutdown).await?;
    let stop = runtime.shutdown.clone();

    runtime.health.down("mysql", "not asked yet");
    if !ready(&pool, &runtime.health, &stop).await? {
        return runtime.wait().await;
    }
    runtime.spawn("mysql watch", watch(pool.clone(), runtime.health.clone(), stop.clone()));
    runtime.spawn("idempotency", forget(pool.clone(), stop.clone()));
    let log = runtime.open_log().await?;

    service::start(&mut runtime, &pool, config.concurrency.into()).await?;
    let rewards = {
        let (health, concurrency) = (runtime.health.clone(), config.rewards_concurrency.into());
        rewards::react(pool.clone(), log.clone(), concurrency, health, stop.clone())
    };
    runtime.spawn("rewards", rewards);
    let publisher = outbox::publish(pool.clone(), log, stop);
    runtime.spawn("outbox", async move {
        publisher.await;
        Ok(())
    });
    tracing::info!("inventory is up");
    let result = runtime.wait().await;
    pool.close().await;
    result
}

/// Waits for the database to answer, and checks its schema; false when told to stop before it did.
async fn ready(pool: &MySqlPool, health: &Health, stop: &Shutdown) -> Result<bool, SchemaError> {
    loop {
        match timeout(ANSWER, mysql::check_schema(pool)).await {
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
                tracing::warn!("waiting for mysql, which takes the connection and does not answer");
                health.down("mysql", "does not answer");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(false),
            () = tokio::time::sleep(WATCH) => {}
        }
    }
}

/// Keeps /readyz right about MySQL, and the gauge of events that wait to be published.
async fn watch(pool: MySqlPool, health: Health, stop: Shutdown) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        match timeout(ANSWER, mysql::outbox::depth(&pool)).await {
            Ok(Ok(depth)) => {
                metrics::gauge!("garage_inventory_outbox_depth").set(depth);
                health.up("mysql");
            }
            Ok(Err(error)) => health.down("mysql", error.to_string()),
            Err(_) => health.down("mysql", "does not answer"),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(WATCH) => {}
        }
    }
    Ok(())
}

/// Forgets idempotency keys, batch by batch.
async fn forget(pool: MySqlPool, stop: Shutdown) -> anyhow::Result<()> {
    while !stop.is_cancelled() {
        match timeout(LIMIT, mysql::idempotency::forget(&pool)).await {
            Ok(Ok(mysql::idempotency::BATCH)) => continue,
            Ok(Ok(_)) => {}
            Err(_) => tracing::warn!("mysql takes too long to forget old idempotency keys, will try again"),
            Ok(Err(error)) => tracing::warn!(%error, "old idempotency keys cannot be forgotten, will try again"),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(FORGET) => {}
        }
    }
    Ok(())
}
