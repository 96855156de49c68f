//! A socket that is opened again when it breaks.

use tokio::time::{Instant, sleep};

use super::{Bot, BotError, Frame, PAUSE, Socket};

/// What ends a ticket: after it nothing more will come of that wish.
const ENDS: [&str; 3] = ["Cancelled", "TimedOut", "Released"];

/// A player's line: his socket, opened again when it breaks, from the last event that he was told of. It holds the
/// gateway to its word: each event once, in the log's order, none left out.
#[derive(Debug)]
pub struct EventStream {
    bot: Bot,
    socket: Option<Socket>,
    seen: u64,
    frames: Vec<Frame>,
    breaks: u32,
}

impl EventStream {
    pub(super) fn new(bot: Bot, seen: u64) -> Self {
        Self { bot, socket: None, seen, frames: Vec::new(), breaks: 0 }
    }

    /// What he was told so far.
    #[must_use]
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// How often it was opened again.
    #[must_use]
    pub fn breaks(&self) -> u32 {
        self.breaks
    }

    pub(super) async fn open(mut self) -> Result<Self, BotError> {
        let begin = Instant::now();
        self.reopen(begin).await?;
        Ok(self)
    }

    async fn reopen(&mut self, begin: Instant) -> Result<&mut Socket, BotError> {
        loop {
            match self.bot.socket(Some(self.seen)).await {
                Ok(socket) => return Ok(self.socket.insert(socket)),
                Err(error) if begin.elapsed() >= self.bot.max_wait => return Err(self.error(error.what)),
                // The gateway may be on its way back.
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// The next event.
    ///
    /// # Errors
    /// [`BotError`] when none comes in time, or one that is not the next.
    pub async fn next(&mut self) -> Result<Frame, BotError> {
        let begin = Instant::now();
        let frame = loop {
            let socket = match &mut self.socket {
                Some(socket) => socket,
                None => self.reopen(begin).await?,
            };
            match socket.next().await {
                Ok(frame) => break frame,
                Err(error) if begin.elapsed() >= self.bot.max_wait => return Err(self.error(error.what)),
                Err(_) => {
                    self.breaks += 1;
                    if let Some(broken) = self.socket.take() {
                        self.bot.gateways.leave(&broken.gateway);
                    }
                }
            }
        };
        let follows = self.frames.last().is_none_or(|last| frame.n == last.n + 1);
        if frame.seq <= self.seen || !follows {
            let last = self.frames.last().map(|last| (last.seq, last.n));
            return Err(self.error(format!("after {last:?} (seq, n) came ({}, {}), not the next", frame.seq, frame.n)));
        }
        self.seen = frame.seq;
        self.frames.push(frame.clone());
        Ok(frame)
    }

    /// Reads events up to one of a type.
    ///
    /// # Errors
    /// [`BotError`] when it does not come in time, or the ticket ends otherwise: then it will never come.
    pub async fn until(&mut self, type_name: &str) -> Result<Frame, BotError> {
        loop {
            let frame = self
                .next()
                .await
                .map_err(|error| BotError { what: format!("waiting for {type_name}: {}", error.what), ..error })?;
            if frame.type_name == type_name {
                return Ok(frame);
            }
            if ENDS.contains(&&*frame.type_name) {
                return Err(self.error(format!("waiting for {type_name}, his ticket ended: {}", frame.data)));
            }
        }
    }

    /// Breaks off, without a word; it is opened again for the next event.
    pub fn hang_up(&mut self) {
        self.socket = None;
    }

    /// Closes it; what he was told comes back.
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
