//! Requests that other workers answer. Test doubles take their place.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use garage_events::{
    env::{Env, System},
    game::{Secret, fingerprint},
    id::SessionId,
    session::{Status, View},
    svc::{
        Call, Command, ConnectToken, Execute, Garage, GetGarage, GetLedger, GetProfile, GetSession, LedgerEntry,
        Profile, SignedToken, StoreCars, StoreItems,
    },
};
use garage_worker::service::{Refusal, Service};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, TICKETS, address, read, token_of};

/// Answers one kind of request until the end of the test.
async fn answer<C: Call + 'static>(
    app: &App,
    reply: impl Fn(C) -> Result<C::Reply, Refusal> + Clone + Send + Sync + 'static,
) where
    C::Reply: 'static,
{
    let service = Service::start(&app.client, "double", "a double").await.unwrap();
    let handler = move |call| {
        let reply = reply(call);
        async move { reply }
    };
    tokio::spawn(service.serve(16, app.shutdown.clone(), handler).await.unwrap());
    // Wait until the server knows the subscription: a flush does not wait for the server, but an answered request
    // proves it.
    let refused = app.client.request(C::SUBJECT, "no request".into()).await.unwrap();
    assert!(refused.headers.is_some(), "the double answers with an error");
}

fn view(session: SessionId, public_key: Option<String>) -> View {
    let teams = json!([
        {"name": "1", "players": [{"player": "ann", "ticket": uuid::Uuid::nil(), "rank": 1}]},
        {"name": "2", "players": [{"player": "bob=40x", "ticket": uuid::Uuid::nil(), "rank": 2}]},
    ]);
    View {
        session,
        status: Status::Open,
        queue: "ranked".parse().unwrap(),
        region: "eu".parse().unwrap(),
        teams: serde_json::from_value(teams).unwrap(),
        address: Some(address()),
        public_key,
        closed: None,
    }
}

#[tokio::test]
async fn a_session_is_visible_only_to_its_players() {
    let app = App::start().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = key.public_key_pem();
    let (open, early) = (SessionId::new(System.id()), SessionId::new(System.id()));
    let known = pem.clone();
    answer::<GetSession>(&app, move |call| match call.session {
        id if id == open => Ok(view(id, Some(known.clone()))),
        id if id == early => Ok(view(id, None)),
        _ => Err(Refusal::new(404, "no session")),
    })
    .await;
    answer::<ConnectToken>(&app, move |call| match (call.session == open, call.player.as_str()) {
        (true, "ann") => Ok(SignedToken { token: Secret::new("a.b.c"), expires_at: System.now() }),
        (false, "ann") => Err(Refusal::new(409, "the session is not open")),
        _ => Err(Refusal::new(404, "not in it")),
    })
    .await;

    for player in ["ann", "bob@x"] {
        let (status, body) = app.get(player, &format!("/v1/sessions/{open}")).await;
        assert_eq!((status, body), (200, serde_json::to_value(view(open, Some(pem.clone()))).unwrap()));
    }
    let (status, body) = app.get("ann", &format!("/v1/sessions/{open}/public-key")).await;
    use rcgen::PublicKeyData;
    let expected = json!({"public_key": pem, "fingerprint": fingerprint(&key.subject_public_key_info())});
    assert_eq!((status, body), (200, expected));
    assert_eq!(app.get("ann", &format!("/v1/sessions/{early}/public-key")).await.0, 404);

    let token = async |player: &str, session| {
        let path = format!("/v1/sessions/{session}/connect-token");
        read(app.request(player, Method::POST, &path).send().await.unwrap()).await
    };
    let (status, body) = token("ann", open).await;
    assert_eq!((status, &body["token"]), (200, &json!("a.b.c")));
    assert!(body["expires_at"].is_string());
    assert_eq!(token("ann", early).await.0, 409);

    // Any other player gets the same answer as if the session did not exist.
    let nowhere = SessionId::new(System.id());
    let (_, unknown) = app.get("carl", &format!("/v1/sessions/{nowhere}")).await;
    for path in [format!("/v1/sessions/{open}"), format!("/v1/sessions/{open}/public-key")] {
        assert_eq!(app.get("carl", &path).await, (404, unknown.clone()));
    }
    assert_eq!(token("carl", open).await, (404, unknown));
}

