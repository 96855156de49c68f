//! Examples of the language and of the decisions of Garage.

use garage_rules::{
    rule_set::Value,
    ticket::{Player, Ticket},
};
use serde_json::{Value as Json, json};

use super::{compound, satisfies};

/// A ticket with a player for each value. The players know the locations `a` and `b`.
fn party_of(age: i64, players: &[(Value, [f64; 2])]) -> Ticket {
    let players = players.iter().map(|(value, [a, b])| Player {
        id: "id".into(),
        values: [value.clone()].into(),
        latencies: [("a", *a), ("b", *b)].into_iter().collect(),
    });
    Ticket { players: players.collect(), since_ms: -1_000 * age }
}

/// Tickets of one player each.
fn team(values: &[Value]) -> Vec<Ticket> {
    values.iter().map(|value| party_of(0, &[(value.clone(), [10.0, 20.0])])).collect()
}

fn numbers(numbers: &[f64]) -> Vec<Ticket> {
    team(&numbers.iter().copied().map(Value::Number).collect::<Vec<_>>())
}

fn lists(lists: &[&[&str]]) -> Vec<Ticket> {
    let list = |list: &&[&str]| Value::TextList(list.iter().copied().map(String::from).collect());
    team(&lists.iter().map(list).collect::<Vec<_>>())
}

/// Two teams, `red` and `blue`, of players with one attribute, `x`.
fn rule_set(kind: &str, rules: &Json) -> Json {
    json!({
        "ruleLanguageVersion": "1.0",
        "playerAttributes": [{ "name": "x", "type": kind }],
        "teams": [
            { "name": "red", "minPlayers": 0, "maxPlayers": "9" },
            { "name": "blue", "minPlayers": 0, "maxPlayers": 9 },
        ],
        "rules": rules,
    })
}

/// Whether a match satisfies a rule set with only this rule.
#[track_caller]
fn holds(kind: &str, mut rule: Json, teams: &[Vec<Ticket>]) -> bool {
    rule["name"] = "r".into();
    satisfies(&rule_set(kind, &json!([rule])), teams, 0).unwrap().holds
}

/// 3, 3 and 4 players are close, but not 3, 5 and 5.
#[test]
fn team_sizes() {
    let mut set = rule_set(
        "number",
        &json!([{
            "name": "close", "type": "distance", "maxDistance": 1,
            "measurements": ["max(count (teams[trio].players))"],
            "referenceValue": "min(count(teams[trio_3, trio_1, trio_2].players))",
        }]),
    );
    set["teams"] = json!([{ "name": "trio", "minPlayers": 3, "maxPlayers": 5, "quantity": 3 }]);
    let verdict = |sizes: [usize; 3]| {
        let verdict = satisfies(&set, &sizes.map(|size| numbers(&vec![0.0; size])), 0).unwrap();
        assert_eq!(verdict.holds, verdict.sizes && verdict.failed.is_empty());
        (verdict.sizes, verdict.failed.join(" "))
    };
    assert_eq!(verdict([3, 3, 4]), (true, String::new()));
    assert_eq!(verdict([3, 5, 5]), (true, "close".into()));
    assert_eq!(verdict([2, 3, 3]), (false, String::new()));
    assert_eq!(verdict([5, 5, 6]), (false, String::new()));
    assert!(satisfies(&set, &[numbers(&[]), numbers(&[])], 0).is_err());
}

