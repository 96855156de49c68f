//! What a rule set says about every match, before any ticket is known. The engine and the search use it.

use crate::{
    evaluate::ticket_number,
    expression::{Expression, Function, Property, Teams},
    rule_set::{
        AttributeType, BatchDistance, CollectionOperation, Comparator, ExpansionAge, MAX_SMALL_MATCH,
        NumberAggregation, Rule, RuleKind, RuleSet, SortBy, Strategy, Value,
    },
    ticket::Ticket,
};

/// The least and the greatest number of tickets on each side of a ticket that its search considers.
const LEAST_SIDE: usize = 25;
const MOST_SIDE: usize = 200;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The ages at which something changes, in seconds, ascending, without 0.
    pub(crate) ages: Vec<u64>,
    /// The attributes of which all players of a match have the same value.
    equal: Vec<usize>,
    /// The number that orders the tickets.
    number: Option<OrderingNumber>,
    /// How many tickets on each side of a ticket are its neighbours, in the order of that number.
    pub(crate) side: usize,
    /// The maximum number of players of each team, at any age.
    pub(crate) team_max: Vec<usize>,
    /// The least and the greatest number of players of a match, at any age.
    pub(crate) least: usize,
    pub(crate) most: usize,
    /// Whether all teams of a definition are treated in the same way.
    pub(crate) interchangeable: bool,
    /// The `batchDistance` rules of numbers that each match must satisfy, as indices of [`RuleSet::rules`].
    pub(crate) spans: Vec<usize>,
    /// Rules that a further ticket can only break, apart from `spans` and `equal`, as indices of [`RuleSet::rules`].
    pub(crate) worsening: Vec<usize>,
    /// Rules that can exclude two tickets of the same bucket from one match, if each has one player. Without `spans`
    /// and `latencies`. Indices of [`RuleSet::rules`].
    pub(crate) excluding: Vec<usize>,
    /// The same for tickets of several players: their players may have different values of `equal`.
    pub(crate) excluding_groups: Vec<usize>,
    /// The latency rules that each match must satisfy, as indices of [`RuleSet::rules`].
    pub(crate) latencies: Vec<usize>,
    /// Whether the matches are large: [`RuleSet::balanced`] fills their teams in a few ways, without a search.
    pub(crate) large: bool,
}

/// The number of a ticket by which the index is ordered.
#[derive(Debug, Clone)]
struct OrderingNumber {
    attribute: usize,
    party: NumberAggregation,
    /// Tickets that are further apart cannot be in one match, at any age.
    reach: f64,
}

impl Plan {
    pub(crate) fn new(rule_set: &RuleSet) -> Self {
        let required = || rule_set.rules.iter().enumerate().filter(|(_, rule)| !rule.in_compound);
        let indices = |is: &dyn Fn(&Rule) -> bool| -> Vec<usize> {
            required().filter(|(_, rule)| is(rule)).map(|(index, _)| index).collect()
        };
        let of_number = |rule: &Rule| rule.kind.all().all(|(_, kind)| is_span(kind));
        let equal_of = |rule: &Rule| rule_set.equal_attributes(rule);
        let excludes =
            |rule: &Rule| !of_number(rule) && rule.kind.all().any(|(_, kind)| rule_set.excludes_in_every_team(kind));
        let to_usize = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let most = to_usize(rule_set.match_size());
        Self {
            ages: rule_set.ages().into_iter().filter(|age| *age > 0).collect(),
            equal: required().filter_map(|(_, rule)| equal_of(rule)).flatten().collect(),
            number: rule_set.ordering_number(),
            side: most.saturating_mul(2).clamp(LEAST_SIDE, MOST_SIDE),
            team_max: rule_set.teams.iter().map(|team| rule_set.greatest_size(team.definition)).collect(),
            least: rule_set.least(),
            most,
            interchangeable: !rule_set.names_single_teams(),
            spans: indices(&of_number),
            worsening: indices(&|rule| {
                let worsens = rule.kind.all().any(|(_, kind)| rule_set.only_worsens(kind));
                worsens && !of_number(rule) && equal_of(rule).is_none()
            }),
            excluding: indices(&|rule| excludes(rule) && equal_of(rule).is_none()),
            excluding_groups: indices(&excludes),
            latencies: indices(&|rule| matches!(rule.kind.at(0), RuleKind::Latency(_))),
            large: rule_set.match_size() > MAX_SMALL_MATCH
                && matches!(rule_set.algorithm.strategy, Strategy::Balanced { .. }),
        }
    }

