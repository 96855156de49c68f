//! A player's socket. It first writes the events that the player missed (the backlog), and then new events. It writes
//! each event once and in order.
//!
//! Why there are no gaps and no duplicates:
//!
//! - R is the moment when the socket is registered in the hub. P is the hub's position at R. S is the sequence that the
//!   client names in `since`.
//! - The hub reads the log in order and skips nothing. It changes its position and dispatches under the lock that
//!   registration takes. So the registration receives all events of this player after P, in order, even if the hub is
//!   far behind the log.
//! - The socket reads the backlog, the player's events after S, from the stream's *leader*, one at a time. It stops at
//!   the moment L, after R, when the leader answers that there is no further event. At this point the socket has
//!   written every event stored before L, in order.
//! - An event stored after L did not exist at R, so its sequence is greater than P, and the registration receives it.
//! - An event stored before L with a sequence greater than P arrives twice: from the leader, and through the
//!   registration. `written` is the last sequence written. The socket skips events up to `written`.
//!
//! So after the backlog, the socket writes exactly the events stored after L, in the log's order. The backlog must come
//! from the leader: a replica could miss an event at L that the hub had dispatched before R, and the socket would never
//! get it. Without `since` there is no backlog, and `written` starts at P.
//!
//! If the log has deleted events after S, the socket writes one `resync` frame with the player's current state, as read
//! from the leader, and continues after the player's last event.

mod renewal;

use std::{
    future::{Future, pending},
    time::Duration,
};

use bytes::Bytes;
use futures::{SinkExt, StreamExt, future::BoxFuture};
use garage_events::{
    deadline::receive,
    env::{Env, System},
    id::PlayerId,
    jetstream::JetStreamLog,
    log::{Load, Player, ReadError},
    subject::Aggregate,
};
use garage_worker::Shutdown;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message, Utf8Bytes,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    admission::Pace,
    answers::SentAnswer,
    frame::{self, Frame, Notice},
    hub::{Closing, Registration},
    ticket::Me,
    token::MAX_TOKEN,
};
pub(crate) use renewal::SocketToken;

/// The intervals and time-outs of a socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    /// The interval between pings.
    pub(crate) ping: Duration,
    /// After this long without a pong or another message from the client, the socket is closed.
    pub(crate) silence: Duration,
    /// The time-out for writing one frame.
    pub(crate) write: Duration,
    /// The time-out for sending a close frame and for the client's answer.
    pub(crate) close: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let s = Duration::from_secs;
        // A client that vanishes without closing its connection is noticed after 10 s. Its socket ends at most 3 s later,
        // and its ticket is cancelled after the grace period, by default 15 s. So such a player can be matched for less
        // than 30 s. Proxies close connections that are idle for 30 to 60 s.
        Self { ping: s(5), silence: s(10), write: s(10), close: s(3) }
    }
}

/// The maximum size of a client's message, in bytes: a token of the maximum size, and 256 bytes around it.
const MAX_MESSAGE: usize = MAX_TOKEN + 256;

/// Small buffers, because clients rarely send something. Tungstenite's defaults are 128 KiB per direction.
pub(crate) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(1 << 10)
        // Send each frame at once.
        .write_buffer_size(0)
        // An upper limit, allocated on demand: space for an event of the maximum size (832 KiB). A player's events are
        // much smaller.
        .max_write_buffer_size(1 << 20)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

/// The log, as a socket reads it for its backlog.
pub(crate) trait Backlog: Send + Sync {
    /// The player's first event at or after a sequence, read from the stream's leader.
    fn next(
        &self,
        player: &PlayerId,
        from: u64,
    ) -> impl Future<Output = Result<Option<(u64, Bytes)>, ReadError>> + Send;

    /// Whether the log may have deleted events after a sequence because of their age.
    fn forgotten(&self, since: u64) -> impl Future<Output = Result<bool, ReadError>> + Send;

    /// The player's current state, read from the stream's leader.
    fn player(&self, player: &PlayerId) -> impl Future<Output = Result<Player, ReadError>> + Send;
}

impl Backlog for JetStreamLog {
    async fn next(&self, player: &PlayerId, from: u64) -> Result<Option<(u64, Bytes)>, ReadError> {
        let message = JetStreamLog::next(self, &Aggregate::Player(player.clone()).filter(), from).await?;
        Ok(message.map(|message| (message.sequence, message.payload)))
    }

    async fn forgotten(&self, since: u64) -> Result<bool, ReadError> {
        Ok(self.state().await?.first_sequence > since + 1)
    }

    async fn player(&self, player: &PlayerId) -> Result<Player, ReadError> {
        Load::player(self, player).await
    }
}

/// Why a socket ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The client closed the socket, or the connection broke.
    Gone,
    /// The gateway closes the socket with this code and reason.
    Close(u16, &'static str),
    /// The gateway closes the socket after an operator's command, with a frame that says why.
    Operator(Notice),
}

