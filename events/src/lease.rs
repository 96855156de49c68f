//! Leases, for tasks that only one instance of a worker should do at a time: the keys and values of a key-value bucket.
//!
//! The holder of a lease renews its entry, and each renewal is a new revision. If the revision stops changing, the
//! holder is gone. An entry contains no time, so clocks of different machines are never compared.
//!
//! A lease only avoids duplicate work. It does not ensure correctness: the expected sequences of appends do that.

use serde::{Deserialize, Serialize};

use crate::id::QueueName;

/// The name of the bucket.
pub const BUCKET: &str = "LEASES";
/// The stream that stores the bucket.
pub const STREAM: &str = "KV_LEASES";
/// Selects every entry.
pub const ALL: &str = "$KV.LEASES.>";
/// Selects the matchmakers' leases. There is one per queue.
pub const MATCHMAKERS: &str = "$KV.LEASES.matchmaker.*";

/// The name of the lease for matching the players of a queue.
pub fn matchmaker(queue: &QueueName) -> String {
    format!("matchmaker.{queue}")
}

/// The name of the lease for writing the projections.
pub const PROJECTOR: &str = "session.projector";

/// The name of the lease for watching the game servers of a namespace.
pub fn director(namespace: &str) -> String {
    format!("director.{namespace}")
}

/// The subject of a lease's entry.
pub fn subject(name: &str) -> String {
    format!("$KV.LEASES.{name}")
}

/// The queue of a matchmaker's lease with this subject; `None` for any other subject.
pub fn queue_of(subject: &str) -> Option<QueueName> {
    subject.strip_prefix("$KV.LEASES.matchmaker.")?.parse().ok()
}

/// The value of a lease's entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseEntry {
    /// The instance that holds the lease, as `host/process/id`; `None` if the lease was released.
    pub holder: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_subject_parses_to_its_queue() {
        let ranked: QueueName = "ranked".parse().unwrap();
        assert_eq!(queue_of(&subject(&matchmaker(&ranked))), Some(ranked));
        for other in ["$KV.LEASES.director.main", "$KV.LEASES.matchmaker.A", "$KV.QUEUES.ranked", "garage.player.ann"] {
            assert_eq!(queue_of(other), None);
        }
    }
}
