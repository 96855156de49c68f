//! The dead letters, as operators see them at a glance.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// What the stream of dead letters holds. It is looked at and not folded: a letter that was retried is taken out of the
/// stream, which tells nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetters {
    /// When it was looked at, by the clock of who did.
    #[serde(with = "time::serde::rfc3339::option")]
    pub looked: Option<OffsetDateTime>,
    /// The last sequence of the stream.
    pub seq: u64,
    /// How many there are, by the consumer whose worker gave them up.
    pub counts: BTreeMap<String, u64>,
    /// The latest, the newest first.
    pub latest: Vec<DeadLetterSummary>,
}

/// A dead letter, without what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterSummary {
    /// Its number, as `garage dead` has it.
    #[serde(rename = "letter")]
    pub number: u64,
    /// When it was given up.
    #[serde(rename = "buried", with = "time::serde::rfc3339")]
    pub dead_lettered_at: OffsetDateTime,
    /// The consumer whose worker did.
    pub consumer: String,
    /// Where the message had come from.
    pub subject: String,
    /// Why; cut off when it is long.
    pub error: String,
}
