//! What other workers answer, with test doubles in their place.

use std::collections::BTreeMap;

use garage_events::{
    game::{Secret, fingerprint},
    id::SessionId,
    session::{Status, View},
    svc::{ActivateCar, Call, ConnectToken, Garage, GetGarage, GetSession, SignedToken, StoreCars},
    world::{System, World},
};
use garage_worker::service::{Refusal, Service};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, address, read};

/// Answers one kind of request for as long as the test runs.
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
    // Who asks next must find it, and a flush waits for no answer: this was asked behind the subscription, and answered.
    let refused = app.client.request(C::SUBJECT, "no request".into()).await.unwrap();
    assert!(refused.headers.is_some(), "the double answers");
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
async fn a_session_is_there_for_its_players_alone() {
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

    // To anybody else it is as one that never was.
    let nowhere = SessionId::new(System.id());
    let (_, unknown) = app.get("carl", &format!("/v1/sessions/{nowhere}")).await;
    for path in [format!("/v1/sessions/{open}"), format!("/v1/sessions/{open}/public-key")] {
        assert_eq!(app.get("carl", &path).await, (404, unknown.clone()));
    }
    assert_eq!(token("carl", open).await, (404, unknown));
}

#[tokio::test]
async fn a_garage_is_its_players() {
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
    answer::<ActivateCar>(&app, move |call| match call.car.as_str() {
        "gt" => Ok(garage(call.player, "gt")),
        "broken" => Err(Refusal::new(500, "mysql at 10.0.0.7 is on fire")),
        _ => Err(Refusal::new(404, "the player does not own that car")),
    })
    .await;

    assert_eq!(app.get("ann", "/v1/regions").await, (200, json!({"regions": ["eu", "us"]})));
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
