//! `garage block`, `garage unblock`, `garage kick` and `garage blocks`: block players, and close their sockets.
//!
//! The commands only read and write entries of the bucket BLOCKS. The gateways follow it and do the rest.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::{self, Context, message::PublishMessage, stream::LastRawMessageErrorKind};
use garage_events::{
    block::{self, Block as Entry, Key, Kick as KickEntry},
    env::{Env, System},
};
use garage_worker::config::Nats;
use serde::Serialize;
use time::OffsetDateTime;

use crate::{
    entry::when,
    queue::{bucket, entries, reason},
    report::{note, print, say},
    select::player_id,
    tail::duration,
};

/// Blocks a player: the gateways refuse the player's requests, close their socket, and cancel their waiting ticket.
#[derive(Debug, clap::Args)]
pub(crate) struct Block {
    /// The name of the player: the `sub` of their token, or an id that begins with ==.
    player: String,
    /// How long the block lasts (90s, 15m, 2h, 1d). Without it, the block lasts until you unblock the player.
    #[arg(long = "for", value_name = "DURATION", value_parser = lasting)]
    lasts: Option<Duration>,
    /// The reason, one line of at most 200 characters. The player receives it.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    #[command(flatten)]
    nats: Nats,
}

/// Ends the block of a player.
#[derive(Debug, clap::Args)]
pub(crate) struct Unblock {
    /// The name of the player: the `sub` of their token, or an id that begins with ==.
    player: String,
    #[command(flatten)]
    nats: Nats,
}

/// Closes a player's socket and cancels their waiting ticket. The player can come back at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Kick {
    /// The name of the player: the `sub` of their token, or an id that begins with ==.
    player: String,
    /// The reason, one line of at most 200 characters. The player receives it.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    #[command(flatten)]
    nats: Nats,
}

/// Lists the blocked players.
#[derive(Debug, clap::Args)]
pub(crate) struct Blocks {
    /// Prints JSON lines: player, since, until, reason.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    nats: Nats,
}

/// One line of the list. The field names appear in JSON lines and must not change.
#[derive(Debug, Serialize)]
struct BlockLine {
    /// The `sub` of the player's token, or the id if it begins with ==.
    player: String,
    /// When the player was blocked, by the stream's clock.
    #[serde(with = "time::serde::rfc3339")]
    since: OffsetDateTime,
    #[serde(flatten)]
    block: Entry,
}

impl Block {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let player = player_id(&self.player)?;
        let now = System.now();
        let ends = |lasts: Duration| now.checked_add(lasts.try_into().ok()?);
        let until = match self.lasts {
            Some(lasts) => Some(ends(lasts).context("the block would end after the year 9999")?),
            None => None,
        };
        let context = open(&self.nats).await?;
        let entry = Entry { until, reason: self.reason };
        put(&context, &Key::Block(player), serde_json::to_vec(&entry)?, self.lasts).await?;
        let until = until.map(|until| format!(" until {}", when(until))).unwrap_or_default();
        say(format!("player {} is blocked{until}; if they are in a match, it continues", self.player));
        Ok(())
    }
}

impl Unblock {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let key = Key::Block(player_id(&self.player)?);
        let context = open(&self.nats).await?;
        let stream = bucket(&context, block::STREAM).await?;
        let is_blocked = match stream.get_last_raw_message_by_subject(&key.to_string()).await {
            Ok(entry) => !entry.payload.is_empty(),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => false,
            Err(error) => return Err(error.into()),
        };
        // In any case, because a gateway may have missed that the entry is gone.
        put(&context, &key, Vec::new(), Some(block::REMOVAL_TTL)).await?;
        let now = if is_blocked { "not blocked any more" } else { "not blocked" };
        say(format!("player {} is {now}", self.player));
        Ok(())
    }
}

impl Kick {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let player = player_id(&self.player)?;
        let context = open(&self.nats).await?;
        let entry = serde_json::to_vec(&KickEntry { reason: self.reason })?;
        put(&context, &Key::Kick(player), entry, Some(block::KICK_TTL)).await?;
        say(format!("player {} is kicked; they can come back at once", self.player));
        Ok(())
    }
}

