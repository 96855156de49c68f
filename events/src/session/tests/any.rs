//! Properties that hold for any sequence of commands and events.

use proptest::prelude::*;

use super::*;

/// One step in the life of a session.
#[derive(Debug, Clone)]
enum Step {
    /// A command from outside.
    Command(Command),
    /// A command about an attempt; `None` is the current attempt, as in most real cases.
    ForAttempt(Option<u32>, fn(u32) -> Command),
    /// The next step that the session needs. In production, the session worker does it.
    React,
}

fn any_of(commands: Vec<fn(u32) -> Command>) -> impl Strategy<Value = Step> {
    let attempt = prop_oneof![4 => Just(None), 1 => (0..5u32).prop_map(Some)];
    (attempt, prop::sample::select(commands)).prop_map(|(attempt, command)| Step::ForAttempt(attempt, command))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        60 => any_of(vec![schedule, ready, open]),
        10 => any_of(vec![fail_pod, |attempt| finish(attempt, &["ann"]), |attempt| finish(attempt, &["eve", "ann"])]),
        2 => any_of(vec![|attempt| finish(attempt, &["bob", "ann"])]),
        1 => Just(Step::Command(create())),
        5 => (0..40i64).prop_map(|at| Step::Command(deadline(at))),
        1 => (880..920i64).prop_map(|at| Step::Command(deadline(at))),
        1 => Just(Step::Command(fail("x"))),
    ]
}

/// The steps of a session that does its own next step now and then.
fn any_life() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(prop_oneof![3 => any_step(), 1 => Just(Step::React)], 0..80)
}

/// The steps of a session that gets any command at any time, including requests for servers beyond the limit.
fn any_life_at_all() -> impl Strategy<Value = Vec<Step>> {
    let request = any_of(vec![request, |attempt| request(attempt + 1)]);
    prop::collection::vec(prop_oneof![3 => any_step(), 1 => request], 0..80)
}

fn live(steps: Vec<Step>) -> Vec<Recorded<Event>> {
    let (mut state, mut history) = (State::New, Vec::new());
    let begin = [Step::Command(create())];
    for step in begin.into_iter().chain(steps) {
        let command = match (step, &state) {
            (Step::Command(command), _) => command,
            (Step::ForAttempt(attempt, command), state) => command(attempt.or(state.current_attempt()).unwrap_or(1)),
            (Step::React, State::New | State::Proposed(_) | State::Closed(_)) => continue,
            (Step::React, State::Open(open)) => match open.next(&limits()) {
                Next::RequestPod { attempt, .. } => request(attempt),
                Next::Open(opened) => Command::Open(opened),
                Next::End(command) => command,
                Next::Wait => continue,
            },
        };
        for event in decide(&state, command).unwrap_or_default() {
            record(&mut history, event);
            state = state.evolve(history.last().unwrap());
        }
    }
    history
}

fn attempts(history: &[Recorded<Event>]) -> Vec<u32> {
    let requests = history.iter().filter_map(|recorded| match &recorded.event {
        Event::PodRequested(requested) => Some(requested.attempt),
        _ => None,
    });
    requests.collect()
}

fn count(history: &[Recorded<Event>], type_name: &str) -> usize {
    history.iter().filter(|recorded| recorded.event.type_name() == type_name).count()
}

proptest! {
    #[test]
    fn a_session_opens_at_most_once_and_ends_at_most_once(steps in any_life_at_all()) {
        let history = live(steps);
        prop_assert_eq!(count(&history, "Matched"), 1);
        prop_assert!(count(&history, "Opened") <= 1);
        prop_assert!(count(&history, "Failed") + count(&history, "Finished") <= 1);
        prop_assert!(count(&history, "Closed") <= 1);
        if let Some(at) = history.iter().position(|recorded| recorded.event.type_name() == "Closed") {
            prop_assert_eq!(at + 1, history.len());
            prop_assert!(matches!(&history[at - 1].event, Event::Failed(_) | Event::Finished(_)));
        }
        prop_assert!(attempts(&history).into_iter().eq(1..=count(&history, "PodRequested") as u32));
    }

    #[test]
    fn a_session_is_closed_exactly_if_its_last_event_is_closed(steps in any_life()) {
        let history = live(steps);
        let state = Session::of(history.clone()).state;
        let last = &history.last().unwrap().event;
        prop_assert_eq!(matches!(state, State::Closed(_)), matches!(last, Event::Closed(_)));
        let view = View::of(SessionId::new(Uuid::nil()), &history).unwrap();
        prop_assert_eq!(view.status == Status::Closed, matches!(last, Event::Closed(_)));
        prop_assert_eq!(view.address.is_some(), view.status == Status::Open);
    }

    #[test]
    fn a_session_that_only_does_its_next_steps_does_not_exceed_its_attempts(steps in any_life()) {
        let attempts = attempts(&live(steps));
        prop_assert!(attempts.len() <= limits().attempts as usize);
        prop_assert!(attempts.iter().copied().eq(1..=attempts.len() as u32));
    }

    #[test]
    fn results_come_from_the_attempt_that_was_opened(steps in any_life()) {
        let history = live(steps);
        let opened = history.iter().find_map(|recorded| match &recorded.event {
            Event::Opened(opened) => Some(opened.attempt),
            _ => None,
        });
        for recorded in &history {
            if let Event::Finished(finished) = &recorded.event {
                prop_assert_eq!(Some(finished.attempt), opened);
            }
        }
    }

    #[test]
    fn a_waiting_session_always_times_out_at_its_deadline(steps in any_life()) {
        // The worker sets the session's timer to this time. If nothing else happens before, the timer must have an
        // effect.
        if let State::Open(open) = Session::of(live(steps)).state
            && open.next(&limits()) == Next::Wait
        {
            let command = Command::Deadline { now: open.deadline(&limits()), limits: limits() };
            prop_assert!(!decide(&State::Open(open), command).unwrap().is_empty());
        }
    }

    #[test]
    fn a_fold_accepts_any_events_in_any_order(picks in prop::collection::vec((0..9usize, 0..4u32), 0..40)) {
        let mut history = Vec::new();
        for (pick, attempt) in picks {
            let event = match pick {
                0 => matched(),
                1 => requested(attempt),
                2 => scheduled(attempt),
                3 => failed_pod(attempt),
                4 => was_ready(attempt),
                5 => opened(attempt),
                6 => failed("x"),
                7 => finished(attempt),
                _ => closed(Ending::Failed),
            };
            record(&mut history, event);
        }
        let begun = history.iter().position(|recorded| matches!(recorded.event, Event::Matched(_)));
        let over = begun.is_some_and(|at| count(&history[at..], "Closed") > 0);
        let state = Session::of(history).state;
        prop_assert_eq!(matches!(state, State::New), begun.is_none());
        prop_assert_eq!(matches!(state, State::Closed(_)), over);
    }
}
