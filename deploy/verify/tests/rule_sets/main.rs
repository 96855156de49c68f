//! Random rule sets and tickets: the two evaluators agree, nothing panics, the matcher finds what there is, and the engine
//! makes the same matches, whatever happened before.
#![cfg(test)]

mod engine;
mod generate;

use std::{cmp::Reverse, collections::BTreeMap};

use garage_rules::{
    Options, check,
    evaluate::Candidate,
    rule_set::{RuleKind, RuleSet, Value},
    ticket::{PlayerRequest, Ticket},
};
use proptest::{prelude::*, test_runner::TestCaseError};

use garage_verify::rules::evaluator::{Verdict, satisfies};
use generate::{NOW_MS, accepted, document, group, ticket};

const EVERY_FEATURE: &str = include_str!("../../../../events/rules/tests/every-feature.json");

/// `cases`, or the number in the environment variable `POOLS`.
fn config(cases: u32) -> ProptestConfig {
    let wanted = std::env::var("POOLS").ok().map(|text| text.parse().expect("POOLS is the number of pools to try"));
    ProptestConfig { cases: wanted.unwrap_or(cases), ..ProptestConfig::default() }
}

fn verdict(rule_set: &RuleSet, teams: &[Vec<Ticket>]) -> Verdict {
    let candidate = Candidate { teams: teams.iter().map(|team| team.iter().collect()).collect() };
    let evaluation = rule_set.evaluate(&candidate, NOW_MS);
    let failed = evaluation.failed.iter().map(|rule| rule_set.rules[*rule].name.clone()).collect();
    let (age, sizes) = (evaluation.age, evaluation.sizes);
    Verdict { age, sizes, failed, location: evaluation.location, holds: evaluation.holds }
}

/// The most ways to put tickets into teams that a test tries.
const MAX_WAYS: usize = 1_000;

/// All ways to put tickets into teams, each ticket in one team or in none: for each ticket the index of the team, or the
/// number of teams. No team gets more players than it can have at any age. `None` if there are too many.
fn ways(rule_set: &RuleSet, pool: &[Ticket]) -> Option<Vec<Vec<usize>>> {
    let count = rule_set.teams.len();
    let max = |team: usize| {
        let sizes = rule_set.definitions[rule_set.teams[team].definition].sizes.all();
        sizes.map(|(_, sizes)| sizes.max as usize).max().unwrap()
    };
    let mut ways: Vec<(Vec<usize>, Vec<usize>)> = vec![(Vec::new(), vec![0; count])];
    for ticket in pool {
        let mut longer = Vec::new();
        for (way, sizes) in ways {
            for team in 0..=count {
                let (mut way, mut sizes) = (way.clone(), sizes.clone());
                if team < count {
                    sizes[team] += ticket.players.len();
                    if sizes[team] > max(team) {
                        continue;
                    }
                }
                way.push(team);
                longer.push((way, sizes));
            }
        }
        ways = longer;
        if ways.len() > MAX_WAYS {
            return None;
        }
    }
    Some(ways.into_iter().map(|(way, _)| way).collect())
}

/// The teams of a way: tickets with the place of the number of teams are left out.
fn split(pool: &[Ticket], way: &[usize], teams: usize) -> Vec<Vec<Ticket>> {
    let of =
        |team: usize| pool.iter().zip(way).filter(move |(_, place)| **place == team).map(|(ticket, _)| ticket.clone());
    (0..teams).map(|team| of(team).collect()).collect()
}

