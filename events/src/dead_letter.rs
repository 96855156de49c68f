//! A dead letter: a message that a worker could not handle, in the format of the stream `DEAD`.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::subject::{REPORTS, Report};

/// The size up to which a dead letter contains the whole body of an event, in bytes. In JSON, a quote takes two bytes
/// and a byte that is not UTF-8 takes seven. So a dead letter stays below the server's limit for a message, 1 MiB. Only
/// a request for a game server with many players is larger (see [`MAX_EVENT`](crate::log::MAX_EVENT)).
const MAX_BODY: usize = 128 << 10;

/// How much of a longer body, or of a report's body, a dead letter contains, in bytes. The largest report has
/// [`MAX_REPORT`](crate::game::MAX_REPORT).
const BEGINNING: usize = 1 << 10;

/// The maximum length of the error, in characters. An error may quote the message.
const MAX_ERROR: usize = 1_000;

/// Everything that is needed to handle the message again, even after its own stream has dropped it. Of a long report or
/// event, it contains only the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Why the worker could not handle the message. At most 1,000 characters.
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
    /// The length of the whole body in bytes; absent if `body` and `raw` are not only its beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
}

impl DeadLetter {
    /// Sets the error, or its beginning if it is long.
    #[must_use]
    pub fn with_error(mut self, error: &str) -> Self {
        self.error = error.chars().take(MAX_ERROR).collect();
        self
    }

    /// Sets the message's body. Of a report, only the beginning is kept: a game server decides what is in its report,
    /// and it must not be able to fill the stream. The same applies to an event that is too large for a dead letter.
    #[must_use]
    pub fn with_body(mut self, body: &[u8]) -> Self {
        let max = if self.stream == REPORTS { BEGINNING } else { MAX_BODY };
        let kept = if body.len() > max { beginning(body) } else { body };
        self.body = String::from_utf8_lossy(kept).into_owned();
        self.raw = std::str::from_utf8(kept).is_err().then(|| kept.to_vec());
        self.length = (kept.len() < body.len()).then_some(body.len());
        self
    }

    /// The exact bytes of the message's body; `None` if the dead letter contains only its beginning.
    pub fn bytes(&self) -> Option<Bytes> {
        let bytes = || self.raw.clone().map_or_else(|| self.body.clone().into(), Into::into);
        self.length.is_none().then(bytes)
    }

    /// The id under which the stream stores the dead letter of a report: one per attempt of a session, whatever its game
    /// server sends. The stream ignores a further message with the same id. `None` for other messages.
    pub fn message_id(&self) -> Option<String> {
        let report = self.subject.parse::<Report>().ok().filter(|_| self.stream == REPORTS);
        report.map(|Report { session, attempt, .. }| format!("{}.{session}.{attempt}", self.consumer))
    }
}

/// The first [`BEGINNING`] bytes, or a little less if they would end within a character.
fn beginning(body: &[u8]) -> &[u8] {
    let end = std::str::from_utf8(body).map_or(BEGINNING, |text| text.floor_char_boundary(BEGINNING));
    body.get(..end).unwrap_or(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::MAX_EVENT;

    fn dead_letter(stream: &str, subject: &str) -> DeadLetter {
        DeadLetter {
            error: "why".into(),
            consumer: "session".into(),
            stream: stream.into(),
            seq: 7,
            time: OffsetDateTime::UNIX_EPOCH,
            subject: subject.into(),
            body: String::new(),
            raw: None,
            length: None,
        }
    }

    #[test]
    fn a_body_survives_a_round_trip_through_json() {
        let dead_letter = dead_letter("GARAGE", "garage.session.x.closed");
        for body in [&b"{}"[..], b"", b"\xff\x00"] {
            let json = serde_json::to_string(&dead_letter.clone().with_body(body)).unwrap();
            let read: DeadLetter = serde_json::from_str(&json).unwrap();
            assert_eq!(read.bytes().as_deref(), Some(body));
            assert_eq!(read.raw.is_some(), body.first() == Some(&0xff));
        }
    }

    #[test]
    fn only_the_beginning_of_a_long_report_is_kept() {
        let report = dead_letter(REPORTS, "report.x.1.ready");
        let long = "é".repeat(1_000);
        for (body, kept) in
            [(&[b'x'; 4_096][..], 1_024), (&[0xff; 4_096], 1_024), (format!("x{long}").as_bytes(), 1_023)]
        {
            let json = serde_json::to_string(&report.clone().with_body(body)).unwrap();
            let read: DeadLetter = serde_json::from_str(&json).unwrap();
            assert_eq!((read.bytes(), read.length), (None, Some(body.len())));
            assert_eq!(read.raw.map_or(read.body.len(), |raw| raw.len()), kept);
            assert!(json.len() < 10_000, "{} bytes", json.len());
        }
        let short = report.with_body(&[b'x'; 1_024]);
        assert_eq!((short.bytes().unwrap().len(), short.length), (1_024, None));
        let event = dead_letter("GARAGE", "garage.session.x.closed").with_body(&[b'x'; 4_096]);
        assert_eq!(event.bytes().unwrap().len(), 4_096);
    }

    #[test]
    fn a_dead_letter_of_the_largest_event_fits_a_message_of_nats() {
        let event = dead_letter("GARAGE", "garage.session.x.pod-requested").with_error(&"\0".repeat(MAX_ERROR));
        // JSON escapes each of these bytes.
        for byte in [b'"', b'\\', 0xff] {
            for (size, whole) in [(MAX_BODY, true), (MAX_BODY + 1, false), (MAX_EVENT, false)] {
                let dead_letter = event.clone().with_body(&vec![byte; size]);
                assert_eq!(dead_letter.bytes().is_some(), whole, "{size} times {byte}");
                let length = serde_json::to_vec(&dead_letter).unwrap().len();
                assert!(length < 1_000_000, "{size} times {byte}: {length} bytes");
            }
        }
    }

    #[test]
    fn the_reports_of_one_attempt_share_an_id() {
        let session = "0198c5a0-7b1e-7c3d-8000-0123456789ab";
        let id = |attempt, kind| dead_letter(REPORTS, &format!("report.{session}.{attempt}.{kind}")).message_id();
        assert_eq!(id(1, "ready"), Some(format!("session.{session}.1")));
        assert_eq!(id(1, "ready"), id(1, "finished"));
        assert_ne!(id(1, "ready"), id(2, "ready"));
        assert_eq!(dead_letter("GARAGE", &format!("garage.session.{session}.closed")).message_id(), None);
        assert_eq!(dead_letter(REPORTS, "report.x.1.ready").message_id(), None);
    }

    #[test]
    fn a_long_error_is_cut() {
        let dead_letter = dead_letter("GARAGE", "garage.session.x.closed").with_error(&"é".repeat(60_000));
        assert_eq!(dead_letter.error.chars().count(), MAX_ERROR);
    }
}
