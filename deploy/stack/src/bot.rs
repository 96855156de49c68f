//! A player by public interfaces only: REST, the WebSocket, and the game server that he is told of.

mod event_stream;
mod gateways;
mod socket;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use garage_gameserver::client::{self, Driving, Server};
use reqwest::{Client, Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::{client::IntoClientRequest, http::HeaderValue};

use self::gateways::Gateways;
pub use self::{
    event_stream::EventStream,
    socket::{Frame, Socket},
};

/// How long a bot waits for anything, by default.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Between two tries of what may do later.
const PAUSE: Duration = Duration::from_millis(50);

/// A player's client.
#[derive(Debug, Clone)]
pub struct Bot {
    /// His name.
    pub player: String,
    http: Client,
    gateways: Gateways,
    token: String,
    max_wait: Duration,
}

/// What a bot met instead of what it waited for.
#[derive(Debug, thiserror::Error)]
#[error("player {player}, after {last}: {what}")]
pub struct BotError {
    /// Who.
    pub player: String,
    /// The last event that he saw.
    pub last: String,
    /// What went wrong.
    pub what: String,
}

/// A ticket, as far as bots look at it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ticket {
    /// Its id.
    pub ticket: String,
}

/// A race that was played and paid.
#[derive(Debug, Clone, PartialEq)]
pub struct Played {
    /// The match.
    pub session: String,
    /// His place.
    pub place: u32,
    /// Coins it brought.
    pub earned: u64,
    /// Every event that he was told of, from queueing to his release.
    pub frames: Vec<Frame>,
    /// How often his socket broke, and was opened again.
    pub breaks: u32,
}

/// An answer that is no success.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// HTTP's status.
    pub status: StatusCode,
    /// The body, if it was JSON.
    pub body: Value,
}

impl Problem {
    /// Whether the same request may do later: there was no answer, or something behind the gateway gave none.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self.status.as_u16(), 502..=504 | 599)
    }
}

#[derive(Deserialize)]
struct Wallet {
    balance: u64,
}

#[derive(Deserialize)]
struct Me {
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
    /// A client of a player at a gateway.
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

    /// Waits longer, or less long, for what it waits for.
    #[must_use]
    pub fn with_max_wait(mut self, max_wait: Duration) -> Self {
        self.max_wait = max_wait;
        self
    }

    /// Knows several gateways. He begins at the first, and goes on to the next when one does not answer him.
    #[must_use]
    pub fn with_gateways(mut self, gateways: &[impl AsRef<str>]) -> Self {
        self.gateways = Gateways::new(gateways);
        self
    }

