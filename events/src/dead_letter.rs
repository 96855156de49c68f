//! A dead letter: a message that a worker gave up, as the stream `DEAD` keeps it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// All that is needed to handle the message another time, also when its own stream has forgotten it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Why it was given up.
    pub error: String,
    /// The consumer that it came from.
    pub consumer: String,
    /// Its stream.
    pub stream: String,
    /// Its sequence there.
    pub seq: u64,
    /// Its stream's timestamp.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Its subject.
    pub subject: String,
    /// Its body, as text.
    pub body: String,
    /// Its body's bytes, if it is no text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<Vec<u8>>,
}

impl DeadLetter {
    /// Puts a body in.
    #[must_use]
    pub fn with_body(mut self, body: &[u8]) -> Self {
        self.body = String::from_utf8_lossy(body).into_owned();
        self.raw = std::str::from_utf8(body).is_err().then(|| body.to_vec());
        self
    }

    /// The message's body, byte for byte.
    pub fn bytes(&self) -> Bytes {
        self.raw.clone().map_or_else(|| self.body.clone().into(), Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_back_as_it_was() {
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
