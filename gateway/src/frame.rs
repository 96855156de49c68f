//! The frames of a socket: each event is one text frame, `{"seq", "n", "type", "data"}`.

use std::borrow::Cow;

use garage_events::log::Head;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::ticket::Me;

/// An event in the form in which it is written to a socket.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) seq: u64,
    pub(crate) text: Utf8Bytes,
}

/// The part of an event's envelope that clients see. The data is forwarded unchanged, even if this build does not know
/// the event type. The client can skip types that it does not know.
#[derive(Deserialize)]
struct Envelope<'a> {
    n: u64,
    #[serde(rename = "type", borrow)]
    type_name: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Serialize)]
struct FrameBody<'a> {
    seq: u64,
    n: u64,
    #[serde(rename = "type")]
    type_name: &'a str,
    data: &'a RawValue,
}

impl Frame {
    /// Converts a message of the log.
    pub(crate) fn of(seq: u64, body: &[u8]) -> serde_json::Result<Self> {
        let Envelope { n, type_name, data } = serde_json::from_slice(body)?;
        let text = serde_json::to_string(&FrameBody { seq, n, type_name: &type_name, data })?;
        Ok(Self { seq, text: text.into() })
    }

    /// The frame that replaces all events up to the player's last one, if the log no longer has all of them.
    pub(crate) fn resync(me: &Me, head: Head) -> Self {
        let text = json!({ "seq": head.seq, "n": head.n, "type": "resync", "data": me }).to_string();
        Self { seq: head.seq, text: text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_an_unknown_type_is_forwarded_unchanged() {
        let body = br#"{"id":"x","n":3,"type":"Promoted","v":9,"at":"","data":{"a": [1.50, null]},"new":1}"#;
        let frame = Frame::of(17, body).unwrap();
        assert_eq!(frame.text.as_str(), r#"{"seq":17,"n":3,"type":"Promoted","data":{"a": [1.50, null]}}"#);
        assert!(Frame::of(1, b"{}").is_err());
    }
}
