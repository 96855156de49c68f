//! What can be asked of a session, and what comes of it.

use super::*;

#[test]
fn a_match_begins_a_session() {
    given([]).when(create()).then([matched()]);
}

#[test]
fn a_matched_session_asks_for_its_first_server() {
    given([matched()]).when(request(1)).then([requested(1)]);
}

#[test]
fn the_server_is_placed_and_then_reports() {
    given([matched(), requested(1)]).when(schedule(1)).then([scheduled(1)]);
    given([matched(), requested(1), scheduled(1)]).when(ready(1)).then([was_ready(1)]);
}

#[test]
fn the_server_reports_before_it_is_known_to_be_placed() {
    given([matched(), requested(1)]).when(ready(1)).then([was_ready(1)]);
    given([matched(), requested(1), was_ready(1)]).when(schedule(1)).then([scheduled(1)]);
}

#[test]
fn placed_and_ready_in_either_order_it_opens() {
    given([matched(), requested(1), scheduled(1), was_ready(1)]).when(open(1)).then([opened(1)]);
    given([matched(), requested(1), was_ready(1), scheduled(1)]).when(open(1)).then([opened(1)]);
}

#[test]
fn the_results_close_it() {
    let running = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]);
    running.when(finish(1, &["ann", "bob"])).then([finished(1), closed(Ending::Finished)]);
}

#[test]
fn giving_up_closes_it_without_results() {
    given([matched()]).when(fail("no-attempts")).then([failed("no-attempts"), closed(Ending::Failed)]);
}

#[test]
#[rustfmt::skip]
fn every_phase_answers_every_command() {
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
        //          create    request         schedule        fail-pod     ready       open       finish             fail      hard end
        (new,      ["Matched", "Unknown",      "Unasked",      "Unasked",   "Unasked",  "Unknown", "Unasked",         "Unknown", "Unknown"]),
        (matched_, ["Exists",  "PodRequested", "Unasked",      "Unasked",   "Unasked",  "Moot",    "Unasked",         end,       end]),
        (starting, ["Exists",  "Moot",         "PodScheduled", "PodFailed", "PodReady", "Moot",    "Early",           end,       end]),
        (placed,   ["Exists",  "Moot",         "Moot",         "PodFailed", "PodReady", "Moot",    "Early",           end,       end]),
        (reported, ["Exists",  "Moot",         "PodScheduled", "PodFailed", "Moot",     "Moot",    "Early",           end,       end]),
        (both,     ["Exists",  "Moot",         "Moot",         "PodFailed", "Moot",     "Opened",  "Early",           end,       end]),
        (running,  ["Exists",  "Moot",         "Moot",         "PodFailed", "Moot",     "Moot",    "Finished+Closed", end,       end]),
        (retrying, ["Exists",  "Stale",        "Moot",         "Moot",      "Moot",     "Moot",    "Moot",            end,       end]),
        (broken,   ["Exists",  "Moot",         "Moot",         "Moot",      "Moot",     "Moot",    "Finished+Closed", end,       end]),
        (ending,   ["Exists",  "Moot",         "Moot",         "Moot",      "Moot",     "Moot",    "Moot",            end,       end]),
        (past,     ["Exists",  "Closed",       "Closed",       "Closed",    "Closed",   "Closed",  "Closed",          "Closed",  "Closed"]),
    ];
    for (given, answers) in table {
        assert_eq!(commands().map(|command| given.when(command).name()), answers, "{:?}", given.0.state);
    }
}

// Attempts.

#[test]
fn a_failed_server_is_followed_by_another() {
    given([matched(), requested(1)]).when(fail_pod(1)).then([failed_pod(1)]);
    given([matched(), requested(1), failed_pod(1)]).when(request(2)).then([requested(2)]);
}

#[test]
fn a_server_that_reported_may_still_fail_before_the_session_opens() {
    let about_to_open = given([matched(), requested(1), scheduled(1), was_ready(1)]);
    about_to_open.when(fail_pod(1)).then([failed_pod(1)]);
}

