//! A gateway with its own NATS server, and a client.

use std::{fs, net::SocketAddr, time::Duration};

use clap::Parser;
use futures::StreamExt;
use garage_events::{
    env::{Env, System},
    game::{Ports, Secret},
    jetstream::{JetStreamLog, setup},
    log::{Append, Decision, Load, Player},
    player::{self, Address, Cancelled, Ending, Event, Matched, PlayerMatched, Queued, Released},
    subject::{self, Aggregate},
};
use garage_gateway::{Config, Gateway, sign_token, token::Key};
use garage_stack::servers::{Nats, Role};
use garage_worker::Shutdown;
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest, http},
};

use crate::contract::{self, ReceivedResponse};

pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// The key that signs the tests' tokens.
pub(crate) const KEY: &str = "0123456789abcdef0123456789abcdef";

pub(crate) struct App {
    pub(crate) nats: Nats,
    pub(crate) client: async_nats::Client,
    pub(crate) log: JetStreamLog,
    pub(crate) address: SocketAddr,
    pub(crate) folder: TempDir,
    args: Vec<String>,
    pub(crate) shutdown: Shutdown,
    pub(crate) served: JoinHandle<anyhow::Result<()>>,
    http: reqwest::Client,
}

pub(crate) fn key() -> Key {
    Key::new(&Secret::new(KEY)).unwrap()
}

/// A player's token with the rank 100.
pub(crate) fn token(player: &str) -> String {
    token_of(player, Some(100))
}

pub(crate) fn token_of(player: &str, rank: Option<i32>) -> String {
    sign_token(&key(), player, rank, Duration::from_secs(600)).unwrap().expose().to_owned()
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| Vec::new()).await
    }

    /// Starts a gateway with additional flags, which can name files in its folder.
    pub(crate) async fn start_with(flags: impl FnOnce(&TempDir) -> Vec<String>) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::start(folder.path(), 1).await.unwrap();
        let client = nats.connect(Role::Admin).await.unwrap();
        setup::init(client.clone(), 1).await.unwrap();
        let log = JetStreamLog::open(client.clone()).await.unwrap();

        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let queues = "[queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\n\
            [queues.ranked.regions]\neu = 120\nus = 120\n\
            [queues.open]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\nclient_rank = true\nregions.eu = 120\n";
        let mut args = vec![
            "garage-gateway".to_owned(),
            format!("--nats-url={}", nats.url()),
            format!("--nats-credentials={}", nats.credentials(Role::Gateway).display()),
            "--listen=127.0.0.1:0".to_owned(),
            format!("--queues={}", file("queues.toml", queues)),
            format!("--jwt-key-file={}", file("jwt.key", &format!("{KEY}\n"))),
        ];
        args.extend(flags(&folder));
        let (address, shutdown, served) = serve(&args).await;
        let http = reqwest::Client::builder().timeout(DEADLINE).build().unwrap();
        Self { nats, client, log, address, folder, args, shutdown, served, http }
    }

    /// Starts another gateway beside the first one. Returns its address.
    pub(crate) async fn another(&self) -> SocketAddr {
        serve(&self.args).await.0
    }

    /// A request without a token.
    pub(crate) fn anonymous(&self, method: Method, path: &str) -> Request {
        self.anonymous_at(self.address, method, path)
    }

    pub(crate) fn anonymous_at(&self, gateway: SocketAddr, method: Method, path: &str) -> Request {
        let inner = self.http.request(method.clone(), format!("http://{gateway}{path}"));
        Request { method, path: path.to_owned(), inner }
    }

    pub(crate) fn request(&self, player: &str, method: Method, path: &str) -> Request {
        self.anonymous(method, path).bearer_auth(token(player))
    }

    pub(crate) async fn get(&self, player: &str, path: &str) -> (u16, Value) {
        read(self.request(player, Method::GET, path).send().await.unwrap()).await
    }

    /// Queues a player, with or without an idempotency key.
    pub(crate) async fn queue(&self, player: &str, key: Option<&str>) -> (u16, Value) {
        let mut request = self.request(player, Method::POST, TICKETS).json(&ticket_request());
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        read(request.send().await.unwrap()).await
    }

    pub(crate) async fn cancel(&self, player: &str, ticket: &str) -> (u16, Value) {
        read(self.request(player, Method::DELETE, &format!("{TICKETS}/{ticket}")).send().await.unwrap()).await
    }

    pub(crate) async fn player(&self, player: &str) -> Player {
        self.log.player(&player.parse().unwrap()).await.unwrap()
    }

    /// The last sequence of the log.
    pub(crate) async fn last(&self) -> u64 {
        self.log.last_sequence(subject::ALL).await.unwrap()
    }

    /// Appends a player's event, like another worker.
    pub(crate) async fn append(&self, player: &str, event: impl Into<Event>) -> u64 {
        let head = self.player(player).await.head;
        let decision = Decision::new(&System, System.id(), None);
        let decision = decision.change(&System, Aggregate::Player(player.parse().unwrap()), head, [event.into()]);
        self.log.append(decision).await.unwrap()[0]
    }

    /// Appends six events of a player: queued, matched, playing, released, queued again, cancelled.
    pub(crate) async fn history(&self, player: &str) -> Vec<u64> {
        let mut seqs = Vec::new();
        for event in events() {
            seqs.push(self.append(player, event).await);
        }
        seqs
    }

    pub(crate) async fn socket(&self, player: &str, since: Option<u64>) -> Socket {
        self.socket_at(self.address, player, since).await
    }

    pub(crate) async fn socket_at(&self, gateway: SocketAddr, player: &str, since: Option<u64>) -> Socket {
        let query = since.map(|since| format!("?since={since}")).unwrap_or_default();
        connect(gateway, &query, &[("Authorization", &format!("Bearer {}", token(player)))]).await.unwrap().0
    }

    pub(crate) async fn try_socket(
        &self,
        query: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Socket, http::Response<Option<Vec<u8>>>), Error> {
        connect(self.address, query, headers).await
    }
}

