//! The protocol between client and server: JSON messages in WebSocket text frames, with their type in the field `type`,
//! and the datagrams in [`datagram`].

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use garage_events::{
    game::{Loadout, Placing, Secret},
    id::SessionId,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub mod datagram;

/// The largest message that the server accepts, in bytes. A join message with its token is smaller than 2 KiB.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// The server's close codes. Codes from 4000 on are in the range for applications (RFC 6455 section 7.4.2). They
/// correspond to the HTTP statuses with a similar meaning.
pub mod close {
    /// The race is over.
    pub const DONE: u16 = 1000;
    /// The client sent a frame that is not valid in the protocol.
    pub const MALFORMED: u16 = 4400;
    /// The client did not join with a valid token.
    pub const REFUSED: u16 = 4401;
    /// The same player has connected again.
    pub const REPLACED: u16 = 4409;
}

/// A message from a client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromClient {
    /// The first frame of every connection.
    Join {
        /// The connection token. A missing token is refused like one that is not valid.
        #[serde(default = "no_token")]
        token: Secret,
    },
    /// The player moves the accelerator pedal.
    Input {
        /// From 0 to 1. Other finite values are clamped.
        throttle: f32,
    },
}

fn no_token() -> Secret {
    Secret::new("")
}

/// A message from the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromServer {
    /// The client did not join with a valid token. Then the server closes with [`close::REFUSED`].
    Refused {
        /// For a person to read.
        reason: String,
    },
    /// The client has joined.
    Welcome(Welcome),
    /// The race starts. A client that joins during the race gets it right after the welcome.
    Start,
    /// The state of all cars. Sent by WebSocket only while the server has no UDP address of the client.
    Snapshot(Snapshot),
    /// The race is over. Then the server closes with [`close::DONE`].
    Result {
        /// Every player once, in order of place.
        results: Vec<Placing>,
    },
}

/// What a client needs to take part in the race.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Welcome {
    pub session: SessionId,
    /// Authenticates the datagrams of this connection, in both directions.
    pub udp_key: Key,
    /// Identifies the client in its datagrams.
    pub udp_id: u32,
    /// The loadouts of all players. Snapshots refer to a car by its index in this list.
    pub players: Vec<Loadout>,
    /// Steps of the race per second.
    pub tick_hz: u32,
    /// Length of the race, in metres.
    pub distance_m: f64,
}

/// The state of all cars at one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Number of steps since the start.
    pub tick: u32,
    pub cars: Vec<CarState>,
}

/// Position and speed of a car.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CarState {
    /// The car's index in [`Welcome::players`].
    pub index: u8,
    /// Distance from the start line, in metres.
    pub position: f32,
    /// In metres per second.
    pub speed: f32,
}

/// A key for datagrams. JSON contains it in base64; `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// Wraps 32 random bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| de::Error::custom("a key must be 32 bytes in base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::race::Throttle;

    #[test]
    fn messages_have_the_documented_json() {
        let join: FromClient = serde_json::from_str(r#"{"type":"join","token":"t"}"#).unwrap();
        assert!(matches!(join, FromClient::Join { token } if token.expose() == "t"));
        let snapshot =
            FromServer::Snapshot(Snapshot { tick: 3, cars: vec![CarState { index: 0, position: 1.5, speed: 2.0 }] });
        assert_eq!(
            serde_json::to_string(&snapshot).unwrap(),
            r#"{"type":"snapshot","tick":3,"cars":[{"index":0,"position":1.5,"speed":2.0}]}"#
        );
        assert_eq!(serde_json::to_string(&FromServer::Start).unwrap(), r#"{"type":"start"}"#);
    }

    #[test]
    fn invalid_messages_are_rejected() {
        for bad in [
            "",
            "1",
            "{}",
            r#"{"type":"fly"}"#,
            r#"{"type":"input"}"#,
            r#"{"type":"input","throttle":"1"}"#,
            r#"{"type":"input","throttle":NaN}"#,
        ] {
            assert!(serde_json::from_str::<FromClient>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_is_not_printed_by_debug_and_survives_json() {
        let key = Key::new([7; 32]);
        assert_eq!(format!("{key:?}"), "Key(…)");
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<Key>(&text).unwrap(), key);
    }

    #[test]
    fn any_bytes_are_a_message_that_survives_a_round_trip_or_an_error() {
        let valid = [r#"{"type":"join","token":"a.b.c"}"#, r#"{"type":"join"}"#, r#"{"type":"input","throttle":0.5}"#];
        garage_fuzz::feed(&valid, |bytes| {
            let Ok(message) = serde_json::from_slice::<FromClient>(bytes) else { return false };
            match &message {
                FromClient::Join { token } => assert!(token.expose().len() <= bytes.len()),
                // A number beyond the range of f32 becomes infinite, and is then refused.
                FromClient::Input { throttle } => {
                    assert!(!throttle.is_nan());
                    assert_eq!(Throttle::parse(*throttle).is_some(), throttle.is_finite());
                    if throttle.is_infinite() {
                        return true;
                    }
                }
            }
            let written = serde_json::to_string(&message).unwrap();
            let again = serde_json::to_string(&serde_json::from_str::<FromClient>(&written).unwrap()).unwrap();
            assert_eq!(again, written);
            true
        });
    }
}
