//! Histories that can be, and forged ones: each invariant by what breaks it.

mod instances;
mod legal;
mod projections;
mod story;

use garage_events::{
    inventory::RewardGranted,
    player::{self, CancelReason, Cancelled, Ending, Released, TimedOut},
    session::{self, Closed, Failed, Finished, PodFailed},
    subject::Aggregate,
};
use serde_json::json;

use self::story::{Story, address, placing, queued, session, ticket};
use super::{
    checker::{End, Summary},
    violation::{Rule, Violation},
};

/// The one violation of a history.
#[track_caller]
fn only(story: &Story) -> Violation {
    let (found, _) = story.check(End::Open);
    let [violation] = found.try_into().unwrap_or_else(|found: Vec<_>| panic!("{found:#?}"));
    violation
}

/// That a violation is of this rule, about this player and this session, at these messages.
#[track_caller]
fn assert_is(found: &Violation, rule: Rule, player: Option<&str>, session: Option<u128>, seqs: &[u64]) {
    let whom = (found.player.as_ref().map(|player| player.as_str()), found.session);
    assert_eq!((found.rule, whom), (rule, (player, session.map(story::session))), "{found}");
    assert_eq!(found.seqs, seqs, "{found}");
}

/// The violations of a rule.
fn of_rule(story: &Story, rule: Rule) -> Vec<Violation> {
    let (mut found, _) = story.check(End::Open);
    found.retain(|violation| violation.rule == rule);
    found
}

#[test]
fn a_match_that_is_played_and_paid_holds() {
    let story = Story::played(1);
    let (found, summary) = story.check(End::Settled);
    assert_eq!(found, []);
    let expected = Summary { events: 17, players: 2, sessions: 1, tickets: 2, paid: 2, open: 0, midway: 0 };
    assert_eq!(summary, expected);
}

#[test]
fn what_is_under_way_is_no_violation_until_all_should_be_over() {
    let mut story = Story::played(1);
    story.queue("cleo", 3);
    story.matched(2, &[("dora", 4), ("emil", 5)]);
    let (found, summary) = story.check(End::Open);
    assert_eq!((found, summary.open), (vec![], 2));
    let (found, _) = story.check(End::Settled);
    assert_is(&found[0], Rule::Settled, Some("cleo"), None, &[18]);
    assert_is(&found[1], Rule::Settled, None, Some(2), &[21]);
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn who_is_not_paid_is_told_when_all_should_be_over() {
    let mut story = Story::played(1);
    story.messages.pop();
    let (found, summary) = story.check(End::Open);
    assert_eq!((found, summary.open, summary.paid), (vec![], 1, 1));
    let (found, _) = story.check(End::Settled);
    assert_is(&found[0], Rule::Settled, Some("bert"), Some(1), &[12]);
    assert_eq!(found.len(), 1, "{found:?}");
}

// Tickets.

#[test]
fn a_ticket_ends_once() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.player("anna", Cancelled { ticket: ticket(1), queue: story::queue(), reason: CancelReason::Player });
    story.player("anna", TimedOut { ticket: ticket(1), queue: story::queue(), waited_ms: 60_000 });
    assert_is(&only(&story), Rule::Ticket, Some("anna"), None, &[2, 3]);
}

#[test]
fn a_ticket_that_has_ended_is_not_queued_again_before_another() {
    let mut story = Story::default();
    for number in [1, 2, 1] {
        story.queue("anna", number);
        let ended = Cancelled { ticket: ticket(number), queue: story::queue(), reason: CancelReason::Player };
        story.player("anna", ended);
    }
    assert_eq!(story.check(End::Settled).0, [], "the same key after another ticket is another wish");
    story.queue("anna", 1);
    assert_is(&only(&story), Rule::Ticket, Some("anna"), None, &[6, 7]);
}

