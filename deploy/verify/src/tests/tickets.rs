//! Tickets.

use garage_events::failure;

use super::{
    story::{StoryEvent, of_player, of_session},
    *,
};

#[test]
fn a_ticket_ends_once() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.player(
        "anna",
        Cancelled { ticket: ticket(1), queue: story::queue(), reason: CancelReason::Player, absences: 0, party: None },
    );
    story.player(
        "anna",
        TimedOut {
            ticket: ticket(1),
            queue: story::queue(),
            waited_ms: 60_000,
            considered: None,
            absences: 0,
            party: None,
        },
    );
    assert_is(&only(&story), Rule::Ticket, Some("anna"), None, &[2, 3]);
}

#[test]
fn an_ended_ticket_is_not_queued_again_unless_another_ticket_came_between() {
    let mut story = Story::default();
    for number in [1, 2, 1] {
        story.queue("anna", number);
        let ended = Cancelled {
            ticket: ticket(number),
            queue: story::queue(),
            reason: CancelReason::Player,
            absences: 0,
            party: None,
        };
        story.player("anna", ended);
    }
    assert_eq!(story.check(End::Settled).0, [], "the same key after another ticket makes a new ticket request");
    story.queue("anna", 1);
    assert_is(&only(&story), Rule::Ticket, Some("anna"), None, &[6, 7]);
}

/// A failed match of anna and bert. Anna is requeued.
fn requeued() -> Story {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.queue("bert", 2);
    let queued = player::Queued { requeues: 1, ..story::queued(1) };
    let requeue = {
        let player::Queued { rank, latencies, attributes, group, expires_at, .. } = story::queued(1);
        Some(player::Requeue { rank, latencies, attributes, group, expires_at, requeues: 0, party: None })
    };
    let matched = player::Matched { requeue, ..story::is_matched(1, 1, "anna") };
    story.commit(vec![
        (of_session(1), vec![StoryEvent::session(story::matched(&[("anna", 1), ("bert", 2)]))]),
        (of_player("anna"), vec![StoryEvent::player(matched)]),
        (of_player("bert"), vec![StoryEvent::player(story::is_matched(2, 1, "bert"))]),
    ]);
    let (session, reason) = (story::session(1), failure::Code::ServerFailed);
    let released =
        Released { ticket: ticket(2), session, why: Ending::Failed, reason: Some(reason), absences: 0, party: None };
    let ended = vec![
        StoryEvent::session(session::Failed { reason: "exited".into() }),
        StoryEvent::session(session::Closed { why: Ending::Failed, results: Vec::new(), teams: Vec::new() }),
    ];
    story.commit(vec![
        (of_session(1), ended),
        (of_player("anna"), vec![StoryEvent::player(player::Requeued { session, reason, queued })]),
        (of_player("bert"), vec![StoryEvent::player(released)]),
    ]);
    story
}

#[test]
fn a_requeued_ticket_ends_once_more() {
    let mut story = requeued();
    assert_eq!(story.check(End::Open).0, []);
    let cancelled =
        Cancelled { ticket: ticket(1), queue: story::queue(), reason: CancelReason::Player, absences: 0, party: None };
    story.player("anna", cancelled.clone());
    assert_eq!(story.check(End::Settled).0, []);
    story.player("anna", cancelled);
    assert_is(&only(&story), Rule::Ticket, Some("anna"), None, &[10, 11]);
}

#[test]
fn a_ticket_is_requeued_only_when_its_session_fails() {
    let mut story = requeued();
    let queued = player::Queued { requeues: 1, ..story::queued(1) };
    let requeued = player::Requeued { session: story::session(1), reason: failure::Code::ServerFailed, queued };
    story.player("anna", requeued);
    for rule in [Rule::Decided, Rule::Notified] {
        assert_eq!(of_rule(&story, rule).len(), 1, "{rule}");
    }
}

#[test]
fn a_ticket_does_not_time_out_early() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.player(
        "anna",
        TimedOut {
            ticket: ticket(1),
            queue: story::queue(),
            waited_ms: 59_999,
            considered: None,
            absences: 0,
            party: None,
        },
    );
    let violation = only(&story);
    assert_is(&violation, Rule::Decided, Some("anna"), None, &[1, 2]);
    assert!(violation.what.contains("has not expired"), "{violation}");

    let mut story = Story::default();
    story.queue("anna", 1);
    story.player(
        "anna",
        TimedOut {
            ticket: ticket(1),
            queue: story::queue(),
            waited_ms: 60_000,
            considered: None,
            absences: 0,
            party: None,
        },
    );
    assert_eq!(story.check(End::Settled).0, []);

    let mut story = Story::default();
    story.queue("anna", 1);
    story.player(
        "anna",
        TimedOut {
            ticket: ticket(1),
            queue: story::queue(),
            waited_ms: u64::MAX,
            considered: None,
            absences: 0,
            party: None,
        },
    );
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
