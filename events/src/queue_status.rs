//! Which queues an operator has closed: a KV bucket that the gateways follow. Its keys and values.
//!
//! It is no part of the log, which forgets after hours: a queue stays closed until somebody opens it.

use serde::{Deserialize, Serialize};

use crate::id::QueueName;

/// The bucket.
pub const BUCKET: &str = "QUEUES";
/// The stream that it is made of.
pub const STREAM: &str = "KV_QUEUES";
/// Every entry.
pub const ALL: &str = "$KV.QUEUES.>";

/// The longest reason, in characters.
pub const MAX_REASON: usize = 200;

/// Whether a queue takes players. One without an entry does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum QueueStatus {
    /// It does.
    Open,
    /// It does not; who waits there already is matched as ever.
    Closed {
        /// Why; players are told.
        reason: String,
    },
}

/// The subject of a queue's entry.
pub fn subject(queue: &QueueName) -> String {
    format!("$KV.QUEUES.{queue}")
}

/// The queue whose entry has this subject.
pub fn queue_of(subject: &str) -> Option<QueueName> {
    subject.strip_prefix("$KV.QUEUES.")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_status_is_read_as_it_was_written() {
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
