//! Pays and rates the players when a session closes.

use garage_events::{jetstream::JetStreamLog, session};
use garage_worker::{
    Health, Shutdown,
    reactor::{self, Delivery, Failure},
};
use sqlx::MySqlPool;

use crate::{BACKGROUND_TIMEOUT, error::Error, mysql::rewards::pay};

/// Reacts to `garage.session.*.closed` until `shutdown` is cancelled, to at most `concurrency` events at a time.
///
/// # Errors
/// See [`reactor::react`].
pub async fn react(
    pool: MySqlPool,
    log: JetStreamLog,
    concurrency: usize,
    health: Health,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let consumer = garage_events::jetstream::setup::INVENTORY;
    let handler = move |delivery: Delivery| {
        let pool = pool.clone();
        async move { handle(&pool, &delivery).await }
    };
    reactor::react(log.context().clone(), consumer, concurrency, health, shutdown, handler).await
}

async fn handle(pool: &MySqlPool, delivery: &Delivery) -> Result<(), Failure> {
    let session::Event::Closed(closed) = delivery.event::<session::Event>()?.event else {
        // Not reachable: the consumer's filter excludes all other event types.
        return Ok(());
    };
    let aggregate = garage_events::subject::Aggregate::of(&delivery.subject);
    let Some(garage_events::subject::Aggregate::Session(session)) = aggregate else {
        return Err(Failure::Poison(anyhow::anyhow!("{} is not the subject of a session", delivery.subject)));
    };
    let Ok(paid) = tokio::time::timeout(BACKGROUND_TIMEOUT, pay(pool, session, &closed.results, &closed.teams)).await
    else {
        return Err(Failure::Unavailable(anyhow::anyhow!("mysql did not answer in time")));
    };
    paid.map_err(|error| match error {
        Error::Unavailable(_) => Failure::Unavailable(error.into()),
        Error::Refused(_) | Error::Corrupt(_) => Failure::Retry(error.into()),
        Error::Rejected(_) | Error::KeyReused | Error::TooMany { .. } => Failure::Poison(error.into()),
    })
}
