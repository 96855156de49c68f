use std::collections::BTreeSet;

use proptest::prelude::*;
use time::{Duration, macros::datetime};
use uuid::Uuid;

use super::*;
use crate::{
    event::{Event as _, Recorded},
    game::Ports,
    log::Player,
};

mod proposals;

/// When every player begins to wait. Their tickets expire two minutes later.
const START: OffsetDateTime = datetime!(2026-01-05 12:00 UTC);

fn ticket(number: u128) -> TicketId {
    TicketId::new(Uuid::from_u128(number))
}

fn session(number: u128) -> SessionId {
    SessionId::new(Uuid::from_u128(number))
}

fn after(seconds: i64) -> OffsetDateTime {
    START + Duration::seconds(seconds)
}

fn ranked() -> QueueName {
    "ranked".parse().unwrap()
}

fn ticket_request(number: u128) -> Queued {
    Queued {
        ticket: ticket(number),
        queue: ranked(),
        rank: 1_200,
        latencies: BTreeMap::from([("eu".parse().unwrap(), 20)]),
        attributes: BTreeMap::new(),
        group: Vec::new(),
        waiting_since: START,
        expires_at: after(120),
        requeues: 0,
        absences: 0,
        party: None,
    }
}

fn address() -> Address {
    Address {
        ip: [203, 0, 113, 7].into(),
        ports: Ports { tcp_port: 31_000, udp_port: 31_001 },
        fingerprint: "f1".into(),
    }
}

fn queued(number: u128) -> Event {
    ticket_request(number).into()
}

fn cancelled(number: u128) -> Event {
    Cancelled { ticket: ticket(number), queue: ranked(), reason: CancelReason::Player, absences: 0, party: None }.into()
}

fn timed_out(number: u128, waited_ms: u64) -> Event {
    TimedOut { ticket: ticket(number), queue: ranked(), waited_ms, considered: None, absences: 0, party: None }.into()
}

fn matched(number: u128, into: u128) -> Event {
    matched_after(0, number, into)
}

/// A match of a ticket that was requeued this often.
fn matched_after(requeues: u32, number: u128, into: u128) -> Event {
    let (ticket, session) = (ticket(number), session(into));
    let Queued { queue, rank, latencies, attributes, group, waiting_since, expires_at, .. } = ticket_request(number);
    let requeue = Some(Requeue { rank, latencies, attributes, group, expires_at, requeues, party: None });
    Matched { ticket, queue, session, team: "red".into(), waiting_since, requeue, absences: 0, party: None }.into()
}

fn requeued(number: u128, from: u128) -> Event {
    let queued = Queued { requeues: 1, ..ticket_request(number) };
    Requeued { session: session(from), reason: failure::Code::ServerFailed, queued }.into()
}

fn requeue(number: u128, seconds: i64) -> Command {
    Command::Requeue { session: session(number), reason: failure::Code::ServerFailed, now: after(seconds) }
}

fn player_matched(number: u128, into: u128) -> Event {
    PlayerMatched {
        ticket: ticket(number),
        queue: ranked(),
        session: session(into),
        address: address(),
        absences: 0,
        party: None,
    }
    .into()
}

fn released(number: u128, from: u128) -> Event {
    Released {
        ticket: ticket(number),
        session: session(from),
        why: Ending::Finished,
        reason: None,
        absences: 0,
        party: None,
    }
    .into()
}

fn queue(number: u128) -> Command {
    Command::Queue(ticket_request(number))
}

fn cancel(number: u128) -> Command {
    Command::Cancel { ticket: ticket(number), reason: CancelReason::Player }
}

fn time_out(number: u128, seconds: i64) -> Command {
    Command::TimeOut { ticket: ticket(number), now: after(seconds), considered: None }
}

fn join(number: u128, into: u128) -> Command {
    Command::Match { ticket: ticket(number), session: session(into), team: "red".into(), requeue: true }
}

fn open(number: u128) -> Command {
    Command::Open { session: session(number), address: address() }
}

fn release(number: u128) -> Command {
    Command::Release { session: session(number), why: Ending::Finished, reason: None, joined: None }
}

struct Given(State);

fn given<const N: usize>(events: [Event; N]) -> Given {
    Given(events.iter().fold(State::New, |_, event| State::evolve(event)))
}

impl Given {
    fn when(&self, command: Command) -> Outcome {
        Outcome(decide(&self.0, command))
    }
}

#[derive(Debug)]
struct Outcome(Result<Event, Rejection>);

impl Outcome {
    #[track_caller]
    fn then(self, event: Event) {
        assert_eq!(self.0, Ok(event));
    }

