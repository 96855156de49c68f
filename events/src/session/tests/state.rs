//! What a state shows: the next step, the current attempt, and the view.

use super::*;

// The next step.

#[test]
fn the_next_step_is_to_request_a_server_until_all_attempts_are_used() {
    assert_eq!(given([matched()]).next(), Next::RequestPod { attempt: 1, not_before: None });
    let next = given([matched(), requested(1), failed_pod(1)]).next();
    assert!(matches!(next, Next::RequestPod { attempt: 2, .. }), "{next:?}");
    let next = given([matched(), requested(1), failed_pod(1), requested(2), failed_pod(2)]).next();
    assert!(matches!(next, Next::RequestPod { attempt: 3, .. }), "{next:?}");
    let thrice =
        given([matched(), requested(1), failed_pod(1), requested(2), failed_pod(2), requested(3), failed_pod(3)]);
    assert_eq!(thrice.next(), Next::End(fail("exited")));
}

#[test]
fn the_next_step_is_to_fail_if_no_attempt_is_allowed() {
    let none = Limits { attempts: 0, ..limits() };
    assert_eq!(given([matched()]).open().next(&none), Next::End(fail("no-attempts")));
}

#[test]
fn the_next_step_is_to_open_when_the_server_is_placed_and_ready() {
    for given in [
        given([matched(), requested(1), scheduled(1), was_ready(1)]),
        given([matched(), requested(1), was_ready(1), scheduled(1)]),
    ] {
        assert_eq!(given.next(), Next::Open(opening(1)));
    }
}

#[test]
fn there_is_no_next_step_while_the_session_waits_for_others() {
    for given in [
        given([matched(), requested(1)]),
        given([matched(), requested(1), scheduled(1)]),
        given([matched(), requested(1), was_ready(1)]),
        given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]),
        given([matched(), failed("x")]),
    ] {
        assert_eq!(given.next(), Next::Wait, "{:?}", given.0.state);
    }
}

#[test]
fn the_current_attempt_is_the_one_with_a_starting_or_running_server() {
    for (given, attempt) in [
        (given([]), None),
        (given([matched()]), None),
        (given([matched(), requested(1)]), Some(1)),
        (given([matched(), requested(1), failed_pod(1)]), None),
        (given([matched(), requested(1), failed_pod(1), requested(2)]), Some(2)),
        (given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]), Some(1)),
        (given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]), None),
        (given([matched(), failed("x"), closed(Ending::Failed)]), None),
    ] {
        assert_eq!(given.0.state.current_attempt(), attempt, "{:?}", given.0.state);
    }
}

// The view.

#[test]
fn the_view_shows_status_key_and_address() {
    let (key_1, key_2) = (Some("key 1"), Some("key 2"));
    for (given, status, key, address) in [
        (given([matched()]), Status::Matched, None, None),
        (given([matched(), requested(1)]), Status::Starting, key_1, None),
        (given([matched(), requested(1), scheduled(1), was_ready(1)]), Status::Starting, key_1, None),
        (given([matched(), requested(1), failed_pod(1)]), Status::Starting, key_1, None),
        (given([matched(), requested(1), failed_pod(1), requested(2)]), Status::Starting, key_2, None),
        (
            given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]),
            Status::Open,
            key_1,
            Some(address(1)),
        ),
        (
            given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]),
            Status::Starting,
            key_1,
            None,
        ),
        (given([matched(), failed("x")]), Status::Starting, None, None),
        (given([matched(), failed("x"), closed(Ending::Failed)]), Status::Closed, None, None),
    ] {
        let view = given.view().unwrap();
        assert_eq!(
            (view.status, view.public_key.as_deref(), view.address),
            (status, key, address),
            "{:?}",
            given.0.state
        );
        assert_eq!((view.queue.as_str(), view.region.as_str(), view.teams.len()), ("ranked", "eu", 2));
    }
}

#[test]
fn the_view_of_a_closed_session_shows_how_it_ended() {
    let played =
        [matched(), requested(1), scheduled(1), was_ready(1), opened(1), finished(1), closed(Ending::Finished)];
    let expected = Closed { why: Ending::Finished, results: places(&["ann", "bob"]), teams: Vec::new() };
    assert_eq!(given(played).view().unwrap().closed, Some(expected));
    assert_eq!(given([matched()]).view().unwrap().closed, None);
}

#[test]
fn events_that_do_not_begin_with_a_match_have_no_view() {
    assert_eq!(given([]).view(), None);
    assert_eq!(given([requested(1), scheduled(1)]).view(), None);
}
