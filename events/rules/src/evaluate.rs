//! Whether a match satisfies a rule set.

use std::collections::HashSet;

use crate::{
    expression::{Expression, Function, Path, Property, Teams},
    rule_set::{
        BatchDistance, Collection, CollectionOperation, Comparator, Comparison, Distance, DistanceReference,
        ExpansionAge, Latency, ListAggregation, ListReference, NumberAggregation, Reference, RuleKind, RuleSet, Value,
    },
    ticket::{Ticket, accepts, aggregate, sum},
};

/// A possible match: the tickets of each team, in the order of [`RuleSet::teams`].
#[derive(Debug, Clone)]
pub struct Candidate<'t> {
    pub teams: Vec<Vec<&'t Ticket>>,
}

/// Whether a candidate satisfies a rule set.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The age of the match in seconds, which decides about expansions.
    pub age: u64,
    /// Whether each team has an allowed number of players.
    pub sizes: bool,
    /// The rules that hold in no location, as indices of [`RuleSet::rules`]. A rule in a compound rule is not here.
    pub failed: Vec<usize>,
    /// The best location in which all rules hold. `None` if there is none, or if no location is known to all players.
    pub location: Option<String>,
    /// Whether the candidate may become a match.
    pub holds: bool,
}

impl<'t> Candidate<'t> {
    /// All tickets, team by team.
    pub fn tickets(&self) -> impl Iterator<Item = &'t Ticket> {
        self.teams.iter().flatten().copied()
    }

    /// The number of players in a team.
    pub fn size(&self, team: usize) -> usize {
        self.teams.get(team).map_or(0, |tickets| tickets.iter().map(|ticket| ticket.players.len()).sum())
    }

    /// Whether a location is needed although no rule is about latency: the game server must start somewhere.
    pub(crate) fn needs_location(&self) -> bool {
        self.tickets().flat_map(|ticket| &ticket.players).any(|player| !player.latencies.is_empty())
    }

    /// The locations for which each player has a latency, in alphabetical order.
    pub(crate) fn locations(&self) -> Vec<&'t str> {
        let players = || self.tickets().flat_map(|ticket| &ticket.players);
        let Some(first) = players().next() else { return Vec::new() };
        let known = |location: &&str| players().all(|player| player.latencies.get(location).is_some());
        first.latencies.locations().filter(known).collect()
    }

    /// The greatest latency of a player to a location, and the sum of all players' latencies.
    fn latencies(&self, location: &str) -> (f64, f64) {
        let players = self.tickets().flat_map(|ticket| ticket.players.iter());
        let latencies: Vec<f64> = players.filter_map(|player| player.latencies.get(location)).collect();
        (latencies.iter().copied().fold(0.0, f64::max), sum(&latencies))
    }
}

