//! Random rule sets and tickets.

use garage_rules::{
    Options, check,
    rule_set::{RuleSet, Value},
    ticket::Ticket,
};
use proptest::{prelude::*, sample::select};
use serde_json::{Value as Json, json};

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
pub(super) fn document() -> impl Strategy<Value = Json> {
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

pub(super) type Member = (f64, &'static str, Vec<&'static str>, Vec<Option<f64>>);

fn member() -> impl Strategy<Value = Member> {
    let latency = || prop::option::weighted(0.8, select(&[10.0, 20.0, 45.0, 46.0][..]));
    let modes = prop::sample::subsequence(&TEXTS[..], 0..=TEXTS.len());
    (select(&NUMBERS[..]), select(&TEXTS[..]), modes, prop::collection::vec(latency(), 2))
}

/// Players of a ticket, and for how many seconds it has waited at the time 10 s.
pub(super) fn group() -> impl Strategy<Value = (Vec<Member>, i64)> {
    let members = prop_oneof![3 => prop::collection::vec(member(), 1), 1 => prop::collection::vec(member(), 2..4)];
    (members, 0_i64..10)
}

pub(super) const NOW_MS: i64 = 10_000;

pub(super) fn ticket(number: usize, (members, age): &(Vec<Member>, i64)) -> Ticket {
    let player = |(index, (skill, map, modes, latencies)): (usize, &Member)| {
        let modes = modes.iter().map(|mode| (*mode).to_owned()).collect();
        let latencies = ["eu", "us"].into_iter().zip(latencies).filter_map(|(name, latency)| Some((name, (*latency)?)));
        garage_rules::ticket::Player {
            id: format!("{number}-{index}").into(),
            values: vec![Value::Number(*skill), Value::Text((*map).to_owned()), Value::TextList(modes)].into(),
            latencies: latencies.collect(),
        }
    };
    Ticket { players: members.iter().enumerate().map(player).collect(), since_ms: NOW_MS - age * 1_000 }
}

pub(super) fn accepted(document: &Json) -> Option<RuleSet> {
    check(&document.to_string(), Options { extensions: true, ..Options::default() }).rule_set
}
