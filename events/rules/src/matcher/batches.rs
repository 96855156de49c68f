//! Divides a large pool into batches, and makes matches in each. (FlexMatch guide, "Customize the match algorithm".)

use std::{
    cmp::{Ordering, Reverse},
    collections::VecDeque,
};

use super::{Budget, DECISION_STEPS, Match};
use crate::{
    expression::Property,
    rule_set::{NumberAggregation, Rule, RuleKind, RuleSet, Strategy},
    ticket::Ticket,
};

/// The maximum number of tickets in a batch: two matches of the greatest size.
const BATCH: usize = 400;

/// The least size of the batches of a pool that is sorted.
const LEAST_BATCH: usize = 50;

impl RuleSet {
    /// Makes up to `limit` matches of a pool. `ticket` returns the ticket with an index below `count`, or `None` if it
    /// cannot be matched by this rule set. The matches contain these indices. Each ticket is in at most one match.
    ///
    /// A pool of more than 400 tickets is divided into batches: by the attributes of `sorted` batching, otherwise by the
    /// first number that a rule limits the distance of, otherwise at random. The seed decides where the batches begin and
    /// which of them come first. The result depends on nothing but the arguments.
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
        let (mut budget, mut shuffled) = (Budget { matches: limit, steps: DECISION_STEPS }, false);
        let mut matches = Vec::new();
        while budget.matches > 0
            && budget.steps > 0
            && let Some(mut batch) = batches.pop_front()
        {
            if budget.steps < DECISION_STEPS / 2 && !shuffled {
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
        let mut places: Vec<usize> = (0..tickets.len()).collect();
        if places.len() <= BATCH {
            return vec![places];
        }
        let sort_by = match &self.algorithm.strategy {
            Strategy::Exhaustive { sort_by } if !sort_by.is_empty() => sort_by.clone(),
            Strategy::Exhaustive { .. } | Strategy::Balanced { .. } => self.limited_number().into_iter().collect(),
        };
        let size = if sort_by.is_empty() {
            places.sort_by_cached_key(|place| mixed(seed, *place));
            BATCH
        } else {
            places.sort_by(|one, other| match (tickets.get(*one), tickets.get(*other)) {
                (Some((_, one)), Some((_, other))) => compared(&sort_by, one, other),
                _ => Ordering::Equal,
            });
            let size = usize::try_from(self.match_size()).unwrap_or(BATCH);
            (size * 4).clamp(LEAST_BATCH, BATCH)
        };
        // The batches of another seed begin elsewhere, so that neighbours are not always apart.
        let first = usize::try_from(seed).unwrap_or_default() % size;
        let (start, rest) = places.split_at(first.min(places.len()));
        let mut batches: Vec<Vec<usize>> =
            [start].into_iter().chain(rest.chunks(size)).map(<[usize]>::to_vec).collect();
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
