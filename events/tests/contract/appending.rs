//! An appended decision is stored once, completely, and at the sequences that the append returns.

use std::collections::{HashMap, HashSet};

use futures::future::join_all;
use garage_events::{
    id::PlayerId,
    inventory,
    log::{Append, AppendError, Head, Load, MAX_COMMIT, MAX_EVENT, Player, Session},
    player, session,
    subject::Aggregate,
};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    fixture::{Fixture, Raw, Stored, all, range},
    samples::{
        Prepared, THEN, cancelled, failed_and_closed, matched, new_player, new_session, of_player, of_session,
        pod_failed, pod_requested, prepare, queued,
    },
};

pub(crate) async fn an_unknown_aggregate_is_new(fixture: impl Fixture) {
    let log = fixture.open().await;
    let (player, session) = (new_player(), new_session());
    assert_eq!(log.player(&player).await.unwrap(), Player::default());
    assert_eq!(log.session(session).await.unwrap(), Session::default());
    assert_eq!(log.inventory(&player).await.unwrap(), None);
    assert_eq!(log.end(&of_player(&player)).await, 0);
}

pub(crate) async fn a_load_returns_the_last_event_and_the_head(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let player = new_player();
    let mut head = Head::default();
    for n in 1..=5 {
        let event = if n % 2 == 1 { queued() } else { cancelled() };
        let prepared = prepare(&player, head, [event.clone()]);
        let seq = log.append(prepared.decision.clone()).await.unwrap()[0];
        for log in [&log, &other] {
            let Player { state, head, last } = log.player(&player).await.unwrap();
            let last = last.unwrap();
            assert_eq!(state, player::State::evolve(&event));
            assert_eq!(head, Head { seq, n });
            assert_eq!((last.seq, last.n, &last.event), (seq, n, &event));
            assert_eq!(vec![last.id], prepared.ids());
        }
        assert!(seq > head.seq, "sequence {seq} after {head:?}");
        head = Head { seq, n };
    }
    assert_eq!(log.end(&of_player(&player)).await, head.seq);
}

pub(crate) async fn a_session_is_loaded_with_all_events_in_order(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let session = new_session();
    let mut wanted: Vec<(u64, Uuid, session::Event)> = Vec::new();
    let mut steps = vec![vec![matched(&[new_player()])]];
    for attempt in 1..=20 {
        steps.push(vec![pod_requested(attempt)]);
        steps.push(vec![pod_failed(attempt)]);
    }
    steps.push(failed_and_closed().into());
    for events in steps {
        let head = log.session(session).await.unwrap().head;
        let prepared = prepare(session, head, events.clone());
        let sequences = log.append(prepared.decision.clone()).await.unwrap();
        wanted.extend(sequences.into_iter().zip(prepared.ids()).zip(events).map(|((seq, id), event)| (seq, id, event)));

        let read = other.session(session).await.unwrap();
        let history: Vec<_> = read.history.iter().map(|one| (one.seq, one.id, one.event.clone())).collect();
        assert_eq!(history, wanted);
        assert!(read.history.iter().zip(1..).all(|(one, n)| one.n == n), "{:?}", read.history);
        assert_eq!(read.head, Head { seq: wanted.last().unwrap().0, n: u64::try_from(wanted.len()).unwrap() });
        assert_eq!(read, Session::of(read.history.clone()));
    }
    assert!(matches!(other.session(session).await.unwrap().state, session::State::Closed(_)));
}

pub(crate) async fn the_last_inventory_event_of_a_player_is_loaded(fixture: impl Fixture) {
    let log = fixture.open().await;
    let player = new_player();
    let mut head = Head::default();
    let bought = inventory::CarPurchased { car: "comet".parse().unwrap(), price: 500, balance: 100 };
    let chosen = inventory::CarActivated { car: "comet".parse().unwrap() };
    let events: [inventory::Event; 2] = [bought.into(), chosen.into()];
    for event in events {
        let prepared = prepare(Aggregate::Inventory(player.clone()), head, [event.clone()]);
        log.append(prepared.decision).await.unwrap();
        let last = log.inventory(&player).await.unwrap().unwrap();
        assert_eq!((last.n, &last.event), (head.n + 1, &event));
        head = Head { seq: last.seq, n: last.n };
    }
    // The player's matchmaking is another aggregate.
    assert_eq!(log.player(&player).await.unwrap(), Player::default());
}

