//! Runs `garage rules` as operators do.
#![cfg(test)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const GOOD: &str =
    r#"{"ruleLanguageVersion": "1.0", "teams": [{"name": "a", "minPlayers": 2, "maxPlayers": 3, "quantity": 2}]}"#;
const WARNED: &str = r#"{"ruleLanguageVersion": "1.0", // new
    "teams": [{"name": "a", "minPlayers": 2, "maxPlayers": 2}]}"#;
const WRONG: &str = r#"{"ruleLanguageVersion": "1.0",
    "teams": [{"name": "a", "minPlayers": 2, "maxplayers": 2}]}"#;

/// Runs `garage rules check` in a folder with the three rule sets.
fn check(folder: &Path, args: &[&str]) -> Output {
    for (name, text) in [("good.json", GOOD), ("warned.json", WARNED), ("wrong.json", WRONG)] {
        fs::write(folder.join(name), text).unwrap();
    }
    Command::new(env!("CARGO_BIN_EXE_garage")).current_dir(folder).args(["rules", "check"]).args(args).output().unwrap()
}

fn lines(output: &Output) -> Vec<String> {
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn a_good_rule_set_is_summarised_and_warnings_are_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let output = check(folder.path(), &["good.json", "warned.json"]);
    assert!(output.status.success(), "{output:?}");
    let expected = [
        "good.json: ok, 2 teams, up to 6 players, 0 rules",
        "warned.json:1:32: warning: comments are not JSON; Garage ignores them, but other tools may refuse the file",
        "warned.json: ok, 1 team, up to 2 players, 0 rules",
    ];
    assert_eq!(lines(&output), expected);
}

#[test]
fn each_error_has_its_place_and_its_cure_and_the_command_fails() {
    let folder = tempfile::tempdir().unwrap();
    let output = check(folder.path(), &["wrong.json", "good.json"]);
    assert_eq!(output.status.code(), Some(1));
    let lines = lines(&output);
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].starts_with("wrong.json:2:15: error: a team has no maxPlayers; add maxPlayers"), "{lines:#?}");
    assert!(
        lines[1]
            .starts_with("wrong.json:2:46: error: a team has no property \"maxplayers\"; did you mean \"maxPlayers\"?")
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("1 of 2 rule sets cannot be used"), "{output:?}");
}

#[test]
fn json_lines_hold_the_same_findings() {
    let folder = tempfile::tempdir().unwrap();
    let output = check(folder.path(), &["--json", "warned.json", "good.json"]);
    let found: Vec<Value> = lines(&output).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [finding] = found.as_slice() else { panic!("{found:#?}") };
    let text = |field: &str| finding[field].as_str().unwrap();
    assert_eq!((text("file"), text("severity"), text("message")), ("warned.json", "warning", "comments are not JSON"));
    assert_eq!((&finding["line"], &finding["column"]), (&Value::from(1), &Value::from(32)));
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = check(folder.path(), &["absent.json", "good.json"]);
    assert_eq!(lines(&output), ["good.json: ok, 2 teams, up to 6 players, 0 rules"], "the other files are checked");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read the rule set absent.json"), "{output:?}");
}