#[tokio::test]
async fn a_player_reads_and_changes_their_own_garage() {
    let app = App::start().await;
    let garage = |player, car: &str| Garage {
        player,
        balance: 100,
        active_car: car.parse().unwrap(),
        cars: Vec::new(),
        items: BTreeMap::new(),
    };
    answer::<StoreCars>(&app, |_| Ok(Vec::new())).await;
    answer::<GetGarage>(&app, move |call| Ok(garage(call.player, "starter"))).await;
    answer::<Execute>(&app, move |call| match call.command {
        Command::Activate { car } if car.as_str() == "gt" => Ok(garage(call.player, "gt")),
        Command::Activate { car } if car.as_str() == "broken" => Err(Refusal::new(500, "mysql at 10.0.0.7 is on fire")),
        _ => Err(Refusal::new(404, "the player does not own that car")),
    })
    .await;

    assert_eq!(app.get("ann", "/v1/store/cars").await, (200, json!({"cars": []})));
    let (status, body) = app.get("ann", "/v1/garage").await;
    assert_eq!((status, &body["player"], &body["active_car"]), (200, &json!("ann"), &json!("starter")));
    let put = async |body: Value| {
        read(app.request("ann", Method::PUT, "/v1/garage/active-car").json(&body).send().await.unwrap()).await
    };
    let (status, body) = put(json!({"car": "gt"})).await;
    assert_eq!((status, &body["active_car"]), (200, &json!("gt")));
    assert_eq!(put(json!({"car": "tank"})).await.0, 404);
    assert_eq!(put(json!({"car": "GT 40"})).await.0, 422);
    assert_eq!(put(json!({"car": "gt", "player": "bob"})).await.0, 422);
    let (status, body) = put(json!({"car": "broken"})).await;
    assert_eq!(status, 502);
    assert!(!body.to_string().contains("10.0"), "{body}");
}

#[tokio::test]
async fn each_garage_route_sends_its_command_and_idempotency_key_to_inventory() {
    let app = App::start().await;
    let requests = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&requests);
    let garage = |player| Garage {
        player,
        balance: 100,
        active_car: "gt".parse().unwrap(),
        cars: Vec::new(),
        items: BTreeMap::new(),
    };
    answer::<Execute>(&app, move |call| {
        let refused = call.key.as_ref().is_some_and(|key| key.as_str() == "reused");
        recorded.lock().unwrap().push(json!([call.player, call.key, call.command]));
        if refused { Err(Refusal::new(422, "another command")) } else { Ok(garage(call.player)) }
    })
    .await;
    let (car, item) = (json!({"car": "gt"}), json!({"item": "wing"}));
    let slot = "/v1/garage/cars/gt/slots/spoiler";
    for (method, path, body, status, command) in [
        (Method::POST, "/v1/garage/cars", Some(&car), 201, json!({"type": "buy-car", "car": "gt"})),
        (Method::DELETE, "/v1/garage/cars/gt", None, 200, json!({"type": "sell-car", "car": "gt"})),
        (Method::POST, "/v1/garage/items", Some(&item), 201, json!({"type": "buy-item", "item": "wing"})),
        (Method::DELETE, "/v1/garage/items/wing", None, 200, json!({"type": "sell-item", "item": "wing"})),
        (Method::PUT, slot, Some(&item), 200, json!({"type": "mount", "car": "gt", "slot": "spoiler", "item": "wing"})),
        (Method::DELETE, slot, None, 200, json!({"type": "unmount", "car": "gt", "slot": "spoiler"})),
        (Method::PUT, "/v1/garage/active-car", Some(&car), 200, json!({"type": "activate", "car": "gt"})),
    ] {
        for key in [None, Some("k"), Some("reused")] {
            let mut request = app.request("ann", method.clone(), path);
            if let Some(body) = body {
                request = request.json(body);
            }
            if let Some(key) = key {
                request = request.header("Idempotency-Key", key);
            }
            let (found, answered) = read(request.send().await.unwrap()).await;
            assert_eq!(found, if key == Some("reused") { 422 } else { status }, "{method} {path}: {answered}");
            if found == status {
                assert_eq!((&answered["player"], &answered["balance"]), (&json!("ann"), &json!(100)));
            }
            assert_eq!(requests.lock().unwrap().pop(), Some(json!(["ann", key, command])), "{method} {path}");
        }
    }
    assert!(requests.lock().unwrap().is_empty(), "each request is sent once");
}