impl Blocks {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let context = open(&self.nats).await?;
        let now = System.now();
        let mut lines = Vec::new();
        for entry in entries(&bucket(&context, block::STREAM).await?, block::BLOCKS).await? {
            let (Some(Key::Block(player)), false) = (Key::of(&entry.subject), entry.payload.is_empty()) else {
                continue;
            };
            // The id of a player with a long `sub` is a hash.
            let player = player.to_foreign().unwrap_or_else(|| player.to_string());
            let block: Entry = match serde_json::from_slice(&entry.payload) {
                Ok(block) => block,
                Err(error) => {
                    note(format!("cannot read the block of player {player}: {error}"));
                    continue;
                }
            };
            if block.is_in_force(now) {
                lines.push(BlockLine { player, since: entry.time, block });
            }
        }
        lines.sort_by(|one, other| one.player.cmp(&other.player));
        if lines.is_empty() && !self.json {
            say("no player is blocked");
        }
        for line in lines {
            let line = if self.json { serde_json::to_string(&line)? } else { line.text() };
            if print(line)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl BlockLine {
    fn text(&self) -> String {
        let until = self.block.until.map_or_else(|| "-".into(), when);
        let reason = self.block.reason.as_deref().unwrap_or_default();
        // A player's name can be any text, and another tool may have written the reason.
        let plain = |text: &str| text.replace(char::is_control, " ");
        let line = format!("{:<32}  {}  {until:<24}  {}", plain(&self.player), when(self.since), plain(reason));
        line.trim_end().into()
    }
}

async fn open(nats: &Nats) -> anyhow::Result<Context> {
    Ok(jetstream::new(nats.connect("cli").await?))
}

/// Writes an entry, which the bucket keeps for `ttl`, or without a limit. An empty value marks the entry as removed.
async fn put(context: &Context, key: &Key, value: Vec<u8>, ttl: Option<Duration>) -> anyhow::Result<()> {
    let mut message = PublishMessage::build();
    if value.is_empty() {
        // The mark of a removed entry that other clients of key-value buckets know.
        message = message.header("KV-Operation", "DEL");
    }
    if let Some(ttl) = ttl {
        message = message.ttl(ttl);
    }
    let message = message.payload(value.into());
    let stored = async { context.send_publish(key.to_string(), message).await?.await };
    stored.await.with_context(|| {
        format!(
            "cannot write to the bucket {}; run `garage init` if it is missing, and unblock players if it is full",
            block::BUCKET
        )
    })?;
    Ok(())
}

/// The longest duration of a block: 100 years. NATS counts nanoseconds in 64 bits, and drops an entry at once that would
/// expire after the year 2262.
const MAX_LASTING: Duration = Duration::from_secs(36_500 * 24 * 3_600);

/// Parses the duration of a block: whole seconds, at least one.
fn lasting(text: &str) -> Result<Duration, &'static str> {
    let parsed = duration(text).filter(|duration| !duration.is_zero());
    let parsed = parsed.ok_or("not a duration, such as 90s, 15m, 2h or 1d")?;
    if parsed > MAX_LASTING {
        Err("longer than 36500d; leave out --for to block until you unblock")
    } else {
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_lasts_at_least_a_second() {
        assert_eq!(lasting("1s"), Ok(Duration::from_secs(1)));
        assert!(lasting("36500d").is_ok() && lasting("36501d").is_err());
        assert_eq!(lasting("2h"), Ok(Duration::from_secs(7_200)));
        for bad in ["", "0s", "0d", "1", "-1s", "1w", "forever"] {
            assert!(lasting(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_line_shows_no_control_characters() {
        let at = time::macros::datetime!(2026-11-22 10:00 UTC);
        let block = Entry { until: None, reason: Some("a\u{1b}[2Jb".into()) };
        let line = BlockLine { player: "x\ny".into(), since: at, block }.text();
        assert!(!line.contains(char::is_control) && line.contains("a [2Jb"), "{line}");
    }
}