#[test]
fn a_ticket_does_not_end_before_its_time() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.player("anna", TimedOut { ticket: ticket(1), queue: story::queue(), waited_ms: 59_999 });
    let violation = only(&story);
    assert_is(&violation, Rule::Decided, Some("anna"), None, &[1, 2]);
    assert!(violation.what.contains("has not expired"), "{violation}");

    let mut story = Story::default();
    story.queue("anna", 1);
    story.player("anna", TimedOut { ticket: ticket(1), queue: story::queue(), waited_ms: 60_000 });
    assert_eq!(story.check(End::Settled).0, []);

    let mut story = Story::default();
    story.queue("anna", 1);
    story.player("anna", TimedOut { ticket: ticket(1), queue: story::queue(), waited_ms: u64::MAX });
    assert_is(&only(&story), Rule::Decided, Some("anna"), None, &[1, 2]);
}

#[test]
fn nobody_queues_while_he_waits_or_plays() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.queue("anna", 2);
    assert_is(&only(&story), Rule::Decided, Some("anna"), None, &[1, 2]);

    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.queue("anna", 3);
    assert_is(&only(&story), Rule::Decided, Some("anna"), None, &[4, 6]);
}

// Sessions and their players.

#[test]
fn a_player_is_in_one_live_session() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.matched(2, &[("anna", 3), ("cleo", 4)]);
    let [violation] = of_rule(&story, Rule::OneSession).try_into().unwrap();
    assert_is(&violation, Rule::OneSession, Some("anna"), Some(2), &[3, 8]);
    // His decider would not have had it either.
    assert!(of_rule(&story, Rule::Decided).iter().all(|one| one.player == Some("anna".parse().unwrap())));
}

#[test]
fn after_one_session_there_may_be_another() {
    let mut story = Story::played(1);
    story.matched(2, &[("anna", 3), ("bert", 4)]);
    assert_eq!(story.check(End::Open).0, []);
}

#[test]
fn a_session_is_matched_with_all_its_players() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.queue("bert", 2);
    let matched = story::matched(&[("anna", 1), ("bert", 2)]);
    story.commit(vec![
        (story::of_session(1), vec![story::Said::session(matched)]),
        (story::of_player("anna"), vec![story::Said::player(story::is_matched(1, 1, "anna"))]),
    ]);
    assert_is(&only(&story), Rule::Matched, Some("bert"), Some(1), &[3]);
}

#[test]
fn a_player_is_matched_with_the_ticket_and_team_that_the_session_names() {
    for wrong in [story::is_matched(1, 1, "bert"), story::is_matched(2, 1, "anna")] {
        let mut story = Story::default();
        story.queue("anna", 1);
        let matched = story::matched(&[("anna", 1)]);
        story.commit(vec![
            (story::of_session(1), vec![story::Said::session(matched)]),
            (story::of_player("anna"), vec![story::Said::player(wrong)]),
        ]);
        let [violation] = of_rule(&story, Rule::Matched).try_into().unwrap();
        assert_is(&violation, Rule::Matched, Some("anna"), Some(1), &[2]);
    }
}

#[test]
fn nobody_is_matched_without_his_session() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.player("anna", story::is_matched(1, 1, "anna"));
    assert_is(&only(&story), Rule::Matched, Some("anna"), Some(1), &[2]);
}

#[test]
fn all_players_of_an_opened_session_are_told_where_it_is() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.served(1, 1);
    story.commit(vec![
        (story::of_session(1), vec![story::Said::session(story::opened(1))]),
        (story::of_player("bert"), vec![story::Said::player(story::told(1, 2))]),
    ]);
    assert_is(&only(&story), Rule::Told, Some("anna"), Some(1), &[9]);
}

