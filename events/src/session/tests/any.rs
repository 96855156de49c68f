//! What holds whatever happens.

use proptest::prelude::*;

use super::*;

/// One thing that befalls a session.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody asks for something.
    News(Command),
    /// Somebody asks for something of an attempt; mostly of the present one, as in life.
    Of(Option<u32>, fn(u32) -> Command),
    /// The session does what it needs next, as its worker does.
    React,
}

fn any_of(commands: Vec<fn(u32) -> Command>) -> impl Strategy<Value = Step> {
    let attempt = prop_oneof![4 => Just(None), 1 => (0..5u32).prop_map(Some)];
    (attempt, prop::sample::select(commands)).prop_map(|(attempt, command)| Step::Of(attempt, command))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        60 => any_of(vec![schedule, ready, open]),
        10 => any_of(vec![fail_pod, |attempt| finish(attempt, &["ann"]), |attempt| finish(attempt, &["eve", "ann"])]),
        2 => any_of(vec![|attempt| finish(attempt, &["bob", "ann"])]),
        1 => Just(Step::News(create())),
        5 => (0..40i64).prop_map(|at| Step::News(deadline(at))),
        1 => (880..920i64).prop_map(|at| Step::News(deadline(at))),
        1 => Just(Step::News(fail("x"))),
    ]
}

/// A session whose worker does what is next, now and then.
fn any_life() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(prop_oneof![3 => any_step(), 1 => Just(Step::React)], 0..80)
}

/// A session of which anything is asked at any time, also servers beyond the limit.
fn any_life_at_all() -> impl Strategy<Value = Vec<Step>> {
    let request = any_of(vec![request, |attempt| request(attempt + 1)]);
    prop::collection::vec(prop_oneof![3 => any_step(), 1 => request], 0..80)
}

fn live(steps: Vec<Step>) -> Vec<Recorded<Event>> {
    let (mut state, mut history) = (State::New, Vec::new());
    let begin = [Step::News(create())];
    for step in begin.into_iter().chain(steps) {
        let command = match (step, &state) {
            (Step::News(command), _) => command,
            (Step::Of(attempt, command), state) => command(attempt.or(state.present_attempt()).unwrap_or(1)),
            (Step::React, State::New | State::Closed(_)) => continue,
            (Step::React, State::Open(open)) => match open.next(&limits()) {
                Next::RequestPod { attempt } => request(attempt),
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
    fn whatever_is_asked_for_a_session_ends_once_and_opens_once(steps in any_life_at_all()) {
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
    fn a_session_is_closed_exactly_when_its_last_event_says_so(steps in any_life()) {
        let history = live(steps);
        let state = Session::of(history.clone()).state;
        let last = &history.last().unwrap().event;
        prop_assert_eq!(matches!(state, State::Closed(_)), matches!(last, Event::Closed(_)));
        let view = View::of(SessionId::new(Uuid::nil()), &history).unwrap();
        prop_assert_eq!(view.status == Status::Closed, matches!(last, Event::Closed(_)));
        prop_assert_eq!(view.address.is_some(), view.status == Status::Open);
    }

    #[test]
    fn a_session_that_does_what_is_next_keeps_to_its_attempts(steps in any_life()) {
        let attempts = attempts(&live(steps));
        prop_assert!(attempts.len() <= limits().attempts as usize);
        prop_assert!(attempts.iter().copied().eq(1..=attempts.len() as u32));
    }

    #[test]
    fn results_are_those_of_the_opened_attempt(steps in any_life()) {
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
    fn a_deadline_that_waits_is_met_by_time_alone(steps in any_life()) {
        // The worker sets its timer to this time, and nothing else may ever come: something must then happen.
        if let State::Open(open) = Session::of(live(steps)).state
            && open.next(&limits()) == Next::Wait
        {
            let command = Command::Deadline { now: open.deadline(&limits()), limits: limits() };
            prop_assert!(!decide(&State::Open(open), command).unwrap().is_empty());
        }
    }

    #[test]
    fn a_fold_takes_any_events_in_any_order(picks in prop::collection::vec((0..9usize, 0..4u32), 0..40)) {
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
