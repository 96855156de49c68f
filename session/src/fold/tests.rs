use garage_events::{
    failure::Code,
    game::Ports,
    id::{PartyId, TicketId},
    player::{CancelReason, Cancelled, Ending, Queued, Requeue, Requeued},
    projection::{Histogram, Reached},
    session::{Closed, Failed, Matched, Member, Opened, PodFailed, PodReady, PodRequested, PodScheduled, Team},
};
use uuid::Uuid;

use super::*;

const SESSION: &str = "0198c5a0-7b1e-7c3d-8000-0123456789ab";

fn at(seconds: i64) -> OffsetDateTime {
    // 1,800,000,000 s is the beginning of a minute.
    OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(1_800_000_000 + seconds)
}

fn minute(minutes: i64) -> i64 {
    30_000_000 + minutes
}

fn queue() -> QueueName {
    "ranked".parse().unwrap()
}

fn ticket() -> TicketId {
    TicketId::new(Uuid::nil())
}

fn session() -> SessionId {
    SESSION.parse().unwrap()
}

fn queued(seconds: i64) -> player::Event {
    Queued {
        ticket: ticket(),
        queue: queue(),
        rank: 0,
        latencies: BTreeMap::new(),
        attributes: BTreeMap::new(),
        group: Vec::new(),
        waiting_since: at(seconds),
        expires_at: at(seconds + 120),
        requeues: 0,
        absences: 0,
        party: None,
    }
    .into()
}

fn cancelled() -> player::Event {
    Cancelled { ticket: ticket(), queue: queue(), reason: CancelReason::Player, absences: 0, party: None }.into()
}

fn found(since: i64) -> player::Event {
    let waiting_since = at(since);
    player::Matched {
        ticket: ticket(),
        queue: queue(),
        session: session(),
        team: "red".into(),
        waiting_since,
        requeue: None,
        absences: 0,
        party: None,
    }
    .into()
}

fn matched() -> session::Event {
    let member = |name: &str| Member { player: name.parse().unwrap(), ticket: ticket(), rank: 0 };
    Matched {
        queue: queue(),
        region: "eu".parse().unwrap(),
        teams: vec![Team { name: "red".into(), players: vec![member("ann"), member("bob")] }],
        latencies: Default::default(),
        rules: "1".into(),
        pool_seq: 1,
        clock: at(0),
        seed: 0,
        skipped: Vec::new(),
        left_out: Vec::new(),
        search_steps: None,
    }
    .into()
}

fn requested(attempt: u32) -> session::Event {
    let (public_key, fingerprint) = (String::new(), String::new());
    PodRequested {
        attempt,
        region: "eu".parse().unwrap(),
        loadouts: Vec::new(),
        public_key,
        fingerprint,
        ends_at: None,
    }
    .into()
}

fn scheduled(attempt: u32) -> session::Event {
    PodScheduled { attempt, pod: "game".into(), node: "here".into(), public_ip: [127, 0, 0, 1].into() }.into()
}

fn failed(attempt: u32) -> session::Event {
    PodFailed { attempt, reason: "exited".into(), message: "x".repeat(1_000) }.into()
}

fn ready(attempt: u32) -> session::Event {
    PodReady { attempt, ports: Ports { tcp_port: 1, udp_port: 2 } }.into()
}

fn opened(attempt: u32) -> session::Event {
    let address = player::Address {
        ip: [127, 0, 0, 1].into(),
        ports: Ports { tcp_port: 1, udp_port: 2 },
        fingerprint: String::new(),
    };
    Opened { attempt, address }.into()
}

fn failed_and_closed() -> [session::Event; 2] {
    [
        Failed { reason: "exited".into() }.into(),
        Closed { why: Ending::Failed, results: Vec::new(), teams: Vec::new() }.into(),
    ]
}