    #[track_caller]
    fn refused(self, rejection: Rejection) {
        assert_eq!(self.0, Err(rejection));
    }

    /// The event's type, or the rejection's name.
    fn name(&self) -> &'static str {
        match &self.0 {
            Ok(event) => event.type_name(),
            Err(Rejection::Waiting { .. }) => "Waiting",
            Err(Rejection::InSession { .. }) => "InSession",
            Err(Rejection::InParty { .. }) => "InParty",
            Err(Rejection::NotWaiting { .. }) => "NotWaiting",
            Err(Rejection::NotExpired { .. }) => "NotExpired",
            Err(Rejection::NotRequeued { .. }) => "NotRequeued",
            Err(Rejection::NotInSession { .. }) => "NotInSession",
        }
    }
}

#[test]
#[rustfmt::skip]
fn each_command_has_the_expected_outcome_in_each_state() {
    let commands = || [queue(2), cancel(1), time_out(1, 120), join(1, 7), open(7), requeue(7, 60), release(7)];
    let table = [
        (given([]),                     ["Queued",    "NotWaiting", "NotWaiting", "NotWaiting", "NotInSession",  "NotInSession", "NotInSession"]),
        (given([queued(1)]),            ["Waiting",   "Cancelled",  "TimedOut",   "Matched",    "NotInSession",  "NotInSession", "NotInSession"]),
        (given([matched(1, 7)]),        ["InSession", "NotWaiting", "NotWaiting", "NotWaiting", "PlayerMatched", "Requeued",     "Released"]),
        (given([player_matched(1, 7)]), ["InSession", "NotWaiting", "NotWaiting", "NotWaiting", "NotInSession",  "NotInSession", "Released"]),
        (given([requeued(1, 7)]),       ["Waiting",   "Cancelled",  "TimedOut",   "Matched",    "NotInSession",  "NotInSession", "NotInSession"]),
        (given([cancelled(1)]),         ["Queued",    "NotWaiting", "NotWaiting", "NotWaiting", "NotInSession",  "NotInSession", "NotInSession"]),
        (given([timed_out(1, 9)]),      ["Queued",    "NotWaiting", "NotWaiting", "NotWaiting", "NotInSession",  "NotInSession", "NotInSession"]),
        (given([released(1, 7)]),       ["Queued",    "NotWaiting", "NotWaiting", "NotWaiting", "NotInSession",  "NotInSession", "NotInSession"]),
    ];
    for (given, answers) in table {
        assert_eq!(commands().map(|command| given.when(command).name()), answers, "{:?}", given.0);
    }
}

#[test]
fn a_command_on_another_ticket_or_session_is_refused_in_every_state() {
    for given in
        [given([]), given([queued(1)]), given([matched(1, 7)]), given([player_matched(1, 7)]), given([released(1, 7)])]
    {
        for of_a_ticket in [cancel(2), time_out(2, 120), join(2, 7)] {
            given.when(of_a_ticket).refused(Rejection::NotWaiting { ticket: ticket(2) });
        }
        for of_a_session in [open(8), requeue(8, 60), release(8)] {
            given.when(of_a_session).refused(Rejection::NotInSession { session: session(8) });
        }
    }
}

#[test]
fn a_new_player_can_queue() {
    given([]).when(queue(1)).then(queued(1));
}

#[test]
fn a_released_player_can_queue_again() {
    given([queued(1), matched(1, 7), player_matched(1, 7), released(1, 7)]).when(queue(2)).then(queued(2));
}

#[test]
fn a_waiting_player_cannot_queue_again_and_learns_their_ticket() {
    given([queued(1)]).when(queue(2)).refused(Rejection::Waiting { ticket: ticket(1) });
}

#[test]
fn a_player_in_a_session_cannot_queue_and_learns_their_session() {
    given([matched(1, 7)]).when(queue(2)).refused(Rejection::InSession { session: session(7) });
    given([player_matched(1, 7)]).when(queue(2)).refused(Rejection::InSession { session: session(7) });
}

#[test]
fn a_cancelled_ticket_records_the_reason() {
    for reason in [CancelReason::Player, CancelReason::Party, CancelReason::Disconnected] {
        let command = Command::Cancel { ticket: ticket(1), reason };
        given([queued(1)])
            .when(command)
            .then(Cancelled { ticket: ticket(1), queue: ranked(), reason, absences: 0, party: None }.into());
    }
}

#[test]
fn a_ticket_can_be_cancelled_only_once() {
    given([queued(1), cancelled(1)]).when(cancel(1)).refused(Rejection::NotWaiting { ticket: ticket(1) });
}

