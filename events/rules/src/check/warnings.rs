//! Finds what is allowed, but probably not meant.

use super::Places;
use crate::{
    diagnostic::Findings,
    expression::{Expression, Function, Property, Teams},
    rule_set::{Comparator, MAX_SMALL_MATCH, Reference, RuleKind, RuleSet, Strategy},
};

pub(super) fn find(findings: &mut Findings, rule_set: &RuleSet, places: &Places) {
    unread_attributes(findings, rule_set, places);
    balanced_small_match(findings, rule_set, places);
    complete_at_once(findings, rule_set, places);
    let may_be_empty = may_be_empty(rule_set);
    for (rule, at) in rule_set.rules.iter().zip(&places.rules) {
        for (_, kind) in rule.kind.all() {
            empty_average(findings, rule_set, kind, *at, &may_be_empty);
        }
        if rule.kind.all().all(|(_, kind)| always_holds(kind, rule_set)) {
            findings.warning(*at, format!("the rule {:?} always holds", rule.name), "check its expressions and bounds");
        }
    }
}

fn unread_attributes(findings: &mut Findings, rule_set: &RuleSet, places: &Places) {
    for (index, (attribute, at)) in rule_set.attributes.iter().zip(&places.attributes).enumerate() {
        let reads = |kind: &RuleKind| match kind {
            RuleKind::Sort(sort) => sort.attribute == index,
            RuleKind::BatchDistance(batch) => batch.attribute == index,
            kind => {
                kind.expressions().iter().any(|expression| expression.path().property == Property::Attribute(index))
            }
        };
        let read = rule_set.rules.iter().flat_map(|rule| rule.kind.all()).any(|(_, kind)| reads(kind));
        let read = read
            || match &rule_set.algorithm.strategy {
                Strategy::Balanced { attribute, .. } => *attribute == index,
                Strategy::Exhaustive { sort_by } => sort_by.contains(&index),
            };
        if !read && attribute.default.is_none() {
            let message = format!(
                "no rule reads the attribute {:?}, but a player without a value for it cannot be matched",
                attribute.name
            );
            findings.warning(*at, message, "add a default");
        }
    }
}

fn balanced_small_match(findings: &mut Findings, rule_set: &RuleSet, places: &Places) {
    let balanced = matches!(rule_set.algorithm.strategy, Strategy::Balanced { .. });
    if balanced && rule_set.match_size() <= MAX_SMALL_MATCH {
        let message = format!("the strategy balanced is for matches of more than {MAX_SMALL_MATCH} players");
        findings.warning(places.algorithm, message, "Garage does not balance the teams of smaller matches");
    }
}

/// Reports that the oldest ticket is a whole match, before any expansion.
fn complete_at_once(findings: &mut Findings, rule_set: &RuleSet, places: &Places) {
    let min: u32 = (0..rule_set.teams.len()).map(|team| rule_set.sizes(team, 0).min).sum();
    let counts = |expression: &&Expression| has_count(expression);
    let mut rules = rule_set.rules.iter();
    let counted = rules.any(|rule| rule.kind.at(0).expressions().iter().any(counts));
    if min <= 1 && rule_set.match_size() > 1 && !counted {
        let at = places.definitions.first().copied().unwrap_or_default();
        let message = "one player can be a complete match, so a player who waits alone may be matched alone at once";
        findings.warning(at, message, "raise minPlayers, and lower it in an expansion");
    }
}

fn has_count(expression: &Expression) -> bool {
    match expression {
        Expression::Call(Function::Count, _) => true,
        Expression::Call(_, of) => has_count(of),
        Expression::Path(_) => false,
    }
}

/// Reports an average of a team that may have no players: it has no value then, and the rule does not hold.
fn empty_average(findings: &mut Findings, rule_set: &RuleSet, kind: &RuleKind, at: usize, may_be_empty: &[bool]) {
    for expression in kind.expressions() {
        if let Some(team) = empty(expression, rule_set, may_be_empty) {
            let message =
                format!("the team {team:?} may be empty: then its average has no value, and no match is made");
            findings.warning(at, message, "raise minPlayers, or use count or sum");
        }
    }
}