impl RuleSet {
    /// The age of a match: that of its newest or of its oldest ticket, in seconds.
    pub fn age<'t>(&self, tickets: impl Iterator<Item = &'t Ticket>, now_ms: i64) -> u64 {
        let ages = tickets.map(|ticket| ticket.age(now_ms));
        let age = match self.algorithm.expansion_age {
            ExpansionAge::Newest => ages.min(),
            ExpansionAge::Oldest => ages.max(),
        };
        age.unwrap_or_default()
    }

    /// Evaluates all rules on a candidate.
    pub fn evaluate(&self, candidate: &Candidate<'_>, now_ms: i64) -> Evaluation {
        let age = self.age(candidate.tickets(), now_ms);
        let sizes = candidate.teams.len() == self.teams.len()
            && (0..self.teams.len()).all(|team| {
                let (sizes, size) = (self.sizes(team, age), candidate.size(team));
                u32::try_from(size).is_ok_and(|size| (sizes.min..=sizes.max).contains(&size))
            });
        let locations = candidate.locations();
        let uses_latency = self.rules.iter().any(|rule| matches!(rule.kind.at(age), RuleKind::Latency(_)));
        // Without a latency rule, what holds does not depend on the location.
        let places: Vec<Option<&str>> = if uses_latency && !locations.is_empty() {
            locations.iter().copied().map(Some).collect()
        } else {
            vec![None]
        };
        let outcomes: Vec<_> = places.iter().map(|place| self.outcomes(candidate, age, *place)).collect();
        let counted = self.rules.iter().enumerate().filter(|(_, rule)| !rule.in_compound).map(|(index, _)| index);
        let counted: Vec<_> = counted.collect();
        let holds_at = |outcome: &Vec<bool>, rule: &usize| outcome.get(*rule).copied().unwrap_or_default();
        let failed = counted.iter().filter(|rule| !outcomes.iter().any(|outcome| holds_at(outcome, rule)));
        let failed: Vec<_> = failed.copied().collect();
        let good = outcomes.iter().map(|outcome| counted.iter().all(|rule| holds_at(outcome, rule)));
        let good: Vec<_> = places.iter().zip(good).filter(|(_, good)| *good).map(|(place, _)| *place).collect();
        let possible: Vec<_> = if uses_latency { good.iter().flatten().copied().collect() } else { locations };
        let best = possible.into_iter().map(|location| (candidate.latencies(location), location));
        let best = best.min_by(|((worst, sum), name), ((other_worst, other_sum), other)| {
            worst.total_cmp(other_worst).then(sum.total_cmp(other_sum)).then(name.cmp(other))
        });
        // A latency rule needs a location, even if a compound rule holds without it.
        let possible = !good.is_empty() && (!(uses_latency || candidate.needs_location()) || best.is_some());
        let holds = sizes && possible;
        let location = best.map(|(_, location)| location.to_owned()).filter(|_| possible);
        Evaluation { age, sizes, failed, location, holds }
    }

    /// Whether the rules hold that do not depend on the location or on other rules. Faster than [`Self::evaluate`] if one
    /// of them does not.
    pub(crate) fn could_hold(&self, candidate: &Candidate<'_>, age: u64) -> bool {
        self.rules.iter().filter(|rule| !rule.in_compound).all(|rule| self.holds(rule.kind.at(age), candidate))
    }

    /// Whether each rule holds in a location.
    fn outcomes(&self, candidate: &Candidate<'_>, age: u64, location: Option<&str>) -> Vec<bool> {
        let mut outcomes: Vec<bool> = Vec::new();
        for rule in &self.rules {
            let kind = rule.kind.at(age);
            let holds = match kind {
                // A compound rule stands behind the rules that it names.
                RuleKind::Compound(statement) => {
                    statement.holds(&|rule| outcomes.get(rule).copied().unwrap_or_default())
                }
                RuleKind::Latency(latency) => location.is_some_and(|location| near(latency, candidate, location)),
                kind => self.holds(kind, candidate),
            };
            outcomes.push(holds);
        }
        outcomes
    }

    /// Whether a rule holds that does not depend on the location or on other rules.
    pub(crate) fn holds(&self, kind: &RuleKind, candidate: &Candidate<'_>) -> bool {
        match kind {
            RuleKind::Comparison(rule) => {
                // Players who are compared with each other are not replaced by their ticket.
                let numbers = rule.reference.as_ref().map(|_| rule.party);
                Values { candidate, numbers, lists: ListAggregation::Union }.compare(rule)
            }
            RuleKind::Distance(rule) => {
                Values { candidate, numbers: Some(rule.party), lists: ListAggregation::Union }.distance(rule)
            }
            RuleKind::Collection(rule) => Values { candidate, numbers: None, lists: rule.party }.collect(rule),
            RuleKind::BatchDistance(rule) => similar(rule, candidate),
            RuleKind::Sort(_) | RuleKind::Compound(_) | RuleKind::Latency(_) => true,
        }
    }
}

/// Whether a location is near enough for all tickets.
pub(crate) fn near(rule: &Latency, candidate: &Candidate<'_>, location: &str) -> bool {
    if !candidate.tickets().all(|ticket| accepts(rule, ticket, location)) {
        return false;
    }
    let Some((max, reference)) = rule.distance else { return true };
    let latencies: Vec<_> = candidate.tickets().filter_map(|ticket| ticket.latency(location, rule.party)).collect();
    let reference = match reference {
        DistanceReference::Min => aggregate(&latencies, NumberAggregation::Min),
        DistanceReference::Avg => aggregate(&latencies, NumberAggregation::Avg),
    };
    reference.is_some_and(|reference| latencies.iter().all(|latency| (latency - reference).abs() <= max))
}

