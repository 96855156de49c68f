//! A log that has forgotten its beginning.

use super::*;

#[test]
fn what_began_before_the_log_does_is_judged_from_where_it_can_be() {
    let whole = Story::played(1);
    for forgotten in 1..17 {
        let mut story = whole.forgetting(forgotten);
        let (found, summary) = story.check(End::Open);
        assert_eq!(found, [], "without the first {forgotten}");
        assert!(summary.midway > 0 || forgotten >= 15, "without the first {forgotten}: {summary:?}");
        // And yet what is wrong behind that is found.
        story.queue("anna", 8);
        story.queue("anna", 9);
        assert_is(&only(&story), Rule::Decided, Some("anna"), None, &[18, 19]);
    }
}

#[test]
fn who_begins_midway_must_have_been_before_the_log() {
    let mut story = Story::played(1).forgetting(2);
    // Anna's Matched, which expects a message that the log would have.
    story.expect(4, Some("3"), Some("garage.player.anna"));
    let found = of_rule(&story, Rule::Expected);
    assert_is(&found[0], Rule::Expected, Some("anna"), None, &[4]);
}

#[test]
fn a_payment_for_a_match_before_the_log_is_taken_as_it_is_but_once() {
    let mut story = Story::played(1).forgetting(15);
    story.paid("anna", 1, 1);
    assert_is(&only(&story), Rule::Paid, Some("anna"), Some(1), &[16, 18]);
}
