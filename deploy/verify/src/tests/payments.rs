//! Payments.

use super::*;

#[test]
fn nobody_is_paid_twice() {
    let mut story = Story::played(1);
    story.paid("anna", 1, 1);
    assert_is(&only(&story), Rule::Paid, Some("anna"), Some(1), &[16, 18]);
}

#[test]
fn only_players_of_a_finished_match_are_paid_and_each_for_their_place() {
    let mut story = Story::finished(1);
    story.paid("cleo", 1, 1);
    assert_is(&only(&story), Rule::Paid, Some("cleo"), Some(1), &[12, 16]);

    // After all players of the match are paid.
    let mut story = Story::played(1);
    story.paid("cleo", 1, 1);
    assert_is(&only(&story), Rule::Paid, Some("cleo"), Some(1), &[13, 18]);

    let mut story = Story::finished(1);
    story.paid("anna", 1, 2);
    assert_is(&only(&story), Rule::Paid, Some("anna"), Some(1), &[12, 16]);

    let mut story = Story::played(1);
    story.paid("anna", 7, 1);
    assert_is(&only(&story), Rule::Paid, Some("anna"), Some(7), &[18]);

    let mut story = Story::default();
    story.matched(1, &[("anna", 1)]);
    story.paid("anna", 1, 1);
    assert_is(&only(&story), Rule::Paid, Some("anna"), Some(1), &[2, 4]);
}
