//! When a phase is overdue.

use super::*;

fn not_ready(attempt: u32) -> Event {
    PodFailed { attempt, reason: "not-ready".into(), message: "not placed and ready within 10 s".into() }.into()
}

#[test]
fn a_server_has_ten_seconds_to_become_ready() {
    let starting = given([matched(), requested(1)]);
    assert_eq!(starting.overdue(), 11);
    starting.when(deadline(10)).refused(Rejection::Moot);
    starting.when(deadline(11)).then([not_ready(1)]);
    given([matched(), requested(1), scheduled(1)]).when(deadline(11)).then([not_ready(1)]);
    given([matched(), requested(1), was_ready(1)]).when(deadline(11)).then([not_ready(1)]);
}

#[test]
fn each_attempt_has_its_own_ten_seconds() {
    let second = given([matched(), requested(1), failed_pod(1), requested(2)]);
    assert_eq!(second.overdue(), 13);
    second.when(deadline(12)).refused(Rejection::Moot);
    second.when(deadline(13)).then([not_ready(2)]);
}

#[test]
fn a_server_that_is_ready_in_time_opens_however_late_that_is_noticed() {
    let both = given([matched(), requested(1), scheduled(1), was_ready(1)]);
    both.when(deadline(100)).refused(Rejection::Moot);
    assert_eq!(both.next(), Next::Open(opening(1)));
}

#[test]
fn only_the_hard_end_is_a_deadline_of_the_other_phases() {
    for given in [
        given([matched()]),
        given([matched(), requested(1), failed_pod(1)]),
        given([matched(), requested(1), scheduled(1), was_ready(1), opened(1)]),
        given([matched(), requested(1), scheduled(1), was_ready(1), opened(1), failed_pod(1)]),
        given([matched(), failed("x")]),
    ] {
        assert_eq!(given.overdue(), 900, "{:?}", given.0.state);
        given.when(deadline(899)).refused(Rejection::Moot);
    }
}

#[test]
fn the_hard_end_abandons_every_phase() {
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
fn the_hard_end_comes_before_a_later_deadline_of_the_server() {
    let short = Limits { session: Duration::seconds(5), ..limits() };
    let starting = given([matched(), requested(1)]);
    assert_eq!(starting.open().deadline(&short), after(5));
    let command = Command::Deadline { now: after(5), limits: short };
    starting.when(command).then([failed("hard-end"), closed(Ending::Abandoned)]);
}
