//! Who is here: one socket a player, and what becomes of those who vanish.

use garage_events::{
    env::{Env, System},
    player::{CancelReason, Event, State},
    presence,
};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Error;

use crate::support::{App, DEADLINE, token};

/// With another grace period than the default's, which would take a test too long.
async fn start(grace: u32) -> App {
    App::start_with(|_| vec![format!("--grace={grace}")]).await
}

async fn waits(app: &App, player: &str) -> bool {
    matches!(app.player(player).await.state, State::Waiting(_))
}

async fn vanished(app: &App, player: &str) {
    let gone = async { while waits(app, player).await {} };
    timeout(DEADLINE, gone).await.unwrap();
    let last = app.player(player).await.last.unwrap().event;
    assert!(matches!(&last, Event::Cancelled(data) if data.reason == CancelReason::Disconnected), "{last:?}");
}

#[tokio::test]
async fn the_newer_socket_of_a_player_closes_the_older_on_any_gateway() {
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
async fn who_vanishes_while_he_waits_is_cancelled_and_who_returns_in_time_is_not() {
    let app = start(5).await;
    let other = app.another().await;
    for player in ["ann", "bob", "eve", "dora"] {
        app.queue(player, None).await;
    }
    let sockets = [app.socket("bob", None).await, app.socket("eve", None).await, app.socket("carl", None).await];
    drop(sockets);
    // So that he queues after his end was noted, which takes a moment.
    let bucket = app.log.context().get_key_value(presence::BUCKET).await.unwrap();
    let noted = async {
        let gone = |value: &[u8]| serde_json::from_slice::<presence::Connection>(value).unwrap().gone;
        while !bucket.get("player.carl").await.unwrap().is_some_and(|value| gone(&value)) {}
    };
    timeout(DEADLINE, noted).await.unwrap();
    let _bob = app.socket("bob", None).await;
    let _eve = app.socket_at(other, "eve", None).await;
    // He needs no socket to wait, and neither does dora, who never had one.
    app.queue("carl", None).await;
    // The last to vanish: when she has been judged, the others have been.
    drop(app.socket("ann", None).await);
    vanished(&app, "ann").await;
    for player in ["bob", "eve", "carl", "dora"] {
        assert!(waits(&app, player).await, "{player}");
    }
}

#[tokio::test]
async fn the_players_of_a_gateway_that_ended_are_looked_after_by_another() {
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
    vanished(&app, "ann").await;
    assert!(waits(&app, "bob").await);
}

#[tokio::test]
async fn a_handshake_that_is_refused_closes_nothing() {
    let app = start(15).await;
    let mut socket = app.socket("ann", None).await;
    let authorization = format!("Bearer {}", token("ann"));
    let refused = app.try_socket("?since=99999999", &[("Authorization", &authorization)]).await;
    assert!(matches!(refused, Err(Error::Http(response)) if response.status() == 400));
    app.queue("ann", None).await;
    assert_eq!(socket.event().await["type"], "Queued");
}

#[tokio::test]
async fn a_socket_that_was_taken_for_gone_is_noted_again_unless_there_is_a_newer_one() {
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
    // Another gateway, which took this one for dead.
    let noted = look("ann", uuid::Uuid::nil()).await;
    put("ann", presence::Connection { gone: true, ..noted }).await;
    assert_eq!(look("ann", noted.socket).await, noted);
    // It did so with bob as well, who has come to it meanwhile.
    let noted = look("bob", uuid::Uuid::nil()).await;
    let newer = presence::Connection { socket: System.id(), gateway: System.id(), gone: false };
    tokio::join!(put("bob", presence::Connection { gone: true, ..noted }), put("bob", newer));
    assert_eq!(bob.closed().await, 4010);
    assert_eq!(look("bob", newer.socket).await, newer);
    app.queue("ann", None).await;
    assert_eq!(ann.event().await["type"], "Queued");
}
