//! Accepts connections and relays their frames. A connection passes TLS, the WebSocket handshake and the token check,
//! in that order. [`crate::game`] handles the content of the frames.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use garage_events::deadline::receive;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, accept_async_with_config,
    tungstenite::{
        Error as WsError, Message, Utf8Bytes,
        protocol::{CloseFrame, WebSocketConfig},
    },
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    connections::Connections,
    domain::race::Throttle,
    token::Verifier,
    wire::{FromClient, FromServer, MAX_MESSAGE, close},
};

/// Time limit for the TLS and WebSocket handshakes together. The first frame has the same limit, counted separately.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit for sending one frame, and for closing a connection.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Number of frames that may wait for a slow client, about three seconds of snapshots. With more, the game drops the
/// connection.
const SEND_QUEUE: usize = 64;

/// A message from a connection to the game. `player` is the index in the configuration's list of players.
pub(crate) enum Event {
    /// A player has joined.
    Joined { connection: u64, player: usize, out: mpsc::Sender<Outgoing> },
    /// A player has sent input.
    Input { connection: u64, player: usize, throttle: Throttle },
    /// A connection that had joined has ended.
    Left { connection: u64, player: usize },
}

/// A message from the game to a connection. When the game drops the sender, the connection ends at once.
#[derive(Debug, Clone)]
pub(crate) enum Outgoing {
    Text(Utf8Bytes),
    /// Close code and reason.
    Close(u16, &'static str),
}

impl Outgoing {
    /// Serialises a message as a text frame.
    pub(crate) fn text(message: &FromServer) -> Self {
        // Cannot fail: the messages contain plain data, and their maps have text keys.
        Self::Text(serde_json::to_string(message).unwrap_or_default().into())
    }
}

/// State shared by all connections.
pub(crate) struct Acceptor {
    tls: TlsAcceptor,
    verifier: Verifier,
    connections: Mutex<Connections>,
}

impl Acceptor {
    pub(crate) fn new(tls: TlsAcceptor, verifier: Verifier, players: usize) -> Self {
        Self { tls, verifier, connections: Mutex::new(Connections::new(players)) }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts connections until `stop` is cancelled. Then waits, for a limited time, until the open connections are
/// closed.
pub(crate) async fn accept(
    listener: TcpListener,
    acceptor: Acceptor,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let acceptor = Arc::new(acceptor);
    let mut tasks = JoinSet::new();
    let mut next = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    next += 1;
                    let connection = serve(stream, next, Arc::clone(&acceptor), events.clone(), stop.clone());
                    // Lock before the task starts, so that it cannot join before it has been added.
                    let mut connections = acceptor.connections();
                    let task = tasks.spawn(connection.in_current_span());
                    connections.add(next, from.ip(), task);
                }
                Err(error) => {
                    // The usual reason is that no file descriptors are left. An immediate retry would only use CPU
                    // time.
                    tracing::warn!(%error, "cannot accept connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop((listener, events));
    let closed = async { while tasks.join_next().await.is_some() {} };
    if timeout(2 * SEND_TIMEOUT, closed).await.is_err() {
        tracing::debug!("dropping connections that their clients did not close");
    }
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn serve(
    stream: TcpStream,
    connection: u64,
    acceptor: Arc<Acceptor>,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let opened = match timeout(HANDSHAKE_TIMEOUT, open(stream, &acceptor.tls)).await {
        Ok(opened) => opened,
        Err(_) => Err("the handshake took too long".to_owned()),
    };
    let mut socket = match opened {
        Ok(socket) => socket,
        Err(error) => return tracing::debug!(connection, error, "TLS or WebSocket handshake failed"),
    };
    let player = match timeout(HANDSHAKE_TIMEOUT, join(&mut socket, &acceptor.verifier)).await {
        Ok(Ok(player)) => player,
        Ok(Err(end)) => return end.close(socket, connection).await,
        Err(_) => return End::Refused("there was no join in time".to_owned()).close(socket, connection).await,
    };
    acceptor.connections().join(connection, player);
    let (out, frames) = mpsc::channel(SEND_QUEUE);
    // Sending fails only after the game is over.
    if events.send(Event::Joined { connection, player, out }).await.is_err() {
        return End::Gone.close(socket, connection).await;
    }
    let end = relay(&mut socket, connection, player, frames, &events, &stop).await;
    let _ = events.send(Event::Left { connection, player }).await;
    end.close(socket, connection).await;
}

async fn open(stream: TcpStream, tls: &TlsAcceptor) -> Result<Socket, String> {
    let message = |error: &dyn std::error::Error| error.to_string();
    // Frames are small, and a delay would be noticed in the game.
    stream.set_nodelay(true).map_err(|error| message(&error))?;
    let stream = tls.accept(stream).await.map_err(|error| message(&error))?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .read_buffer_size(4 * 1024)
        .write_buffer_size(0)
        // The welcome of the largest match takes 830 KiB at most.
        .max_write_buffer_size(1024 * 1024);
    accept_async_with_config(stream, Some(limits)).await.map_err(|error| message(&error))
}

/// Why a connection ends.
enum End {
    /// The client has closed the connection, it failed, or it was too slow.
    Gone,
    /// The client sent a frame that is not valid in the protocol.
    Malformed,
    /// The client did not join with a valid token. Contains the reason for the client.
    Refused(String),
    /// The game closes the connection with this code and reason.
    ClosedByGame(u16, &'static str),
}

impl End {
    /// Sends the client a close frame with the reason and waits for the client's answer, for a limited time.
    async fn close(self, mut socket: Socket, connection: u64) {
        let (code, reason) = match self {
            Self::Gone => return,
            Self::Malformed => (close::MALFORMED, "malformed frame"),
            Self::ClosedByGame(code, reason) => (code, reason),
            Self::Refused(reason) => {
                tracing::info!(connection, reason, "client refused");
                let refused = Outgoing::text(&FromServer::Refused { reason });
                if let Outgoing::Text(text) = refused {
                    let _ = timeout(SEND_TIMEOUT, socket.send(Message::Text(text))).await;
                }
                (close::REFUSED, "refused")
            }
        };
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        let closing = async {
            if socket.close(Some(frame)).await.is_ok() {
                // Read until the client's answer. If a socket is dropped with unread input, the system resets the
                // connection, and the client may not receive the last frames.
                while let Some(Ok(_)) = socket.next().await {}
            }
        };
        let _ = timeout(SEND_TIMEOUT, closing).await;
    }
}

/// Parses a frame of the protocol. `None` for frames of the WebSocket layer, such as pings.
fn parse(received: Option<Result<Message, WsError>>) -> Result<Option<FromClient>, End> {
    match received {
        Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
            Ok(message) => Ok(Some(message)),
            Err(_) => Err(End::Malformed),
        },
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(None),
        Some(Ok(Message::Binary(_))) | Some(Err(WsError::Capacity(_) | WsError::Utf8(_) | WsError::Protocol(_))) => {
            Err(End::Malformed)
        }
        Some(Ok(Message::Close(_)) | Err(_)) | None => Err(End::Gone),
    }
}

/// Waits for the first frame and verifies its token. Returns the player's index.
async fn join(socket: &mut Socket, verifier: &Verifier) -> Result<usize, End> {
    loop {
        match parse(socket.next().await)? {
            None => {}
            Some(FromClient::Join { token }) => {
                return verifier.admit(&token).map_err(|refusal| End::Refused(refusal.to_string()));
            }
            Some(FromClient::Input { .. }) => return Err(End::Refused("the first frame must be a join".to_owned())),
        }
    }
}

/// Relays frames between the client and the game until the connection ends.
async fn relay(
    socket: &mut Socket,
    connection: u64,
    player: usize,
    mut frames: mpsc::Receiver<Outgoing>,
    events: &mpsc::Sender<Event>,
    stop: &CancellationToken,
) -> End {
    loop {
        tokio::select! {
            frame = receive(&mut frames, stop) => match frame {
                Err(_) => return End::Gone,
                Ok(Outgoing::Close(code, reason)) => return End::ClosedByGame(code, reason),
                Ok(Outgoing::Text(text)) => {
                    if !matches!(timeout(SEND_TIMEOUT, socket.send(Message::Text(text))).await, Ok(Ok(()))) {
                        return End::Gone;
                    }
                }
            },
            received = socket.next() => {
                let message = match parse(received) {
                    Ok(message) => message,
                    Err(end) => return end,
                };
                let throttle = match message {
                    None => continue,
                    Some(FromClient::Join { .. }) => return End::Malformed,
                    Some(FromClient::Input { throttle }) => Throttle::parse(throttle),
                };
                let Some(throttle) = throttle else { return End::Malformed };
                if events.send(Event::Input { connection, player, throttle }).await.is_err() {
                    // The game is over. Its last frames may still be in the queue, so go on.
                    continue;
                }
            }
        }
    }
}
