//! A simulated player. It uses only public interfaces: REST, the WebSocket, and the game server of its match.

mod event_stream;
mod gateways;
mod socket;

use std::{net::SocketAddr, time::Duration};

use garage_gameserver::client::{self, Driving, Server};
use reqwest::{Client, Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::{
    self,
    client::IntoClientRequest,
    http::{HeaderMap, HeaderValue, header::RETRY_AFTER},
};

use self::gateways::Gateways;
pub use self::{
    event_stream::EventStream,
    socket::{Frame, Socket},
};

/// Default time-out for everything that a bot waits for.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// A player's client.
#[derive(Debug, Clone)]
pub struct Bot {
    /// The player's id, as in the token.
    pub player: String,
    http: Client,
    gateways: Gateways,
    token: String,
    max_wait: Duration,
}

/// Why a bot could not continue.
#[derive(Debug, thiserror::Error)]
#[error("player {player}, after {last}: {what}")]
pub struct BotError {
    /// The player's id.
    pub player: String,
    /// The type of the last event that the player received, or the step before the first event.
    pub last: String,
    /// What went wrong.
    pub what: String,
}

/// A ticket. Bots need only its id.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ticket {
    /// The ticket's id.
    pub ticket: String,
}

/// The result of a match that was played and paid.
#[derive(Debug, Clone, PartialEq)]
pub struct Played {
    /// The id of the match's session.
    pub session: String,
    /// The player's place; the winner has 1.
    pub place: u32,
    /// The reward in coins.
    pub earned: u64,
    /// All frames that the player received, from `Queued` to `Released`.
    pub frames: Vec<Frame>,
    /// How often the socket broke and was reopened.
    pub breaks: u32,
}

/// An unsuccessful answer of the gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// The HTTP status; 599 if there was no answer.
    pub status: StatusCode,
    /// The body if it is JSON, otherwise null. If there was no answer, the reason as a text.
    pub body: Value,
    /// How long to wait before another try; `None` if the answer does not say it.
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// Whether the same request may succeed later: there was no answer, a dependency of the gateway is unavailable, or
    /// the player has sent too many requests.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(self.status.as_u16(), 429 | 502..=504 | 599)
    }

    /// How long to wait before another try. After a 429, an earlier try would be refused too. After other problems, the
    /// cause may end at any time.
    fn pause(&self) -> Duration {
        self.retry_after.filter(|_| self.status == StatusCode::TOO_MANY_REQUESTS).unwrap_or(PAUSE)
    }
}

#[derive(Deserialize)]
struct Wallet {
    balance: u64,
}

#[derive(Deserialize)]
struct PlayerState {
    seq: u64,
}

#[derive(Deserialize)]
struct Connect {
    token: String,
}

#[derive(Deserialize)]
struct PublicKey {
    fingerprint: String,
}

#[derive(Deserialize)]
struct Address {
    session: String,
    #[serde(flatten)]
    at: garage_events::player::Address,
}

impl Bot {
    /// A client of this player, connected to one gateway.
    #[must_use]
    pub fn new(http: Client, gateway: &str, player: &str, token: &str) -> Self {
        Self {
            player: player.into(),
            http,
            gateways: Gateways::new(&[gateway]),
            token: token.into(),
            max_wait: MAX_WAIT,
        }
    }

    /// Sets the time-out for everything that the bot waits for.
    #[must_use]
    pub fn with_max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// Gives the bot several gateways. It starts with the first, and switches to the next when one does not answer.
    #[must_use]
    pub fn with_gateways(mut self, gateways: &[impl AsRef<str>]) -> Self {
        self.gateways = Gateways::new(gateways);
        self
    }

