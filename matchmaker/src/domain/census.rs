//! Who waits in a queue, counted by what decides whether two players can be in one match. It answers why a ticket timed
//! out.

use std::collections::HashMap;

use garage_events::{
    player::{Candidates, Excluded, Queued},
    queue::Queue,
};

use super::{WaitingPlayer, rule::band};

/// The waiting players of a queue. To count once and then ask for each ticket keeps a time-out of thousands of tickets
/// cheap: there are few kinds of `Reach`.
#[derive(Debug)]
pub struct Census<'a> {
    queue: &'a Queue,
    count: u32,
    bands: HashMap<i64, HashMap<Reach, u32>>,
}

/// Sets of a queue's regions, one bit per region in the order of the queue. A queue has at most 32 regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Reach {
    /// The regions that the player measured.
    measured: u32,
    /// Those of them whose latency is within the queue's limit.
    usable: u32,
}

impl Reach {
    fn of(queue: &Queue, queued: &Queued) -> Self {
        let mut reach = Self { measured: 0, usable: 0 };
        for (place, (region, max)) in (0..).zip(&queue.regions) {
            let Some(latency) = queued.latencies.get(region) else { continue };
            let bit = 1_u32.checked_shl(place).unwrap_or(0);
            reach.measured |= bit;
            if latency <= max {
                reach.usable |= bit;
            }
        }
        reach
    }
}

impl<'a> Census<'a> {
    /// Counts the players who wait in a queue.
    pub fn of<'b>(queue: &'a Queue, waiting: impl Iterator<Item = &'b WaitingPlayer>) -> Self {
        let mut census = Self { queue, count: 0, bands: HashMap::new() };
        for WaitingPlayer { queued, .. } in waiting {
            let band = census.bands.entry(band(queue, queued.rank)).or_default();
            *band.entry(Reach::of(queue, queued)).or_default() += 1;
            census.count += 1;
        }
        census
    }

    /// The other players from the view of one of the counted players.
    pub fn candidates(&self, queued: &Queued) -> Candidates {
        let own = Reach::of(self.queue, queued);
        let count = self.count.saturating_sub(1);
        let (mut eligible, mut in_band, mut excluded) = (0, 0, Excluded { rank: 0, region: 0, latency: 0 });
        for (reach, players) in self.bands.get(&band(self.queue, queued.rank)).into_iter().flatten() {
            // The census counts the player too.
            let others = if *reach == own { players.saturating_sub(1) } else { *players };
            in_band += others;
            let counter = if reach.usable & own.usable != 0 {
                &mut eligible
            } else if reach.measured & own.measured == 0 {
                &mut excluded.region
            } else {
                &mut excluded.latency
            };
            *counter += others;
        }
        excluded.rank = count.saturating_sub(in_band);
        Candidates { count, eligible, excluded }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use garage_events::{id::TicketId, log::Head};
    use proptest::prelude::*;
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::domain::propose;

    fn queue() -> Queue {
        let regions = [("eu", 100), ("us", 100)].map(|(name, max)| (name.parse().unwrap(), max)).into();
        Queue { players: 2, rank_band: 200, timeout_s: 120, client_rank: false, requeue: true, regions }
    }

    fn player(number: u128, rank: i32, latencies: &[(&str, u32)]) -> WaitingPlayer {
        let latencies = latencies.iter().map(|(region, latency)| (region.parse().unwrap(), *latency));
        WaitingPlayer {
            player: format!("p{number}").parse().unwrap(),
            head: Head { seq: 1, n: 1 },
            queued: Queued {
                ticket: TicketId::new(Uuid::from_u128(number)),
                queue: "ranked".parse().unwrap(),
                rank,
                latencies: latencies.collect(),
                attributes: BTreeMap::new(),
                waiting_since: datetime!(2026-01-01 00:00 UTC),
                expires_at: datetime!(2026-01-01 00:02 UTC),
                requeues: 0,
                absences: 0,
            },
        }
    }

    /// What the first of these players gets to know: count, eligible, and excluded by rank, region and latency.
    fn counts(players: &[WaitingPlayer]) -> [u32; 5] {
        let Candidates { count, eligible, excluded: Excluded { rank, region, latency } } =
            Census::of(&queue(), players.iter()).candidates(&players[0].queued);
        [count, eligible, rank, region, latency]
    }

    #[test]
    fn each_other_player_is_counted_by_the_first_cause_that_excludes_them() {
        let own = || player(1, 50, &[("eu", 20)]);
        for (other, expected) in [
            (player(2, 199, &[("eu", 100)]), [1, 1, 0, 0, 0]),
            (player(2, 200, &[("eu", 20)]), [1, 0, 1, 0, 0]),
            (player(2, 200, &[("us", 20)]), [1, 0, 1, 0, 0]),
            (player(2, 50, &[("us", 20)]), [1, 0, 0, 1, 0]),
            (player(2, 50, &[("mars", 20)]), [1, 0, 0, 1, 0]),
            (player(2, 50, &[("eu", 101)]), [1, 0, 0, 0, 1]),
            (player(2, 50, &[("eu", 101), ("us", 20)]), [1, 0, 0, 0, 1]),
        ] {
            assert_eq!(counts(&[own(), other.clone()]), expected, "{other:?}");
        }
    }

    #[test]
    fn a_player_alone_has_no_candidates() {
        assert_eq!(counts(&[player(1, 50, &[("eu", 20)])]), [0; 5]);
        // A queue's limit may have been lowered after the ticket was made.
        assert_eq!(counts(&[player(1, 50, &[("eu", 500)])]), [0; 5]);
    }

    #[test]
    fn a_region_that_only_one_of_two_players_can_use_excludes_by_latency() {
        let players = [player(1, 0, &[("eu", 20), ("us", 300)]), player(2, 0, &[("eu", 300), ("us", 20)])];
        assert_eq!(counts(&players), [1, 0, 0, 0, 1]);
    }

    proptest! {
        /// For matches of two, a candidate is eligible exactly if the rule would match the two.
        #[test]
        fn the_counts_agree_with_the_rule(
            waiting in prop::collection::vec(
                (-300_i32..300, prop::option::of(0_u32..150), prop::option::of(0_u32..150)), 1..30),
        ) {
            let players: Vec<_> = waiting.iter().zip(1..).map(|((rank, eu, us), number)| {
                let latencies = [("eu", *eu), ("us", *us)];
                let latencies = latencies.into_iter().filter_map(|(region, latency)| Some((region, latency?)));
                player(number, *rank, &latencies.collect::<Vec<_>>())
            }).collect();
            let matched = |other: &&WaitingPlayer| !propose(&queue(), [&players[0], *other].into_iter(), 1).is_empty();
            let expected = players[1..].iter().filter(matched).count();
            let [count, eligible, rank, region, latency] = counts(&players);
            prop_assert_eq!(usize::try_from(eligible).unwrap(), expected);
            prop_assert_eq!(usize::try_from(count).unwrap(), players.len() - 1);
            prop_assert_eq!(count, eligible + rank + region + latency);
        }
    }
}
