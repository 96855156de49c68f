//! Made-up waiting players for benchmarks.

use std::collections::BTreeMap;

use garage_events::{id::TicketId, log::Head, player::Queued};
use garage_matchmaker::domain::WaitingPlayer;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// The distance between the ranks of two players: far more than players of a match may differ.
const RANK_STEP: u32 = 1_000;

/// Returns this many players of one queue, the oldest ticket first. They can play in two regions. Their ranks are so
/// far apart that no two of them can be matched. So a matcher has to look at all of them, which is its worst case.
///
/// # Errors
/// If there are more than 2 million players, because ranks are 32-bit numbers.
pub(crate) fn players(count: u32) -> anyhow::Result<Vec<WaitingPlayer>> {
    (0..count).map(player).collect()
}

/// The player with a number.
///
/// # Errors
/// If the number is above 2 million.
pub(crate) fn player(number: u32) -> anyhow::Result<WaitingPlayer> {
    let waiting_since = OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(number.into());
    Ok(WaitingPlayer {
        player: format!("waiting-{number}").parse()?,
        head: Head { seq: u64::from(number) + 1, n: 1 },
        queued: Queued {
            ticket: TicketId::new(Uuid::from_u128(number.into())),
            queue: "ranked".parse()?,
            rank: i32::try_from(u64::from(number) * u64::from(RANK_STEP))?,
            latencies: BTreeMap::from([("eu".parse()?, 20), ("us".parse()?, 90)]),
            attributes: BTreeMap::new(),
            group: Vec::new(),
            waiting_since,
            expires_at: waiting_since + Duration::HOUR,
            requeues: 0,
            absences: 0,
            party: None,
        },
    })
}
