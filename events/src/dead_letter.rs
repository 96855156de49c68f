//! A dead letter: a message that a worker could not handle, in the format of the stream `DEAD`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// Everything that is needed to handle the message again, even after its own stream has dropped it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Why the worker could not handle the message.
    pub error: String,
    /// The consumer that delivered the message.
    pub consumer: String,
    /// The message's stream.
    pub stream: String,
    /// The message's sequence in that stream.
    pub seq: u64,
    /// The message's timestamp in that stream.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// The message's subject.
    pub subject: String,
    /// The message's body as text. If it is not valid UTF-8, invalid bytes are replaced here.
    pub body: String,
    /// The message's body as bytes; absent if `body` is exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Vec<u8>>,
}

impl DeadLetter {
    /// Sets the message's body.
    #[must_use]
    pub fn with_body(mut self, body: &[u8]) -> Self {
        self.body = String::from_utf8_lossy(body).into_owned();
        self.raw = std::str::from_utf8(body).is_err().then(|| body.to_vec());
        self
    }

    /// The exact bytes of the message's body.
    pub fn bytes(&self) -> Bytes {
        self.raw.clone().map_or_else(|| self.body.clone().into(), Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_survives_a_round_trip_through_json() {
        let dead_letter = DeadLetter {
            error: "why".into(),
            consumer: "session".into(),
            stream: "GARAGE".into(),
            seq: 7,
            time: OffsetDateTime::UNIX_EPOCH,
            subject: "garage.session.x.closed".into(),
            body: String::new(),
            raw: None,
        };
        for body in [&b"{}"[..], b"", b"\xff\x00"] {
            let json = serde_json::to_string(&dead_letter.clone().with_body(body)).unwrap();
            let read: DeadLetter = serde_json::from_str(&json).unwrap();
            assert_eq!(&*read.bytes(), body);
            assert_eq!(read.raw.is_some(), body.first() == Some(&0xff));
        }
    }
}
