//! The rule: players of one band of ranks who reach a common region are matched, the oldest tickets first.

use std::collections::{HashMap, HashSet};

use garage_events::{
    id::{PlayerId, Region},
    queue::Queue,
    session::{Member, Team},
};

use super::WaitingPlayer;

/// The rule's name and version, as `session.matched` keeps it.
pub const VERSION: &str = "band-region-fifo/1";

/// A match that the rule would make.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// Where it is to be played.
    pub region: Region,
    /// Who plays, the oldest ticket first.
    pub players: Vec<WaitingPlayer>,
}

impl Proposal {
    /// Each player is a team of his own.
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

/// Proposes at most `limit` matches of those who wait, the oldest ticket first, no player twice.
///
/// Each player stands in line in every region that he reaches within the queue's ceiling, beside those of his band. A
/// match is made as soon as a line is long enough; the player who completes it prefers his nearest region.
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
            // Those who stood in another region's line too may have been taken from there.
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
        Queue { players, rank_band: 200, timeout_s: 120, client_rank: false, regions: regions.into() }
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
            },
        }
    }

    /// Matches as `region: players`.
    fn matches(queue: &Queue, entries: &[WaitingPlayer], limit: usize) -> Vec<String> {
        let proposals = propose(queue, entries.iter(), limit);
        let text = |one: Proposal| {
            let names: Vec<_> = one.players.iter().map(|entry| entry.player.to_string()).collect();
            format!("{}: {}", one.region, names.join(" "))
        };
        proposals.into_iter().map(text).collect()
    }

    #[test]
    fn the_oldest_of_a_band_are_matched() {
        let entries = [entry(1, 50, 20, 90), entry(2, 450, 20, 90), entry(3, 150, 20, 90), entry(4, 199, 20, 90)];
        assert_eq!(matches(&queue(2), &entries, 10), ["eu: p1 p3"]);
    }

    #[test]
    fn bands_do_not_meet_at_zero() {
        assert_eq!(matches(&queue(2), &[entry(1, -1, 20, 20), entry(2, 1, 20, 20)], 10), [""; 0]);
        assert_eq!(matches(&queue(2), &[entry(1, -1, 20, 90), entry(2, -200, 20, 90)], 10), ["eu: p1 p2"]);
    }

    #[test]
    fn a_region_beyond_the_ceiling_is_no_region() {
        assert_eq!(matches(&queue(2), &[entry(1, 0, 20, 101), entry(2, 0, 101, 20)], 10), [""; 0]);
        assert_eq!(matches(&queue(2), &[entry(1, 0, 20, 100), entry(2, 0, 101, 20)], 10), ["us: p1 p2"]);
    }

    #[test]
    fn the_completing_player_prefers_his_nearest_region() {
        assert_eq!(matches(&queue(2), &[entry(1, 0, 20, 30), entry(2, 0, 60, 50)], 10), ["us: p1 p2"]);
    }

    #[test]
    fn nobody_stands_in_line_after_he_was_matched() {
        let entries = [entry(1, 0, 20, 30), entry(2, 0, 20, 101), entry(3, 0, 101, 20), entry(4, 0, 101, 20)];
        assert_eq!(matches(&queue(2), &entries, 10), ["eu: p1 p2", "us: p3 p4"]);
    }

    #[test]
    fn no_more_than_asked_for() {
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
            // Whoever is left could not have been matched with others who are left.
            let left: Vec<_> = entries.iter().filter(|entry| !seen.contains(&entry.player)).cloned().collect();
            prop_assert!(propose(&queue, left.iter(), usize::MAX).is_empty());
        }
    }
}
