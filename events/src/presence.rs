//! Which players have an open WebSocket: the keys and values of a key-value bucket that all gateways share.
//!
//! A player's newest socket writes the player's entry, and the revision shows which socket is newer. If a gateway sees
//! the entry of a player's newer socket, it closes its own socket of this player. When a socket closes, its gateway
//! marks the entry, but only if the entry still belongs to this socket. If the player does not reconnect within the grace
//! period, the gateway marks the entry again: the player has left.
//!
//! Each gateway also has an entry of its own, which it writes regularly. If it stops writing, the other gateways
//! consider it dead. They mark the entries of its sockets, and cancel the tickets of queued players who do not
//! reconnect in time.
//!
//! Presence is a hint and not a source of truth: matchmaking works without it.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::id::PlayerId;

/// The name of the bucket.
pub const BUCKET: &str = "PRESENCE";
/// The stream that stores the bucket.
pub const STREAM: &str = "KV_PRESENCE";
/// Selects every entry.
pub const ALL: &str = "$KV.PRESENCE.>";
/// Selects the entries of all players.
pub const PLAYERS: &str = "$KV.PRESENCE.player.*";

/// The key of an entry. `Display` writes the entry's subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The value is a [`Connection`].
    Player(PlayerId),
    /// The value is empty. Only the entry's timestamp matters.
    Gateway(Uuid),
}

impl Key {
    /// Parses the subject of an entry; `None` for any other subject.
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
    /// The gateway instance that has the socket.
    pub gateway: Uuid,
    pub socket: Uuid,
    /// Whether the socket has closed.
    pub gone: bool,
    /// When the socket closed, by the stream's clock, once the player has not reconnected within the grace period. From
    /// then on the player has left.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub left: Option<OffsetDateTime>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_a_round_trip_through_its_subject() {
        for key in [Key::Player("ann=40x".parse().unwrap()), Key::Gateway(Uuid::from_u128(7))] {
            assert_eq!(Key::of(&key.to_string()), Some(key));
        }
        for other in ["garage.player.ann", "$KV.PRESENCE.ann", "$KV.PRESENCE.bot.ann", "$KV.PRESENCE.gateway.x"] {
            assert_eq!(Key::of(other), None);
        }
    }
}
