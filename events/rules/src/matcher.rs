//! Makes matches. For each ticket, the oldest first, it tries possible matches within a number of steps, so it may miss one
//! in a large pool. For up to 12 tickets and usual rule sets, the steps are enough to try all. Matches of more than 40 players
//! with the strategy `balanced` are built ticket by ticket. Every match satisfies the rule set.
//!
//! What is found depends on the pool, the time and a seed only, so that a decision can be repeated later.

mod balanced;
mod batches;

use std::{cmp::Ordering, collections::VecDeque};

use crate::{
    evaluate::{Candidate, Evaluation, near, ticket_number},
    expression::{Expression, Function, Teams},
    rule_set::{
        CollectionOperation, Comparator, ExpansionAge, Latency, MAX_SMALL_MATCH, MapKey, NumberAggregation, RuleKind,
        RuleSet, Sort, SortBy, Strategy, Value,
    },
    ticket::{Ticket, aggregate},
};

/// Up to this number of tickets, the search may take [`MAX_STEPS`], otherwise [`FEW_STEPS`].
const EXHAUSTIVE: usize = 12;

/// How many times the search may put a ticket into a team, for each oldest ticket of a match.
const MAX_STEPS: usize = 200_000;
const FEW_STEPS: usize = 2_000;

/// How much work one decision on a pool may take: the number of players whose values are looked at. It bounds the time
/// during which the matchmaker does nothing else, to about a second with a release build.
const DECISION_WORK: usize = 500_000;

/// A match.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    /// The tickets of each team, as indices of the pool. Teams are in the order of [`RuleSet::teams`].
    pub teams: Vec<Vec<usize>>,
    /// Why it satisfies the rule set.
    pub evaluation: Evaluation,
}

/// Why tickets cannot be in one match, with any other tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exclusion {
    /// This rule can no longer hold; the index is one of [`RuleSet::rules`].
    Rule(usize),
    /// There is no location to which all of their players have a latency.
    Location,
}

impl RuleSet {
    /// Makes matches until none is found. Each ticket is in at most one match.
    pub fn matches(&self, pool: &[Ticket], now_ms: i64) -> Vec<Match> {
        self.matches_within(pool, now_ms, 0, &mut Budget { matches: usize::MAX, work: usize::MAX })
    }

    /// Makes matches within a budget. Oldest tickets come first until half of the work is done; the others follow
    /// in an order that depends on the seed. So tickets that cannot be matched do not keep the others from being tried.
    fn matches_within(&self, pool: &[Ticket], now_ms: i64, seed: u64, budget: &mut Budget) -> Vec<Match> {
        let mut waiting: Vec<usize> = (0..pool.len()).collect();
        // The sort is stable: of two tickets of the same age, the first one in the pool counts as older.
        waiting.sort_by_key(|index| pool.get(*index).map(|ticket| ticket.since_ms));
        let mut anchors = VecDeque::from(waiting.clone());
        let (half, mut shuffled) = (budget.work / 2, false);
        let mut matches = Vec::new();
        while budget.matches > 0
            && budget.work > 0
            && let Some(anchor) = anchors.pop_front()
        {
            if budget.work < half && !shuffled {
                shuffled = true;
                anchors.make_contiguous().sort_by_cached_key(|index| batches::mixed(seed, *index));
            }
            let Some(position) = waiting.iter().position(|index| *index == anchor) else { continue };
            let younger = waiting.get(position + 1..).unwrap_or_default();
            if let Some(found) = self.match_of(pool, anchor, younger, now_ms, &mut budget.work) {
                waiting.retain(|index| !found.teams.iter().flatten().any(|matched| matched == index));
                matches.push(found);
                budget.matches -= 1;
            }
        }
        matches
    }

