//! A client, for bots and tests: [`drive`] plays a whole race; [`connect`] stops where the first frame is due.

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

/// How often the pedal is sent by datagram; any of them may be lost.
const INPUT_EVERY: Duration = Duration::from_millis(50);

/// Where a game is, as `PlayerMatched` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The server's address and TCP port.
    pub address: SocketAddr,
    /// The port of datagrams, on the same address.
    pub udp_port: u16,
    /// The fingerprint of the game's key, see [`garage_events::game::fingerprint`].
    pub fingerprint: String,
}

/// How to drive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Driving {
    /// How far the pedal is down, all the way.
    pub throttle: f32,
    /// How the pedal is sent.
    pub by: By,
    /// How long it may take from connecting to the result. The default is longer than a game with default time-outs.
    pub within: Duration,
}

/// How the pedal is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// By datagram, and by WebSocket where datagrams do not get through.
    Datagram,
    /// By WebSocket alone.
    WebSocket,
}

impl Default for Driving {
    fn default() -> Self {
        Self { throttle: 1.0, by: By::Datagram, within: Duration::from_secs(120) }
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum RaceError {
    /// The server cannot be reached.
    #[error("connecting to the game server")]
    Connect(#[source] io::Error),
    /// Somebody else answers: its key is not the one that was announced.
    #[error("the game server's key is not the announced one")]
    WrongKey,
    /// TLS or the WebSocket could not be set up, or broke.
    #[error("talking to the game server")]
    Broken(#[source] Box<tungstenite::Error>),
    /// This client cannot do TLS or datagrams at all.
    #[error("setting up the client: {0}")]
    Setup(String),
    /// The token does not admit.
    #[error("the game server refused: {0}")]
    Refused(String),
    /// The same player connected again.
    #[error("another connection of the same player took over")]
    Replaced,
    /// The server closed before the result.
    #[error("the game server closed the connection before the result, code {0:?}")]
    Closed(Option<u16>),
    /// The server said something that is not of the protocol.
    #[error("the game server said what is not of the protocol")]
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

/// An open connection before its first frame.
pub type Connection = WebSocketStream<TlsStream<TcpStream>>;

/// Joins a game, holds the pedal where it was told, and returns the results.
///
/// # Errors
/// [`RaceError`].
pub async fn drive(server: &Server, token: &str, driving: Driving) -> Result<Vec<Placing>, RaceError> {
    let deadline = Instant::now() + driving.within;
    match timeout_at(deadline, play(server, token, driving)).await {
        Ok(result) => result,
        Err(_) => Err(RaceError::TimedOut(driving.within)),
    }
}

/// Connects and makes sure that the other side is the announced server.
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

/// Sends a message as a frame.
///
/// # Errors
/// [`RaceError::Broken`].
pub async fn send(connection: &mut Connection, message: &FromClient) -> Result<(), RaceError> {
    let text = serde_json::to_string(message).map_err(RaceError::Malformed)?;
    Ok(connection.send(Message::text(text)).await?)
}

/// The next message of the server.
///
/// # Errors
/// [`RaceError`]; the close codes of the protocol are told apart.
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
    let mut beat = interval(INPUT_EVERY);
    loop {
        tokio::select! {
            message = receive(&mut connection) => match message? {
                FromServer::Refused { reason } => return Err(RaceError::Refused(reason)),
                FromServer::Welcome(welcome) => match driving.by {
                    By::Datagram => datagrams = Some(Datagrams::open(server, welcome.udp_id, welcome.udp_key).await?),
                    By::WebSocket => {}
                },
                FromServer::Start => match driving.by {
                    By::WebSocket => send(&mut connection, &FromClient::Input { throttle: driving.throttle }).await?,
                    By::Datagram => {}
                },
                // A snapshot that comes this way says that the server has heard no datagram. If it takes this no more,
                // its last words are still to be read.
                FromServer::Snapshot(_) => {
                    let _ = send(&mut connection, &FromClient::Input { throttle: driving.throttle }).await;
                }
                FromServer::Result { results } => {
                    // The result counts, however the connection ends.
                    let _ = connection.close(None).await;
                    return Ok(results);
                }
            },
            _ = beat.tick() => {
                if let Some(datagrams) = &mut datagrams {
                    datagrams.send(driving.throttle);
                }
            }
        }
    }
}

/// A client's end of the datagrams. Snapshots are not read: a bot that holds the pedal has no use for them, and the
/// system drops what is not.
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
        debug_assert_eq!(datagram.len(), INPUT_LEN, "the datagram is as long as documented");
        // A lost one is followed by the next, and where none arrives the WebSocket takes over.
        let _ = self.socket.try_send(&datagram);
    }
}