fn of_player(player: &str, seconds: i64, event: player::Event) -> ProjectedEvent {
    ProjectedEvent { seq: 1, time: at(seconds), event: AggregateEvent::Player(player.parse().unwrap(), event) }
}

fn of_session(seconds: i64, event: session::Event) -> ProjectedEvent {
    ProjectedEvent {
        seq: u64::try_from(seconds).unwrap(),
        time: at(seconds),
        event: AggregateEvent::Session(session(), event),
    }
}

/// Applies changes to a state, like Redis.
fn written(mut current: CurrentState, changes: &Changes) -> CurrentState {
    fn set<K: Ord + Clone, V: Clone>(values: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
        for (key, value) in changes {
            match value {
                Some(value) => drop(values.insert(key.clone(), value.clone())),
                None => drop(values.remove(key)),
            }
        }
    }
    set(&mut current.players, &changes.players);
    set(&mut current.queues, &changes.queues);
    set(&mut current.timelines, &changes.timelines);
    set(&mut current.minutes, &changes.minutes);
    current.kept = current.minutes.keys().copied().collect();
    current
}

/// Folds all events, in batches of `size` events.
fn in_batches(events: &[ProjectedEvent], size: usize) -> CurrentState {
    events.chunks(size).fold(CurrentState::default(), |current, batch| {
        let copy = CurrentState {
            players: current.players.clone(),
            timelines: current.timelines.clone(),
            minutes: current.minutes.clone(),
            kept: current.kept.clone(),
            queues: current.queues.clone(),
        };
        written(current, &fold(batch.to_vec(), copy))
    })
}

fn in_one(events: &[ProjectedEvent]) -> CurrentState {
    in_batches(events, events.len())
}

/// The events of a session with two attempts. The first attempt fails before its game server is placed.
fn session_events() -> Vec<ProjectedEvent> {
    let start = [
        (0, matched()),
        (1, requested(1)),
        (3, failed(1)),
        (10, requested(2)),
        (14, scheduled(2)),
        (16, ready(2)),
        (17, opened(2)),
    ];
    let end = failed_and_closed().map(|event| of_session(70, event));
    start.into_iter().map(|(seconds, event)| of_session(seconds, event)).chain(end).collect()
}

#[test]
fn a_queued_player_is_counted_and_waits_until_matched_or_cancelled() {
    let waits = in_one(&[of_player("ann", 1, queued(0)), of_player("bob", 2, queued(2))]);
    assert_eq!(waits.queues, [(queue(), 2)].into());
    let changes = fold(vec![of_player("ann", 9, found(0)), of_player("bob", 61, cancelled())], waits);
    let gone = [waiter(&queue(), at(0), &"ann".parse().unwrap()), waiter(&queue(), at(2), &"bob".parse().unwrap())];
    assert_eq!(changes.waits, gone.map(|waiter| (waiter, false)).into());
    assert_eq!(changes.queues, [(queue(), None)].into());
    assert_eq!(
        changes.players["ann".parse::<PlayerId>().as_ref().unwrap()],
        Some(LivePlayer::InSession { session: session() })
    );
    let flow = |minute: i64| {
        &changes.minutes[&minute].as_ref().unwrap().queues["ranked".parse::<QueueName>().as_ref().unwrap()]
    };
    assert_eq!((flow(minute(0)).matched, flow(minute(0)).waited.percentile_ms(50)), (1, Some(8_704)));
    assert_eq!((flow(minute(1)).cancelled, flow(minute(1)).matched), (1, 0));
}

#[test]
fn the_events_of_parties_change_no_projection() {
    let body = include_str!("../../../events/golden/party.created.v1.json");
    let subject = "garage.party.0198c5a0-3333-7c3d-8000-0000000000c1".into();
    let message = Message { seq: 1, time: at(0), subject, headers: None, body: body.into(), pending: 0 };
    assert!(ProjectedEvent::of(&message).is_none());
}

