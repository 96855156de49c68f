//! Any text as a rule set.

use super::{Options, check};
use crate::{
    diagnostic::Severity,
    rule_set::{MAX_MATCH, RuleSet},
};

const EVERY_FEATURE: &str = include_str!("../../tests/every-feature.json");

const SMALL: &str = r#"{"ruleLanguageVersion": "1.0",
"playerAttributes": [{"name": "skill", "type": "number", "default": 10}],
"teams": [{"name": "red", "minPlayers": 1, "maxPlayers": 2}, {"name": "blue", "minPlayers": 1, "maxPlayers": 2}],
"rules": [{"name": "Fair", "type": "distance", "measurements": ["avg(teams[red].players.attributes[skill])"],
  "referenceValue": "avg(teams[blue].players.attributes[skill])", "maxDistance": 10}],
"expansions": [{"target": "rules[Fair].maxDistance", "steps": [{"waitTimeSeconds": 5, "value": 50}]}]}"#;

#[test]
fn any_bytes_are_a_rule_set_within_its_bounds_or_have_an_error_with_its_place() {
    garage_fuzz::feed(&[EVERY_FEATURE, SMALL], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let lines = text.matches('\n').count() + 1;
        let mut accepted = true;
        for lenient in [false, true] {
            let checked = check(&text, Options { lenient, extensions: true, timeout: Some(120) });
            let mut has_error = false;
            for found in &checked.diagnostics {
                has_error |= found.severity == Severity::Error;
                assert!((1..=lines).contains(&found.line) && found.column >= 1, "{found}");
                // A finding may quote a name of the text. `Debug` writes a byte as up to 6 characters.
                assert!(found.to_string().len() <= 20 * text.len() + 1_000, "{}", found.to_string().len());
            }
            assert_eq!(checked.rule_set.is_none(), has_error);
            accepted &= checked.rule_set.is_some();
            checked.rule_set.iter().for_each(check_bounds);
        }
        accepted
    });
}

fn check_bounds(rule_set: &RuleSet) {
    assert!((1..=MAX_MATCH).contains(&rule_set.match_size()));
    assert!(!rule_set.teams.is_empty());
    assert!(rule_set.teams.iter().all(|team| team.definition < rule_set.definitions.len()));
    for definition in &rule_set.definitions {
        let sizes = definition.sizes.at(0);
        assert!(definition.quantity >= 1 && sizes.min <= sizes.max, "{definition:?}");
    }
    let values = rule_set.attributes.iter().filter_map(|of| Some((of.kind, of.default.as_ref()?)));
    assert!(values.into_iter().all(|(kind, default)| default.kind() == kind));
    // A pool without tickets has no match.
    assert!(rule_set.matches(&[], 0).is_empty());
}
