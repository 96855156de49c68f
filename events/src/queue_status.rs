//! Which queues an operator has closed: the keys and values of a key-value bucket that the gateways watch.
//!
//! It is not in the log, because the log drops events after hours, and a queue must stay closed until an operator opens
//! it.

use serde::{Deserialize, Serialize};

use crate::id::QueueName;

/// The name of the bucket.
pub const BUCKET: &str = "QUEUES";
/// The stream that stores the bucket.
pub const STREAM: &str = "KV_QUEUES";
/// Selects every entry.
pub const ALL: &str = "$KV.QUEUES.>";

/// The maximum length of a reason, in characters.
pub const MAX_REASON: usize = 200;

/// Whether players can enter a queue. A queue without an entry is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum QueueStatus {
    Open,
    /// No player can enter. Players who already wait are still matched.
    Closed {
        /// The text for players who try to enter.
        reason: String,
    },
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
}
