//! Tickets.

use super::*;

#[test]
fn a_ticket_ends_once() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.player("anna", Cancelled { ticket: ticket(1), queue: story::queue(), reason: CancelReason::Player });
    story.player("anna", TimedOut { ticket: ticket(1), queue: story::queue(), waited_ms: 60_000, candidates: None });
    assert_is(&only(&story), Rule::Ticket, Some("anna"), None, &[2, 3]);
}

#[test]
fn an_ended_ticket_is_not_queued_again_unless_another_ticket_came_between() {
    let mut story = Story::default();
    for number in [1, 2, 1] {
        story.queue("anna", number);
        let ended = Cancelled { ticket: ticket(number), queue: story::queue(), reason: CancelReason::Player };
        story.player("anna", ended);
    }
    assert_eq!(story.check(End::Settled).0, [], "the same key after another ticket makes a new ticket request");
    story.queue("anna", 1);
    assert_is(&only(&story), Rule::Ticket, Some("anna"), None, &[6, 7]);
}

#[test]
fn a_ticket_does_not_time_out_early() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.player("anna", TimedOut { ticket: ticket(1), queue: story::queue(), waited_ms: 59_999, candidates: None });
    let violation = only(&story);
    assert_is(&violation, Rule::Decided, Some("anna"), None, &[1, 2]);
    assert!(violation.what.contains("has not expired"), "{violation}");

    let mut story = Story::default();
    story.queue("anna", 1);
    story.player("anna", TimedOut { ticket: ticket(1), queue: story::queue(), waited_ms: 60_000, candidates: None });
    assert_eq!(story.check(End::Settled).0, []);

    let mut story = Story::default();
    story.queue("anna", 1);
    story.player("anna", TimedOut { ticket: ticket(1), queue: story::queue(), waited_ms: u64::MAX, candidates: None });
    assert_is(&only(&story), Rule::Decided, Some("anna"), None, &[1, 2]);
}

#[test]
fn a_waiting_or_playing_player_does_not_queue() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.queue("anna", 2);
    assert_is(&only(&story), Rule::Decided, Some("anna"), None, &[1, 2]);

    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.queue("anna", 3);
    assert_is(&only(&story), Rule::Decided, Some("anna"), None, &[4, 6]);
}
