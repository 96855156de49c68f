//! Connections: TLS, WebSocket and the token, in that order; then frames in and frames out. What they mean for the race
//! is decided in [`crate::game`].

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
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
    domain::race::Throttle,
    places::Places,
    token::Verifier,
    wire::{FromClient, FromServer, MAX_MESSAGE, close},
};

/// How long TLS and the WebSocket's opening may take together, and then the first frame.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long one frame may take to be handed to the system, and a connection to close.
const SEND: Duration = Duration::from_secs(3);

/// How many frames may wait for a slow reader: three seconds of snapshots. Then the connection ends.
const QUEUE: usize = 64;

/// What a connection tells the game.
pub(crate) enum Event {
    /// A player is there.
    Joined { connection: u64, player: usize, out: mpsc::Sender<Outgoing> },
    /// He moved the pedal.
    Input { connection: u64, player: usize, throttle: Throttle },
    /// The connection has ended.
    Left { connection: u64, player: usize },
}

/// What the game tells a connection. When the game drops its sender, the connection ends at once.
#[derive(Debug, Clone)]
pub(crate) enum Outgoing {
    /// A frame.
    Text(Utf8Bytes),
    /// The last frame.
    Close(u16, &'static str),
}

impl Outgoing {
    /// The frame of a message.
    pub(crate) fn text(message: &FromServer) -> Self {
        // Our own messages are plain data with text keys, which always have a JSON form.
        Self::Text(serde_json::to_string(message).unwrap_or_default().into())
    }
}

/// What every connection needs.
pub(crate) struct Acceptor {
    tls: TlsAcceptor,
    verifier: Verifier,
    places: Mutex<Places>,
}

impl Acceptor {
    pub(crate) fn new(tls: TlsAcceptor, verifier: Verifier, players: usize) -> Self {
        Self { tls, verifier, places: Mutex::new(Places::new(players)) }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets connections in until `stop`, then waits for those that are there to close, for a bounded time.
pub(crate) async fn accept(
    listener: TcpListener,
    acceptor: Acceptor,
    events: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    let acceptor = Arc::new(acceptor);
    let mut connections = JoinSet::new();
    let mut next = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    next += 1;
                    let connection = serve(stream, next, Arc::clone(&acceptor), events.clone());
                    // Taken before it runs: it must not join before it has entered.
                    let mut places = acceptor.places();
                    let task = connections.spawn(connection.in_current_span());
                    places.enter(next, from.ip(), task);
                }
                Err(error) => {
                    // Mostly that there are no file descriptors left; asking again at once would only burn the CPU.
                    tracing::warn!(%error, "connection not accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop((listener, events));
    let closed = async { while connections.join_next().await.is_some() {} };
    if timeout(2 * SEND, closed).await.is_err() {
        tracing::debug!("connections left open by their clients are cut");
    }
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn serve(stream: TcpStream, connection: u64, acceptor: Arc<Acceptor>, events: mpsc::Sender<Event>) {
    let opened = match timeout(HANDSHAKE, open(stream, &acceptor.tls)).await {
        Ok(opened) => opened,
        Err(_) => Err("it took too long".to_owned()),
    };
    let mut socket = match opened {
        Ok(socket) => socket,
        Err(error) => return tracing::debug!(connection, error, "handshake failed"),
    };
    let player = match timeout(HANDSHAKE, join(&mut socket, &acceptor.verifier)).await {
        Ok(Ok(player)) => player,
        Ok(Err(end)) => return end.tell(socket, connection).await,
        Err(_) => return End::Refused("there was no join in time".to_owned()).tell(socket, connection).await,
    };
    acceptor.places().join(connection, player);
    let (out, frames) = mpsc::channel(QUEUE);
    // Sending fails only when the game is over; then nobody is there to tell.
    if events.send(Event::Joined { connection, player, out }).await.is_err() {
        return End::Gone.tell(socket, connection).await;
    }
    let end = relay(&mut socket, connection, player, frames, &events).await;
    let _ = events.send(Event::Left { connection, player }).await;
    end.tell(socket, connection).await;
}

async fn open(stream: TcpStream, tls: &TlsAcceptor) -> Result<Socket, String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    // Frames are small and each is waited for.
    stream.set_nodelay(true).map_err(|error| said(&error))?;
    let stream = tls.accept(stream).await.map_err(|error| said(&error))?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .read_buffer_size(4 * 1024)
        .write_buffer_size(0)
        .max_write_buffer_size(256 * 1024);
    accept_async_with_config(stream, Some(limits)).await.map_err(|error| said(&error))
}

/// How a connection ends.
enum End {
    /// The client has closed it, or it broke, or it was too slow.
    Gone,
    /// It sent what is no frame of the protocol.
    Malformed,
    /// Its token does not admit.
    Refused(String),
    /// The game wants it.
    Notified(u16, &'static str),
}

impl End {
    /// Says so to the client, for as long as he listens, and no longer than bounded.
    async fn tell(self, mut socket: Socket, connection: u64) {
        let (code, reason) = match self {
            Self::Gone => return,
            Self::Malformed => (close::MALFORMED, "malformed frame"),
            Self::Notified(code, reason) => (code, reason),
            Self::Refused(reason) => {
                tracing::info!(connection, reason, "client refused");
                let refused = Outgoing::text(&FromServer::Refused { reason });
                if let Outgoing::Text(text) = refused {
                    let _ = timeout(SEND, socket.send(Message::Text(text))).await;
                }
                (close::REFUSED, "refused")
            }
        };
        let frame = CloseFrame { code: code.into(), reason: reason.into() };
        let closing = async {
            if socket.close(Some(frame)).await.is_ok() {
                // Until his answer: a socket dropped with unread input resets, and may take our last frames with it.
                while let Some(Ok(_)) = socket.next().await {}
            }
        };
        let _ = timeout(SEND, closing).await;
    }
}

/// A frame of the protocol; `None` for one that only the WebSocket cares about.
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

/// The index of the player whom the first frame admits.
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

/// Carries frames both ways until the connection ends.
async fn relay(
    socket: &mut Socket,
    connection: u64,
    player: usize,
    mut frames: mpsc::Receiver<Outgoing>,
    events: &mpsc::Sender<Event>,
) -> End {
    loop {
        tokio::select! {
            frame = frames.recv() => match frame {
                None => return End::Gone,
                Some(Outgoing::Close(code, reason)) => return End::Notified(code, reason),
                Some(Outgoing::Text(text)) => {
                    if !matches!(timeout(SEND, socket.send(Message::Text(text))).await, Ok(Ok(()))) {
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
                    // The game is over; what it still has to say is in the queue.
                    continue;
                }
            }
        }
    }
}
