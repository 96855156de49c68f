//! Commands and the events that they result in.

use super::*;
use crate::game::TeamPlacing;

#[test]
fn a_match_begins_a_session() {
    given([]).when(create()).then([matched()]);
}

#[test]
fn a_matched_session_requests_its_first_server() {
    given([matched()]).when(request(1)).then([requested(1)]);
}

#[test]
fn a_server_can_be_placed_and_then_report() {
    given([matched(), requested(1)]).when(schedule(1)).then([scheduled(1)]);
    given([matched(), requested(1), scheduled(1)]).when(ready(1)).then([was_ready(1)]);
}

#[test]
fn a_server_can_report_before_the_log_knows_where_it_is_placed() {
    given([matched(), requested(1)]).when(ready(1)).then([was_ready(1)]);
    given([matched(), requested(1), was_ready(1)]).when(schedule(1)).then([scheduled(1)]);
}

#[test]
fn a_session_opens_if_its_server_is_placed_and_ready_in_either_order() {
    given([matched(), requested(1), scheduled(1), was_ready(1)]).when(open(1)).then([opened(1)]);
    given([matched(), requested(1), was_ready(1), scheduled(1)]).when(open(1)).then([opened(1)]);
}

#[test]
fn the_results_close_the_session() {
    let running = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]);
    running.when(finish(1, &["ann", "bob"])).then([finished(1), closed(Ending::Finished)]);
}

#[test]
fn a_failed_session_closes_without_results() {
    given([matched()]).when(fail("no-attempts")).then([failed("no-attempts"), closed(Ending::Failed)]);
}

#[test]
#[rustfmt::skip]
fn each_command_has_the_expected_outcome_in_each_phase() {
    let commands = || [
        create(), request(1), schedule(1), fail_pod(1), ready(1), open(1), finish(1, &["ann", "bob"]), fail("x"), deadline(900),
    ];
    let new      = given([]);
    let matched_ = given([matched()]);
    let starting = given([matched(), requested(1)]);
    let placed   = given([matched(), requested(1), scheduled(1)]);
    let reported = given([matched(), requested(1), was_ready(1)]);
    let both     = given([matched(), requested(1), scheduled(1), was_ready(1)]);
    let running  = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]);
    let retrying = given([matched(), requested(1), failed_pod(1)]);
    let broken   = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]);
    let ending   = given([matched(), failed("x")]);
    let past     = given([matched(), failed("x"), closed(Ending::Failed)]);
    let end = "Failed+Closed";
    let table = [
        //          create     request         schedule          fail-pod          ready             open        finish             fail       hard end
        (new,      ["Matched", "Unknown",      "UnknownAttempt", "UnknownAttempt", "UnknownAttempt", "Unknown",  "UnknownAttempt",  "Unknown", "Unknown"]),
        (matched_, ["Exists",  "PodRequested", "UnknownAttempt", "UnknownAttempt", "UnknownAttempt", "NoChange", "UnknownAttempt",  end,       end]),
        (starting, ["Exists",  "NoChange",     "PodScheduled",   "PodFailed",      "PodReady",       "NoChange", "TooEarly",        end,       end]),
        (placed,   ["Exists",  "NoChange",     "NoChange",       "PodFailed",      "PodReady",       "NoChange", "TooEarly",        end,       end]),
        (reported, ["Exists",  "NoChange",     "PodScheduled",   "PodFailed",      "NoChange",       "NoChange", "TooEarly",        end,       end]),
        (both,     ["Exists",  "NoChange",     "NoChange",       "PodFailed",      "NoChange",       "Opened",   "TooEarly",        end,       end]),
        (running,  ["Exists",  "NoChange",     "NoChange",       "PodFailed",      "NoChange",       "NoChange", "Finished+Closed", end,       end]),
        (retrying, ["Exists",  "Stale",        "NoChange",       "NoChange",       "NoChange",       "NoChange", "NoChange",        end,       end]),
        (broken,   ["Exists",  "NoChange",     "NoChange",       "NoChange",       "NoChange",       "NoChange", "Finished+Closed", end,       end]),
        (ending,   ["Exists",  "NoChange",     "NoChange",       "NoChange",       "NoChange",       "NoChange", "NoChange",        end,       end]),
        (past,     ["Exists",  "Closed",       "Closed",         "Closed",         "Closed",         "Closed",   "Closed",          "Closed",  "Closed"]),
    ];
    for (given, answers) in table {
        assert_eq!(commands().map(|command| given.when(command).name()), answers, "{:?}", given.0.state);
    }
}

// Attempts.

