//! A match that its players must accept.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::id::PlayerId;

fn proposal() -> Proposed {
    Proposed { accept_by: after(20), names_decliner: true, matched: match_of_ann_and_bob() }
}

fn proposed() -> Event {
    proposal().into()
}

fn accepted(player: &str, accepted: u32) -> Event {
    Accepted { player: player.parse().unwrap(), accepted, of: 2 }.into()
}

fn ended(why: NotAccepted, players: &[&str]) -> Event {
    let players = players.iter().map(|player| player.parse().unwrap()).collect();
    ProposalEnded { why, players }.into()
}

fn not_accepted() -> Event {
    closed(Ending::NotAccepted)
}

fn accept(player: &str, seconds: i64) -> Command {
    Command::Accept { player: player.parse().unwrap(), now: after(seconds) }
}

fn decline(player: &str, why: NotAccepted) -> Command {
    Command::Decline { player: player.parse().unwrap(), why }
}

#[test]
fn a_proposal_begins_a_session_once() {
    let propose = || Command::Propose(proposal());
    given([]).when(propose()).then([proposed()]);
    for given in [given([proposed()]), given([matched()]), given([matched(), failed("x"), closed(Ending::Failed)])] {
        given.when(propose()).refused(Rejection::Exists);
        given.when(create()).refused(Rejection::Exists);
    }
}

#[test]
fn the_last_acceptance_makes_the_match() {
    given([proposed()]).when(accept("bob", 19)).then([accepted("bob", 1)]);
    given([proposed(), accepted("bob", 1)]).when(accept("ann", 19)).then([accepted("ann", 2), matched()]);
    let made = given([proposed(), accepted("bob", 1), accepted("ann", 2), matched()]);
    assert_eq!(made.next(), Next::RequestPod { attempt: 1, not_before: None });
    assert_eq!(made.deadline_s(), 3 + 900, "the limit of the session begins with the match");
}

#[test]
fn a_repeated_answer_is_recognized_before_and_after_the_match_or_the_end() {
    given([proposed(), accepted("bob", 1)]).when(accept("bob", 30)).refused(Rejection::Repeated);
    let made = given([proposed(), accepted("bob", 1), accepted("ann", 2), matched()]);
    made.when(accept("bob", 30)).refused(Rejection::Repeated);
    let over = given([proposed(), ended(NotAccepted::Declined, &["ann"]), not_accepted()]);
    over.when(decline("ann", NotAccepted::Declined)).refused(Rejection::Repeated);
}

#[test]
fn an_answer_after_the_end_of_the_proposal_is_too_late() {
    given([proposed()]).when(accept("ann", 20)).refused(Rejection::TooLate);
    let over = given([proposed(), ended(NotAccepted::Declined, &["ann"]), not_accepted()]);
    over.when(accept("bob", 5)).refused(Rejection::TooLate);
    over.when(accept("ann", 5)).refused(Rejection::TooLate);
    over.when(decline("bob", NotAccepted::Declined)).refused(Rejection::TooLate);
    let made = given([proposed(), accepted("bob", 1), accepted("ann", 2), matched()]);
    made.when(decline("ann", NotAccepted::Declined)).refused(Rejection::TooLate);
}

#[test]
fn an_answer_of_somebody_else_or_to_an_unknown_session_is_refused_in_every_phase() {
    let over = [proposed(), ended(NotAccepted::Unanswered, &["ann"]), not_accepted()];
    for given in [given([proposed()]), given([matched()]), given(over)] {
        for command in [accept("eve", 5), decline("eve", NotAccepted::Declined)] {
            given.when(command).refused(Rejection::NotAPlayer);
        }
    }
    given([]).when(accept("ann", 5)).refused(Rejection::Unknown);
    given([]).when(decline("ann", NotAccepted::Declined)).refused(Rejection::Unknown);
}

#[test]
fn a_player_can_decline_even_after_they_have_accepted() {
    let expected = || [ended(NotAccepted::Declined, &["ann"]), not_accepted()];
    given([proposed()]).when(decline("ann", NotAccepted::Declined)).then(expected());
    given([proposed(), accepted("ann", 1)]).when(decline("ann", NotAccepted::Declined)).then(expected());
}

#[test]
fn a_disconnect_ends_the_proposal_only_if_the_player_has_not_accepted() {
    let expected = [ended(NotAccepted::Disconnected, &["ann"]), not_accepted()];
    given([proposed()]).when(decline("ann", NotAccepted::Disconnected)).then(expected);
    let accepted = given([proposed(), accepted("ann", 1)]);
    accepted.when(decline("ann", NotAccepted::Disconnected)).refused(Rejection::NoChange);
}

