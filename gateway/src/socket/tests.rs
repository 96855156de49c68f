use std::sync::Mutex;

use garage_events::{jetstream::follow, log::Head};
use time::OffsetDateTime;
use tokio::io::DuplexStream;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::hub::{Hub, QUEUE};

const DEADLINE: Duration = Duration::from_secs(30);

type Hook = Box<dyn Fn(&Log, u64) + Send + Sync>;

/// A log in memory whose backlog reads run a hook first: what happens between the read of one event and the next.
struct Log {
    events: Mutex<Vec<u64>>,
    /// What came before is forgotten.
    first: u64,
    hook: Hook,
}

impl Missed for Log {
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

/// A socket of ann over a pipe that holds `capacity` bytes.
async fn open(hub: &Hub, log: Log, since: Option<u64>, pace: Pace, capacity: usize) -> (Client, Shutdown) {
    let (near, far) = tokio::io::duplex(capacity);
    let (player, shutdown) = ("ann".parse().unwrap(), Shutdown::new());
    let registration = hub.register(&player);
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let stream = WebSocketStream::from_raw_socket(near, Role::Server, Some(config())).await;
        Socket { stream, registration, player, pace, shutdown: stop }.run(&log, since).await;
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
async fn events_stored_while_the_backlog_is_read_come_once_and_in_order() {
    // At each point of the backlog an event is stored, and the hub hands it out at once, later, or has done so already.
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
                    hook_hub.hand_out(&message(seq, body(seq)));
                }
            };
            let (mut client, _shutdown) = open(&hub, log(&[1, 2, 3, 4], hook), Some(0), Pace::default(), 4096).await;
            assert_eq!(seqs(&mut client, 5).await, [1, 2, 3, 4, 5], "stored at {storing}, lag {lag}");
            // Whatever the hub was behind by comes now, and nothing of it again.
            for seq in hub.position() + 1..=6 {
                hub.hand_out(&message(seq, body(seq)));
            }
            assert_eq!(seqs(&mut client, 1).await, [6], "stored at {storing}, lag {lag}");
        }
    }
}

#[tokio::test]
async fn where_the_log_has_forgotten_the_players_state_stands_for_it() {
    for since in [0, 1, 2, 3] {
        let hub = Hub::default();
        let forgetful = Log { first: 2, ..log(&[3, 4], |_, _| {}) };
        let (mut client, _shutdown) = open(&hub, forgetful, Some(since), Pace::default(), 4096).await;
        hub.hand_out(&message(5, body(5)));
        let expected = if since < 2 { [4, 5].as_slice() } else { &[3, 4, 5][usize::from(since == 3)..] };
        let Message::Text(first) = next(&mut client).await else { panic!("no text") };
        assert_eq!(first.contains(r#""type":"resync""#), since < 2, "{first}");
        assert!(first.contains(&format!(r#""seq":{}"#, expected[0])), "{first}");
        assert_eq!(seqs(&mut client, expected.len() - 1).await, expected[1..], "since {since}");
    }
}

#[tokio::test]
async fn without_since_only_what_comes_is_written() {
    let hub = Hub::default();
    hub.hand_out(&message(4, body(4)));
    let (mut client, _shutdown) = open(&hub, log(&[4], |_, _| panic!("no backlog")), None, Pace::default(), 4096).await;
    hub.hand_out(&message(5, body(5)));
    assert_eq!(seqs(&mut client, 1).await, [5]);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_too_slow() {
    let hub = Hub::default();
    let pace = Pace { close: DEADLINE, ..Pace::default() };
    let (mut client, _shutdown) = open(&hub, log(&[], |_, _| {}), None, pace, 64).await;
    // More than the pipe, the socket's queue and the frame between them hold.
    for seq in 1..=QUEUE as u64 + 10 {
        hub.hand_out(&message(seq, body(seq)));
        tokio::task::yield_now().await;
    }
    assert_eq!(closed(&mut client).await, 4008);
}

#[tokio::test]
async fn a_client_that_never_answers_is_silent() {
    let ms = Duration::from_millis;
    let pace = Pace { ping: ms(5), silence: ms(50), close: ms(50), ..Pace::default() };
    let (mut client, _shutdown) = open(&Hub::default(), log(&[], |_, _| {}), None, pace, 1 << 20).await;
    // Reading through the bare pipe, as a client does that has no pong to give.
    let mut end = None;
    let raw = client.get_mut();
    let mut bytes = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(raw, &mut bytes);
    // The socket waits for an answer to its close, and then hangs up.
    if timeout(DEADLINE, read).await.is_ok() {
        end = bytes.windows(2).find(|pair| *pair == 4009_u16.to_be_bytes());
    }
    assert!(end.is_some(), "{bytes:?}");
    assert_eq!(bytes[0], 0x89, "a ping comes first");
}

#[tokio::test]
async fn a_client_that_answers_pings_stays() {
    let pace = Pace { ping: Duration::from_millis(2), silence: Duration::from_millis(500), ..Pace::default() };
    let hub = Hub::default();
    let (mut client, shutdown) = open(&hub, log(&[], |_, _| {}), None, pace, 4096).await;
    let began = Instant::now();
    while began.elapsed() < 2 * pace.silence {
        assert!(matches!(next(&mut client).await, Message::Ping(_)));
    }
    shutdown.cancel();
    assert_eq!(closed(&mut client).await, 1001);
}

#[tokio::test]
async fn what_was_handed_out_before_the_stop_is_written_before_the_close() {
    // Whether the socket sees the stop or its frames first is chance: each order, many times.
    for _ in 0..50 {
        let hub = Hub::default();
        let (mut client, shutdown) = open(&hub, log(&[], |_, _| {}), None, Pace::default(), 4096).await;
        hub.hand_out(&message(1, body(1)));
        assert_eq!(seqs(&mut client, 1).await, [1]);
        for seq in 2..=5 {
            hub.hand_out(&message(seq, body(seq)));
        }
        shutdown.cancel();
        assert_eq!(seqs(&mut client, 4).await, [2, 3, 4, 5]);
        assert_eq!(closed(&mut client).await, 1001);
    }
}

#[tokio::test]
async fn a_client_that_talks_too_much_is_cut() {
    let (mut client, _shutdown) = open(&Hub::default(), log(&[], |_, _| {}), None, Pace::default(), 1 << 20).await;
    client.send(Message::text("a".repeat(1 << 10))).await.unwrap();
    client.send(Message::text("a".repeat(5 << 10))).await.unwrap();
    let ended = async { while let Some(Ok(_)) = client.next().await {} };
    timeout(DEADLINE, ended).await.unwrap();
}

#[test]
fn the_reasons_to_close_are_those_that_are_described() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../events/asyncapi.json");
    let described: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let codes = [TOO_SLOW, SILENT, REPLACED, GOING_AWAY, TRY_AGAIN].map(|end| match end {
        End::Close(code, reason) => (code.to_string(), reason.into()),
        End::Gone => unreachable!(),
    });
    let codes = serde_json::Value::Object(codes.into_iter().collect());
    assert_eq!(described["channels"]["socket"]["x-close-codes"], codes);
}
