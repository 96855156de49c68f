//! The store, the garage, the wallet and the profile. Each request becomes one request to the inventory worker, which
//! decides.

use garage_events::{
    id::{CarId, ItemId, Slot},
    svc::{self, Command, Execute, GetGarage, GetLedger, GetProfile, StoreCars, StoreItems},
};
use hyper::{Method, StatusCode};
use serde_json::json;
use warp::{Filter, filters::BoxedFilter, path, reply::Response};

use super::{Answer, Call, answer, ok};
use crate::{problem::Problem, request};

pub(super) fn all(call: &BoxedFilter<(Call,)>) -> BoxedFilter<(Response,)> {
    let call = || call.clone();
    let cars = path!("v1" / "store" / "cars").and(call()).then(|call| answer("/v1/store/cars", cars(call)));
    let items = path!("v1" / "store" / "items").and(call()).then(|call| answer("/v1/store/items", items(call)));
    let garage = path!("v1" / "garage").and(call()).then(|call| answer("/v1/garage", garage(call)));
    let active_car = path!("v1" / "garage" / "active-car")
        .and(call())
        .then(|call| answer("/v1/garage/active-car", active_car(call)));
    let bought_cars = path!("v1" / "garage" / "cars").and(call()).then(|call| answer("/v1/garage/cars", buy_car(call)));
    let owned_car = path!("v1" / "garage" / "cars" / CarId)
        .and(call())
        .then(|car, call| answer("/v1/garage/cars/{car}", sell_car(car, call)));
    let slot = path!("v1" / "garage" / "cars" / CarId / "slots" / Slot)
        .and(call())
        .then(|car, slot, call| answer("/v1/garage/cars/{car}/slots/{slot}", mount(car, slot, call)));
    let bought_items =
        path!("v1" / "garage" / "items").and(call()).then(|call| answer("/v1/garage/items", buy_item(call)));
    let owned_item = path!("v1" / "garage" / "items" / ItemId)
        .and(call())
        .then(|item, call| answer("/v1/garage/items/{item}", sell_item(item, call)));
    let wallet = path!("v1" / "wallet").and(call()).then(|call| answer("/v1/wallet", wallet(call)));
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let ledger = path!("v1" / "wallet" / "ledger")
        .and(query)
        .and(call())
        .then(async |query: String, call| answer("/v1/wallet/ledger", ledger(&query, call)).await);

    let profile = path!("v1" / "profile").and(call()).then(|call| answer("/v1/profile", profile(call)));

    let store = cars.or(items).unify().or(wallet).unify().or(ledger).unify().or(profile).unify().boxed();
    let cars = active_car.or(bought_cars).unify().or(owned_car).unify().or(slot).unify().boxed();
    let items = bought_items.or(owned_item).unify().boxed();
    store.or(garage).unify().or(cars).unify().or(items).unify().boxed()
}

async fn cars(call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    call.reader()?;
    let cars = svc::call(&call.app.client, &StoreCars {}).await?;
    ok(StatusCode::OK, &json!({ "cars": cars }))
}

async fn items(call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    call.reader()?;
    let items = svc::call(&call.app.client, &StoreItems {}).await?;
    ok(StatusCode::OK, &json!({ "items": items }))
}

async fn garage(call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    let player = call.reader()?;
    ok(StatusCode::OK, &svc::call(&call.app.client, &GetGarage { player }).await?)
}

async fn wallet(call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    let player = call.reader()?;
    let garage = svc::call(&call.app.client, &GetGarage { player }).await?;
    ok(StatusCode::OK, &json!({ "balance": garage.balance }))
}

async fn ledger(query: &str, call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    let player = call.reader()?;
    let (before, limit) = request::page(query)?;
    let entries = svc::call(&call.app.client, &GetLedger { player, before, limit }).await?;
    ok(StatusCode::OK, &json!({ "entries": entries }))
}

async fn profile(call: Call) -> Answer {
    call.only(&Method::GET, "GET")?;
    let player = call.reader()?;
    ok(StatusCode::OK, &svc::call(&call.app.client, &GetProfile { player }).await?)
}

async fn active_car(call: Call) -> Answer {
    call.only(&Method::PUT, "PUT")?;
    execute(&call, StatusCode::OK, || Ok(Command::Activate { car: request::car(&call.headers, &call.body)? })).await
}

async fn buy_car(call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    execute(&call, StatusCode::CREATED, || Ok(Command::BuyCar { car: request::car(&call.headers, &call.body)? })).await
}

async fn sell_car(car: CarId, call: Call) -> Answer {
    call.only(&Method::DELETE, "DELETE")?;
    execute(&call, StatusCode::OK, || Ok(Command::SellCar { car })).await
}

async fn buy_item(call: Call) -> Answer {
    call.only(&Method::POST, "POST")?;
    execute(&call, StatusCode::CREATED, || Ok(Command::BuyItem { item: request::item(&call.headers, &call.body)? }))
        .await
}

async fn sell_item(item: ItemId, call: Call) -> Answer {
    call.only(&Method::DELETE, "DELETE")?;
    execute(&call, StatusCode::OK, || Ok(Command::SellItem { item })).await
}

async fn mount(car: CarId, slot: Slot, call: Call) -> Answer {
    let command = || match call.method {
        Method::PUT => Ok(Command::Mount { car, slot, item: request::item(&call.headers, &call.body)? }),
        _ => Ok(Command::Unmount { car, slot }),
    };
    match call.method {
        Method::PUT | Method::DELETE => execute(&call, StatusCode::OK, command).await,
        _ => Err(Problem::method_not_allowed("PUT, DELETE")),
    }
}

/// Executes a command, and answers with the player's garage after it. Checks the token first, so that a client without
/// a valid token does not learn whether its body is valid.
async fn execute(call: &Call, status: StatusCode, command: impl FnOnce() -> Result<Command, Problem>) -> Answer {
    let player = call.identity(&call.app.admission.garage)?.player;
    let command = command()?;
    let keyed = call.keyed(&player)?;
    let key = keyed.as_ref().map(|keyed| keyed.key.clone());
    let (client, execute) = (call.app.client.clone(), Execute { player: player.clone(), key, command });
    let executed = async move { ok(status, &svc::call(&client, &execute).await?) };
    call.app.admission.garage_turns.run(&player, keyed, executed).await?
}