    /// The best match of a ticket, the anchor, with tickets that are not older. `younger` begins with the oldest.
    fn match_of(
        &self,
        pool: &[Ticket],
        anchor: usize,
        younger: &[usize],
        now_ms: i64,
        work: &mut usize,
    ) -> Option<Match> {
        let first = pool.get(anchor)?;
        *work = work.saturating_sub(younger.len());
        let possible =
            |index: &&usize| pool.get(**index).is_some_and(|other| self.exclusion(&[first, other], now_ms).is_none());
        let younger: Vec<usize> = younger.iter().filter(possible).copied().collect();
        if self.match_size() > MAX_SMALL_MATCH
            && let Strategy::Balanced { attribute, preference } = self.algorithm.strategy
        {
            return self.balanced(pool, (anchor, &younger), (attribute, preference), now_ms, work);
        }
        let mut order = younger;
        order.sort_by(|one, other| match (pool.get(*one), pool.get(*other)) {
            (Some(one), Some(other)) => self.order(first, one, other, now_ms),
            _ => Ordering::Equal,
        });
        order.insert(0, anchor);
        let sizes = order.iter().map(|index| pool.get(*index).map_or(0, |ticket| ticket.players.len()));
        let mut rest: Vec<usize> = sizes
            .rev()
            .scan(0, |sum, size| {
                *sum += size;
                Some(*sum)
            })
            .collect();
        rest.reverse();
        let steps = if order.len() <= EXHAUSTIVE { MAX_STEPS } else { FEW_STEPS };
        let candidate = Candidate { teams: vec![Vec::new(); self.teams.len()] };
        let teams = vec![Vec::new(); self.teams.len()];
        let mut search = Search {
            rule_set: self,
            pool,
            order,
            now_ms,
            candidate,
            teams,
            positions: Vec::new(),
            rest,
            steps,
            work: 0,
            least: self.least(),
            most: usize::try_from(self.match_size()).unwrap_or(usize::MAX),
            best: None,
        };
        search.add(0, 0);
        *work = work.saturating_sub(search.work);
        search.best.map(|best| best.found)
    }

    /// The least number of players of a match, at any age.
    fn least(&self) -> usize {
        let least = self.definitions.iter().map(|of| {
            let min = of.sizes.all().map(|(_, sizes)| sizes.min).min().unwrap_or_default();
            usize::try_from(min.saturating_mul(of.quantity)).unwrap_or_default()
        });
        least.sum()
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
        // The rules that only get worse do not depend on who is in which team.
        self.excluded(&Candidate { teams: vec![tickets.to_vec()] }, now_ms)
    }

    /// Why a candidate can never become a match, even with more tickets: a rule that further tickets cannot satisfy, or no
    /// common location.
    fn excluded(&self, candidate: &Candidate<'_>, now_ms: i64) -> Option<Exclusion> {
        let age = self.age(candidate.tickets(), now_ms);
        let mut locations: Option<Vec<&str>> = None;
        if candidate.needs_location() {
            let common = candidate.locations();
            if common.is_empty() {
                return Some(Exclusion::Location);
            }
            locations = Some(common);
        }
        for (index, rule) in self.rules.iter().enumerate().filter(|(_, rule)| !rule.in_compound) {
            // A younger ticket makes the match younger, so every earlier stage is possible.
            let stages: Vec<&RuleKind> = match self.algorithm.expansion_age {
                ExpansionAge::Newest => rule.kind.up_to(age).collect(),
                ExpansionAge::Oldest => vec![rule.kind.at(age)],
            };
            if stages.iter().all(|kind| self.only_worsens(kind) && !self.holds(kind, candidate)) {
                return Some(Exclusion::Rule(index));
            }
            if stages.iter().all(|kind| matches!(kind, RuleKind::Latency(_))) {
                let possible = |location: &&str| {
                    stages.iter().any(|kind| match kind {
                        RuleKind::Latency(latency) => {
                            // The distance can become smaller: the least and the average change.
                            let without = Latency { distance: None, ..latency.clone() };
                            near(&without, candidate, location)
                        }
                        _ => true,
                    })
                };
                let left: Vec<_> = locations.take().unwrap_or_default().into_iter().filter(possible).collect();
                if left.is_empty() {
                    return Some(Exclusion::Rule(index));
                }
                locations = Some(left);
            }
        }
        None
    }

