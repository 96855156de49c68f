//! The pauses between attempts, and what happens when there is no room for a game server.

use super::*;

/// A session whose attempts were requested and failed at these times, in seconds since the session began, each with
/// this reason.
fn attempts(times: &[(i64, i64, &str)]) -> Open {
    let mut history = Vec::new();
    record(&mut history, matched());
    for ((requested_at, failed_at, reason), attempt) in times.iter().zip(1..) {
        let failed = PodFailed { reason: (*reason).into(), ..pod_failed(attempt) };
        for (at, event) in [(*requested_at, requested(attempt)), (*failed_at, failed.into())] {
            record(&mut history, event);
            history.last_mut().unwrap().time = after(at);
        }
    }
    let State::Open(open) = Session::of(history).state else { panic!("not open") };
    open
}

/// The number and the time of the next attempt, or the reason why there is none.
#[track_caller]
fn assert_next(times: &[(i64, i64, &str)], next: Result<(u32, i64), &str>) {
    let expected = match next {
        Ok((attempt, at)) => Next::RequestPod { attempt, not_before: Some(after(at)) },
        Err(reason) => Next::End(fail(reason)),
    };
    assert_eq!(attempts(times).next(&limits()), expected, "{times:?}");
}

#[test]
fn each_failure_doubles_the_pause_before_the_next_attempt() {
    assert_next(&[(0, 0, "exited")], Ok((2, 1)));
    assert_next(&[(0, 0, "exited"), (1, 2, "exited")], Ok((3, 4)));
    assert_next(&[(0, 0, "exited"), (1, 2, "exited"), (4, 4, "exited")], Err("exited"));
}

#[test]
fn a_pause_is_not_longer_than_fifteen_seconds() {
    let limits = Limits { attempts: 10, ready: Duration::MINUTE, ..limits() };
    let times: Vec<_> = (0..6).map(|number| (number * 20, number * 20, "exited")).collect();
    let next = attempts(&times).next(&limits);
    assert_eq!(next, Next::RequestPod { attempt: 7, not_before: Some(after(115)) });
}

#[test]
fn a_pause_ends_with_the_ready_deadline_of_the_failed_attempt() {
    assert_next(&[(0, 9, "exited"), (10, 19, "exited")], Ok((3, 20)));
    // An attempt that used all its time is followed by the next one at once.
    assert_next(&[(0, 10, "not-ready")], Ok((2, 10)));
}

#[test]
fn an_attempt_that_finds_no_room_does_not_count() {
    let none = NO_CAPACITY;
    assert_next(&[(0, 0, none), (1, 1, none), (3, 3, none), (7, 7, none)], Ok((5, 10)));
    // The server fails that got room at last: it has its own time, and two attempts are left.
    assert_next(&[(0, 0, none), (1, 1, none), (3, 8, "exited")], Ok((4, 9)));
    assert_next(&[(0, 0, none), (1, 2, "exited"), (3, 4, "exited"), (6, 6, none)], Ok((5, 7)));
}

#[test]
fn a_session_for_which_there_is_no_room_until_the_ready_deadline_fails() {
    let none = NO_CAPACITY;
    assert_next(&[(0, 0, none), (1, 1, none), (3, 3, none), (7, 7, none), (10, 10, none)], Err(none));
    // The time counts from the first request that found no room, and not from an earlier failure.
    assert_next(&[(0, 10, "not-ready"), (10, 10, none)], Ok((3, 11)));
    assert_next(&[(0, 10, "not-ready"), (10, 10, none), (20, 20, none)], Err(none));
}

#[test]
fn the_first_request_decides_the_hard_end() {
    let until = |attempt, seconds| PodRequested { ends_at: Some(after(seconds)), ..pod_requested(attempt) };
    let given = given([matched(), until(1, 500).into(), failed_pod(1), until(2, 700).into()]);
    assert_eq!(given.open().hard_end(&limits()), after(500));
    given.when(deadline(499)).then([PodFailed {
        attempt: 2,
        reason: "not-ready".into(),
        message: "not placed and ready within 10 s".into(),
    }
    .into()]);
    given.when(deadline(500)).then([failed("hard-end"), closed(Ending::Abandoned)]);
}
