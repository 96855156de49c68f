//! The snapshot format of the pool's fold: JSON lines in an LZ4 frame.
//!
//! Each block of the frame has a checksum, and the first line says how many lines follow. So a damaged snapshot is
//! detected. The first line also identifies the log and the sequence up to which it is folded. Each further line is a
//! player who waits. With a million waiting players, a snapshot is about 75 MB, and 270 MB decompressed. To read it:
//!
//! ```sh
//! nats object get SNAPSHOTS matchmaker --output snapshot.lz4 && lz4 -d snapshot.lz4 snapshot.jsonl
//! ```

use std::{
    fmt::Display,
    io::{self, BufRead, BufReader, Read as _, Write as _},
    sync::Arc,
};

use garage_events::{id::PlayerId, log::Head, player::Queued};
use garage_rules::rule_set::MAX_TICKET;
use lz4_flex::frame::{BlockSize, FrameDecoder, FrameEncoder, FrameInfo};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::{PackedPlayer, Pool, WaitingPlayer};

/// The format version that this build writes, and the only one that it reads.
pub const FORMAT: u32 = 4;

/// The maximum length of the text: several million players. A short text can become a large file, so there must be a limit
/// for snapshots that are not from a matchmaker.
const MAX_TEXT: u64 = 2 << 30;

/// The maximum length of a line. A player of a group of ten with large attributes needs less than half of it.
const MAX_LINE: u64 = 128 << 10;

/// How many players to make room for at most, whatever number a snapshot claims to have.
const MAX_RESERVED: usize = 2_000_000;

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
    /// The number of waiting players.
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
/// When a ticket cannot be written as JSON, or the snapshot would be too long for [`decode`].
pub fn encode(log: OffsetDateTime, seq: u64, entries: &[Arc<PackedPlayer>]) -> io::Result<Vec<u8>> {
    let info = FrameInfo::new().block_size(BlockSize::Max256KB).block_checksums(true);
    let mut frame = FrameEncoder::with_frame_info(info, Vec::new());
    let mut line = serde_json::to_vec(&Header { format: FORMAT, log, seq, tickets: entries.len() })?;
    line.push(b'\n');
    frame.write_all(&line)?;
    let mut length = line.len() as u64;
    for entry in entries {
        let WaitingPlayer { player, head, queued } = entry.unpack();
        line.clear();
        serde_json::to_writer(&mut line, &Written { player: &player, seq: head.seq, n: head.n, queued: &queued })?;
        line.push(b'\n');
        length += line.len() as u64;
        if line.len() as u64 > MAX_LINE {
            return Err(io::Error::other(format!("the ticket of {player} is too large for a snapshot")));
        }
        if length > MAX_TEXT {
            return Err(io::Error::other("there are too many waiting players for a snapshot"));
        }
        frame.write_all(&line)?;
    }
    Ok(frame.finish()?)
}

/// Decodes a fold of this log. It skips players whose events the log has deleted meanwhile, as a reader of the whole
/// log would not see them either.
///
/// # Errors
/// [`Unusable`]
pub fn decode(bytes: &[u8], log: Log) -> Result<Pool, Unusable> {
    // Formats 1 and 2 were text.
    if bytes.starts_with(b"{") {
        return Err(other_format(bytes.split(|byte| *byte == b'\n').next().unwrap_or_default()));
    }
    let mut text = BufReader::with_capacity(1 << 18, FrameDecoder::new(bytes).take(MAX_TEXT));
    let mut line = Vec::new();
    read_line(&mut text, &mut line)?;
    let Header { seq, tickets, log: created, .. } = match serde_json::from_slice::<Version>(&line) {
        Ok(Version { format: FORMAT }) => serde_json::from_slice(&line).map_err(damaged)?,
        _ => return Err(other_format(&line)),
    };
    if created != log.created || seq > log.last {
        return Err(Unusable::Foreign);
    }
    if seq.saturating_add(1) < log.first {
        return Err(Unusable::Outdated { seq, first: log.first });
    }
    let (end, mut pool, mut read, mut inserted) = (seq, Pool::at(seq), 0, 0);
    pool.reserve(tickets.min(MAX_RESERVED));
    while read_line(&mut text, &mut line)? {
        let Read { player, seq, n, queued } = serde_json::from_slice(&line).map_err(damaged)?;
        read += 1;
        if seq > end {
            return Err(damaged("it has an event after its own end"));
        }
        if queued.group.len() > MAX_TICKET {
            return Err(damaged(format!("a group has {} players", queued.group.len())));
        }
        if seq >= log.first {
            pool.insert(WaitingPlayer { player, head: Head { seq, n }, queued });
            inserted += 1;
        }
    }
    if read != tickets {
        return Err(damaged(format!("it has {read} of {tickets} players")));
    }
    if pool.len() != inserted {
        return Err(damaged("it has a player or an event twice"));
    }
    Ok(pool)
}