/// For each team, whether it may have no players.
fn may_be_empty(rule_set: &RuleSet) -> Vec<bool> {
    let definitions: Vec<_> =
        rule_set.definitions.iter().map(|of| of.sizes.all().any(|(_, sizes)| sizes.min == 0)).collect();
    rule_set.teams.iter().map(|team| definitions.get(team.definition).copied().unwrap_or_default()).collect()
}

/// A team that may be empty, and that makes the innermost function of the expression have no value.
fn empty<'r>(expression: &Expression, rule_set: &'r RuleSet, may_be_empty: &[bool]) -> Option<&'r str> {
    let Expression::Call(function, of) = expression else { return None };
    let (mut inner, mut flat) = (&**of, false);
    while let Expression::Call(Function::Flatten, of) = inner {
        (inner, flat) = (of, true);
    }
    let Expression::Path(path) = inner else { return empty(of, rule_set, may_be_empty) };
    if matches!(function, Function::Count | Function::Sum | Function::Flatten | Function::SetIntersection) {
        return None;
    }
    let all: Vec<_> = (0..rule_set.teams.len()).collect();
    let (teams, together) = match &path.teams {
        Teams::One(team) => (std::slice::from_ref(team), flat),
        Teams::Several(teams) => (teams.as_slice(), flat),
        Teams::Together => (all.as_slice(), true),
    };
    let is_empty = |team: &&usize| may_be_empty.get(**team).copied().unwrap_or_default();
    // Players of several teams in one list: only if all of these teams are empty.
    let found = !together || teams.iter().all(|team| is_empty(&team));
    let team = teams.iter().find(is_empty).filter(|_| found)?;
    rule_set.teams.get(*team).map(|team| team.name.as_str())
}

/// Whether a rule excludes no match: a value compared with itself, or bounds that hold always.
fn always_holds(kind: &RuleKind, rule_set: &RuleSet) -> bool {
    let same = |measurement: &Expression, reference: &Reference| match reference {
        Reference::Expression(reference) => {
            measurement == reference || (rule_set.teams.len() == 1 && flat(measurement) == flat(reference))
        }
        Reference::Number(_) | Reference::Text(_) => false,
    };
    match kind {
        RuleKind::Distance(rule) => {
            let bounded_below = rule.min.is_some_and(|min| min > 0.0);
            !bounded_below && rule.measurements.iter().all(|measurement| same(measurement, &rule.reference))
        }
        RuleKind::Comparison(rule) => {
            let reflexive =
                matches!(rule.operation, Comparator::Equal | Comparator::LessOrEqual | Comparator::GreaterOrEqual);
            let reference = rule.reference.as_ref().filter(|_| reflexive);
            reference.is_some_and(|reference| {
                rule.measurements.iter().all(|measurement| is_one(measurement) && same(measurement, reference))
            })
        }
        RuleKind::Collection(rule) => rule.min == Some(0) && rule.max.is_none(),
        RuleKind::Latency(_) | RuleKind::Compound(_) | RuleKind::Sort(_) | RuleKind::BatchDistance(_) => false,
    }
}

/// Whether an expression is an aggregate.
fn is_one(expression: &Expression) -> bool {
    !matches!(expression, Expression::Path(_) | Expression::Call(Function::Flatten, _))
}

/// The expression without `flatten`. If there is one team, both mean the same.
fn flat(expression: &Expression) -> Expression {
    match expression {
        Expression::Call(Function::Flatten, of) => flat(of),
        Expression::Call(function, of) => Expression::Call(*function, Box::new(flat(of))),
        Expression::Path(path) => Expression::Path(path.clone()),
    }
}
