use std::{future::ready, sync::Mutex};

use clap::Parser;
use futures::FutureExt;
use garage_events::{
    block::{Block, Kick},
    jetstream::follow,
    log::Head,
};
use time::OffsetDateTime;
use tokio::io::DuplexStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::{
    config::Config,
    hub::{Hub, MAX_QUEUED_FRAMES},
    limits::{MESSAGES_BURST, MESSAGES_PER_SECOND},
    token::{Identity, Refused},
};

const DEADLINE: Duration = Duration::from_secs(120);

type Hook = Box<dyn Fn(&Log, u64) + Send + Sync>;

/// A log in memory. Each read of the backlog first runs a hook, which simulates events between two reads.
struct Log {
    events: Mutex<Vec<u64>>,
    /// The log has deleted all events before this sequence.
    first: u64,
    hook: Hook,
}

impl Backlog for Log {
    async fn next(&self, _: &PlayerId, from: u64) -> Result<Option<(u64, Bytes)>, ReadError> {
        (self.hook)(self, from);
        let seq = self.events.lock().unwrap().iter().copied().find(|seq| *seq >= from);
        Ok(seq.map(|seq| (seq, body(seq))))
    }

    async fn forgotten(&self, since: u64) -> Result<bool, ReadError> {
        Ok(since < self.first)
    }

    async fn player(&self, _: &PlayerId) -> Result<Player, ReadError> {
        let seq = self.events.lock().unwrap().last().copied().unwrap_or(0);
        Ok(Player { head: Head { seq, n: seq }, ..Player::default() })
    }
}

fn body(seq: u64) -> Bytes {
    format!(r#"{{"n":{seq},"type":"Queued","data":{{}}}}"#).into()
}

fn message(seq: u64, body: Bytes) -> follow::Message {
    follow::Message {
        seq,
        time: OffsetDateTime::UNIX_EPOCH,
        subject: "garage.player.ann".into(),
        body,
        headers: None,
        pending: 0,
    }
}

fn log(events: &[u64], hook: impl Fn(&Log, u64) + Send + Sync + 'static) -> Log {
    Log { events: Mutex::new(events.into()), first: 0, hook: Box::new(hook) }
}

type Client = WebSocketStream<DuplexStream>;

/// An identity of a player whose token expires `seconds` from now.
fn identity(player: &str, seconds: i64) -> Identity {
    let expires_at = System.now() + time::Duration::seconds(seconds);
    Identity { player: player.parse().unwrap(), sub: player.into(), rank: None, expires_at, claims: Default::default() }
}

/// Opens a socket of the player "ann" over a pipe that buffers `capacity` bytes.
async fn open(hub: &Hub, log: Log, since: Option<u64>, timing: Timing, capacity: usize) -> (Client, Shutdown) {
    open_until(3_600, hub, log, since, timing, capacity).await
}

/// The same with a token that expires `seconds` from now. The token "fresh" is valid for an hour more.
async fn open_until(
    seconds: i64,
    hub: &Hub,
    log: Log,
    since: Option<u64>,
    timing: Timing,
    capacity: usize,
) -> (Client, Shutdown) {
    let verify = move |token: String| {
        let verified = match &*token {
            "fresh" => Ok(identity("ann", seconds + 3_600)),
            _ => Err(Refused::Signature),
        };
        ready(verified).boxed()
    };
    let leeway = Duration::from_secs(5);
    let token = SocketToken::new(&identity("ann", seconds), leeway, Box::new(verify), System.now(), Instant::now());
    let (near, far) = tokio::io::duplex(capacity);
    let (player, shutdown) = ("ann".parse().unwrap(), Shutdown::new());
    let registration = hub.register(&player);
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let stream = WebSocketStream::from_raw_socket(near, Role::Server, Some(config())).await;
        let pace = Pace::new(MESSAGES_BURST, MESSAGES_PER_SECOND);
        // An answer that the session worker never confirms.
        let answers = Box::new(|_| std::future::pending().boxed());
        Socket { stream, registration, player, token, answers, pace, timing, shutdown: stop }.run(&log, since).await;
    });
    (WebSocketStream::from_raw_socket(far, Role::Client, None).await, shutdown)
}

async fn next(client: &mut Client) -> Message {
    timeout(DEADLINE, client.next()).await.unwrap().unwrap().unwrap()
}

async fn seqs(client: &mut Client, count: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    while seen.len() < count {
        if let Message::Text(text) = next(client).await {
            seen.push(serde_json::from_str::<serde_json::Value>(&text).unwrap()["seq"].as_u64().unwrap());
        }
    }
    seen
}

