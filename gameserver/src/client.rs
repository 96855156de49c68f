//! A client for bots and tests. [`drive`] plays a whole race; [`connect`] only opens the connection.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use garage_events::game::{Placing, Secret};
use rustls::{ClientConfig, crypto::ring, pki_types::ServerName, version::TLS13};
use tokio::{
    net::{TcpStream, UdpSocket},
    time::{Instant, interval, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{self, Message},
};

use crate::wire::{
    FromClient, FromServer, Key, close,
    datagram::{INPUT_LEN, Input},
};

mod pin;

pub use pin::Pin;

/// Pause between two input datagrams. Each repeats the throttle, because any datagram may be lost.
const INPUT_INTERVAL: Duration = Duration::from_millis(50);

/// The address of a game, from the event `PlayerMatched`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The server's IP address and TCP port.
    pub address: SocketAddr,
    /// The port for datagrams, on the same IP address.
    pub udp_port: u16,
    /// The fingerprint of the game's key, see [`garage_events::game::fingerprint`].
    pub fingerprint: String,
}

/// How [`drive`] plays.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Driving {
    /// The throttle for the whole race, from 0 to 1.
    pub throttle: f32,
    /// How the throttle is sent.
    pub channel: InputChannel,
    /// Maximum time from connecting to the result. The default is longer than a game with default time-outs.
    pub timeout: Duration,
}

/// How the client sends its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputChannel {
    /// By datagram. If no datagram arrives, by WebSocket.
    Datagram,
    /// By WebSocket only.
    WebSocket,
}

