//! The matching rule: it matches players of one rank band who can all play in the same region, the oldest tickets
//! first.

use std::collections::{HashMap, HashSet};

use garage_events::{
    id::{PlayerId, Region},
    queue::Queue,
    session::{Member, Team},
};

use super::WaitingPlayer;

/// The name and version of the rule. The event `session.matched` records it.
pub const VERSION: &str = "band-region-fifo/1";

/// A match that the rule proposes.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The region of the game server.
    pub region: Region,
    /// The players, the oldest ticket first.
    pub players: Vec<WaitingPlayer>,
}

impl Proposal {
    /// The teams of the match: each player is a team of one, named `1`, `2` and so on.
    pub fn teams(&self) -> Vec<Team> {
        let teams = self.players.iter().zip(1..).map(|(entry, number): (_, u32)| Team {
            name: number.to_string(),
            players: vec![Member {
                player: entry.player.clone(),
                ticket: entry.queued.ticket,
                rank: entry.queued.rank,
            }],
        });
        teams.collect()
    }
}

/// Proposes at most `limit` matches of the waiting players, the oldest ticket first. No player is in two proposals.
///
/// There is one line per rank band and region. Each player joins the lines of all regions whose latency is within the
/// queue's limit, the nearest region first. As soon as a line has enough players, it makes a match. So the player who
/// completes a match gets the nearest region in which a match is possible.
pub fn propose<'a>(queue: &Queue, waiting: impl Iterator<Item = &'a WaitingPlayer>, limit: usize) -> Vec<Proposal> {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_events::{id::TicketId, log::Head, player::Queued};
    use proptest::prelude::*;
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    fn queue(players: usize) -> Queue {
        let regions = [("eu", 100), ("us", 100)].map(|(name, ceiling)| (name.parse().unwrap(), ceiling));
        Queue { players, rank_band: 200, timeout_s: 120, client_rank: false, requeue: true, regions: regions.into() }
    }

    fn entry(seq: u64, rank: i32, eu: u32, us: u32) -> WaitingPlayer {
        let latencies = BTreeMap::from([("eu".parse().unwrap(), eu), ("us".parse().unwrap(), us)]);
        WaitingPlayer {
            player: format!("p{seq}").parse().unwrap(),
            head: Head { seq, n: 1 },
            queued: Queued {
                ticket: TicketId::new(Uuid::from_u128(seq.into())),
                queue: "ranked".parse().unwrap(),
                rank,
                latencies,
                attributes: BTreeMap::new(),
                waiting_since: datetime!(2026-01-01 00:00 UTC),
                expires_at: datetime!(2026-01-01 00:02 UTC),
                requeues: 0,
            },
        }
    }

    /// The proposals as texts `region: players`.
    fn matches(queue: &Queue, entries: &[WaitingPlayer], limit: usize) -> Vec<String> {
        let proposals = propose(queue, entries.iter(), limit);
        let text = |one: Proposal| {
            let names: Vec<_> = one.players.iter().map(|entry| entry.player.to_string()).collect();
            format!("{}: {}", one.region, names.join(" "))
        };
        proposals.into_iter().map(text).collect()
    }

    #[test]
    fn the_oldest_tickets_of_a_rank_band_are_matched() {
        let entries = [entry(1, 50, 20, 90), entry(2, 450, 20, 90), entry(3, 150, 20, 90), entry(4, 199, 20, 90)];
        assert_eq!(matches(&queue(2), &entries, 10), ["eu: p1 p3"]);
    }

    #[test]
    fn ranks_just_below_and_above_zero_are_in_different_bands() {
        assert_eq!(matches(&queue(2), &[entry(1, -1, 20, 20), entry(2, 1, 20, 20)], 10), [""; 0]);
        assert_eq!(matches(&queue(2), &[entry(1, -1, 20, 90), entry(2, -200, 20, 90)], 10), ["eu: p1 p2"]);
    }

    #[test]
    fn a_region_with_too_high_latency_is_not_used() {
        assert_eq!(matches(&queue(2), &[entry(1, 0, 20, 101), entry(2, 0, 101, 20)], 10), [""; 0]);
        assert_eq!(matches(&queue(2), &[entry(1, 0, 20, 100), entry(2, 0, 101, 20)], 10), ["us: p1 p2"]);
    }

    #[test]
    fn the_player_who_completes_a_match_gets_the_nearest_region() {
        assert_eq!(matches(&queue(2), &[entry(1, 0, 20, 30), entry(2, 0, 60, 50)], 10), ["us: p1 p2"]);
    }

    #[test]
    fn a_matched_player_leaves_the_lines_of_all_regions() {
        let entries = [entry(1, 0, 20, 30), entry(2, 0, 20, 101), entry(3, 0, 101, 20), entry(4, 0, 101, 20)];
        assert_eq!(matches(&queue(2), &entries, 10), ["eu: p1 p2", "us: p3 p4"]);
    }

    #[test]
    fn the_number_of_proposals_is_limited() {
        let entries: Vec<_> = (1..=10).map(|seq| entry(seq, 0, 20, 20)).collect();
        assert_eq!(matches(&queue(2), &entries, 3).len(), 3);
    }

    proptest! {
        #[test]
        fn every_match_obeys_the_rule(
            waiting in prop::collection::vec((-500_i32..500, 0_u32..150, 0_u32..150), 0..60),
            players in 2_usize..5,
        ) {
            let queue = queue(players);
            let entries: Vec<_> =
                waiting.iter().zip(1..).map(|((rank, eu, us), seq)| entry(seq, *rank, *eu, *us)).collect();
            let mut seen = HashSet::new();
            for proposal in propose(&queue, entries.iter(), usize::MAX) {
                prop_assert_eq!(proposal.players.len(), players);
                let bands: HashSet<_> = proposal.players.iter().map(|one| one.queued.rank.div_euclid(200)).collect();
                prop_assert_eq!(bands.len(), 1);
                for one in &proposal.players {
                    prop_assert!(one.queued.latencies[&proposal.region] <= 100);
                    prop_assert!(seen.insert(one.player.clone()), "{} twice", one.player);
                }
            }
            // The players who remain cannot be matched with each other.
            let left: Vec<_> = entries.iter().filter(|entry| !seen.contains(&entry.player)).cloned().collect();
            prop_assert!(propose(&queue, left.iter(), usize::MAX).is_empty());
        }
    }
}