#[test]
fn attempts_are_counted_one_by_one() {
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
fn another_attempt_knows_nothing_of_the_one_before() {
    let second = given([matched(), requested(1), scheduled(1), was_ready(1), failed_pod(1), requested(2)]);
    second.when(schedule(2)).then([scheduled(2)]);
    second.when(ready(2)).then([was_ready(2)]);
    second.when(open(2)).refused(Rejection::Moot);
}

#[test]
fn what_speaks_of_another_attempt_is_stale() {
    let second = given([matched(), requested(1), failed_pod(1), requested(2), scheduled(2)]);
    for command in [schedule(1), fail_pod(1), ready(1), open(1), finish(1, &["ann", "bob"])] {
        second.when(command).refused(Rejection::Stale { attempt: 1 });
    }
    second.when(open(3)).refused(Rejection::Stale { attempt: 3 });
}

#[test]
fn what_a_server_says_that_nobody_asked_for_is_told_from_what_is_early() {
    let second = given([matched(), requested(1), failed_pod(1), requested(2), scheduled(2)]);
    let retrying = given([matched(), requested(1), failed_pod(1)]);
    for (given, attempt) in [(given([]), 1), (given([matched()]), 1), (retrying, 2), (second, 3)] {
        for command in [schedule(attempt), fail_pod(attempt), ready(attempt), finish(attempt, &["ann", "bob"])] {
            given.when(command).refused(Rejection::Unasked);
        }
    }
}

#[test]
fn an_attempt_that_was_given_up_neither_fails_nor_finishes_the_running_one() {
    let running = given([matched(), requested(1), failed_pod(1), requested(2), scheduled(2), was_ready(2), opened(2)]);
    running.when(fail_pod(1)).refused(Rejection::Stale { attempt: 1 });
    running.when(finish(1, &["ann", "bob"])).refused(Rejection::Stale { attempt: 1 });
    running.when(ready(1)).refused(Rejection::Moot);
    running.when(schedule(1)).refused(Rejection::Moot);
}

#[test]
fn a_server_that_dies_with_players_in_it_is_not_followed_by_another() {
    given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]).when(fail_pod(1)).then([failed_pod(1)]);
    let broken = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]);
    broken.when(request(2)).refused(Rejection::Moot);
    assert_eq!(broken.next(), Next::End(fail("exited")));
    broken.when(fail("exited")).then([failed("exited"), closed(Ending::Failed)]);
}

#[test]
fn results_that_a_server_reported_before_it_died_count() {
    let broken = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]);
    broken.when(finish(1, &["ann", "bob"])).then([finished(1), closed(Ending::Finished)]);
    broken.when(finish(2, &["ann", "bob"])).refused(Rejection::Unasked);
    broken.when(finish(1, &["ann"])).refused(Rejection::BadResults);
}

// Duplicates.

#[test]
fn what_is_known_already_is_moot() {
    let begun = given([matched(), requested(1)]);
    begun.when(request(1)).refused(Rejection::Moot);
    let both = given([matched(), requested(1), scheduled(1), was_ready(1)]);
    both.when(schedule(1)).refused(Rejection::Moot);
    both.when(ready(1)).refused(Rejection::Moot);
    let running = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]);
    running.when(open(1)).refused(Rejection::Moot);
    running.when(ready(1)).refused(Rejection::Moot);
    running.when(schedule(1)).refused(Rejection::Moot);
    let retrying = given([matched(), requested(1), failed_pod(1)]);
    retrying.when(fail_pod(1)).refused(Rejection::Moot);
    let broken = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]);
    broken.when(fail_pod(1)).refused(Rejection::Moot);
}

#[test]
fn a_session_begins_once() {
    given([matched()]).when(create()).refused(Rejection::Exists);
    given([matched(), failed("x"), closed(Ending::Failed)]).when(create()).refused(Rejection::Exists);
}

#[test]
fn nothing_happens_to_a_session_that_is_not_there() {
    given([]).when(request(1)).refused(Rejection::Unknown);
    given([]).when(deadline(10_000)).refused(Rejection::Unknown);
}

#[test]
fn nothing_follows_closed() {
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
fn results_name_each_player_once() {
    let running = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]);
    for wrong in [&["ann", "bob", "eve"][..], &["ann", "eve"], &["ann"], &["ann", "ann"], &["ann", "bob", "ann"], &[]] {
        running.when(finish(1, wrong)).refused(Rejection::BadResults);
    }
    assert_eq!(running.when(finish(1, &["bob", "ann"])).name(), "Finished+Closed");
}

#[test]
fn who_did_not_finish_is_named_without_a_time() {
    let running = given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]);
    let mut results = places(&["ann", "bob"]);
    results[1].time_ms = None;
    let command = Command::Finish { attempt: 1, report: game::Finished { results: results.clone() } };
    let why = Ending::Finished;
    running
        .when(command)
        .then([Finished { attempt: 1, results: results.clone() }.into(), Closed { why, results }.into()]);
}

#[test]
fn results_before_the_opening_are_early() {
    for given in [
        given([matched(), requested(1)]),
        given([matched(), requested(1), scheduled(1)]),
        given([matched(), requested(1), scheduled(1), was_ready(1)]),
    ] {
        given.when(finish(1, &["ann", "bob"])).refused(Rejection::Early);
        // Whether they are right is looked at when their time has come.
        given.when(finish(1, &["eve"])).refused(Rejection::Early);
    }
}
