//! The log, pushed: each event once and in order, whenever a socket is cut.

use std::{sync::Arc, time::Duration};

use async_nats::jetstream::stream::Config;
use futures::{SinkExt, StreamExt};
use garage_events::subject;
use serde_json::json;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{App, DEADLINE, token};

#[tokio::test]
async fn a_socket_cut_anywhere_goes_on_where_it_was() {
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
        assert_eq!(seen, seqs, "cut after {cut}");
        // Nothing comes twice: what is written next is what happens next.
        seqs.push(app.append("ann", crate::support::queued()).await);
        seqs.push(app.append("ann", cancelled(&app, "ann").await).await);
        assert_eq!(socket.seqs(2).await, seqs[seqs.len() - 2..], "after all, cut after {cut}");
    }
}

async fn cancelled(app: &App, player: &str) -> garage_events::player::Cancelled {
    let ticket = app.player(player).await.state.ticket().unwrap();
    let reason = garage_events::player::CancelReason::Player;
    garage_events::player::Cancelled { ticket, queue: "ranked".parse().unwrap(), reason }
}

#[tokio::test]
async fn a_socket_cut_again_and_again_while_events_come_sees_each_once() {
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
    // Sockets of one, two, three events and so on, so that cuts fall everywhere.
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
async fn a_player_is_told_of_himself_and_of_nobody_else() {
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
async fn a_token_may_come_in_the_subprotocol() {
    let app = App::start().await;
    let offer = format!("garage.v1, bearer.{}", token("ann"));
    let (mut socket, response) = app.try_socket("", &[("Sec-WebSocket-Protocol", &offer)]).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "garage.v1");
    app.queue("ann", None).await;
    assert_eq!(socket.event().await["type"], "Queued");
}

#[tokio::test]
async fn a_type_that_this_build_does_not_know_is_forwarded() {
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
async fn a_client_that_floods_its_socket_is_cut_and_others_stay() {
    let app = App::start().await;
    let (mut loud, mut calm) = (app.socket("ann", None).await, app.socket("bob", None).await);
    // A write may fail: it is cut while it talks.
    let _ = loud.0.send(Message::text("a".repeat(64 << 10))).await;
    let ended = async { while let Some(Ok(_)) = loud.0.next().await {} };
    timeout(DEADLINE, ended).await.unwrap();
    app.queue("bob", None).await;
    assert_eq!(calm.event().await["type"], "Queued");
}

#[tokio::test]
async fn stopping_closes_sockets_as_going_away() {
    let app = App::start().await;
    let mut socket = app.socket("ann", None).await;
    app.shutdown.cancel();
    assert_eq!(socket.closed().await, 1001);
    // Reading on sends our answer to the close.
    assert!(timeout(DEADLINE, socket.0.next()).await.unwrap().is_none());
    timeout(DEADLINE, app.served).await.unwrap().unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(app.address).await.is_err());
}

#[tokio::test]
async fn a_since_older_than_the_log_gets_the_present_state() {
    let app = App::start().await;
    let seqs = app.history("ann").await;
    let stream = app.log.context().get_stream(subject::STREAM).await.unwrap();
    let config = stream.cached_info().config.clone();
    let second = Duration::from_secs(1);
    let short = Config { max_age: second, duplicate_window: second, ..config.clone() };
    app.log.context().update_stream(short).await.unwrap();
    let forgets = async { while app.log.state().await.unwrap().first_sequence <= seqs[5] {} };
    timeout(DEADLINE, forgets).await.unwrap();
    app.log.context().update_stream(config).await.unwrap();
    let next = app.append("ann", crate::support::queued()).await;

    let mut socket = app.socket("ann", Some(seqs[2])).await;
    let frame = socket.event().await;
    assert_eq!((&frame["type"], &frame["seq"]), (&json!("resync"), &json!(next)));
    assert_eq!(frame["data"], app.get("ann", "/v1/players/me").await.1);
    // What it has seen since then is in the log.
    let mut socket = app.socket("ann", Some(seqs[5])).await;
    assert_eq!(socket.event().await["type"], "Queued");
}
