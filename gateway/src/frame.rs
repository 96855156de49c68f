//! What a socket carries: one event as one text frame, `{"seq", "n", "type", "data"}`.

use std::borrow::Cow;

use garage_events::log::Head;
use serde::{Deserialize, Serialize};
use serde_json::{json, value::RawValue};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::ticket::Me;

/// An event, ready to be written. Made once, however many sockets it goes to.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) seq: u64,
    pub(crate) text: Utf8Bytes,
}

/// The part of an envelope that clients see. The data stays as it is: a type that this build does not know is forwarded
/// like any other, and skipping it is the client's choice.
#[derive(Deserialize)]
struct Envelope<'a> {
    n: u64,
    #[serde(rename = "type", borrow)]
    type_name: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Serialize)]
struct Shown<'a> {
    seq: u64,
    n: u64,
    #[serde(rename = "type")]
    type_name: &'a str,
    data: &'a RawValue,
}

impl Frame {
    /// The frame of a message of the log.
    pub(crate) fn of(seq: u64, body: &[u8]) -> serde_json::Result<Self> {
        let Envelope { n, type_name, data } = serde_json::from_slice(body)?;
        let text = serde_json::to_string(&Shown { seq, n, type_name: &type_name, data })?;
        Ok(Self { seq, text: text.into() })
    }

    /// The frame that stands for everything up to a player's last event, when some of it has been forgotten.
    pub(crate) fn resync(me: &Me, head: Head) -> Self {
        let text = json!({ "seq": head.seq, "n": head.n, "type": "resync", "data": me }).to_string();
        Self { seq: head.seq, text: text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_shown_as_it_is_known_or_not() {
        let body = br#"{"id":"x","n":3,"type":"Promoted","v":9,"at":"","data":{"a": [1.50, null]},"new":1}"#;
        let frame = Frame::of(17, body).unwrap();
        assert_eq!(frame.text.as_str(), r#"{"seq":17,"n":3,"type":"Promoted","data":{"a": [1.50, null]}}"#);
        assert!(Frame::of(1, b"{}").is_err());
    }
}