    /// Whether a rule that does not hold cannot hold with more tickets either.
    fn only_worsens(&self, kind: &RuleKind) -> bool {
        match kind {
            RuleKind::BatchDistance(_) => true,
            RuleKind::Comparison(rule) => {
                let across =
                    rule.reference.is_none() && matches!(rule.operation, Comparator::Equal | Comparator::NotEqual);
                across && rule.measurements.iter().all(is_of_players)
            }
            RuleKind::Collection(rule) => match rule.operation {
                // The lists of a team that is still empty have nothing in common, but a player can change that.
                CollectionOperation::Intersection => {
                    rule.max.is_none() && rule.measurements.iter().all(|of| self.is_of_all_players(of))
                }
                CollectionOperation::Contains(_) => {
                    rule.min.is_none() && rule.max.is_some() && rule.measurements.iter().all(is_of_players)
                }
                CollectionOperation::ReferenceIntersectionCount(_) => false,
            },
            RuleKind::Distance(_) | RuleKind::Latency(_) | RuleKind::Compound(_) | RuleKind::Sort(_) => false,
        }
    }

    /// Whether an expression is one list of the lists of all players.
    fn is_of_all_players(&self, expression: &Expression) -> bool {
        let teams = match expression.path().teams {
            Teams::Together => self.teams.len(),
            Teams::One(_) => 1,
            Teams::Several(ref teams) => teams.len(),
        };
        teams == self.teams.len() && expression.depth() == 2 && is_of_players(expression)
    }
}

/// Whether an expression is a list of the players' values, to which a further player only adds.
fn is_of_players(expression: &Expression) -> bool {
    match expression {
        Expression::Call(Function::Flatten, of) => is_of_players(of),
        Expression::Call(..) => false,
        Expression::Path(_) => true,
    }
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

/// What is left for a decision.
struct Budget {
    matches: usize,
    work: usize,
}

/// The best match so far.
struct Best {
    players: usize,
    /// The positions of its tickets in [`Search::order`], ascending.
    positions: Vec<usize>,
    /// From this index on, no positions could be smaller.
    settled: usize,
    found: Match,
}

/// A search for the best match of one anchor: the one with the most players, and of these the one with the tickets that
/// come first.
struct Search<'r> {
    rule_set: &'r RuleSet,
    pool: &'r [Ticket],
    /// The anchor, and the others in the order in which they are tried.
    order: Vec<usize>,
    now_ms: i64,
    /// What has been put together so far: tickets, their indices of the pool, and their positions in `order`.
    candidate: Candidate<'r>,
    teams: Vec<Vec<usize>>,
    positions: Vec<usize>,
    /// For each position, the number of players from it on.
    rest: Vec<usize>,
    /// How many more times a ticket may be added.
    steps: usize,
    /// The number of players of all candidates so far.
    work: usize,
    /// The least and the greatest number of players of a match, at any age.
    least: usize,
    most: usize,
    best: Option<Best>,
}

impl<'r> Search<'r> {
    /// Adds tickets from the position `next` on, in all ways. `players` is the number of players so far.
    fn add(&mut self, next: usize, players: usize) {
        self.consider(players);
        if players >= self.most {
            return;
        }
        for position in next..self.order.len() {
            // The anchor is in every match.
            if next == 0 && position > 0 {
                return;
            }
            let rest = self.rest.get(position).copied().unwrap_or_default();
            let Some((index, ticket)) =
                self.order.get(position).and_then(|index| Some((*index, self.pool.get(*index)?)))
            else {
                return;
            };
            for team in self.teams_with_room(ticket) {
                if self.steps == 0 || !self.can_improve(position, players + rest) {
                    return;
                }
                self.steps -= 1;
                self.work += players + ticket.players.len();
                self.put(team, index, ticket);
                self.positions.push(position);
                if self.rule_set.excluded(&self.candidate, self.now_ms).is_none() {
                    self.add(position + 1, players + ticket.players.len());
                }
                self.positions.pop();
                self.take_back(team);
            }
        }
    }

