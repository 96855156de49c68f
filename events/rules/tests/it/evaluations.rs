//! Which matches satisfy the rules.

use std::slice;

use garage_rules::rule_set::{RuleSet, Value};

use crate::support::{evaluate, failed, group, list, number, player, rule_set, solo, text};

const RED_BLUE: &str = r#""teams": [{"name": "red", "minPlayers": 0, "maxPlayers": 10}, {"name": "blue", "minPlayers": 0, "maxPlayers": 10}]"#;

/// Two teams, the attributes skill, map and modes, and one rule.
fn with_rule(rule: &str) -> RuleSet {
    rule_set(&format!(
        r#"{RED_BLUE}, "playerAttributes": [{{"name": "skill", "type": "number", "default": 0}},
            {{"name": "map", "type": "string", "default": "a"}}, {{"name": "modes", "type": "string_list", "default": []}}],
            "rules": [{{"name": "A", {rule}}}]"#
    ))
}

/// Whether a rule holds for a red and a blue team with these values of an attribute.
fn holds(rule: &str, attribute: &str, red: &[Value], blue: &[Value]) -> bool {
    let rules = with_rule(rule);
    let team = |name: &str, values: &[Value]| {
        let player =
            |(index, value): (usize, &Value)| solo(&rules, &format!("{name}{index}"), &[(attribute, value.clone())], 0);
        values.iter().enumerate().map(player).collect::<Vec<_>>()
    };
    let evaluation = evaluate(&rules, &[&team("red", red), &team("blue", blue)], 0);
    assert_eq!(evaluation.holds, evaluation.failed.is_empty());
    evaluation.holds
}

fn numbers(values: &[f64]) -> Vec<Value> {
    values.iter().copied().map(Value::Number).collect()
}

#[test]
fn a_function_works_on_each_inner_list() {
    // Red has 1, 2 and 6; blue has 10.
    let cases = [
        ("min(flatten(teams[*].players.attributes[skill]))", 1.0),
        ("max(flatten(teams[*].players.attributes[skill]))", 10.0),
        ("avg(teams[red].players.attributes[skill])", 3.0),
        ("median(teams[red].players.attributes[skill])", 2.0),
        ("median(flatten(teams[*].players.attributes[skill]))", 4.0),
        ("sum(flatten(teams[*].players.attributes[skill]))", 19.0),
        ("count(teams[*])", 2.0),
        ("count(teams[red].players)", 3.0),
        ("count(flatten(teams[*].players))", 4.0),
        ("max(count(teams[*].players))", 3.0),
        ("min(avg(teams[*].players.attributes[skill]))", 3.0),
        ("max(avg(teams[red, blue].players.attributes[skill]))", 10.0),
        ("count(flatten(teams[*].players[playerId]))", 4.0),
        ("stddev(count(teams[*].players))", 1.0),
    ];
    for (expression, expected) in cases {
        let rule = |value: f64| {
            format!(
                r#""type": "comparison", "measurements": ["{expression}"], "operation": "=", "referenceValue": {value}"#
            )
        };
        let (red, blue) = (numbers(&[1.0, 2.0, 6.0]), numbers(&[10.0]));
        assert!(holds(&rule(expected), "skill", &red, &blue), "{expression} is {expected}");
        assert!(!holds(&rule(expected + 1.0), "skill", &red, &blue), "{expression} is not {expected} + 1");
    }
}

#[test]
fn an_average_of_nothing_has_no_value_and_a_sum_is_zero() {
    let rule = |function: &str| {
        format!(
            r#""type": "comparison", "measurements": ["{function}(teams[*].players.attributes[skill])"],
            "operation": "<", "referenceValue": 100"#
        )
    };
    for function in ["avg", "min", "max", "median", "stddev"] {
        assert!(holds(&rule(function), "skill", &numbers(&[1.0]), &numbers(&[1.0])), "{function}");
        assert!(!holds(&rule(function), "skill", &numbers(&[1.0]), &[]), "{function}");
    }
    for function in ["sum", "count"] {
        assert!(holds(&rule(function), "skill", &numbers(&[1.0]), &[]), "{function}");
    }
}