async fn closed(client: &mut Client) -> u16 {
    loop {
        if let Message::Close(frame) = next(client).await {
            return frame.unwrap().code.into();
        }
    }
}

#[tokio::test]
async fn an_event_stored_while_the_backlog_is_read_is_written_once_and_in_order() {
    // An event is stored at each point of the backlog. The hub dispatches it at once, or `lag` events late.
    for storing in 1..=5 {
        for lag in [0, 1, 2, 9] {
            let hub = Hub::default();
            let hook_hub = hub.clone();
            let last = 4;
            let hook = move |log: &Log, from: u64| {
                let mut events = log.events.lock().unwrap();
                if from == storing && !events.contains(&(last + 1)) {
                    events.push(last + 1);
                }
                let stored = events.last().copied().unwrap();
                for seq in hook_hub.position() + 1..=stored.saturating_sub(lag) {
                    hook_hub.dispatch(&message(seq, body(seq)));
                }
            };
            let (mut client, _shutdown) = open(&hub, log(&[1, 2, 3, 4], hook), Some(0), Timing::default(), 4096).await;
            assert_eq!(seqs(&mut client, 5).await, [1, 2, 3, 4, 5], "stored at {storing}, lag {lag}");
            // The hub now dispatches the remaining events. The socket must not write them again.
            for seq in hub.position() + 1..=6 {
                hub.dispatch(&message(seq, body(seq)));
            }
            assert_eq!(seqs(&mut client, 1).await, [6], "stored at {storing}, lag {lag}");
        }
    }
}

