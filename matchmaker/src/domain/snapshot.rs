//! The pool's fold as bytes: a line that says of which log it is and how far it goes, and a line a ticket. JSON, so that
//! it can be looked at.

use std::sync::Arc;

use garage_events::{id::PlayerId, log::Head, player::Queued};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{Pool, WaitingPlayer};

/// The form that this build writes, and the only one that it reads.
pub const FORMAT: u32 = 1;

/// About what a ticket takes.
const TICKET_BYTES: usize = 320;

/// The log that a snapshot must be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// When it was made, which no other log shares.
    pub created: OffsetDateTime,
    /// The first sequence that it holds, or the one to come.
    pub first: u64,
    /// The last sequence that it ever had.
    pub last: u64,
}

/// Why a snapshot is of no use. The log is, in any case.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It is not whole, or no snapshot.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Another build wrote it.
    #[error("it is of format {0}, and this build reads {FORMAT}")]
    Format(u32),
    /// It is of another log, or of more than there is of this one.
    #[error("it is of another log")]
    Foreign,
    /// The log has forgotten some of what follows it.
    #[error("it ends at {seq}, and the log begins at {first}")]
    Outdated {
        /// Its last event.
        seq: u64,
        /// The log's first.
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

/// Writes the fold of a log at a sequence.
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

/// Reads a fold of this log. Whom the log has forgotten by now it leaves out, as who reads the log would.
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
        return Err(damaged(&format!("{count} of {tickets} tickets")));
    }
    Ok(pool)
}

#[cfg(test)]
mod tests {
    use garage_events::{id::TicketId, player::Event};
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
            attributes: [("note".into(), "two\nlines".into())].into(),
            waiting_since: CREATED,
            expires_at: datetime!(2026-01-01 00:02 UTC),
        }
    }

    /// A pool in which so many wait, each by the event of his number.
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
    fn a_fold_is_read_as_it_was_written() {
        for waiting in [0, 1, 10] {
            let pool = pool(waiting);
            assert_eq!(decode(&encoded(&pool), LOG), Ok(pool));
        }
    }

    #[test]
    fn what_is_not_of_this_log_is_refused() {
        let bytes = encoded(&pool(10));
        let other = Log { created: datetime!(2026-01-01 00:00:00.123456788 UTC), ..LOG };
        assert_eq!(decode(&bytes, other), Err(Unusable::Foreign));
        assert_eq!(decode(&bytes, Log { last: 9, ..LOG }), Err(Unusable::Foreign));
    }

    #[test]
    fn another_format_is_refused_whatever_else_it_says() {
        assert_eq!(decode(br#"{"format":2,"shape":"unheard of"}"#, LOG), Err(Unusable::Format(2)));
    }

    #[test]
    fn a_gap_before_the_logs_beginning_makes_it_useless() {
        let bytes = encoded(&pool(10));
        assert_eq!(decode(&bytes, Log { first: 12, ..LOG }), Err(Unusable::Outdated { seq: 10, first: 12 }));
        // Whoever reads the log would not meet those whom it has forgotten.
        let left = decode(&bytes, Log { first: 9, ..LOG }).unwrap();
        assert_eq!(left.folded().iter().map(|entry| entry.head.seq).collect::<Vec<_>>(), [9, 10]);
        assert!(decode(&bytes, Log { first: 11, ..LOG }).unwrap().folded().is_empty());
    }

    proptest! {
        #[test]
        fn what_is_damaged_is_refused(cut in 0_usize..2_000) {
            let bytes = encoded(&pool(5));
            let cut = cut % bytes.len();
            prop_assert!(matches!(decode(&bytes[..cut], LOG), Err(Unusable::Damaged(_))));
        }
    }
}