#[test]
fn a_player_who_joins_a_party_during_a_match_stays_in_the_match() {
    let before = in_one(&[of_player("ann", 0, queued(0)), of_player("ann", 9, found(0))]);
    let player::Event::Matched(matched) = found(0) else { unreachable!() };
    let past = player::Past { time: at(9), event: player::PastEvent::Matched(matched) };
    let party = Some(PartyId::new(Uuid::nil()));
    let joined = player::PartyChanged { party, past: Some(past) };
    let changes = fold(vec![of_player("ann", 10, joined.into())], before);
    let ann = "ann".parse::<PlayerId>().unwrap();
    assert_eq!(changes.players[&ann], Some(LivePlayer::InSession { session: session() }));
    let flows = &changes.minutes[&minute(0)].as_ref().unwrap().queues[&queue()];
    assert_eq!((flows.queued, flows.matched), (1, 1));
}

#[test]
fn a_player_who_queues_again_waits_only_once() {
    let again = [of_player("ann", 0, queued(0)), of_player("ann", 5, cancelled()), of_player("ann", 6, queued(6))];
    let changes = fold(again.to_vec(), CurrentState::default());
    assert_eq!(changes.queues, [(queue(), Some(1))].into());
    let waiting: Vec<_> = changes.waits.iter().filter(|(_, waits)| **waits).collect();
    assert_eq!(waiting, [(&waiter(&queue(), at(6), &"ann".parse().unwrap()), &true)]);
}

#[test]
fn a_requeued_player_waits_again_with_the_original_time_and_is_not_counted_as_queued() {
    let player::Event::Queued(first) = queued(0) else { unreachable!() };
    let again = Requeued { session: session(), reason: Code::NoCapacity, queued: Queued { requeues: 1, ..first } };
    let player::Event::Matched(found) = found(0) else { unreachable!() };
    let requeue = Requeue {
        rank: 0,
        latencies: BTreeMap::new(),
        attributes: BTreeMap::new(),
        group: Vec::new(),
        expires_at: at(120),
        requeues: 1,
        party: None,
    };
    let rematch = player::Matched { requeue: Some(requeue), ..found.clone() };
    let events = [queued(0), found.into(), again.into()].into_iter().zip(0..);
    let events: Vec<_> = events.map(|(event, at)| of_player("ann", at, event)).collect();
    let changes = fold(events.clone(), CurrentState::default());
    let waits = LivePlayer::Waiting { queue: queue(), since: at(0) };
    assert_eq!(changes.players["ann".parse::<PlayerId>().as_ref().unwrap()], Some(waits));
    assert_eq!(changes.queues, [(queue(), Some(1))].into());
    let changes = fold([events, vec![of_player("ann", 50, rematch.into())]].concat(), CurrentState::default());
    let flow = &changes.minutes[&minute(0)].as_ref().unwrap().queues[&queue()];
    assert_eq!((flow.queued, flow.matched, flow.requeued), (1, 2, 1));
    let mut once = Histogram::default();
    once.count(1_000);
    assert_eq!(flow.waited, once, "the wait before the second match includes the first match");
}

#[test]
fn a_step_is_counted_once_per_session_with_the_time_since_the_latest_previous_step() {
    let current = in_one(&session_events());
    let reached = |step: Step| current.minutes[&minute(0)].steps.get(&step).cloned().unwrap_or_default();
    let one = |ms: Option<u64>| {
        let mut took = Reached { sessions: 1, players: 2, ..Reached::default() };
        ms.into_iter().for_each(|ms| took.took.count(ms));
        took
    };
    assert_eq!(reached(Step::Matched), one(None));
    assert_eq!(reached(Step::PodRequested), one(Some(1_000)));
    assert_eq!(reached(Step::PodScheduled), one(Some(4_000)));
    assert_eq!(reached(Step::PodReady), one(Some(2_000)));
    assert_eq!(reached(Step::Opened), one(Some(1_000)));
    assert_eq!(current.minutes[&minute(0)].servers_failed, [("exited".into(), 1)].into());
    // The session did not finish, so the duration of the last step is unknown.
    assert_eq!(current.minutes[&minute(1)].steps, [(Step::Closed, one(None))].into());
    assert_eq!(current.minutes[&minute(1)].sessions_failed, [("exited".into(), 1)].into());
}

