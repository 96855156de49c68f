//! How the log was written, and messages that are not valid events.

use super::*;

#[test]
fn event_numbers_have_no_gap_and_no_duplicate() {
    for n in [1, 3] {
        let mut story = Story::default();
        story.queue("anna", 1);
        story.player(
            "anna",
            Cancelled {
                ticket: ticket(1),
                queue: story::queue(),
                reason: CancelReason::Player,
                absences: 0,
                party: None,
            },
        );
        story.edit(2, |body| body["n"] = json!(n));
        assert_is(&only(&story), Rule::Numbered, Some("anna"), None, &[2, 1]);
    }
    // The log begins at sequence 1, so no earlier event can have expired.
    let mut story = Story::default();
    story.queue("anna", 1);
    story.edit(1, |body| body["n"] = json!(2));
    assert_is(&only(&story), Rule::Numbered, Some("anna"), None, &[1]);
}

#[test]
fn each_message_expects_the_last_sequence_of_its_aggregate() {
    let cancelled = || {
        let mut story = Story::default();
        story.queue("anna", 1);
        story.queue("bert", 2);
        story.player(
            "anna",
            Cancelled {
                ticket: ticket(1),
                queue: story::queue(),
                reason: CancelReason::Player,
                absences: 0,
                party: None,
            },
        );
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
fn all_messages_of_a_batch_expect_the_head_from_before_the_batch() {
    let mut story = Story::played(1);
    // Closed must expect the same sequence as Finished, which is in the same batch.
    story.expect(13, Some("12"), Some(&story::of_session(1).filter()));
    assert_is(&only(&story), Rule::Expected, None, Some(1), &[13, 9]);
}

#[test]
fn a_commit_has_one_decision_per_aggregate() {
    // The server accepts both, because each expects the head from before the batch.
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
fn adjacent_events_with_different_causes_are_two_decisions() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1)]);
    story.session(1, story::requested(1));
    let both = vec![story::StoryEvent::session(story::scheduled(1)), story::StoryEvent::session(story::ready(1))];
    story.commit(vec![(story::of_session(1), both)]);
    story.edit(6, |body| body["cause"] = json!(story::id(99)));
    assert_is(&only(&story), Rule::Committed, None, Some(1), &[5, 6]);
}

#[test]
fn a_batch_is_complete() {
    let whole = || {
        let mut story = Story::default();
        story.matched(1, &[("anna", 1), ("bert", 2)]);
        story.queue("cleo", 3);
        story
    };
    assert_eq!(whole().check(End::Open).0, []);

    // The end is missing, and another message follows.
    let mut story = whole();
    story.remove(5);
    let [violation] = of_rule(&story, Rule::Committed).try_into().unwrap();
    assert_is(&violation, Rule::Committed, None, None, &[3, 4]);

    // The beginning is missing, in the middle of the log.
    let mut story = whole();
    story.remove(3);
    let [violation] = of_rule(&story, Rule::Committed).try_into().unwrap();
    assert_is(&violation, Rule::Committed, None, None, &[3, 4]);

    // The end is missing, and no message follows.
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
fn a_message_is_a_valid_event_on_its_own_subject() {
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
    readable(&wrong, None, "belongs to no aggregate");
    let elsewhere = story::of_session(1).filter().replace('>', "closed");
    let wrong = forge(&|story| story.messages[0].subject.clone_from(&elsewhere));
    readable(&wrong, Some(1), "belongs on");
    let wrong = forge(&|story| story.messages[0].body = "rubbish".into());
    readable(&wrong, Some(1), "cannot be read");
    let wrong = forge(&|story| story.edit(1, |body| body["data"]["session"] = json!(session(2))));
    readable(&wrong, Some(1), "its data names another owner");
    let wrong = forge(&|story| story.edit(1, |body| body["type"] = json!("Melted")));
    readable(&wrong, Some(1), "unknown to this build");
    let wrong = forge(&|story| story.header(1, "Garage-Type", "Closed"));
    readable(&wrong, Some(1), "header");
}

#[test]
fn after_an_unreadable_message_the_check_of_its_aggregate_continues_where_possible() {
    let mut story = Story::played(1);
    story.messages[0].body = "rubbish".into();
    // Anna's first event. Her next event contains her whole state.
    assert_is(&only(&story), Rule::Readable, Some("anna"), None, &[1]);

    let mut story = Story::played(1);
    story.edit(3, |body| body["v"] = json!(2));
    let found = of_rule(&story, Rule::Decided);
    assert_eq!(found, [], "the state of the session is unknown");
}