#[test]
fn after_a_failed_server_the_session_requests_another_one() {
    given([matched(), requested(1)]).when(fail_pod(1)).then([failed_pod(1)]);
    given([matched(), requested(1), failed_pod(1)]).when(request(2)).then([requested(2)]);
}

#[test]
fn a_server_that_reported_can_still_fail_before_the_session_opens() {
    let about_to_open = given([matched(), requested(1), scheduled(1), was_ready(1)]);
    about_to_open.when(fail_pod(1)).then([failed_pod(1)]);
}

#[test]
fn attempts_are_numbered_consecutively() {
    for wrong in [0, 2, 3] {
        given([matched()]).when(request(wrong)).refused(Rejection::Stale { attempt: wrong });
    }
    for wrong in [0, 1, 3] {
        given([matched(), requested(1), failed_pod(1)])
            .when(request(wrong))
            .refused(Rejection::Stale { attempt: wrong });
    }
}

#[test]
fn a_new_attempt_does_not_use_reports_of_the_previous_one() {
    let second = given([matched(), requested(1), scheduled(1), was_ready(1), failed_pod(1), requested(2)]);
    second.when(schedule(2)).then([scheduled(2)]);
    second.when(ready(2)).then([was_ready(2)]);
    second.when(open(2)).refused(Rejection::NoChange);
}

#[test]
fn a_command_about_an_earlier_attempt_is_stale() {
    let second = given([matched(), requested(1), failed_pod(1), requested(2), scheduled(2)]);
    for command in [schedule(1), fail_pod(1), ready(1), open(1), finish(1, &["ann", "bob"])] {
        second.when(command).refused(Rejection::Stale { attempt: 1 });
    }
    second.when(open(3)).refused(Rejection::Stale { attempt: 3 });
}

#[test]
fn a_report_of_a_server_that_was_never_requested_is_rejected_as_unknown() {
    let second = given([matched(), requested(1), failed_pod(1), requested(2), scheduled(2)]);
    let retrying = given([matched(), requested(1), failed_pod(1)]);
    for (given, attempt) in [(given([]), 1), (given([matched()]), 1), (retrying, 2), (second, 3)] {
        for command in [schedule(attempt), fail_pod(attempt), ready(attempt), finish(attempt, &["ann", "bob"])] {
            given.when(command).refused(Rejection::UnknownAttempt);
        }
    }
}

#[test]
fn an_earlier_attempt_can_neither_fail_nor_finish_the_running_one() {
    let running = given([matched(), requested(1), failed_pod(1), requested(2), scheduled(2), was_ready(2), opened(2)]);
    running.when(fail_pod(1)).refused(Rejection::Stale { attempt: 1 });
    running.when(finish(1, &["ann", "bob"])).refused(Rejection::Stale { attempt: 1 });
    running.when(ready(1)).refused(Rejection::NoChange);
    running.when(schedule(1)).refused(Rejection::NoChange);
}

#[test]
fn a_session_whose_server_dies_during_the_match_does_not_request_another() {
    given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]).when(fail_pod(1)).then([failed_pod(1)]);
    let broken = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]);
    broken.when(request(2)).refused(Rejection::NoChange);
    assert_eq!(broken.next(), Next::End(fail("exited")));
    broken.when(fail("exited")).then([failed("exited"), closed(Ending::Failed)]);
}

#[test]
fn results_reported_by_a_server_before_it_died_count() {
    let broken = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]);
    broken.when(finish(1, &["ann", "bob"])).then([finished(1), closed(Ending::Finished)]);
    broken.when(finish(2, &["ann", "bob"])).refused(Rejection::UnknownAttempt);
    broken.when(finish(1, &["ann"])).refused(Rejection::BadResults(BadResults::Players));
}

// Duplicates.

#[test]
fn a_command_that_was_recorded_before_changes_nothing() {
    let begun = given([matched(), requested(1)]);
    begun.when(request(1)).refused(Rejection::NoChange);
    let both = given([matched(), requested(1), scheduled(1), was_ready(1)]);
    both.when(schedule(1)).refused(Rejection::NoChange);
    both.when(ready(1)).refused(Rejection::NoChange);
    let running = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]);
    running.when(open(1)).refused(Rejection::NoChange);
    running.when(ready(1)).refused(Rejection::NoChange);
    running.when(schedule(1)).refused(Rejection::NoChange);
    let retrying = given([matched(), requested(1), failed_pod(1)]);
    retrying.when(fail_pod(1)).refused(Rejection::NoChange);
    let broken = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]);
    broken.when(fail_pod(1)).refused(Rejection::NoChange);
}