#[test]
fn a_comparison_holds_for_each_value() {
    let compare = |operation: &str| {
        format!(
            r#""type": "comparison", "measurements": ["teams[*].players.attributes[skill]"],
            "operation": "{operation}", "referenceValue": "5""#
        )
    };
    let cases = [
        ("<", [4.0, 5.0]),
        ("<=", [5.0, 6.0]),
        ("=", [5.0, 6.0]),
        ("!=", [4.0, 5.0]),
        (">=", [5.0, 4.0]),
        (">", [6.0, 5.0]),
    ];
    for (operation, [fits, does_not]) in cases {
        assert!(holds(&compare(operation), "skill", &numbers(&[fits]), &numbers(&[fits, fits])), "{operation}");
        assert!(!holds(&compare(operation), "skill", &numbers(&[fits]), &numbers(&[fits, does_not])), "{operation}");
    }
    let same_map = r#""type": "comparison", "measurements": ["teams[red].players.attributes[map]"], "operation": "=", "referenceValue": "x""#;
    assert!(holds(same_map, "map", &[text("x")], &[text("y")]));
    assert!(!holds(same_map, "map", &[text("x"), text("y")], &[]));
}

#[test]
fn a_comparison_without_a_reference_compares_the_players_with_each_other() {
    let across = |operation: &str| {
        format!(
            r#""type": "comparison", "measurements": ["flatten(teams[*].players.attributes[map])"], "operation": "{operation}""#
        )
    };
    let [x, y, z] = ["x", "y", "z"].map(text);
    assert!(holds(&across("="), "map", &[x.clone(), x.clone()], slice::from_ref(&x)));
    assert!(!holds(&across("="), "map", &[x.clone(), x.clone()], slice::from_ref(&y)));
    assert!(holds(&across("!="), "map", &[x.clone(), y.clone()], &[z]));
    assert!(!holds(&across("!="), "map", &[x.clone(), y], &[x]));
}

#[test]
fn a_distance_is_inclusive() {
    let rule = r#""type": "distance", "measurements": ["teams[red].players.attributes[skill]"], "referenceValue": 10,
        "minDistance": 2, "maxDistance": 5"#;
    for (value, expected) in
        [(8.0, true), (8.1, false), (5.0, true), (4.9, false), (15.0, true), (12.0, true), (11.0, false)]
    {
        assert_eq!(holds(rule, "skill", &numbers(&[value]), &[]), expected, "{value}");
    }
}

/// Sizes of three teams that differ by at most one: 3, 3 and 4 fit; 3, 5 and 5 do not.
#[test]
fn team_sizes_can_be_kept_close() {
    let rules = rule_set(
        r#""teams": [{"name": "trio", "minPlayers": 3, "maxPlayers": 5, "quantity": 3}],
        "rules": [{"name": "Close", "type": "distance", "measurements": ["max(count(teams[*].players))"],
            "referenceValue": "min(count(teams[*].players))", "maxDistance": 1}]"#,
    );
    let holds = |sizes: [usize; 3]| {
        let teams =
            sizes.map(|size| (0..size).map(|index| solo(&rules, &index.to_string(), &[], 0)).collect::<Vec<_>>());
        evaluate(&rules, &[&teams[0], &teams[1], &teams[2]], 0).holds
    };
    assert!(holds([3, 3, 4]));
    assert!(!holds([3, 5, 5]), "the sizes differ by two");
    assert!(!holds([2, 3, 3]), "a team has too few players");
}

#[test]
fn an_intersection_counts_the_values_in_every_list() {
    let rule = |measurement: &str, min: u32| {
        format!(
            r#""type": "collection", "operation": "intersection", "measurements": ["{measurement}"], "minCount": {min}"#
        )
    };
    let (red, blue) = ([list(&["a", "b", "c"]), list(&["b", "c"])], [list(&["a", "c"])]);
    let all = "flatten(teams[*].players.attributes[modes])";
    assert!(holds(&rule(all, 1), "modes", &red, &blue));
    assert!(!holds(&rule(all, 2), "modes", &red, &blue));
    let each_team = "teams[*].players.attributes[modes]";
    assert!(holds(&rule(each_team, 2), "modes", &red, &blue));
    assert!(!holds(&rule(each_team, 3), "modes", &red, &blue));
}

#[test]
fn contains_counts_the_players_with_a_value() {
    let rule = r#""type": "collection", "operation": "contains", "measurements": ["flatten(teams[*].players.attributes[modes])"],
        "referenceValue": "medic", "minCount": 1, "maxCount": 2"#;
    let players = |medics: usize| vec![list(&["medic", "scout"]); medics];
    for (medics, expected) in [(0, false), (1, true), (2, true), (3, false)] {
        assert_eq!(holds(rule, "modes", &players(medics), &[list(&["scout"])]), expected, "{medics} medics");
    }
    let unbounded = r#""type": "collection", "operation": "contains", "measurements": ["flatten(teams[*].players.attributes[modes])"],
        "referenceValue": "medic""#;
    assert!(holds(unbounded, "modes", &players(1), &[]));
    assert!(!holds(unbounded, "modes", &[], &[list(&[])]));
}

