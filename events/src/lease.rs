//! What one instance of a worker alone should do at a time: a KV bucket of leases. Its keys and values.
//!
//! Who holds a lease renews its entry, and each renewal is a new revision: an entry whose revision stands still is of
//! somebody who is gone. No time is written in it, so that no two clocks are ever compared. A lease saves work that
//! would be done twice; it makes nothing safe, which the expectations of the log's appends do.

use serde::{Deserialize, Serialize};

use crate::id::QueueName;

/// The bucket.
pub const BUCKET: &str = "LEASES";
/// The stream that it is made of.
pub const STREAM: &str = "KV_LEASES";
/// Every entry.
pub const ALL: &str = "$KV.LEASES.>";
/// The matchmakers' leases, one a queue.
pub const MATCHMAKERS: &str = "$KV.LEASES.matchmaker.*";

/// The name of the lease of a queue's matchmaker.
pub fn matchmaker(queue: &QueueName) -> String {
    format!("matchmaker.{queue}")
}

/// The name of the lease of the director that looks after the games of a namespace.
pub fn director(namespace: &str) -> String {
    format!("director.{namespace}")
}

/// The subject of a lease's entry.
pub fn subject(name: &str) -> String {
    format!("$KV.LEASES.{name}")
}

/// The queue whose matchmaker's lease has this subject.
pub fn queue_of(subject: &str) -> Option<QueueName> {
    subject.strip_prefix("$KV.LEASES.matchmaker.")?.parse().ok()
}

/// A lease's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenure {
    /// The instance that has it, `host/process/id`; none when it was given back.
    pub holder: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_read_as_it_was_written() {
        let ranked: QueueName = "ranked".parse().unwrap();
        assert_eq!(queue_of(&subject(&matchmaker(&ranked))), Some(ranked));
        for other in ["$KV.LEASES.director.main", "$KV.LEASES.matchmaker.A", "$KV.QUEUES.ranked", "garage.player.ann"] {
            assert_eq!(queue_of(other), None);
        }
    }
}
