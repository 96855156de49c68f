//! Sessions, their players, and the events that a decider allows.

use garage_events::game::Ports;

use super::*;

#[test]
fn a_player_is_in_at_most_one_live_session() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.matched(2, &[("anna", 3), ("cleo", 4)]);
    let [violation] = of_rule(&story, Rule::OneSession).try_into().unwrap();
    assert_is(&violation, Rule::OneSession, Some("anna"), Some(2), &[3, 8]);
    // The player's decider rejects the event too.
    assert!(of_rule(&story, Rule::Decided).iter().all(|one| one.player == Some("anna".parse().unwrap())));
}

#[test]
fn a_player_may_be_matched_again_after_a_session() {
    let mut story = Story::played(1);
    story.matched(2, &[("anna", 3), ("bert", 4)]);
    assert_eq!(story.check(End::Open).0, []);
}

#[test]
fn a_session_needs_the_matched_event_of_every_player() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.queue("bert", 2);
    let matched = story::matched(&[("anna", 1), ("bert", 2)]);
    story.commit(vec![
        (story::of_session(1), vec![story::StoryEvent::session(matched)]),
        (story::of_player("anna"), vec![story::StoryEvent::player(story::is_matched(1, 1, "anna"))]),
    ]);
    assert_is(&only(&story), Rule::Matched, Some("bert"), Some(1), &[3]);
}

#[test]
fn a_players_matched_event_names_the_ticket_and_team_of_the_session() {
    for wrong in [story::is_matched(1, 1, "bert"), story::is_matched(2, 1, "anna")] {
        let mut story = Story::default();
        story.queue("anna", 1);
        let matched = story::matched(&[("anna", 1)]);
        story.commit(vec![
            (story::of_session(1), vec![story::StoryEvent::session(matched)]),
            (story::of_player("anna"), vec![story::StoryEvent::player(wrong)]),
        ]);
        let [violation] = of_rule(&story, Rule::Matched).try_into().unwrap();
        assert_is(&violation, Rule::Matched, Some("anna"), Some(1), &[2]);
    }
}

#[test]
fn a_player_is_not_matched_without_a_session() {
    let mut story = Story::default();
    story.queue("anna", 1);
    story.player("anna", story::is_matched(1, 1, "anna"));
    assert_is(&only(&story), Rule::Matched, Some("anna"), Some(1), &[2]);
}

#[test]
fn all_players_of_an_opened_session_are_notified() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.served(1, 1);
    story.commit(vec![
        (story::of_session(1), vec![story::StoryEvent::session(story::opened(1))]),
        (story::of_player("bert"), vec![story::StoryEvent::player(story::player_matched(1, 2))]),
    ]);
    assert_is(&only(&story), Rule::Notified, Some("anna"), Some(1), &[9]);
}

#[test]
fn no_other_player_is_notified_of_an_opened_session() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.queue("cleo", 3);
    story.served(1, 1);
    story.commit(vec![
        (story::of_session(1), vec![story::StoryEvent::session(story::opened(1))]),
        (story::of_player("anna"), vec![story::StoryEvent::player(story::player_matched(1, 1))]),
        (story::of_player("bert"), vec![story::StoryEvent::player(story::player_matched(1, 2))]),
        (story::of_player("cleo"), vec![story::StoryEvent::player(story::player_matched(1, 3))]),
    ]);
    let [violation] = of_rule(&story, Rule::Notified).try_into().unwrap();
    assert_is(&violation, Rule::Notified, Some("cleo"), Some(1), &[13]);
}

#[test]
fn a_player_is_not_notified_without_the_opened_event() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.served(1, 1);
    story.player("anna", story::player_matched(1, 1));
    assert_is(&only(&story), Rule::Notified, Some("anna"), Some(1), &[9]);
}

#[test]
fn the_address_is_that_of_the_server_that_reported() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1)]);
    story.served(1, 1);
    let elsewhere = player::Address { ports: Ports { tcp_port: 9, udp_port: 2 }, ..address() };
    let opened = session::Opened { attempt: 1, address: elsewhere.clone() };
    let notified = player::PlayerMatched { address: elsewhere, ..story::player_matched(1, 1) };
    story.commit(vec![
        (story::of_session(1), vec![story::StoryEvent::session(opened)]),
        (story::of_player("anna"), vec![story::StoryEvent::player(notified)]),
    ]);
    assert_is(&only(&story), Rule::Decided, None, Some(1), &[6, 7]);
}