#[tokio::test]
async fn a_resync_frame_replaces_events_that_the_log_has_deleted() {
    for since in [0, 1, 2, 3] {
        let hub = Hub::default();
        let forgetful = Log { first: 2, ..log(&[3, 4], |_, _| {}) };
        let (mut client, _shutdown) = open(&hub, forgetful, Some(since), Timing::default(), 4096).await;
        hub.dispatch(&message(5, body(5)));
        let expected = if since < 2 { [4, 5].as_slice() } else { &[3, 4, 5][usize::from(since == 3)..] };
        let Message::Text(first) = next(&mut client).await else { panic!("no text") };
        assert_eq!(first.contains(r#""type":"resync""#), since < 2, "{first}");
        assert!(first.contains(&format!(r#""seq":{}"#, expected[0])), "{first}");
        assert_eq!(seqs(&mut client, expected.len() - 1).await, expected[1..], "since {since}");
    }
}

#[tokio::test]
async fn without_since_a_socket_gets_only_new_events() {
    let hub = Hub::default();
    hub.dispatch(&message(4, body(4)));
    let (mut client, _shutdown) =
        open(&hub, log(&[4], |_, _| panic!("no backlog")), None, Timing::default(), 4096).await;
    hub.dispatch(&message(5, body(5)));
    assert_eq!(seqs(&mut client, 1).await, [5]);
}

#[tokio::test]
async fn a_socket_whose_client_does_not_read_is_closed_as_too_slow() {
    let hub = Hub::default();
    let timing = Timing { close: DEADLINE, ..Timing::default() };
    let (mut client, _shutdown) = open(&hub, log(&[], |_, _| {}), None, timing, 64).await;
    // More frames than fit into the pipe, the socket's queue and the write in progress.
    for seq in 1..=MAX_QUEUED_FRAMES as u64 + 10 {
        hub.dispatch(&message(seq, body(seq)));
        tokio::task::yield_now().await;
    }
    assert_eq!(closed(&mut client).await, 4008);
}

#[tokio::test]
async fn a_socket_whose_client_never_answers_pings_is_closed_as_silent() {
    let ms = Duration::from_millis;
    let timing = Timing { ping: ms(5), silence: ms(50), close: ms(50), ..Timing::default() };
    let (mut client, _shutdown) = open(&Hub::default(), log(&[], |_, _| {}), None, timing, 1 << 20).await;
    // Reads from the pipe itself, so that no WebSocket client answers the pings.
    let mut end = None;
    let raw = client.get_mut();
    let mut bytes = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(raw, &mut bytes);
    // The socket waits for an answer to its close frame, and then drops the connection.
    if timeout(DEADLINE, read).await.is_ok() {
        end = bytes.windows(2).find(|pair| *pair == 4009_u16.to_be_bytes());
    }
    assert!(end.is_some(), "{bytes:?}");
    assert_eq!(bytes[0], 0x89, "the first frame is a ping");
}

#[test]
fn a_player_whose_client_has_vanished_can_be_matched_for_less_than_30_s() {
    let Timing { silence, close, .. } = Timing::default();
    let config = Config::try_parse_from(["garage-gateway", "--queues", "q"]).unwrap();
    let grace = Duration::from_secs(config.grace.into());
    assert!(silence + close + grace < Duration::from_secs(30));
}

#[tokio::test]
async fn a_socket_whose_client_answers_pings_stays_open() {
    let timing = Timing { ping: Duration::from_millis(50), silence: Duration::from_millis(500), ..Timing::default() };
    let hub = Hub::default();
    let (mut client, shutdown) = open(&hub, log(&[], |_, _| {}), None, timing, 4096).await;
    let began = Instant::now();
    while began.elapsed() < 2 * timing.silence {
        assert!(matches!(next(&mut client).await, Message::Ping(_)));
    }
    shutdown.cancel();
    assert_eq!(closed(&mut client).await, 1001);
}

#[tokio::test]
async fn a_socket_ends_when_its_token_expires_even_if_frames_arrive_without_a_pause() {
    let hub = Hub::default();
    // The leeway has passed.
    let (mut client, _shutdown) = open_until(-10, &hub, log(&[], |_, _| {}), None, Timing::default(), 4096).await;
    hub.dispatch(&message(1, body(1)));
    assert_eq!(closed(&mut client).await, 4011);
    assert!(EXPIRED.vanished());
}

#[tokio::test]
async fn a_newer_token_keeps_a_socket_open_and_other_messages_are_ignored() {
    let hub = Hub::default();
    let (mut client, _shutdown) = open(&hub, log(&[], |_, _| {}), None, Timing::default(), 4096).await;
    for (sent, answer) in [
        (r#"{"type":"token","data":{"token":"wrong"}}"#, r#""reason":"not-valid""#),
        (r#"{"type":"token","data":{"token":"fresh"}}"#, r#""type":"token-accepted""#),
    ] {
        client.send(Message::text("hello")).await.unwrap();
        client.send(Message::text(sent)).await.unwrap();
        let Message::Text(text) = next(&mut client).await else { panic!("{sent}") };
        assert!(text.contains(answer), "{sent}: {text}");
    }
    hub.dispatch(&message(1, body(1)));
    assert_eq!(seqs(&mut client, 1).await, [1]);
}

#[tokio::test]
async fn frames_dispatched_before_the_shutdown_are_written_before_the_close() {
    // It is random whether the socket sees the shutdown or its frames first. 50 rounds cover both.
    for _ in 0..50 {
        let hub = Hub::default();
        let (mut client, shutdown) = open(&hub, log(&[], |_, _| {}), None, Timing::default(), 4096).await;
        hub.dispatch(&message(1, body(1)));
        assert_eq!(seqs(&mut client, 1).await, [1]);
        for seq in 2..=5 {
            hub.dispatch(&message(seq, body(seq)));
        }
        shutdown.cancel();
        assert_eq!(seqs(&mut client, 4).await, [2, 3, 4, 5]);
        assert_eq!(closed(&mut client).await, 1001);
    }
}

#[tokio::test]
async fn a_client_that_sends_a_too_long_message_is_disconnected() {
    let (mut client, _shutdown) = open(&Hub::default(), log(&[], |_, _| {}), None, Timing::default(), 1 << 20).await;
    client.send(Message::text("a".repeat(1 << 10))).await.unwrap();
    client.send(Message::text("a".repeat(9 << 10))).await.unwrap();
    let ended = async { while let Some(Ok(_)) = client.next().await {} };
    timeout(DEADLINE, ended).await.unwrap();
}

#[tokio::test]
async fn a_client_that_sends_too_many_messages_is_closed() {
    let hub = Hub::default();
    let (mut client, _shutdown) = open(&hub, log(&[], |_, _| {}), None, Timing::default(), 1 << 20).await;
    for _ in 0..=MESSAGES_BURST.get() {
        client.feed(Message::Text("x".into())).await.unwrap();
    }
    client.flush().await.unwrap();
    let Message::Close(Some(frame)) = next(&mut client).await else { panic!() };
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1008, "too many messages"));
}

#[test]
fn asyncapi_describes_every_close_code() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../events/asyncapi.json");
    let described: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let blocked = End::Operator(Notice::Blocked(Block { until: None, reason: None }));
    let kicked = End::Operator(Notice::Kicked(Kick { reason: None }));
    let codes = [TOO_SLOW, SILENT, REPLACED, EXPIRED, TOO_MANY, GOING_AWAY, TRY_AGAIN, blocked, kicked].map(|end| {
        let (code, reason) = end.close_code().unwrap();
        (code.to_string(), reason.into())
    });
    let codes = serde_json::Value::Object(codes.into_iter().collect());
    assert_eq!(described["channels"]["socket"]["x-close-codes"], codes);
}
