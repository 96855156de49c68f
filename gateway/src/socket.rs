//! A player's socket: what he missed, then what comes, each event once and in order.
//!
//! Why there is no gap and no duplicate. Let R be the moment when the socket took its place in the hub, P the hub's
//! position then, and S the sequence that the client names. The hub reads the log in order and leaves nothing out; it
//! moves its position and hands out under the lock that R was taken under. So everything of this player after P comes
//! through the place, in order, however far the hub is behind the log.
//!
//! - The socket reads the player's events after S at the stream's *leader*, one after the other, until the leader says
//!   at a moment L, later than R, that there is no further one. All that was stored by L is written now, in order.
//! - What is stored after L was not handed out at R, because it did not exist: it is beyond P, and comes through the
//!   place.
//! - What was stored by L and lies beyond P comes through the place a second time. `written`, the last sequence
//!   written, is at or past it, and the socket skips what is not past `written`.
//!
//! What is written after the backlog is therefore exactly what is stored after L, in the hub's order, which is the
//! log's. A replica in the leader's place could deny a stored event at L, and a hub ahead of R would never bring it:
//! hence the leader. Without S the client asks for what comes, and `written` begins at P.
//!
//! Where the log has forgotten what came after S, the player as the leader has him stands for all up to his last event,
//! and the socket goes on from there.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use garage_events::{
    id::PlayerId,
    jetstream::JetStreamLog,
    log::{Load, Player, ReadError},
    subject::Aggregate,
};
use garage_worker::Shutdown;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::{
    frame::Frame,
    hub::{Closing, Registration},
    ticket::Me,
};

/// How patient a socket is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Between two pings.
    pub(crate) ping: Duration,
    /// Without a word from the client, a pong or anything else, until it counts as gone.
    pub(crate) silence: Duration,
    /// For one frame to be taken by the client's side.
    pub(crate) write: Duration,
    /// For the client to answer a close.
    pub(crate) close: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let s = Duration::from_secs;
        // Proxies cut what is silent for 30 to 60 s; a client may miss two pings.
        Self { ping: s(20), silence: s(60), write: s(10), close: s(5) }
    }
}

/// Buffers for clients that only listen: tungstenite's own defaults are 128 KiB each way.
pub(crate) fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(1 << 10)
        // Each frame leaves when it is written.
        .write_buffer_size(0)
        // A bound, allocated when it is needed: some of the largest events (256 KiB).
        .max_write_buffer_size(1 << 20)
        .max_message_size(Some(4 << 10))
        .max_frame_size(Some(4 << 10))
}

/// Where missed events are read.
pub(crate) trait Missed: Send + Sync {
    /// The player's first event from a sequence on, as the stream's leader has it.
    fn next(
        &self,
        player: &PlayerId,
        from: u64,
    ) -> impl Future<Output = Result<Option<(u64, Bytes)>, ReadError>> + Send;

    /// Whether events after a sequence may have been forgotten with their age.
    fn forgotten(&self, since: u64) -> impl Future<Output = Result<bool, ReadError>> + Send;

    /// The player, as the stream's leader has him.
    fn player(&self, player: &PlayerId) -> impl Future<Output = Result<Player, ReadError>> + Send;
}

