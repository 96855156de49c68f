use garage_events::{
    id::TicketId,
    player::{CancelReason, Cancelled, Ending, Queued},
    projection::Reached,
    session::{Closed, Failed, Matched, Member, Opened, PodFailed, PodReady, PodRequested, PodScheduled, Team},
};
use uuid::Uuid;

use super::*;

const SESSION: &str = "0198c5a0-7b1e-7c3d-8000-0123456789ab";

fn at(seconds: i64) -> OffsetDateTime {
    // The beginning of a minute.
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
        waiting_since: at(seconds),
        expires_at: at(seconds + 120),
    }
    .into()
}

fn cancelled() -> player::Event {
    Cancelled { ticket: ticket(), queue: queue(), reason: CancelReason::Player }.into()
}

fn found(since: i64) -> player::Event {
    let waiting_since = at(since);
    player::Matched { ticket: ticket(), queue: queue(), session: session(), team: "red".into(), waiting_since }.into()
}

fn matched() -> session::Event {
    let member = |name: &str| Member { player: name.parse().unwrap(), ticket: ticket(), rank: 0 };
    Matched {
        queue: queue(),
        region: "eu".parse().unwrap(),
        teams: vec![Team { name: "red".into(), players: vec![member("ann"), member("bob")] }],
        rules: "1".into(),
        pool_seq: 1,
        clock: at(0),
    }
    .into()
}

fn requested(attempt: u32) -> session::Event {
    let (public_key, fingerprint) = (String::new(), String::new());
    PodRequested { attempt, region: "eu".parse().unwrap(), loadouts: Vec::new(), public_key, fingerprint }.into()
}

fn scheduled(attempt: u32) -> session::Event {
    PodScheduled { attempt, pod: "game".into(), node: "here".into(), public_ip: [127, 0, 0, 1].into() }.into()
}

fn failed(attempt: u32) -> session::Event {
    PodFailed { attempt, reason: "exited".into(), message: "x".repeat(1_000) }.into()
}

fn ready(attempt: u32) -> session::Event {
    PodReady { attempt, tcp_port: 1, udp_port: 2 }.into()
}

fn opened(attempt: u32) -> session::Event {
    let address = player::Address { ip: [127, 0, 0, 1].into(), tcp_port: 1, udp_port: 2, fingerprint: String::new() };
    Opened { attempt, address }.into()
}

fn given_up() -> [session::Event; 2] {
    [Failed { reason: "exited".into() }.into(), Closed { why: Ending::Failed, results: Vec::new() }.into()]
}

fn of_player(player: &str, seconds: i64, event: player::Event) -> ProjectedEvent {
    ProjectedEvent { seq: 1, time: at(seconds), what: What::Player(player.parse().unwrap(), event) }
}

fn of_session(seconds: i64, event: session::Event) -> ProjectedEvent {
    ProjectedEvent { seq: u64::try_from(seconds).unwrap(), time: at(seconds), what: What::Session(session(), event) }
}

/// What is there after changes, as if Redis held it.
fn written(mut present: CurrentState, changes: &Changes) -> CurrentState {
    fn set<K: Ord + Clone, V: Clone>(there: &mut BTreeMap<K, V>, changes: &BTreeMap<K, Option<V>>) {
        for (key, value) in changes {
            match value {
                Some(value) => drop(there.insert(key.clone(), value.clone())),
                None => drop(there.remove(key)),
            }
        }
    }
    set(&mut present.players, &changes.players);
    set(&mut present.queues, &changes.queues);
    set(&mut present.timelines, &changes.timelines);
    set(&mut present.minutes, &changes.minutes);
    present.kept = present.minutes.keys().copied().collect();
    present
}

/// Folds all of it, in batches of so many.
fn in_batches(events: &[ProjectedEvent], size: usize) -> CurrentState {
    events.chunks(size).fold(CurrentState::default(), |present, batch| {
        let copy = CurrentState {
            players: present.players.clone(),
            timelines: present.timelines.clone(),
            minutes: present.minutes.clone(),
            kept: present.kept.clone(),
            queues: present.queues.clone(),
        };
        written(present, &fold(batch.to_vec(), copy))
    })
}