#[test]
fn a_session_can_begin_only_once() {
    given([matched()]).when(create()).refused(Rejection::Exists);
    given([matched(), failed("x"), closed(Ending::Failed)]).when(create()).refused(Rejection::Exists);
}

#[test]
fn a_session_that_does_not_exist_rejects_commands() {
    given([]).when(request(1)).refused(Rejection::Unknown);
    given([]).when(deadline(10_000)).refused(Rejection::Unknown);
}

#[test]
fn a_closed_session_rejects_all_commands() {
    let past = [matched(), requested(1), scheduled(1), was_ready(1), opened(1), finished(1), closed(Ending::Finished)];
    let past = given(past);
    for command in [
        request(1),
        request(2),
        schedule(1),
        fail_pod(1),
        ready(1),
        open(1),
        finish(1, &["ann", "bob"]),
        fail("x"),
        deadline(10_000),
    ] {
        past.when(command).refused(Rejection::Closed);
    }
}

// Results.

#[test]
fn results_must_name_each_player_exactly_once() {
    let running = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]);
    for wrong in [&["ann", "bob", "eve"][..], &["ann", "eve"], &["ann"], &["ann", "ann"], &["ann", "bob", "ann"], &[]] {
        running.when(finish(1, wrong)).refused(Rejection::BadResults(BadResults::Players));
    }
    assert_eq!(running.when(finish(1, &["bob", "ann"])).name(), "Finished+Closed");
}

#[test]
fn the_result_of_a_player_who_did_not_finish_has_no_time() {
    let running = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]);
    let mut results = places(&["ann", "bob"]);
    results[1].time_ms = None;
    let command =
        Command::Finish { attempt: 1, report: game::Finished { results: results.clone(), teams: Vec::new() } };
    let why = Ending::Finished;
    running.when(command).then([
        Finished { attempt: 1, results: results.clone(), teams: Vec::new() }.into(),
        Closed { why, results, teams: Vec::new() }.into(),
    ]);
}

#[test]
fn results_before_the_opening_are_too_early() {
    for given in [
        given([matched(), requested(1)]),
        given([matched(), requested(1), scheduled(1)]),
        given([matched(), requested(1), scheduled(1), was_ready(1)]),
    ] {
        given.when(finish(1, &["ann", "bob"])).refused(Rejection::TooEarly);
        // Their content is not checked yet.
        given.when(finish(1, &["eve"])).refused(Rejection::TooEarly);
    }
}

#[test]
fn the_places_are_a_competition_ranking_that_agrees_with_the_times() {
    let at = |place, time_ms, joined| (place, time_ms, joined);
    let time = |place, time_ms| at(place, Some(time_ms), true);
    let (unfinished, absent) = (|place| at(place, None, true), |place| at(place, None, false));
    let cases = [
        // Each of these was once paid and rated.
        (vec![time(0, 1), time(1, 2), time(2, 3)], "p1 has place 0"),
        (vec![time(1, 1), time(3, 2), time(3, 2)], "p2 has place 3"),
        (vec![time(2, 1), time(3, 2), time(4, 3)], "p1 has place 2"),
        (vec![time(1, 1), time(2, 2), time(2, 2), time(3, 3)], "p4 has place 3"),
        (vec![time(1, 2), time(2, 1)], "p1 is placed ahead of p2"),
        (vec![time(1, 1), time(1, 2)], "p1 is placed ahead of p2"),
        (vec![unfinished(1), time(2, 1)], "p1 is placed ahead of p2"),
        (vec![unfinished(1), time(1, 1)], "p2 is placed ahead of p1"),
        (vec![absent(1), unfinished(2)], "p1 is placed ahead of p2"),
        (vec![time(1, 1), at(2, Some(2), false)], "p2 has a time but did not join"),
        (vec![time(1, 1), time(2, 2), time(2, 2), time(4, 3)], ""),
        // A game that measures no times sends the same for all.
        (vec![time(1, 9), time(2, 9), unfinished(3)], ""),
        (vec![time(1, 1), unfinished(2), absent(3), absent(3)], ""),
        (vec![time(1, 1), unfinished(2), unfinished(2), absent(2)], ""),
        (vec![absent(1), absent(1)], ""),
        (vec![time(2, 2), time(1, 1)], ""),
    ];
    for (results, expected) in cases {
        let placing = |(number, (place, time_ms, joined))| Placing {
            player: format!("p{number}").parse().unwrap(),
            place,
            time_ms,
            joined,
        };
        let results: Vec<Placing> = (1..).zip(results).map(placing).collect();
        let members = results.iter().map(|placing| team(placing.player.as_str(), placing.player.as_str(), 1));
        let matched = Matched { teams: members.collect(), ..match_of_ann_and_bob() };
        let found =
            results::check(&matched, &results, &[]).map_err(|error| error.to_string()).err().unwrap_or_default();
        assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{results:?}: {found}");
    }
}