const TOO_SLOW: End = End::Close(4008, "too slow");
const SILENT: End = End::Close(4009, "silent");
const REPLACED: End = End::Close(4010, "replaced by a newer socket");
const EXPIRED: End = End::Close(4011, "token expired");
const TOO_MANY: End = End::Close(1008, "too many messages");
const GOING_AWAY: End = End::Close(1001, "going away");
const TRY_AGAIN: End = End::Close(1013, "try again later");

impl End {
    /// The code and the reason of the close frame; `None` if the gateway does not send one.
    fn close_code(&self) -> Option<(u16, &'static str)> {
        match self {
            Self::Gone => None,
            Self::Close(code, reason) => Some((*code, *reason)),
            Self::Operator(Notice::Blocked(_)) => Some((4012, "blocked")),
            Self::Operator(Notice::Kicked(_)) => Some((4013, "kicked")),
        }
    }

    /// Whether the player may have left. False if a newer socket replaced this one, or if the gateway shuts down.
    pub(crate) fn vanished(self) -> bool {
        self != REPLACED && self != GOING_AWAY
    }
}

impl From<Closing> for End {
    fn from(why: Closing) -> Self {
        match why {
            Closing::TooSlow => TOO_SLOW,
            Closing::Replaced => REPLACED,
            Closing::Operator(notice) => Self::Operator(notice),
        }
    }
}

/// Sends a client's answer to a proposed match. Returns the frame with the outcome for the client.
pub(crate) type GiveAnswer = Box<dyn Fn(SentAnswer) -> BoxFuture<'static, Utf8Bytes> + Send + Sync>;

pub(crate) struct Socket<S> {
    pub(crate) stream: WebSocketStream<S>,
    pub(crate) registration: Registration,
    pub(crate) player: PlayerId,
    pub(crate) token: SocketToken,
    pub(crate) answers: GiveAnswer,
    /// For the messages of the client.
    pub(crate) pace: Pace,
    pub(crate) timing: Timing,
    pub(crate) shutdown: Shutdown,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Writes the events missed after `since`, and then new events, until the socket ends. Returns the reason.
    pub(crate) async fn run(mut self, log: &impl Backlog, since: Option<u64>) -> End {
        let end = match self.write_backlog(log, since).await {
            Ok(written) => self.write_live(written).await,
            Err(end) => end,
        };
        let closing = async {
            if let End::Operator(notice) = &end
                && let Ok(text) = notice.text()
            {
                if self.stream.send(Message::Text(text)).await.is_err() {
                    return;
                }
                metrics::counter!("garage_gateway_frames_total").increment(1);
            }
            if let Some((code, reason)) = end.close_code() {
                tracing::debug!(player.id = %self.player, code, reason, "closing a socket");
                let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
                if self.stream.close(Some(frame)).await.is_err() {
                    return;
                }
            }
            // If the connection ended before the client has read the close frame, the client could lose it.
            while let Some(Ok(_)) = self.stream.next().await {}
        };
        let _ = timeout(self.timing.close, closing).await;
        end
    }

    async fn write_backlog(&mut self, log: &impl Backlog, since: Option<u64>) -> Result<u64, End> {
        let Some(mut written) = since else { return Ok(self.registration.position) };
        let player = self.player.clone();
        let mut first_read = true;
        loop {
            let next = self.read(log.next(&player, written.saturating_add(1))).await?;
            // Check after the read: if nothing is deleted now, nothing was deleted at the read.
            if std::mem::take(&mut first_read) && self.read(log.forgotten(written)).await? {
                let state = self.read(log.player(&player)).await?;
                written = written.max(state.head.seq);
                self.write(Frame::resync(&Me::of(player.clone(), &state), state.head)).await?;
                continue;
            }
            let Some((seq, body)) = next else { return Ok(written) };
            match Frame::of(seq, &body) {
                Ok(frame) => self.write(frame).await?,
                Err(error) => {
                    metrics::counter!("garage_gateway_skipped_total").increment(1);
                    tracing::warn!(%error, event.seq = seq, "cannot decode an event of a player; skipping it");
                }
            }
            written = seq;
        }
    }

    async fn read<T>(&mut self, reading: impl Future<Output = Result<T, ReadError>>) -> Result<T, End> {
        tokio::select! {
            read = reading => read.map_err(|error| {
                tracing::warn!(%error, player.id = %self.player, "cannot read the events that a socket missed; closing it");
                TRY_AGAIN
            }),
            () = sleep_until(self.token.end) => Err(EXPIRED),
            () = self.shutdown.cancelled() => Err(GOING_AWAY),
            why = &mut self.registration.end => Err(why.map_or(GOING_AWAY, End::from)),
        }
    }

