//! Which match is made of a ticket and younger ones, and what excludes tickets from one match.
//!
//! [`RuleSet::matches`] compares each ticket with all younger ones. Tests use it as the reference. The
//! [engine](crate::engine) compares neighbours only, so the results are equal if all tickets are neighbours.

mod balanced;

use std::cmp::Ordering;

use crate::{
    evaluate::{Candidate, Evaluation, ticket_number},
    plan::Plan,
    rule_set::{Latency, MapKey, NumberAggregation, Rule, RuleKind, RuleSet, Sort, SortBy, Strategy, Value},
    search::{Bounds, Outcome, search},
    ticket::{Ticket, accepts, aggregate},
};

/// A match. `T` says how its tickets are given.
#[derive(Debug, Clone, PartialEq)]
pub struct Match<T> {
    /// The tickets of each team. Teams are in the order of [`RuleSet::teams`].
    pub teams: Vec<Vec<T>>,
    /// Why it satisfies the rule set.
    pub evaluation: Evaluation,
}

impl<T> Match<T> {
    /// The same match with its tickets given in another way. `None` if `other` does not know one of them.
    pub(crate) fn map<U>(self, other: impl Fn(T) -> Option<U>) -> Option<Match<U>> {
        let team = |team: Vec<T>| team.into_iter().map(&other).collect::<Option<Vec<U>>>();
        Some(Match { teams: self.teams.into_iter().map(team).collect::<Option<_>>()?, evaluation: self.evaluation })
    }
}

/// Why tickets cannot be in one match, with any other tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusion {
    /// This rule can no longer hold; the index is one of [`RuleSet::rules`].
    Rule(usize),
    /// There is no location to which all of their players have a latency.
    Location,
}

/// What was found for an anchor.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Tickets are indices: 0 for the anchor, 1 for the first one of the younger ones.
    pub(crate) found: Option<Match<usize>>,
    /// Whether not every match was tried, so that fewer tickets could give another result.
    pub(crate) bounded: bool,
    /// The number of players whose values were looked at.
    pub(crate) work: usize,
}

impl RuleSet {
    /// Makes matches until none is found, each with the oldest ticket that is in a possible match. A ticket is tried with
    /// all younger ones. Takes a time that grows with the square of the pool. The matches contain indices of the pool; of
    /// two tickets of the same age, the first one in the pool counts as older.
    pub fn matches(&self, pool: &[Ticket], now_ms: i64) -> Vec<Match<usize>> {
        let plan = Plan::new(self);
        let mut waiting: Vec<(usize, &Ticket)> = pool.iter().enumerate().collect();
        waiting.sort_by_key(|(_, ticket)| ticket.since_ms);
        let (mut matches, mut next) = (Vec::new(), 0);
        while let Some((anchor, younger)) = waiting.get(next..).and_then(<[_]>::split_first) {
            let fits = |(_, other): &&(usize, &Ticket)| self.exclusion(&[anchor.1, other], now_ms).is_none();
            let order: Vec<_> = std::iter::once(anchor).chain(younger.iter().filter(fits)).copied().collect();
            let tickets: Vec<&Ticket> = order.iter().map(|(_, ticket)| *ticket).collect();
            let attempt = self.match_of(&plan, &tickets, now_ms, Bounds::default());
            let index = |position: usize| order.get(position).map(|(index, _)| *index);
            match attempt.found.and_then(|found| found.map(index)) {
                Some(found) => {
                    waiting.retain(|(index, _)| !found.teams.iter().flatten().any(|matched| matched == index));
                    matches.push(found);
                }
                None => next += 1,
            }
        }
        matches
    }

    /// The best match of the first of these tickets, the anchor. The others are not older, the oldest one comes first, and
    /// none is excluded from a match with the anchor.
    pub(crate) fn match_of(&self, plan: &Plan, tickets: &[&Ticket], now_ms: i64, bounds: Bounds) -> Attempt {
        if let Strategy::Balanced { attribute, preference } = self.algorithm.strategy
            && plan.large
        {
            return self.balanced(plan, tickets, (attribute, preference), now_ms);
        }
        let Some((anchor, younger)) = tickets.split_first() else {
            return Attempt { found: None, bounded: false, work: 0 };
        };
        let mut order: Vec<usize> = (1..=younger.len()).collect();
        order.sort_by(|one, other| match (tickets.get(*one), tickets.get(*other)) {
            (Some(one), Some(other)) => self.order(anchor, one, other, now_ms),
            _ => Ordering::Equal,
        });
        order.insert(0, 0);
        let sorted: Vec<&Ticket> = order.iter().filter_map(|index| tickets.get(*index).copied()).collect();
        let Outcome { best, bounded, work } = search(self, plan, &sorted, now_ms, bounds);
        let found = best.map(|best| Match { teams: best.teams, evaluation: best.evaluation });
        Attempt { found: found.and_then(|found| found.map(|position| order.get(position).copied())), bounded, work }
    }

