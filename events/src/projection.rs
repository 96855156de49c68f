//! The projections in Redis: their keys, and what they hold.
//!
//! They hold only what the retained log determines, by the stream's timestamps: folded again they are the same. What is
//! of a time is kept for [`MINUTES`], which is far less than the log is.

mod dead_letters;
mod minute;
mod timeline;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

pub use self::{
    dead_letters::{DeadLetterSummary, DeadLetters},
    minute::{Flow, Histogram, Minute, Reached, minute_of},
    timeline::{Entry, Step, Timeline},
};
use crate::{
    id::{PlayerId, QueueName, Region, SessionId},
    session::Status,
};

/// The form of what stands here; a part of the log's identity in the watermark, so that projections of another build's
/// form are foreign, and made anew.
pub const FORM: u32 = 2;

/// Hash: `log`, the log's identity; `seq`, the last sequence applied, and `time`, the stream's timestamp of it, none
/// before there was one. About the projector, not the log: `behind`, messages that were still to come when it was last
/// here, and `seen`, when that was, in milliseconds of the Redis server's clock.
pub const WATERMARK: &str = "garage:watermark";
/// Hash of the live sessions: id → [`LiveSession`].
pub const SESSIONS: &str = "garage:sessions";
/// Hash of the players who wait or play: id → [`LivePlayer`].
pub const PLAYERS: &str = "garage:players";
/// Hash of the queues: name → players waiting.
pub const QUEUES: &str = "garage:queues";
/// Sorted set, by member alone, of [`waiter`]s: the first of a queue is who waits longest.
pub const WAITS: &str = "garage:waits";
/// Hash of the last [`MINUTES`]: number → [`Minute`].
pub const COUNTS: &str = "garage:minutes";
/// Hash of the live sessions and of those in [`CLOSED`]: id → [`Timeline`].
pub const TIMELINES: &str = "garage:timelines";
/// Sorted set of the sessions that were closed in the last [`MINUTES`], at most [`CLOSED_KEPT`]: id, by the stream's
/// timestamp in milliseconds.
pub const CLOSED: &str = "garage:closed";
/// The [`DeadLetters`]: no fold, and therefore no part of a set that is made anew.
pub const DEAD_LETTERS: &str = "garage:letters";

/// Minutes that are looked back on, the present one among them.
pub const MINUTES: i64 = 60;

/// Closed sessions whose timelines are kept.
pub const CLOSED_KEPT: usize = 500;

/// The keys of one set of projections.
pub type Keys = [&'static str; 8];

/// Those that are read.
pub const LIVE: Keys = [WATERMARK, SESSIONS, PLAYERS, QUEUES, WAITS, COUNTS, TIMELINES, CLOSED];

/// Those that are made anew beside them; what is found there was left by somebody who did not come to the end.
pub const ANEW: Keys = [
    "garage:anew:watermark",
    "garage:anew:sessions",
    "garage:anew:players",
    "garage:anew:queues",
    "garage:anew:waits",
    "garage:anew:minutes",
    "garage:anew:timelines",
    "garage:anew:closed",
];

/// Where the sealed secrets of a game are parked, by the fingerprint of its key.
pub fn parked_key(fingerprint: &str) -> String {
    format!("garage:key:{fingerprint}")
}

/// A player's place among those who wait, in [`WAITS`]: by queue, then by time.
pub fn waiter(queue: &QueueName, since: OffsetDateTime, player: &PlayerId) -> String {
    // So many digits that the order of the texts is that of the times.
    format!("{queue} {:015} {player}", millis(since))
}

/// What the waiters of a queue lie between in [`WAITS`], without these themselves: as `ZRANGEBYLEX` takes it.
pub fn waiters(queue: &QueueName) -> [String; 2] {
    // No name of a queue has a space in it, or an exclamation mark, which comes next.
    [format!("({queue} "), format!("({queue}!")]
}

/// Since when a [`waiter`] has waited.
pub fn waiting_since(waiter: &str) -> Option<OffsetDateTime> {
    let millis: i128 = waiter.split(' ').nth(1)?.parse().ok()?;
    OffsetDateTime::from_unix_timestamp_nanos(millis.checked_mul(1_000_000)?).ok()
}

/// Milliseconds since 1970, as scores and waiters have it.
pub fn millis(time: OffsetDateTime) -> i128 {
    time.unix_timestamp_nanos() / 1_000_000
}

/// What the projections know of the present.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// The last event applied.
    pub seq: u64,
    /// The living sessions.
    pub sessions: BTreeMap<SessionId, LiveSession>,
    /// The players who wait or play.
    pub players: BTreeMap<PlayerId, LivePlayer>,
    /// Players waiting, by queue.
    pub queues: BTreeMap<QueueName, u64>,
}

/// A living session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveSession {
    /// Where it stands.
    pub status: Status,
    /// Where its server stands; none before one was asked for, and after it failed or the game was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// Where its players had waited.
    pub queue: QueueName,
    /// Where its server runs.
    pub region: Region,
    /// Who plays.
    pub players: Vec<PlayerId>,
    /// Which attempt at a server it is at.
    pub attempt: u32,
    /// When it began, by the stream's timestamp.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// Where a game server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// It was asked for.
    Requested,
    /// It was started on a node.
    Scheduled,
    /// It reported that it listens.
    Ready,
    /// Its players were told of it.
    Running,
}

/// A player who waits or plays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum LivePlayer {
    /// He waits.
    Waiting {
        /// Where.
        queue: QueueName,
        /// Since when, across tickets that went back to the queue.
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
    },
    /// He is in a match.
    InSession {
        /// Which.
        session: SessionId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waiters_of_a_queue_stand_together_the_longest_waiting_first() {
        let at = |millis: i64| OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(millis);
        let place =
            |queue: &str, millis, player: &str| waiter(&queue.parse().unwrap(), at(millis), &player.parse().unwrap());
        let (first, second) = (place("ranked", 999, "z=40"), place("ranked", 1_000, "a"));
        let others = ["ranked-2", "ranke", "ranked2", "duo"].map(|queue| place(queue, 0, "a"));
        assert!(first < second);
        let [low, high] = waiters(&"ranked".parse().unwrap()).map(|bound| bound[1..].to_owned());
        for own in [&first, &second] {
            assert!(low < *own && *own < high, "{own}");
        }
        for other in &others {
            assert!(*other < low || *other > high, "{other}");
        }
        assert_eq!(waiting_since(&second), Some(at(1_000)));
        assert_eq!(waiting_since("rubbish"), None);
    }
}