#[test]
fn nobody_else_is_told_where_a_session_is() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.queue("cleo", 3);
    story.served(1, 1);
    story.commit(vec![
        (story::of_session(1), vec![story::Said::session(story::opened(1))]),
        (story::of_player("anna"), vec![story::Said::player(story::told(1, 1))]),
        (story::of_player("bert"), vec![story::Said::player(story::told(1, 2))]),
        (story::of_player("cleo"), vec![story::Said::player(story::told(1, 3))]),
    ]);
    let [violation] = of_rule(&story, Rule::Told).try_into().unwrap();
    assert_is(&violation, Rule::Told, Some("cleo"), Some(1), &[13]);
}

#[test]
fn a_player_is_told_by_his_session_alone() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.served(1, 1);
    story.player("anna", story::told(1, 1));
    assert_is(&only(&story), Rule::Told, Some("anna"), Some(1), &[9]);
}

#[test]
fn all_are_told_the_address_of_the_server_that_reported() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1)]);
    story.served(1, 1);
    let elsewhere = player::Address { tcp_port: 9, ..address() };
    let opened = session::Opened { attempt: 1, address: elsewhere.clone() };
    let told = player::PlayerMatched { address: elsewhere, ..story::told(1, 1) };
    story.commit(vec![
        (story::of_session(1), vec![story::Said::session(opened)]),
        (story::of_player("anna"), vec![story::Said::player(told)]),
    ]);
    assert_is(&only(&story), Rule::Decided, None, Some(1), &[6, 7]);
}

#[test]
fn all_are_released_when_their_session_closes_and_for_its_reason() {
    let closing = |released: &[(&str, u128, Ending)]| {
        let mut story = Story::default();
        story.matched(1, &[("anna", 1), ("bert", 2)]);
        let failed = Failed { reason: "no-attempts".into() };
        let closed = Closed { why: Ending::Failed, results: vec![] };
        let mut changes =
            vec![(story::of_session(1), vec![story::Said::session(failed), story::Said::session(closed)])];
        for (name, number, why) in released {
            let released = Released { ticket: ticket(*number), session: session(1), why: *why };
            changes.push((story::of_player(name), vec![story::Said::player(released)]));
        }
        story.commit(changes);
        story
    };
    let all = [("anna", 1, Ending::Failed), ("bert", 2, Ending::Failed)];
    assert_eq!(closing(&all).check(End::Settled).0, []);
    assert_is(&only(&closing(&all[..1])), Rule::Told, Some("bert"), Some(1), &[7]);
    let wrong = [all[0], ("bert", 2, Ending::Abandoned)];
    assert_is(&only(&closing(&wrong)), Rule::Told, Some("bert"), Some(1), &[7]);
}

#[test]
fn nobody_is_released_while_his_session_lives() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.player("anna", Released { ticket: ticket(1), session: session(1), why: Ending::Failed });
    assert_is(&only(&story), Rule::Told, Some("anna"), Some(1), &[6]);
}

// Deciders.

#[test]
fn a_session_does_only_what_its_decider_decides() {
    let step = |event: session::Event| {
        let mut story = Story::default();
        story.matched(1, &[("anna", 1), ("bert", 2)]);
        story.session(1, event);
        story
    };
    assert_eq!(step(story::requested(1).into()).check(End::Open).0, []);
    let all_wrong: [session::Event; 7] = [
        story::requested(2).into(),
        story::scheduled(1).into(),
        story::ready(1).into(),
        PodFailed { attempt: 1, reason: "gone".into(), message: String::new() }.into(),
        story::matched(&[("anna", 1)]).into(),
        Failed { reason: "alone".into() }.into(),
        Finished { attempt: 1, results: vec![] }.into(),
    ];
    for wrong in all_wrong {
        let story = step(wrong);
        let [violation] = of_rule(&story, Rule::Decided).try_into().unwrap();
        assert_is(&violation, Rule::Decided, None, Some(1), &[3, 6]);
    }
}

#[test]
fn nothing_happens_to_a_session_that_is_closed() {
    let mut story = Story::played(1);
    story.session(1, story::requested(2));
    assert_is(&only(&story), Rule::Decided, None, Some(1), &[13, 18]);
}