#[test]
fn all_players_are_released_when_their_session_closes_with_the_same_reason() {
    let closing = |released: &[(&str, u128, Ending)]| {
        let mut story = Story::default();
        story.matched(1, &[("anna", 1), ("bert", 2)]);
        let failed = Failed { reason: "no-attempts".into() };
        let closed = Closed { why: Ending::Failed, results: vec![], teams: Vec::new() };
        let mut changes =
            vec![(story::of_session(1), vec![story::StoryEvent::session(failed), story::StoryEvent::session(closed)])];
        for (name, number, why) in released {
            let released = Released {
                ticket: ticket(*number),
                session: session(1),
                why: *why,
                reason: None,
                absences: 0,
                party: None,
            };
            changes.push((story::of_player(name), vec![story::StoryEvent::player(released)]));
        }
        story.commit(changes);
        story
    };
    let all = [("anna", 1, Ending::Failed), ("bert", 2, Ending::Failed)];
    assert_eq!(closing(&all).check(End::Settled).0, []);
    assert_is(&only(&closing(&all[..1])), Rule::Notified, Some("bert"), Some(1), &[7]);
    let wrong = [all[0], ("bert", 2, Ending::Abandoned)];
    assert_is(&only(&closing(&wrong)), Rule::Notified, Some("bert"), Some(1), &[7]);
}

#[test]
fn a_player_is_not_released_while_the_session_is_live() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1), ("bert", 2)]);
    story.player(
        "anna",
        Released {
            ticket: ticket(1),
            session: session(1),
            why: Ending::Failed,
            reason: None,
            absences: 0,
            party: None,
        },
    );
    assert_is(&only(&story), Rule::Notified, Some("anna"), Some(1), &[6]);
}

#[test]
fn a_session_has_only_events_that_its_decider_allows() {
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
        Finished { attempt: 1, results: vec![], teams: Vec::new() }.into(),
    ];
    for wrong in all_wrong {
        let story = step(wrong);
        let [violation] = of_rule(&story, Rule::Decided).try_into().unwrap();
        assert_is(&violation, Rule::Decided, None, Some(1), &[3, 6]);
    }
}

#[test]
fn a_closed_session_has_no_more_events() {
    let mut story = Story::played(1);
    story.session(1, story::requested(2));
    assert_is(&only(&story), Rule::Decided, None, Some(1), &[13, 18]);
}

#[test]
fn a_session_begins_with_matched() {
    let mut story = Story::default();
    story.session(1, story::requested(1));
    let violation = only(&story);
    assert_is(&violation, Rule::Decided, None, Some(1), &[1]);
    assert!(violation.what.contains("does not exist"), "{violation}");
}

#[test]
fn results_name_the_players_of_the_match() {
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
fn a_session_that_is_abandoned_at_its_hard_end_is_valid() {
    let mut story = Story::default();
    story.matched(1, &[("anna", 1)]);
    let failed = Failed { reason: "hard-end".into() };
    let closed = Closed { why: Ending::Abandoned, results: vec![], teams: Vec::new() };
    let released = Released {
        ticket: ticket(1),
        session: session(1),
        why: Ending::Abandoned,
        reason: None,
        absences: 0,
        party: None,
    };
    story.commit(vec![
        (story::of_session(1), vec![story::StoryEvent::session(failed), story::StoryEvent::session(closed)]),
        (story::of_player("anna"), vec![story::StoryEvent::player(released)]),
    ]);
    assert_eq!(story.check(End::Settled).0, []);
}

#[test]
fn a_players_event_repeats_the_data_of_the_players_state() {
    let mut story = Story::default();
    story.queue("anna", 1);
    let waiting_since = story::BEGAN + time::Duration::SECOND;
    let later = player::Matched { waiting_since, ..story::is_matched(1, 1, "anna") };
    story.commit(vec![
        (story::of_session(1), vec![story::StoryEvent::session(story::matched(&[("anna", 1)]))]),
        (story::of_player("anna"), vec![story::StoryEvent::player(later)]),
    ]);
    assert_is(&only(&story), Rule::Decided, Some("anna"), None, &[1, 3]);
}