#[test]
fn a_matched_ticket_cannot_be_cancelled() {
    given([queued(1), matched(1, 7)]).when(cancel(1)).refused(Rejection::NotWaiting { ticket: ticket(1) });
}

#[test]
fn a_ticket_can_time_out_from_its_expiry_on() {
    given([queued(1)]).when(time_out(1, 119)).refused(Rejection::NotExpired { ticket: ticket(1) });
    given([queued(1)]).when(time_out(1, 120)).then(timed_out(1, 120_000));
    given([queued(1)]).when(time_out(1, 121)).then(timed_out(1, 121_000));
}

#[test]
fn a_time_out_records_the_candidates() {
    let excluded = [("Rank".into(), 3), (NO_COMMON_REGION.into(), 1)].into();
    let candidates = Some(Candidates { count: 5, eligible: 1, excluded });
    let Event::TimedOut(expected) = timed_out(1, 120_000) else { unreachable!() };
    let command = Command::TimeOut { ticket: ticket(1), now: after(120), considered: candidates.clone() };
    given([queued(1)]).when(command).then(TimedOut { considered: candidates, ..expected }.into());
}

#[test]
fn a_negative_waiting_time_is_recorded_as_zero() {
    let ticket_request = Queued { waiting_since: after(300), ..ticket_request(1) };
    given([ticket_request.into()]).when(time_out(1, 120)).then(timed_out(1, 0));
}

#[test]
fn a_match_keeps_the_start_of_the_wait() {
    let ticket_request = Queued { waiting_since: after(-60), ..ticket_request(1) };
    let Event::Matched(expected) = matched(1, 7) else { unreachable!() };
    let expected = Matched { waiting_since: after(-60), ..expected };
    given([ticket_request.into()]).when(join(1, 7)).then(expected.into());
}

#[test]
fn a_ticket_can_be_matched_only_once() {
    given([queued(1), matched(1, 7)]).when(join(1, 8)).refused(Rejection::NotWaiting { ticket: ticket(1) });
}

#[test]
fn a_matched_player_receives_the_address_only_once() {
    given([queued(1), matched(1, 7)]).when(open(7)).then(player_matched(1, 7));
    let playing = given([queued(1), matched(1, 7), player_matched(1, 7)]);
    playing.when(open(7)).refused(Rejection::NotInSession { session: session(7) });
}

#[test]
fn a_player_can_be_released_with_and_without_the_address() {
    for given in [given([matched(1, 7)]), given([player_matched(1, 7)])] {
        for why in [Ending::Finished, Ending::Failed, Ending::Abandoned] {
            let reason = (why == Ending::Failed).then_some(failure::Code::ServerLost);
            let command = Command::Release { session: session(7), why, reason, joined: None };
            given.when(command).then(
                Released { ticket: ticket(1), session: session(7), why, reason, absences: 0, party: None }.into(),
            );
        }
    }
}

#[test]
fn a_player_can_be_released_only_once() {
    let given = given([matched(1, 7), released(1, 7)]);
    given.when(release(7)).refused(Rejection::NotInSession { session: session(7) });
}

#[test]
fn a_requeued_ticket_waits_as_before_and_can_be_matched_again() {
    given([matched(1, 7)]).when(requeue(7, 60)).then(requeued(1, 7));
    given([matched(1, 7), requeued(1, 7)]).when(join(1, 8)).then(matched_after(1, 1, 8));
}

#[test]
fn a_ticket_is_not_requeued_without_a_chance_or_too_often_or_if_its_queue_does_not_requeue() {
    let refused = |event: Event, seconds| {
        given([event]).when(requeue(7, seconds)).refused(Rejection::NotRequeued { ticket: ticket(1) });
    };
    assert_eq!(given([matched(1, 7)]).when(requeue(7, 115)).name(), "Requeued");
    refused(matched(1, 7), 116);
    assert_eq!(given([matched_after(2, 1, 7)]).when(requeue(7, 60)).name(), "Requeued");
    refused(matched_after(3, 1, 7), 60);
    let Event::Matched(matched) = matched(1, 7) else { unreachable!() };
    refused(Matched { requeue: None, ..matched }.into(), 60);
}

#[test]
fn the_last_event_determines_ticket_and_session() {
    for (event, in_session) in [
        (queued(1), None),
        (cancelled(1), None),
        (timed_out(1, 9), None),
        (matched(1, 7), Some(session(7))),
        (player_matched(1, 7), Some(session(7))),
        (requeued(1, 7), None),
        (released(1, 7), None),
    ] {
        let state = State::evolve(&event);
        assert_eq!((state.ticket(), state.session()), (Some(ticket(1)), in_session), "{event:?}");
    }
    assert_eq!((State::New.ticket(), State::New.session()), (None, None));
}