#[test]
fn a_timeline_contains_all_events_and_truncates_long_details() {
    let current = in_one(&session_events());
    let timeline = &current.timelines[&session()];
    let events: Vec<_> = timeline.events.iter().map(|entry| (entry.type_name.as_str(), entry.attempt)).collect();
    assert_eq!(events[2], ("PodFailed", Some(1)));
    assert_eq!(events.last(), Some(&("Closed", None)));
    assert_eq!(timeline.events[2].detail.as_ref().map(|text| text.chars().count()), Some(MAX_DETAIL));
    assert_eq!(
        (timeline.ended, timeline.session.status, timeline.session.attempt),
        (Some(Ending::Failed), Status::Closed, 2)
    );
}

#[test]
fn the_status_of_a_server_follows_the_sessions_events() {
    let servers = |events: &[session::Event]| {
        let events = (0..).zip(events).map(|(at, event)| of_session(at, event.clone()));
        let changes = fold(events.collect(), CurrentState::default());
        changes.sessions[&session()].as_ref().unwrap().server
    };
    assert_eq!(servers(&[matched()]), None);
    assert_eq!(servers(&[matched(), requested(1)]), Some(Server::Requested));
    assert_eq!(servers(&[matched(), requested(1), scheduled(1)]), Some(Server::Scheduled));
    assert_eq!(servers(&[matched(), requested(1), ready(1), scheduled(1)]), Some(Server::Ready));
    assert_eq!(servers(&[matched(), requested(1), scheduled(1), ready(1), opened(1)]), Some(Server::Running));
    assert_eq!(servers(&[matched(), requested(1), scheduled(1), failed(1)]), None);
}

#[test]
fn a_closed_session_is_not_live_and_a_session_without_its_beginning_is_left_out() {
    let changes = fold(session_events(), CurrentState::default());
    assert_eq!((changes.sessions[&session()].clone(), changes.closed[&session()]), (None, millis(at(70))));
    let changes = fold(session_events().split_off(1), CurrentState::default());
    assert!(changes.sessions.is_empty() && changes.timelines.is_empty() && changes.closed.is_empty());
}

#[test]
fn minutes_older_than_an_hour_before_the_newest_event_are_deleted() {
    let current = in_one(&[of_player("ann", 0, queued(0)), of_player("ann", 60, cancelled())]);
    // A batch gets the statistics of the minutes that it touches. Of other minutes it gets only the numbers.
    let current = CurrentState { minutes: BTreeMap::new(), ..current };
    let changes = fold(vec![of_player("bob", 60 * 60, queued(0))], current);
    assert_eq!(changes.horizon, Some(minute(1)));
    let kept: Vec<_> = changes.minutes.iter().map(|(at, one)| (*at, one.is_some())).collect();
    assert_eq!(kept, [(minute(0), false), (minute(60), true)]);
}

#[test]
fn the_result_does_not_depend_on_the_batch_size() {
    let mut events = session_events();
    for number in 0..200 {
        let name = format!("p-{}", number % 7);
        let event = if number % 3 == 0 { cancelled() } else { queued(number * 40) };
        events.push(of_player(&name, 80 + number * 40, event));
    }
    let whole = in_one(&events);
    for size in [1, 2, 3, 50] {
        let parts = in_batches(&events, size);
        assert_eq!(parts.players, whole.players);
        assert_eq!(parts.queues, whole.queues);
        assert_eq!(parts.timelines, whole.timelines);
        assert_eq!(parts.minutes, whole.minutes);
    }
    assert!(i64::try_from(whole.minutes.len()).unwrap() <= MINUTES);
}