    /// Sends a request once.
    ///
    /// # Errors
    /// [`Problem`] for every answer that is not a success, and with status 599 if there was no answer.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, Problem> {
        self.send(method, path, body, None).await
    }

    /// Sends a request, and retries temporary problems until the time-out. Use it only for idempotent requests.
    ///
    /// # Errors
    /// The last [`Problem`].
    pub async fn ask_with_retry<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, Problem> {
        self.retry(|| self.ask(method.clone(), path, body.clone())).await
    }

    /// Sends a command with an idempotency key, so that it is carried out once. Retries temporary problems until the
    /// time-out.
    ///
    /// # Errors
    /// The last [`Problem`].
    pub async fn command<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        key: &str,
    ) -> Result<T, Problem> {
        self.retry(|| self.send(method.clone(), path, body.clone(), Some(key))).await
    }

    // Not an `AsyncFn`: callers spawn this in tasks, and stable Rust cannot require that the future of an `AsyncFn` is
    // `Send`.
    async fn retry<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        let start = Instant::now();
        loop {
            match ask().await {
                Err(problem) if problem.is_temporary() && start.elapsed() < self.max_wait => {
                    sleep(problem.pause()).await;
                }
                result => return result,
            }
        }
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        key: Option<&str>,
    ) -> Result<T, Problem> {
        let no_answer = |error: reqwest::Error| Problem {
            status: StatusCode::from_u16(599).unwrap_or(StatusCode::GATEWAY_TIMEOUT),
            body: Value::String(format!("{:#}", anyhow::Error::from(error))),
            retry_after: None,
        };
        let gateway = self.gateways.current();
        let mut request =
            self.http.request(method, format!("{gateway}{path}")).bearer_auth(&self.token).timeout(self.max_wait);
        if let Some(body) = body {
            request = request.json(&body);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = async {
            let response = request.send().await?;
            let retry_after = retry_after(response.headers());
            Ok((response.status(), retry_after, response.bytes().await?))
        };
        let (status, retry_after, bytes) =
            answer.await.map_err(no_answer).inspect_err(|_| self.gateways.switch_from(&gateway))?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if !status.is_success() {
            return Err(Problem { status, body: value, retry_after });
        }
        serde_json::from_value(value).map_err(|error| Problem {
            status,
            body: Value::String(format!("unexpected body: {error}")),
            retry_after,
        })
    }

    /// Requests a ticket in a queue, with the rank from the token or else the player's rating. Retries temporary
    /// problems with the same idempotency key, so there is only one ticket.
    ///
    /// # Errors
    /// The last [`Problem`].
    pub async fn queue(&self, queue: &str) -> Result<Ticket, Problem> {
        self.queue_with(json!({ "queue": queue, "latencies": {"eu": 20} })).await
    }

    /// Requests a ticket with this request. Retries temporary problems with the same idempotency key.
    ///
    /// # Errors
    /// The last [`Problem`].
    pub async fn queue_with(&self, body: Value) -> Result<Ticket, Problem> {
        let key = format!("{:032x}", rand::random::<u128>());
        let path = "/v1/matchmaking/tickets";
        self.command(Method::POST, path, Some(body), &key).await
    }

    /// Cancels a ticket. Retries temporary problems.
    ///
    /// # Errors
    /// The last [`Problem`].
    pub async fn cancel(&self, ticket: &Ticket) -> Result<(), Problem> {
        // The answer has no body, which deserializes to `None`.
        let path = format!("/v1/matchmaking/tickets/{}", ticket.ticket);
        self.ask_with_retry::<Option<Value>>(Method::DELETE, &path, None).await.map(drop)
    }

    /// Accepts a proposed match. Retries temporary problems.
    ///
    /// # Errors
    /// The last [`Problem`]; a 409 if the proposal has ended.
    pub async fn accept(&self, session: &str) -> Result<(), Problem> {
        self.ask_with_retry::<Option<Value>>(Method::POST, &format!("/v1/sessions/{session}/accept"), None)
            .await
            .map(drop)
    }

    /// Declines a proposed match. Retries temporary problems.
    ///
    /// # Errors
    /// The last [`Problem`]; a 409 if the proposal has ended.
    pub async fn decline(&self, session: &str) -> Result<(), Problem> {
        self.ask_with_retry::<Option<Value>>(Method::POST, &format!("/v1/sessions/{session}/decline"), None)
            .await
            .map(drop)
    }

    /// The answer of `GET /v1/players/me`. Its `status` is `idle`, `waiting`, `proposed`, `matched` or `playing`.
    ///
    /// # Errors
    /// The last [`Problem`].
    pub async fn me(&self) -> Result<Value, Problem> {
        self.ask_with_retry(Method::GET, "/v1/players/me", None).await
    }

    /// Opens a WebSocket that reopens itself when it breaks. It delivers the events from now on.
    ///
    /// # Errors
    /// [`BotError`]
    pub async fn event_stream(&self) -> Result<EventStream, BotError> {
        let state: Result<PlayerState, Problem> = self.ask_with_retry(Method::GET, "/v1/players/me", None).await;
        let seen = state.map_err(|problem| self.error("nothing", format!("reading the state: {problem:?}")))?.seq;
        let event_stream = EventStream::new(self.clone(), seen);
        event_stream.open().await
    }

    /// Opens a WebSocket. With `since`, it first delivers the events after this sequence.
    ///
    /// # Errors
    /// [`BotError`]
    pub async fn socket(&self, since: Option<u64>) -> Result<Socket, BotError> {
        let gateway = self.gateways.current();
        let fail = |what: String| {
            self.gateways.switch_from(&gateway);
            self.error("opening the socket", what)
        };
        let base = gateway.replacen("http", "ws", 1);
        let url = match since {
            Some(since) => format!("{base}/v1/ws?since={since}"),
            None => format!("{base}/v1/ws"),
        };
        let mut request = url.into_client_request().map_err(|error| fail(error.to_string()))?;
        let bearer =
            HeaderValue::from_str(&format!("Bearer {}", self.token)).map_err(|error| fail(error.to_string()))?;
        request.headers_mut().insert("authorization", bearer);
        let opening = async {
            loop {
                match tokio_tungstenite::connect_async(request.clone()).await {
                    Err(tungstenite::Error::Http(refused)) if refused.status() == StatusCode::TOO_MANY_REQUESTS => {
                        sleep(retry_after(refused.headers()).unwrap_or(PAUSE)).await;
                    }
                    opened => return opened,
                }
            }
        };
        let connected = timeout(self.max_wait, opening).await;
        let (stream, _) =
            connected.map_err(|_elapsed| fail("no answer".into()))?.map_err(|error| fail(error.to_string()))?;
        let (player, max_wait) = (self.player.clone(), self.max_wait);
        Ok(Socket { stream, gateway, last: "connecting".into(), player, max_wait, replaced: false })
    }

    /// Plays one match: queues, waits for the match, races, and waits for the reward.
    ///
    /// # Errors
    /// [`BotError`]
    pub async fn play(&self, queue: &str) -> Result<Played, BotError> {
        self.play_after(async { self.queue(queue).await.map(drop) }).await
    }

    /// Plays one match like [`Bot::play`]. `queueing` queues the player when the bot listens to events.
    ///
    /// # Errors
    /// [`BotError`]
    pub async fn play_after(&self, queueing: impl Future<Output = Result<(), Problem>>) -> Result<Played, BotError> {
        let before = self.balance().await?;
        let mut event_stream = self.event_stream().await?;
        queueing.await.map_err(|problem| self.error("nothing", format!("queueing: {problem:?}")))?;
        let frame = event_stream.until("PlayerMatched").await?;
        let unreadable = |error| self.error("PlayerMatched", format!("its data cannot be read: {error}"));
        let Address { session, at } = serde_json::from_value(frame.data).map_err(unreadable)?;
        // If the match fails, the event stream shows it at once. The connection to the game server may take longer.
        let released = async {
            let released = event_stream.until("Released").await?;
            match released.data.get("why").and_then(Value::as_str) {
                Some("finished") => Ok(()),
                why => {
                    let why = why.unwrap_or("(no reason)");
                    Err(self.error("Released", format!("the match did not finish: {why}")))
                }
            }
        };
        let (results, ()) = futures::try_join!(self.race(&session, &at), released)?;
        let own = garage_events::id::PlayerId::from_foreign(&self.player)
            .map_err(|error| self.error("Released", error.to_string()))?;
        let place = results.iter().find(|placing| placing.player == own);
        let place = place.map(|placing| placing.place);
        let place = place.ok_or_else(|| self.error("Released", "the results do not contain the player".into()))?;
        let earned = self.paid(before).await?;
        Ok(Played { session, place, earned, breaks: event_stream.breaks(), frames: event_stream.close().await })
    }

    /// Requests the public key of a game server, and a connection token. Fails if the key does not have the announced
    /// fingerprint.
    ///
    /// # Errors
    /// [`BotError`]
    pub async fn admission(
        &self,
        session: &str,
        at: &garage_events::player::Address,
    ) -> Result<(Server, String), BotError> {
        let failed = |what: &str, problem: Problem| self.error("PlayerMatched", format!("{what}: {problem:?}"));
        let connect: Connect = self
            .ask_with_retry(Method::POST, &format!("/v1/sessions/{session}/connect-token"), None)
            .await
            .map_err(|problem| failed("requesting a connection token", problem))?;
        let key: PublicKey = self
            .ask_with_retry(Method::GET, &format!("/v1/sessions/{session}/public-key"), None)
            .await
            .map_err(|problem| failed("requesting the game server's key", problem))?;
        if key.fingerprint != at.fingerprint {
            return Err(self.error("PlayerMatched", "the fingerprint of the key is not the announced one".into()));
        }
        let server = Server {
            address: SocketAddr::new(at.ip, at.ports.tcp_port),
            udp_port: at.ports.udp_port,
            fingerprint: at.fingerprint.clone(),
        };
        Ok((server, connect.token))
    }

    async fn race(
        &self,
        session: &str,
        at: &garage_events::player::Address,
    ) -> Result<Vec<garage_events::game::Placing>, BotError> {
        let (server, token) = self.admission(session, at).await?;
        // Equal cars at equal throttle finish at the same time. So each player drives a little differently.
        let sum: u32 = self.player.bytes().map(u32::from).sum();
        let throttle = 1.0 - f32::from(u8::try_from(sum % 8).unwrap_or_default()) / 50.0;
        let driving = Driving { throttle, timeout: self.max_wait, ..Driving::default() };
        let results = client::drive(&server, &token, driving).await;
        results.map_err(|error| self.error("PlayerMatched", format!("racing: {:#}", anyhow::Error::from(error))))
    }

    /// The player's balance in coins.
    ///
    /// # Errors
    /// [`BotError`]
    pub async fn balance(&self) -> Result<u64, BotError> {
        let garage: Result<Wallet, Problem> = self.ask_with_retry(Method::GET, "/v1/garage", None).await;
        garage
            .map(|wallet| wallet.balance)
            .map_err(|problem| self.error("nothing", format!("reading the balance: {problem:?}")))
    }

    /// Waits for the reward, and returns it.
    async fn paid(&self, before: u64) -> Result<u64, BotError> {
        let paid = async {
            loop {
                let balance = self.balance().await?;
                if balance > before {
                    return Ok(balance - before);
                }
                sleep(PAUSE).await;
            }
        };
        let paid = timeout(self.max_wait, paid).await;
        paid.map_err(|_elapsed| self.error("Released", "no reward in time".into()))?
    }

    fn error(&self, last: &str, what: String) -> BotError {
        BotError { player: self.player.clone(), last: last.into(), what }
    }
}

/// The time in the header `Retry-After`, in whole seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}
