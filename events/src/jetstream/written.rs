//! What a message of the log says of how it was written: the headers of its commit, which the server keeps.

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE};

use crate::event::TYPE_HEADER;

/// The header with the filter that an expectation is about.
pub const EXPECTED_FILTER: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// The headers of an atomic batch, as `jetstream-extra` sets them: its name, the message's number in it, and the mark of
/// its last message.
pub const BATCH: &str = "Nats-Batch-Id";
/// See [`BATCH`].
pub const BATCH_NUMBER: &str = "Nats-Batch-Sequence";
/// See [`BATCH`].
pub const BATCH_COMMIT: &str = "Nats-Batch-Commit";

/// What a message says of how it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written<'a> {
    /// Its event's type.
    pub type_name: Option<&'a str>,
    /// Where its aggregate had to be.
    pub expected: Option<Expected<'a>>,
    /// What it was committed with; nothing when it was alone.
    pub batch: Option<Batch<'a>>,
}

/// Where an aggregate had to be for a message to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected<'a> {
    /// Sequence of its last message; 0 for none.
    pub seq: u64,
    /// The filter that selects its messages.
    pub filter: &'a str,
}

/// A message's place in an atomic batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    /// The batch's name.
    pub id: &'a str,
    /// The message's number in it, from 1.
    pub number: u64,
    /// Whether it is the last.
    pub last: bool,
}

impl<'a> Written<'a> {
    /// Reads a message's headers. What cannot be read is as if it were not there.
    pub fn of(headers: Option<&'a HeaderMap>) -> Self {
        let Some(headers) = headers else { return Self::default() };
        let text = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
        let number = |text: &str| text.parse::<u64>().ok();
        let expected = headers.get(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE).and_then(|seq| number(seq.as_str()));
        Self {
            type_name: text(TYPE_HEADER),
            expected: expected.zip(text(EXPECTED_FILTER)).map(|(seq, filter)| Expected { seq, filter }),
            batch: text(BATCH).zip(text(BATCH_NUMBER).and_then(number)).map(|(id, number)| Batch {
                id,
                number,
                last: text(BATCH_COMMIT).is_some(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_of_a_commit_are_read() {
        let mut headers = HeaderMap::new();
        assert_eq!(Written::of(None), Written::default());
        assert_eq!(Written::of(Some(&headers)), Written::default());
        headers.insert(TYPE_HEADER, "Queued");
        headers.insert("Nats-Expected-Last-Subject-Sequence", "17");
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", "garage.player.anna");
        headers.insert("Nats-Batch-Id", "abc");
        headers.insert("Nats-Batch-Sequence", "2");
        let expected = Some(Expected { seq: 17, filter: "garage.player.anna" });
        let batch = Batch { id: "abc", number: 2, last: false };
        let written = Written { type_name: Some("Queued"), expected, batch: Some(batch) };
        assert_eq!(Written::of(Some(&headers)), written);
        headers.insert("Nats-Batch-Commit", "1");
        let batch = Batch { last: true, ..batch };
        assert_eq!(Written::of(Some(&headers)), Written { batch: Some(batch), ..written });
        headers.insert("Nats-Expected-Last-Subject-Sequence", "many");
        assert_eq!(Written::of(Some(&headers)).expected, None);
    }
}
