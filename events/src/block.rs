//! Which players an operator has blocked or kicked: the keys and values of a key-value bucket that the gateways watch.
//!
//! They are not in the log, because the log drops events after hours, and a player must stay blocked until the block
//! ends. An entry without a value is one that an operator has removed.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{id::PlayerId, queue_status::read_optional_reason};

/// The name of the bucket.
pub const BUCKET: &str = "BLOCKS";
/// The stream that stores the bucket.
pub const STREAM: &str = "KV_BLOCKS";
/// Selects every entry.
pub const ALL: &str = "$KV.BLOCKS.>";
/// Selects all blocks.
pub const BLOCKS: &str = "$KV.BLOCKS.block.*";

/// How long the bucket keeps a kick. A gateway that cannot reach NATS for longer does not close the player's socket.
pub const KICK_TTL: Duration = Duration::from_secs(3_600);

/// How long the bucket keeps the mark of a removed block. A gateway that cannot reach NATS for longer keeps the block
/// until it restarts.
pub const REMOVAL_TTL: Duration = Duration::from_secs(7 * 24 * 3_600);

/// The key of an entry. `Display` writes the entry's subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The value is a [`Block`].
    Block(PlayerId),
    /// The value is a [`Kick`]. The entry's timestamp is the time of the kick.
    Kick(PlayerId),
}

impl Key {
    /// Parses the subject of an entry; `None` for any other subject.
    pub fn of(subject: &str) -> Option<Self> {
        let (kind, player) = subject.strip_prefix("$KV.BLOCKS.")?.split_once('.')?;
        match kind {
            "block" => player.parse().ok().map(Self::Block),
            "kick" => player.parse().ok().map(Self::Kick),
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(player) => write!(f, "$KV.BLOCKS.block.{player}"),
            Self::Kick(player) => write!(f, "$KV.BLOCKS.kick.{player}"),
        }
    }
}

/// A player who cannot use Garage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// When the block ends; absent if only an operator ends it.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub until: Option<OffsetDateTime>,
    /// The operator's text for the player, at most [`MAX_REASON`](crate::queue_status::MAX_REASON) characters: of a
    /// longer one, the beginning is read. Absent if there is none.
    #[serde(default, deserialize_with = "read_optional_reason", skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Block {
    /// Whether the block has not ended yet.
    pub fn is_in_force(&self, now: OffsetDateTime) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// A player whose sockets are closed and whose waiting ticket is cancelled. They can come back at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kick {
    /// See [`Block::reason`].
    #[serde(default, deserialize_with = "read_optional_reason", skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::queue_status::MAX_REASON;

    #[test]
    fn a_key_survives_a_round_trip_through_its_subject() {
        for key in [Key::Block("ann=40x".parse().unwrap()), Key::Kick("bob".parse().unwrap())] {
            assert_eq!(Key::of(&key.to_string()), Some(key));
        }
        for other in ["$KV.BLOCKS.ann", "$KV.BLOCKS.ban.ann", "$KV.BLOCKS.block.a.b", "$KV.QUEUES.block.ann"] {
            assert_eq!(Key::of(other), None);
        }
    }

    #[test]
    fn a_block_has_the_form_that_gateways_of_other_versions_read() {
        let until = Some(datetime!(2026-11-22 10:00 UTC));
        for (block, text) in [
            (
                Block { until, reason: Some("cheating".into()) },
                r#"{"until":"2026-11-22T10:00:00Z","reason":"cheating"}"#,
            ),
            (Block { until: None, reason: None }, "{}"),
        ] {
            assert_eq!(serde_json::to_string(&block).unwrap(), text);
            assert_eq!(serde_json::from_str::<Block>(text).unwrap(), block);
        }
        assert_eq!(serde_json::from_str::<Kick>(r#"{"later":1}"#).unwrap(), Kick { reason: None });
    }

    #[test]
    fn a_block_ends_at_its_time_or_never() {
        let until = datetime!(2026-11-22 10:00 UTC);
        let second = time::Duration::SECOND;
        let block = Block { until: Some(until), reason: None };
        assert!(block.is_in_force(until - second) && !block.is_in_force(until));
        assert!(Block { until: None, ..block }.is_in_force(until + second));
    }

    #[test]
    fn any_bytes_are_an_entry_that_survives_a_round_trip_or_an_error() {
        let block = r#"{"until":"2026-11-22T10:00:00Z","reason":"cheating"}"#;
        garage_fuzz::feed(&[block, r#"{"reason":"afk"}"#, "{}"], |bytes| {
            let short = |reason: &Option<String>| {
                assert!(reason.iter().all(|reason| reason.chars().count() <= MAX_REASON), "{reason:?}");
            };
            let (block, kick) = (serde_json::from_slice::<Block>(bytes), serde_json::from_slice::<Kick>(bytes));
            if let Ok(block) = &block {
                short(&block.reason);
                // Any time can be compared. One outside of the years 0 to 9999 in UTC cannot be written again.
                block.is_in_force(datetime!(2026-11-22 10:00 UTC));
                if let Ok(text) = serde_json::to_string(block) {
                    assert_eq!(serde_json::from_str::<Block>(&text).unwrap(), *block);
                }
            }
            if let Ok(kick) = &kick {
                short(&kick.reason);
                assert_eq!(serde_json::from_str::<Kick>(&serde_json::to_string(kick).unwrap()).unwrap(), *kick);
            }
            block.is_ok() || kick.is_ok()
        });
    }

    #[test]
    fn any_bytes_are_the_subject_of_the_key_or_of_none() {
        garage_fuzz::feed(&["$KV.BLOCKS.block.ann", "$KV.BLOCKS.kick.bob=40x"], |bytes| {
            let subject = String::from_utf8_lossy(bytes);
            let key = Key::of(&subject);
            assert!(key.iter().all(|key| key.to_string() == subject), "{key:?}");
            key.is_some()
        });
    }

    #[test]
    fn of_a_reason_that_is_too_long_the_beginning_is_read() {
        let entry = format!(r#"{{"reason":"{}"}}"#, "é".repeat(MAX_REASON + 1));
        let reason = Some("é".repeat(MAX_REASON));
        assert_eq!(serde_json::from_str::<Block>(&entry).unwrap(), Block { until: None, reason: reason.clone() });
        assert_eq!(serde_json::from_str::<Kick>(&entry).unwrap(), Kick { reason });
        assert_eq!(serde_json::from_str::<Kick>(r#"{"reason":null}"#).unwrap(), Kick { reason: None });
    }
}
