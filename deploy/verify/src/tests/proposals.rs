//! Matches that their players must accept.

use garage_events::{
    failure,
    player::{DeclineReason, MatchDeclined, MatchProposed, Queued, Requeued},
    session::{Accepted, NotAccepted, ProposalEnded, Proposed},
};
use time::{Duration, OffsetDateTime};

use super::{story::StoryEvent, *};

const ACCEPT_BY: OffsetDateTime = story::BEGAN.saturating_add(Duration::seconds(20));
const PLAYERS: [(&str, u128); 2] = [("anna", 1), ("bert", 2)];

fn to(name: &str, number: u128, of: u128) -> MatchProposed {
    MatchProposed {
        session: session(of),
        team: name.into(),
        accept_by: ACCEPT_BY,
        players: 2,
        may_requeue: false,
        queued: queued(number),
    }
}

/// Queues players and proposes a match to them: for two players, messages 3 to 5.
fn propose(story: &mut Story, number: u128, players: &[(&str, u128)]) {
    for (name, ticket) in players {
        story.queue(name, *ticket);
    }
    let proposed = Proposed { accept_by: ACCEPT_BY, names_decliner: false, matched: story::matched(players) };
    let mut changes = vec![(story::of_session(number), vec![StoryEvent::session(proposed)])];
    for (name, ticket) in players {
        changes.push((story::of_player(name), vec![StoryEvent::player(to(name, *ticket, number))]));
    }
    story.commit(changes);
}

fn proposed() -> Story {
    let mut story = Story::default();
    propose(&mut story, 1, &PLAYERS);
    story
}

fn accepted(name: &str, accepted: u32) -> Accepted {
    Accepted { player: name.parse().unwrap(), accepted, of: 2 }
}

/// The last player accepts, so that the match is made.
fn made(story: &mut Story, name: &str, count: u32) {
    let last = vec![StoryEvent::session(accepted(name, count)), StoryEvent::session(story::matched(&PLAYERS))];
    let mut changes = vec![(story::of_session(1), last)];
    for (name, number) in PLAYERS {
        changes.push((story::of_player(name), vec![StoryEvent::player(story::is_matched(number, 1, name))]));
    }
    story.commit(changes);
}

/// anna declines, and bert waits again.
fn ended(story: &mut Story, why: NotAccepted, reason: DeclineReason) {
    let ended = ProposalEnded { why, players: vec!["anna".parse().unwrap()] };
    let closed = Closed { why: Ending::NotAccepted, results: Vec::new(), teams: Vec::new() };
    let declined = MatchDeclined {
        ticket: ticket(1),
        queue: story::queue(),
        session: session(1),
        reason,
        players: Vec::new(),
        absences: 1,
        party: None,
    };
    let requeued = Requeued { session: session(1), reason: failure::Code::NotAccepted, queued: queued(2) };
    story.commit(vec![
        (story::of_session(1), vec![StoryEvent::session(ended), StoryEvent::session(closed)]),
        (story::of_player("anna"), vec![StoryEvent::player(declined)]),
        (story::of_player("bert"), vec![StoryEvent::player(requeued)]),
    ]);
}

#[test]
fn a_proposal_that_all_players_accept_or_one_does_not_is_valid() {
    let mut story = proposed();
    story.session(1, accepted("bert", 1));
    made(&mut story, "anna", 2);
    story.served(1, 1);
    story.opens(1, &PLAYERS);
    assert_eq!(story.check(End::Open).0, []);

    let mut story = proposed();
    ended(&mut story, NotAccepted::Declined, DeclineReason::Declined);
    assert_eq!(story.check(End::Open).0, []);
    let mut story = proposed();
    story.session(1, accepted("bert", 1));
    ended(&mut story, NotAccepted::Unanswered, DeclineReason::Unanswered);
    assert_eq!(story.check(End::Open).0, []);
}

#[test]
fn a_match_is_not_made_before_all_players_have_accepted() {
    let mut story = proposed();
    made(&mut story, "anna", 1);
    assert!(of_rule(&story, Rule::Decided).iter().any(|violation| violation.seqs == [3, 6]));
}

#[test]
fn the_players_at_the_deadline_are_those_who_had_not_accepted() {
    let mut story = proposed();
    ended(&mut story, NotAccepted::Unanswered, DeclineReason::Unanswered);
    let [violation] = of_rule(&story, Rule::Decided).try_into().unwrap();
    assert_is(&violation, Rule::Decided, None, Some(1), &[3, 6]);
}

#[test]
fn a_proposal_ends_once() {
    let mut story = proposed();
    ended(&mut story, NotAccepted::Declined, DeclineReason::Declined);
    story.session(1, accepted("bert", 1));
    let [violation] = of_rule(&story, Rule::Decided).try_into().unwrap();
    assert_is(&violation, Rule::Decided, None, Some(1), &[7, 10]);
}

#[test]
fn a_proposal_that_has_not_ended_is_a_violation_when_the_log_must_be_settled() {
    let (found, summary) = proposed().check(End::Open);
    assert_eq!((found, summary.open), (vec![], 1));
    let (found, _) = proposed().check(End::Settled);
    assert_is(&found[0], Rule::Settled, None, Some(1), &[3]);
}

#[test]
fn a_player_is_not_in_a_proposed_match_and_in_another_match() {
    let mut story = proposed();
    story.matched(2, &[("anna", 3)]);
    let [violation] = of_rule(&story, Rule::OneSession).try_into().unwrap();
    assert_is(&violation, Rule::OneSession, Some("anna"), Some(2), &[3, 7]);
}

#[test]
fn each_player_of_a_proposed_match_has_its_event_and_nobody_else() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.queue("cleo", 3);
    let matched = story::matched(&[("anna", 1)]);
    let begun = Proposed { accept_by: ACCEPT_BY, names_decliner: false, matched };
    let late = MatchProposed { accept_by: ACCEPT_BY + Duration::SECOND, ..to("anna", 1, 1) };
    story.commit(vec![
        (story::of_session(1), vec![StoryEvent::session(begun)]),
        (story::of_player("anna"), vec![StoryEvent::player(late)]),
        (story::of_player("cleo"), vec![StoryEvent::player(to("cleo", 3, 1))]),
    ]);
    let [anna, cleo] = of_rule(&story, Rule::Matched).try_into().unwrap();
    assert_is(&anna, Rule::Matched, Some("anna"), Some(1), &[3]);
    assert_is(&cleo, Rule::Matched, Some("cleo"), Some(1), &[5]);
}

#[test]
fn every_player_of_a_proposal_that_ended_is_notified() {
    let mut story = proposed();
    let ended = ProposalEnded { why: NotAccepted::Declined, players: vec!["anna".parse().unwrap()] };
    let closed = Closed { why: Ending::NotAccepted, results: Vec::new(), teams: Vec::new() };
    let requeued = Requeued {
        session: session(1),
        reason: failure::Code::NotAccepted,
        queued: Queued { requeues: 1, ..queued(2) },
    };
    story.commit(vec![
        (story::of_session(1), vec![StoryEvent::session(ended), StoryEvent::session(closed)]),
        (story::of_player("bert"), vec![StoryEvent::player(requeued)]),
    ]);
    let [violation] = of_rule(&story, Rule::Notified).try_into().unwrap();
    assert_is(&violation, Rule::Notified, Some("anna"), Some(1), &[7]);
    // A proposal that was not accepted does not count as a failed match of the ticket.
    let [violation] = of_rule(&story, Rule::Decided).try_into().unwrap();
    assert_is(&violation, Rule::Decided, Some("bert"), None, &[5, 8]);
}
