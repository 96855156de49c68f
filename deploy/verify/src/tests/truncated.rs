//! A log whose first events have expired.

use super::*;

#[test]
fn a_log_without_its_first_messages_is_checked_as_far_as_possible() {
    let whole = Story::played(1);
    for forgotten in 1..17 {
        let mut story = whole.forgetting(forgotten);
        let (found, summary) = story.check(End::Open);
        assert_eq!(found, [], "without the first {forgotten}");
        assert!(summary.truncated > 0 || forgotten >= 15, "without the first {forgotten}: {summary:?}");
        // Later violations are still found.
        story.queue("anna", 8);
        story.queue("anna", 9);
        assert_is(&only(&story), Rule::Decided, Some("anna"), None, &[18, 19]);
    }
}

#[test]
fn an_aggregates_first_event_may_only_expect_a_message_from_before_the_log() {
    let mut story = Story::played(1).forgetting(2);
    // Anna's Matched expects a message that would have to be in the log.
    story.expect(4, Some("3"), Some("garage.player.anna"));
    let found = of_rule(&story, Rule::Expected);
    assert_is(&found[0], Rule::Expected, Some("anna"), None, &[4]);
}

#[test]
fn a_payment_for_a_match_from_before_the_log_is_accepted_once() {
    let mut story = Story::played(1).forgetting(15);
    story.paid("anna", 1, 1);
    assert_is(&only(&story), Rule::Paid, Some("anna"), Some(1), &[16, 18]);
}