/// Reads the next line. Returns false at the end.
fn read_line(text: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool, Unusable> {
    line.clear();
    text.take(MAX_LINE).read_until(b'\n', line).map_err(damaged)?;
    match line.last() {
        Some(b'\n') => Ok(true),
        Some(_) => Err(damaged("a line has no end")),
        None => Ok(false),
    }
}

fn other_format(header: &[u8]) -> Unusable {
    serde_json::from_slice(header).map_or_else(damaged, |Version { format }| Unusable::Format(format))
}

fn damaged(cause: impl Display) -> Unusable {
    Unusable::Damaged(cause.to_string())
}

#[cfg(test)]
mod tests {
    use garage_events::{
        id::{PartyId, TicketId},
        player::Event,
    };
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
            party: Some(PartyId::new(Uuid::from_u128(7))),
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

    /// A snapshot with this text.
    fn framed(text: &str) -> Vec<u8> {
        let mut frame = FrameEncoder::new(Vec::new());
        frame.write_all(text.as_bytes()).unwrap();
        frame.finish().unwrap()
    }

    #[test]
    fn another_format_is_rejected_whatever_else_the_snapshot_contains() {
        assert_eq!(decode(&framed("{\"format\":5,\"shape\":\"unknown\"}\n"), LOG), Err(Unusable::Format(5)));
        assert_eq!(decode(b"{\"format\":2,\"shape\":\"text\"}\n{}", LOG), Err(Unusable::Format(2)));
    }

    #[test]
    fn a_snapshot_with_other_players_than_it_claims_is_rejected() {
        let mut text = String::new();
        FrameDecoder::new(&*encoded(&pool(2))).read_to_string(&mut text).unwrap();
        assert!(decode(&framed(&text), LOG).is_ok());
        let last = text.lines().last().unwrap();
        let repeated = text.replace("\"tickets\":2", "\"tickets\":3") + last + "\n";
        for changed in [repeated, format!("{text}{last}\n"), text.replace("\"tickets\":2", "\"tickets\":3")] {
            assert!(matches!(decode(&framed(&changed), LOG), Err(Unusable::Damaged(_))), "{changed}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_rejected_before_it_fills_the_memory() {
        let endless = "{\"format\":4".to_owned() + &" ".repeat(100 << 20);
        let bytes = framed(&endless);
        assert!(bytes.len() < 1 << 20);
        assert_eq!(decode(&bytes, LOG), Err(damaged("a line has no end")));
    }

    #[test]
    fn a_player_of_a_later_event_or_of_a_huge_group_is_damage() {
        let mut pool = pool(3);
        let bytes = encode(CREATED, 2, &pool.folded()).unwrap();
        assert!(matches!(decode(&bytes, LOG), Err(Unusable::Damaged(_))));
        let group = (0..=MAX_TICKET).map(|number| format!("g{number}").parse().unwrap()).collect();
        let queued = Queued { group, ..queued(4) };
        pool.fold(&"g0".parse().unwrap(), Head { seq: 4, n: 1 }, &Event::from(queued));
        assert!(matches!(decode(&encoded(&pool), LOG), Err(Unusable::Damaged(_))));
    }

    #[test]
    fn a_snapshot_is_rejected_if_events_between_it_and_the_log_are_missing() {
        let bytes = encoded(&pool(10));
        assert_eq!(decode(&bytes, Log { first: 12, ..LOG }), Err(Unusable::Outdated { seq: 10, first: 12 }));
        // Players whose events the log has deleted are skipped.
        let pool = decode(&bytes, Log { first: 9, ..LOG }).unwrap();
        assert_eq!(pool.folded().iter().map(|entry| entry.head().seq).collect::<Vec<_>>(), [9, 10]);
        assert!(decode(&bytes, Log { first: 11, ..LOG }).unwrap().folded().is_empty());
    }

    proptest! {
        #[test]
        fn a_truncated_snapshot_is_rejected(length in 0_usize..2_000) {
            let pool = pool(5);
            let bytes = encoded(&pool);
            let length = length % bytes.len();
            match decode(&bytes[..length], LOG) {
                // Only the mark at the end of the frame is missing.
                Ok(decoded) => {
                    prop_assert!(length >= bytes.len() - 4);
                    prop_assert_eq!(decoded, pool);
                }
                Err(error) => prop_assert!(matches!(error, Unusable::Damaged(_))),
            }
        }

        #[test]
        fn a_modified_snapshot_is_rejected(at in 0_usize..2_000, bit in 0..8_u32) {
            let mut bytes = encoded(&pool(5));
            let at = at % (bytes.len() - 4);
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes, LOG).is_err());
        }
    }
}