#[tokio::test]
async fn a_player_reads_the_store_and_the_wallet() {
    let app = App::start().await;
    answer::<StoreItems>(&app, |_| Ok(Vec::new())).await;
    answer::<GetGarage>(&app, |call| {
        let (active_car, cars, items) = ("gt".parse().unwrap(), Vec::new(), BTreeMap::new());
        Ok(Garage { player: call.player, balance: 77, active_car, cars, items })
    })
    .await;
    answer::<GetLedger>(&app, |call| {
        // The entry contains the request's parameters.
        let (id, at) = (call.before.unwrap_or(1_000), time::OffsetDateTime::UNIX_EPOCH);
        let (reason, about) = (call.player.to_string(), None);
        Ok(vec![LedgerEntry { id, reason, about, amount: call.limit.into(), balance: 0, at }])
    })
    .await;
    assert_eq!(app.get("ann", "/v1/store/items").await, (200, json!({"items": []})));
    assert_eq!(app.get("ann", "/v1/wallet").await, (200, json!({"balance": 77})));
    for (query, id, limit) in [("", 1_000, 50), ("?limit=100", 1_000, 100), ("?before=7&limit=1", 7, 1)] {
        let (status, body) = app.get("ann", &format!("/v1/wallet/ledger{query}")).await;
        let entry = json!({"id": id, "reason": "ann", "amount": limit, "balance": 0, "at": "1970-01-01T00:00:00Z"});
        assert_eq!((status, body), (200, json!({"entries": [entry]})), "{query}");
    }
}

#[tokio::test]
async fn the_rank_comes_from_the_client_if_the_queue_allows_it_else_from_the_token_else_from_the_profile() {
    let app = App::start().await;
    let queue = async |player: &str, claim: Option<i32>, body: Value| {
        let request = app
            .anonymous(Method::POST, TICKETS)
            .header("authorization", format!("Bearer {}", token_of(player, claim)))
            .json(&body);
        let response = request.send().await.unwrap();
        let retry_after = response.headers().get("retry-after").cloned();
        let (status, body) = read(response).await;
        let rank = match app.player(player).await.state {
            garage_events::player::State::Waiting(queued) => Some(queued.rank),
            _ => None,
        };
        (status, rank, retry_after.is_some(), body["detail"].as_str().unwrap_or_default().to_owned())
    };
    let ranked = || json!({"queue": "ranked", "latencies": {"eu": 20}});
    let open = |rank: Option<i32>| json!({"queue": "open", "rank": rank, "latencies": {"eu": 20}});

    // While the inventory worker is down, only players whose rank is in neither the request nor the token get a 503.
    let (status, rank, retry, _) = queue("ann", None, ranked()).await;
    assert_eq!((status, rank, retry), (503, None, true));
    assert_eq!(queue("bob", Some(-7), ranked()).await.1, Some(-7));
    assert_eq!(queue("carl", Some(-7), open(Some(8))).await.1, Some(8));
    assert_eq!(queue("dora", None, open(Some(9))).await.1, Some(9));
    assert_eq!(queue("emil", Some(-7), open(None)).await.1, Some(-7));
    let (status, .., detail) = queue("emil", None, ranked()).await;
    assert_eq!(status, 409, "a player who already waits gets the conflict even if inventory is down: {detail}");

    let requests = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&requests);
    answer::<GetProfile>(&app, move |GetProfile { player }| {
        recorded.lock().unwrap().push(player.to_string());
        Ok(Profile { player, rank: 1_662, rating: 1_662.2, deviation: 290.3, matches: 1 })
    })
    .await;
    assert_eq!(queue("ann", None, ranked()).await.1, Some(1_662));
    assert_eq!(queue("fred", None, open(None)).await.1, Some(1_662));
    let (status, rank, _, detail) =
        queue("gina", None, json!({"queue": "ranked", "rank": 1, "latencies": {"eu": 20}})).await;
    assert_eq!((status, rank), (422, None));
    assert!(detail.contains("accepts no rank"), "{detail}");
    assert_eq!(*requests.lock().unwrap(), ["ann", "fred"], "only their ranks are requested");

    let (status, profile) = app.get("ann", "/v1/profile").await;
    let expected = json!({"player": "ann", "rank": 1_662, "rating": 1_662.2, "deviation": 290.3, "matches": 1});
    assert_eq!((status, profile), (200, expected));
}