/// Commands for a small number of tickets and sessions, so that many of them are accepted. For `Queue`, the property
/// replaces the ticket with a new one.
fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        2 => Just(queue(0)),
        1 => (1..5u128).prop_map(cancel),
        1 => (1..5u128, 60..180i64).prop_map(|(ticket, at)| time_out(ticket, at)),
        4 => (1..5u128, 1..4u128).prop_map(|(ticket, session)| join(ticket, session)),
        2 => (1..4u128).prop_map(open),
        2 => (1..4u128).prop_map(release),
        2 => (1..4u128, 60..180i64).prop_map(|(session, at)| requeue(session, at)),
        2 => (1..5u128, 1..4u128).prop_map(|(number, into)| {
            let (ticket, session, team) = (ticket(number), session(into), "red".into());
            Command::Propose { ticket, session, team, accept_by: after(80), players: 2, may_requeue: true }
        }),
        2 => (1..4u128).prop_map(|number| Command::Confirm { session: session(number) }),
        2 => (1..4u128).prop_map(|number| {
            Command::Decline { session: session(number), reason: DeclineReason::Declined, players: Vec::new() }
        }),
    ]
}

proptest! {
    #[test]
    fn each_ticket_ends_at_most_once_and_a_player_is_in_at_most_one_session(
        commands in prop::collection::vec(any_command(), 0..80),
    ) {
        let mut state = State::New;
        let (mut tickets, mut ended, mut playing) = (0, BTreeSet::new(), None);
        for command in commands {
            let command = match command {
                Command::Queue(_) => queue(tickets + 1),
                other => other,
            };
            let Ok(event) = decide(&state, command) else { continue };
            match &event {
                Event::PartyChanged(_) => prop_assert!(false, "no command is about a party"),
                Event::Queued(_) => {
                    tickets += 1;
                    prop_assert_eq!(playing, None);
                }
                Event::MatchProposed(data) => prop_assert_eq!(playing.replace(data.session), None),
                Event::MatchDeclined(data) => {
                    prop_assert_eq!(playing.take(), Some(data.session));
                    prop_assert!(ended.insert(data.ticket));
                }
                Event::Matched(data) if matches!(state, State::Proposed(_)) => {
                    prop_assert_eq!(playing, Some(data.session));
                }
                Event::Matched(data) => prop_assert_eq!(playing.replace(data.session), None),
                Event::PlayerMatched(data) => prop_assert_eq!(playing, Some(data.session)),
                Event::Requeued(data) => {
                    prop_assert_eq!(playing.take(), Some(data.session));
                    prop_assert!(data.queued.requeues <= MAX_REQUEUES && !ended.contains(&data.queued.ticket));
                }
                Event::Released(data) => {
                    prop_assert_eq!(playing.take(), Some(data.session));
                    prop_assert!(ended.insert(data.ticket));
                }
                Event::Cancelled(Cancelled { ticket, .. }) | Event::TimedOut(TimedOut { ticket, .. }) => {
                    prop_assert_eq!(playing, None);
                    prop_assert!(ended.insert(*ticket));
                }
            }
            state = State::evolve(&event);
            prop_assert_eq!(state.session(), playing);
            prop_assert_eq!(state.ticket(), Some(ticket(tickets)));
        }
    }
}

fn party(number: u128) -> PartyId {
    PartyId::new(Uuid::from_u128(number))
}

/// A player after these events, each a second after the one before.
fn player_after<const N: usize>(events: [Event; N]) -> Player {
    let recorded = events.into_iter().zip(1..).map(|(event, n)| {
        let (seq, time, id) = (n, after(n.try_into().unwrap()), Uuid::from_u128(n.into()));
        Recorded { seq, time, id, n, correlation: id, event }
    });
    Player::of(recorded.last())
}

#[test]
fn a_player_can_join_a_party_in_every_state_except_while_they_wait() {
    for events in [queued(1), requeued(1, 7)] {
        let waiting = Err(Rejection::Waiting { ticket: ticket(1) });
        assert_eq!(join_party(&player_after([events]), party(1)), waiting);
    }
    let first = join_party(&Player::default(), party(1)).unwrap();
    assert_eq!(State::evolve(&first), State::Idle { ticket: None, absences: 0, party: Some(party(1)) });
    for event in [cancelled(1), timed_out(1, 9), matched(1, 7), player_matched(1, 7), released(1, 7)] {
        let before = player_after([event]);
        let joined = join_party(&before, party(1)).unwrap();
        assert_eq!(State::evolve(&joined), before.state.with_party(Some(party(1))));
    }
}

