//! Blocked and kicked players. `support` checks each response and each frame against the descriptions.

use std::{net::SocketAddr, sync::Arc};

use garage_events::{
    block::{Block, Key, Kick},
    env::{Env, System},
    failure,
    player::{CancelReason, Event, Queued, Requeued, State},
    svc::{Call, GetProfile, Profile},
};
use garage_gateway::token::{GROUPS, sign_service_token};
use garage_worker::service::Service;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::timeout};
use tokio_tungstenite::tungstenite::Error;

use crate::{
    contract::{methods, paths},
    described::filled,
    support::{App, DEADLINE, TICKETS, key, matched, queued, read, ticket_request, token, token_of},
};

const ME: &str = "/v1/players/me";
const GROUPS_PATH: &str = "/v1/matchmaking/groups";

/// Writes an entry of the bucket, like an operator.
async fn put(app: &App, key: Key, value: &impl Serialize) {
    let body = serde_json::to_vec(value).unwrap();
    let context = async_nats::jetstream::new(app.client.clone());
    context.publish(key.to_string(), body.into()).await.unwrap().await.unwrap();
}

pub(crate) async fn block(app: &App, player: &str, block: &Block) {
    put(app, Key::Block(player.parse().unwrap()), block).await;
}

pub(crate) fn forever() -> Block {
    Block { until: None, reason: Some("cheating".into()) }
}

async fn kick(app: &App, player: &str) {
    put(app, Key::Kick(player.parse().unwrap()), &Kick { reason: Some("the server restarts".into()) }).await;
}

/// Removes a block, like an operator.
async fn unblock(app: &App, player: &str) {
    let key = Key::Block(player.parse().unwrap()).to_string();
    let context = async_nats::jetstream::new(app.client.clone());
    context.publish(key, "".into()).await.unwrap().await.unwrap();
}

/// Waits until a gateway answers a player's requests with this status. Returns the body.
pub(crate) async fn until_status(app: &App, gateway: SocketAddr, player: &str, status: u16) -> Value {
    let asking = async {
        loop {
            let request = app.anonymous_at(gateway, Method::GET, ME).bearer_auth(token(player));
            let (found, body) = read(request.send().await.unwrap()).await;
            if found == status {
                return body;
            }
        }
    };
    timeout(DEADLINE, asking).await.unwrap()
}

/// Waits until a player's ticket is cancelled, and returns the reason.
async fn until_cancelled(app: &App, player: &str) -> CancelReason {
    let cancelled = async {
        loop {
            if let Some(Event::Cancelled(data)) = app.player(player).await.last.map(|last| last.event) {
                return data.reason;
            }
        }
    };
    timeout(DEADLINE, cancelled).await.unwrap()
}

#[tokio::test]
async fn a_blocked_player_receives_the_reason_and_every_gateway_refuses_them() {
    let app = App::start().await;
    let other = app.another().await;
    let (mut ann, mut bob) = (app.socket_at(other, "ann", None).await, app.socket("bob", None).await);
    let until = System.now() + time::Duration::HOUR;
    let entry = Block { until: Some(until), reason: Some("cheating".into()) };
    block(&app, "ann", &entry).await;

    let notice = json!({"type": "blocked", "data": serde_json::to_value(&entry).unwrap()});
    assert_eq!(ann.event().await, notice);
    assert_eq!(ann.closed().await, 4012);
    for gateway in [app.address, other] {
        let problem = until_status(&app, gateway, "ann", 403).await;
        assert_eq!(problem["type"], "/problems/blocked");
        assert_eq!((&problem["until"], &problem["reason"]), (&notice["data"]["until"], &json!("cheating")));
    }
    let handshake = app.try_socket("", &[("Authorization", &format!("Bearer {}", token("ann")))]).await;
    assert!(matches!(handshake, Err(Error::Http(response)) if response.status() == 403));

    // Nobody else is affected.
    app.queue("bob", None).await;
    assert_eq!(bob.event().await["type"], "Queued");
}