#[test]
fn a_session_without_a_beginning_is_none() {
    let mut story = Story::default();
    story.session(1, story::requested(1));
    let violation = only(&story);
    assert_is(&violation, Rule::Decided, None, Some(1), &[1]);
    assert!(violation.what.contains("does not exist"), "{violation}");
}

#[test]
fn results_are_of_the_players_of_the_match() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1)]);
    story.served(1, 1);
    story.opens(1, &[("anna", 1)]);
    story.ends(1, vec![placing("cleo", 1)], &[("anna", 1)]);
    let violation = only(&story);
    assert_is(&violation, Rule::Decided, None, Some(1), &[7, 9]);
    assert!(violation.what.contains("results do not name"), "{violation}");
}

#[test]
fn a_session_that_is_given_up_at_its_hard_end_holds() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1)]);
    let failed = Failed { reason: "hard-end".into() };
    let closed = Closed { why: Ending::Abandoned, results: vec![] };
    let released = Released { ticket: ticket(1), session: session(1), why: Ending::Abandoned };
    story.commit(vec![
        (story::of_session(1), vec![story::Said::session(failed), story::Said::session(closed)]),
        (story::of_player("anna"), vec![story::Said::player(released)]),
    ]);
    assert_eq!(story.check(End::Settled).0, []);
}

#[test]
fn a_players_event_says_what_his_state_was() {
    let mut story = Story::default();
    story.queue("anna", 1);
    let waiting_since = story::BEGAN + time::Duration::SECOND;
    let later = player::Matched { waiting_since, ..story::is_matched(1, 1, "anna") };
    story.commit(vec![
        (story::of_session(1), vec![story::Said::session(story::matched(&[("anna", 1)]))]),
        (story::of_player("anna"), vec![story::Said::player(later)]),
    ]);
    assert_is(&only(&story), Rule::Decided, Some("anna"), None, &[1, 3]);
}

// Payments.

#[test]
fn nobody_is_paid_twice() {
    let mut story = Story::played(1);
    story.paid("anna", 1, 1);
    assert_is(&only(&story), Rule::Paid, Some("anna"), Some(1), &[16, 18]);
}

