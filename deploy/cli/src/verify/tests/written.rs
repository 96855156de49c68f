//! How the log was written, and what in it is no event.

use super::*;

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
        (story::of_session(1), vec![story::StoryEvent::session(story::matched(&[("anna", 1), ("bert", 2)]))]),
        (story::of_player("anna"), vec![story::StoryEvent::player(story::is_matched(1, 1, "anna"))]),
        (story::of_player("bert"), vec![story::StoryEvent::player(story::is_matched(2, 1, "bert"))]),
        (story::of_session(2), vec![story::StoryEvent::session(story::matched(&[("anna", 1), ("cleo", 3)]))]),
        (story::of_player("anna"), vec![story::StoryEvent::player(story::is_matched(1, 2, "anna"))]),
        (story::of_player("cleo"), vec![story::StoryEvent::player(story::is_matched(3, 2, "cleo"))]),
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
    let both = vec![story::StoryEvent::session(story::scheduled(1)), story::StoryEvent::session(story::ready(1))];
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
