use proptest::prelude::*;
use time::macros::datetime;
use uuid::Uuid;

use super::*;
use crate::{event::Event as _, id::SessionId, log::Session};

/// When every session here begins. In a history each event comes a second after the one before.
const START: OffsetDateTime = datetime!(2026-01-05 12:00 UTC);

/// Three attempts, 10 s to ready, 900 s to the hard end.
fn limits() -> Limits {
    Limits::default()
}

fn after(seconds: i64) -> OffsetDateTime {
    START + Duration::seconds(seconds)
}

fn team(name: &str, player: &str, ticket: u128) -> Team {
    let member =
        Member { player: player.parse().unwrap(), ticket: TicketId::new(Uuid::from_u128(ticket)), rank: 1_200 };
    Team { name: name.into(), players: vec![member] }
}

fn match_of_ann_and_bob() -> Matched {
    Matched {
        queue: "ranked".parse().unwrap(),
        region: "eu".parse().unwrap(),
        teams: vec![team("red", "ann", 1), team("blue", "bob", 2)],
        rules: "1".into(),
        pool_seq: 40,
        clock: START,
    }
}

fn pod_requested(attempt: u32) -> PodRequested {
    PodRequested {
        attempt,
        region: "eu".parse().unwrap(),
        loadouts: Vec::new(),
        public_key: format!("key {attempt}"),
        fingerprint: format!("f{attempt}"),
    }
}

fn pod_scheduled(attempt: u32) -> PodScheduled {
    PodScheduled { attempt, pod: format!("game-s-{attempt}"), node: "n1".into(), public_ip: [203, 0, 113, 7].into() }
}

fn pod_failed(attempt: u32) -> PodFailed {
    PodFailed { attempt, reason: "exited".into(), message: "exit status 1".into() }
}

fn address(attempt: u32) -> Address {
    let fingerprint = format!("f{attempt}");
    Address { ip: [203, 0, 113, 7].into(), tcp_port: 31_000, udp_port: 31_001, fingerprint }
}

fn opening(attempt: u32) -> Opened {
    Opened { attempt, address: address(attempt) }
}

fn places(players: &[&str]) -> Vec<Placing> {
    let placing =
        |(place, player): (u32, &&str)| Placing { player: player.parse().unwrap(), place, time_ms: Some(12_000) };
    (1..).zip(players).map(placing).collect()
}

// What has happened.

fn matched() -> Event {
    match_of_ann_and_bob().into()
}

fn requested(attempt: u32) -> Event {
    pod_requested(attempt).into()
}

fn scheduled(attempt: u32) -> Event {
    pod_scheduled(attempt).into()
}

fn failed_pod(attempt: u32) -> Event {
    pod_failed(attempt).into()
}

fn was_ready(attempt: u32) -> Event {
    PodReady { attempt, tcp_port: 31_000, udp_port: 31_001 }.into()
}

fn opened(attempt: u32) -> Event {
    opening(attempt).into()
}

fn finished(attempt: u32) -> Event {
    Finished { attempt, results: places(&["ann", "bob"]) }.into()
}

fn failed(reason: &str) -> Event {
    Failed { reason: reason.into() }.into()
}

fn closed(why: Ending) -> Event {
    let results = if why == Ending::Finished { places(&["ann", "bob"]) } else { Vec::new() };
    Closed { why, results }.into()
}

// What is asked for.

fn create() -> Command {
    Command::Create(match_of_ann_and_bob())
}

fn request(attempt: u32) -> Command {
    Command::RequestPod(pod_requested(attempt))
}

fn schedule(attempt: u32) -> Command {
    Command::Schedule(pod_scheduled(attempt))
}

fn fail_pod(attempt: u32) -> Command {
    Command::FailPod(pod_failed(attempt))
}

fn ready(attempt: u32) -> Command {
    Command::Ready { attempt, report: game::Ready { tcp_port: 31_000, udp_port: 31_001 } }
}

fn open(attempt: u32) -> Command {
    Command::Open(opening(attempt))
}

fn finish(attempt: u32, players: &[&str]) -> Command {
    Command::Finish { attempt, report: game::Finished { results: places(players) } }
}

fn fail(reason: &str) -> Command {
    Command::Fail { reason: reason.into() }
}

fn deadline(seconds: i64) -> Command {
    Command::Deadline { now: after(seconds), limits: limits() }
}

fn record(history: &mut Vec<Recorded<Event>>, event: Event) {
    let n = history.len() as u64 + 1;
    let time = history.last().map_or(START, |last| last.time + Duration::SECOND);
    history.push(Recorded { seq: 40 + n, time, id: Uuid::from_u128(n.into()), n, correlation: Uuid::nil(), event });
}

struct Given(Session);

fn given<const N: usize>(events: [Event; N]) -> Given {
    let mut history = Vec::new();
    events.into_iter().for_each(|event| record(&mut history, event));
    Given(Session::of(history))
}

impl Given {
    fn when(&self, command: Command) -> Outcome {
        Outcome(decide(&self.0.state, command))
    }

