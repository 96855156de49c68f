//! The JSON Schema for editors accepts what the check accepts.

use garage_rules::{Options, check};
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../../rule-set.schema.json");
const EVERY_FEATURE: &str = include_str!("../every-feature.json");

fn accepts(rule_set: &Value) -> bool {
    let schema = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::options().with_draft(jsonschema::Draft::Draft202012).build(&schema).unwrap().is_valid(rule_set)
}

fn every_feature() -> Value {
    serde_json::from_str(EVERY_FEATURE).unwrap()
}

#[test]
fn a_rule_set_with_every_feature_is_accepted() {
    let checked = check(EVERY_FEATURE, Options::default());
    let warnings: Vec<_> = checked.diagnostics.iter().map(ToString::to_string).collect();
    assert!(checked.rule_set.is_some(), "{warnings:#?}");
    assert_eq!(warnings.len(), 1, "only that a team may be empty, whose average has no value then: {warnings:#?}");
    assert!(accepts(&every_feature()));
}

/// Changes one thing in the rule set with every feature. Both the schema and the check refuse it.
#[test]
fn what_the_schema_refuses_the_check_refuses_too() {
    let changes: [(&str, Value); 12] = [
        ("/ruleLanguageVersion", json!("2.0")),
        ("/playerAttributes/0/type", json!("boolean")),
        ("/algorithm/strategy", json!("greedy")),
        ("/teams", json!([])),
        ("/teams/0/name", json!("a,b")),
        ("/rules/0/operation", json!("==")),
        ("/rules/0/type", json!("compare")),
        ("/rules/3/partyAggregation", json!("avg")),
        ("/rules/6/maxLatency", json!(-1)),
        ("/rules/9/mapKey", json!("first")),
        ("/expansions/0/target", json!("NearSkill.maxDistance")),
        ("/expansions/0/steps", json!([])),
    ];
    for (place, value) in changes {
        let mut rule_set = every_feature();
        *rule_set.pointer_mut(place).unwrap() = value;
        assert!(!accepts(&rule_set), "the schema accepts {place}");
        assert!(check(&rule_set.to_string(), Options::default()).rule_set.is_none(), "the check accepts {place}");
    }
}