/// The second example of LANGUAGE.md §7: by the newest ticket, two players match when they are 25 and 15 s old.
#[test]
fn expansions_follow_the_age_of_the_newest_ticket() {
    let mut set = rule_set("number", &json!([]));
    let steps = [(5, 3), (15, 2), (45, 1)].map(|(wait, value)| json!({ "waitTimeSeconds": wait, "value": value }));
    set["teams"] = json!([{ "name": "all", "minPlayers": 4, "maxPlayers": 4 }]);
    set["expansions"] = json!([{ "target": "teams[all].minPlayers", "steps": steps }]);
    let holds = |set: &Json, ages: &[i64], now_ms| {
        let tickets = ages.iter().map(|age| party_of(*age, &[(Value::Number(0.0), [0.0; 2])])).collect();
        let verdict = satisfies(set, &[tickets], now_ms).unwrap();
        (verdict.holds, verdict.age)
    };
    assert_eq!(holds(&set, &[25, 15], -1), (false, 14));
    assert_eq!(holds(&set, &[25, 15], 0), (true, 15));
    assert_eq!(holds(&set, &[44], 0), (false, 44));
    assert_eq!(holds(&set, &[45], 0), (true, 45));
    // Without tickets, and before a ticket exists, the age is 0.
    assert_eq!(holds(&set, &[], 0), (false, 0));
    assert_eq!(holds(&set, &[45], -60_000), (false, 0));
    set["algorithm"] = json!({ "expansionAgeSelection": "oldest" });
    assert_eq!(holds(&set, &[14, 15], 0), (true, 15));
}

/// A step replaces the whole property, which may be a list or an expression.
#[test]
fn an_expansion_can_make_a_rule_void() {
    let mut set = rule_set(
        "string_list",
        &json!([{
            "name": "blocked", "type": "collection", "operation": "reference_intersection_count",
            "measurements": "flatten(teams[*].players.attributes[x])", "maxCount": 0,
            "referenceValue": "flatten(teams[*].players[playerId])",
        }]),
    );
    let step = json!({ "waitTimeSeconds": "15", "value": ["somebody else"] });
    set["expansions"] = json!([{ "target": "rules[blocked].referenceValue", "steps": [step] }]);
    let teams = [lists(&[&[], &["a", "id"]]), lists(&[&["b"]])];
    assert_eq!(satisfies(&set, &teams, 14_999).unwrap().failed, ["blocked"]);
    assert!(satisfies(&set, &teams, 15_000).unwrap().holds);
    assert!(satisfies(&set, &[lists(&[&["a"]]), lists(&[&[]])], 0).unwrap().holds);
}

/// A named rule does not count by itself, not even if the compound rule that names it does not count.
#[test]
fn compound_rules_replace_the_rules_that_they_name() {
    let rule = |name: &str, value: f64| {
        json!({
            "name": name, "type": "comparison", "measurements": "flatten(teams[*].players.attributes[x])",
            "operation": "=", "referenceValue": value,
        })
    };
    let both = json!({ "name": "both", "type": "compound", "statement": "and(one, two)" });
    let not_both = json!({ "name": "not both", "type": "compound", "statement": "not(both)" });
    let failed = |rules: &[Json]| {
        let set = rule_set("number", &rules.iter().cloned().collect());
        satisfies(&set, &[numbers(&[1.0]), numbers(&[])], 0).map(|verdict| verdict.failed.join(" "))
    };
    assert_eq!(failed(&[rule("one", 1.0), rule("two", 2.0)]).unwrap(), "two");
    assert_eq!(failed(&[rule("one", 1.0), rule("two", 2.0), both.clone()]).unwrap(), "both");
    assert_eq!(failed(&[rule("one", 1.0), rule("two", 2.0), both.clone(), not_both]).unwrap(), "");
    assert!(failed(&[rule("one", 1.0), both, rule("two", 2.0)]).is_err());
}

#[test]
fn statements() {
    let result = |source: &str| {
        let rule = json!({ "statement": source });
        let holds = compound(&rule, &mut |name| ["yes", "no"].contains(&name).then_some(name == "yes"));
        holds.ok()
    };
    assert_eq!(result("xor(yes, no, no)"), Some(true));
    assert_eq!(result("xor(yes,yes,no)"), Some(false));
    assert_eq!(result(" or ( no , not( no ) ) "), Some(true));
    assert_eq!(result("and(yes, not(and(yes, yes)))"), Some(false));
    for wrong in ["yes", "and(yes)", "not(yes, no)", "or(yes, no", "or(yes, other)", "or(yes, no))", "or(yes,)", ""] {
        assert_eq!(result(wrong), None, "{wrong}");
    }
    let nested = |levels| format!("{}yes{}", "not(".repeat(levels), ")".repeat(levels));
    assert_eq!(result(&nested(32)), Some(true));
    assert_eq!(result(&nested(33)), None);
}

