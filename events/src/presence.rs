//! Which players have a socket: a KV bucket that the gateways share. Its keys and values.
//!
//! A player's entry is written by his newest socket, whichever gateway has it, and its revision tells older from newer:
//! a gateway that sees another's newer one closes its own, and one that loses a socket marks the entry only if it is
//! still its own. A gateway's entry is written again and again; one that stops being written is dead, and the others
//! look after what it left. It is a hint for them, and no truth: without it players are matched as ever.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::id::PlayerId;

/// The bucket.
pub const BUCKET: &str = "PRESENCE";
/// The stream that it is made of.
pub const STREAM: &str = "KV_PRESENCE";
/// Every entry.
pub const ALL: &str = "$KV.PRESENCE.>";
/// Every player's entry.
pub const PLAYERS: &str = "$KV.PRESENCE.player.*";

/// Whose entry it is. It is displayed as the entry's subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A player's: a [`Connection`].
    Player(PlayerId),
    /// A gateway's; its timestamp is all it says.
    Gateway(Uuid),
}

impl Key {
    /// The key that a subject of the bucket is of.
    pub fn of(subject: &str) -> Option<Self> {
        let (kind, id) = subject.strip_prefix("$KV.PRESENCE.")?.split_once('.')?;
        match kind {
            "player" => id.parse().ok().map(Self::Player),
            "gateway" => id.parse().ok().map(Self::Gateway),
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Player(id) => write!(f, "$KV.PRESENCE.player.{id}"),
            Self::Gateway(id) => write!(f, "$KV.PRESENCE.gateway.{id}"),
        }
    }
}

/// A player's newest socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The gateway that has it.
    pub gateway: Uuid,
    /// Which one.
    pub socket: Uuid,
    /// Whether it has ended.
    pub gone: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        for key in [Key::Player("ann=40x".parse().unwrap()), Key::Gateway(Uuid::from_u128(7))] {
            assert_eq!(Key::of(&key.to_string()), Some(key));
        }
        for other in ["garage.player.ann", "$KV.PRESENCE.ann", "$KV.PRESENCE.bot.ann", "$KV.PRESENCE.gateway.x"] {
            assert_eq!(Key::of(other), None);
        }
    }
}