/// A list of players whom a player does not want to meet. One id on one list refuses the match.
#[test]
fn a_block_list_refuses_a_match_with_a_blocked_player() {
    let rule = r#""type": "collection", "operation": "reference_intersection_count",
        "measurements": ["flatten(teams[*].players.attributes[modes])"],
        "referenceValue": "flatten(teams[*].players[playerId])", "maxCount": 0"#;
    assert!(holds(rule, "modes", &[list(&["zoe"]), list(&[])], &[list(&[])]));
    assert!(!holds(rule, "modes", &[list(&["zoe"]), list(&[])], &[list(&["red1"])]));
}

#[test]
fn each_list_is_held_against_the_reference_by_itself() {
    let rules = rule_set(&format!(
        r#"{RED_BLUE}, "playerAttributes": [{{"name": "mine", "type": "string_list"}}, {{"name": "wanted", "type": "string_list"}}],
        "rules": [{{"name": "Wanted", "type": "collection", "operation": "reference_intersection_count",
            "measurements": ["flatten(teams[*].players.attributes[mine])"],
            "referenceValue": "set_intersection(flatten(teams[*].players.attributes[wanted]))", "minCount": 1}}],
        "expansions": [{{"target": "rules[Wanted].minCount", "steps": [{{"waitTimeSeconds": 15, "value": 0}}]}}]"#
    ));
    let ticket = |id: &str, mine: &str, wanted: &[&str]| {
        solo(&rules, id, &[("mine", list(&[mine])), ("wanted", list(wanted))], 0)
    };
    let liked = [ticket("a", "elf", &["orc", "elf"]), ticket("b", "orc", &["elf", "orc"])];
    let disliked = [ticket("a", "elf", &["orc", "elf"]), ticket("b", "orc", &["elf"])];
    assert!(evaluate(&rules, &[&liked, &[]], 0).holds);
    assert!(!evaluate(&rules, &[&disliked, &[]], 14).holds);
    assert!(evaluate(&rules, &[&disliked, &[]], 15).holds, "the expansion makes the rule void");
}

