//! A rule set that has passed the check.
//!
//! What an expansion can change is stored as stages: the value at each age at which it changes. So each stage is a
//! whole, checked rule, and nothing has to be combined when a match is evaluated.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{expression::Expression, statement::Statement};

/// Larger matches are "large": only some rules may apply, and `balanced` makes them.
/// (FlexMatch guide, "Design a large-match rule set".)
pub const MAX_SMALL_MATCH: u32 = 40;

/// The maximum number of players in a match (the same page).
pub const MAX_MATCH: u32 = 200;

/// The maximum number of players in a ticket (GameLift API, `StartMatchmaking`).
pub const MAX_TICKET: usize = 10;

/// A rule set that has passed the check.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleSet {
    /// A label without a meaning for matching.
    pub name: Option<String>,
    pub attributes: Vec<Attribute>,
    pub definitions: Vec<TeamDefinition>,
    /// The teams of a match: each definition as often as its quantity says.
    pub teams: Vec<Team>,
    pub algorithm: Algorithm,
    pub rules: Vec<Rule>,
}

/// A value that each player has.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    pub name: String,
    pub kind: AttributeType,
    /// Used for players whose request has no value. Without it, such players cannot be matched.
    pub default: Option<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttributeType {
    Text,
    Number,
    TextList,
    NumberMap,
}

/// The value of an attribute. In JSON it is a number, a text, a list of texts, or an object of numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Text(String),
    Number(f64),
    TextList(Vec<String>),
    NumberMap(BTreeMap<String, f64>),
}

