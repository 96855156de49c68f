//! A second evaluator of rule sets, for comparison with that of `garage_rules`.
//!
//! This module shares no code with the evaluator of `garage_rules`, only its types of tickets and values. It works on
//! the JSON itself and prefers simple code to fast code. `deploy/docs/rule-sets.md` describes the language.

mod game;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use garage_rules::{rule_set::Value, ticket::Ticket};
use serde_json::Value as Json;

use self::game::Match;

/// How deeply the operators of a compound rule may be nested.
const MAX_LEVELS: usize = 32;

/// A team has at least one place, and a match has at most 200 players.
const MAX_QUANTITY: f64 = 200.0;

/// What a rule set says about a match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The age that decides about expansions, in whole seconds.
    pub age: u64,
    /// Whether the size of each team is within its bounds.
    pub sizes: bool,
    /// The rules that hold in no location, in the order of the rule set. Rules in a compound rule are not listed.
    pub failed: Vec<String>,
    /// The best location in which all rules hold. It does not depend on the sizes of the teams.
    pub location: Option<String>,
    /// Whether the sizes fit and all rules hold together, in one location if there are latency rules.
    pub holds: bool,
}

/// Whether a match satisfies a rule set, read directly from its JSON.
///
/// `teams` has the order of the rule set's `teams`, with each definition as often as its `quantity` says. The values
/// of each player have the order of `playerAttributes`.
///
/// # Errors
/// If the rule set is not understood, or does not fit the number of teams or the types of the values.
pub fn satisfies(rule_set: &Json, teams: &[Vec<Ticket>], now_ms: i64) -> Result<Verdict, String> {
    if text(rule_set, "ruleLanguageVersion")? != "1.0" {
        return Err("the version of the rule language is not 1.0".into());
    }
    let age = age(rule_set, teams, now_ms)?;
    let document = expanded(rule_set, age)?;
    let (game, sizes) = Match::read(&document, teams)?;
    let rules = list(&document, "rules")?;
    let mut named = BTreeSet::new();
    for rule in rules.iter().filter(|rule| is(rule, "compound")) {
        compound(rule, &mut |name| Some(named.insert(name)))?;
    }
    let names = rules.iter().map(|rule| text(rule, "name")).collect::<Result<Vec<_>, _>>()?;
    if rules.iter().zip(&names).any(|(rule, name)| is(rule, "batchDistance") && named.contains(name)) {
        return Err("a compound rule names a rule of the type batchDistance".into());
    }
    let counted: Vec<&str> = names.into_iter().filter(|name| !named.contains(name)).collect();

    let latency_rules = rules.iter().any(|rule| is(rule, "latency"));
    let mut players = teams.iter().flatten().flat_map(|ticket| &ticket.players);
    let needs_location = latency_rules || players.any(|player| !player.latencies.is_empty());
    let locations = game.common_locations();
    // Without latency rules, one evaluation speaks for all locations. Without a common location, latency rules fail.
    let by_location = latency_rules && !locations.is_empty();
    let places = if by_location { locations.iter().copied().map(Some).collect() } else { vec![None] };
    let (mut failed, mut good) = (counted.clone(), Vec::new());
    for place in places {
        let results = game.evaluate(rules, place)?;
        failed.retain(|name| results.get(name) != Some(&true));
        if counted.iter().all(|name| results.get(name) == Some(&true)) {
            good.push(if by_location { place } else { locations.first().copied() });
        }
    }
    // With a latency rule, or with players who have latencies, a match needs a location.
    good.retain(|place| !needs_location || place.is_some());
    let location = good.first().copied().flatten().map(String::from);
    let failed = failed.into_iter().map(String::from).collect();
    Ok(Verdict { age, sizes, failed, location, holds: sizes && !good.is_empty() })
}

// ---- The document ----

/// The names of the teams, with each definition as often as its `quantity` says.
pub(crate) fn team_names(document: &Json) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for definition in list(document, "teams")? {
        let name = text(definition, "name")?;
        let quantity = optional(definition, "quantity")?.unwrap_or(1.0);
        if quantity == 1.0 {
            names.push(name.to_owned());
        } else {
            names.extend((1..=quantity.min(MAX_QUANTITY) as u32).map(|n| format!("{name}_{n}")));
        }
    }
    Ok(names)
}

/// An attribute: its name, its type and its default.
type Attribute<'a> = (&'a str, &'a str, Option<Value>);

/// The attributes of players.
pub(crate) fn attributes(document: &Json) -> Result<Vec<Attribute<'_>>, String> {
    let texts = |items: &Vec<Json>| items.iter().map(|item| item.as_str().map(String::from)).collect::<Option<_>>();
    let default = |attribute: &Json| {
        let value = attribute.get("default")?;
        Some(match (text(attribute, "type").ok()?, value) {
            ("number", value) => Value::Number(number(value)?),
            (_, Json::String(text)) => Value::Text(text.clone()),
            (_, Json::Array(items)) => Value::TextList(texts(items)?),
            (_, Json::Object(map)) => {
                let numbers = map.iter().map(|(key, value)| Some((key.clone(), number(value)?)));
                Value::NumberMap(numbers.collect::<Option<_>>()?)
            }
            _ => return None,
        })
    };
    list(document, "playerAttributes")?
        .iter()
        .map(|one| Ok((text(one, "name")?, text(one, "type")?, default(one))))
        .collect()
}

