//! A socket ends when its token expires, unless the client sends a newer one.

use futures::SinkExt;
use garage_events::{
    env::{Env, System},
    player::{CancelReason, Event, State},
};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{App, DEADLINE, KEY, Socket, token};

/// A token that expires this many seconds from now. It is valid for 5 s more, because the gateway tolerates that.
fn token_for(player: &str, seconds: i64) -> String {
    let claims = json!({"sub": player, "rank": 100, "exp": System.now().unix_timestamp() + seconds});
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(KEY.as_bytes())).unwrap()
}

/// Opens a socket whose token is valid for about 8 s.
async fn short_socket(app: &App, player: &str) -> Socket {
    socket_with(app, &token_for(player, 3)).await
}

async fn socket_with(app: &App, token: &str) -> Socket {
    let authorization = format!("Bearer {token}");
    app.try_socket("", &[("Authorization", &authorization)]).await.unwrap().0
}

async fn send(socket: &mut Socket, token: &str) -> Value {
    let frame = json!({"type": "token", "data": {"token": token}});
    socket.0.send(Message::text(frame.to_string())).await.unwrap();
    socket.event().await
}

#[tokio::test]
async fn a_socket_ends_when_its_token_expires_and_the_player_counts_as_vanished() {
    let app = App::start_with(|_| vec!["--grace=1".into()]).await;
    app.queue("ann", None).await;
    let mut socket = short_socket(&app, "ann").await;
    assert_eq!(timeout(DEADLINE, socket.closed()).await, Ok(4011));
    let cancelled = async { while matches!(app.player("ann").await.state, State::Waiting(_)) {} };
    timeout(DEADLINE, cancelled).await.unwrap();
    let last = app.player("ann").await.last.unwrap().event;
    assert!(matches!(&last, Event::Cancelled(data) if data.reason == CancelReason::Disconnected), "{last:?}");
}

#[tokio::test]
async fn a_newer_token_keeps_the_socket_open() {
    let app = App::start().await;
    let mut ann = short_socket(&app, "ann").await;
    let accepted = send(&mut ann, &token("ann")).await;
    assert_eq!(accepted["type"], "token-accepted");
    assert!(accepted["data"]["expires_at"].is_string(), "{accepted}");
    // bob's token does not expire before ann's first one.
    let mut bob = short_socket(&app, "bob").await;
    assert_eq!(timeout(DEADLINE, bob.closed()).await, Ok(4011));
    app.queue("ann", None).await;
    assert_eq!(ann.event().await["type"], "Queued");
}

#[tokio::test]
async fn a_token_that_is_refused_does_not_keep_the_socket_open() {
    let app = App::start().await;
    let first = token_for("ann", 3);
    let mut socket = socket_with(&app, &first).await;
    for (token, reason) in [
        (token("bob"), "other-player"),
        (token_for("ann", -3_600), "expired"),
        (first, "not-later"),
        (format!("{}x", token("ann")), "not-valid"),
    ] {
        let refused = send(&mut socket, &token).await;
        assert_eq!((&refused["type"], &refused["data"]["reason"]), (&json!("token-refused"), &json!(reason)));
    }
    assert_eq!(timeout(DEADLINE, socket.closed()).await, Ok(4011));
}

#[tokio::test]
async fn a_client_that_sends_tokens_too_often_is_refused_and_stays_connected() {
    let app = App::start().await;
    let mut socket = app.socket("ann", None).await;
    let refused = async { while send(&mut socket, "x").await["data"]["reason"] != "too-many" {} };
    timeout(DEADLINE, refused).await.unwrap();
    app.queue("ann", None).await;
    assert_eq!(socket.event().await["type"], "Queued");
}
