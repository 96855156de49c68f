//! Checks that matches satisfy the rule sets that made them, with an evaluator of its own: it shares no code with that
//! of the matchmaker.

pub mod evaluator;

use std::collections::{BTreeMap, HashMap};

use garage_events::{
    id::{PlayerId, SessionId, TicketId},
    jetstream::follow::Message,
    player::Queued,
    rules::{RANK, RuleSetId, millis},
    session::Matched,
    subject::Aggregate,
};
use garage_rules::{
    rule_set::Value,
    ticket::{Player, Ticket},
};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::violation::{Rule, Violation};

/// The versions of the rule that builds without rule sets used.
const BEFORE_RULE_SETS: [&str; 2] = ["band-region-fifo/1", "band-region-fifo/2"];

/// The texts of rule sets that matches name.
#[derive(Debug, Default)]
pub(crate) struct RuleSets(HashMap<RuleSetId, Result<Json, String>>);

impl RuleSets {
    pub(crate) fn add(&mut self, text: &str) {
        let document = jsonc_parser::parse_to_serde_value(text, &jsonc_parser::ParseOptions::default());
        self.0.insert(RuleSetId::of(text), document.map_err(|error| error.to_string()));
    }

    pub(crate) fn has(&self, id: &RuleSetId) -> bool {
        self.0.contains_key(id)
    }

    /// Checks a match. `waiting` returns the ticket with which a player waits; `None` if it is not known.
    pub(crate) fn check<'a>(
        &self,
        session: SessionId,
        seq: u64,
        matched: &Matched,
        waiting: impl Fn(&PlayerId) -> Option<&'a Queued>,
        found: &mut Vec<Violation>,
    ) {
        // Builds without rule sets recorded the version of their rule, which cannot be evaluated here.
        if BEFORE_RULE_SETS.contains(&matched.rules.as_str()) {
            return;
        }
        let id = matched.rules.parse::<RuleSetId>();
        let id = id.map_err(|error| format!("its rules are {:?}: {error}", matched.rules));
        let document = id.and_then(|id| match self.0.get(&id) {
            None => Err("its rule set is not stored".to_owned()),
            Some(document) => document.as_ref().map_err(|error| format!("its rule set cannot be read: {error}")),
        });
        let verdict = document.and_then(|document| {
            let Some(teams) = teams(document, matched, waiting)? else { return Ok(None) };
            evaluator::satisfies(document, &teams, millis(matched.clock)).map(Some)
        });
        let what = match verdict {
            Ok(None) => return,
            Ok(Some(verdict)) if verdict.holds && verdict.location.as_deref() == Some(matched.region.as_str()) => {
                return;
            }
            Ok(Some(verdict)) if verdict.holds => {
                format!("the match is in {}, but its best region is {:?}", matched.region, verdict.location)
            }
            Ok(Some(verdict)) if !verdict.sizes => "the size of a team is not allowed by the rule set".into(),
            Ok(Some(verdict)) if verdict.failed.is_empty() => "no region satisfies all rules".into(),
            Ok(Some(verdict)) => format!("rules that do not hold: {}", verdict.failed.join(", ")),
            Err(error) => error,
        };
        found.push(Violation::new(Rule::Rules, [seq], what).session(session));
    }
}

/// The teams of the match in the order of the rule set, each with its tickets. `None` if a player's ticket is not known.
fn teams<'a>(
    document: &Json,
    matched: &Matched,
    waiting: impl Fn(&PlayerId) -> Option<&'a Queued>,
) -> Result<Option<Vec<Vec<Ticket>>>, String> {
    let mut recorded: BTreeMap<&str, _> = BTreeMap::new();
    for team in &matched.teams {
        if recorded.insert(team.name.as_str(), team).is_some() {
            return Err(format!("two teams have the name {}", team.name));
        }
    }
    let mut teams = Vec::new();
    for name in evaluator::team_names(document)? {
        let mut tickets: Vec<(TicketId, usize, Ticket)> = Vec::new();
        for member in recorded.remove(name.as_str()).into_iter().flat_map(|team| &team.players) {
            let Some(queued) = waiting(&member.player) else { return Ok(None) };
            let at = match tickets.iter().position(|(ticket, ..)| *ticket == member.ticket) {
                Some(at) => at,
                None => {
                    let ticket = Ticket { players: Vec::new(), since_ms: millis(queued.waiting_since) };
                    tickets.push((member.ticket, queued.group.len().max(1), ticket));
                    tickets.len() - 1
                }
            };
            if let Some((_, _, ticket)) = tickets.get_mut(at) {
                ticket.players.push(player(document, &member.player, queued)?);
            }
        }
        if let Some((ticket, ..)) = tickets.iter().find(|(_, size, ticket)| ticket.players.len() != *size) {
            return Err(format!("the group of ticket {ticket} is not in one team with all of its players"));
        }
        teams.push(tickets.into_iter().map(|(_, _, ticket)| ticket).collect());
    }
    match recorded.keys().next() {
        Some(name) => Err(format!("the rule set has no team {name}")),
        None => Ok(Some(teams)),
    }
}

/// A player with a value for each attribute of the rule set.
fn player(document: &Json, id: &PlayerId, queued: &Queued) -> Result<Player, String> {
    let values = evaluator::attributes(document)?.into_iter().map(|(name, kind, default)| {
        let rank = || (name == RANK && kind == "number").then(|| Value::Number(queued.rank.into()));
        let value = queued.attributes.get(name).cloned().or_else(rank).or(default);
        value.ok_or_else(|| format!("player {id} has no value for the attribute {name}"))
    });
    let latencies = queued.latencies.iter().map(|(region, latency)| (region.as_str(), f64::from(*latency)));
    Ok(Player { id: id.as_str().into(), values: values.collect::<Result<_, _>>()?, latencies: latencies.collect() })
}

/// The rule set that made the match in a message, if it is a match or a proposed match.
pub fn rule_set_of(message: &Message) -> Option<RuleSetId> {
    #[derive(Deserialize)]
    struct Envelope {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        rules: String,
    }
    let Some(Aggregate::Session(_)) = Aggregate::of(&message.subject) else { return None };
    if ![".matched", ".proposed"].iter().any(|event| message.subject.ends_with(event)) {
        return None;
    }
    let Envelope { data: Data { rules } } = serde_json::from_slice(&message.body).ok()?;
    rules.parse().ok()
}
