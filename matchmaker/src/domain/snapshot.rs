//! The snapshot format of the pool's fold. The first line identifies the log and the sequence up to which it is folded.
//! Each further line is a ticket. All lines are JSON, so that people can read them.

use std::sync::Arc;

use garage_events::{id::PlayerId, log::Head, player::Queued};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Pool, WaitingPlayer};

/// The format version that this build writes, and the only one that it reads.
pub const FORMAT: u32 = 2;

/// Approximate size of a ticket's line.
const TICKET_BYTES: usize = 320;

/// Identifies the log, and says which part of it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// When the log's stream was created. It distinguishes this log from any other.
    pub created: OffsetDateTime,
    /// The sequence of the first event that the log still has. If the log is empty, the next sequence.
    pub first: u64,
    /// The sequence of the last event that was ever appended.
    pub last: u64,
}

/// Why a snapshot cannot be used. The matchmaker then reads the whole log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is incomplete, or not a snapshot.
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    /// A build with this other format wrote it.
    #[error("the snapshot has format {0}, but this build reads format {FORMAT}")]
    Format(u32),
    /// It belongs to another log, or ends after the end of this log.
    #[error("the snapshot belongs to another log")]
    Foreign,
    /// The log has already deleted some of the events that follow the snapshot.
    #[error("the snapshot ends at {seq}, but the log begins at {first}")]
    Outdated {
        /// The last event in the snapshot.
        seq: u64,
        /// The first event that the log still has.
        first: u64,
    },
}

#[derive(Deserialize)]
struct Version {
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    #[serde(with = "time::serde::rfc3339")]
    log: OffsetDateTime,
    seq: u64,
    tickets: usize,
}

#[derive(Serialize)]
struct Written<'a> {
    player: &'a PlayerId,
    seq: u64,
    n: u64,
    queued: &'a Queued,
}

#[derive(Deserialize)]
struct Read {
    player: PlayerId,
    seq: u64,
    n: u64,
    queued: Queued,
}

/// Encodes the fold of the log that was created at `log`, up to the sequence `seq`.
///
/// # Errors
/// When a ticket cannot be written as JSON.
pub fn encode(log: OffsetDateTime, seq: u64, entries: &[Arc<WaitingPlayer>]) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity((entries.len() + 1) * TICKET_BYTES);
    serde_json::to_writer(&mut bytes, &Header { format: FORMAT, log, seq, tickets: entries.len() })?;
    for entry in entries {
        bytes.push(b'\n');
        let WaitingPlayer { player, head, queued } = entry.as_ref();
        serde_json::to_writer(&mut bytes, &Written { player, seq: head.seq, n: head.n, queued })?;
    }
    Ok(bytes)
}

/// Decodes a fold of this log. It skips players whose events the log has deleted meanwhile, as a reader of the whole
/// log would not see them either.
///
/// # Errors
/// [`Unusable`]
pub fn decode(bytes: &[u8], log: Log) -> Result<Pool, Unusable> {
    let damaged = |error: &dyn std::fmt::Display| Unusable::Damaged(error.to_string());
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let Version { format } = serde_json::from_slice(first).map_err(|error| damaged(&error))?;
    if format != FORMAT {
        return Err(Unusable::Format(format));
    }
    let header: Header = serde_json::from_slice(first).map_err(|error| damaged(&error))?;
    let Header { seq, tickets, .. } = header;
    if header.log != log.created || seq > log.last {
        return Err(Unusable::Foreign);
    }
    if seq.saturating_add(1) < log.first {
        return Err(Unusable::Outdated { seq, first: log.first });
    }
    let (mut pool, mut count) = (Pool::at(seq), 0);
    for line in lines {
        let Read { player, seq, n, queued } = serde_json::from_slice(line).map_err(|error| damaged(&error))?;
        count += 1;
        if seq >= log.first {
            pool.insert(Arc::new(WaitingPlayer { player, head: Head { seq, n }, queued }));
        }
    }
    if count != tickets {
        return Err(damaged(&format!("it has {count} of {tickets} tickets")));
    }
    Ok(pool)
}

#[cfg(test)]
mod tests {
    use garage_events::{id::TicketId, player::Event};
    use garage_rules::rule_set::Value;
    use proptest::prelude::*;
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    const CREATED: OffsetDateTime = datetime!(2026-01-01 00:00:00.123456789 UTC);
    const LOG: Log = Log { created: CREATED, first: 1, last: 1_000 };

    fn queued(seq: u64) -> Queued {
        Queued {
            ticket: TicketId::new(Uuid::from_u128(seq.into())),
            queue: if seq.is_multiple_of(3) { "casual" } else { "ranked" }.parse().unwrap(),
            rank: -5,
            latencies: [("eu".parse().unwrap(), 20)].into(),
            attributes: [("note".into(), Value::Text("two\nlines".into()))].into(),
            group: Vec::new(),
            waiting_since: CREATED,
            expires_at: datetime!(2026-01-01 00:02 UTC),
            requeues: 0,
            absences: 0,
        }
    }

    /// A pool with this many waiting players. Player number n was queued by the event with sequence n.
    fn pool(waiting: u64) -> Pool {
        let mut pool = Pool::default();
        for seq in 1..=waiting {
            let player = format!("p{seq}").parse().unwrap();
            pool.fold(&player, Head { seq, n: 2 }, &Event::from(queued(seq)));
        }
        pool
    }

    fn encoded(pool: &Pool) -> Vec<u8> {
        encode(CREATED, pool.seq(), &pool.folded()).unwrap()
    }

    #[test]
    fn a_decoded_fold_equals_the_encoded_one() {
        for waiting in [0, 1, 10] {
            let pool = pool(waiting);
            assert_eq!(decode(&encoded(&pool), LOG), Ok(pool));
        }
    }

    #[test]
    fn a_snapshot_of_another_log_is_rejected() {
        let bytes = encoded(&pool(10));
        let other = Log { created: datetime!(2026-01-01 00:00:00.123456788 UTC), ..LOG };
        assert_eq!(decode(&bytes, other), Err(Unusable::Foreign));
        assert_eq!(decode(&bytes, Log { last: 9, ..LOG }), Err(Unusable::Foreign));
    }

    #[test]
    fn another_format_is_rejected_whatever_else_the_snapshot_contains() {
        assert_eq!(decode(br#"{"format":3,"shape":"unknown"}"#, LOG), Err(Unusable::Format(3)));
    }

    #[test]
    fn a_snapshot_is_rejected_if_events_between_it_and_the_log_are_missing() {
        let bytes = encoded(&pool(10));
        assert_eq!(decode(&bytes, Log { first: 12, ..LOG }), Err(Unusable::Outdated { seq: 10, first: 12 }));
        // Players whose events the log has deleted are skipped.
        let pool = decode(&bytes, Log { first: 9, ..LOG }).unwrap();
        assert_eq!(pool.folded().iter().map(|entry| entry.head.seq).collect::<Vec<_>>(), [9, 10]);
        assert!(decode(&bytes, Log { first: 11, ..LOG }).unwrap().folded().is_empty());
    }

    proptest! {
        #[test]
        fn a_truncated_snapshot_is_rejected(length in 0_usize..2_000) {
            let bytes = encoded(&pool(5));
            let length = length % bytes.len();
            prop_assert!(matches!(decode(&bytes[..length], LOG), Err(Unusable::Damaged(_))));
        }
    }
}
