//! Divides a large pool into batches, and makes matches in each. (FlexMatch guide, "Customize the match algorithm".)

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, VecDeque},
};

use super::{Budget, DECISION_WORK, Match};
use crate::{
    expression::Property,
    rule_set::{NumberAggregation, Rule, RuleKind, RuleSet, Strategy},
    ticket::Ticket,
};

/// The maximum number of tickets in a batch: two matches of the maximum size.
const BATCH: usize = 400;

/// The minimum size of the batches of a pool that is sorted.
const LEAST_BATCH: usize = 50;

impl RuleSet {
    /// Makes up to `limit` matches of a pool. `ticket` returns the ticket with an index below `count`, or `None` if it
    /// cannot be matched by this rule set. The matches contain these indices. Each ticket is in at most one match.
    ///
    /// A pool of more than 400 tickets is divided into batches: by location, and then by the attributes of `sorted`
    /// batching, otherwise by the first number whose distance a rule limits, otherwise at random. The seed decides which
    /// of its locations counts for a ticket, where the batches begin and which of them come first. The result depends on
    /// nothing but the arguments.
    pub fn decide(
        &self,
        count: usize,
        ticket: impl Fn(usize) -> Option<Ticket>,
        seed: u64,
        now_ms: i64,
        limit: usize,
    ) -> Vec<Match> {
        let tickets: Vec<(usize, Ticket)> = (0..count).filter_map(|index| Some((index, ticket(index)?))).collect();
        let mut batches = VecDeque::from(self.batches(&tickets, seed));
        let (mut budget, mut shuffled) = (Budget { matches: limit, work: DECISION_WORK }, false);
        let mut matches = Vec::new();
        while budget.matches > 0
            && budget.work > 0
            && let Some(mut batch) = batches.pop_front()
        {
            if budget.work < DECISION_WORK / 2 && !shuffled {
                shuffled = true;
                batches.make_contiguous().sort_by_cached_key(|batch| mixed(seed, batch.first().copied().unwrap_or(0)));
            }
            // The order of the pool decides between tickets of the same age.
            batch.sort_unstable();
            let own: Vec<&(usize, Ticket)> = batch.iter().filter_map(|place| tickets.get(*place)).collect();
            let pool: Vec<Ticket> = own.iter().map(|(_, ticket)| ticket.clone()).collect();
            for found in self.matches_within(&pool, now_ms, seed, &mut budget) {
                let team = |team: Vec<usize>| team.into_iter().filter_map(|index| Some(own.get(index)?.0)).collect();
                matches.push(Match { teams: found.teams.into_iter().map(team).collect(), ..found });
            }
        }
        matches
    }

    /// The batches of a pool, each as places in it. The batch with the newest ticket comes first: what was not possible
    /// before is possible with new tickets.
    fn batches(&self, tickets: &[(usize, Ticket)], seed: u64) -> Vec<Vec<usize>> {
        let places: Vec<usize> = (0..tickets.len()).collect();
        if places.len() <= BATCH {
            return vec![places];
        }
        let sort_by = match &self.algorithm.strategy {
            Strategy::Exhaustive { sort_by } if !sort_by.is_empty() => sort_by.clone(),
            Strategy::Exhaustive { .. } | Strategy::Balanced { .. } => self.limited_number().into_iter().collect(),
        };
        let size = match sort_by.is_empty() {
            true => BATCH,
            false => (usize::try_from(self.match_size()).unwrap_or(BATCH) * 4).clamp(LEAST_BATCH, BATCH),
        };
        let mut by_location: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        for place in places {
            let location = tickets.get(place).and_then(|(_, ticket)| location(ticket, seed, place));
            by_location.entry(location).or_default().push(place);
        }
        // The batches of another seed begin elsewhere, so that neighbours are not always apart.
        let first = usize::try_from(seed).unwrap_or_default() % size;
        let mut batches: Vec<Vec<usize>> = Vec::new();
        for mut places in by_location.into_values() {
            if sort_by.is_empty() {
                places.sort_by_cached_key(|place| mixed(seed, *place));
            } else {
                places.sort_by(|one, other| match (tickets.get(*one), tickets.get(*other)) {
                    (Some((_, one)), Some((_, other))) => compared(&sort_by, one, other),
                    _ => Ordering::Equal,
                });
            }
            let (start, rest) = places.split_at(first.min(places.len()));
            batches.extend([start].into_iter().chain(rest.chunks(size)).map(<[usize]>::to_vec));
        }
        let newest = |batch: &Vec<usize>| {
            let since = batch.iter().filter_map(|place| tickets.get(*place)).map(|(_, ticket)| ticket.since_ms);
            since.max().map(Reverse)
        };
        batches.retain(|batch| !batch.is_empty());
        batches.sort_by_cached_key(newest);
        batches
    }