/// A request. Its response is checked against the OpenAPI document.
pub(crate) struct Request {
    method: Method,
    path: String,
    inner: RequestBuilder,
}

impl Request {
    pub(crate) fn header(self, name: &str, value: impl AsRef<str>) -> Self {
        Self { inner: self.inner.header(name, value.as_ref()), ..self }
    }

    pub(crate) fn bearer_auth(self, token: String) -> Self {
        self.header("Authorization", format!("Bearer {token}"))
    }

    pub(crate) fn body(self, body: impl Into<Body>) -> Self {
        Self { inner: self.inner.body(body), ..self }
    }

    pub(crate) fn json(self, body: &impl Serialize) -> Self {
        Self { inner: self.inner.json(body), ..self }
    }

    pub(crate) async fn send(self) -> reqwest::Result<Response> {
        let Self { method, path, inner } = self;
        let response = inner.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await?;
        let faults =
            contract::faults(&method, &path, &ReceivedResponse { status, headers: &headers, body: Some(&body) });
        assert!(faults.is_empty(), "{method} {path}: {status} {body:?} does not match openapi.json: {faults:#?}");
        let mut read = http::Response::new(body);
        (*read.status_mut(), *read.headers_mut()) = (status, headers);
        Ok(read.into())
    }
}

async fn connect(
    gateway: SocketAddr,
    query: &str,
    headers: &[(&'static str, &str)],
) -> Result<(Socket, http::Response<Option<Vec<u8>>>), Error> {
    let mut request = format!("ws://{gateway}/v1/ws{query}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let connected = timeout(DEADLINE, connect_async(request)).await.unwrap();
    let (status, headers) = match &connected {
        Ok((_, response)) => (response.status(), response.headers()),
        Err(Error::Http(response)) => (response.status(), response.headers()),
        Err(error) => panic!("{error}"),
    };
    // The body of a refusal may be incomplete.
    let faults = contract::faults(&Method::GET, "/v1/ws", &ReceivedResponse { status, headers, body: None });
    assert!(faults.is_empty(), "{status} {headers:?} does not match openapi.json: {faults:#?}");
    let (stream, response) = connected?;
    Ok((Socket(stream), response))
}

async fn serve(args: &[String]) -> (SocketAddr, Shutdown, JoinHandle<anyhow::Result<()>>) {
    let shutdown = Shutdown::new();
    let gateway = Gateway::bind(Config::parse_from(args), shutdown.clone()).await.unwrap();
    (gateway.address(), shutdown, tokio::spawn(gateway.serve()))
}

pub(crate) struct Socket(pub(crate) WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    /// The next frame.
    pub(crate) async fn event(&mut self) -> Value {
        loop {
            match timeout(DEADLINE, self.0.next()).await.unwrap().unwrap().unwrap() {
                Message::Text(text) => {
                    let frame = serde_json::from_str(&text).unwrap();
                    let faults = contract::frame_faults(&frame);
                    assert!(faults.is_empty(), "{frame} does not match asyncapi.json: {faults:#?}");
                    return frame;
                }
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn seqs(&mut self, count: usize) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.len() < count {
            seqs.push(self.event().await["seq"].as_u64().unwrap());
        }
        seqs
    }

    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            match timeout(DEADLINE, self.0.next()).await.unwrap().unwrap().unwrap() {
                Message::Close(frame) => return frame.unwrap().code.into(),
                Message::Text(_) | Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) const TICKETS: &str = "/v1/matchmaking/tickets";

pub(crate) fn ticket_request() -> Value {
    json!({"queue": "ranked", "latencies": {"eu": 20}})
}

pub(crate) async fn read(response: Response) -> (u16, Value) {
    let status = response.status();
    let problem = response.headers().get("content-type").is_some_and(|kind| kind == "application/problem+json");
    assert_eq!(status.is_client_error() || status.is_server_error(), problem, "{status}");
    if status == StatusCode::UNAUTHORIZED {
        assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
    }
    let body = response.text().await.unwrap();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_str(&body).unwrap() };
    if problem {
        assert_eq!(body["status"], status.as_u16());
        assert!(body["type"].is_string() && body["title"].is_string() && body["detail"].is_string(), "{body}");
    }
    (status.as_u16(), body)
}

pub(crate) fn queued() -> Queued {
    Queued {
        ticket: garage_events::id::TicketId::new(System.id()),
        queue: "ranked".parse().unwrap(),
        rank: 1,
        latencies: [("eu".parse().unwrap(), 20)].into(),
        attributes: Default::default(),
        group: Vec::new(),
        waiting_since: System.now(),
        expires_at: System.now() + Duration::from_secs(120),
        requeues: 0,
        absences: 0,
        party: None,
    }
}

pub(crate) fn matched(queued: &Queued) -> Matched {
    Matched {
        ticket: queued.ticket,
        queue: queued.queue.clone(),
        session: garage_events::id::SessionId::new(System.id()),
        team: "1".into(),
        waiting_since: queued.waiting_since,
        requeue: None,
        absences: 0,
        party: None,
    }
}

pub(crate) fn address() -> Address {
    Address {
        ip: [203, 0, 113, 7].into(),
        ports: Ports { tcp_port: 4001, udp_port: 4002 },
        fingerprint: "ab".repeat(32),
    }
}

fn events() -> [Event; 6] {
    let (first, second) = (queued(), queued());
    let matched = matched(&first);
    let (ticket, queue, session) = (first.ticket, first.queue.clone(), matched.session);
    let cancelled = Cancelled {
        ticket: second.ticket,
        queue: queue.clone(),
        reason: player::CancelReason::Player,
        absences: 0,
        party: None,
    };
    [
        first.into(),
        matched.into(),
        PlayerMatched { ticket, queue, session, address: address(), absences: 0, party: None }.into(),
        Released { ticket, session, why: Ending::Finished, reason: None, absences: 0, party: None }.into(),
        second.into(),
        cancelled.into(),
    ]
}
