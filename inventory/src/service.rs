//! The endpoints that other workers ask.

use std::time::Duration;

use garage_events::svc::{ActivateCar, Call, GetGarage, Loadouts, StoreCars, TIMEOUT};
use garage_worker::{
    Ground,
    service::{Refusal, Service},
};
use sqlx::MySqlPool;

use crate::{
    error::Error,
    mysql::{catalogue, garage},
};

/// How long a request may take: a little less than its caller waits, so that he hears why.
const LIMIT: Duration = TIMEOUT.saturating_sub(Duration::from_millis(500));

/// Opens the endpoints and answers, at most `concurrency` requests of each kind at a time.
///
/// # Errors
/// When the service cannot be announced.
pub async fn start(ground: &mut Ground, pool: &MySqlPool, concurrency: usize) -> anyhow::Result<()> {
    let service = Service::start(&ground.client, "inventory", "cars, items, wallets").await?;

    let database = pool.clone();
    serve(ground, &service, "loadouts", concurrency, move |call: Loadouts| {
        let pool = database.clone();
        async move { garage::loadouts(&pool, &call.players).await }
    })
    .await?;

    let database = pool.clone();
    serve(ground, &service, "cars", concurrency, move |StoreCars {}| {
        let pool = database.clone();
        async move { catalogue::cars(&pool).await }
    })
    .await?;

    let database = pool.clone();
    serve(ground, &service, "garage", concurrency, move |call: GetGarage| {
        let pool = database.clone();
        async move { garage::garage(&pool, &call.player).await }
    })
    .await?;

    let database = pool.clone();
    serve(ground, &service, "activate", concurrency, move |call: ActivateCar| {
        let pool = database.clone();
        async move { garage::activate(&pool, &call.player, &call.car).await }
    })
    .await
}

async fn serve<C, F, R>(
    ground: &mut Ground,
    service: &Service,
    name: &'static str,
    concurrency: usize,
    handler: F,
) -> anyhow::Result<()>
where
    C: Call + 'static,
    F: Fn(C) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<C::Reply, Error>> + Send + 'static,
{
    let limited = move |call| {
        let answer = handler(call);
        async move {
            match tokio::time::timeout(LIMIT, answer).await {
                Ok(answer) => answer.map_err(|error| refusal(name, error)),
                Err(_) => Err(Refusal::new(503, "mysql takes too long")),
            }
        }
    };
    let task = service.serve(concurrency, ground.shutdown.clone(), limited).await?;
    ground.spawn(name, task);
    Ok(())
}

/// What the caller hears. A fault of ours is said here in full, as nobody else will; to him it is just that.
fn refusal(endpoint: &'static str, error: Error) -> Refusal {
    metrics::counter!("garage_inventory_refusals_total", "endpoint" => endpoint).increment(1);
    match error {
        Error::NotOwned { .. } => Refusal::new(404, error.to_string()),
        Error::TooMany { .. } => Refusal::new(400, error.to_string()),
        Error::Unavailable(_) => {
            tracing::warn!(endpoint, %error, "request refused");
            Refusal::new(503, "mysql is not available")
        }
        Error::Refused(_) | Error::Corrupt(_) => {
            tracing::error!(endpoint, %error, "request failed");
            Refusal::new(500, "inventory failed; its log says why")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_the_meaning_of_http() {
        let not_owned = Error::NotOwned { player: "anna".parse().unwrap(), car: "vixen".parse().unwrap() };
        assert_eq!(refusal("activate", not_owned), Refusal::new(404, "anna does not own the car vixen"));
        assert_eq!(refusal("loadouts", Error::TooMany { asked: 65, most: 64 }).code, 400);
        assert_eq!(refusal("garage", Error::from(sqlx::Error::PoolTimedOut)).code, 503);
        assert_eq!(
            refusal("garage", Error::Corrupt("a row".into())),
            Refusal::new(500, "inventory failed; its log says why")
        );
    }
}