    /// The values that tickets of one match have in common.
    pub(crate) fn common_values<'t>(&self, ticket: &'t Ticket) -> impl Iterator<Item = Option<&'t Value>> {
        self.equal.iter().map(|attribute| ticket.players.first()?.values.get(*attribute))
    }

    /// The number that orders the ticket.
    pub(crate) fn number(&self, ticket: &Ticket) -> f64 {
        let number = self.number.as_ref().and_then(|of| ticket_number(ticket, of.attribute, of.party));
        number.unwrap_or_default()
    }

    /// How far apart the numbers of two tickets may be, at any age.
    pub(crate) fn reach(&self) -> f64 {
        self.number.as_ref().map_or(f64::INFINITY, |of| of.reach)
    }
}

impl RuleSet {
    /// The ages at which something changes, ascending, beginning with 0.
    pub(crate) fn ages(&self) -> Vec<u64> {
        let rules = self.rules.iter().flat_map(|rule| rule.kind.all().map(|(from, _)| from));
        let sizes = self.definitions.iter().flat_map(|of| of.sizes.all().map(|(from, _)| from));
        let mut ages: Vec<u64> = rules.chain(sizes).chain([0]).collect();
        ages.sort_unstable();
        ages.dedup();
        ages
    }

    /// The least number of players of a match, at any age.
    fn least(&self) -> usize {
        let least = self.definitions.iter().map(|of| {
            let min = of.sizes.all().map(|(_, sizes)| sizes.min).min().unwrap_or_default();
            usize::try_from(min.saturating_mul(of.quantity)).unwrap_or_default()
        });
        least.sum()
    }

    /// The maximum number of players of a team, at any age.
    fn greatest_size(&self, definition: usize) -> usize {
        let sizes = self.definitions.get(definition).into_iter().flat_map(|of| of.sizes.all());
        let max = sizes.map(|(_, sizes)| sizes.max).max().unwrap_or_default();
        usize::try_from(max).unwrap_or(usize::MAX)
    }

    /// The attributes of which all players of a match have the same value, if that is all that this rule says.
    fn equal_attributes(&self, rule: &Rule) -> Option<Vec<usize>> {
        let of = |kind: &RuleKind| match kind {
            RuleKind::BatchDistance(BatchDistance { attribute, max: None, .. }) => Some(vec![*attribute]),
            RuleKind::Comparison(comparison)
                if comparison.operation == Comparator::Equal && comparison.reference.is_none() =>
            {
                comparison.measurements.iter().map(|of| self.attribute_of_all_players(of)).collect()
            }
            _ => None,
        };
        let attributes = of(rule.kind.at(0))?;
        rule.kind.all().all(|(_, kind)| of(kind).as_ref() == Some(&attributes)).then_some(attributes)
    }

    /// The attribute of an expression that has the value of each player of each team.
    fn attribute_of_all_players(&self, expression: &Expression) -> Option<usize> {
        match expression.path().property {
            Property::Attribute(attribute) if self.has_all_players(expression) && is_of_players(expression) => {
                let kind = self.attributes.get(attribute)?.kind;
                matches!(kind, AttributeType::Text | AttributeType::Number).then_some(attribute)
            }
            _ => None,
        }
    }