impl Value {
    pub const fn kind(&self) -> AttributeType {
        match self {
            Self::Text(_) => AttributeType::Text,
            Self::Number(_) => AttributeType::Number,
            Self::TextList(_) => AttributeType::TextList,
            Self::NumberMap(_) => AttributeType::NumberMap,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct TeamDefinition {
    pub name: String,
    pub quantity: u32,
    pub sizes: Stages<Sizes>,
}

/// How many players a team may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub min: u32,
    pub max: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Team {
    /// The definition's name, with `_1`, `_2` and so on if it makes several teams.
    pub name: String,
    /// The index in [`RuleSet::definitions`].
    pub definition: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Algorithm {
    pub strategy: Strategy,
    /// Which ticket's age decides about expansions.
    pub expansion_age: ExpansionAge,
    pub backfill: BackfillPriority,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Strategy {
    /// Batches in random order, or sorted by these attributes, the most important first.
    Exhaustive { sort_by: Vec<usize> },
    /// Teams with about the same average of an attribute.
    Balanced { attribute: usize, preference: BatchingPreference },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchingPreference {
    LargestPopulation,
    FastestRegion,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpansionAge {
    Newest,
    Oldest,
}

/// When tickets for free places in running matches are considered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackfillPriority {
    High,
    Normal,
    Low,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    pub name: String,
    pub kind: Stages<RuleKind>,
    /// A compound rule takes the place of this one.
    pub in_compound: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RuleKind {
    Comparison(Comparison),
    Distance(Distance),
    Collection(Collection),
    Latency(Latency),
    Compound(Statement),
    Sort(Sort),
    BatchDistance(BatchDistance),
}

impl RuleKind {
    /// The measurements, and the reference if it is an expression.
    pub(crate) fn expressions(&self) -> Vec<&Expression> {
        let (measurements, reference) = match self {
            Self::Comparison(rule) => (&rule.measurements, rule.reference.as_ref()),
            Self::Distance(rule) => (&rule.measurements, Some(&rule.reference)),
            Self::Collection(rule) => {
                let reference = match &rule.operation {
                    CollectionOperation::ReferenceIntersectionCount(ListReference::Expression(of)) => Some(of),
                    CollectionOperation::ReferenceIntersectionCount(ListReference::Texts(_))
                    | CollectionOperation::Intersection
                    | CollectionOperation::Contains(_) => None,
                };
                return rule.measurements.iter().chain(reference).collect();
            }
            Self::Latency(_) | Self::Compound(_) | Self::Sort(_) | Self::BatchDistance(_) => return Vec::new(),
        };
        let reference = reference.and_then(|reference| match reference {
            Reference::Expression(of) => Some(of),
            Reference::Number(_) | Reference::Text(_) => None,
        });
        measurements.iter().chain(reference).collect()
    }
}

/// Each value of each measurement stands in a relation to the reference; without a reference, the values are all equal
/// or all different.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pub measurements: Vec<Expression>,
    pub operation: Comparator,
    pub reference: Option<Reference>,
    pub party: NumberAggregation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparator {
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
    GreaterOrEqual,
    Greater,
}

/// What a measurement is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Reference {
    Number(f64),
    Text(String),
    Expression(Expression),
}

/// Each number of each measurement is at least and at most this far from the reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Distance {
    pub measurements: Vec<Expression>,
    pub reference: Reference,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub party: NumberAggregation,
}

/// A count of texts in lists is within bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Collection {
    pub measurements: Vec<Expression>,
    pub operation: CollectionOperation,
    pub min: Option<u32>,
    pub max: Option<u32>,
    pub party: ListAggregation,
}

#[derive(Debug, Clone, PartialEq)]
pub enum CollectionOperation {
    /// How many values are in every list.
    Intersection,
    /// How many lists contain the text.
    Contains(String),
    /// For each list by itself, how many of its values are in the reference.
    ReferenceIntersectionCount(ListReference),
}

#[derive(Debug, Clone, PartialEq)]
pub enum ListReference {
    Texts(Vec<String>),
    Expression(Expression),
}

/// The match has a location with these latencies, in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Latency {
    pub max: Option<f64>,
    /// The greatest distance of a ticket's latency from that of all tickets.
    pub distance: Option<(f64, DistanceReference)>,
    pub party: NumberAggregation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DistanceReference {
    Min,
    Avg,
}

/// Orders the tickets behind the oldest one, the anchor. It excludes nobody.
#[derive(Debug, Clone, PartialEq)]
pub struct Sort {
    pub by: SortBy,
    pub descending: bool,
    pub attribute: usize,
    /// For a map: the key of the anchor's least or greatest value.
    pub map_key: Option<MapKey>,
    pub party: NumberAggregation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortBy {
    Value,
    /// The distance from the anchor's value.
    Distance,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKey {
    MinValue,
    MaxValue,
}

/// The tickets of a match differ at most this much, or have the same text.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchDistance {
    pub attribute: usize,
    /// `None` for a text.
    pub max: Option<f64>,
    pub party: NumberAggregation,
}

/// How the numbers of a ticket's players become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberAggregation {
    Avg,
    Min,
    Max,
}

/// How the lists of a ticket's players become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListAggregation {
    Union,
    Intersection,
}

/// Values by age. The first one holds from the age 0 on.
#[derive(Debug, Clone, PartialEq)]
pub struct Stages<T> {
    first: T,
    /// The age in seconds from which on the value holds; ascending.
    later: Vec<(u64, T)>,
}

impl<T> Stages<T> {
    pub(crate) fn new(first: T, later: Vec<(u64, T)>) -> Self {
        Self { first, later }
    }

    /// The value at an age, in seconds.
    pub fn at(&self, age: u64) -> &T {
        let reached = self.later.partition_point(|(from, _)| *from <= age);
        let last = reached.checked_sub(1).and_then(|index| self.later.get(index));
        last.map_or(&self.first, |(_, value)| value)
    }

    /// All values, in the order of their ages, with the age from which on each holds.
    pub fn all(&self) -> impl Iterator<Item = (u64, &T)> {
        std::iter::once((0, &self.first)).chain(self.later.iter().map(|(from, value)| (*from, value)))
    }

    /// The values that can hold up to an age.
    pub fn up_to(&self, age: u64) -> impl Iterator<Item = &T> {
        self.all().take_while(move |(from, _)| *from <= age).map(|(_, value)| value)
    }
}

impl RuleSet {
    /// The sizes of a team at an age, in seconds. `team` is an index of [`teams`](Self::teams).
    pub fn sizes(&self, team: usize, age: u64) -> Sizes {
        let definition = self.teams.get(team).and_then(|team| self.definitions.get(team.definition));
        definition.map_or(Sizes { min: 0, max: 0 }, |definition| *definition.sizes.at(age))
    }

    /// The maximum number of players in a match, at the age at which it is greatest.
    pub fn match_size(&self) -> u32 {
        match_size(&self.definitions)
    }
}

/// See [`RuleSet::match_size`].
pub(crate) fn match_size(definitions: &[TeamDefinition]) -> u32 {
    let ages: BTreeSet<u64> = definitions.iter().flat_map(|of| of.sizes.all()).map(|(age, _)| age).collect();
    let size = |age| definitions.iter().map(|of| of.sizes.at(age).max.saturating_mul(of.quantity)).sum();
    ages.into_iter().map(size).max().unwrap_or_default()
}