    async fn write_live(&mut self, mut written: u64) -> End {
        let mut last_heard = Instant::now();
        let mut ping = interval_at(last_heard + self.timing.ping, self.timing.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answering: Option<BoxFuture<'static, Utf8Bytes>> = None;
        loop {
            // In this order: after a slow write, what the client has sent meanwhile counts before the limit for silence,
            // and a client that sends without a pause delays none of its events.
            let wrote = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => Err(self.flush(written).await),
                why = &mut self.registration.end => Err(why.map_or(GOING_AWAY, End::from)),
                () = sleep_until(self.token.end) => Err(EXPIRED),
                Ok(frame) = receive(&mut self.registration.frames, &self.shutdown) => {
                    if frame.seq.is_some_and(|seq| seq <= written) {
                        continue;
                    }
                    written = frame.seq.unwrap_or(written);
                    self.write(frame).await
                }
                text = given(&mut answering) => {
                    answering = None;
                    self.write(Frame { seq: None, text }).await
                }
                // One answer at a time: the next message of the client waits until this one is answered.
                message = self.stream.next(), if answering.is_none() => match message {
                    Some(Ok(Message::Close(_)) | Err(_)) | None => Err(End::Gone),
                    // Each message takes time, whatever it contains.
                    Some(Ok(_)) if !self.pace.take() => Err(TOO_MANY),
                    // Tungstenite answers pings.
                    Some(Ok(message)) => {
                        last_heard = Instant::now();
                        answering = self.sent_answer(&message);
                        if answering.is_some() { Ok(()) } else { self.read_message(message).await }
                    }
                },
                // While nothing is read, the client cannot be heard.
                () = sleep_until(last_heard + self.timing.silence), if answering.is_none() => Err(SILENT),
                _ = ping.tick() => self.send(Message::Ping(Bytes::new())).await,
            };
            if let Err(end) = wrote {
                return end;
            }
        }
    }

    /// Begins to send the answer in a message; `None` if there is none.
    fn sent_answer(&self, message: &Message) -> Option<BoxFuture<'static, Utf8Bytes>> {
        let Message::Text(text) = message else { return None };
        SentAnswer::of(text).map(&self.answers)
    }

    /// Answers a message with a token. Ignores all other messages from clients.
    async fn read_message(&mut self, message: Message) -> Result<(), End> {
        let Message::Text(text) = message else { return Ok(()) };
        let Some(token) = frame::sent_token(&text) else { return Ok(()) };
        let answer = tokio::select! {
            answer = self.token.renew(token, System.now(), Instant::now()) => answer,
            () = self.shutdown.cancelled() => return Err(GOING_AWAY),
            why = &mut self.registration.end => return Err(why.map_or(GOING_AWAY, End::from)),
        };
        let outcome = match answer {
            Ok(_) => "accepted",
            Err(_) => "refused",
        };
        metrics::counter!("garage_gateway_socket_tokens_total", "outcome" => outcome).increment(1);
        tracing::debug!(player.id = %self.player, outcome, reason = answer.err(), "a client sent a token on its socket");
        self.send(Message::Text(frame::token_answer(answer))).await?;
        metrics::counter!("garage_gateway_frames_total").increment(1);
        Ok(())
    }

    /// Writes the frames dispatched before the shutdown, as long as the client reads. So after the client reconnects,
    /// the gateway has to read fewer events from the log. Do not call this after an interrupted write: the client would
    /// never receive the event of that write.
    async fn flush(&mut self, written: u64) -> End {
        let flushing = async {
            while let Ok(frame) = self.registration.frames.try_recv() {
                if frame.seq.is_none_or(|seq| seq > written) {
                    self.stream.send(Message::Text(frame.text)).await?;
                    metrics::counter!("garage_gateway_frames_total").increment(1);
                }
            }
            Ok::<_, tungstenite::Error>(())
        };
        match timeout(self.timing.close, flushing).await {
            Ok(Ok(())) => GOING_AWAY,
            Ok(Err(_)) => End::Gone,
            Err(_) => TOO_SLOW,
        }
    }

    async fn write(&mut self, frame: Frame) -> Result<(), End> {
        self.send(Message::Text(frame.text)).await?;
        metrics::counter!("garage_gateway_frames_total").increment(1);
        Ok(())
    }

    /// Sends a message, within the time-out for writes.
    async fn send(&mut self, message: Message) -> Result<(), End> {
        tokio::select! {
            // A write that can complete at once is not interrupted. Otherwise `flush` would skip its event.
            biased;
            sent = timeout(self.timing.write, self.stream.send(message)) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(End::Gone),
                Err(_) => Err(TOO_SLOW),
            },
            () = self.shutdown.cancelled() => Err(GOING_AWAY),
            why = &mut self.registration.end => Err(why.map_or(GOING_AWAY, End::from)),
        }
    }
}

/// Waits for the frame about a client's answer; forever if there is none.
async fn given(answering: &mut Option<BoxFuture<'static, Utf8Bytes>>) -> Utf8Bytes {
    match answering {
        Some(answering) => answering.await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