    /// Whether a ticket at this or a later position can lead to a better match, with at most so many players.
    fn can_improve(&self, position: usize, players: usize) -> bool {
        let players = players.min(self.most);
        let Some(best) = &self.best else { return players >= self.least };
        match players.cmp(&best.players) {
            Ordering::Less => false,
            Ordering::Greater => true,
            Ordering::Equal => {
                let own = self.positions.iter().chain([&position]);
                match own.cmp(best.positions.iter().take(self.positions.len() + 1)) {
                    Ordering::Less => true,
                    Ordering::Equal => self.positions.len() + 1 < best.settled,
                    Ordering::Greater => false,
                }
            }
        }
    }

    fn put(&mut self, team: usize, index: usize, ticket: &'r Ticket) {
        if let (Some(tickets), Some(indices)) = (self.candidate.teams.get_mut(team), self.teams.get_mut(team)) {
            tickets.push(ticket);
            indices.push(index);
        }
    }

    fn take_back(&mut self, team: usize) {
        if let (Some(tickets), Some(indices)) = (self.candidate.teams.get_mut(team), self.teams.get_mut(team)) {
            tickets.pop();
            indices.pop();
        }
    }

    /// Makes the candidate the best match if it satisfies the rules and is better than the best one so far.
    fn consider(&mut self, players: usize) {
        let better = self
            .best
            .as_ref()
            .is_none_or(|best| players.cmp(&best.players).then_with(|| best.positions.cmp(&self.positions)).is_gt());
        if players < self.least.max(1) || !better {
            return;
        }
        let evaluation = self.rule_set.evaluate(&self.candidate, self.now_ms);
        if evaluation.holds {
            let positions = self.positions.clone();
            let gap = positions.windows(2).rposition(|pair| matches!(pair, [one, next] if one + 1 < *next));
            let settled = gap.map_or(1, |index| index + 2);
            let found = Match { teams: self.teams.clone(), evaluation };
            self.best = Some(Best { players, positions, settled, found });
        }
    }

    /// The teams that have room for a ticket, those with the most free places first. Of several empty teams of the same
    /// definition only the first one, unless a rule treats them differently.
    fn teams_with_room(&self, ticket: &Ticket) -> Vec<usize> {
        let rule_set = self.rule_set;
        let mut teams = Vec::new();
        for (index, team) in rule_set.teams.iter().enumerate() {
            let Some(definition) = rule_set.definitions.get(team.definition) else { continue };
            let max = definition.sizes.all().map(|(_, sizes)| sizes.max).max().unwrap_or_default();
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            let size = self.candidate.size(index);
            let twin = |other: &(usize, usize)| {
                size == 0
                    && self.candidate.size(other.1) == 0
                    && rule_set.teams.get(other.1).is_some_and(|other| other.definition == team.definition)
                    && !rule_set.names_single_teams()
            };
            if size + ticket.players.len() <= max && !teams.iter().any(twin) {
                teams.push((max - size, index));
            }
        }
        teams.sort_by_key(|(free, index)| (std::cmp::Reverse(*free), *index));
        teams.into_iter().map(|(_, index)| index).collect()
    }
}

impl RuleSet {
    /// Whether an expression names some of the teams of a definition, so that these are not interchangeable.
    fn names_single_teams(&self) -> bool {
        let whole = |expression: &Expression| match &expression.path().teams {
            Teams::Together => true,
            Teams::One(team) => {
                let definition = self.teams.get(*team).and_then(|team| self.definitions.get(team.definition));
                definition.is_some_and(|definition| definition.quantity == 1)
            }
            Teams::Several(teams) => {
                let definition = |team: usize| self.teams.get(team).map(|team| team.definition);
                teams.iter().all(|team| {
                    (0..self.teams.len()).all(|other| definition(other) != definition(*team) || teams.contains(&other))
                })
            }
        };
        self.rules.iter().flat_map(|rule| rule.kind.all()).any(|(_, kind)| !kind.expressions().into_iter().all(whole))
    }
}