fn in_one(events: &[ProjectedEvent]) -> CurrentState {
    in_batches(events, events.len())
}

/// Two attempts, the first of which dies before it is placed.
fn a_life() -> Vec<ProjectedEvent> {
    let way = [
        (0, matched()),
        (1, requested(1)),
        (3, failed(1)),
        (10, requested(2)),
        (14, scheduled(2)),
        (16, ready(2)),
        (17, opened(2)),
    ];
    let end = given_up().map(|event| of_session(70, event));
    way.into_iter().map(|(seconds, event)| of_session(seconds, event)).chain(end).collect()
}

#[test]
fn who_queues_is_counted_and_waits_until_he_is_matched_or_thinks_better_of_it() {
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
fn one_who_queues_again_waits_once() {
    let again = [of_player("ann", 0, queued(0)), of_player("ann", 5, cancelled()), of_player("ann", 6, queued(6))];
    let changes = fold(again.to_vec(), CurrentState::default());
    assert_eq!(changes.queues, [(queue(), Some(1))].into());
    let waiting: Vec<_> = changes.waits.iter().filter(|(_, waits)| **waits).collect();
    assert_eq!(waiting, [(&waiter(&queue(), at(6), &"ann".parse().unwrap()), &true)]);
}

#[test]
fn a_step_is_counted_once_a_session_and_timed_from_the_latest_step_before() {
    let present = in_one(&a_life());
    let reached = |step: Step| present.minutes[&minute(0)].steps.get(&step).cloned().unwrap_or_default();
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
    assert_eq!(present.minutes[&minute(0)].servers_failed, [("exited".into(), 1)].into());
    // It never finished, so that nobody can tell how long the closing took.
    assert_eq!(present.minutes[&minute(1)].steps, [(Step::Closed, one(None))].into());
    assert_eq!(present.minutes[&minute(1)].sessions_failed, [("exited".into(), 1)].into());
}

#[test]
fn a_timeline_tells_all_and_bounds_what_is_foreign() {
    let present = in_one(&a_life());
    let timeline = &present.timelines[&session()];
    let notified: Vec<_> = timeline.events.iter().map(|entry| (entry.type_name.as_str(), entry.attempt)).collect();
    assert_eq!(notified[2], ("PodFailed", Some(1)));
    assert_eq!(notified.last(), Some(&("Closed", None)));
    assert_eq!(timeline.events[2].detail.as_ref().map(|text| text.chars().count()), Some(DETAIL));
    assert_eq!(
        (timeline.ended, timeline.session.status, timeline.session.attempt),
        (Some(Ending::Failed), Status::Closed, 2)
    );
}

#[test]
fn a_server_is_as_far_as_its_session_knows() {
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
fn a_closed_session_is_live_no_more_and_one_whose_beginning_is_gone_is_not_shown() {
    let changes = fold(a_life(), CurrentState::default());
    assert_eq!((changes.sessions[&session()].clone(), changes.closed[&session()]), (None, millis(at(70))));
    let changes = fold(a_life().split_off(1), CurrentState::default());
    assert!(changes.sessions.is_empty() && changes.timelines.is_empty() && changes.closed.is_empty());
}

#[test]
fn what_is_older_than_an_hour_of_the_logs_own_time_goes() {
    let present = in_one(&[of_player("ann", 0, queued(0)), of_player("ann", 60, cancelled())]);
    // A batch is given the minutes that it touches, and of the others only which there are.
    let present = CurrentState { minutes: BTreeMap::new(), ..present };
    let changes = fold(vec![of_player("bob", 60 * 60, queued(0))], present);
    assert_eq!(changes.horizon, Some(minute(1)));
    let kept: Vec<_> = changes.minutes.iter().map(|(at, one)| (*at, one.is_some())).collect();
    assert_eq!(kept, [(minute(0), false), (minute(60), true)]);
}

#[test]
fn batches_of_any_size_come_to_the_same() {
    let mut events = a_life();
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
