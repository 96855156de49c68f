//! Limits for open connections: of one address, of one player, and of the gateway.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Error;

use crate::support::{App, DEADLINE, token};

/// A connection from a loopback address.
pub(crate) struct Client(pub(crate) TcpStream);

/// An answer of the gateway.
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Client {
    /// Opens a connection from `127.0.0.last`.
    pub(crate) async fn from(app: &App, last: u8) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, last], 0).into()).unwrap();
        Self(timeout(DEADLINE, socket.connect(app.address)).await.unwrap().unwrap())
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The gateway may have closed the connection, which the next read shows.
        let _ = self.0.write_all(bytes.as_ref()).await;
    }

    /// Sends a request with these header lines. Returns its status; `None` if the gateway closes the connection.
    pub(crate) async fn get(&mut self, headers: &str) -> Option<u16> {
        self.send(format!("GET /v1/regions HTTP/1.1\r\nHost: x\r\n{headers}\r\n")).await;
        self.answer().await.map(|answer| answer.status)
    }

    /// The next answer, or `None`.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        let mut bytes = Vec::new();
        let read = async {
            while !bytes.ends_with(b"\r\n\r\n") {
                bytes.push(self.0.read_u8().await?);
            }
            let head = String::from_utf8(bytes).unwrap().to_lowercase();
            let length = head.split("\r\ncontent-length: ").nth(1).map_or("0", |rest| rest.split('\r').next().unwrap());
            let mut body = vec![0; length.parse().unwrap()];
            self.0.read_exact(&mut body).await?;
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            std::io::Result::Ok(Answer { status, head, body: String::from_utf8(body).unwrap() })
        };
        timeout(DEADLINE, read).await.unwrap().ok()
    }

    /// Waits until the gateway closes the connection. Returns what it sent before.
    pub(crate) async fn closed(&mut self) -> String {
        let mut bytes = Vec::new();
        // A reset is a closed connection too.
        let _ = timeout(DEADLINE, self.0.read_to_end(&mut bytes)).await.unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

pub(crate) fn bearer(player: &str) -> String {
    format!("Authorization: Bearer {}\r\n", token(player))
}

async fn app(flags: &[&str]) -> App {
    App::start_with(|_| flags.iter().map(|flag| (*flag).to_owned()).collect()).await
}

#[tokio::test]
async fn a_flood_of_idle_connections_from_one_address_affects_no_other_client() {
    let app = app(&["--max-connections=20", "--max-unauthenticated-per-address=8"]).await;
    let mut ann = Client::from(&app, 1).await;
    assert_eq!(ann.get(&bearer("ann")).await, Some(200));
    let mut socket = app.socket("ann", None).await;
    let mut flood = Vec::new();
    for _ in 0..40 {
        flood.push(Client::from(&app, 2).await);
    }
    assert_eq!(Client::from(&app, 3).await.get("").await, Some(401));
    assert_eq!(Client::from(&app, 3).await.get(&bearer("bob")).await, Some(200));
    // The flood has ended no connection but its own oldest ones.
    assert_eq!(ann.get(&bearer("ann")).await, Some(200));
    for client in &mut flood[..32] {
        assert_eq!(client.closed().await, "");
    }
    for client in &mut flood[32..] {
        assert_eq!(client.get("").await, Some(401));
    }
    // A player behind the same address is served.
    assert_eq!(Client::from(&app, 2).await.get(&bearer("carl")).await, Some(200));
    app.queue("ann", None).await;
    assert_eq!(socket.event().await["type"], "Queued");
}

#[tokio::test]
async fn connections_of_a_player_do_not_count_for_the_address() {
    let app = app(&["--max-unauthenticated-per-address=1"]).await;
    let mut opened = Vec::new();
    for player in ["ann", "bob", "carl"] {
        let mut client = Client::from(&app, 2).await;
        assert_eq!(client.get(&bearer(player)).await, Some(200), "{player}");
        opened.push(client);
    }
    let mut idle = Client::from(&app, 2).await;
    assert_eq!(idle.get("").await, Some(401));
    assert_eq!(Client::from(&app, 2).await.get("").await, Some(401));
    assert_eq!(idle.closed().await, "");
    for client in &mut opened {
        assert_eq!(client.get("").await, Some(401), "a connection that had a valid token stays");
    }
}

#[tokio::test]
async fn the_oldest_connection_without_a_token_is_closed_when_the_gateway_is_full() {
    let app = app(&["--max-connections=3"]).await;
    let (mut ann, mut oldest, mut newer) =
        (Client::from(&app, 1).await, Client::from(&app, 2).await, Client::from(&app, 3).await);
    assert_eq!(ann.get(&bearer("ann")).await, Some(200));
    assert_eq!(oldest.get("").await, Some(401));
    assert_eq!(newer.get("").await, Some(401));
    let mut newest = Client::from(&app, 4).await;
    assert_eq!(newest.get("").await, Some(401));
    assert_eq!(oldest.closed().await, "");
    assert_eq!((newer.get("").await, ann.get(&bearer("ann")).await), (Some(401), Some(200)));
}

#[tokio::test]
async fn a_new_connection_is_closed_while_all_others_have_a_valid_token() {
    let app = app(&["--max-connections=1"]).await;
    let socket = app.socket("ann", None).await;
    assert_eq!(Client::from(&app, 1).await.get(&bearer("bob")).await, None);
    drop(socket);
    let served = async { while Client::from(&app, 1).await.get(&bearer("bob")).await.is_none() {} };
    timeout(DEADLINE, served).await.unwrap();
}

#[tokio::test]
async fn a_player_over_the_limit_gets_429_and_retry_after() {
    let app = app(&["--max-connections-per-player=2"]).await;
    let _socket = app.socket("ann", None).await;
    let mut second = Client::from(&app, 1).await;
    assert_eq!(second.get(&bearer("ann")).await, Some(200));

    let mut third = Client::from(&app, 2).await;
    third.send(format!("GET /v1/regions HTTP/1.1\r\nHost: x\r\n{}\r\n", bearer("ann"))).await;
    let answer = third.answer().await.unwrap();
    assert_eq!(answer.status, 429);
    assert!(answer.head.contains("\r\nretry-after: 2\r\n"), "{answer:?}");
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&body["type"], &body["limit"]), (&json!("/problems/too-many-requests"), &json!("connections")));
    assert_eq!(third.closed().await, "", "the gateway closes the connection");
    // These two compare the answer with OpenAPI.
    let (status, body) = app.get("ann", "/v1/regions").await;
    assert_eq!((status, &body["limit"]), (429, &json!("connections")));
    let authorization = format!("Bearer {}", token("ann"));
    let refused = app.try_socket("", &[("Authorization", &authorization)]).await;
    assert!(matches!(refused, Err(Error::Http(response)) if response.status() == 429));

    assert_eq!(second.get(&bearer("ann")).await, Some(200), "older connections stay");
    assert_eq!(Client::from(&app, 1).await.get(&bearer("bob")).await, Some(200), "another player");
    drop(second);
    let served = async { while Client::from(&app, 1).await.get(&bearer("ann")).await != Some(200) {} };
    timeout(DEADLINE, served).await.unwrap();
}