    /// The order of two tickets behind the anchor: by the sort rules, the first one being the most important. For
    /// tickets that they do not order, the batching decides: by the distance in the sorted pool.
    fn order(&self, anchor: &Ticket, one: &Ticket, other: &Ticket, now_ms: i64) -> Ordering {
        let age = anchor.age(now_ms);
        let sorts = self.rules.iter().filter_map(|rule| match rule.kind.at(age) {
            RuleKind::Sort(sort) => Some(sort),
            _ => None,
        });
        let by_rules = sorts.map(|sort| by_sort(sort, anchor, one, other)).find(|order| order.is_ne());
        let by_batch = || match &self.algorithm.strategy {
            Strategy::Exhaustive { sort_by } => sort_by
                .iter()
                .map(|attribute| by_distance(*attribute, anchor, one, other))
                .find(|order| order.is_ne())
                .unwrap_or(Ordering::Equal),
            Strategy::Balanced { .. } => Ordering::Equal,
        };
        by_rules.unwrap_or_else(by_batch)
    }

    /// What keeps these tickets from being in one match at `now_ms`, with any other tickets. If the newest ticket decides
    /// the age, earlier stages of a rule are considered too, because a younger ticket would make the match younger.
    pub fn exclusion(&self, tickets: &[&Ticket], now_ms: i64) -> Option<Exclusion> {
        let together = Candidate { teams: vec![tickets.to_vec()] };
        let age = self.age(together.tickets(), now_ms);
        let mut locations: Option<Vec<&str>> = None;
        if together.needs_location() {
            let common = together.locations();
            if common.is_empty() {
                return Some(Exclusion::Location);
            }
            locations = Some(common);
        }
        for (index, rule) in self.rules.iter().enumerate().filter(|(_, rule)| !rule.in_compound) {
            let mut stages = self.possible_stages(rule, age);
            let possible = match rule.kind.at(0) {
                RuleKind::Latency(_) => {
                    let accepts = |location: &&str| {
                        self.possible_stages(rule, age).any(|kind| match kind {
                            RuleKind::Latency(latency) => near_all(latency, tickets, location),
                            _ => true,
                        })
                    };
                    let left: Vec<_> = locations.take().unwrap_or_default().into_iter().filter(accepts).collect();
                    let possible = !left.is_empty();
                    locations = Some(left);
                    possible
                }
                _ => stages.any(|kind| !self.excludes_in_every_team(kind) || self.holds(kind, &together)),
            };
            if !possible {
                return Some(Exclusion::Rule(index));
            }
        }
        None
    }

    /// Whether [`Self::exclusion`] finds nothing. Faster, for two tickets of the same bucket of the engine's index.
    pub(crate) fn fit(&self, plan: &Plan, one: &Ticket, other: &Ticket, now_ms: i64) -> bool {
        let age = self.age([one, other].into_iter(), now_ms);
        let rule = |index: &usize| self.rules.get(*index);
        let near = |rule: &Rule| {
            let RuleKind::BatchDistance(of) = rule.kind.at(0) else { return true };
            let number = |ticket| ticket_number(ticket, of.attribute, of.party);
            let (Some(one), Some(other)) = (number(one), number(other)) else { return true };
            self.possible_stages(rule, age).any(|kind| match kind {
                RuleKind::BatchDistance(of) => of.max.is_none_or(|max| (one - other).abs() <= max),
                _ => true,
            })
        };
        if !plan.spans.iter().filter_map(rule).all(near) {
            return false;
        }
        let usable = |location: &str| {
            other.players.iter().all(|player| player.latencies.get(location).is_some())
                && plan.latencies.iter().filter_map(rule).all(|rule| {
                    self.possible_stages(rule, age).any(|kind| match kind {
                        RuleKind::Latency(latency) => near_all(latency, &[one, other], location),
                        _ => true,
                    })
                })
        };
        let has_latencies = |ticket: &Ticket| ticket.players.iter().any(|player| !player.latencies.is_empty());
        let needs_location = !plan.latencies.is_empty() || has_latencies(one) || has_latencies(other);
        if needs_location && !one.locations().any(usable) {
            return false;
        }
        // Single players of a bucket have the same values.
        let is_equal = one.players.len() == 1 && other.players.len() == 1;
        let others = if is_equal { &plan.excluding } else { &plan.excluding_groups };
        if others.is_empty() {
            return true;
        }
        let together = Candidate { teams: vec![vec![one, other]] };
        others.iter().filter_map(rule).all(|rule| {
            let mut stages = self.possible_stages(rule, age);
            stages.any(|kind| !self.excludes_in_every_team(kind) || self.holds(kind, &together))
        })
    }
}

