//! Presence: each player has one socket, and the ticket of a player who disconnects is cancelled.

use async_nats::jetstream::stream::Config;
use garage_events::{
    env::{Env, System},
    player::{CancelReason, Event, State},
    presence,
};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Error;

use crate::support::{App, DEADLINE, token};

/// Starts a gateway with this grace period in seconds. The default is too long for a test.
async fn start(grace: u32) -> App {
    App::start_with(|_| vec![format!("--grace={grace}")]).await
}

async fn waits(app: &App, player: &str) -> bool {
    matches!(app.player(player).await.state, State::Waiting(_))
}

async fn until_cancelled(app: &App, player: &str) {
    let gone = async { while waits(app, player).await {} };
    timeout(DEADLINE, gone).await.unwrap();
    let last = app.player(player).await.last.unwrap().event;
    assert!(matches!(&last, Event::Cancelled(data) if data.reason == CancelReason::Disconnected), "{last:?}");
}

#[tokio::test]
async fn a_newer_socket_closes_the_players_older_one_on_any_gateway() {
    let app = start(15).await;
    let other = app.another().await;
    let mut one = app.socket("ann", None).await;
    let mut two = app.socket("ann", None).await;
    assert_eq!(one.closed().await, 4010);
    let mut three = app.socket_at(other, "ann", None).await;
    assert_eq!(two.closed().await, 4010);
    let (_, ticket) = app.queue("ann", None).await;
    assert_eq!(three.event().await["data"]["ticket"], ticket["ticket"]);
    let mut four = app.socket("ann", Some(0)).await;
    assert_eq!(three.closed().await, 4010);
    assert_eq!(four.event().await["data"]["ticket"], ticket["ticket"]);
}

#[tokio::test]
async fn a_queued_player_who_disconnects_is_cancelled_unless_they_reconnect_in_time() {
    let app = start(5).await;
    let other = app.another().await;
    for player in ["ann", "bob", "eve", "dora"] {
        app.queue(player, None).await;
    }
    let sockets = [app.socket("bob", None).await, app.socket("eve", None).await, app.socket("carl", None).await];
    drop(sockets);
    // Wait until the end of the socket is recorded, so that carl queues after it.
    let bucket = app.log.context().get_key_value(presence::BUCKET).await.unwrap();
    let recorded = async {
        let gone = |value: &[u8]| serde_json::from_slice::<presence::Connection>(value).unwrap().gone;
        while !bucket.get("player.carl").await.unwrap().is_some_and(|value| gone(&value)) {}
    };
    timeout(DEADLINE, recorded).await.unwrap();
    let _bob = app.socket("bob", None).await;
    let _eve = app.socket_at(other, "eve", None).await;
    // carl queues after the socket ended, and dora never had a socket. Neither needs one.
    app.queue("carl", None).await;
    // ann disconnects last. When her ticket is cancelled, all grace periods are over.
    drop(app.socket("ann", None).await);
    until_cancelled(&app, "ann").await;
    for player in ["bob", "eve", "carl", "dora"] {
        assert!(waits(&app, player).await, "{player}");
    }
}

#[tokio::test]
async fn a_player_who_disconnects_while_the_bucket_is_full_is_cancelled() {
    let app = start(1).await;
    let bucket = app.log.context().get_stream(presence::STREAM).await.unwrap();
    let config = bucket.cached_info().config.clone();
    app.log.context().update_stream(Config { max_bytes: 8 << 10, ..config }).await.unwrap();
    app.queue("ann", None).await;
    let ann = app.socket("ann", Some(0)).await;
    // Fill the bucket many times, so that it no longer has the entry of ann's socket.
    let connection = presence::Connection { socket: System.id(), gateway: System.id(), gone: true, left: None };
    for number in 0..200 {
        let key = presence::Key::Player(format!("other-{number}").parse().unwrap()).to_string();
        let value = serde_json::to_vec(&connection).unwrap();
        app.client.request(key, value.into()).await.unwrap();
    }
    drop(ann);
    until_cancelled(&app, "ann").await;
}

#[tokio::test]
async fn another_gateway_handles_the_players_of_a_stopped_gateway() {
    let mut app = start(1).await;
    let other = app.another().await;
    for player in ["ann", "bob"] {
        app.queue(player, None).await;
    }
    let (mut ann, mut bob) = (app.socket("ann", Some(0)).await, app.socket("bob", Some(0)).await);
    assert_eq!((&ann.event().await["type"], &bob.event().await["type"]), (&"Queued".into(), &"Queued".into()));
    app.shutdown.cancel();
    timeout(DEADLINE, &mut app.served).await.unwrap().unwrap().unwrap();
    let _bob = app.socket_at(other, "bob", None).await;
    until_cancelled(&app, "ann").await;
    assert!(waits(&app, "bob").await);
}

#[tokio::test]
async fn a_refused_handshake_does_not_close_the_players_socket() {
    let app = start(15).await;
    let mut socket = app.socket("ann", None).await;
    let authorization = format!("Bearer {}", token("ann"));
    let refused = app.try_socket("?since=99999999", &[("Authorization", &authorization)]).await;
    assert!(matches!(refused, Err(Error::Http(response)) if response.status() == 400));
    app.queue("ann", None).await;
    assert_eq!(socket.event().await["type"], "Queued");
}

#[tokio::test]
async fn a_gateway_corrects_an_entry_that_marks_a_live_socket_as_gone_unless_there_is_a_newer_socket() {
    let app = start(15).await;
    let bucket = app.log.context().get_key_value(presence::BUCKET).await.unwrap();
    let look = async |player: &str, socket: uuid::Uuid| {
        let found = async {
            loop {
                let value = bucket.get(format!("player.{player}")).await.unwrap();
                let connection = value.map(|value| serde_json::from_slice::<presence::Connection>(&value).unwrap());
                if let Some(connection) =
                    connection.filter(|connection| !connection.gone && (connection.socket == socket || socket.is_nil()))
                {
                    return connection;
                }
            }
        };
        timeout(DEADLINE, found).await.unwrap()
    };
    let put = async |player: &str, connection: presence::Connection| {
        let value = serde_json::to_vec(&connection).unwrap();
        bucket.put(format!("player.{player}"), value.into()).await.unwrap();
    };
    let (mut ann, mut bob) = (app.socket("ann", None).await, app.socket("bob", None).await);
    // Write the entry that another gateway would write if it assumed that this gateway is dead.
    let entry = look("ann", uuid::Uuid::nil()).await;
    put("ann", presence::Connection { gone: true, ..entry }).await;
    assert_eq!(look("ann", entry.socket).await, entry);
    // The same for bob, who has meanwhile connected to that other gateway.
    let entry = look("bob", uuid::Uuid::nil()).await;
    let newer = presence::Connection { socket: System.id(), gateway: System.id(), gone: false, left: None };
    tokio::join!(put("bob", presence::Connection { gone: true, ..entry }), put("bob", newer));
    assert_eq!(bob.closed().await, 4010);
    assert_eq!(look("bob", newer.socket).await, newer);
    app.queue("ann", None).await;
    assert_eq!(ann.event().await["type"], "Queued");
}