impl Missed for JetStreamLog {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client has gone, or is about to.
    Gone,
    /// We end it.
    Close(u16, &'static str),
}

const TOO_SLOW: End = End::Close(4008, "too slow");
const SILENT: End = End::Close(4009, "silent");
const REPLACED: End = End::Close(4010, "replaced by a newer socket");
const GOING_AWAY: End = End::Close(1001, "going away");
const TRY_AGAIN: End = End::Close(1013, "try again later");

impl End {
    /// Whether the player may not be there any more: nobody else has taken him over, nor sent him away.
    pub(crate) fn vanished(self) -> bool {
        self != REPLACED && self != GOING_AWAY
    }
}

impl From<Closing> for End {
    fn from(why: Closing) -> Self {
        match why {
            Closing::TooSlow => TOO_SLOW,
            Closing::Replaced => REPLACED,
        }
    }
}

/// A socket that is served.
pub(crate) struct Socket<S> {
    pub(crate) stream: WebSocketStream<S>,
    pub(crate) registration: Registration,
    pub(crate) player: PlayerId,
    pub(crate) pace: Pace,
    pub(crate) shutdown: Shutdown,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Socket<S> {
    /// Writes what was missed after `since`, then what comes, until either side ends it; tells why.
    pub(crate) async fn run(mut self, missed: &impl Missed, since: Option<u64>) -> End {
        let end = match self.backlog(missed, since).await {
            Ok(written) => self.live(written).await,
            Err(end) => end,
        };
        if let End::Close(code, reason) = end {
            tracing::debug!(player.id = %self.player, code, reason, "closing a socket");
            let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
            if !matches!(timeout(self.pace.close, self.stream.close(Some(frame))).await, Ok(Ok(()))) {
                return end;
            }
        }
        // Hanging up before the client has read our close could take it from him.
        let answered = async { while let Some(Ok(_)) = self.stream.next().await {} };
        let _ = timeout(self.pace.close, answered).await;
        end
    }

    async fn backlog(&mut self, missed: &impl Missed, since: Option<u64>) -> Result<u64, End> {
        let Some(mut written) = since else { return Ok(self.registration.position) };
        let player = self.player.clone();
        let mut first = true;
        loop {
            let next = self.read(missed.next(&player, written.saturating_add(1))).await?;
            // Asked after the read: what is not forgotten now was not forgotten then.
            if std::mem::take(&mut first) && self.read(missed.forgotten(written)).await? {
                let state = self.read(missed.player(&player)).await?;
                written = written.max(state.head.seq);
                self.write(Frame::resync(&Me::of(player.clone(), &state), state.head)).await?;
                continue;
            }
            let Some((seq, body)) = next else { return Ok(written) };
            match Frame::of(seq, &body) {
                Ok(frame) => self.write(frame).await?,
                Err(error) => {
                    metrics::counter!("garage_gateway_skipped_total").increment(1);
                    tracing::warn!(%error, event.seq = seq, "a player's message is no event; skipping it");
                }
            }
            written = seq;
        }
    }

    async fn read<T>(&mut self, reading: impl Future<Output = Result<T, ReadError>>) -> Result<T, End> {
        tokio::select! {
            read = reading => read.map_err(|error| {
                tracing::warn!(%error, player.id = %self.player, "missed events cannot be read");
                TRY_AGAIN
            }),
            () = self.shutdown.cancelled() => Err(GOING_AWAY),
            why = &mut self.registration.end => Err(why.map_or(GOING_AWAY, End::from)),
        }
    }

    async fn live(&mut self, mut written: u64) -> End {
        let mut heard = Instant::now();
        let mut ping = interval_at(heard + self.pace.ping, self.pace.ping);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wrote = tokio::select! {
                () = self.shutdown.cancelled() => Err(self.last_words(written).await),
                why = &mut self.registration.end => Err(why.map_or(GOING_AWAY, End::from)),
                Some(frame) = self.registration.frames.recv() => {
                    if frame.seq <= written {
                        continue;
                    }
                    written = frame.seq;
                    self.write(frame).await
                }
                message = self.stream.next() => match message {
                    Some(Ok(Message::Close(_)) | Err(_)) | None => Err(End::Gone),
                    // Pings are answered by tungstenite; what clients say besides is not asked for.
                    Some(Ok(_)) => {
                        heard = Instant::now();
                        Ok(())
                    }
                },
                _ = ping.tick() => {
                    if heard.elapsed() >= self.pace.silence {
                        Err(SILENT)
                    } else {
                        self.send(Message::Ping(Bytes::new())).await
                    }
                }
            };
            if let Err(end) = wrote {
                return end;
            }
        }
    }

    /// Writes what was handed out before this gateway was told to stop, as far as the client takes it: that much less
    /// is to be read from the log again when it comes back. Not after a write that was interrupted: what was to be
    /// written then would be skipped for good.
    async fn last_words(&mut self, written: u64) -> End {
        let words = async {
            while let Ok(frame) = self.registration.frames.try_recv() {
                if frame.seq > written {
                    self.stream.send(Message::Text(frame.text)).await?;
                    metrics::counter!("garage_gateway_frames_total").increment(1);
                }
            }
            Ok::<_, tungstenite::Error>(())
        };
        match timeout(self.pace.close, words).await {
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

    /// Sends, for as long as the client takes it.
    async fn send(&mut self, message: Message) -> Result<(), End> {
        tokio::select! {
            // What the client takes at once is not interrupted: it would be lost with the last words after it.
            biased;
            sent = timeout(self.pace.write, self.stream.send(message)) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err(End::Gone),
                Err(_) => Err(TOO_SLOW),
            },
            () = self.shutdown.cancelled() => Err(GOING_AWAY),
            why = &mut self.registration.end => Err(why.map_or(GOING_AWAY, End::from)),
        }
    }
}

#[cfg(test)]
mod tests;