#[test]
fn only_who_was_in_a_finished_match_is_paid_and_for_his_place() {
    let mut story = Story::finished(1);
    story.paid("cleo", 1, 1);
    assert_is(&only(&story), Rule::Paid, Some("cleo"), Some(1), &[12, 16]);

    // Also once all who were in it have been paid.
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

// How it was written.

#[test]
fn numbers_have_no_hole_and_no_double() {
    for n in [1, 3] {
        let mut story = Story::default();
        story.queue("anna", 1);
        story.player("anna", Cancelled { ticket: ticket(1), queue: story::queue(), reason: CancelReason::Player });
        story.edit(2, |body| body["n"] = json!(n));
        assert_is(&only(&story), Rule::Numbered, Some("anna"), None, &[2, 1]);
    }
    // The log goes back to its first message: nobody begins midway.
    let mut story = Story::default();
    story.queue("anna", 1);
    story.edit(1, |body| body["n"] = json!(2));
    assert_is(&only(&story), Rule::Numbered, Some("anna"), None, &[1]);
}

#[test]
fn each_message_expects_its_aggregate_where_it_was() {
    let cancelled = || {
        let mut story = Story::default();
        story.queue("anna", 1);
        story.queue("bert", 2);
        story.player("anna", Cancelled { ticket: ticket(1), queue: story::queue(), reason: CancelReason::Player });
        story
    };
    assert_eq!(cancelled().check(End::Open).0, []);

    let mut stale = cancelled();
    stale.expect(3, Some("0"), Some("garage.player.anna"));
    assert_is(&only(&stale), Rule::Expected, Some("anna"), None, &[3, 1]);

    for (seq, filter) in [
        (None, None),
        (Some("1"), None),
        (None, Some("garage.player.anna")),
        (Some("1"), Some("garage.player.*")),
        (Some("x"), Some("garage.player.anna")),
    ] {
        let mut story = cancelled();
        story.expect(3, seq, filter);
        assert_is(&only(&story), Rule::Expected, Some("anna"), None, &[3]);
    }
}

#[test]
fn in_a_batch_all_expect_the_head_from_before_it() {
    let mut story = Story::played(1);
    // Closed, which expects what Finished expects.
    story.expect(13, Some("12"), Some(&story::of_session(1).filter()));
    assert_is(&only(&story), Rule::Expected, None, Some(1), &[13, 9]);
}

#[test]
fn a_commit_holds_one_decision_on_an_aggregate() {
    // Both were accepted: each expects the head from before the batch, as the server saw it.
    let mut story = Story::default();
    story.queue("anna", 1);
    story.queue("bert", 2);
    story.queue("cleo", 3);
    story.commit(vec![
        (story::of_session(1), vec![story::Said::session(story::matched(&[("anna", 1), ("bert", 2)]))]),
        (story::of_player("anna"), vec![story::Said::player(story::is_matched(1, 1, "anna"))]),
        (story::of_player("bert"), vec![story::Said::player(story::is_matched(2, 1, "bert"))]),
        (story::of_session(2), vec![story::Said::session(story::matched(&[("anna", 1), ("cleo", 3)]))]),
        (story::of_player("anna"), vec![story::Said::player(story::is_matched(1, 2, "anna"))]),
        (story::of_player("cleo"), vec![story::Said::player(story::is_matched(3, 2, "cleo"))]),
    ]);
    let [violation] = of_rule(&story, Rule::Committed).try_into().unwrap();
    assert_is(&violation, Rule::Committed, Some("anna"), None, &[5, 8]);
    let [violation] = of_rule(&story, Rule::OneSession).try_into().unwrap();
    assert_is(&violation, Rule::OneSession, Some("anna"), Some(2), &[4, 7]);
    assert_eq!(of_rule(&story, Rule::Expected), []);
}

#[test]
fn two_decisions_side_by_side_are_two() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1)]);
    story.session(1, story::requested(1));
    let both = vec![story::Said::session(story::scheduled(1)), story::Said::session(story::ready(1))];
    story.commit(vec![(story::of_session(1), both)]);
    story.edit(6, |body| body["cause"] = json!(story::id(99)));
    assert_is(&only(&story), Rule::Committed, None, Some(1), &[5, 6]);
}

#[test]
fn a_batch_is_whole() {
    let whole = || {
        let mut story = Story::default();
        story.matched(1, &[("anna", 1), ("bert", 2)]);
        story.queue("cleo", 3);
        story
    };
    assert_eq!(whole().check(End::Open).0, []);

    // Its end is missing, and another message follows.
    let mut story = whole();
    story.lose(5);
    let [violation] = of_rule(&story, Rule::Committed).try_into().unwrap();
    assert_is(&violation, Rule::Committed, None, None, &[3, 4]);

    // Its beginning is missing, in the midst of the log.
    let mut story = whole();
    story.lose(3);
    let [violation] = of_rule(&story, Rule::Committed).try_into().unwrap();
    assert_is(&violation, Rule::Committed, None, None, &[3, 4]);

    // Its end is missing, and nothing follows.
    let mut story = whole();
    story.messages.truncate(4);
    let [violation] = of_rule(&story, Rule::Committed).try_into().unwrap();
    assert_is(&violation, Rule::Committed, None, None, &[3, 4]);
}

#[test]
fn no_message_is_missing() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.queue("bert", 2);
    story.queue("cleo", 3);
    story.messages.remove(1);
    assert_is(&only(&story), Rule::Readable, None, None, &[1, 3]);
}

// What is no event.