#[test]
fn a_match_needs_a_location_that_all_players_accept() {
    let rules = rule_set(&format!(r#"{RED_BLUE}, "rules": [{{"name": "Ping", "type": "latency", "maxLatency": 80}}]"#));
    let ticket = |id: &str, latencies: &[(&str, f64)]| rules.ticket(vec![player(id, &[], latencies)], 0).unwrap();
    let eu = ticket("eu", &[("eu", 20.0), ("us", 81.0)]);
    let both = ticket("both", &[("eu", 80.0), ("us", 30.0)]);
    let us = ticket("us", &[("us", 40.0)]);
    let of = |tickets: &[_]| evaluate(&rules, &[tickets, &[]], 0);
    assert_eq!(of(&[eu.clone(), both.clone()]).location.as_deref(), Some("eu"));
    assert_eq!(of(&[us.clone(), both]).location.as_deref(), Some("us"));
    let apart = of(&[eu, us]);
    assert_eq!(
        (apart.holds, apart.location.as_deref(), failed(&rules, &apart)),
        (false, None, vec!["Ping".to_owned()])
    );
}

/// The location has the least worst latency; of several the least sum; of these the first name.
#[test]
fn the_location_is_the_best_one_for_the_player_who_is_worst_off() {
    let rules = rule_set(RED_BLUE);
    let location = |one: [f64; 3], other: [f64; 3]| {
        let latencies = |values: [f64; 3]| [("asia", values[0]), ("eu", values[1]), ("us", values[2])];
        let tickets = [one, other].map(|values| rules.ticket(vec![player("x", &[], &latencies(values))], 0).unwrap());
        evaluate(&rules, &[&tickets, &[]], 0).location.unwrap()
    };
    assert_eq!(location([200.0, 40.0, 115.0], [200.0, 60.0, 59.0]), "eu");
    assert_eq!(location([60.0, 60.0, 60.0], [50.0, 40.0, 45.0]), "eu", "the worst is equal, the sum decides");
    assert_eq!(location([50.0, 60.0, 60.0], [60.0, 50.0, 50.0]), "asia", "the sum is equal, the name decides");
}

#[test]
fn a_latency_rule_can_bound_the_distance_from_the_other_tickets() {
    let near = |reference: &str, latencies: &[f64]| {
        let rules = rule_set(&format!(
            r#"{RED_BLUE}, "rules": [{{"name": "Near", "type": "latency", "maxDistance": 20, "distanceReference": "{reference}"}}]"#
        ));
        let ticket = |latency: &f64| rules.ticket(vec![player("x", &[], &[("eu", *latency)])], 0).unwrap();
        evaluate(&rules, &[&latencies.iter().map(ticket).collect::<Vec<_>>(), &[]], 0).holds
    };
    assert!(near("min", &[30.0, 50.0, 40.0]));
    assert!(!near("min", &[30.0, 51.0, 40.0]));
    assert!(near("avg", &[30.0, 70.0, 50.0]));
    assert!(!near("avg", &[30.0, 72.0, 51.0]));
}

#[test]
fn a_compound_rule_replaces_the_rules_that_it_names() {
    let rules = |statement: &str| {
        rule_set(&format!(
            r#"{RED_BLUE}, "playerAttributes": [{{"name": "skill", "type": "number"}}], "rules": [
            {{"name": "Low-1", "type": "comparison", "measurements": ["flatten(teams[*].players.attributes[skill])"],
                "operation": "<", "referenceValue": 10}},
            {{"name": "High", "type": "comparison", "measurements": ["flatten(teams[*].players.attributes[skill])"],
                "operation": ">", "referenceValue": 5}},
            {{"name": "Mix", "type": "compound", "statement": "{statement}"}}]"#
        ))
    };
    let cases = [
        ("or(Low-1, High)", [true, true, true]),
        ("and( Low-1 ,High )", [false, true, false]),
        ("xor(Low-1, High)", [true, false, true]),
        ("and(Low-1, not(High))", [true, false, false]),
        ("not(or(Low-1, High))", [false, false, false]),
        ("xor(Low-1, Low-1, High)", [false, false, true]),
    ];
    for (statement, expected) in cases {
        let rules = rules(statement);
        let holds = [1.0, 7.0, 20.0]
            .map(|skill| evaluate(&rules, &[&[solo(&rules, "a", &[("skill", number(skill))], 0)], &[]], 0).holds);
        assert_eq!(holds, expected, "{statement}");
    }
}

#[test]
fn a_ticket_counts_with_its_aggregate_for_each_of_its_players() {
    let rules = |party: &str| {
        with_rule(&format!(
            r#""type": "distance", "measurements": ["avg(flatten(teams[*].players.attributes[skill]))"], "referenceValue": 0,
            "maxDistance": 3 {party}"#
        ))
    };
    // The group has 0 and 8, the other player 1. Averages: (4 + 4 + 1) / 3, (0 + 0 + 1) / 3 and (8 + 8 + 1) / 3.
    for (party, expected) in
        [("", true), (r#", "partyAggregation": "min""#, true), (r#", "partyAggregation": "max""#, false)]
    {
        let rules = rules(party);
        let pair = group(&rules, "pair", "skill", &numbers(&[0.0, 8.0]));
        let single = solo(&rules, "single", &[("skill", number(1.0))], 0);
        assert_eq!(evaluate(&rules, &[&[pair], &[single]], 0).holds, expected, "{party}");
    }
    let shared = |party: &str| {
        let rules = with_rule(&format!(
            r#""type": "collection", "operation": "intersection", "measurements": ["flatten(teams[*].players.attributes[modes])"],
            "minCount": 1 {party}"#
        ));
        let pair = group(&rules, "pair", "modes", &[list(&["a"]), list(&["b"])]);
        let single = solo(&rules, "single", &[("modes", list(&["b"]))], 0);
        evaluate(&rules, &[&[pair], &[single]], 0).holds
    };
    assert!(shared(""), "the union of the group has b");
    assert!(!shared(r#", "partyAggregation": "intersection""#), "the members have nothing in common");
    let different = with_rule(
        r#""type": "comparison", "measurements": ["flatten(teams[*].players.attributes[skill])"], "operation": "!=""#,
    );
    let pair = group(&different, "pair", "skill", &numbers(&[0.0, 8.0]));
    assert!(evaluate(&different, &[&[pair], &[]], 0).holds, "members are compared with each other too");
}

#[test]
fn a_batch_distance_is_the_greatest_difference_between_two_tickets() {
    let number = r#""type": "batchDistance", "batchAttribute": "skill", "maxDistance": 10"#;
    assert!(holds(number, "skill", &numbers(&[0.0, 5.0]), &numbers(&[10.0])));
    assert!(!holds(number, "skill", &numbers(&[0.0, 5.0]), &numbers(&[10.5])));
    let same = r#""type": "batchDistance", "batchAttribute": "map""#;
    assert!(holds(same, "map", &[text("x")], &[text("x")]));
    assert!(!holds(same, "map", &[text("x")], &[text("y")]));
}

#[test]
fn the_age_of_a_match_decides_which_step_of_an_expansion_holds() {
    let rules = |selection: &str| {
        rule_set(&format!(
            r#""teams": [{{"name": "all", "minPlayers": 2, "maxPlayers": 2}}], "algorithm": {{"expansionAgeSelection": "{selection}"}},
            "playerAttributes": [{{"name": "skill", "type": "number"}}],
            "rules": [{{"name": "Near", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 5}}],
            "expansions": [{{"target": "rules[Near].maxDistance",
                "steps": [{{"waitTimeSeconds": 30, "value": 100}}, {{"waitTimeSeconds": 60, "value": 200}}]}}]"#
        ))
    };
    let holds = |selection: &str, now: i64, skill: f64| {
        let rules = rules(selection);
        let tickets =
            [solo(&rules, "a", &[("skill", number(0.0))], 0), solo(&rules, "b", &[("skill", number(skill))], 20)];
        evaluate(&rules, &[&tickets], now).holds
    };
    assert!(!holds("newest", 49, 50.0));
    assert!(holds("newest", 50, 50.0));
    assert!(!holds("oldest", 29, 50.0));
    assert!(holds("oldest", 30, 50.0));
    assert!(!holds("oldest", 59, 150.0));
    assert!(holds("oldest", 60, 150.0));
}

#[test]
fn a_ticket_that_can_never_be_matched_is_refused_with_the_reason() {
    let rules = rule_set(
        r#""teams": [{"name": "red", "minPlayers": 1, "maxPlayers": 2}, {"name": "blue", "minPlayers": 1, "maxPlayers": 1}],
        "playerAttributes": [{"name": "skill", "type": "number"}],
        "rules": [{"name": "Ping", "type": "latency", "maxLatency": 80}],
        "expansions": [{"target": "rules[Ping].maxLatency", "steps": [{"waitTimeSeconds": 9, "value": 120}]},
            {"target": "teams[red].maxPlayers", "steps": [{"waitTimeSeconds": 9, "value": 3}]}]"#,
    );
    let member = |attributes: &[(&str, Value)], latency: f64| player("ann", attributes, &[("eu", latency)]);
    let skill = [("skill", number(1.0))];
    let refusal = |players: Vec<_>| rules.ticket(players, 0).map(drop).map_err(|hopeless| hopeless.to_string());
    assert_eq!(refusal(vec![member(&skill, 120.0); 3]), Ok(()), "after the expansions");
    let cases = [
        (vec![], "the ticket has no players"),
        (vec![member(&skill, 1.0); 4], "the ticket has 4 players, but they play in one team, which has at most 3"),
        (vec![member(&skill, 1.0); 11], "the ticket has 11 players; the maximum is 10"),
        (vec![member(&[], 1.0)], "player \"ann\" has no value for the attribute \"skill\", which has no default"),
        (vec![member(&[("skill", text("7"))], 1.0)], "the attribute \"skill\" of player \"ann\" is not a number"),
        (vec![member(&skill, 121.0)], "no location has a latency of at most 120 ms, which the rule \"Ping\" needs"),
        (
            vec![member(&skill, 1.0), player("bob", &skill, &[("us", 1.0)])],
            "there is no region that all players of the ticket can use",
        ),
    ];
    for (players, expected) in cases {
        assert_eq!(refusal(players), Err(expected.to_owned()));
    }
}

/// 0.1 + 0.2 + 0.3 is 0.6000000000000001 with rounding, and 0.3 + 0.2 + 0.1 is 0.6.
#[test]
fn rounding_does_not_depend_on_the_order_of_teams() {
    let rules = rule_set(
        r#""teams": [{"name": "solo", "minPlayers": 1, "maxPlayers": 1, "quantity": 3}],
        "playerAttributes": [{"name": "skill", "type": "number"}],
        "rules": [{"name": "Sum", "type": "comparison", "measurements": ["sum(flatten(teams[solo].players.attributes[skill]))"],
            "operation": "=", "referenceValue": 0.6000000000000001}]"#,
    );
    let [one, two, three] = [0.1, 0.2, 0.3].map(|skill| vec![solo(&rules, "a", &[("skill", number(skill))], 0)]);
    assert!(evaluate(&rules, &[&one, &two, &three], 0).holds);
    assert!(evaluate(&rules, &[&three, &two, &one], 0).holds);
}