#[test]
fn a_player_in_a_party_cannot_join_another_until_that_one_is_forgotten() {
    let member = Player::of(player_after([join_party(&Player::default(), party(1)).unwrap()]).last);
    assert_eq!(join_party(&member, party(2)), Err(Rejection::InParty { party: party(1) }));
    let joined = join_party(&member.without_party(), party(2)).unwrap();
    assert_eq!(State::evolve(&joined).party(), Some(party(2)));
}

#[test]
fn joining_and_leaving_parties_keeps_the_last_event_about_a_ticket_with_its_time() {
    let before = player_after([queued(1), released(1, 7)]);
    let joined = join_party(&before, party(1)).unwrap();
    let member = player_after([queued(1), released(1, 7), joined]);
    let left = leave_party(&member, CancelReason::Player).unwrap();
    let Event::Released(data) = released(1, 7) else { unreachable!() };
    let past = Some(Past { time: after(2), event: PastEvent::Released(data) });
    assert_eq!(left, PartyChanged { party: None, past }.into());
    assert_eq!(State::evolve(&left), before.state);
}

#[test]
fn a_player_who_waits_and_leaves_their_party_no_longer_waits() {
    let request = Queued { party: Some(party(1)), ..ticket_request(1) };
    let left = leave_party(&player_after([request.into()]), CancelReason::Party).unwrap();
    let Event::Cancelled(expected) = cancelled(1) else { unreachable!() };
    assert_eq!(left, Cancelled { reason: CancelReason::Party, ..expected }.into());
}

#[test]
fn a_player_in_a_party_queues_only_with_it() {
    let member = given([join_party(&Player::default(), party(1)).unwrap()]);
    member.when(queue(1)).refused(Rejection::InParty { party: party(1) });
    let of_another = Queued { party: Some(party(2)), ..ticket_request(1) };
    member.when(Command::Queue(of_another)).refused(Rejection::InParty { party: party(1) });
    let request = Queued { party: Some(party(1)), ..ticket_request(1) };
    member.when(Command::Queue(request.clone())).then(request.into());
}

#[test]
fn every_event_about_a_ticket_keeps_the_party() {
    let request = || Command::Queue(Queued { party: Some(party(1)), ..ticket_request(1) });
    for ends in
        [vec![cancel(1)], vec![time_out(1, 120)], vec![join(1, 7), requeue(7, 60), join(1, 8), open(8), release(8)]]
    {
        let mut state = State::evolve(&join_party(&Player::default(), party(1)).unwrap());
        for command in [request()].into_iter().chain(ends) {
            state = State::evolve(&decide(&state, command).unwrap());
            assert_eq!(state.party(), Some(party(1)), "{state:?}");
        }
    }
}

#[test]
fn a_ticket_is_requeued_only_if_its_player_is_still_in_its_party() {
    let Event::Matched(alone) = matched(1, 7) else { unreachable!() };
    let requeue_of = |party| alone.requeue.clone().map(|requeue| Requeue { party, ..requeue });
    for (of_ticket, now, requeued) in [
        (None, None, true),
        (Some(party(1)), Some(party(1)), true),
        (Some(party(1)), None, false),
        (Some(party(1)), Some(party(2)), false),
        (None, Some(party(1)), false),
    ] {
        let matched = Matched { party: now, requeue: requeue_of(of_ticket), ..alone.clone() };
        let outcome = given([matched.into()]).when(requeue(7, 60));
        assert_eq!(outcome.name(), if requeued { "Requeued" } else { "NotRequeued" }, "{of_ticket:?} {now:?}");
    }
}

#[test]
fn missed_matches_in_a_row_are_counted_until_the_player_joins_one() {
    let mut state = State::New;
    let mut play = |number, joined| {
        let request = ticket_request(number);
        let (ticket, of) = (request.ticket, session(number));
        let (why, reason) = (Ending::Finished, None);
        let commands = [
            Command::Queue(request.clone()),
            Command::Cancel { ticket, reason: CancelReason::Player },
            Command::Queue(request),
            Command::Match { ticket, session: of, team: "red".into(), requeue: true },
            Command::Requeue { session: of, reason: failure::Code::ServerFailed, now: START },
            Command::Match { ticket, session: of, team: "red".into(), requeue: true },
            Command::Open { session: of, address: address() },
            Command::Release { session: of, why, reason, joined },
        ];
        for command in commands {
            state = State::evolve(&decide(&state, command).unwrap());
        }
        state.absences()
    };
    assert_eq!([play(1, Some(false)), play(2, Some(false)), play(3, None), play(4, Some(true))], [1, 2, 2, 0]);
}
