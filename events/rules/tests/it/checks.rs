//! What a check refuses, and what it warns of.

use garage_rules::{Options, check, diagnostic::Severity};

fn findings(text: &str, options: Options) -> Vec<String> {
    check(text, options).diagnostics.iter().map(ToString::to_string).collect()
}

/// A rule set with two teams, three attributes and these rules.
fn with_rules(rules: &str) -> String {
    format!(
        r#"{{"ruleLanguageVersion": "1.0",
"playerAttributes": [{{"name": "skill", "type": "number", "default": 1}}, {{"name": "map", "type": "string", "default": "a"}},
  {{"name": "modes", "type": "string_list", "default": []}}, {{"name": "wins", "type": "string_number_map", "default": {{}}}}],
"teams": [{{"name": "red", "minPlayers": 1, "maxPlayers": 2}}, {{"name": "blue", "minPlayers": 1, "maxPlayers": 2}}],
"rules": [
{rules}
]}}"#
    )
}

/// Checks that each rule, on line 6, has exactly one error, which begins like this.
fn assert_refused(cases: &[(&str, &str)]) {
    for (rule, expected) in cases {
        let checked = check(&with_rules(rule), Options::default());
        let errors: Vec<_> = checked.diagnostics.iter().filter(|of| of.severity == Severity::Error).collect();
        assert!(checked.rule_set.is_none(), "{rule}");
        let [error] = errors.as_slice() else { panic!("{rule}: {errors:#?}") };
        assert_eq!(error.line, 6, "{rule}");
        assert!(error.message.starts_with(expected), "{rule}: {error}");
        assert!(error.cure.as_ref().is_some_and(|cure| !cure.is_empty()), "{rule}: {error}");
    }
}

#[test]
fn a_finding_names_line_column_cause_and_cure() {
    let text = with_rules(
        r#"{"name": "Fair", "type": "distance", "measurements": ["avg(teams[red].players.attributes[skil])"],
   "referenceValue": 5, "maxDistance": 1}"#,
    );
    let expected = "6:90: error: there is no attribute \"skil\"; did you mean \"skill\"?";
    assert_eq!(findings(&text, Options::default()), [expected]);
}