fn text<'a>(object: &'a Json, key: &str) -> Result<&'a str, String> {
    object.get(key).and_then(Json::as_str).ok_or_else(|| format!("{key:?} is missing or not a text"))
}

/// A text that may be missing.
fn text_or<'a>(object: &'a Json, key: &str, default: &'a str) -> Result<&'a str, String> {
    if object.get(key).is_some() { text(object, key) } else { Ok(default) }
}

fn is(rule: &Json, kind: &str) -> bool {
    text(rule, "type") == Ok(kind)
}

/// The elements of a list. A missing list has none.
fn list<'a>(object: &'a Json, key: &str) -> Result<&'a [Json], String> {
    match object.get(key) {
        None => Ok(&[]),
        Some(Json::Array(items)) => Ok(items),
        Some(_) => Err(format!("{key:?} is not a list")),
    }
}

/// A number, which may stand in quotes.
fn number(value: &Json) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    number.filter(|number| number.is_finite())
}

fn optional(object: &Json, key: &str) -> Result<Option<f64>, String> {
    let read = |value| number(value).ok_or_else(|| format!("{key:?} is not a number"));
    object.get(key).map(read).transpose()
}

fn required(object: &Json, key: &str) -> Result<f64, String> {
    optional(object, key)?.ok_or_else(|| format!("{key:?} is missing"))
}

fn age(rule_set: &Json, teams: &[Vec<Ticket>], now_ms: i64) -> Result<u64, String> {
    let of = |ticket: &Ticket| u64::try_from(now_ms.saturating_sub(ticket.since_ms)).unwrap_or(0) / 1_000;
    let ages = teams.iter().flatten().map(of);
    let algorithm = rule_set.get("algorithm").unwrap_or(&Json::Null);
    let age = match text_or(algorithm, "expansionAgeSelection", "newest")? {
        "newest" => ages.min(),
        "oldest" => ages.max(),
        other => return Err(format!("there is no expansionAgeSelection {other:?}")),
    };
    Ok(age.unwrap_or(0))
}

/// The rule set as it is at an age: each expansion has replaced its property.
fn expanded(rule_set: &Json, age: u64) -> Result<Json, String> {
    let mut document = rule_set.clone();
    let mut seen = BTreeSet::new();
    for expansion in list(rule_set, "expansions")? {
        let target = text(expansion, "target")?;
        let unknown = || format!("the target {target:?} is not understood");
        let (path, property) = target.rsplit_once("].").ok_or_else(unknown)?;
        let (section, names) = path.split_once('[').ok_or_else(unknown)?;
        let names: Vec<&str> = match section {
            "rules" if !matches!(property, "name" | "type" | "statement") => vec![names.trim()],
            "teams" if matches!(property, "minPlayers" | "maxPlayers") => names.split(',').map(str::trim).collect(),
            _ => return Err(unknown()),
        };
        let mut reached: Option<(f64, &Json)> = None;
        for step in list(expansion, "steps")? {
            let wait = required(step, "waitTimeSeconds")?;
            let value = step.get("value").ok_or("a step has no value")?;
            if wait <= age as f64 && reached.is_none_or(|(earlier, _)| wait >= earlier) {
                reached = Some((wait, value));
            }
        }
        for name in names {
            if !seen.insert((section, name, property)) {
                return Err(format!("two expansions have the target {target:?}"));
            }
            let items = document.get_mut(section).and_then(Json::as_array_mut).ok_or_else(unknown)?;
            let item = items.iter_mut().find(|item| text(item, "name") == Ok(name)).ok_or_else(unknown)?;
            if let Some((_, value)) = reached {
                item.as_object_mut().ok_or_else(unknown)?.insert(property.into(), value.clone());
            }
        }
    }
    Ok(document)
}

// ---- Compound rules ----

/// Whether a compound rule holds. `holds` tells it for the rules that it names. `None` stands for an unknown rule.
fn compound<'a>(rule: &'a Json, holds: &mut impl FnMut(&'a str) -> Option<bool>) -> Result<bool, String> {
    let source = text(rule, "statement")?;
    match statement(source, MAX_LEVELS, holds) {
        Some((result, "")) if source.contains('(') => Ok(result),
        _ => Err(format!("the statement {source:?} is not understood, or names a rule that is not an earlier one")),
    }
}

/// Whether a statement with at most `levels` levels of operators holds. Also returns the text behind it.
fn statement<'a>(
    source: &'a str,
    levels: usize,
    holds: &mut impl FnMut(&'a str) -> Option<bool>,
) -> Option<(bool, &'a str)> {
    let (word, rest) = source.split_at_checked(source.find(['(', ')', ',']).unwrap_or(source.len()))?;
    let Some(mut rest) = rest.strip_prefix('(') else { return Some((holds(word.trim())?, rest)) };
    let mut parts = Vec::new();
    loop {
        let (part, behind) = statement(rest, levels.checked_sub(1)?, holds)?;
        parts.push(part);
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            None => {
                rest = behind.strip_prefix(')')?.trim_start();
                break;
            }
        }
    }
    let count = parts.iter().filter(|holds| **holds).count();
    let result = match (word.trim(), parts.len()) {
        ("not", 1) => count == 0,
        ("and", 2..) => count == parts.len(),
        ("or", 2..) => count > 0,
        ("xor", 2..) => count == 1,
        _ => return None,
    };
    Some((result, rest))
}