#[test]
fn an_aggregate_of_nothing_fails() {
    let rule = |function: &str| {
        let source = format!("{function}(teams[blue].players.attributes[x])");
        json!({ "type": "distance", "measurements": source, "referenceValue": 0, "maxDistance": "100" })
    };
    for function in ["avg", "min", "max", "median", "stddev"] {
        assert!(!holds("number", rule(function), &[numbers(&[1.0]), numbers(&[])]), "{function}");
        assert!(holds("number", rule(function), &[numbers(&[]), numbers(&[1.0])]), "{function}");
    }
    for function in ["sum", "count"] {
        assert!(holds("number", rule(function), &[numbers(&[1.0]), numbers(&[])]), "{function}");
    }
}

#[test]
fn aggregates() {
    let equals = |function: &str, value: f64| {
        let source = format!("{function}(flatten(teams[red, blue].players.attributes[x]))");
        let rule = json!({ "type": "comparison", "measurements": [source], "operation": "=", "referenceValue": value });
        holds("number", rule, &[numbers(&[4.0, 2.0]), numbers(&[8.0, 6.0])])
    };
    assert!(equals("median", 5.0));
    assert!(equals("stddev", 5.0_f64.sqrt()));
    assert!(equals("avg", 5.0));
    assert!(equals("sum", 20.0));
    assert!(equals("count", 4.0));
}

#[test]
fn a_party_has_one_number_and_each_text() {
    let party = party_of(0, &[(Value::Number(0.0), [0.0; 2]), (Value::Number(4.0), [0.0; 2])]);
    let rule = |aggregation, value| {
        let source = "players.attributes[x]";
        json!({
            "type": "comparison", "measurements": [source, "count(players)"], "operation": "=",
            "referenceValue": value, "partyAggregation": aggregation,
        })
    };
    let teams = [vec![party], vec![]];
    assert!(holds("number", rule("avg", 2), &teams));
    assert!(!holds("number", rule("max", 4), &teams));
    let batch = json!({ "type": "batchDistance", "batchAttribute": "x", "maxDistance": 2 });
    assert!(holds("number", batch.clone(), &[teams[0].clone(), numbers(&[4.0])]));
    assert!(!holds("number", batch, &[teams[0].clone(), numbers(&[4.1])]));
    let texts = party_of(0, &["a", "b"].map(|text| (Value::Text(text.into()), [0.0; 2])));
    let all =
        |operation| json!({ "type": "comparison", "measurements": "players.attributes[x]", "operation": operation });
    let same = json!({ "type": "batchDistance", "batchAttribute": "x" });
    assert!(holds("string", all("!="), &[vec![texts.clone()], vec![]]));
    assert!(!holds("string", all("="), &[vec![texts.clone()], vec![]]));
    assert!(!holds("string", same, &[vec![texts], vec![]]));
}

#[test]
fn collections_follow_the_nesting_of_the_expression() {
    let rule = |operation: &str, source: &str, min: u32, max: u32| {
        json!({
            "type": "collection", "operation": operation, "measurements": source, "minCount": min, "maxCount": max,
            "referenceValue": if operation == "contains" { json!("m") } else { json!(["m"]) },
        })
    };
    let teams = [lists(&[&["m", "a"], &["m"], &["b"]]), lists(&[&["m"]])];
    let check = |operation, source, min, max| holds("string_list", rule(operation, source, min, max), &teams);
    let (by_team, by_player) = ("teams[*].players.attributes[x]", "flatten(teams[*].players.attributes[x])");
    let flat = "flatten(flatten(teams[*].players.attributes[x]))";
    assert!(check("contains", by_player, 3, 3));
    assert!(check("contains", flat, 3, 3));
    assert!(check("contains", by_team, 1, 2));
    assert!(!check("contains", by_team, 2, 2));
    assert!(check("intersection", by_player, 0, 0));
    assert!(check("intersection", flat, 3, 3));
    assert!(check("intersection", "flatten(teams[red, blue].players.attributes[x])", 0, 0));
    assert!(check("reference_intersection_count", by_player, 0, 1));
    assert!(!check("reference_intersection_count", by_player, 1, 1));
    let nothing = [lists(&[]), lists(&[])];
    assert!(!holds(
        "string_list",
        json!({ "type": "collection", "operation": "intersection", "measurements": flat }),
        &nothing
    ));
    let union =
        [vec![Ticket { players: teams.concat().into_iter().flat_map(|t| t.players).collect(), since_ms: 0 }], vec![]];
    assert!(holds("string_list", rule("contains", by_player, 4, 4), &union));
}

