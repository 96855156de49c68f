//! Which queues an operator has closed: the keys and values of a key-value bucket that the gateways watch.
//!
//! It is not in the log, because the log drops events after hours, and a queue must stay closed until an operator opens
//! it.

use serde::{Deserialize, Deserializer, Serialize};

use crate::id::QueueName;

/// The name of the bucket.
pub const BUCKET: &str = "QUEUES";
/// The stream that stores the bucket.
pub const STREAM: &str = "KV_QUEUES";
/// Selects every entry.
pub const ALL: &str = "$KV.QUEUES.>";

/// The maximum length of a reason that an operator gives to players, in characters.
pub const MAX_REASON: usize = 200;

/// Whether players can enter a queue. A queue without an entry is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum QueueStatus {
    Open,
    /// No player can enter. Players who already wait are still matched.
    Closed {
        /// The text for players who try to enter. At most [`MAX_REASON`] characters: of a longer one, the beginning is
        /// read.
        #[serde(deserialize_with = "read_reason")]
        reason: String,
    },
}

/// Reads a reason, or its beginning if it is too long. `garage` refuses a long reason, but an operator can write an entry
/// with another program, and a block must not lose its effect because of its reason.
pub(crate) fn read_reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let mut reason = String::deserialize(deserializer)?;
    if let Some((end, _)) = reason.char_indices().nth(MAX_REASON) {
        reason.truncate(end);
    }
    Ok(reason)
}

/// The same for a reason that can be absent.
pub(crate) fn read_optional_reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Reason(#[serde(deserialize_with = "read_reason")] String);

    Ok(Option::<Reason>::deserialize(deserializer)?.map(|Reason(reason)| reason))
}

/// The subject of a queue's entry.
pub fn subject(queue: &QueueName) -> String {
    format!("$KV.QUEUES.{queue}")
}

/// The queue of an entry with this subject; `None` for any other subject.
pub fn queue_of(subject: &str) -> Option<QueueName> {
    subject.strip_prefix("$KV.QUEUES.")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_status_survives_a_round_trip_through_json() {
        let ranked: QueueName = "ranked".parse().unwrap();
        assert_eq!(queue_of(&subject(&ranked)), Some(ranked));
        assert_eq!(queue_of("$KV.LEASES.ranked"), None);
        let closed = QueueStatus::Closed { reason: "season's end".into() };
        assert_eq!(serde_json::to_string(&closed).unwrap(), r#"{"state":"closed","reason":"season's end"}"#);
        for queue_status in [closed, QueueStatus::Open] {
            assert_eq!(
                serde_json::from_str::<QueueStatus>(&serde_json::to_string(&queue_status).unwrap()).unwrap(),
                queue_status
            );
        }
    }

    #[test]
    fn any_bytes_are_a_queue_status_that_survives_a_round_trip_or_an_error() {
        garage_fuzz::feed(&[r#"{"state":"closed","reason":"season's end"}"#, r#"{"state":"open"}"#], |bytes| {
            let read = serde_json::from_slice::<QueueStatus>(bytes);
            if let Ok(status) = &read {
                if let QueueStatus::Closed { reason } = status {
                    assert!(reason.chars().count() <= MAX_REASON, "{reason}");
                }
                let text = serde_json::to_string(status).unwrap();
                assert_eq!(serde_json::from_str::<QueueStatus>(&text).unwrap(), *status);
            }
            read.is_ok()
        });
    }

    #[test]
    fn any_bytes_are_the_subject_of_the_queue_or_of_none() {
        garage_fuzz::feed(&["$KV.QUEUES.ranked"], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let queue = queue_of(&text);
            assert!(queue.iter().all(|queue| subject(queue) == text), "{queue:?}");
            queue.is_some()
        });
    }

    #[test]
    fn of_a_reason_that_is_too_long_the_beginning_is_read() {
        let entry = format!(r#"{{"state":"closed","reason":"{}"}}"#, "é".repeat(MAX_REASON + 1));
        let reason = "é".repeat(MAX_REASON);
        assert_eq!(serde_json::from_str::<QueueStatus>(&entry).unwrap(), QueueStatus::Closed { reason });
    }
}