pub(crate) async fn a_message_is_one_json_event(fixture: impl Fixture) {
    let log = fixture.open().await;
    let (player, session) = (new_player(), new_session());
    let prepared = Prepared::empty()
        .and(session, Head::default(), [matched(std::slice::from_ref(&player)), pod_requested(1)])
        .and(&player, Head::default(), [queued()]);
    log.append(prepared.decision.clone()).await.unwrap();

    let in_session = all(&log, &of_session(session)).await;
    let in_player = all(&log, &of_player(&player)).await;
    let subjects: Vec<&str> = in_session.iter().chain(&in_player).map(|stored| stored.subject.as_str()).collect();
    assert_eq!(
        subjects,
        [
            format!("garage.session.{session}.matched"),
            format!("garage.session.{session}.pod-requested"),
            format!("garage.player.{player}"),
        ]
    );
    let message: Value = serde_json::from_slice(&in_session[1].body).unwrap();
    assert_eq!(
        message,
        json!({
            "id": prepared.ids()[1],
            "n": 2,
            "type": "PodRequested",
            "v": 1,
            "at": "2026-02-03T04:05:06Z",
            "correlation": in_session[0].envelope.correlation,
            "cause": null,
            "data": {
                "session": session,
                "attempt": 1,
                "region": "eu",
                "loadouts": [],
                "public_key": "-----BEGIN PUBLIC KEY-----",
                "fingerprint": "00".repeat(32),
            },
        })
    );
    let message: Value = serde_json::from_slice(&in_player[0].body).unwrap();
    assert_eq!((&message["data"]["player"], &message["n"]), (&json!(player), &json!(1)));
    assert_eq!(in_player[0].envelope.at, THEN);
    // The timestamp comes from the stream's clock, not from the decider's.
    assert_ne!(in_player[0].time, THEN);
}

pub(crate) async fn the_returned_sequences_are_those_of_the_messages(fixture: impl Fixture) {
    let logs = [fixture.open().await, fixture.open().await];
    // All kinds of decisions at the same time: one event, several events, several aggregates.
    let decisions: Vec<Prepared> = (0..60)
        .map(|i| match i % 3 {
            0 => prepare(&new_player(), Head::default(), [queued()]),
            1 => prepare(new_session(), Head::default(), [matched(&[]), pod_requested(1), pod_failed(1)]),
            _ => Prepared::empty()
                .and(&new_player(), Head::default(), [queued()])
                .and(new_session(), Head::default(), [matched(&[]), pod_requested(1)])
                .and(&new_player(), Head::default(), [queued()]),
        })
        .collect();
    let appends =
        decisions.iter().zip(logs.iter().cycle()).map(|(prepared, log)| log.append(prepared.decision.clone()));
    let outcomes = join_all(appends).await;
    let mut taken = HashSet::new();
    for (prepared, outcome) in decisions.iter().zip(outcomes) {
        let sequences = outcome.unwrap();
        let mut stored = Vec::new();
        for seq in &sequences {
            assert!(taken.insert(*seq), "sequence {seq} was returned twice");
            stored.push(log_at(&logs[0], *seq).await.envelope.id);
        }
        assert_eq!(stored, prepared.ids());
        assert!(
            sequences.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "sequences are not consecutive: {sequences:?}"
        );
    }
}

async fn log_at<L: Raw>(log: &L, seq: u64) -> Stored {
    let stored = log.raw("garage.>", seq).await.unwrap();
    assert_eq!(stored.seq, seq);
    stored
}

