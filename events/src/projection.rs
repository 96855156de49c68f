//! The projections in Redis: their keys, and what they hold.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    id::{PlayerId, QueueName, Region, SessionId},
    session::Status,
};

/// Hash of the log's identity and the last sequence applied.
pub const WATERMARK: &str = "garage:watermark";
/// Hash of the live sessions: id → [`LiveSession`].
pub const SESSIONS: &str = "garage:sessions";
/// Hash of the players who wait or play: id → [`LivePlayer`].
pub const PLAYERS: &str = "garage:players";
/// Hash of the queues: name → players waiting.
pub const QUEUES: &str = "garage:queues";

/// The keys of one set of projections: its watermark, sessions, players and queues.
pub type Keys = [&'static str; 4];

/// Those that are read.
pub const LIVE: Keys = [WATERMARK, SESSIONS, PLAYERS, QUEUES];

/// Those that are made anew beside them; what is found there was left by somebody who did not come to the end.
pub const ANEW: Keys = ["garage:anew:watermark", "garage:anew:sessions", "garage:anew:players", "garage:anew:queues"];

/// Where a game's sealed private key is parked.
pub fn parked_key(fingerprint: &str) -> String {
    format!("garage:key:{fingerprint}")
}

/// What the projections know.
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

/// A player who waits or plays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "kebab-case")]
pub enum LivePlayer {
    /// He waits.
    Waiting {
        /// Where.
        queue: QueueName,
    },
    /// He is in a match.
    InSession {
        /// Which.
        session: SessionId,
    },
}
