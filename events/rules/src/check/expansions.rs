//! Reads expansions: what changes in rules and teams while tickets wait.

use std::collections::BTreeMap;

use super::{
    TeamSource,
    reader::{Reader, get},
    rules::{RuleSource, properties_of},
};
use crate::{
    diagnostic::Findings,
    source::{Json, Node, Property},
};

/// The longest wait, in seconds (GameLift API, `RequestTimeoutSeconds`).
const MAX_WAIT: u32 = 43_200;

/// What an expansion changes: a property of the rule, or of the team, with this index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Team(usize),
    Rule(usize),
}

/// A value that holds from an age on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'n> {
    /// In seconds.
    pub(super) age: u64,
    pub(super) value: &'n Node,
}

impl<'n> Step<'n> {
    /// The value that holds at an age, `None` before the first step.
    pub(super) fn at(steps: &[Self], age: u64) -> Option<&'n Node> {
        steps.iter().rev().find(|step| step.age <= age).map(|step| step.value)
    }
}

/// The steps of each changed property, ascending.
#[derive(Default)]
pub(super) struct Expansions<'n> {
    steps: BTreeMap<(Target, String), Vec<Step<'n>>>,
    /// The value before the first step, if there is one.
    first: BTreeMap<(Target, String), &'n Node>,
}

