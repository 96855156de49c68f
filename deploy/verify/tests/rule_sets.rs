//! Random rule sets and tickets: the two evaluators agree, nothing panics, and the matcher finds what there is.
#![cfg(test)]

use std::{cmp::Reverse, collections::BTreeMap};

use garage_rules::{
    Options, check,
    evaluate::Candidate,
    rule_set::{RuleKind, RuleSet, Value},
    ticket::{PlayerRequest, Ticket},
};
use proptest::{prelude::*, sample::select, test_runner::TestCaseError};
use serde_json::{Value as Json, json};

use garage_verify::rules::evaluator::{Verdict, satisfies};

const EVERY_FEATURE: &str = include_str!("../../../events/rules/tests/every-feature.json");

/// Numbers that are equal often, and whose averages are not always whole.
const NUMBERS: [f64; 6] = [-1.0, 0.0, 1.0, 2.0, 3.5, 10.0];
const TEXTS: [&str; 3] = ["a", "b", "0-0"];

fn number() -> impl Strategy<Value = Json> {
    select(&NUMBERS[..]).prop_map(Json::from)
}

fn teams() -> impl Strategy<Value = &'static str> {
    select(
        &["teams[*].players", "teams[red].players", "teams[red, blue].players", "players", "teams[blue].players"][..],
    )
}

/// Functions around an attribute. Many do not fit: the check refuses them.
fn expression() -> impl Strategy<Value = String> {
    const FUNCTIONS: [&str; 9] =
        ["min", "max", "avg", "median", "sum", "count", "stddev", "flatten", "set_intersection"];
    let property = select(&["", "[playerId]", ".attributes[skill]", ".attributes[map]", ".attributes[modes]"][..]);
    let functions = prop::collection::vec(prop_oneof![2 => Just("flatten"), 3 => select(&FUNCTIONS[..])], 0..4);
    (teams(), property, functions).prop_map(|(teams, property, functions)| {
        functions.into_iter().fold(format!("{teams}{property}"), |inner, function| format!("{function}({inner})"))
    })
}

/// An expression that fits more often: numbers.
fn numbers() -> impl Strategy<Value = String> {
    let function = select(&["min", "max", "avg", "median", "sum", "stddev"][..]);
    let of_skill = (teams(), function, any::<bool>()).prop_map(|(teams, function, flat)| match flat {
        true => format!("{function}(flatten({teams}.attributes[skill]))"),
        false => format!("{function}({teams}.attributes[skill])"),
    });
    prop_oneof![
        3 => of_skill,
        1 => teams().prop_map(|teams| format!("{teams}.attributes[skill]")),
        1 => teams().prop_map(|teams| format!("count({teams})")),
        2 => expression(),
    ]
}

fn lists() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => teams().prop_map(|teams| format!("flatten({teams}.attributes[modes])")),
        2 => teams().prop_map(|teams| format!("{teams}.attributes[modes]")),
        1 => teams().prop_map(|teams| format!("set_intersection({teams}.attributes[modes])")),
        1 => teams().prop_map(|teams| format!("set_intersection(flatten({teams}.attributes[modes]))")),
        1 => teams().prop_map(|teams| format!("flatten({teams}[playerId])")),
        1 => expression(),
    ]
}

fn reference() -> impl Strategy<Value = Json> {
    prop_oneof![number(), numbers().prop_map(Json::from), select(&TEXTS[..]).prop_map(Json::from)]
}

/// Adds a property in half of the cases.
fn maybe(name: &'static str, value: impl Strategy<Value = Json>) -> impl Strategy<Value = Option<(String, Json)>> {
    prop::option::of(value.prop_map(move |value| (name.to_owned(), value)))
}

