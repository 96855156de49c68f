//! An account that sends far more requests than a normal player.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use reqwest::{Client, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{self, client::IntoClientRequest, http::HeaderValue},
};
use tokio_util::sync::CancellationToken;

/// Time-out of one request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How many requests of a fixed rate may wait for their answers. More would be a flood of connections.
const MAX_IN_PROGRESS: usize = 1_000;

/// What an abuser sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Abuse {
    /// Creates a ticket, cancels it, and so on.
    Tickets,
    /// Changes the active car.
    Garage,
    /// Reads the player's state.
    Reads,
    /// Opens sockets, each of which replaces the previous one.
    Sockets,
    /// Requests this URL. A request that Garage does not limit, to compare with.
    Url(String),
}

/// The client of one account.
#[derive(Debug, Clone)]
pub struct Abuser {
    http: Client,
    gateway: String,
    token: String,
}

/// The answers, by their status. 599 stands for no answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answers(pub BTreeMap<u16, u64>);

impl Answers {
    fn add(&mut self, status: u16) {
        *self.0.entry(status).or_default() += 1;
    }
}

#[derive(Deserialize)]
struct Ticket {
    ticket: String,
}

/// What a connection needs to know for its next request.
#[derive(Default)]
struct Last {
    ticket: Option<String>,
    socket: Option<WebSocketStream<MaybeTlsStream<TcpStream>>>,
}

impl Abuser {
    /// A client with this token, which sends everything to one gateway.
    #[must_use]
    pub fn new(gateway: &str, token: &str) -> Self {
        Self { http: Client::new(), gateway: gateway.into(), token: token.into() }
    }

    /// Sends one request after another on each of the connections, without a pause, until the future is dropped. It
    /// ignores `Retry-After`.
    pub async fn flood(&self, abuse: &Abuse, connections: usize) {
        let sending = (0..connections).map(async |_| {
            let mut last = Last::default();
            loop {
                self.send(abuse, &mut last).await;
            }
        });
        join_all(sending).await;
    }

    /// Sends a request after each `pause` until `stop`, however long the answers take. `pause` must not be zero.
    pub async fn at_rate(&self, abuse: &Abuse, pause: Duration, stop: CancellationToken) -> Answers {
        let mut due = interval(pause);
        due.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (mut in_progress, mut answers, mut idle) = (JoinSet::new(), Answers::default(), Vec::new());
        while stop.run_until_cancelled(due.tick()).await.is_some() {
            while let Some(done) = in_progress.try_join_next() {
                Self::done(done, &mut answers, &mut idle);
            }
            if in_progress.len() >= MAX_IN_PROGRESS
                && let Some(done) = in_progress.join_next().await
            {
                Self::done(done, &mut answers, &mut idle);
            }
            let (abuser, abuse, mut last) = (self.clone(), abuse.clone(), idle.pop().unwrap_or_default());
            in_progress.spawn(async move { (abuser.send(&abuse, &mut last).await, last) });
        }
        while let Some(done) = in_progress.join_next().await {
            Self::done(done, &mut answers, &mut idle);
        }
        answers
    }

    fn done(done: Result<(u16, Last), tokio::task::JoinError>, answers: &mut Answers, idle: &mut Vec<Last>) {
        if let Ok((status, last)) = done {
            answers.add(status);
            idle.push(last);
        }
    }

    /// Sends the next request, and returns the status of the answer.
    async fn send(&self, abuse: &Abuse, last: &mut Last) -> u16 {
        let (method, url, body) = match abuse {
            Abuse::Sockets => return self.open_socket(last).await,
            Abuse::Url(url) => (Method::GET, url.clone(), None),
            Abuse::Reads => (Method::GET, format!("{}/v1/players/me", self.gateway), None),
            Abuse::Garage => {
                let url = format!("{}/v1/garage/active-car", self.gateway);
                (Method::PUT, url, Some(json!({"car": "pebble"})))
            }
            Abuse::Tickets => match last.ticket.take() {
                Some(ticket) => (Method::DELETE, format!("{}/v1/matchmaking/tickets/{ticket}", self.gateway), None),
                None => {
                    let url = format!("{}/v1/matchmaking/tickets", self.gateway);
                    (Method::POST, url, Some(json!({"queue": "ranked", "latencies": {"eu": 20}})))
                }
            },
        };
        let mut request = self.http.request(method, url).bearer_auth(&self.token).timeout(TIMEOUT);
        if let Some(body) = body {
            request = request.json::<Value>(&body);
        }
        let Ok(response) = request.send().await else { return NO_ANSWER };
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        if status == StatusCode::CREATED {
            last.ticket = serde_json::from_slice(&body).ok().map(|Ticket { ticket }| ticket);
        }
        status.as_u16()
    }

    async fn open_socket(&self, last: &mut Last) -> u16 {
        let url = format!("{}/v1/ws", self.gateway.replacen("http", "ws", 1));
        let request = url.into_client_request().map(|mut request| {
            // The token is text without control characters.
            if let Ok(bearer) = HeaderValue::from_str(&format!("Bearer {}", self.token)) {
                request.headers_mut().insert("authorization", bearer);
            }
            request
        });
        let Ok(request) = request else { return NO_ANSWER };
        match timeout(TIMEOUT, tokio_tungstenite::connect_async(request)).await {
            Ok(Ok((socket, response))) => {
                last.socket = Some(socket);
                response.status().as_u16()
            }
            Ok(Err(tungstenite::Error::Http(response))) => response.status().as_u16(),
            Ok(Err(_)) | Err(_) => NO_ANSWER,
        }
    }

    /// Sends commands on tickets, one at a time, until the gateway carries one out, or refuses it because the account has a
    /// ticket.
    pub async fn until_served(&self) {
        let mut last = Last::default();
        while !matches!(self.send(&Abuse::Tickets, &mut last).await, 201 | 204 | 409) {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The status of a request without an answer.
const NO_ANSWER: u16 = 599;
