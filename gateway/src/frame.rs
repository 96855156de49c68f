//! The frames of a socket: each event is one text frame, `{"seq", "n", "type", "data"}`. The frames about tokens,
//! parties, proposed matches, blocks and kicks are not events, and have only `type` and `data`.

use std::borrow::Cow;

use garage_events::{
    block::{Block, Kick},
    id::SessionId,
    log::Head,
    session::Accepted,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::ticket::Me;

/// What is written to a socket.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// The sequence of the event; `None` if it is not an event.
    pub(crate) seq: Option<u64>,
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
        Ok(Self { seq: Some(seq), text: text.into() })
    }

    /// The frame that replaces all events up to the player's last one, if the log no longer has all of them.
    pub(crate) fn resync(me: &Me, head: Head) -> Self {
        let text = json!({ "seq": head.seq, "n": head.n, "type": "resync", "data": me }).to_string();
        Self { seq: Some(head.seq), text: text.into() }
    }

    /// A frame that is not an event.
    pub(crate) fn notice(type_name: &str, data: &impl Serialize) -> Self {
        Self { seq: None, text: json!({ "type": type_name, "data": data }).to_string().into() }
    }

    /// How many players of a proposed match have accepted it.
    pub(crate) fn progress(session: SessionId, accepted: &Accepted) -> Self {
        let data = json!({ "session": session, "accepted": accepted.accepted, "of": accepted.of });
        Self::notice("match-progress", &data)
    }
}

/// The token in a client's frame `{"type": "token", "data": {"token": …}}`. `None` for every other frame, which the
/// gateway ignores. If the frame has no token, the result is empty, which is not a valid token.
pub(crate) fn sent_token(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Sent<'a> {
        #[serde(rename = "type", borrow)]
        type_name: Cow<'a, str>,
        #[serde(default)]
        data: Value,
    }
    let sent = serde_json::from_str::<Sent<'_>>(text).ok().filter(|sent| sent.type_name == "token")?;
    Some(sent.data.get("token").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// The answer to a client's token: until when the socket stays open, or why the token changes nothing.
pub(crate) fn token_answer(answer: Result<OffsetDateTime, &'static str>) -> Utf8Bytes {
    let text = match answer {
        Ok(expires_at) => {
            let expires_at = expires_at.format(&Rfc3339).unwrap_or_default();
            json!({ "type": "token-accepted", "data": { "expires_at": expires_at } })
        }
        Err(reason) => json!({ "type": "token-refused", "data": { "reason": reason } }),
    };
    text.to_string().into()
}

/// The last frame on a socket that the gateway closes because of an operator's command. It is not an event, so it has
/// neither `seq` nor `n`: `{"type", "data"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub(crate) enum Notice {
    Blocked(Block),
    Kicked(Kick),
}

impl Notice {
    pub(crate) fn text(&self) -> serde_json::Result<Utf8Bytes> {
        Ok(serde_json::to_string(self)?.into())
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

    #[test]
    fn only_a_frame_of_the_type_token_has_a_token() {
        for (text, token) in [
            (r#"{"type":"token","data":{"token":"a.b.c"}}"#, Some("a.b.c")),
            (r#"{"data":{"token":"a\u002eb","new":1},"type":"token","new":1}"#, Some("a.b")),
            (r#"{"type":"token","data":{"token":7}}"#, Some("")),
            (r#"{"type":"token"}"#, Some("")),
            (r#"{"type":"Token","data":{"token":"a.b.c"}}"#, None),
            (r#"{"data":{"token":"a.b.c"}}"#, None),
            ("7", None),
            ("hello", None),
            ("", None),
        ] {
            assert_eq!(sent_token(text).as_deref(), token, "{text}");
        }
    }

    #[test]
    fn any_bytes_are_a_frame_with_a_token_or_mean_nothing() {
        let valid = [r#"{"type":"token","data":{"token":"a.b.c"}}"#, r#"{"data":{"token":"a\u002eb"},"type":"token"}"#];
        garage_fuzz::feed(&valid, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let token = sent_token(&text);
            if let Some(token) = &token {
                assert!(token.len() <= text.len());
                let again = json!({"type": "token", "data": {"token": token}}).to_string();
                assert_eq!(sent_token(&again).as_ref(), Some(token));
            }
            token.is_some()
        });
    }
}