impl Default for Driving {
    fn default() -> Self {
        Self { throttle: 1.0, channel: InputChannel::Datagram, timeout: Duration::from_secs(120) }
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum RaceError {
    /// TCP or TLS cannot connect.
    #[error("connecting to the game server")]
    Connect(#[source] io::Error),
    /// The server's key does not have the expected fingerprint. It is not the server that Garage announced.
    #[error("the game server's key does not have the expected fingerprint")]
    WrongKey,
    /// The WebSocket handshake or the connection failed.
    #[error("communicating with the game server")]
    Broken(#[source] Box<tungstenite::Error>),
    /// TLS or the UDP socket cannot be set up on this machine.
    #[error("setting up the client: {0}")]
    Setup(String),
    /// The server did not accept the token.
    #[error("the game server refused the client: {0}")]
    Refused(String),
    /// The same player has connected again.
    #[error("another connection of the same player replaced this one")]
    Replaced,
    /// The server closed the connection before the result. Contains the close code, if there was one.
    #[error("the game server closed the connection before the result, code {0:?}")]
    Closed(Option<u16>),
    /// A message cannot be parsed or written.
    #[error("the message does not follow the game protocol")]
    Malformed(#[source] serde_json::Error),
    /// There was no result in time.
    #[error("no result within {0:?}")]
    TimedOut(Duration),
}

impl From<tungstenite::Error> for RaceError {
    fn from(error: tungstenite::Error) -> Self {
        Self::Broken(Box::new(error))
    }
}

/// A WebSocket connection to a game server, over TLS.
pub type Connection = WebSocketStream<TlsStream<TcpStream>>;

/// Joins a game, drives with a constant throttle, and returns the results.
///
/// # Errors
/// [`RaceError`].
pub async fn drive(server: &Server, token: &str, driving: Driving) -> Result<Vec<Placing>, RaceError> {
    let deadline = Instant::now() + driving.timeout;
    match timeout_at(deadline, play(server, token, driving)).await {
        Ok(result) => result,
        Err(_) => Err(RaceError::TimedOut(driving.timeout)),
    }
}

/// Connects, and checks that the server's key has the expected fingerprint. The caller sends the first frame.
///
/// # Errors
/// [`RaceError`].
pub async fn connect(server: &Server) -> Result<Connection, RaceError> {
    let stream = TcpStream::connect(server.address).await.map_err(RaceError::Connect)?;
    stream.set_nodelay(true).map_err(RaceError::Connect)?;
    let provider = Arc::new(ring::default_provider());
    let pin = Pin::new(server.fingerprint.clone(), &provider);
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| RaceError::Setup(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pin))
        .with_no_client_auth();
    let name = ServerName::from(server.address.ip());
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| if pin::is_mismatch(&error) { RaceError::WrongKey } else { RaceError::Connect(error) })?;
    let (connection, _) = client_async(format!("ws://{}/", server.address), stream).await?;
    Ok(connection)
}

/// Sends a message as a text frame.
///
/// # Errors
/// [`RaceError::Broken`] if the connection failed, [`RaceError::Malformed`] if the message cannot be written as JSON.
pub async fn send(connection: &mut Connection, message: &FromClient) -> Result<(), RaceError> {
    let text = serde_json::to_string(message).map_err(RaceError::Malformed)?;
    Ok(connection.send(Message::text(text)).await?)
}

/// Waits for the next message from the server.
///
/// # Errors
/// [`RaceError`]. The protocol's close codes have their own variants.
pub async fn receive(connection: &mut Connection) -> Result<FromServer, RaceError> {
    loop {
        let Some(received) = connection.next().await else { return Err(RaceError::Closed(None)) };
        match received? {
            Message::Text(text) => return serde_json::from_str(&text).map_err(RaceError::Malformed),
            Message::Close(frame) => {
                let code = frame.map(|frame| u16::from(frame.code));
                return Err(match code {
                    Some(close::REPLACED) => RaceError::Replaced,
                    Some(close::REFUSED) => RaceError::Refused("no reason given".to_owned()),
                    code => RaceError::Closed(code),
                });
            }
            Message::Binary(_) | Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

async fn play(server: &Server, token: &str, driving: Driving) -> Result<Vec<Placing>, RaceError> {
    let mut connection = connect(server).await?;
    send(&mut connection, &FromClient::Join { token: Secret::new(token) }).await?;
    let mut datagrams = None;
    let mut input_interval = interval(INPUT_INTERVAL);
    loop {
        tokio::select! {
            message = receive(&mut connection) => match message? {
                FromServer::Refused { reason } => return Err(RaceError::Refused(reason)),
                FromServer::Welcome(welcome) => match driving.channel {
                    InputChannel::Datagram => datagrams = Some(Datagrams::open(server, welcome.udp_id, welcome.udp_key).await?),
                    InputChannel::WebSocket => {}
                },
                FromServer::Start => match driving.channel {
                    InputChannel::WebSocket => send(&mut connection, &FromClient::Input { throttle: driving.throttle }).await?,
                    InputChannel::Datagram => {}
                },
                // The server sends snapshots by WebSocket if it has received no datagram from this client. So send the
                // input by WebSocket as well. Ignore errors: if the server has closed, its last frames are still
                // unread.
                FromServer::Snapshot(_) => {
                    let _ = send(&mut connection, &FromClient::Input { throttle: driving.throttle }).await;
                }
                FromServer::Result { results } => {
                    // Errors while closing do not matter: the result has arrived.
                    let _ = connection.close(None).await;
                    return Ok(results);
                }
            },
            _ = input_interval.tick() => {
                if let Some(datagrams) = &mut datagrams {
                    datagrams.send(driving.throttle);
                }
            }
        }
    }
}

/// Sends input datagrams. It does not read snapshots: a bot with a constant throttle does not need them, and the
/// operating system drops datagrams that nobody reads.
struct Datagrams {
    socket: UdpSocket,
    id: u32,
    key: Key,
    counter: u64,
}

impl Datagrams {
    async fn open(server: &Server, id: u32, key: Key) -> Result<Self, RaceError> {
        let local: SocketAddr = match server.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let setup = |error: io::Error| RaceError::Setup(error.to_string());
        let socket = UdpSocket::bind(local).await.map_err(setup)?;
        socket.connect((server.address.ip(), server.udp_port)).await.map_err(setup)?;
        Ok(Self { socket, id, key, counter: 0 })
    }

    fn send(&mut self, throttle: f32) {
        self.counter += 1;
        let datagram = Input { id: self.id, counter: self.counter, throttle }.seal(&self.key);
        debug_assert_eq!(datagram.len(), INPUT_LEN, "unexpected length of a datagram");
        // A lost datagram does not matter: the next one follows, and if none arrives, `play` uses the WebSocket.
        let _ = self.socket.try_send(&datagram);
    }
}