#[tokio::test]
async fn every_route_that_needs_a_token_refuses_a_blocked_player() {
    let app = App::start().await;
    block(&app, "ann", &forever()).await;
    let problem = until_status(&app, app.address, "ann", 403).await;
    assert_eq!((problem.get("until"), &problem["reason"]), (None, &json!("cheating")));
    for (template, item) in paths().filter(|(template, _)| *template != "/v1/ws" && *template != GROUPS_PATH) {
        for method in methods(item) {
            if item[method.to_lowercase()]["security"] == json!([]) {
                continue;
            }
            let request = app.request("ann", method.parse().unwrap(), &filled(template));
            let (status, problem) = read(request.send().await.unwrap()).await;
            assert_eq!((status, &problem["type"]), (403, &json!("/problems/blocked")), "{method} {template}");
        }
    }
}

#[tokio::test]
async fn a_block_survives_the_restart_of_a_gateway_and_ends_when_it_is_removed() {
    let app = App::start().await;
    block(&app, "ann", &Block { until: None, reason: None }).await;
    let restarted = app.another().await;
    let request = app.anonymous_at(restarted, Method::GET, ME).bearer_auth(token("ann"));
    let (status, problem) = read(request.send().await.unwrap()).await;
    assert_eq!((status, problem.get("reason")), (403, None), "the first request after the restart");
    unblock(&app, "ann").await;
    for gateway in [app.address, restarted] {
        until_status(&app, gateway, "ann", 200).await;
    }
    app.queue("ann", None).await;
    assert!(matches!(app.player("ann").await.state, State::Waiting(_)));
}

#[tokio::test]
async fn a_block_ends_at_its_time() {
    let app = App::start().await;
    // Long enough that the gateway reads the block before it ends.
    block(&app, "ann", &Block { until: Some(System.now() + time::Duration::seconds(5)), reason: None }).await;
    until_status(&app, app.address, "ann", 403).await;
    until_status(&app, app.address, "ann", 200).await;
    // The entry is still there. A gateway that starts now ignores it.
    let started = app.another().await;
    let request = app.anonymous_at(started, Method::GET, ME).bearer_auth(token("ann"));
    assert_eq!(read(request.send().await.unwrap()).await.0, 200);
}

#[tokio::test]
async fn a_blocked_players_ticket_is_cancelled_for_the_whole_group() {
    let app = App::start().await;
    let ticket = Queued { group: vec!["ann".parse().unwrap(), "bob".parse().unwrap()], ..queued() };
    for player in ["ann", "bob"] {
        app.append(player, ticket.clone()).await;
    }
    block(&app, "ann", &forever()).await;
    assert_eq!(until_cancelled(&app, "ann").await, CancelReason::Disconnected);
    assert_eq!(until_cancelled(&app, "bob").await, CancelReason::Party);
}

#[tokio::test]
async fn a_request_that_is_in_progress_when_the_player_is_blocked_leaves_no_ticket() {
    let app = App::start().await;
    let other = app.another().await;
    // The request asks for the player's rank, and the answer has to wait.
    let (asked, answered) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let service = Service::start(&app.client, "double", "a double").await.unwrap();
    let (asks, waits) = (Arc::clone(&asked), Arc::clone(&answered));
    let handler = move |GetProfile { player }| {
        let (asks, waits) = (Arc::clone(&asks), Arc::clone(&waits));
        async move {
            asks.add_permits(1);
            waits.acquire().await.unwrap().forget();
            Ok(Profile { player, rank: 1_500, rating: 1_500.0, deviation: 350.0, matches: 0 })
        }
    };
    tokio::spawn(service.serve(16, app.shutdown.clone(), handler).await.unwrap());
    // An answer proves that the server knows the subscription.
    app.client.request(GetProfile::SUBJECT, "no request".into()).await.unwrap();

    let request = app.anonymous(Method::POST, TICKETS).bearer_auth(token_of("ann", None)).json(&ticket_request());
    let request = tokio::spawn(request.send());
    timeout(DEADLINE, asked.acquire()).await.unwrap().unwrap().forget();
    block(&app, "ann", &forever()).await;
    for gateway in [app.address, other] {
        until_status(&app, gateway, "ann", 403).await;
    }
    assert_eq!(app.last().await, 0, "the ticket is requested before the block, and stored after it");
    answered.add_permits(16);
    let (status, _) = read(timeout(DEADLINE, request).await.unwrap().unwrap().unwrap()).await;
    assert_eq!(status, 201);
    until_cancelled(&app, "ann").await;
}