    /// Asks the gateway, once.
    ///
    /// # Errors
    /// [`Problem`] for what is no success; status 599 when there was no answer.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, Problem> {
        self.send(method, path, body, None).await
    }

    /// Asks the gateway until it says yes or no, as long as his patience lasts. To be used for what may be done twice.
    ///
    /// # Errors
    /// [`Problem`], the last one.
    pub async fn insist<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<T, Problem> {
        self.again(|| self.ask(method.clone(), path, body.clone())).await
    }

    /// Asks the gateway for something that is to be done once, under an idempotency key; asks again where there is no
    /// answer.
    ///
    /// # Errors
    /// [`Problem`]
    pub async fn command<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        key: &str,
    ) -> Result<T, Problem> {
        self.again(|| self.send(method.clone(), path, body.clone(), Some(key))).await
    }

    // Not an `AsyncFn`: of its future it could not be told that a task of its own may hold it.
    async fn again<T, F>(&self, ask: impl Fn() -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        let begin = Instant::now();
        loop {
            match ask().await {
                Err(problem) if problem.may_pass() && begin.elapsed() < self.max_wait => sleep(PAUSE).await,
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
        let silent = |error: reqwest::Error| Problem {
            status: StatusCode::from_u16(599).unwrap_or(StatusCode::GATEWAY_TIMEOUT),
            body: Value::String(format!("{:#}", anyhow::Error::from(error))),
        };
        let gateway = self.gateways.present();
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
            Ok((response.status(), response.bytes().await?))
        };
        let (status, bytes) = answer.await.map_err(silent).inspect_err(|_| self.gateways.leave(&gateway))?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if !status.is_success() {
            return Err(Problem { status, body: value });
        }
        serde_json::from_value(value)
            .map_err(|error| Problem { status, body: Value::String(format!("unexpected body: {error}")) })
    }

    /// Queues in `ranked`, or another queue, with the rank that his token says, or else his rating; asks again where there
    /// is no answer, for the same ticket.
    ///
    /// # Errors
    /// [`Problem`]
    pub async fn queue(&self, queue: &str) -> Result<Ticket, Problem> {
        let latencies = BTreeMap::from([("eu", 20)]);
        let body = json!({ "queue": queue, "latencies": latencies });
        let key = format!("{:032x}", rand::random::<u128>());
        let path = "/v1/matchmaking/tickets";
        self.command(Method::POST, path, Some(body), &key).await
    }

    /// Ends a ticket; asks again where there is no answer.
    ///
    /// # Errors
    /// [`Problem`]
    pub async fn cancel(&self, ticket: &Ticket) -> Result<(), Problem> {
        // The answer has no body.
        let path = format!("/v1/matchmaking/tickets/{}", ticket.ticket);
        self.insist::<Option<Value>>(Method::DELETE, &path, None).await.map(drop)
    }

    /// Where he stands, in the gateway's words: `idle`, `waiting`, `matched` or `playing`, and more.
    ///
    /// # Errors
    /// [`Problem`]
    pub async fn me(&self) -> Result<Value, Problem> {
        self.insist(Method::GET, "/v1/players/me", None).await
    }

    /// Opens a line: a socket that is opened again when it breaks. It tells what happens from now on.
    ///
    /// # Errors
    /// [`BotError`]
    pub async fn event_stream(&self) -> Result<EventStream, BotError> {
        let me: Result<Me, Problem> = self.insist(Method::GET, "/v1/players/me", None).await;
        let seen = me.map_err(|problem| self.error("nothing", format!("asking where he stands: {problem:?}")))?.seq;
        let event_stream = EventStream::new(self.clone(), seen);
        event_stream.open().await
    }

    /// Opens the player's socket.
    ///
    /// # Errors
    /// [`BotError`]
    pub async fn socket(&self, since: Option<u64>) -> Result<Socket, BotError> {
        let gateway = self.gateways.present();
        let fail = |what: String| {
            self.gateways.leave(&gateway);
            self.error("opening his socket", what)
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
        let connected = timeout(self.max_wait, tokio_tungstenite::connect_async(request)).await;
        let (stream, _) =
            connected.map_err(|_elapsed| fail("no answer".into()))?.map_err(|error| fail(error.to_string()))?;
        let (player, max_wait) = (self.player.clone(), self.max_wait);
        Ok(Socket { stream, gateway, last: "connecting".into(), player, max_wait })
    }

    /// The whole way: queue, match, race, be paid.
    ///
    /// # Errors
    /// [`BotError`]
    pub async fn play(&self, queue: &str) -> Result<Played, BotError> {
        let before = self.balance().await?;
        let mut event_stream = self.event_stream().await?;
        self.queue(queue).await.map_err(|problem| self.error("nothing", format!("queueing: {problem:?}")))?;
        let frame = event_stream.until("PlayerMatched").await?;
        let unread = |error| self.error("PlayerMatched", format!("its data cannot be read: {error}"));
        let Address { session, at } = serde_json::from_value(frame.data).map_err(unread)?;
        // He hears by his line at once when the match is lost, however the game server's connection takes it.
        let released = async {
            let released = event_stream.until("Released").await?;
            match released.data.get("why").and_then(Value::as_str) {
                Some("finished") => Ok(()),
                why => Err(self.error("Released", format!("the match ended as {}", why.unwrap_or("nothing")))),
            }
        };
        let (results, ()) = futures::try_join!(self.race(&session, &at), released)?;
        let place = results.iter().find(|placing| placing.player.to_foreign() == self.player);
        let place = place.map(|placing| placing.place);
        let place = place.ok_or_else(|| self.error("Released", "the results do not name him".into()))?;
        let earned = self.paid(before).await?;
        Ok(Played { session, place, earned, breaks: event_stream.breaks(), frames: event_stream.close().await })
    }

    /// Asks for what it takes to connect to a game server: its key, which must be the one announced, and a token.
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
            .insist(Method::POST, &format!("/v1/sessions/{session}/connect-token"), None)
            .await
            .map_err(|problem| failed("asking for a connection token", problem))?;
        let key: PublicKey = self
            .insist(Method::GET, &format!("/v1/sessions/{session}/public-key"), None)
            .await
            .map_err(|problem| failed("asking for the game's key", problem))?;
        if key.fingerprint != at.fingerprint {
            return Err(self.error("PlayerMatched", "the key's fingerprint is not the one announced".into()));
        }
        let server = Server {
            address: SocketAddr::new(at.ip, at.tcp_port),
            udp_port: at.udp_port,
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
        let driving = Driving { within: self.max_wait, ..Driving::default() };
        let results = client::drive(&server, &token, driving).await;
        results.map_err(|error| self.error("PlayerMatched", format!("racing: {:#}", anyhow::Error::from(error))))
    }

    /// Coins in his wallet.
    ///
    /// # Errors
    /// [`BotError`]
    pub async fn balance(&self) -> Result<u64, BotError> {
        let garage: Result<Wallet, Problem> = self.insist(Method::GET, "/v1/garage", None).await;
        garage
            .map(|wallet| wallet.balance)
            .map_err(|problem| self.error("nothing", format!("reading his wallet: {problem:?}")))
    }

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
        paid.map_err(|_elapsed| self.error("Released", "was not paid".into()))?
    }

    fn error(&self, last: &str, what: String) -> BotError {
        BotError { player: self.player.clone(), last: last.into(), what }
    }
}