/// The result of the check of a match of the teams `red` (p1, p2) and `blue` (p3), as a text. `places` are the places of
/// the players.
fn checked_teams(places: [u32; 3], teams: &[(&str, u32)]) -> String {
    let members = |names: &[&str]| names.iter().flat_map(|name| team(name, name, 1).players).collect();
    let red_and_blue = vec![
        Team { name: "red".into(), players: members(&["p1", "p2"]) },
        Team { name: "blue".into(), players: members(&["p3"]) },
    ];
    let matched = Matched { teams: red_and_blue, ..match_of_ann_and_bob() };
    let placing = |(number, place)| Placing {
        player: format!("p{number}").parse().unwrap(),
        place,
        time_ms: Some(9),
        joined: true,
    };
    let results: Vec<Placing> = (1..).zip(places).map(placing).collect();
    let team = |(name, place): &(&str, u32)| TeamPlacing { team: (*name).into(), place: *place, players: Vec::new() };
    let teams: Vec<TeamPlacing> = teams.iter().map(team).collect();
    results::check(&matched, &results, &teams).map_err(|error| error.to_string()).err().unwrap_or_default()
}

#[test]
fn a_match_of_teams_needs_a_place_for_each_team() {
    for (places, teams, expected) in [
        ([1, 2, 3], &[("red", 1), ("blue", 2)][..], ""),
        ([1, 2, 3], &[("blue", 1), ("red", 1)], ""),
        // Each player has the place of their team.
        ([1, 1, 2], &[("red", 1), ("blue", 2)], ""),
        ([2, 2, 1], &[("red", 2), ("blue", 1)], ""),
        ([1, 1, 2], &[("red", 2), ("blue", 1)], "p3 has place 2"),
        ([1, 2, 3], &[], "the match has teams of several players"),
        ([1, 2, 3], &[("red", 1)], "teams do not name each team"),
        ([1, 2, 3], &[("red", 1), ("red", 2)], "teams do not name each team"),
        ([1, 2, 3], &[("red", 1), ("blue", 2), ("green", 3)], "teams do not name each team"),
        ([1, 2, 3], &[("red", 1), ("blue", 3)], "team blue has place 3, but 1 teams are ahead"),
        ([1, 2, 3], &[("red", 2), ("blue", 3)], "team red has place 2, but 0 teams are ahead"),
        ([1, 2, 2], &[("red", 1), ("blue", 0)], "team red has place 1, but 1 teams are ahead"),
    ] {
        let found = checked_teams(places, teams);
        assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{teams:?}: {found}");
    }
}

#[test]
fn a_team_of_which_nobody_joined_is_behind_the_others() {
    let placing = |name: &str, place, joined| Placing { player: name.parse().unwrap(), place, time_ms: None, joined };
    let names: Vec<String> = match_of_ann_and_bob().teams.into_iter().map(|team| team.name).collect();
    for (joined, expected) in [([true, true], true), ([true, false], true), ([false, true], false), ([false; 2], true)]
    {
        let results = [placing("ann", 1, joined[0]), placing("bob", 2, joined[1])];
        let team = |(name, place): (&String, u32)| TeamPlacing { team: name.clone(), place, players: Vec::new() };
        let teams: Vec<_> = names.iter().zip(1..).map(team).collect();
        assert_eq!(results::check(&match_of_ann_and_bob(), &results, &teams).is_ok(), expected, "{joined:?}");
    }
}

#[test]
fn the_recorded_results_name_the_players_of_each_team() {
    let results = places(&["ann", "bob"]);
    let name = |of: &Team| of.name.clone();
    let names: Vec<String> = match_of_ann_and_bob().teams.iter().map(name).collect();
    let placing = |(team, place): (&String, u32)| TeamPlacing { team: team.clone(), place, players: Vec::new() };
    let teams: Vec<TeamPlacing> = names.iter().zip(1..).map(placing).collect();
    let command =
        Command::Finish { attempt: 1, report: game::Finished { results: results.clone(), teams: teams.clone() } };
    let with =
        |player: &str, team: &TeamPlacing| TeamPlacing { players: vec![player.parse().unwrap()], ..team.clone() };
    let recorded = vec![with("ann", &teams[0]), with("bob", &teams[1])];
    let finished = Finished { attempt: 1, results: results.clone(), teams: recorded.clone() };
    let closed = Closed { why: Ending::Finished, results, teams: recorded };
    given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)])
        .when(command)
        .then([finished.into(), closed.into()]);
}