#[tokio::test]
async fn a_match_goes_on_and_its_player_does_not_wait_again_if_it_fails() {
    let app = App::start().await;
    let first = queued();
    app.append("ann", first.clone()).await;
    let found = matched(&first);
    let session = found.session;
    app.append("ann", found).await;
    block(&app, "ann", &forever()).await;
    until_status(&app, app.address, "ann", 403).await;
    // Another blocked player's ticket is cancelled after this player was looked at.
    app.append("bob", queued()).await;
    block(&app, "bob", &forever()).await;
    until_cancelled(&app, "bob").await;
    assert!(matches!(app.player("ann").await.state, State::Matched(_)));
    app.append("ann", Requeued { session, reason: failure::Code::ServerFailed, queued: first }).await;
    until_cancelled(&app, "ann").await;
}

#[tokio::test]
async fn a_kicked_player_receives_the_reason_and_can_come_back_at_once() {
    let app = App::start().await;
    let other = app.another().await;
    app.queue("ann", None).await;
    let (mut ann, mut bob) = (app.socket("ann", None).await, app.socket_at(other, "bob", None).await);
    for (player, socket) in [("ann", &mut ann), ("bob", &mut bob)] {
        kick(&app, player).await;
        let notice = json!({"type": "kicked", "data": {"reason": "the server restarts"}});
        let frame = async {
            loop {
                let frame = socket.event().await;
                // Its ticket may be cancelled before the socket is closed.
                if frame["type"] != "Cancelled" {
                    return frame;
                }
            }
        };
        assert_eq!(frame.await, notice);
        assert_eq!(socket.closed().await, 4013);
    }
    assert_eq!(until_cancelled(&app, "ann").await, CancelReason::Disconnected);

    // The kick is over, also for a gateway that starts now and reads it.
    let mut ann = app.socket("ann", None).await;
    let (status, _) = app.queue("ann", None).await;
    assert_eq!(status, 201);
    assert_eq!(ann.event().await["type"], "Queued");
    let started = app.another().await;
    let mut bob = app.socket_at(started, "bob", None).await;
    app.queue("bob", None).await;
    assert_eq!(bob.event().await["type"], "Queued");
    for player in ["ann", "bob"] {
        assert!(matches!(app.player(player).await.state, State::Waiting(_)), "{player}");
    }
}

#[tokio::test]
async fn a_group_with_a_blocked_player_is_refused() {
    let app = App::start().await;
    block(&app, "ann", &forever()).await;
    until_status(&app, app.address, "ann", 403).await;
    let backend = sign_service_token(&key(), "backend", GROUPS, DEADLINE).unwrap();
    let members = ["bob", "ann"].map(|player| json!({"player": player, "rank": 1, "latencies": {"eu": 20}}));
    let request = app.anonymous(Method::POST, GROUPS_PATH).bearer_auth(backend.expose().to_owned());
    let request = request.json(&json!({"queue": "ranked", "players": members}));
    let (status, problem) = read(request.send().await.unwrap()).await;
    assert_eq!((status, &problem["type"], &problem["player"]), (403, &json!("/problems/blocked"), &json!("ann")));
    assert_eq!(app.last().await, 0);
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_changes_nothing() {
    let app = App::start().await;
    block(&app, "ann", &forever()).await;
    until_status(&app, app.address, "ann", 403).await;
    put(&app, Key::Block("ann".parse().unwrap()), &json!({"until": "tomorrow"})).await;
    put(&app, Key::Kick("bob".parse().unwrap()), &json!([])).await;
    // The gateway has read the entries above when it has read this one.
    block(&app, "carl", &forever()).await;
    until_status(&app, app.address, "carl", 403).await;
    until_status(&app, app.address, "ann", 403).await;
}
