//! The projections in Redis: their keys and values.
//!
//! A projection depends only on the events in the log and their stream timestamps, so folding the log again gives the
//! same result. Data about the past is kept for [`MINUTES`], far less than the log keeps its events.

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

/// The version of the format that this module defines. It is a part of the log's identity in the watermark. If a build
/// finds projections with another version, it rebuilds them.
pub const FORMAT_VERSION: u32 = 2;

/// Hash with the progress of the projector:
///
/// - `log`: the identity of the log;
/// - `seq`: the sequence of the last event applied, and `time`: its stream timestamp, absent before the first event;
/// - `behind`: the number of messages that the projector had not read yet when it last wrote the hash;
/// - `seen`: when it last wrote the hash, in milliseconds of the Redis server's clock.
pub const WATERMARK: &str = "garage:watermark";
/// Hash of the sessions that are not closed: id → [`LiveSession`].
pub const SESSIONS: &str = "garage:sessions";
/// Hash of the players who wait or are in a session: id → [`LivePlayer`].
pub const PLAYERS: &str = "garage:players";
/// Hash of the queues: name → number of waiting players.
pub const QUEUES: &str = "garage:queues";
/// Sorted set of [`waiter`]s. All scores are equal, so Redis sorts by member: the first member of a queue is the player
/// who has waited longest.
pub const WAITS: &str = "garage:waits";
/// Hash of the last [`MINUTES`]: number of the minute → [`Minute`].
pub const COUNTS: &str = "garage:minutes";
/// Hash of the sessions that are not closed and of the sessions in [`CLOSED`]: id → [`Timeline`].
pub const TIMELINES: &str = "garage:timelines";
/// Sorted set of the sessions that were closed in the last [`MINUTES`], at most [`CLOSED_KEPT`]. The member is the id,
/// the score is the stream's timestamp in milliseconds.
pub const CLOSED: &str = "garage:closed";
/// The [`DeadLetters`]. They are not a fold of the log, so a rebuild does not write them.
pub const DEAD_LETTERS: &str = "garage:letters";

/// How many minutes of statistics are kept, including the current one.
pub const MINUTES: i64 = 60;

/// The maximum number of closed sessions whose timelines are kept.
pub const CLOSED_KEPT: usize = 500;

/// The keys of one set of projections.
pub type Keys = [&'static str; 8];

/// The keys that the gateway and the operators' tools read.
pub const LIVE: Keys = [WATERMARK, SESSIONS, PLAYERS, QUEUES, WAITS, COUNTS, TIMELINES, CLOSED];

/// The keys that a rebuild writes, before it moves their values to [`LIVE`]. If they exist at the start of a rebuild,
/// an earlier one did not finish.
pub const REBUILD: Keys = [
    "garage:anew:watermark",
    "garage:anew:sessions",
    "garage:anew:players",
    "garage:anew:queues",
    "garage:anew:waits",
    "garage:anew:minutes",
    "garage:anew:timelines",
    "garage:anew:closed",
];

/// The key under which the session worker stores the encrypted secrets of a game server, for the director.
/// `fingerprint` is the fingerprint of the server's public key.
pub fn parked_key(fingerprint: &str) -> String {
    format!("garage:key:{fingerprint}")
}

/// The member of [`WAITS`] for a waiting player. Members sort by queue, then by time.
pub fn waiter(queue: &QueueName, since: OffsetDateTime, player: &PlayerId) -> String {
    // Zero-padded, so that the order of the texts is the order of the times.
    format!("{queue} {:015} {player}", millis(since))
}

/// The exclusive bounds of a queue's members in [`WAITS`], in the syntax of `ZRANGEBYLEX`.
pub fn waiters(queue: &QueueName) -> [String; 2] {
    // A queue's name contains neither a space nor `!`, the character that follows the space in ASCII.
    [format!("({queue} "), format!("({queue}!")]
}

/// The time at which a [`waiter`] began to wait; `None` if the member is malformed.
pub fn waiting_since(waiter: &str) -> Option<OffsetDateTime> {
    let millis: i128 = waiter.split(' ').nth(1)?.parse().ok()?;
    OffsetDateTime::from_unix_timestamp_nanos(millis.checked_mul(1_000_000)?).ok()
}

/// Milliseconds since 1970, as used in scores and in [`waiter`]s.
pub fn millis(time: OffsetDateTime) -> i128 {
    time.unix_timestamp_nanos() / 1_000_000
}

/// The current state of Garage according to the projections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Live {
    /// The sequence of the last event applied.
    pub seq: u64,
    /// The sessions that are not closed.
    pub sessions: BTreeMap<SessionId, LiveSession>,
    /// The players who wait or are in a session.
    pub players: BTreeMap<PlayerId, LivePlayer>,
    /// The number of waiting players in each queue.
    pub queues: BTreeMap<QueueName, u64>,
}

/// A session that is not closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LiveSession {
    pub status: Status,
    /// The status of the game server; absent before one is requested, after it has failed, and after the match is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// The queue in which the players waited.
    pub queue: QueueName,
    /// The region of the game server.
    pub region: Region,
    pub players: Vec<PlayerId>,
    /// The number of the last attempt; 0 before the first.
    pub attempt: u32,
    /// When the session began, by the stream's timestamp.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
}

/// The status of a game server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// The session worker has requested it.
    Requested,
    /// The director has placed it on a node.
    Scheduled,
    /// It has reported that it listens.
    Ready,
    /// The players have received its address.
    Running,
}

/// A player who waits or is in a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum LivePlayer {
    Waiting {
        queue: QueueName,
        /// See [`crate::player::Queued::waiting_since`].
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
    },
    InSession {
        session: SessionId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waiters_of_a_queue_are_adjacent_and_sorted_by_time() {
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
