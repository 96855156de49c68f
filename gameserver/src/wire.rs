//! What client and server say to each other. Text frames of the WebSocket are JSON, tagged by `type`; datagrams are
//! in [`datagram`].

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use garage_events::{
    game::{Loadout, Placing, Secret},
    id::SessionId,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub mod datagram;

/// The largest message that a server reads. A join with its token is below 2 KiB.
pub const MAX_MESSAGE: usize = 16 * 1024;

/// Close codes of the server, from the range that RFC 6455 section 7.4.2 leaves to applications; named after the HTTP
/// statuses that they resemble.
pub mod close {
    /// The race is over, all is well.
    pub const DONE: u16 = 1000;
    /// A frame that is none of the protocol.
    pub const MALFORMED: u16 = 4400;
    /// No token, or one that does not admit here.
    pub const REFUSED: u16 = 4401;
    /// The same player has connected again.
    pub const REPLACED: u16 = 4409;
}

/// From a client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromClient {
    /// Always the first frame.
    Join {
        /// The connection token; one that is missing counts as one that does not admit.
        #[serde(default = "no_token")]
        token: Secret,
    },
    /// How far the pedal is down, from 0 to 1.
    Input {
        /// A number; out of range it is clamped.
        throttle: f32,
    },
}

fn no_token() -> Secret {
    Secret::new("")
}

/// From the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromServer {
    /// The client is not let in; the connection closes with [`close::REFUSED`].
    Refused {
        /// Why, for a human.
        reason: String,
    },
    /// The client is let in.
    Welcome(Welcome),
    /// The light is green.
    Start,
    /// Where the cars are; only while the server has no address to send datagrams to.
    Snapshot(Snapshot),
    /// The race is over; the connection closes with [`close::DONE`].
    Result {
        /// Every player once, in order of place.
        results: Vec<Placing>,
    },
}

/// What a client needs to take part.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Welcome {
    /// The session.
    pub session: SessionId,
    /// The key of this connection's datagrams.
    pub udp_key: Key,
    /// Whose datagrams they are.
    pub udp_id: u32,
    /// Everybody's car; a snapshot calls a car by its index here.
    pub players: Vec<Loadout>,
    /// Steps of the race per second.
    pub tick_hz: u32,
    /// Length of the road, in metres.
    pub distance_m: f64,
}

/// Where the cars are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Steps since the start.
    pub tick: u32,
    /// Every car.
    pub cars: Vec<CarState>,
}

/// Where a car is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CarState {
    /// Its index in [`Welcome::players`].
    pub index: u8,
    /// Metres from the start line.
    pub position: f32,
    /// Metres per second.
    pub speed: f32,
}

/// A key of datagrams: base64 in JSON, and not shown by `Debug`.
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
        bytes.map(Self).ok_or_else(|| de::Error::custom("a key is 32 bytes in base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_look_as_documented() {
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
    fn what_is_no_frame_is_refused() {
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
    fn secrets_do_not_show() {
        let key = Key::new([7; 32]);
        assert_eq!(format!("{key:?}"), "Key(…)");
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<Key>(&text).unwrap(), key);
    }
}
