//! A WebSocket that reopens itself when it breaks.

use reqwest::StatusCode;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Bot, BotError, Frame, PAUSE, Socket};

/// The event types after which a ticket receives no more events.
const FINAL_TYPES: [&str; 4] = ["Cancelled", "TimedOut", "MatchDeclined", "Released"];

/// A player's WebSocket. When it breaks, it is opened again and continues after the last received event, unless another
/// client of the player has replaced it. It checks the guarantee of the gateway: each event once, in the order of the log,
/// without gaps.
#[derive(Debug)]
pub struct EventStream {
    bot: Bot,
    socket: Option<Socket>,
    seen: u64,
    frames: Vec<Frame>,
    breaks: u32,
    /// How many connections broke, were dropped or could not be opened. A slow gateway can still accept one of them, which
    /// then replaces a newer socket.
    lost: u32,
}

impl EventStream {
    pub(super) fn new(bot: Bot, seen: u64) -> Self {
        Self { bot, socket: None, seen, frames: Vec::new(), breaks: 0, lost: 0 }
    }

    /// All frames received so far.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// How often the socket broke.
    #[must_use]
    pub fn breaks(&self) -> u32 {
        self.breaks
    }

    pub(super) async fn open(mut self) -> Result<Self, BotError> {
        let start = Instant::now();
        self.reopen(start).await?;
        Ok(self)
    }

    async fn reopen(&mut self, start: Instant) -> Result<&mut Socket, BotError> {
        loop {
            match self.bot.socket(Some(self.seen)).await {
                Ok(socket) => return Ok(self.socket.insert(socket)),
                Err(error) if start.elapsed() >= self.bot.max_wait => return Err(self.error(error.what)),
                // The gateway may be restarting.
                Err(_) => {
                    self.lost += 1;
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// The next event.
    ///
    /// # Errors
    /// [`BotError`] when no event arrives in time, the event is not the next one, or the player has opened a newer
    /// socket.
    pub async fn next(&mut self) -> Result<Frame, BotError> {
        let start = Instant::now();
        let frame = loop {
            let socket = match &mut self.socket {
                Some(socket) => socket,
                None => self.reopen(start).await?,
            };
            let next = socket.next().await;
            let replaced = socket.replaced;
            match next {
                Ok(frame) => break frame,
                // If a replaced socket were always reopened, two clients of the player would replace each other's sockets
                // again and again.
                Err(error) if (replaced && self.lost == 0) || start.elapsed() >= self.bot.max_wait => {
                    return Err(self.error(error.what));
                }
                Err(_) => {
                    self.breaks += 1;
                    if replaced {
                        self.lost -= 1;
                    } else {
                        self.lost += 1;
                    }
                    if let Some(broken) = self.socket.take() {
                        self.bot.gateways.switch_from(&broken.gateway);
                    }
                }
            }
        };
        let follows = self.frames.last().is_none_or(|last| frame.n == last.n + 1);
        if frame.seq <= self.seen || !follows {
            let last = self.frames.last().map(|last| (last.seq, last.n));
            let (seq, n) = (frame.seq, frame.n);
            return Err(self.error(format!("event (seq {seq}, n {n}) does not follow the last one (seq, n): {last:?}")));
        }
        self.seen = frame.seq;
        self.frames.push(frame.clone());
        Ok(frame)
    }

    /// Reads events until one has this type, and returns it. Accepts a match that is proposed before.
    ///
    /// # Errors
    /// [`BotError`] when the event does not arrive in time, or the ticket ends first, so that it can never arrive.
    pub async fn until(&mut self, type_name: &str) -> Result<Frame, BotError> {
        loop {
            let frame = self
                .next()
                .await
                .map_err(|error| BotError { what: format!("waiting for {type_name}: {}", error.what), ..error })?;
            if frame.type_name == type_name {
                return Ok(frame);
            }
            if frame.type_name == "MatchProposed"
                && let Err(problem) = self.bot.accept(frame.data.get("session").and_then(Value::as_str).unwrap_or_default()).await
                // The proposal has ended. The next event says what became of the ticket.
                && problem.status != StatusCode::CONFLICT
            {
                return Err(self.error(format!("accepting the match: {problem:?}")));
            }
            if FINAL_TYPES.contains(&&*frame.type_name) {
                return Err(self.error(format!("the ticket ended while waiting for {type_name}: {}", frame.data)));
            }
        }
    }

    /// Drops the connection without a closing handshake, also if it is still being opened. The next call of
    /// [`next`](Self::next) reopens it.
    pub fn hang_up(&mut self) {
        self.socket = None;
        self.lost += 1;
    }

    /// Closes the socket, and returns all received frames.
    pub async fn close(self) -> Vec<Frame> {
        if let Some(socket) = self.socket {
            socket.close().await;
        }
        self.frames
    }

    fn error(&self, what: String) -> BotError {
        let last = self.frames.last().map_or("connecting", |frame| frame.type_name.as_str());
        self.bot.error(last, what)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use tokio::{net::TcpListener, time::timeout};
    use tokio_tungstenite::{
        accept_async,
        tungstenite::protocol::{CloseFrame, frame::coding::CloseCode},
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    async fn reconnects_after(codes: &[u16]) -> bool {
        reconnects(|_| {}, codes).await
    }

    /// A gateway that closes one socket after the other with these codes. Returns whether the bot opens a further one.
    async fn reconnects(before: impl FnOnce(&mut EventStream), codes: &[u16]) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = format!("http://{}", listener.local_addr().unwrap());
        let bot = Bot::new(reqwest::Client::new(), &gateway, "ann", "token");
        let mut stream = EventStream::new(bot, 0);
        before(&mut stream);
        let client = tokio::spawn(async move { stream.next().await });
        let accept = async || timeout(DEADLINE, listener.accept()).await.unwrap().unwrap().0;
        for code in codes {
            let mut socket = accept_async(accept().await).await.unwrap();
            let why = CloseFrame { code: CloseCode::from(*code), reason: "".into() };
            socket.close(Some(why)).await.unwrap();
        }
        tokio::select! {
            _ = accept() => true,
            ended = client => {
                assert!(ended.unwrap().is_err());
                listener.accept().now_or_never().is_some()
            }
        }
    }

    #[tokio::test]
    async fn a_bot_reconnects_after_any_close_code_except_of_a_replaced_socket() {
        for code in [1001, 4008, 4011] {
            assert!(reconnects_after(&[code]).await, "{code}");
        }
        assert!(!reconnects_after(&[4010]).await);
    }

    #[tokio::test]
    async fn a_bot_reconnects_once_for_each_connection_of_its_own_that_may_have_replaced_its_socket() {
        assert!(reconnects_after(&[4009, 4010]).await);
        assert!(!reconnects_after(&[4009, 4010, 4010]).await);
        assert!(reconnects(EventStream::hang_up, &[4010]).await);
        assert!(!reconnects(EventStream::hang_up, &[4010, 4010]).await);
    }
}