/// Whether a location is near enough for each ticket. The distance from the other tickets does not count: with further
/// tickets, it can become smaller.
fn near_all(rule: &Latency, tickets: &[&Ticket], location: &str) -> bool {
    tickets.iter().all(|ticket| accepts(rule, ticket, location))
}

fn by_sort(sort: &Sort, anchor: &Ticket, one: &Ticket, other: &Ticket) -> Ordering {
    let key = sort.map_key.and_then(|map_key| anchors_key(anchor, sort, map_key));
    let number = |ticket: &Ticket| match &key {
        Some(key) => ticket_map_number(ticket, sort, key),
        None => ticket_number(ticket, sort.attribute, sort.party),
    };
    let value = |ticket: &Ticket| match sort.by {
        SortBy::Value => number(ticket),
        SortBy::Distance => Some((number(ticket)? - number(anchor)?).abs()),
    };
    let order = match (value(one), value(other)) {
        (Some(one), Some(other)) if sort.descending => other.total_cmp(&one),
        (Some(one), Some(other)) => one.total_cmp(&other),
        // A ticket without the key is last.
        (one, other) if sort.map_key.is_some() => other.is_some().cmp(&one.is_some()),
        _ => text(one, sort.attribute).cmp(&text(other, sort.attribute)),
    };
    if sort.descending && value(one).is_none() && sort.map_key.is_none() { order.reverse() } else { order }
}

/// The key of the anchor's least or greatest value; of several the first one by name.
fn anchors_key(anchor: &Ticket, sort: &Sort, map_key: MapKey) -> Option<String> {
    let Some(Value::NumberMap(map)) = anchor.players.first()?.values.get(sort.attribute) else { return None };
    let values = map.keys().filter_map(|key| Some((key, ticket_map_number(anchor, sort, key)?)));
    let best = values.min_by(|(_, one), (_, other)| match map_key {
        MapKey::MinValue => one.total_cmp(other),
        MapKey::MaxValue => other.total_cmp(one),
    });
    best.map(|(key, _)| key.clone())
}

fn ticket_map_number(ticket: &Ticket, sort: &Sort, key: &str) -> Option<f64> {
    let numbers = ticket.players.iter().map(|player| match player.values.get(sort.attribute) {
        Some(Value::NumberMap(map)) => map.get(key).copied(),
        _ => None,
    });
    aggregate(&numbers.collect::<Option<Vec<_>>>()?, sort.party)
}

fn by_distance(attribute: usize, anchor: &Ticket, one: &Ticket, other: &Ticket) -> Ordering {
    let number = |ticket: &Ticket| ticket_number(ticket, attribute, NumberAggregation::Avg);
    match (number(anchor), number(one), number(other)) {
        (Some(anchor), Some(one), Some(other)) => (one - anchor).abs().total_cmp(&(other - anchor).abs()),
        // Texts have no distance: the same text comes first.
        _ => {
            (text(other, attribute) == text(anchor, attribute)).cmp(&(text(one, attribute) == text(anchor, attribute)))
        }
    }
}

/// The text of a ticket's first player.
fn text(ticket: &Ticket, attribute: usize) -> Option<&str> {
    match ticket.players.first()?.values.get(attribute) {
        Some(Value::Text(text)) => Some(text),
        _ => None,
    }
}
