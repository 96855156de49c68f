//! How a message of the log was written: the headers of its commit, which the server stores with the message.

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE};

use crate::event::TYPE_HEADER;

/// The header with the subject filter to which the expected last sequence applies.
pub const EXPECTED_FILTER: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// The header with the id of an atomic batch. `jetstream-extra` sets it.
pub const BATCH: &str = "Nats-Batch-Id";
/// The header with a message's number in its batch, from 1.
pub const BATCH_NUMBER: &str = "Nats-Batch-Sequence";
/// The header that marks the last message of a batch.
pub const BATCH_COMMIT: &str = "Nats-Batch-Commit";

/// The headers of a message that expects `seq` to be the last sequence of its aggregate, whose messages `filter`
/// selects.
pub(crate) fn headers(type_name: &str, seq: u64, filter: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(TYPE_HEADER, type_name);
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, seq.to_string().as_str());
    headers.insert(EXPECTED_FILTER, filter);
    headers
}

/// The parsed headers of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written<'a> {
    /// The type of the event.
    pub type_name: Option<&'a str>,
    /// The last sequence that the message's aggregate had to have.
    pub expected: Option<Expected<'a>>,
    /// The batch in which the message was committed; `None` if it was committed alone.
    pub batch: Option<Batch<'a>>,
}

/// The condition under which a message was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected<'a> {
    /// The sequence of the aggregate's last message; 0 if it had to have none.
    pub seq: u64,
    /// The filter that selects the aggregate's messages.
    pub filter: &'a str,
}

/// A message's position in an atomic batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch<'a> {
    /// The id of the batch.
    pub id: &'a str,
    /// The message's number in the batch, from 1.
    pub number: u64,
    /// Whether it is the last message of the batch.
    pub last: bool,
}

impl<'a> Written<'a> {
    /// Parses the headers of a message. A header that cannot be parsed is treated as absent.
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
    fn the_headers_of_a_commit_are_parsed() {
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