#[test]
fn a_rule_with_a_mistake_is_refused() {
    assert_refused(&[
        (r#"{"name": "A", "type": "fairness"}"#, "the type of a rule is \"fairness\""),
        (r#"{"type": "latency", "maxLatency": 5}"#, "a rule has no name"),
        (r#"{"name": "A", "type": "latency"}"#, "a latency rule needs a maxLatency or a maxDistance"),
        (r#"{"name": "A", "type": "latency", "maxLatency": -1}"#, "maxLatency is negative"),
        (
            r#"{"name": "A", "type": "latency", "maxLatency": 5, "maxDistance": 5}"#,
            "maxDistance needs a distanceReference",
        ),
        (
            r#"{"name": "A", "type": "latency", "maxLatency": 5, "maxPing": 5}"#,
            "a rule of type latency has no property",
        ),
        (r#"{"name": "A", "type": "latency", "maxLatency": [5]}"#, "maxLatency is a number, but this is a list"),
        (r#"{"name": "A", "type": "batchDistance", "batchAttribute": "skill"}"#, "a batchDistance rule of a number"),
        (
            r#"{"name": "A", "type": "batchDistance", "batchAttribute": "map", "maxDistance": 1}"#,
            "a batchDistance rule of a text",
        ),
        (
            r#"{"name": "A", "type": "batchDistance", "batchAttribute": "modes"}"#,
            "a batchDistance rule needs a number or",
        ),
        (r#"{"name": "A", "type": "batchDistance", "batchAttribute": "level"}"#, "there is no attribute \"level\""),
        (r#"{"name": "A", "type": "absoluteSort", "sortAttribute": "skill"}"#, "a sort rule has no sortDirection"),
        (
            r#"{"name": "A", "type": "distanceSort", "sortDirection": "ascending", "sortAttribute": "wins"}"#,
            "a sort by a map",
        ),
        (
            r#"{"name": "A", "type": "distanceSort", "sortDirection": "up", "sortAttribute": "skill"}"#,
            "sortDirection is \"up\"",
        ),
    ]);
}

#[test]
fn an_expression_with_a_mistake_is_refused() {
    let rule = |measurement: &str, rest: &str| format!(r#"{{"name": "A", "measurements": ["{measurement}"], {rest}}}"#);
    let number = r#""type": "distance", "referenceValue": 1, "maxDistance": 1"#;
    let cases = [
        ("skill", number, "this is not a path"),
        ("team[red].players", number, "`team[` is not a path"),
        ("avg(teams[green].players.attributes[skill])", number, "there is no team \"green\""),
        ("avg(teams[red, red].players.attributes[skill])", number, "the team \"red\" is named twice"),
        ("avg(players.attributes[skill])", number, "`players` without a team is not FlexMatch"),
        ("avg(teams[red].players.skill)", number, "\".skill\" is not a property of players"),
        ("mean(teams[red].players.attributes[skill])", number, "\"mean\" is not a function"),
        ("avg(teams[red].players.attributes[skill]", number, "a closing parenthesis is missing"),
        ("avg(teams[red].players.attributes[skill]) + 1", number, "unexpected \"+ 1\" after the expression"),
        ("avg(teams[red].players.attributes[map])", number, "avg needs a list of numbers, but gets: list of (text)"),
        ("avg(teams[red].players)", number, "avg needs a list of numbers, but gets: list of (player)"),
        ("flatten(teams[red].players.attributes[skill])", number, "flatten needs a list of lists"),
        ("count(count(teams[red].players))", number, "count needs a list, but gets: number"),
        (
            "set_intersection(teams[red].players.attributes[map])",
            number,
            "set_intersection needs a list of lists of texts",
        ),
        ("teams[red].players.attributes[wins]", number, "the attribute \"wins\" is a map"),
        ("teams[red].players.attributes[map]", number, "a distance rule needs numbers"),
        ("teams[red].players", r#""type": "comparison", "operation": "=""#, "a comparison needs numbers or texts"),
        ("teams[*].players.attributes[skill]", r#""type": "comparison", "operation": "<""#, "a comparison without a"),
        (
            "teams[*].players.attributes[map]",
            r#""type": "comparison", "operation": "<", "referenceValue": "a""#,
            "texts have no",
        ),
        (
            "teams[*].players.attributes[skill]",
            r#""type": "comparison", "operation": "<", "referenceValue": "teams[red].players.attributes[skill]""#,
            "the referenceValue must be one number, but this is: list of (number)",
        ),
        (
            "teams[*].players.attributes[skill]",
            r#""type": "comparison", "operation": "<", "referenceValue": "high""#,
            "the referenceValue is neither a number nor an expression",
        ),
        (
            "teams[red].players.attributes[skill]",
            r#""type": "collection", "operation": "intersection""#,
            "a collection rule needs lists of texts",
        ),
        ("teams[red].attributes[skill]", number, "a team has no other property than players"),
        ("flatten(teams[*].players[playerid])", number, "the id of a player is not written so"),
        (
            "teams[red].players.attributes[map]",
            r#""type": "collection", "operation": "intersection""#,
            "a collection rule needs lists of texts of an attribute",
        ),
        (
            "teams[red].players.attributes[skill]",
            r#""type": "distance", "referenceValue": 1, "minDistance": 2, "maxDistance": 1"#,
            "minDistance 2 is greater than maxDistance 1",
        ),
        (
            "teams[red].players.attributes[modes]",
            r#""type": "collection", "operation": "intersection", "referenceValue": "a""#,
            "the operation intersection has no referenceValue",
        ),
        (
            "teams[red].players.attributes[modes]",
            r#""type": "collection", "operation": "contains", "referenceValue": "a", "minCount": 2, "maxCount": 1"#,
            "minCount 2 is greater than maxCount 1",
        ),
        (
            "teams[red].players.attributes[modes]",
            r#""type": "collection", "operation": "contains", "referenceValue": "a", "minCount": 0.5"#,
            "minCount is 0.5",
        ),
        (
            "teams[red].players.attributes[modes]",
            r#""type": "collection", "operation": "reference_intersection_count", "referenceValue": "a""#,
            "this is not a path",
        ),
    ];
    for (measurement, rest, expected) in cases {
        assert_refused(&[(&rule(measurement, rest), expected)]);
    }
    let deep = format!("{}teams[*].players{}", "flatten(".repeat(3_000), ")".repeat(3_000));
    assert_refused(&[(&rule(&deep, number), "more than 16 functions")]);
}

#[test]
fn a_statement_with_a_mistake_is_refused() {
    let latency =
        r#"{"name": "A", "type": "latency", "maxLatency": 5}, {"name": "B", "type": "latency", "maxLatency": 9}"#;
    let batch = r#"{"name": "C", "type": "batchDistance", "batchAttribute": "map"}"#;
    let cases = [
        ("A", "a statement begins with and, or, xor or not"),
        ("and(A)", "and needs at least two parts"),
        ("not(A, B)", "not has one part"),
        ("nand(A, B)", "\"nand\" is not an operator"),
        ("and(A, B", "a closing parenthesis is missing"),
        ("and(A, )", "the name of a rule is missing"),
        ("and(A, B) or", "unexpected text after the statement"),
        ("and(A, D)", "there is no rule \"D\""),
        ("and(A, Mix)", "the rule \"Mix\" does not stand before this rule"),
        ("and(A, Late)", "the rule \"Late\" does not stand before this rule"),
        ("and(A, C)", "a compound rule cannot contain \"C\""),
        (&format!("{}A{}", "not(".repeat(5_000), ")".repeat(5_000)), "the statement is deeper than 32"),
    ];
    for (statement, expected) in cases {
        let late = r#"{"name": "Late", "type": "latency", "maxLatency": 5}"#;
        let mix = format!(r#"{{"name": "Mix", "type": "compound", "statement": "{statement}"}}"#);
        assert_refused(&[(&format!("{latency}, {batch}, {mix}, {late}"), expected)]);
    }
}

#[test]
fn an_expansion_with_a_mistake_is_refused() {
    let cases = [
        (r#""rules[Ping].maxLatency", "steps": []"#, "there is no step"),
        (r#""rules[Pong].maxLatency", "steps": [{"waitTimeSeconds": 5, "value": 9}]"#, "there is no rule \"Pong\""),
        (
            r#""rules[Ping].maxCount", "steps": [{"waitTimeSeconds": 5, "value": 9}]"#,
            "an expansion cannot change \"maxCount\"",
        ),
        (
            r#""rules[Ping].name", "steps": [{"waitTimeSeconds": 5, "value": "a"}]"#,
            "an expansion cannot change \"name\"",
        ),
        (
            r#""rules[Any].statement", "steps": [{"waitTimeSeconds": 5, "value": "a"}]"#,
            "an expansion cannot change \"statement\"",
        ),
        (r#""rules[Ping].maxLatency", "steps": [{"waitTimeSeconds": 5, "value": "far"}]"#, "maxLatency is a number"),
        (r#""rules[Ping].maxLatency", "steps": [{"waitTimeSeconds": 5}]"#, "a step has no value"),
        (
            r#""rules[Ping].maxLatency", "steps": [{"waitTimeSeconds": 5, "value": 9}, {"waitTimeSeconds": 5, "value": 10}]"#,
            "the step at 5 s comes after the step at 5 s",
        ),
        (
            r#""teams[red].quantity", "steps": [{"waitTimeSeconds": 5, "value": 9}]"#,
            "an expansion cannot change \"quantity\"",
        ),
        (r#""teams[green].minPlayers", "steps": [{"waitTimeSeconds": 5, "value": 0}]"#, "there is no team definition"),
        (r#""teams[red].minPlayers", "steps": [{"waitTimeSeconds": 5, "value": 3}]"#, "minPlayers 3 is greater than"),
        (
            r#""algorithm.strategy", "steps": [{"waitTimeSeconds": 5, "value": "balanced"}]"#,
            "\"algorithm.strategy\" is not",
        ),
    ];
    for (target, expected) in cases {
        let text = format!(
            r#"{{"ruleLanguageVersion": "1.0", "teams": [{{"name": "red", "minPlayers": 1, "maxPlayers": 2}}],
"rules": [{{"name": "Ping", "type": "latency", "maxLatency": 5}}, {{"name": "Pang", "type": "latency", "maxLatency": 5}},
  {{"name": "Any", "type": "compound", "statement": "or(Ping, Pang)"}}],
"expansions": [{{"target": {target}}}]}}"#
        );
        let found = findings(&text, Options::default());
        assert!(found.iter().any(|found| found.contains(&format!("error: {expected}"))), "{target}: {found:#?}");
    }
}

#[test]
fn a_document_with_a_mistake_is_refused() {
    let team = |min: u32, max: u32, more: &str| {
        format!(
            r#""ruleLanguageVersion": "1.0", "teams": [{{"name": "a", "minPlayers": {min}, "maxPlayers": {max}}}{more}]"#
        )
    };
    let skill = r#", "playerAttributes": [{"name": "skill", "type": "number"}]"#;
    let balanced = r#", "algorithm": {"strategy": "balanced", "balancedAttribute": "skill"}"#;
    let cases = [
        (r#""teams": []"#.to_owned(), "the rule set has no ruleLanguageVersion"),
        (r#""ruleLanguageVersion": "1.0", "teams": []"#.into(), "there is no team"),
        (r#""ruleLanguageVersion": 1.0, "teams": []"#.into(), "this version of the language is not known"),
        (team(3, 2, ""), "minPlayers 3 is greater than maxPlayers 2"),
        (team(0, 0, ""), "maxPlayers is 0"),
        (team(1, 1, r#", {"name": "a", "minPlayers": 1, "maxPlayers": 1}"#), "there are two teams \"a\""),
        (team(1, 1, r#", {"name": "a,b", "minPlayers": 1, "maxPlayers": 1}"#), "\"a,b\" cannot be the name of a team"),
        (
            team(
                1,
                1,
                r#", {"name": "b_1", "minPlayers": 1, "maxPlayers": 1}, {"name": "b", "minPlayers": 1, "maxPlayers": 1, "quantity": 2}"#,
            ),
            "two teams have the name \"b_1\"",
        ),
        (team(1, 100, r#", {"name": "b", "minPlayers": 1, "maxPlayers": 101}"#), "a match has up to 201 players"),
        (team(1, 41, ""), "a match of more than 40 players needs an algorithm"),
        (
            format!(
                "{}{skill}{balanced}{}",
                team(1, 41, ""),
                r#", "rules": [{"name": "A", "type": "comparison",
            "measurements": ["count(teams[a].players)"], "operation": ">", "referenceValue": 1}]"#
            ),
            "a match of more than 40 players does not allow this rule",
        ),
        (
            format!("{}{skill}{}", team(1, 2, ""), r#", "algorithm": {"strategy": "balanced"}"#),
            "an algorithm with the strategy",
        ),
        (
            format!("{}{skill}{}", team(1, 2, ""), r#", "algorithm": {"batchingPreference": "fastestRegion"}"#),
            "batchingPreference with the strategy exhaustiveSearch is \"fastestRegion\"",
        ),
        (
            format!("{}{skill}{}", team(1, 2, ""), r#", "algorithm": {"batchingPreference": "sorted"}"#),
            "an algorithm with the batchingPreference sorted has no sortByAttributes",
        ),
        (
            format!("{}{}", team(1, 2, ""), r#", "playerAttributes": [{"name": "a", "type": "boolean"}]"#),
            "the type of an attribute is \"boolean\"",
        ),
        (
            format!(
                "{}{}",
                team(1, 2, ""),
                r#", "playerAttributes": [{"name": "a", "type": "number", "default": "x"}]"#
            ),
            "the default is a number, but this is a text",
        ),
        (format!("{}{}", team(1, 2, ""), r#", "acceptanceRequired": true"#), "a rule set has no property"),
        (format!("{}{}", team(1, 2, ""), r#", "teams": []"#), "the key \"teams\" occurs twice"),
    ];
    for (inner, expected) in cases {
        let found = findings(&format!("{{{inner}}}"), Options::default());
        assert!(found.iter().any(|found| found.contains(&format!("error: {expected}"))), "{inner}: {found:#?}");
    }
    let broken = findings("{\"name\": \"a\nb\"}", Options::default());
    assert!(broken.iter().any(|found| found.contains("this text has a line break")), "{broken:#?}");
    for text in
        ["", "[", "{\"a\": }", "[1, 2]", &"[".repeat(60_000), &format!("\"{}\"", "a".repeat(70_000)), "{'a': 1}"]
    {
        assert!(check(text, Options::default()).rule_set.is_none());
    }
}

#[test]
fn a_check_of_a_hostile_file_is_short() {
    let team = |name: usize| format!(r#"{{"name": "{name}", "minPlayers": 1, "maxPlayers": 1, "quantity": 200}}"#);
    let teams = (0..900).map(team).collect::<Vec<_>>().join(", ");
    let found = findings(&format!(r#"{{"ruleLanguageVersion": "1.0", "teams": [{teams}]}}"#), Options::default());
    assert!(found[0].contains("teams has 900 elements; the maximum is 200"), "{found:#?}");
    let teams = (0..100).map(team).collect::<Vec<_>>().join(", ");
    let found = findings(&format!(r#"{{"ruleLanguageVersion": "1.0", "teams": [{teams}]}}"#), Options::default());
    assert!(found[0].contains("a match has up to 20000 players"), "{found:#?}");
}

#[test]
fn a_wrong_declaration_does_not_make_the_rules_wrong_that_use_it() {
    let text = with_rules(
        r#"{"name": "A", "type": "distance", "measurements": ["teams[red].players.attributes[skill]"], "referenceValue": 1, "maxDistance": 1}"#,
    );
    for (right, wrong, expected) in [
        (r#""type": "number""#, r#""type": "int""#, "the type of an attribute is \"int\""),
        (r#""name": "red", "minPlayers": 1"#, r#""name": "red""#, "a team has no minPlayers"),
    ] {
        let found = findings(&text.replacen(right, wrong, 1), Options::default());
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains(expected), "{found:#?}");
    }
}

#[test]
fn an_expansion_can_make_a_match_large() {
    let text = r#"{"ruleLanguageVersion": "1.0", "teams": [{"name": "red", "minPlayers": 10, "maxPlayers": 20}],
        "expansions": [{"target": "teams[red].maxPlayers", "steps": [{"waitTimeSeconds": 5, "value": 41}]}]}"#;
    let found = findings(text, Options::default());
    assert!(found[0].contains("a match of more than 40 players needs an algorithm"), "{found:#?}");
}

#[test]
fn players_is_an_ordinary_text_where_a_text_is_wanted() {
    for rule in [
        r#"{"name": "A", "type": "comparison", "measurements": ["teams[red].players.attributes[map]"], "operation": "=", "referenceValue": "players"}"#,
        r#"{"name": "A", "type": "collection", "measurements": ["flatten(teams[*].players.attributes[modes])"], "operation": "contains", "referenceValue": "players"}"#,
    ] {
        for extensions in [false, true] {
            let found = findings(&with_rules(rule), Options { extensions, ..Options::default() });
            assert!(found.is_empty(), "{found:#?}");
        }
    }
}

#[test]
fn what_other_tools_may_not_accept_is_accepted_with_a_warning() {
    let text = r#"{
        // a comment
        "ruleLanguageVersion": "1.0",
        "playerAttributes": [{"name": "modes", "type": "string_list", "default": []}],
        "teams": [{"name": "a", "minPlayers": "2", "maxPlayers": 2}],
        "rules": [{"name": "A", "type": "collection", "operation": "contains", "referenceValue": "x", "minCount": 1,
            "measurements": "flatten(teams[*].players.attributes[modes])"},]
    }"#;
    let found = findings(text, Options::default());
    let expected =
        ["comments are not JSON", "minPlayers is a number in quotes", "measurements is a text", "a comma before"];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    assert!(
        found.iter().zip(expected).all(|(found, expected)| found.contains(&format!("warning: {expected}"))),
        "{found:#?}"
    );
}

#[test]
fn options_accept_unknown_properties_and_players_without_a_team() {
    let text = with_rules(
        r#"{"name": "A", "type": "distance", "measurements": ["players.attributes[skill]"], "referenceValue": 1, "maxDistance": 1,
   "weight": 3}"#,
    );
    assert_eq!(findings(&text, Options::default()).len(), 2);
    let accepting = Options { lenient: true, extensions: true, ..Options::default() };
    assert!(check(&text, accepting).rule_set.is_some());
    assert_eq!(findings(&text, accepting).len(), 1, "the unknown property is a warning");
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let attributes = r#""playerAttributes": [{"name": "skill", "type": "number", "default": 1}, {"name": "level", "type": "number"}]"#;
    let team = |min: u32, max: u32| format!(r#"{{"name": "t{max}", "minPlayers": {min}, "maxPlayers": {max}}}"#);
    let rule = |rule: &str| format!(r#", "rules": [{{"name": "A", {rule}}}]"#);
    let ping = rule(r#""type": "latency", "maxLatency": 50"#);
    let expand = |from: u32, value: u32| {
        format!(
            r#", "expansions": [{{"target": "rules[A].maxLatency", "steps": [{{"waitTimeSeconds": {from}, "value": {value}}}]}}]"#
        )
    };
    let average = |team: &str| {
        let measurement = format!(r#""measurements": ["avg(teams[{team}].players.attributes[skill])"]"#);
        rule(&format!(
            r#""type": "distance", {measurement}, "referenceValue": "avg(flatten(teams[*].players.attributes[skill]))", "maxDistance": 5"#
        ))
    };
    let cases = [
        (format!("{}, {}", team(2, 2), team(0, 3)), average("t3"), "the team \"t3\" may be empty"),
        (team(2, 3), average("*"), "the rule \"A\" always holds"),
        (team(2, 3), format!("{ping}{}", expand(5, 40)), "this step makes maxLatency stricter"),
        (team(2, 3), format!("{ping}{}", expand(60, 90)), "no ticket waits 60 s"),
        (
            team(2, 3),
            format!("{ping}{}", expand(5, 60).replacen("}]", r#"}, {"waitTimeSeconds": 61, "value": 90}]"#, 1)),
            "no ticket waits 61 s",
        ),
        (team(1, 3), ping.clone(), "one player can be a complete match"),
        (
            team(2, 3),
            r#", "algorithm": {"strategy": "balanced", "balancedAttribute": "skill"}"#.into(),
            "the strategy balanced is for matches of more than 40 players",
        ),
    ];
    for (teams, rest, expected) in cases {
        let text = format!(r#"{{"ruleLanguageVersion": "1.0", {attributes}, "teams": [{teams}]{rest}}}"#);
        let found = findings(&text, Options { timeout: Some(60), ..Options::default() });
        assert!(found.iter().any(|found| found.contains("no rule reads the attribute \"level\"")), "{found:#?}");
        assert!(found.iter().any(|found| found.contains(&format!("warning: {expected}"))), "{found:#?}");
        assert_eq!(found.len(), 2, "{found:#?}");
    }
}
