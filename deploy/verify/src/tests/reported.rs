//! Secrets, and the output of violations.

use garage_rules::rule_set::Value;

use super::*;

#[test]
fn no_secret_is_in_the_log() {
    for secret in
        ["-----BEGIN PRIVATE KEY-----", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm5hIn0.x", "swordfish-of-the-studio"]
    {
        let mut story = Story::default();
        let attributes = [("note".to_owned(), Value::Text(secret.to_owned()))].into();
        story.player("anna", player::Queued { attributes, ..queued(1) });
        let violation = only(&story);
        assert_is(&violation, Rule::Secret, Some("anna"), None, &[1]);
        assert!(!format!("{violation} {violation:?}").contains(secret), "a secret is not repeated");

        let mut story = Story::default();
        story.queue("anna", 1);
        story.header(1, "Note", secret);
        assert_is(&only(&story), Rule::Secret, Some("anna"), None, &[1]);
    }
    // The public key of a game is not a secret.
    let mut story = Story::default();
    story.matched(1, &[("anna", 1)]);
    let public_key = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END PUBLIC KEY-----\n".into();
    story.session(1, session::PodRequested { public_key, ..story::requested(1) });
    assert_eq!(story.check(End::Open).0, []);
}

#[test]
fn a_violation_names_its_player_its_session_and_its_messages() {
    let mut story = Story::played(1);
    story.paid("anna", 1, 1);
    let violation = only(&story);
    let id = session(1);
    assert_eq!(violation.to_string(), format!("paid        at 16, 18 player anna session {id}: paid twice"));
    let line = serde_json::to_value(&violation).unwrap();
    let expected = json!({ "rule": "paid", "player": "anna", "session": id, "seqs": [16, 18], "what": "paid twice" });
    assert_eq!(line, expected);
    let forged = Violation::new(Rule::Readable, [], "the player's \u{1b}[2J");
    assert_eq!(forged.to_string(), "readable   : the player's \\u{1b}[2J", "no control characters reach the terminal");
    let unattributed = serde_json::to_value(Violation::new(Rule::OneSession, [0, 7], "x")).unwrap();
    assert_eq!(unattributed, json!({ "rule": "one-session", "seqs": [7], "what": "x" }));
}

#[test]
fn a_reward_of_zero_is_a_payment() {
    let mut story = Story::finished(1);
    let reward = RewardGranted { session: session(1), place: 1, amount: 0, balance: 0 };
    story.commit(vec![(Aggregate::Inventory("anna".parse().unwrap()), vec![story::StoryEvent::inventory(reward)])]);
    assert_eq!(story.check(End::Open).0, []);
}