    /// The first number whose distance a rule limits.
    fn limited_number(&self) -> Option<usize> {
        let of = |rule: &Rule| match rule.kind.at(0) {
            RuleKind::BatchDistance(rule) => rule.max.map(|_| rule.attribute),
            RuleKind::Distance(rule) => rule.measurements.iter().find_map(|of| match of.path().property {
                Property::Attribute(attribute) => Some(attribute),
                _ => None,
            }),
            _ => None,
        };
        self.rules.iter().find_map(of)
    }
}

/// The location by which a ticket is put into a batch. For one half of the seeds it is the nearest one, so that players
/// of a location meet; for the other half a random one, so
/// that a player who can use two locations meets players of both.
fn location(ticket: &Ticket, seed: u64, place: usize) -> Option<&str> {
    let locations: Vec<&str> = ticket.locations().collect();
    if seed % 2 == 1 {
        let count = u64::try_from(locations.len()).unwrap_or_default().max(1);
        let any = usize::try_from(mixed(seed, place) % count).unwrap_or_default();
        return locations.get(any).copied();
    }
    let latency = |location: &&str| ticket.latency(location, NumberAggregation::Max).unwrap_or(f64::MAX);
    locations.into_iter().min_by(|one, other| latency(one).total_cmp(&latency(other)))
}

/// Orders two tickets by some attributes, the most important first.
fn compared(sort_by: &[usize], one: &Ticket, other: &Ticket) -> Ordering {
    let by = |attribute: &usize| {
        let number = |ticket: &Ticket| super::ticket_number(ticket, *attribute, NumberAggregation::Avg);
        match (number(one), number(other)) {
            (Some(one), Some(other)) => one.total_cmp(&other),
            _ => super::text(one, *attribute).cmp(&super::text(other, *attribute)),
        }
    };
    sort_by.iter().map(by).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// A number that looks random, but is the same for the same arguments on every machine and with every build: the
/// recorded seed must give the same order later. (SplitMix64; Steele, Lea and Flood, 2014.)
pub(super) fn mixed(seed: u64, index: usize) -> u64 {
    let step = u64::try_from(index).unwrap_or_default().wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = seed.wrapping_add(step);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, check, rule_set::Value, ticket::PlayerRequest};

    /// Two teams of five with about the same skill.
    fn fives() -> RuleSet {
        let text = r#"{
            "ruleLanguageVersion": "1.0", "playerAttributes": [{"name": "skill", "type": "number"}],
            "teams": [{"name": "a", "minPlayers": 5, "maxPlayers": 5, "quantity": 2}],
            "rules": [{
                "name": "Equal", "type": "distance", "maxDistance": 100,
                "measurements": ["avg(teams[*].players.attributes[skill])"],
                "referenceValue": "avg(flatten(teams[*].players.attributes[skill]))"
            }]
        }"#;
        check(text, Options::default()).rule_set.unwrap()
    }

    /// Tickets of single players, who are spread over regions and skills.
    fn pool(rule_set: &RuleSet, count: usize, regions: usize) -> Vec<Ticket> {
        let player = |index: usize| PlayerRequest {
            id: index.to_string(),
            attributes: [("skill".to_owned(), Value::Number((index * 7 % 1_000) as f64))].into(),
            latencies: [(format!("r{}", index % regions), 20.0)].into(),
        };
        (0..count).map(|index| rule_set.ticket(vec![player(index)], index as i64).unwrap()).collect()
    }

    fn decided(rule_set: &RuleSet, pool: &[Ticket], seed: u64) -> Vec<Match> {
        rule_set.decide(pool.len(), |index| pool.get(index).cloned(), seed, 60_000, 500)
    }

    #[test]
    fn a_large_pool_makes_matches_in_each_region_and_each_seed() {
        let rule_set = fives();
        for (count, regions) in [(401, 1), (401, 12), (3_000, 12)] {
            let pool = pool(&rule_set, count, regions);
            for seed in 0..4 {
                let matches = decided(&rule_set, &pool, seed);
                assert!(matches.len() >= 10, "{count} in {regions}, seed {seed}: {}", matches.len());
                let mut seen: Vec<usize> =
                    matches.iter().flat_map(|found| found.teams.iter().flatten()).copied().collect();
                seen.sort_unstable();
                assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "a ticket is in two matches");
            }
        }
    }

    #[test]
    fn a_decision_depends_on_nothing_but_its_arguments() {
        let rule_set = fives();
        let pool = pool(&rule_set, 1_000, 3);
        assert_eq!(decided(&rule_set, &pool, 7), decided(&rule_set, &pool, 7));
        assert_ne!(decided(&rule_set, &pool, 7), decided(&rule_set, &pool, 8));
        // A recorded decision must be made again in the same way, by every later build.
        assert_eq!([mixed(0, 0), mixed(7, 1)], [16_294_208_416_658_607_535, 309_689_372_594_955_804]);
    }
}
