//! Sockets receive each event once and in order, even if they are interrupted.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::stream::Config;
use futures::{SinkExt, StreamExt};
use garage_events::subject;
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{App, DEADLINE, token};

#[tokio::test]
async fn a_socket_interrupted_after_any_event_continues_after_it() {
    let app = App::start().await;
    app.history("bob").await;
    let mut seqs = app.history("ann").await;
    for cut in 0..=seqs.len() {
        let mut socket = app.socket("ann", Some(0)).await;
        let mut seen = socket.seqs(cut).await;
        drop(socket);
        let last = seen.last().copied().unwrap_or(0);
        let mut socket = app.socket("ann", Some(last)).await;
        seen.extend(socket.seqs(seqs.len() - cut).await);
        assert_eq!(seen, seqs, "interrupted after {cut}");
        // No event comes twice: the next frames are new events.
        seqs.push(app.append("ann", crate::support::queued()).await);
        seqs.push(app.append("ann", cancelled(&app, "ann").await).await);
        assert_eq!(socket.seqs(2).await, seqs[seqs.len() - 2..], "new events, interrupted after {cut}");
    }
}

async fn cancelled(app: &App, player: &str) -> garage_events::player::Cancelled {
    let ticket = app.player(player).await.state.ticket().unwrap();
    let reason = garage_events::player::CancelReason::Player;
    garage_events::player::Cancelled { ticket, queue: "ranked".parse().unwrap(), reason, absences: 0, party: None }
}

#[tokio::test]
async fn a_socket_interrupted_many_times_during_writes_receives_each_event_once() {
    let app = Arc::new(App::start().await);
    let writer = tokio::spawn({
        let app = Arc::clone(&app);
        async move {
            let mut all = Vec::new();
            for _ in 0..10 {
                all.extend(app.history("ann").await);
            }
            all
        }
    });
    let mut seen: Vec<u64> = Vec::new();
    // Sockets read 1 to 4 events each, so that the interruptions fall at many different points.
    let mut counts = (1..=4).cycle();
    let mut last = loop {
        let mut socket = app.socket("ann", Some(seen.last().copied().unwrap_or(0))).await;
        seen.extend(socket.seqs(counts.next().unwrap().min(60 - seen.len())).await);
        if seen.len() == 60 {
            break socket;
        }
    };
    assert_eq!(seen, writer.await.unwrap());
    let next = app.append("ann", crate::support::queued()).await;
    assert_eq!(last.seqs(1).await, [next]);
}

#[tokio::test]
async fn a_player_receives_only_their_own_events() {
    let app = App::start().await;
    let (mut ann, mut bob) = (app.socket("ann", None).await, app.socket("bob", None).await);
    let (_, ticket) = app.queue("ann", None).await;
    let event = ann.event().await;
    assert_eq!((&event["seq"], &event["n"], &event["type"]), (&json!(1), &json!(1), &json!("Queued")));
    assert_eq!((&event["data"]["ticket"], &event["data"]["player"]), (&ticket["ticket"], &json!("ann")));
    assert_eq!(event.as_object().unwrap().len(), 4);
    app.queue("bob", None).await;
    assert_eq!(bob.event().await["data"]["player"], "bob");
}

#[tokio::test]
async fn a_client_can_send_its_token_as_a_subprotocol() {
    let app = App::start().await;
    let offer = format!("garage.v1, bearer.{}", token("ann"));
    let (mut socket, response) = app.try_socket("", &[("Sec-WebSocket-Protocol", &offer)]).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "garage.v1");
    app.queue("ann", None).await;
    assert_eq!(socket.event().await["type"], "Queued");
}

#[tokio::test]
async fn an_event_of_an_unknown_type_is_forwarded() {
    let app = App::start().await;
    let mut socket = app.socket("ann", None).await;
    let body =
        json!({"id": uuid::Uuid::nil(), "n": 1, "type": "Promoted", "v": 1, "data": {"player": "ann", "to": "gold"}});
    app.client.publish("garage.player.ann", body.to_string().into()).await.unwrap();
    let expected = json!({"seq": 1, "n": 1, "type": "Promoted", "data": {"player": "ann", "to": "gold"}});
    assert_eq!(socket.event().await, expected);
    assert_eq!(app.socket("ann", Some(0)).await.event().await, expected);
}

#[tokio::test]
async fn a_client_that_sends_a_too_long_message_is_disconnected_and_others_stay() {
    let app = App::start().await;
    let (mut flooding, mut other) = (app.socket("ann", None).await, app.socket("bob", None).await);
    // The write may fail, because the gateway disconnects the client during it.
    let _ = flooding.0.send(Message::text("a".repeat(64 << 10))).await;
    let ended = async { while let Some(Ok(_)) = flooding.0.next().await {} };
    timeout(DEADLINE, ended).await.unwrap();
    app.queue("bob", None).await;
    assert_eq!(other.event().await["type"], "Queued");
}

#[tokio::test]
async fn a_shutdown_closes_sockets_with_going_away() {
    let app = App::start().await;
    let mut socket = app.socket("ann", None).await;
    app.shutdown.cancel();
    assert_eq!(socket.closed().await, 1001);
    // Reading further sends the client's answer to the close frame.
    assert!(timeout(DEADLINE, socket.0.next()).await.unwrap().is_none());
    timeout(DEADLINE, app.served).await.unwrap().unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(app.address).await.is_err());
}

#[tokio::test]
async fn a_since_older_than_the_log_gets_a_resync_frame() {
    let app = App::start().await;
    let seqs = app.history("ann").await;
    let stream = app.log.context().get_stream(subject::STREAM).await.unwrap();
    let config = stream.cached_info().config.clone();
    let second = Duration::from_secs(1);
    let short = Config { max_age: second, duplicate_window: second, ..config.clone() };
    app.log.context().update_stream(short).await.unwrap();
    let forgotten = async { while app.log.state().await.unwrap().first_sequence <= seqs[5] {} };
    timeout(DEADLINE, forgotten).await.unwrap();
    app.log.context().update_stream(config).await.unwrap();
    let next = app.append("ann", crate::support::queued()).await;

    let mut socket = app.socket("ann", Some(seqs[2])).await;
    let frame = socket.event().await;
    assert_eq!((&frame["type"], &frame["seq"]), (&json!("resync"), &json!(next)));
    assert_eq!(frame["data"], app.get("ann", "/v1/players/me").await.1);
    // The log still has all events after this sequence.
    let mut socket = app.socket("ann", Some(seqs[5])).await;
    assert_eq!(socket.event().await["type"], "Queued");
}