fn rule() -> impl Strategy<Value = Json> {
    let with = |base: Json, more: Vec<Option<(String, Json)>>| {
        let mut rule = base;
        for (name, value) in more.into_iter().flatten() {
            rule[name] = value;
        }
        rule
    };
    let party = || maybe("partyAggregation", select(&["avg", "min", "max"][..]).prop_map(Json::from));
    let party_of_lists = maybe("partyAggregation", select(&["union", "intersection"][..]).prop_map(Json::from));
    let distance = |name| maybe(name, select(&[0.0, 1.0, 2.5, 20.0][..]).prop_map(Json::from));
    let count = |name| maybe(name, (0_u32..4).prop_map(Json::from));
    let operation = select(&["<", "<=", "=", "!=", ">=", ">"][..]);
    let comparison = (prop_oneof![numbers(), expression()], operation, maybe("referenceValue", reference()), party())
        .prop_map(move |(measurement, operation, reference, party)| {
            with(
                json!({"type": "comparison", "measurements": [measurement], "operation": operation}),
                vec![reference, party],
            )
        });
    let distances = (numbers(), reference(), distance("minDistance"), distance("maxDistance"), party()).prop_map(
        move |(measurement, reference, min, max, party)| {
            with(
                json!({"type": "distance", "measurements": [measurement], "referenceValue": reference}),
                vec![min, max, party],
            )
        },
    );
    let operation = prop_oneof![
        Just(("intersection", None)),
        select(&TEXTS[..]).prop_map(|text| ("contains", Some(json!(text)))),
        lists().prop_map(|list| ("reference_intersection_count", Some(json!(list)))),
        Just(("reference_intersection_count", Some(json!(["a", "b"])))),
    ];
    let collection = (lists(), operation, count("minCount"), count("maxCount"), party_of_lists).prop_map(
        move |(measurement, (operation, reference), min, max, party)| {
            let reference = reference.map(|reference| ("referenceValue".to_owned(), reference));
            with(
                json!({"type": "collection", "measurements": [measurement], "operation": operation}),
                vec![reference, min, max, party],
            )
        },
    );
    let near = prop::option::of((select(&["min", "avg"][..]), select(&[0.0, 10.0, 30.0][..])));
    let latency = (maybe("maxLatency", select(&[20.0, 45.0, 100.0][..]).prop_map(Json::from)), near, party()).prop_map(
        move |(max, near, party)| {
            let near = near.map(|(reference, distance)| {
                [("distanceReference".to_owned(), json!(reference)), ("maxDistance".to_owned(), json!(distance))]
            });
            let near = near.into_iter().flatten().map(Some);
            with(json!({"type": "latency"}), [max, party].into_iter().chain(near).collect())
        },
    );
    let statement =
        select(&["or(R0, R1)", "and(R0, R1)", "xor(R0, R1, R2)", "not(R0)", "or(and(R0, not(R1)), R2)", "not(R2)"][..]);
    let compound = statement.prop_map(|statement| json!({"type": "compound", "statement": statement}));
    let batch =
        (select(&["skill", "map"][..]), distance("maxDistance"), party()).prop_map(move |(attribute, max, party)| {
            with(json!({"type": "batchDistance", "batchAttribute": attribute}), vec![max, party])
        });
    let sort = select(&["ascending", "descending"][..])
        .prop_map(|direction| json!({"type": "distanceSort", "sortAttribute": "skill", "sortDirection": direction}));
    prop_oneof![4 => comparison, 3 => distances, 4 => collection, 2 => latency, 3 => compound, 1 => batch, 1 => sort]
}

fn team(name: &'static str) -> impl Strategy<Value = Json> {
    (0_u32..3, 0_u32..3, 1_u32..3).prop_map(move |(min, more, quantity)| {
        json!({"name": name, "minPlayers": min, "maxPlayers": (min + more).max(1), "quantity": quantity})
    })
}

fn expansion() -> impl Strategy<Value = Json> {
    let rule = select(&["R0", "R1", "R2", "R3"][..]);
    let property = select(&["maxDistance", "minCount", "maxCount", "maxLatency", "referenceValue", "minDistance"][..]);
    let of_rule = (rule, property).prop_map(|(rule, property)| format!("rules[{rule}].{property}"));
    let of_team = select(&["teams[red].minPlayers", "teams[red, blue].minPlayers", "teams[blue].maxPlayers"][..]);
    let target = prop_oneof![of_rule, of_team.prop_map(str::to_owned)];
    (target, 0_u32..4, 1_u32..9).prop_map(|(target, first, second)| {
        let steps = [json!({"waitTimeSeconds": 3, "value": first}), json!({"waitTimeSeconds": 6, "value": second})];
        json!({"target": target, "steps": steps})
    })
}

/// A rule set that the check accepts: of random rules and expansions, those are left out that it refuses.
fn document() -> impl Strategy<Value = Json> {
    let age = select(&["newest", "oldest"][..]);
    let parts = (prop::collection::vec(rule(), 0..12), prop::collection::vec(expansion(), 0..6));
    (team("red"), team("blue"), parts, age).prop_map(|(red, blue, (rules, expansions), age)| {
        let mut document = json!({
            "ruleLanguageVersion": "1.0",
            "algorithm": {"expansionAgeSelection": age},
            "playerAttributes": [
                {"name": "skill", "type": "number"},
                {"name": "map", "type": "string"},
                {"name": "modes", "type": "string_list"},
            ],
            "teams": [red, blue], "rules": [], "expansions": [],
        });
        for mut rule in rules {
            rule["name"] = json!(format!("R{}", document["rules"].as_array().unwrap().len()));
            add(&mut document, "rules", rule);
        }
        for expansion in expansions {
            add(&mut document, "expansions", expansion);
        }
        document
    })
}