    fn open(&self) -> &Open {
        match &self.0.state {
            State::Open(open) => open,
            other => panic!("not open: {other:?}"),
        }
    }

    fn next(&self) -> Next {
        self.open().next(&limits())
    }

    /// In seconds since the session began.
    fn overdue(&self) -> i64 {
        (self.open().deadline(&limits()) - START).whole_seconds()
    }

    fn view(&self) -> Option<View> {
        View::of(SessionId::new(Uuid::from_u128(7)), &self.0.history)
    }
}

#[derive(Debug)]
struct Outcome(Result<Vec<Event>, Rejection>);

impl Outcome {
    #[track_caller]
    fn then<const N: usize>(self, events: [Event; N]) {
        assert_eq!(self.0, Ok(events.to_vec()));
    }

    #[track_caller]
    fn refused(self, rejection: Rejection) {
        assert_eq!(self.0, Err(rejection));
    }

    /// The types of the events, or the name of the rejection.
    fn name(&self) -> String {
        match &self.0 {
            Ok(events) => events.iter().map(|event| event.type_name()).collect::<Vec<_>>().join("+"),
            Err(Rejection::Stale { .. }) => "Stale".into(),
            Err(rejection) => format!("{rejection:?}"),
        }
    }
}

// The life of a session.

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
        (new,      ["Matched", "Unknown",      "Unknown",      "Unknown",   "Unknown",  "Unknown", "Unknown",         "Unknown", "Unknown"]),
        (matched_, ["Exists",  "PodRequested", "Moot",         "Moot",      "Moot",     "Moot",    "Moot",            end,       end]),
        (starting, ["Exists",  "Moot",         "PodScheduled", "PodFailed", "PodReady", "Moot",    "Early",           end,       end]),
        (placed,   ["Exists",  "Moot",         "Moot",         "PodFailed", "PodReady", "Moot",    "Early",           end,       end]),
        (reported, ["Exists",  "Moot",         "PodScheduled", "PodFailed", "Moot",     "Moot",    "Early",           end,       end]),
        (both,     ["Exists",  "Moot",         "Moot",         "PodFailed", "Moot",     "Opened",  "Early",           end,       end]),
        (running,  ["Exists",  "Moot",         "Moot",         "PodFailed", "Moot",     "Moot",    "Finished+Closed", end,       end]),
        (retrying, ["Exists",  "Stale",        "Moot",         "Moot",      "Moot",     "Moot",    "Moot",            end,       end]),
        (broken,   ["Exists",  "Moot",         "Moot",         "Moot",      "Moot",     "Moot",    "Moot",            end,       end]),
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
    for other in [1, 3] {
        for command in [schedule(other), fail_pod(other), ready(other), open(other), finish(other, &["ann", "bob"])] {
            second.when(command).refused(Rejection::Stale { attempt: other });
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

// Deadlines.

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

// What is next.

#[test]
fn next_is_a_server_until_the_attempts_are_used_up() {
    assert_eq!(given([matched()]).next(), Next::RequestPod { attempt: 1 });
    assert_eq!(given([matched(), requested(1), failed_pod(1)]).next(), Next::RequestPod { attempt: 2 });
    let twice = given([matched(), requested(1), failed_pod(1), requested(2), failed_pod(2)]);
    assert_eq!(twice.next(), Next::RequestPod { attempt: 3 });
    let thrice =
        given([matched(), requested(1), failed_pod(1), requested(2), failed_pod(2), requested(3), failed_pod(3)]);
    assert_eq!(thrice.next(), Next::End(fail("exited")));
}

#[test]
fn next_is_the_end_where_no_attempt_is_allowed() {
    let none = Limits { attempts: 0, ..limits() };
    assert_eq!(given([matched()]).open().next(&none), Next::End(fail("no-attempts")));
}

#[test]
fn next_is_the_opening_with_what_director_server_and_key_said() {
    for given in [
        given([matched(), requested(1), scheduled(1), was_ready(1)]),
        given([matched(), requested(1), was_ready(1), scheduled(1)]),
    ] {
        assert_eq!(given.next(), Next::Open(opening(1)));
    }
}

#[test]
fn next_is_nothing_while_others_are_busy() {
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
fn the_present_attempt_has_a_server_or_is_getting_one() {
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
        assert_eq!(given.0.state.present_attempt(), attempt, "{:?}", given.0.state);
    }
}

// What its players see.

#[test]
fn the_view_says_where_a_session_stands() {
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
fn the_view_of_a_closed_session_says_how_it_ended() {
    let played =
        [matched(), requested(1), scheduled(1), was_ready(1), opened(1), finished(1), closed(Ending::Finished)];
    let expected = Closed { why: Ending::Finished, results: places(&["ann", "bob"]) };
    assert_eq!(given(played).view().unwrap().closed, Some(expected));
    assert_eq!(given([matched()]).view().unwrap().closed, None);
}

#[test]
fn there_is_no_view_of_what_does_not_begin_with_a_match() {
    assert_eq!(given([]).view(), None);
    assert_eq!(given([requested(1), scheduled(1)]).view(), None);
}

// Whatever happens.

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
