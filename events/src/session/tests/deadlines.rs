//! When a phase times out.

use super::*;

fn not_ready(attempt: u32) -> Event {
    PodFailed { attempt, reason: "not-ready".into(), message: "not placed and ready within 10 s".into() }.into()
}

#[test]
fn a_server_has_ten_seconds_to_become_ready() {
    let starting = given([matched(), requested(1)]);
    assert_eq!(starting.deadline_s(), 11);
    starting.when(deadline(10)).refused(Rejection::NoChange);
    starting.when(deadline(11)).then([not_ready(1)]);
    given([matched(), requested(1), scheduled(1)]).when(deadline(11)).then([not_ready(1)]);
    given([matched(), requested(1), was_ready(1)]).when(deadline(11)).then([not_ready(1)]);
}

#[test]
fn each_attempt_has_its_own_ten_seconds() {
    let second = given([matched(), requested(1), failed_pod(1), requested(2)]);
    assert_eq!(second.deadline_s(), 13);
    second.when(deadline(12)).refused(Rejection::NoChange);
    second.when(deadline(13)).then([not_ready(2)]);
}

#[test]
fn a_server_that_was_ready_in_time_does_not_fail_if_the_session_opens_late() {
    let both = given([matched(), requested(1), scheduled(1), was_ready(1)]);
    both.when(deadline(100)).refused(Rejection::NoChange);
    assert_eq!(both.next(), Next::Open(opening(1)));
}

#[test]
fn the_other_phases_have_only_the_hard_end_as_deadline() {
    for given in [
        given([matched()]),
        given([matched(), requested(1), failed_pod(1)]),
        given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]),
        given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]),
        given([matched(), failed("x")]),
    ] {
        assert_eq!(given.deadline_s(), 900, "{:?}", given.0.state);
        given.when(deadline(899)).refused(Rejection::NoChange);
    }
}

#[test]
fn at_the_hard_end_the_session_is_abandoned_in_every_phase() {
    for given in [
        given([matched()]),
        given([matched(), requested(1)]),
        given([matched(), requested(1), scheduled(1), was_ready(1)]),
        given([matched(), requested(1), failed_pod(1)]),
        given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]),
        given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]),
    ] {
        for late in [900, 5_000] {
            given.when(deadline(late)).then([failed("hard-end"), closed(Ending::Abandoned)]);
        }
    }
}

#[test]
fn a_hard_end_before_the_deadline_of_the_server_applies_first() {
    let short = Limits { session: Duration::seconds(5), ..limits() };
    let starting = given([matched(), requested(1)]);
    assert_eq!(starting.open().deadline(&short), after(5));
    let command = Command::Deadline { now: after(5), limits: short };
    starting.when(command).then([failed("hard-end"), closed(Ending::Abandoned)]);
}
