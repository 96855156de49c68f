//! Rule sets and tickets of tests.

use garage_rules::{
    Options, check,
    evaluate::{Candidate, Evaluation},
    rule_set::{RuleSet, Value},
    ticket::{PlayerRequest, Ticket},
};

/// A rule set from the inner part of its JSON object. It must be free of errors.
pub(crate) fn rule_set(inner: &str) -> RuleSet {
    let checked = check(&format!("{{\"ruleLanguageVersion\": \"1.0\", {inner}}}"), Options::default());
    checked.rule_set.unwrap_or_else(|| panic!("{:#?}", checked.diagnostics))
}

pub(crate) fn number(value: f64) -> Value {
    Value::Number(value)
}

pub(crate) fn text(value: &str) -> Value {
    Value::Text(value.into())
}

pub(crate) fn list(values: &[&str]) -> Value {
    Value::TextList(values.iter().map(|value| (*value).to_owned()).collect())
}

pub(crate) fn map(values: &[(&str, f64)]) -> Value {
    Value::NumberMap(values.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect())
}

/// A player with some attributes and latencies.
pub(crate) fn player(id: &str, attributes: &[(&str, Value)], latencies: &[(&str, f64)]) -> PlayerRequest {
    PlayerRequest {
        id: id.into(),
        attributes: attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
        latencies: latencies.iter().map(|(name, value)| (*name, *value)).collect(),
    }
}

/// A ticket of one player, since some seconds.
pub(crate) fn solo(rule_set: &RuleSet, id: &str, attributes: &[(&str, Value)], since: i64) -> Ticket {
    rule_set.ticket(vec![player(id, attributes, &[])], since * 1_000).unwrap()
}

/// A ticket of several players with one attribute each.
pub(crate) fn group(rule_set: &RuleSet, id: &str, attribute: &str, values: &[Value]) -> Ticket {
    let member = |(index, value): (usize, &Value)| player(&format!("{id}-{index}"), &[(attribute, value.clone())], &[]);
    rule_set.ticket(values.iter().enumerate().map(member).collect(), 0).unwrap()
}

/// Players without attributes or latencies, since some seconds each.
pub(crate) fn plain(rule_set: &RuleSet, since: &[i64]) -> Vec<Ticket> {
    since.iter().enumerate().map(|(index, since)| solo(rule_set, &index.to_string(), &[], *since)).collect()
}

/// Evaluates teams of tickets at a time in seconds.
pub(crate) fn evaluate(rule_set: &RuleSet, teams: &[&[Ticket]], now: i64) -> Evaluation {
    let candidate = Candidate { teams: teams.iter().map(|team| team.iter().collect()).collect() };
    rule_set.evaluate(&candidate, now * 1_000)
}

/// The names of the rules that do not hold.
pub(crate) fn failed(rule_set: &RuleSet, evaluation: &Evaluation) -> Vec<String> {
    evaluation.failed.iter().map(|rule| rule_set.rules[*rule].name.clone()).collect()
}

/// The matches at a time in seconds: the indices of the tickets of each team.
pub(crate) fn matches(rule_set: &RuleSet, pool: &[Ticket], now: i64) -> Vec<Vec<Vec<usize>>> {
    rule_set.matches(pool, now * 1_000).into_iter().map(|found| found.teams).collect()
}