/// Adds an element to a list of the document, unless the check refuses it.
fn add(document: &mut Json, list: &str, element: Json) {
    document[list].as_array_mut().unwrap().push(element);
    if accepted(document).is_none() {
        document[list].as_array_mut().unwrap().pop();
    }
}

type Member = (f64, &'static str, Vec<&'static str>, Vec<Option<f64>>);

fn member() -> impl Strategy<Value = Member> {
    let latency = || prop::option::weighted(0.8, select(&[10.0, 20.0, 45.0, 46.0][..]));
    let modes = prop::sample::subsequence(&TEXTS[..], 0..=TEXTS.len());
    (select(&NUMBERS[..]), select(&TEXTS[..]), modes, prop::collection::vec(latency(), 2))
}

/// Players of a ticket, and for how many seconds it has waited at the time 10 s.
fn group() -> impl Strategy<Value = (Vec<Member>, i64)> {
    let members = prop_oneof![3 => prop::collection::vec(member(), 1), 1 => prop::collection::vec(member(), 2..4)];
    (members, 0_i64..10)
}

const NOW_MS: i64 = 10_000;

fn ticket(number: usize, (members, age): &(Vec<Member>, i64)) -> Ticket {
    let player = |(index, (skill, map, modes, latencies)): (usize, &Member)| {
        let modes = modes.iter().map(|mode| (*mode).to_owned()).collect();
        let latencies =
            ["eu", "us"].into_iter().zip(latencies).filter_map(|(name, latency)| Some((name.to_owned(), (*latency)?)));
        garage_rules::ticket::Player {
            id: format!("{number}-{index}"),
            values: vec![Value::Number(*skill), Value::Text((*map).to_owned()), Value::TextList(modes)],
            latencies: latencies.collect(),
        }
    };
    Ticket { players: members.iter().enumerate().map(player).collect(), since_ms: NOW_MS - age * 1_000 }
}

fn verdict(rule_set: &RuleSet, teams: &[Vec<Ticket>]) -> Verdict {
    let candidate = Candidate { teams: teams.iter().map(|team| team.iter().collect()).collect() };
    let evaluation = rule_set.evaluate(&candidate, NOW_MS);
    let failed = evaluation.failed.iter().map(|rule| rule_set.rules[*rule].name.clone()).collect();
    let (age, sizes) = (evaluation.age, evaluation.sizes);
    Verdict { age, sizes, failed, location: evaluation.location, holds: evaluation.holds }
}

fn accepted(document: &Json) -> Option<RuleSet> {
    check(&document.to_string(), Options { extensions: true, ..Options::default() }).rule_set
}

/// All ways to put tickets into teams, each ticket in one team or in none.
fn ways(tickets: usize, teams: usize) -> impl Iterator<Item = Vec<usize>> {
    let count = (teams + 1).pow(u32::try_from(tickets).unwrap());
    (0..count).map(move |mut way| {
        let places = (0..tickets).map(|_| {
            let place = way % (teams + 1);
            way /= teams + 1;
            place
        });
        places.collect()
    })
}

/// The teams of a way: tickets with the place of the number of teams are left out.
fn split(pool: &[Ticket], way: &[usize], teams: usize) -> Vec<Vec<Ticket>> {
    let of =
        |team: usize| pool.iter().zip(way).filter(move |(_, place)| **place == team).map(|(ticket, _)| ticket.clone());
    (0..teams).map(|team| of(team).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

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
            let latencies = BTreeMap::from([("eu".to_owned(), 50.0)]);
            let player = PlayerRequest { id: number.to_string(), attributes, latencies };
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
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// In a small pool, the matcher makes a match if there is one, and the oldest ticket that is in a possible match is
    /// in the largest one.
    #[test]
    fn the_matcher_finds_the_largest_match_of_the_oldest_ticket(document in document(), groups in prop::collection::vec(group(), 0..5)) {
        let rule_set = accepted(&document).unwrap();
        let pool: Vec<_> = groups.iter().enumerate().map(|(number, group)| ticket(number, group)).collect();
        let count = rule_set.teams.len();
        let mut order: Vec<usize> = (0..pool.len()).collect();
        order.sort_by_key(|index| pool[*index].since_ms);
        // For each ticket, as the oldest one of a match: the most players, and the places of the first such tickets.
        let mut largest: BTreeMap<usize, (usize, Reverse<Vec<usize>>)> = BTreeMap::new();
        for way in ways(pool.len(), count) {
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