/// Whether the tickets have the same text, or numbers that are near each other.
fn similar(rule: &BatchDistance, candidate: &Candidate<'_>) -> bool {
    let mut texts = candidate.tickets().flat_map(|ticket| &ticket.players).filter_map(|player| {
        match player.values.get(rule.attribute) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    });
    let Some(max) = rule.max else {
        let first = texts.next();
        return texts.all(|text| Some(text) == first);
    };
    let numbers = candidate.tickets().filter_map(|ticket| ticket_number(ticket, rule.attribute, rule.party));
    let bounds = numbers.fold(None, |bounds: Option<(f64, f64)>, number| {
        let (least, most) = bounds.unwrap_or((number, number));
        Some((f64::min(least, number), f64::max(most, number)))
    });
    bounds.is_none_or(|(least, most)| most - least <= max)
}

/// The aggregate of a ticket's numbers.
pub(crate) fn ticket_number(ticket: &Ticket, attribute: usize, party: NumberAggregation) -> Option<f64> {
    let numbers = ticket.players.iter().map(|player| match player.values.get(attribute) {
        Some(Value::Number(number)) => Some(*number),
        _ => None,
    });
    aggregate(&numbers.collect::<Option<Vec<_>>>()?, party)
}

/// The value of an expression. Players and teams are only counted.
#[derive(Debug, Clone, PartialEq)]
enum Data<'v> {
    Number(f64),
    Text(&'v str),
    Thing,
    List(Vec<Data<'v>>),
}

/// Evaluates expressions. A ticket's players all have the ticket's aggregate, and each counts by itself.
struct Values<'v> {
    candidate: &'v Candidate<'v>,
    /// `None`: each player has their own number.
    numbers: Option<NumberAggregation>,
    lists: ListAggregation,
}

