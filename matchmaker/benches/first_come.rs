//! The matcher that rule sets replaced, `band-region-fifo/1`. It matches players of one rank band who can all play in
//! the same region, the oldest tickets first. Only benchmarks use it, as the baseline for today's matching.

use std::collections::{BTreeMap, HashMap, HashSet};

use garage_events::id::{PlayerId, Region};
use garage_matchmaker::domain::WaitingPlayer;

/// The settings of a queue that the matcher reads.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    /// The number of players in a match.
    pub(crate) players: usize,
    /// The width of a band of ranks. Only players of the same band are matched.
    pub(crate) rank_band: u32,
    /// The highest latency that counts for each region, in milliseconds.
    pub(crate) regions: BTreeMap<Region, u32>,
}

/// A match that the matcher proposes.
#[derive(Debug)]
#[expect(dead_code, reason = "the benchmarks only measure how long it takes to make the proposals")]
pub(crate) struct Proposal {
    /// The region of the game server.
    pub(crate) region: Region,
    /// The players, the oldest ticket first.
    pub(crate) players: Vec<WaitingPlayer>,
}

/// Proposes at most `limit` matches of the waiting players, the oldest ticket first. No player is in two proposals.
///
/// There is one line per rank band and region. Each player joins the lines of all regions whose latency is within the
/// queue's limit, the nearest region first. As soon as a line has enough players, it makes a match. So the player who
/// completes a match gets the nearest region in which a match is possible.
pub(crate) fn propose<'a>(
    queue: &Queue,
    waiting: impl Iterator<Item = &'a WaitingPlayer>,
    limit: usize,
) -> Vec<Proposal> {
    let band = |rank: i32| i64::from(rank).div_euclid(i64::from(queue.rank_band.max(1)));
    let mut lines: HashMap<(i64, &'a Region), Vec<&'a WaitingPlayer>> = HashMap::new();
    let mut taken: HashSet<&'a PlayerId> = HashSet::new();
    let mut proposals = Vec::new();
    for entry in waiting {
        if proposals.len() >= limit {
            break;
        }
        let latencies = &entry.queued.latencies;
        let within =
            |(region, latency): &(&Region, &u32)| queue.regions.get(*region).is_some_and(|max| *latency <= max);
        let mut reached: Vec<(&Region, &u32)> = latencies.iter().filter(within).collect();
        reached.sort_by_key(|(region, latency)| (**latency, *region));
        for (region, _) in reached {
            let line = lines.entry((band(entry.queued.rank), region)).or_default();
            line.push(entry);
            if line.len() < queue.players {
                continue;
            }
            // A player may be in the lines of several regions, and may already be matched in another region.
            line.retain(|entry| !taken.contains(&entry.player));
            if line.len() >= queue.players {
                let chosen: Vec<&WaitingPlayer> = line.drain(..queue.players).collect();
                taken.extend(chosen.iter().map(|entry| &entry.player));
                let players = chosen.into_iter().cloned().collect();
                proposals.push(Proposal { region: region.clone(), players });
                break;
            }
        }
    }
    proposals
}

impl Queue {
    /// The queue that the benchmarks measure: matches of two players, in two regions.
    ///
    /// # Errors
    /// If the name of a region is invalid, which is not the case.
    pub(crate) fn of_two() -> anyhow::Result<Self> {
        Ok(Self { players: 2, rank_band: 50, regions: [("eu".parse()?, 120), ("us".parse()?, 120)].into() })
    }
}