#[test]
fn a_message_is_an_event_on_its_own_subject() {
    let one = || {
        let mut story = Story::default();
        story.session(1, story::matched(&[]));
        story
    };
    assert_eq!(one().check(End::Open).0, []);
    let forge = |forge: &dyn Fn(&mut Story)| {
        let mut story = one();
        forge(&mut story);
        only(&story)
    };
    let readable = |violation: &Violation, session, words: &str| {
        assert_is(violation, Rule::Readable, None, session, &[1]);
        assert!(violation.what.contains(words), "{violation}");
    };
    let wrong = forge(&|story| story.messages[0].subject = "garage.nobody.1".into());
    readable(&wrong, None, "no aggregate's");
    let elsewhere = story::of_session(1).filter().replace('>', "closed");
    let wrong = forge(&|story| story.messages[0].subject.clone_from(&elsewhere));
    readable(&wrong, Some(1), "belongs on");
    let wrong = forge(&|story| story.messages[0].body = "rubbish".into());
    readable(&wrong, Some(1), "cannot be read");
    let wrong = forge(&|story| story.edit(1, |body| body["data"]["session"] = json!(session(2))));
    readable(&wrong, Some(1), "its data is not of");
    let wrong = forge(&|story| story.edit(1, |body| body["type"] = json!("Melted")));
    readable(&wrong, Some(1), "unknown to this build");
    let wrong = forge(&|story| story.header(1, "Garage-Type", "Closed"));
    readable(&wrong, Some(1), "header");
}

#[test]
fn after_a_message_that_cannot_be_read_its_aggregate_is_taken_up_where_that_is_possible() {
    let mut story = Story::played(1);
    story.messages[0].body = "rubbish".into();
    // Anna's beginning: her next event says where she stands.
    assert_is(&only(&story), Rule::Readable, Some("anna"), None, &[1]);

    let mut story = Story::played(1);
    story.edit(3, |body| body["v"] = json!(2));
    let found = of_rule(&story, Rule::Decided);
    assert_eq!(found, [], "nothing is known of the session");
}

// A log that has forgotten its beginning.

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

// Secrets.

#[test]
fn no_secret_is_in_the_log() {
    for secret in
        ["-----BEGIN PRIVATE KEY-----", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbm5hIn0.x", "swordfish-of-the-studio"]
    {
        let mut story = Story::default();
        let attributes = [("note".to_owned(), secret.to_owned())].into();
        story.player("anna", player::Queued { attributes, ..queued(1) });
        let violation = only(&story);
        assert_is(&violation, Rule::Secret, Some("anna"), None, &[1]);
        assert!(!format!("{violation} {violation:?}").contains(secret), "a secret is not repeated");

        let mut story = Story::default();
        story.queue("anna", 1);
        story.header(1, "Note", secret);
        assert_is(&only(&story), Rule::Secret, Some("anna"), None, &[1]);
    }
    // A game's public key is none.
    let mut story = Story::default();
    story.matched(1, &[("anna", 1)]);
    let public_key = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END PUBLIC KEY-----\n".into();
    story.session(1, session::PodRequested { public_key, ..story::requested(1) });
    assert_eq!(story.check(End::Open).0, []);
}

// How it is told.

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
    assert_eq!(forged.to_string(), "readable   : the player's \\u{1b}[2J", "a terminal is left alone");
    let bare = serde_json::to_value(Violation::new(Rule::OneSession, [0, 7], "x")).unwrap();
    assert_eq!(bare, json!({ "rule": "one-session", "seqs": [7], "what": "x" }));
}

#[test]
fn rewards_of_any_amount_are_paid() {
    let mut story = Story::finished(1);
    let reward = RewardGranted { session: session(1), place: 1, amount: 0, balance: 0 };
    story.commit(vec![(Aggregate::Inventory("anna".parse().unwrap()), vec![story::Said::inventory(reward)])]);
    assert_eq!(story.check(End::Open).0, []);
}