#[test]
fn latency_rules_need_one_location() {
    let teams = |red: [f64; 2], blue: [f64; 2]| {
        [red, blue].map(|latencies| vec![party_of(0, &[(Value::Number(0.0), latencies)])])
    };
    let set = |statement: Option<&str>| {
        let near = json!({ "name": "near", "type": "latency", "maxLatency": 50 });
        let equal = json!({ "name": "equal", "type": "latency", "maxDistance": 10, "distanceReference": "min" });
        let compound = statement.map(|text| json!({ "name": "c", "type": "compound", "statement": text }));
        rule_set("number", &[near, equal].into_iter().chain(compound).collect())
    };
    let verdict = |statement, teams: &[Vec<Ticket>]| {
        let verdict = satisfies(&set(statement), teams, 0).unwrap();
        (verdict.holds, verdict.failed.join(" "), verdict.location.unwrap_or_default())
    };
    // Each rule holds somewhere, but not in the same location.
    let apart = teams([10.0, 60.0], [30.0, 60.0]);
    assert_eq!(verdict(None, &apart), (false, String::new(), String::new()));
    assert_eq!(verdict(Some("and(near, equal)"), &apart), (false, "c".into(), String::new()));
    assert_eq!(verdict(Some("or(near, equal)"), &apart), (true, String::new(), "a".into()));
    assert_eq!(verdict(Some("and(equal, not(near))"), &apart), (true, String::new(), "b".into()));
    // A latency may be equal to the limit. The least worst latency decides, then the sum.
    assert_eq!(verdict(None, &teams([50.0, 50.0], [49.0, 48.0])), (true, String::new(), "b".into()));
    let mut unknown = teams([10.0, 10.0], [10.0, 10.0]);
    unknown[0][0].players[0].latencies = Default::default();
    assert_eq!(verdict(None, &unknown), (false, "near equal".into(), String::new()));
    assert_eq!(verdict(Some("not(and(near, equal))"), &unknown), (false, String::new(), String::new()));
}

#[test]
fn what_is_not_understood_is_an_error() {
    let wrong = |kind: &str, mut rule: Json| {
        rule["name"] = "r".into();
        satisfies(&rule_set(kind, &json!([rule])), &[numbers(&[]), numbers(&[])], 0).unwrap_err();
    };
    let comparison = |source: &str, operation: &str, reference: &str| json!({ "type": "comparison", "measurements": [source], "operation": operation, "referenceValue": reference });
    wrong("number", comparison("avg(teams[red].players.x)", "=", "1"));
    wrong("number", comparison("avg(teams[green].players.attributes[x])", "=", "1"));
    wrong("number", comparison("flatten(teams[red].players.attributes[x])", "=", "1"));
    wrong("number", comparison("players.attributes[x]", "=", "teams[red].players.attributes[x]"));
    wrong("number", comparison("players.attributes[x]", "=", "medic"));
    wrong("string", comparison("players.attributes[x]", "<", "medic"));
    wrong("string", comparison("avg(players.attributes[x])", "=", "1"));
    wrong("string_number_map", comparison("count(players.attributes[x])", "=", "1"));
    wrong("number", json!({ "type": "latency", "maxDistance": 5 }));
    wrong("number", json!({ "type": "unknown" }));
}