impl<'v> Values<'v> {
    fn compare(&self, rule: &'v Comparison) -> bool {
        let reference = match &rule.reference {
            None => return rule.measurements.iter().all(|measurement| self.across(measurement, rule.operation)),
            Some(reference) => self.reference(reference),
        };
        let Some(reference) = reference else { return false };
        let fits = |value: &Data<'_>| match (value, &reference) {
            (Data::Number(value), Data::Number(reference)) => match rule.operation {
                Comparator::Less => value < reference,
                Comparator::LessOrEqual => value <= reference,
                Comparator::Equal => value == reference,
                Comparator::NotEqual => value != reference,
                Comparator::GreaterOrEqual => value >= reference,
                Comparator::Greater => value > reference,
            },
            (value, reference) => match rule.operation {
                Comparator::Equal => value == reference,
                Comparator::NotEqual => value != reference,
                Comparator::Less | Comparator::LessOrEqual | Comparator::GreaterOrEqual | Comparator::Greater => false,
            },
        };
        rule.measurements
            .iter()
            .all(|measurement| self.data(measurement).is_some_and(|data| leaves(&data).into_iter().all(fits)))
    }

    /// Whether all values are equal, or all different.
    fn across(&self, measurement: &'v Expression, operation: Comparator) -> bool {
        let Some(data) = self.data(measurement) else { return false };
        let leaves = leaves(&data);
        let mut pairs = leaves.iter().enumerate();
        let mut differing =
            pairs.clone().flat_map(|(index, one)| leaves.iter().skip(index + 1).map(move |other| one != other));
        match operation {
            Comparator::Equal => pairs.all(|(_, one)| leaves.first() == Some(one)),
            Comparator::NotEqual => differing.all(|different| different),
            Comparator::Less | Comparator::LessOrEqual | Comparator::GreaterOrEqual | Comparator::Greater => false,
        }
    }

    fn distance(&self, rule: &'v Distance) -> bool {
        let Some(Data::Number(reference)) = self.reference(&rule.reference) else { return false };
        let fits = |value: &Data<'_>| match value {
            Data::Number(value) => {
                let distance = (value - reference).abs();
                rule.min.is_none_or(|min| distance >= min) && rule.max.is_none_or(|max| distance <= max)
            }
            Data::Text(_) | Data::Thing | Data::List(_) => false,
        };
        let mut measurements = rule.measurements.iter();
        measurements.all(|measurement| self.data(measurement).is_some_and(|data| leaves(&data).into_iter().all(fits)))
    }

    fn collect(&self, rule: &'v Collection) -> bool {
        let fits = |count: usize| match (rule.min, rule.max) {
            (None, None) => count > 0,
            (min, max) => {
                let count = u32::try_from(count).unwrap_or(u32::MAX);
                min.is_none_or(|min| count >= min) && max.is_none_or(|max| count <= max)
            }
        };
        let reference: Option<Vec<&str>> = match &rule.operation {
            CollectionOperation::ReferenceIntersectionCount(ListReference::Texts(texts)) => {
                Some(texts.iter().map(String::as_str).collect())
            }
            CollectionOperation::ReferenceIntersectionCount(ListReference::Expression(expression)) => {
                self.data(expression).map(|data| texts(&data))
            }
            CollectionOperation::Intersection | CollectionOperation::Contains(_) => Some(Vec::new()),
        };
        let Some(reference) = reference else { return false };
        rule.measurements.iter().all(|measurement| {
            let (Some(data), depth) = (self.data(measurement), measurement.depth()) else { return false };
            groups(&data, depth).iter().all(|lists| match &rule.operation {
                CollectionOperation::Intersection => fits(common(lists).len()),
                CollectionOperation::Contains(wanted) if depth == 1 => {
                    fits(lists.iter().flatten().filter(|text| *text == wanted).count())
                }
                CollectionOperation::Contains(wanted) => {
                    fits(lists.iter().filter(|list| list.contains(&wanted.as_str())).count())
                }
                CollectionOperation::ReferenceIntersectionCount(_) => {
                    // A flat list of several players may have a text twice. It counts once.
                    let known = |list: &Vec<_>| distinct(list).iter().filter(|text| reference.contains(text)).count();
                    lists.iter().all(|list| fits(known(list)))
                }
            })
        })
    }

    fn reference(&self, reference: &'v Reference) -> Option<Data<'v>> {
        match reference {
            Reference::Number(number) => Some(Data::Number(*number)),
            Reference::Text(text) => Some(Data::Text(text)),
            Reference::Expression(expression) => self.data(expression),
        }
    }

    /// The value of an expression. `None` if a function in it has no value: the average of nothing.
    fn data(&self, expression: &Expression) -> Option<Data<'v>> {
        match expression {
            Expression::Path(path) => Some(self.path(path)),
            Expression::Call(function, of) => call(*function, self.data(of)?, of.depth()),
        }
    }

    fn path(&self, path: &Path) -> Data<'v> {
        match &path.teams {
            Teams::One(team) => self.team(*team, path.property),
            Teams::Several(teams) => Data::List(teams.iter().map(|team| self.team(*team, path.property)).collect()),
            Teams::Together => {
                let teams = (0..self.candidate.teams.len()).map(|team| self.team(team, path.property));
                Data::List(teams.flat_map(elements).collect())
            }
        }
    }

    fn team(&self, team: usize, property: Property) -> Data<'v> {
        if property == Property::Team {
            return Data::Thing;
        }
        let tickets = self.candidate.teams.get(team).into_iter().flatten();
        let players = tickets.flat_map(|ticket| ticket.players.iter().map(move |player| (*ticket, player)));
        let values = players.map(|(ticket, player)| match property {
            Property::Team | Property::Players => Data::Thing,
            Property::PlayerIds => Data::Text(&player.id),
            Property::Attribute(attribute) => match player.values.get(attribute) {
                Some(Value::Number(own)) => {
                    let ticket = self.numbers.and_then(|party| ticket_number(ticket, attribute, party));
                    Data::Number(ticket.unwrap_or(*own))
                }
                Some(Value::Text(text)) => Data::Text(text),
                Some(Value::TextList(_)) => {
                    Data::List(self.ticket_list(ticket, attribute).into_iter().map(Data::Text).collect())
                }
                // An expression cannot name a map.
                Some(Value::NumberMap(_)) | None => Data::Thing,
            },
        });
        Data::List(values.collect())
    }

    fn ticket_list(&self, ticket: &'v Ticket, attribute: usize) -> Vec<&'v str> {
        let mut lists = ticket.players.iter().filter_map(|player| match player.values.get(attribute) {
            Some(Value::TextList(list)) => Some(list),
            _ => None,
        });
        let texts = |list: &'v Vec<String>| list.iter().map(String::as_str).collect::<Vec<_>>();
        match self.lists {
            ListAggregation::Intersection => common(&lists.map(texts).collect::<Vec<_>>()),
            ListAggregation::Union => {
                let mut union = lists.next().map(texts).unwrap_or_default();
                union.extend(lists.flatten().map(String::as_str));
                distinct(&union)
            }
        }
    }
}

