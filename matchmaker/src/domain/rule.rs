//! The matching rule: it matches players of one rank band who can all play in the same region, the oldest tickets
//! first. The match runs in the region that is best for its players.

use std::collections::{BTreeMap, HashMap, HashSet};

use garage_events::{
    id::Region,
    queue::Queue,
    session::{Member, Team},
};

use super::WaitingPlayer;

/// The name and version of the rule. The event `session.matched` records it.
pub const VERSION: &str = "band-region-fifo/2";

/// A match that the rule proposes.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The region of the game server.
    pub region: Region,
    /// The players, the oldest ticket first.
    pub players: Vec<WaitingPlayer>,
    /// For each region that all of them can use: their latencies, in the order of the players.
    pub latencies: BTreeMap<Region, Vec<u32>>,
}

impl Proposal {
    /// A match of these players; `None` if there is no region that all of them can use. Of several regions, the one
    /// with the lowest worst latency is best, then the one with the lowest sum, then the first by name. So it does not
    /// depend on the order of the players.
    fn of(queue: &Queue, players: Vec<WaitingPlayer>) -> Option<Self> {
        let all_can_use = |(region, max): (&Region, &u32)| {
            let latency = |entry: &WaitingPlayer| entry.queued.latencies.get(region).filter(|one| *one <= max).copied();
            Some((region.clone(), players.iter().map(latency).collect::<Option<Vec<_>>>()?))
        };
        let latencies: BTreeMap<_, _> = queue.regions.iter().filter_map(all_can_use).collect();
        let rank = |(_, latencies): &(&Region, &Vec<u32>)| {
            (latencies.iter().max().copied(), latencies.iter().copied().map(u64::from).sum::<u64>())
        };
        // Of equal regions, this is the first.
        let region = latencies.iter().min_by_key(rank)?.0.clone();
        Some(Self { region, players, latencies })
    }

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

/// The number of the rank band.
pub(super) fn band(queue: &Queue, rank: i32) -> i64 {
    i64::from(rank).div_euclid(i64::from(queue.rank_band.max(1)))
}

/// Proposes at most `limit` matches of the waiting players, the oldest ticket first. No player is in two proposals.
///
/// There is one line per rank band and region. Each player joins the lines of all regions that they can use. As soon as
/// a line has enough players, it makes a match. If a player completes several lines at once, the line with the oldest
/// tickets makes the match. The match may run in another region that its players can use: see `Proposal::of`.
pub fn propose<'a>(queue: &'a Queue, waiting: impl Iterator<Item = &'a WaitingPlayer>, limit: usize) -> Vec<Proposal> {
    // Each player has a place: 0 for the oldest ticket.
    let mut lines: HashMap<(i64, &'a Region), Vec<(usize, &'a WaitingPlayer)>> = HashMap::new();
    let mut taken: HashSet<usize> = HashSet::new();
    let mut proposals = Vec::new();
    for (place, entry) in waiting.enumerate() {
        if proposals.len() >= limit {
            break;
        }
        let mut oldest: Option<Vec<(usize, &WaitingPlayer)>> = None;
        for (region, _) in queue.usable(&entry.queued.latencies) {
            let line = lines.entry((band(queue, entry.queued.rank), region)).or_default();
            line.push((place, entry));
            if line.len() < queue.players {
                continue;
            }
            // A player may be in the lines of several regions, and may already be matched.
            line.retain(|(place, _)| !taken.contains(place));
            if line.len() < queue.players {
                continue;
            }
            let places = |line: &[(usize, &WaitingPlayer)]| line.iter().map(|(place, _)| *place).collect::<Vec<_>>();
            if oldest.as_ref().is_none_or(|oldest| places(line) < places(oldest)) {
                oldest = Some(line.clone());
            }
        }
        let Some(chosen) = oldest else { continue };
        let players = chosen.iter().map(|(_, entry)| WaitingPlayer::clone(entry)).collect();
        if let Some(proposal) = Proposal::of(queue, players) {
            taken.extend(chosen.into_iter().map(|(place, _)| place));
            proposals.push(proposal);
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
                absences: 0,
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
    fn of_two_lines_that_a_player_completes_the_one_with_the_oldest_ticket_makes_the_match() {
        let entries = [entry(1, 0, 101, 90), entry(2, 0, 20, 101), entry(3, 0, 20, 90)];
        assert_eq!(matches(&queue(2), &entries, 10), ["us: p1 p3"]);
    }

    #[test]
    fn the_region_is_the_best_for_the_players_in_any_order_of_their_tickets() {
        for (latencies, region) in [
            // The worst latency decides, also against the nearest region of the player who comes last.
            ([(40, 95), (60, 59)], "eu"),
            ([(20, 90), (100, 91)], "us"),
            // The sum decides between equal worst latencies.
            ([(20, 60), (60, 21)], "eu"),
            ([(21, 60), (60, 20)], "us"),
            // The name decides between equal sums.
            ([(20, 60), (60, 20)], "eu"),
            // A region that only one player can use does not count.
            ([(0, 100), (101, 100)], "us"),
        ] {
            let [first, second] = latencies;
            for order in [[first, second], [second, first]] {
                let entries: Vec<_> = (1..).zip(order).map(|(seq, (eu, us))| entry(seq, 0, eu, us)).collect();
                assert_eq!(matches(&queue(2), &entries, 10), [format!("{region}: p1 p2")], "{order:?}");
            }
        }
    }

    #[test]
    fn a_proposal_has_the_latencies_of_each_region_that_all_its_players_can_use() {
        let entries = [entry(1, 0, 40, 95), entry(2, 0, 60, 59), entry(3, 0, 40, 101), entry(4, 0, 60, 59)];
        let latencies = |proposal: Proposal| serde_json::to_string(&proposal.latencies).unwrap();
        let found: Vec<_> = propose(&queue(2), entries.iter(), 10).into_iter().map(latencies).collect();
        assert_eq!(found, [r#"{"eu":[40,60],"us":[95,59]}"#, r#"{"eu":[40,60]}"#]);
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