    /// The number by which tickets are ordered: of `sorted` batching, otherwise the first number whose distance a rule
    /// limits, otherwise that of the first sort rule.
    fn ordering_number(&self) -> Option<OrderingNumber> {
        let is_number =
            |attribute: usize| self.attributes.get(attribute).is_some_and(|of| of.kind == AttributeType::Number);
        let sorted = match &self.algorithm.strategy {
            Strategy::Exhaustive { sort_by } => sort_by.first().copied().filter(|attribute| is_number(*attribute)),
            Strategy::Balanced { .. } => None,
        };
        let required = || self.rules.iter().filter(|rule| !rule.in_compound);
        let limited = |rule: &Rule| match rule.kind.at(0) {
            RuleKind::BatchDistance(rule) => rule.max.map(|_| (rule.attribute, rule.party)),
            RuleKind::Distance(rule) => rule.measurements.iter().find_map(|of| match of.path().property {
                Property::Attribute(attribute) if is_number(attribute) => Some((attribute, NumberAggregation::Avg)),
                _ => None,
            }),
            _ => None,
        };
        let by_sort = |rule: &Rule| match rule.kind.at(0) {
            RuleKind::Sort(sort) if sort.by == SortBy::Distance && is_number(sort.attribute) => {
                Some((sort.attribute, sort.party))
            }
            _ => None,
        };
        let of = sorted.map(|attribute| (attribute, NumberAggregation::Avg));
        let of = of.or_else(|| required().find_map(limited)).or_else(|| required().find_map(by_sort));
        let (attribute, party) = of?;
        let reach_of = |rule: &Rule| {
            let reaches = rule.kind.all().map(|(_, kind)| match kind {
                RuleKind::BatchDistance(of) if of.attribute == attribute && of.party == party => of.max,
                _ => None,
            });
            reaches.collect::<Option<Vec<_>>>()?.into_iter().reduce(f64::max)
        };
        let reach = required().filter_map(reach_of).reduce(f64::min).unwrap_or(f64::INFINITY);
        Some(OrderingNumber { attribute, party, reach })
    }

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

    /// Whether a rule that does not hold cannot hold with more tickets either.
    pub(crate) fn only_worsens(&self, kind: &RuleKind) -> bool {
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

    /// Whether a rule of this kind that does not hold for some tickets in one team cannot hold for them in other teams
    /// either, nor with more tickets.
    pub(crate) fn excludes_in_every_team(&self, kind: &RuleKind) -> bool {
        let ignores_teams = match kind {
            RuleKind::Comparison(rule) => rule.measurements.iter().all(|of| self.has_all_players(of)),
            RuleKind::Collection(rule) => rule.measurements.iter().all(|of| self.has_no_teams(of)),
            _ => true,
        };
        ignores_teams && self.only_worsens(kind)
    }

    /// Whether an expression is about the players of all teams.
    fn has_all_players(&self, expression: &Expression) -> bool {
        match &expression.path().teams {
            Teams::Together => true,
            Teams::One(_) => self.teams.len() == 1,
            Teams::Several(teams) => (0..self.teams.len()).all(|team| teams.contains(&team)),
        }
    }

    /// Whether an expression is about the players of all teams, in a list that is not divided by teams.
    fn has_no_teams(&self, expression: &Expression) -> bool {
        let is_flat = match expression {
            Expression::Call(function, _) => *function == Function::Flatten,
            Expression::Path(path) => !matches!(path.teams, Teams::Several(_)),
        };
        is_flat && self.has_all_players(expression)
    }

    /// Whether an expression is one list of the lists of all players.
    fn is_of_all_players(&self, expression: &Expression) -> bool {
        self.has_all_players(expression) && expression.depth() == 2 && is_of_players(expression)
    }

    /// The stages of a rule that a match can have whose oldest ticket has this age. A younger ticket makes the match
    /// younger, unless the oldest one decides.
    pub(crate) fn possible_stages<'r>(&self, rule: &'r Rule, age: u64) -> impl Iterator<Item = &'r RuleKind> {
        let from = match self.algorithm.expansion_age {
            ExpansionAge::Newest => 0,
            ExpansionAge::Oldest => rule.kind.all().take_while(|(from, _)| *from <= age).count().saturating_sub(1),
        };
        rule.kind.up_to(age).skip(from)
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

fn is_span(kind: &RuleKind) -> bool {
    matches!(kind, RuleKind::BatchDistance(BatchDistance { max: Some(_), .. }))
}