fn elements(data: Data<'_>) -> Vec<Data<'_>> {
    match data {
        Data::List(elements) => elements,
        other => vec![other],
    }
}

/// The values inside of all lists.
fn leaves<'d, 'v>(data: &'d Data<'v>) -> Vec<&'d Data<'v>> {
    let mut found = Vec::new();
    add_leaves(data, &mut found);
    found
}

fn add_leaves<'d, 'v>(data: &'d Data<'v>, found: &mut Vec<&'d Data<'v>>) {
    match data {
        Data::List(elements) => elements.iter().for_each(|element| add_leaves(element, found)),
        leaf => found.push(leaf),
    }
}

/// The texts of a list.
fn texts<'v>(data: &Data<'v>) -> Vec<&'v str> {
    let text = |leaf: &Data<'v>| match leaf {
        Data::Text(text) => Some(*text),
        Data::Number(_) | Data::Thing | Data::List(_) => None,
    };
    leaves(data).into_iter().filter_map(text).collect()
}

/// Lists of texts, from lists that are nested `depth` times. If there are more than two levels, those of each team are a
/// group of their own.
fn groups<'v>(data: &Data<'v>, depth: usize) -> Vec<Vec<Vec<&'v str>>> {
    let Data::List(elements) = data else { return Vec::new() };
    match depth {
        0 | 1 => vec![vec![texts(data)]],
        2 => vec![elements.iter().map(texts).collect()],
        _ => elements.iter().flat_map(|element| groups(element, depth - 1)).collect(),
    }
}

/// The texts that are in every list, in the order of the first one.
fn common<'v>(lists: &[Vec<&'v str>]) -> Vec<&'v str> {
    let Some((first, others)) = lists.split_first() else { return Vec::new() };
    let mut texts = distinct(first);
    texts.retain(|text| others.iter().all(|list| list.contains(text)));
    texts
}

/// The texts of a list, each once.
fn distinct<'v>(list: &[&'v str]) -> Vec<&'v str> {
    match list {
        // Most lists are short, and have no text twice.
        [] | [_] => list.to_vec(),
        [one, other] if one != other => list.to_vec(),
        _ => {
            let mut seen = HashSet::new();
            list.iter().filter(|text| seen.insert(**text)).copied().collect()
        }
    }
}

/// Applies a function to a list that is nested `depth` times. If that is deeper than its input, it works on each sublist.
fn call(function: Function, data: Data<'_>, depth: usize) -> Option<Data<'_>> {
    let Data::List(list) = data else { return None };
    let input = match function {
        Function::Flatten => return Some(Data::List(list.into_iter().flat_map(elements).collect())),
        Function::SetIntersection => 2,
        _ => 1,
    };
    if depth > input {
        return list
            .into_iter()
            .map(|element| call(function, element, depth - 1))
            .collect::<Option<_>>()
            .map(Data::List);
    }
    if function == Function::Count {
        return Some(number(list.len()));
    }
    if function == Function::SetIntersection {
        let lists: Vec<_> = list.iter().map(texts).collect();
        return Some(Data::List(common(&lists).into_iter().map(Data::Text).collect()));
    }
    let numbers = list.iter().map(|element| match element {
        Data::Number(number) => Some(*number),
        Data::Text(_) | Data::Thing | Data::List(_) => None,
    });
    statistic(function, &numbers.collect::<Option<Vec<_>>>()?).map(Data::Number)
}

fn number(count: usize) -> Data<'static> {
    #[expect(clippy::cast_precision_loss, reason = "a match has at most 200 players")]
    let number = count as f64;
    Data::Number(number)
}

fn statistic(function: Function, numbers: &[f64]) -> Option<f64> {
    let average = || aggregate(numbers, NumberAggregation::Avg);
    match function {
        Function::Min => aggregate(numbers, NumberAggregation::Min),
        Function::Max => aggregate(numbers, NumberAggregation::Max),
        Function::Avg => average(),
        Function::Sum => Some(sum(numbers)),
        Function::Median => {
            let mut sorted = numbers.to_vec();
            sorted.sort_by(f64::total_cmp);
            let upper = sorted.get(sorted.len() / 2)?;
            let lower = sorted.get((sorted.len() - 1) / 2)?;
            Some((lower + upper) / 2.0)
        }
        Function::Stddev => {
            let average = average()?;
            let squares: Vec<_> = numbers.iter().map(|number| (number - average).powi(2)).collect();
            aggregate(&squares, NumberAggregation::Avg).map(f64::sqrt)
        }
        Function::Count | Function::Flatten | Function::SetIntersection => None,
    }
}