pub(crate) async fn more_events_than_fit_one_commit_are_stored_in_several(fixture: impl Fixture) {
    let log = fixture.open().await;
    let decisions: Vec<(PlayerId, Prepared)> = (0..MAX_COMMIT + 500)
        .map(|_| {
            let player = new_player();
            (player.clone(), prepare(&player, Head::default(), [queued()]))
        })
        .collect();
    let ids: HashSet<Uuid> = decisions.iter().flat_map(|(_, prepared)| prepared.ids()).collect();
    let outcomes = join_all(decisions.iter().map(|(_, prepared)| log.append(prepared.decision.clone()))).await;
    let sequences: Vec<u64> = outcomes.into_iter().flat_map(Result::unwrap).collect();
    let (first, last) = (*sequences.iter().min().unwrap(), *sequences.iter().max().unwrap());

    let mut commits: HashMap<Option<String>, Vec<u64>> = HashMap::new();
    let stored = range(&log, "garage.>", first, last).await;
    for stored in stored.iter().filter(|stored| ids.contains(&stored.envelope.id)) {
        commits.entry(stored.commit.clone()).or_default().push(stored.seq);
    }
    commits.remove(&None);
    assert!(commits.len() > 1, "{} messages in one commit", sequences.len());
    let largest = commits.values().map(Vec::len).max().unwrap();
    assert!((100..=MAX_COMMIT).contains(&largest), "the largest of {} commits has {largest} messages", commits.len());
    for sequences in commits.values() {
        assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1), "the commit has gaps: {sequences:?}");
    }
    for ((player, prepared), seq) in decisions.iter().zip(sequences).step_by(97) {
        let Player { head, last, .. } = log.player(player).await.unwrap();
        assert_eq!((head, vec![last.unwrap().id]), (Head { seq, n: 1 }, prepared.ids()));
    }
}

pub(crate) async fn a_decision_that_no_commit_can_hold_is_refused(fixture: impl Fixture) {
    let log = fixture.open().await;
    let (player, session) = (new_player(), new_session());
    let begin = || vec![matched(std::slice::from_ref(&player))];
    let pod_failures = |events: usize| (0..events).map(|_| pod_failed(1)).collect::<Vec<_>>();
    let none: [player::Event; 0] = [];
    let huge = session::Failed { reason: "x".repeat(MAX_EVENT) };
    let refused = [
        ("no change", Prepared::empty()),
        ("no event for an aggregate", prepare(&player, Head::default(), none.clone())),
        (
            "no event for one of two aggregates",
            prepare(session, Head::default(), begin()).and(&player, Head::default(), none),
        ),
        ("a session twice", prepare(session, Head::default(), begin()).and(session, Head::default(), begin())),
        ("two events for a player", prepare(&player, Head::default(), [queued(), cancelled()])),
        ("more events than a commit can hold", prepare(session, Head::default(), pod_failures(MAX_COMMIT + 1))),
        ("an event that is too large", prepare(session, Head::default(), [session::Event::from(huge)])),
    ];
    for (what, prepared) in refused {
        let outcome = log.append(prepared.decision).await;
        assert!(matches!(outcome, Err(AppendError::Refused(_))), "{what}: {outcome:?}");
    }
    assert_eq!(log.session(session).await.unwrap(), Session::default());
    assert_eq!(log.player(&player).await.unwrap(), Player::default());

    // The largest decision that fits is accepted.
    let sequences = log.append(prepare(session, Head::default(), pod_failures(MAX_COMMIT)).decision).await.unwrap();
    assert_eq!(sequences.len(), MAX_COMMIT);
    let history = log.session(session).await.unwrap().history;
    assert_eq!(history.iter().map(|one| one.seq).collect::<Vec<_>>(), sequences);
}

pub(crate) async fn the_largest_event_is_stored_and_read_back(fixture: impl Fixture) {
    let log = fixture.open().await;
    let failed = |length| session::Event::from(session::Failed { reason: "x".repeat(length) });
    let small = new_session();
    log.append(prepare(small, Head::default(), [failed(0)]).decision).await.unwrap();
    let rest = log.raw(&of_session(small), 1).await.unwrap().body.len();
    let largest = failed(MAX_EVENT - rest);

    let too_large = prepare(new_session(), Head::default(), [failed(MAX_EVENT - rest + 1)]);
    let outcome = log.append(too_large.decision).await;
    assert!(matches!(outcome, Err(AppendError::Refused(_))), "{outcome:?}");

    // Alone in its commit, and as part of a batch, which adds headers to each message.
    for events in [vec![largest.clone()], vec![largest.clone(), failed(0)]] {
        let session = new_session();
        log.append(prepare(session, Head::default(), events.clone()).decision).await.unwrap();
        assert_eq!(log.raw(&of_session(session), 1).await.unwrap().body.len(), MAX_EVENT);
        let history = log.session(session).await.unwrap().history;
        assert!(history.into_iter().map(|one| one.event).eq(events), "the events are read back unchanged");
    }
}
