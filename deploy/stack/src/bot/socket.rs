//! A player's WebSocket without reconnection.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};

use super::BotError;

/// The close code of a socket that a newer socket of the same player has replaced.
const REPLACED: u16 = 4010;

/// The frames about proposed matches and parties that are not events. They have no sequence, and a bot does not need them.
const NOT_EVENTS: [&str; 5] = ["match-progress", "match-answer", "party", "party-left", "party-invitation"];

/// A frame of the WebSocket.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Frame {
    /// The event's sequence in the log.
    pub seq: u64,
    /// The event's number among the player's events.
    pub n: u64,
    /// The event's type, for example `PlayerMatched`.
    #[serde(rename = "type")]
    pub type_name: String,
    /// The event's data.
    pub data: Value,
}

/// A player's open WebSocket.
#[derive(Debug)]
pub struct Socket {
    pub(super) stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(super) gateway: String,
    pub(super) last: String,
    pub(super) player: String,
    pub(super) max_wait: Duration,
    /// Whether the gateway has closed the socket because the player has opened a newer one.
    pub(super) replaced: bool,
}

impl Socket {
    /// The next event.
    ///
    /// # Errors
    /// [`BotError`] when no frame arrives in time, or the socket is closed.
    pub async fn next(&mut self) -> Result<Frame, BotError> {
        let waiting = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let invalid = |error| format!("invalid frame: {error}");
                        let frame: Value = serde_json::from_str(&text).map_err(invalid)?;
                        if frame.get("type").and_then(Value::as_str).is_some_and(|name| NOT_EVENTS.contains(&name)) {
                            continue;
                        }
                        return serde_json::from_value::<Frame>(frame).map_err(invalid);
                    }
                    Some(Ok(Message::Close(close))) => {
                        self.replaced = close.as_ref().is_some_and(|close| u16::from(close.code) == REPLACED);
                        return Err(format!("the gateway closed the socket: {close:?}"));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(format!("the socket broke: {error}")),
                    None => return Err("the socket ended without a closing frame".into()),
                }
            }
        };
        let next = timeout(self.max_wait, waiting).await;
        let next = next.unwrap_or_else(|_elapsed| Err(format!("no frame within {} s", self.max_wait.as_secs())));
        match next {
            Ok(frame) => {
                self.last.clone_from(&frame.type_name);
                Ok(frame)
            }
            Err(what) => Err(BotError { player: self.player.clone(), last: self.last.clone(), what }),
        }
    }

    /// Sends a closing frame.
    pub async fn close(mut self) {
        // An error means that the connection is already closed.
        let _ = self.stream.send(Message::Close(None)).await;
    }
}