impl<'n> Expansions<'n> {
    pub(super) fn read(
        reader: &mut Reader<'_>,
        document: &'n [Property],
        teams: &[TeamSource<'n>],
        rules: &[RuleSource<'n>],
    ) -> Self {
        let mut expansions = Self::default();
        let Some(node) = get(document, "expansions") else { return expansions };
        for node in reader.short_list(node, "expansions", super::MAX_LIST).unwrap_or_default() {
            let what = "an expansion";
            let Some(properties) = reader.object(node, what) else { continue };
            reader.only(properties, what, &["target", "steps", "description"]);
            let of = (node.at, properties);
            let Some(target) = reader.required(of, "target", what) else { continue };
            let Some(steps) = reader.required(of, "steps", what).and_then(|node| steps(reader, node)) else { continue };
            let Some(text) = reader.text(target, "a target") else { continue };
            for (of, name) in targets(reader, target, text, teams, rules).unwrap_or_default() {
                let key = (of, name.to_owned());
                let first = match of {
                    Target::Team(index) => {
                        teams.get(index).map(|team| if name == "minPlayers" { team.min } else { team.max })
                    }
                    Target::Rule(index) => rules.get(index).and_then(|rule| get(rule.properties, name)),
                };
                if let Some(first) = first {
                    expansions.first.insert(key.clone(), first);
                }
                if expansions.steps.insert(key, steps.clone()).is_some() {
                    let message = "two expansions have the same target";
                    reader.findings.error(target.at, message, "put all steps into one expansion");
                }
            }
        }
        expansions
    }

    pub(super) fn of_team(&self, index: usize, property: &str) -> &[Step<'n>] {
        self.steps.get(&(Target::Team(index), property.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// The changed properties of a rule.
    pub(super) fn of_rule(&self, index: usize) -> impl Iterator<Item = (&str, &[Step<'n>])> {
        let of_rule = self.steps.iter().filter(move |((target, _), _)| *target == Target::Rule(index));
        of_rule.map(|((_, property), steps)| (property.as_str(), steps.as_slice()))
    }

    /// Reports steps that tighten a bound, and steps that no ticket reaches.
    pub(super) fn warn(&self, findings: &mut Findings, timeout: Option<u64>) {
        for (key, steps) in &self.steps {
            let mut before = self.first.get(key).copied();
            for step in steps {
                let tightens = match (before.map(number), number(step.value)) {
                    (Some(Some(before)), Some(now)) if key.1.starts_with("min") => now > before,
                    (Some(Some(before)), Some(now)) if key.1.starts_with("max") => now < before,
                    _ => false,
                };
                if tightens {
                    let message = format!("this step makes {} stricter, so tickets that wait longer match less", key.1);
                    findings.warning(step.value.at, message, "expansions usually relax a rule");
                }
                before = Some(step.value);
            }
            let late = timeout.and_then(|timeout| Some((timeout, steps.iter().find(|step| step.age >= timeout)?)));
            if let Some((timeout, late)) = late {
                let message = format!("no ticket waits {} s, because tickets time out after {timeout} s", late.age);
                findings.warning(late.value.at, message, "use shorter waits, or a longer time-out");
            }
        }
    }
}

fn number(node: &Node) -> Option<f64> {
    match &node.value {
        Json::Number(number) => Some(*number),
        Json::Text(text) => text.trim().parse().ok(),
        Json::Null | Json::Bool | Json::List(_) | Json::Object(_) => None,
    }
}

fn steps<'n>(reader: &mut Reader<'_>, node: &'n Node) -> Option<Vec<Step<'n>>> {
    let elements = reader.short_list(node, "steps", super::MAX_LIST)?;
    if elements.is_empty() {
        reader.findings.error(node.at, "there is no step", "add at least one step");
    }
    let mut steps: Vec<Step<'n>> = Vec::new();
    for node in elements {
        let what = "a step";
        let properties = reader.object(node, what)?;
        reader.only(properties, what, &["waitTimeSeconds", "value"]);
        let wait = reader.required((node.at, properties), "waitTimeSeconds", what)?;
        let value = reader.required((node.at, properties), "value", what);
        let age = u64::from(reader.count(wait, "waitTimeSeconds", MAX_WAIT)?);
        if let Some(last) = steps.last()
            && last.age >= age
        {
            let message = format!("the step at {age} s comes after the step at {} s", last.age);
            reader.findings.error(wait.at, message, "order the steps by waitTimeSeconds, each greater than the last");
            return None;
        }
        steps.push(Step { age, value: value? });
    }
    Some(steps)
}

/// The first of some names, for a message.
pub(crate) fn some<'n>(names: impl Iterator<Item = &'n str>) -> String {
    const MOST: usize = 6;
    let mut shown: Vec<_> = names.take(MOST + 1).collect();
    if shown.len() > MOST {
        shown.truncate(MOST);
        shown.push("…");
    }
    shown.join(", ")
}

/// What a target such as `rules[A].maxDistance` or `teams[Red, Blue].minPlayers` changes.
fn targets<'t>(
    reader: &mut Reader<'_>,
    node: &Node,
    text: &'t str,
    teams: &[TeamSource<'_>],
    rules: &[RuleSource<'_>],
) -> Option<Vec<(Target, &'t str)>> {
    let split = |start: &str| {
        let (names, property) = text.strip_prefix(start)?.rsplit_once(']')?;
        Some((names, property.strip_prefix('.')?))
    };
    if let Some((name, property)) = split("rules[") {
        return rule_target(reader, node, name.trim(), property, rules)
            .map(|index| vec![(Target::Rule(index), property)]);
    }
    if let Some((names, property)) = split("teams[") {
        if !["minPlayers", "maxPlayers"].contains(&property) {
            let message = format!("an expansion cannot change {property:?} of a team");
            reader.findings.error(node.at, message, "change minPlayers or maxPlayers");
            return None;
        }
        let mut found = Vec::new();
        for name in names.split(',').map(str::trim) {
            let index = teams.iter().position(|team| team.name == name);
            if index.is_none() {
                let cure = format!("use {}", some(teams.iter().map(|team| team.name)));
                reader.findings.error(node.at, format!("there is no team definition {name:?}"), cure);
            }
            found.push((Target::Team(index?), property));
        }
        return Some(found);
    }
    let cure = "write rules[NAME].PROPERTY or teams[NAME].PROPERTY";
    reader.findings.error(node.at, format!("{text:?} is not a target"), cure);
    None
}

fn rule_target(
    reader: &mut Reader<'_>,
    node: &Node,
    name: &str,
    property: &str,
    rules: &[RuleSource<'_>],
) -> Option<usize> {
    let Some(index) = rules.iter().position(|rule| rule.name == Some(name)) else {
        let cure = match super::nearest(name, rules.iter().filter_map(|rule| rule.name)) {
            Some(nearest) => format!("did you mean {nearest:?}?"),
            None => "name a rule of this rule set".into(),
        };
        reader.findings.error(node.at, format!("there is no rule {name:?}"), cure);
        return None;
    };
    let kind = rules.get(index)?.kind?;
    let changeable =
        properties_of(kind).iter().filter(|name| !["name", "type", "description", "statement"].contains(*name));
    let changeable: Vec<_> = changeable.copied().collect();
    if !changeable.contains(&property) {
        let message = format!("an expansion cannot change {property:?} of a rule of type {}", kind.name());
        let cure = if changeable.is_empty() {
            "expand the rules that the compound rule names".into()
        } else {
            format!("change {}", changeable.join(" or "))
        };
        reader.findings.error(node.at, message, cure);
        return None;
    }
    Some(index)
}
