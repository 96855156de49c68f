//! A summary of the dead letters, for operators.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// The contents of the stream of dead letters. It is polled instead of folded, because the removal of a dead letter,
/// after a successful retry, produces no event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetters {
    /// When the stream was last polled, by the clock of the polling worker; absent if it has not been polled.
    #[serde(with = "time::serde::rfc3339::option")]
    pub looked: Option<OffsetDateTime>,
    /// The last sequence in the stream.
    pub seq: u64,
    /// The number of dead letters of each consumer.
    pub counts: BTreeMap<String, u64>,
    /// The newest dead letters, newest first.
    pub latest: Vec<DeadLetterSummary>,
}

/// A dead letter without its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterSummary {
    /// The sequence in the stream of dead letters, which `garage dead` uses as its number.
    #[serde(rename = "letter")]
    pub number: u64,
    /// When the message became a dead letter.
    #[serde(rename = "buried", with = "time::serde::rfc3339")]
    pub dead_lettered_at: OffsetDateTime,
    /// The consumer whose worker could not handle the message.
    pub consumer: String,
    /// The subject of the original message.
    pub subject: String,
    /// The error; truncated if it is long.
    pub error: String,
}