#[test]
fn at_the_deadline_the_proposal_ends_and_names_the_silent_players() {
    given([proposed()]).when(deadline(19)).refused(Rejection::NoChange);
    given([proposed()]).when(deadline(20)).then([ended(NotAccepted::Unanswered, &["ann", "bob"]), not_accepted()]);
    let half = given([proposed(), accepted("ann", 1)]);
    half.when(deadline(20)).then([ended(NotAccepted::Unanswered, &["bob"]), not_accepted()]);
}

#[test]
fn a_proposed_match_has_no_game_server() {
    let proposed = given([proposed()]);
    assert_eq!((proposed.0.state.current_attempt(), proposed.0.state.is_opened()), (None, false));
    for command in [request(1), fail("x")] {
        proposed.when(command).refused(Rejection::NoChange);
    }
    for command in [schedule(1), fail_pod(1), ready(1), finish(1, &["ann", "bob"])] {
        proposed.when(command).refused(Rejection::UnknownAttempt);
    }
}

#[test]
fn the_view_shows_a_proposed_match_and_its_end() {
    let view = given([proposed(), accepted("ann", 1)]).view().unwrap();
    assert_eq!((view.status, view.teams, view.closed), (Status::Proposed, match_of_ann_and_bob().teams, None));
    let view = given([proposed(), ended(NotAccepted::Declined, &["ann"]), not_accepted()]).view().unwrap();
    assert_eq!((view.status, view.closed.unwrap().why), (Status::Closed, Ending::NotAccepted));
}

#[test]
fn a_fold_that_stops_in_the_middle_of_a_commit_accepts_no_answer() {
    let ending = given([proposed(), ended(NotAccepted::Declined, &["ann"])]);
    ending.when(accept("bob", 5)).refused(Rejection::Closed);
    ending.when(deadline(50)).refused(Rejection::Closed);
}

fn any_answer() -> impl Strategy<Value = Command> {
    let player = || prop::sample::select(vec!["ann", "bob", "carl", "eve"]);
    prop_oneof![
        20 => (player(), 0..22i64).prop_map(|(player, at)| accept(player, at)),
        1 => player().prop_map(|player| decline(player, NotAccepted::Declined)),
        2 => player().prop_map(|player| decline(player, NotAccepted::Disconnected)),
        2 => (0..40i64).prop_map(deadline),
    ]
}

proptest! {
    #[test]
    fn a_proposal_ends_once_with_a_match_that_all_players_accepted_or_because_of_players_of_it(
        commands in prop::collection::vec(any_answer(), 0..30),
    ) {
        let mut matched = match_of_ann_and_bob();
        matched.teams.push(team("green", "carl", 3));
        let players: BTreeSet<PlayerId> = matched.players().cloned().collect();
        let mut history = Vec::new();
        record(&mut history, Proposed { accept_by: after(20), names_decliner: false, matched: matched.clone() }.into());
        for command in commands {
            let before = Session::of(history.clone()).state;
            let decided = decide(&before, command.clone());
            if let Ok(events) = &decided {
                prop_assert!(matches!(before, State::Proposed(_)), "{:?} after the end", events);
                events.iter().cloned().for_each(|event| record(&mut history, event));
            }
            // The same answer again changes nothing, and is recognized unless the deadline or a disconnect said it.
            let after = Session::of(history.clone()).state;
            let again = decide(&after, command.clone());
            prop_assert!(again.is_err(), "{:?}", again);
            if decided.is_ok() && !matches!(command, Command::Deadline { .. }) {
                prop_assert_eq!(again, Err(Rejection::Repeated));
            }
        }
        let accepted = history.iter().filter_map(|recorded| match &recorded.event {
            Event::Accepted(accepted) => Some((accepted.player.clone(), accepted.accepted)),
            _ => None,
        });
        let (names, counts): (Vec<_>, Vec<_>) = accepted.unzip();
        prop_assert!(counts.iter().copied().eq(1..=names.len() as u32));
        let accepted: BTreeSet<PlayerId> = names.iter().cloned().collect();
        prop_assert!(accepted.len() == names.len() && accepted.is_subset(&players));
        let types: Vec<_> = history.iter().map(|recorded| recorded.event.type_name()).collect();
        let made = types.iter().filter(|name| **name == "Matched").count();
        prop_assert_eq!(made == 1, accepted == players);
        prop_assert!(made + types.iter().filter(|name| **name == "ProposalEnded").count() <= 1);
        if let Some(ended) = history.iter().find_map(|recorded| match &recorded.event {
            Event::ProposalEnded(ended) => Some(ended),
            _ => None,
        }) {
            prop_assert!(!ended.players.is_empty() && ended.players.iter().all(|player| players.contains(player)));
            let silent = ended.players.iter().all(|player| !accepted.contains(player));
            prop_assert!(silent || ended.why == NotAccepted::Declined);
            prop_assert_eq!(types.last(), Some(&"Closed"));
        }
    }
}
