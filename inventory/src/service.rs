//! The request endpoints for other workers.

use garage_events::svc::{Call, Execute, GetGarage, GetLedger, GetProfile, Loadouts, StoreCars, StoreItems};
use garage_worker::{
    Runtime,
    service::{Refusal, Service},
};
use sqlx::MySqlPool;

use crate::{
    domain::store::Rejection,
    error::Error,
    mysql::{catalogue, commands, garage, ledger, ratings},
};

/// Starts all endpoints. Each handles at most `concurrency` requests at a time. The session worker asks for loadouts
/// when a match starts, so they have connections that players' requests cannot use up.
///
/// # Errors
/// When the service cannot be registered with NATS.
pub async fn start(
    runtime: &mut Runtime,
    (requests, matches): (&MySqlPool, &MySqlPool),
    concurrency: usize,
) -> anyhow::Result<()> {
    let service = Service::start(&runtime.client, "inventory", "cars, items, wallets, ratings").await?;

    let database = matches.clone();
    serve(runtime, &service, "loadouts", concurrency, move |call: Loadouts| {
        let pool = database.clone();
        async move { garage::loadouts(&pool, &call.players).await }
    })
    .await?;

    let database = requests.clone();
    serve(runtime, &service, "cars", concurrency, move |StoreCars {}| {
        let pool = database.clone();
        async move { catalogue::cars(&pool).await }
    })
    .await?;

    let database = requests.clone();
    serve(runtime, &service, "garage", concurrency, move |call: GetGarage| {
        let pool = database.clone();
        async move { garage::garage(&pool, &call.player).await }
    })
    .await?;

    let database = requests.clone();
    serve(runtime, &service, "items", concurrency, move |StoreItems {}| {
        let pool = database.clone();
        async move { catalogue::items(&pool).await }
    })
    .await?;

    let database = requests.clone();
    serve(runtime, &service, "execute", concurrency, move |call: Execute| {
        let pool = database.clone();
        async move { commands::execute(&pool, &call.player, call.key.as_ref(), &call.command).await }
    })
    .await?;

    let database = requests.clone();
    serve(runtime, &service, "profile", concurrency, move |call: GetProfile| {
        let pool = database.clone();
        async move { ratings::profile(&pool, &call.player).await }
    })
    .await?;

    let database = requests.clone();
    serve(runtime, &service, "ledger", concurrency, move |call: GetLedger| {
        let pool = database.clone();
        async move { ledger::page(&pool, &call.player, call.before, call.limit).await }
    })
    .await
}

async fn serve<C, F, R>(
    runtime: &mut Runtime,
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
    metrics::counter!("garage_inventory_refusals_total", "endpoint" => name).increment(0);
    let respond = move |call| {
        let answer = handler(call);
        async move { answer.await.map_err(|error| refusal(name, error)) }
    };
    let task = service.serve(concurrency, runtime.shutdown.clone(), respond).await?;
    runtime.spawn(name, task);
    Ok(())
}

/// Converts an error to the refusal that the caller receives. The details of internal errors go to this worker's log
/// only.
fn refusal(endpoint: &'static str, error: Error) -> Refusal {
    metrics::counter!("garage_inventory_refusals_total", "endpoint" => endpoint).increment(1);
    match error {
        Error::Rejected(rejection) => Refusal::new(status(&rejection), rejection.to_string()),
        Error::KeyReused => Refusal::new(422, error.to_string()),
        Error::TooMany { .. } => Refusal::new(400, error.to_string()),
        Error::Unavailable(_) => {
            tracing::warn!(endpoint, %error, "request refused: mysql is not available");
            Refusal::new(503, "mysql is not available")
        }
        Error::Refused(_) | Error::Corrupt(_) => {
            tracing::error!(endpoint, %error, "request failed: internal error");
            Refusal::new(500, "internal error in inventory; see its log")
        }
    }
}

/// The HTTP status of a rejection: 404 if something does not exist or is not owned, 409 if the state forbids the
/// command.
fn status(rejection: &Rejection) -> u16 {
    match rejection {
        Rejection::NoSuchCar(_)
        | Rejection::NoSuchItem(_)
        | Rejection::CarNotOwned(_)
        | Rejection::ItemNotOwned(_)
        | Rejection::NoSuchSlot { .. } => 404,
        Rejection::AlreadyOwned(_)
        | Rejection::NotEnoughCoins { .. }
        | Rejection::CarIsActive(_)
        | Rejection::AllMounted(_)
        | Rejection::WrongSlot { .. } => 409,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_map_to_http_statuses() {
        let not_owned = Error::from(Rejection::CarNotOwned("vixen".parse().unwrap()));
        assert_eq!(refusal("execute", not_owned), Refusal::new(404, "the player does not own the car vixen"));
        let not_enough = Rejection::NotEnoughCoins { price: 5_000, balance: 1_000 };
        let message = "not enough coins: the price is 5000, the wallet holds 1000";
        assert_eq!(refusal("execute", not_enough.into()), Refusal::new(409, message));
        assert_eq!(refusal("execute", Error::KeyReused).code, 422);
        assert_eq!(refusal("loadouts", Error::TooMany { requested: 65, max: 64 }).code, 400);
        assert_eq!(refusal("garage", Error::from(sqlx::Error::PoolTimedOut)).code, 503);
        assert_eq!(
            refusal("garage", Error::Corrupt("a row".into())),
            Refusal::new(500, "internal error in inventory; see its log")
        );
    }
}