proptest! {
    #![proptest_config(config(2_000))]

    #[test]
    fn both_evaluators_agree(document in document(), groups in prop::collection::vec((group(), 0_usize..4), 0..6)) {
        let rule_set = accepted(&document).unwrap();
        let mut teams = vec![Vec::new(); rule_set.teams.len()];
        for (number, (group, team)) in groups.iter().enumerate() {
            let team = team % teams.len();
            teams[team].push(ticket(number, group));
        }
        let second = satisfies(&document, &teams, NOW_MS).map_err(TestCaseError::fail)?;
        prop_assert_eq!(verdict(&rule_set, &teams), second, "{}", document);
    }

    /// Changes some texts of a rule set with every feature, or cuts it. The check must not panic. If it accepts the
    /// result, both evaluators agree on it.
    #[test]
    fn a_damaged_rule_set_is_refused_or_understood(
        changes in prop::collection::vec((any::<prop::sample::Index>(), "[\\[\\]{}(),.:\"*a-z0-9 ]{0,3}", 0_usize..4), 1..4),
        groups in prop::collection::vec((0_usize..3, 0.0..2_000.0_f64), 0..4),
    ) {
        let mut text = EVERY_FEATURE.to_owned();
        for (place, insertion, cut) in &changes {
            let at = place.index(text.len());
            let Some(rest) = text.get(at..) else { continue };
            let rest: String = rest.chars().skip(*cut).collect();
            text.truncate(at);
            text += insertion;
            text += &rest;
        }
        let Some(rule_set) = check(&text, Options::default()).rule_set else { return Ok(()) };
        let mut teams = vec![Vec::new(); rule_set.teams.len()];
        for (number, (team, skill)) in groups.iter().enumerate() {
            let attributes = BTreeMap::from([("skill".to_owned(), Value::Number(skill.round()))]);
            let latencies = [("eu", 50.0)].into_iter().collect();
            let player = PlayerRequest { id: number.to_string().into(), attributes, latencies };
            let Ok(ticket) = rule_set.ticket(vec![player], 0) else { continue };
            let team = team % teams.len();
            teams[team].push(ticket);
        }
        let Ok(strict) = serde_json::from_str(&text) else { return Ok(()) };
        let second = satisfies(&strict, &teams, NOW_MS).map_err(TestCaseError::fail)?;
        prop_assert_eq!(verdict(&rule_set, &teams), second, "{}", text);
    }
}

proptest! {
    #![proptest_config(config(300))]

    /// In a small pool, the matcher makes a match if there is one, and the oldest ticket that is in a possible match is
    /// in the largest one.
    #[test]
    fn the_matcher_finds_the_largest_match_of_the_oldest_ticket(document in document(), groups in prop::collection::vec(group(), 0..13)) {
        let rule_set = accepted(&document).unwrap();
        let mut pool: Vec<_> = groups.iter().enumerate().map(|(number, group)| ticket(number, group)).collect();
        let ways = loop {
            match ways(&rule_set, &pool) {
                Some(ways) => break ways,
                // Larger teams have too many ways.
                None => drop(pool.pop()),
            }
        };
        let count = rule_set.teams.len();
        let mut order: Vec<usize> = (0..pool.len()).collect();
        order.sort_by_key(|index| pool[*index].since_ms);
        // For each ticket, as the oldest one of a match: the most players, and the places of the first such tickets.
        let mut largest: BTreeMap<usize, (usize, Reverse<Vec<usize>>)> = BTreeMap::new();
        for way in ways {
            let Some(oldest) = order.iter().position(|index| way[*index] < count) else { continue };
            let teams = split(&pool, &way, count);
            if satisfies(&document, &teams, NOW_MS).map_err(TestCaseError::fail)?.holds {
                let players: usize = teams.iter().flatten().map(|ticket| ticket.players.len()).sum();
                let places = (0..order.len()).filter(|place| way[order[*place]] < count).collect();
                let found = (players, Reverse(places));
                let best = largest.entry(oldest).or_insert_with(|| found.clone());
                *best = found.max(best.clone());
            }
        }
        let matches = rule_set.matches(&pool, NOW_MS);
        let mut seen = Vec::new();
        for found in &matches {
            let teams: Vec<Vec<Ticket>> =
                found.teams.iter().map(|team| team.iter().map(|index| pool[*index].clone()).collect()).collect();
            prop_assert!(satisfies(&document, &teams, NOW_MS).map_err(TestCaseError::fail)?.holds);
            for index in found.teams.iter().flatten() {
                prop_assert!(!seen.contains(index), "a ticket is in two matches");
                seen.push(*index);
            }
        }
        // A sort rule decides otherwise which tickets come first.
        let sorted = rule_set.rules.iter().any(|rule| matches!(rule.kind.at(0), RuleKind::Sort(_)));
        let first = matches.first().map(|found| {
            let tickets = found.teams.iter().flatten();
            let place = |index: &usize| order.iter().position(|other| other == index).unwrap();
            let mut places: Vec<usize> = tickets.clone().map(place).collect();
            places.sort_unstable();
            (places[0], (tickets.map(|index| pool[*index].players.len()).sum::<usize>(), Reverse(places)))
        });
        let expected = largest.into_iter().next();
        if sorted {
            let players = first.map(|(oldest, (players, _))| (oldest, players));
            prop_assert_eq!(players, expected.map(|(oldest, (players, _))| (oldest, players)), "{}", document);
        } else {
            prop_assert_eq!(first, expected, "{}", document);
        }
    }
}
