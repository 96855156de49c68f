//! During an outage clients get a 503 with `Retry-After`. Afterwards the gateway works again.

use reqwest::{Method, StatusCode};
use tokio::time::timeout;

use crate::support::{App, DEADLINE, TICKETS, read, ticket_request};

const SESSION: &str = "/v1/sessions/0198c5a0-7b1e-7c3d-8000-0123456789ab";

async fn unavailable(app: &App, method: Method, path: &str) {
    let response = app.request("ann", method.clone(), path).json(&ticket_request()).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{method} {path}");
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().is_ok());
    read(response).await;
}

#[tokio::test]
async fn clients_get_a_503_for_a_service_that_does_not_run() {
    let app = App::start().await;
    let token = format!("{SESSION}/connect-token");
    let all =
        [(Method::GET, SESSION), (Method::POST, &token), (Method::GET, "/v1/store/cars"), (Method::GET, "/v1/garage")];
    for (method, path) in all {
        unavailable(&app, method, path).await;
    }
}

#[tokio::test]
async fn clients_get_a_503_while_nats_is_paused() {
    let mut app = App::start().await;
    let mut socket = app.socket("ann", None).await;
    // The client answers pings only while it reads.
    let event = tokio::spawn(async move { socket.event().await });
    app.nats.node(0).unwrap().pause().unwrap();
    tokio::join!(
        unavailable(&app, Method::POST, TICKETS),
        unavailable(&app, Method::GET, "/v1/players/me"),
        unavailable(&app, Method::GET, SESSION),
        unavailable(&app, Method::GET, "/v1/garage"),
    );
    app.nats.node(0).unwrap().resume().unwrap();
    let queue = async { while app.queue("ann", Some("k")).await.0 != 201 {} };
    timeout(DEADLINE, queue).await.unwrap();
    assert_eq!(event.await.unwrap()["type"], "Queued");
}

#[tokio::test]
async fn a_socket_survives_a_restart_of_nats() {
    let mut app = App::start().await;
    let mut socket = app.socket("ann", None).await;
    let (_, first) = app.queue("ann", None).await;
    assert_eq!(socket.event().await["seq"], first["seq"]);
    let event = tokio::spawn(async move { socket.event().await });
    app.nats.kill();
    unavailable(&app, Method::GET, "/v1/players/me").await;
    app.nats.node(0).unwrap().restart().await.unwrap();
    let ticket = first["ticket"].as_str().unwrap();
    let cancel = async { while app.cancel("ann", ticket).await.0 != 204 {} };
    timeout(DEADLINE, cancel).await.unwrap();
    let event = event.await.unwrap();
    assert_eq!((event["type"].as_str(), event["n"].as_u64()), (Some("Cancelled"), Some(2)));
}
