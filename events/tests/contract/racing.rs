//! A decision on an outdated state fails with a conflict and stores nothing. This is why a player is never in two
//! matches.

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::future::join_all;
use garage_events::{
    id::{PlayerId, SessionId},
    log::{Append, AppendError, Head, Load, Player, Session},
    player::{self, Command, State},
    subject::Aggregate,
};

use crate::{
    fixture::{Fixture, Raw, all, range},
    samples::{
        Prepared, cancelled, matched, new_player, new_session, of_player, of_session, pod_failed, pod_requested,
        prepare, queued,
    },
};

/// How often each race is repeated.
const ROUNDS: usize = 60;

pub(crate) async fn a_stale_head_of_a_player_is_a_conflict_and_stores_nothing(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let player = new_player();
    log.append(prepare(&player, Head::default(), [queued()]).decision).await.unwrap();
    let first = log.player(&player).await.unwrap().head;
    log.append(prepare(&player, first, [cancelled()]).decision).await.unwrap();
    let before = log.player(&player).await.unwrap();
    for stale in [Head::default(), first] {
        for log in [&log, &other] {
            let outcome = log.append(prepare(&player, stale, [queued()]).decision).await;
            assert!(conflicts_over(&outcome, &Aggregate::Player(player.clone())), "{stale:?}: {outcome:?}");
        }
    }
    assert_eq!(other.player(&player).await.unwrap(), before);
    assert_eq!(all(&log, &of_player(&player)).await.len(), 2);
}

pub(crate) async fn a_stale_head_of_a_session_is_a_conflict_and_stores_nothing(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let session = new_session();
    log.append(prepare(session, Head::default(), [matched(&[])]).decision).await.unwrap();
    let first = log.session(session).await.unwrap().head;
    log.append(prepare(session, first, [pod_requested(1)]).decision).await.unwrap();
    let before = log.session(session).await.unwrap();
    for stale in [Head::default(), first] {
        for log in [&log, &other] {
            // An event type that the session already has, one that it does not have yet, and both.
            for events in [vec![pod_requested(1)], vec![pod_failed(1)], vec![pod_requested(1), pod_failed(1)]] {
                let outcome = log.append(prepare(session, stale, events).decision).await;
                assert!(conflicts_over(&outcome, &Aggregate::Session(session)), "{stale:?}: {outcome:?}");
            }
        }
    }
    assert_eq!(other.session(session).await.unwrap(), before);
    assert_eq!(all(&log, &of_session(session)).await.len(), 2);
}

pub(crate) async fn a_head_that_never_existed_is_a_conflict(fixture: impl Fixture) {
    let log = fixture.open().await;
    let (player, session) = (new_player(), new_session());
    let end = log.append(prepare(new_session(), Head::default(), [matched(&[])]).decision).await.unwrap()[0];
    // The sequence of an event of another aggregate, and one that does not exist yet.
    for seq in [end, end + 1_000_000] {
        let head = Head { seq, n: 1 };
        let outcome = log.append(prepare(&player, head, [queued()]).decision).await;
        assert!(conflicts_over(&outcome, &Aggregate::Player(player.clone())), "{seq}: {outcome:?}");
        let outcome = log.append(prepare(session, head, [pod_requested(1), pod_failed(1)]).decision).await;
        assert!(conflicts_over(&outcome, &Aggregate::Session(session)), "{seq}: {outcome:?}");
        // A new session has nothing that could conflict, so the conflict names the player.
        let several = Prepared::empty().and(session, Head::default(), [matched(&[])]).and(&player, head, [queued()]);
        let outcome = log.append(several.decision).await;
        assert!(conflicts_over(&outcome, &Aggregate::Player(player.clone())), "{seq}: {outcome:?}");
    }
    assert_eq!(log.player(&player).await.unwrap(), Player::default());
    assert_eq!(log.session(session).await.unwrap(), Session::default());
}

pub(crate) async fn a_decision_on_several_aggregates_is_stored_completely_or_not_at_all(fixture: impl Fixture) {
    let log = fixture.open().await;
    // Any one of the aggregates has changed.
    for changed in 0..4 {
        let (players, session) = ([new_player(), new_player(), new_player()], new_session());
        let mut heads = Vec::new();
        for player in &players {
            log.append(prepare(player, Head::default(), [queued()]).decision).await.unwrap();
            heads.push(log.player(player).await.unwrap().head);
        }
        let expected = match players.get(changed) {
            Some(player) => {
                log.append(prepare(player, heads[changed], [cancelled()]).decision).await.unwrap();
                Aggregate::Player(player.clone())
            }
            None => {
                log.append(prepare(session, Head::default(), [matched(&[])]).decision).await.unwrap();
                Aggregate::Session(session)
            }
        };
        let before = snapshot(&log, &players, session).await;
        let events = [matched(&players), pod_requested(1)];
        let decision = Prepared::empty()
            .and(&players[0], heads[0], [cancelled()])
            .and(session, Head::default(), events)
            .and(&players[1], heads[1], [cancelled()])
            .and(&players[2], heads[2], [cancelled()]);
        let outcome = log.append(decision.decision).await;
        assert!(conflicts_over(&outcome, &expected), "{expected}: {outcome:?}");
        assert_eq!(snapshot(&log, &players, session).await, before);
    }
}

async fn snapshot<L: Load>(log: &L, players: &[PlayerId], session: SessionId) -> (Vec<Player>, Session) {
    let mut read = Vec::new();
    for player in players {
        read.push(log.player(player).await.unwrap());
    }
    (read, log.session(session).await.unwrap())
}

pub(crate) async fn one_of_several_simultaneous_decisions_on_a_player_is_stored(fixture: impl Fixture) {
    // Two handles of one process, and one of another process.
    let mine = fixture.open().await;
    let logs = [mine.clone(), mine, fixture.open().await];
    let begin = logs[0].end("garage.>").await + 1;
    for round in 0..ROUNDS {
        let player = new_player();
        let mut head = Head::default();
        for n in 1..=2 {
            let tries: Vec<Prepared> = logs.iter().map(|_| prepare(&player, head, [queued()])).collect();
            let appends = logs.iter().zip(&tries).map(|(log, prepared)| log.append(prepared.decision.clone()));
            // Decisions on other players, so that there are commits of several decisions.
            let others: Vec<Prepared> = (0..6).map(|_| prepare(&new_player(), Head::default(), [queued()])).collect();
            let beside = logs.iter().cycle().zip(&others).map(|(log, prepared)| log.append(prepared.decision.clone()));
            let (outcomes, others) = tokio::join!(join_all(appends), join_all(beside));
            assert!(others.iter().all(Result::is_ok), "round {round}: {others:?}");
            assert_eq!(count_stored(&outcomes), 1, "round {round}: {outcomes:?}");
            let Player { head: new, last, .. } = logs[0].player(&player).await.unwrap();
            let winner = outcomes.iter().position(Result::is_ok).unwrap();
            assert_eq!(vec![last.unwrap().id], tries[winner].ids(), "round {round}");
            assert_eq!(new.n, n);
            head = new;
        }
        assert_eq!(all(&logs[0], &of_player(&player)).await.len(), 2, "round {round}");
    }
    assert_one_decision_per_aggregate_and_commit(&logs[0], begin).await;
}

pub(crate) async fn one_of_several_simultaneous_decisions_on_a_session_is_stored(fixture: impl Fixture) {
    let mine = fixture.open().await;
    let logs = [mine.clone(), mine, fixture.open().await];
    let begin = logs[0].end("garage.>").await + 1;
    for round in 0..ROUNDS {
        let session = new_session();
        // Different events and therefore different subjects. Only the filter shows that they belong to one session.
        let first = || vec![vec![matched(&[])], vec![matched(&[]), pod_requested(1)], vec![pod_requested(1)]];
        let second = || vec![vec![pod_requested(2)], vec![pod_failed(2)], vec![pod_requested(2), pod_failed(2)]];
        let mut head = Head::default();
        for events in [first(), second()] {
            let before = logs[0].session(session).await.unwrap().history.len();
            let tries: Vec<Prepared> = events.into_iter().map(|events| prepare(session, head, events)).collect();
            let appends = logs.iter().zip(&tries).map(|(log, prepared)| log.append(prepared.decision.clone()));
            let outcomes = join_all(appends).await;
            assert_eq!(count_stored(&outcomes), 1, "round {round}: {outcomes:?}");
            let read = logs[0].session(session).await.unwrap();
            let winner = outcomes.iter().position(Result::is_ok).unwrap();
            let added: Vec<_> = read.history[before..].iter().map(|one| one.id).collect();
            assert_eq!(added, tries[winner].ids(), "round {round}");
            head = read.head;
        }
    }
    assert_one_decision_per_aggregate_and_commit(&logs[0], begin).await;
}

/// Checks that each outcome is either stored or a conflict, and returns how many are stored.
fn count_stored(outcomes: &[Result<Vec<u64>, AppendError>]) -> usize {
    let conflicts = outcomes.iter().filter(|outcome| matches!(outcome, Err(AppendError::Conflict(_)))).count();
    let stored = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(stored + conflicts, outcomes.len(), "neither stored nor a conflict: {outcomes:?}");
    stored
}

pub(crate) async fn among_many_simultaneous_decisions_only_the_stale_ones_conflict(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let mut decisions = Vec::new();
    for i in 0..200 {
        let (player, second, session) = (new_player(), new_player(), new_session());
        let stale = i % 5 == 3;
        if stale {
            // Either the player, which comes first, or the session, which comes last, has changed.
            let change = match i % 2 {
                0 => prepare(&player, Head::default(), [queued()]),
                _ => prepare(session, Head::default(), [matched(&[])]),
            };
            other.append(change.decision).await.unwrap();
        }
        let prepared = Prepared::empty()
            .and(&player, Head::default(), [queued()])
            .and(&second, Head::default(), [queued()])
            .and(session, Head::default(), [matched(&[]), pod_requested(1)]);
        decisions.push((stale, second, session, prepared));
    }
    let outcomes = join_all(decisions.iter().map(|(.., prepared)| log.append(prepared.decision.clone()))).await;
    for ((stale, second, session, prepared), outcome) in decisions.iter().zip(outcomes) {
        let (player, session) = (log.player(second).await.unwrap(), log.session(*session).await.unwrap());
        if *stale {
            assert!(matches!(outcome, Err(AppendError::Conflict(_))), "{outcome:?}");
            assert_eq!(player, Player::default());
            assert!(session.history.len() <= 1, "{session:?}");
        } else {
            let sequences = outcome.unwrap();
            let stored = [player.head.seq, session.history[0].seq, session.history[1].seq];
            assert_eq!(stored, sequences[1..]);
            let ids = [player.last.unwrap().id, session.history[0].id, session.history[1].id];
            assert_eq!(ids, prepared.ids()[1..]);
        }
    }
}

pub(crate) async fn no_player_is_ever_in_two_matches(fixture: impl Fixture) {
    const PLAYERS: usize = 120;
    // Two matchmakers, each with two tasks. Each matchmaker believes that it is the only one.
    let (one, two) = (fixture.open().await, fixture.open().await);
    let logs = [one.clone(), two.clone(), one, two];
    let begin = logs[0].end("garage.>").await + 1;
    let players: Vec<PlayerId> = (0..PLAYERS).map(|_| new_player()).collect();
    join_all(players.iter().map(async |player| {
        let decision = prepare(player, Head::default(), [queued()]).decision;
        logs[0].append(decision).await.unwrap();
    }))
    .await;

    // All tasks try to match A with B, B with C, C with D and so on at the same time, until no match is possible.
    let mut stored: BTreeMap<SessionId, [PlayerId; 2]> = BTreeMap::new();
    let mut conflicts = 0;
    loop {
        let seen: Vec<Player> = join_all(players.iter().map(async |id| logs[0].player(id).await.unwrap())).await;
        let mut tries = Vec::new();
        for (log, (pair, seen)) in
            logs.iter().flat_map(|log| players.windows(2).zip(seen.windows(2)).map(move |pair| (log, pair)))
        {
            let session = new_session();
            let (Some(first), Some(second)) = (join(&seen[0], session), join(&seen[1], session)) else { continue };
            let pair = [pair[0].clone(), pair[1].clone()];
            let decision = Prepared::empty()
                .and(session, Head::default(), [matched(&pair)])
                .and(&pair[0], seen[0].head, [first])
                .and(&pair[1], seen[1].head, [second])
                .decision;
            tries.push((log, session, pair, decision));
        }
        if tries.is_empty() {
            break;
        }
        let appends = tries.iter().map(|(log, _, _, decision)| log.append(decision.clone()));
        let outcomes = join_all(appends).await;
        let before = stored.len();
        for ((_, session, pair, _), outcome) in tries.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => drop(stored.insert(session, pair)),
                Err(AppendError::Conflict(_)) => conflicts += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(stored.len() > before, "no match was stored, although one was possible");
    }
    assert!(conflicts > 0, "there was no conflict");

    // Check the log, independently of the answers.
    let mut partners: HashMap<SessionId, Vec<PlayerId>> = HashMap::new();
    for player in &players {
        let history = all(&logs[0], &of_player(player)).await;
        let mut state = State::New;
        for (message, n) in history.iter().zip(1..) {
            let event: player::Event = message.envelope.event().unwrap();
            assert_eq!(message.envelope.n, n, "{player}: {history:?}");
            let legal = match (&state, &event) {
                (State::New | State::Idle { .. }, player::Event::Queued(_)) => true,
                (State::Waiting(waiting), player::Event::Matched(matched)) => waiting.ticket == matched.ticket,
                _ => false,
            };
            assert!(legal, "{player} in {state:?} has {event:?}");
            state = State::evolve(&event);
        }
        if let Some(session) = state.session() {
            partners.entry(session).or_default().push(player.clone());
        }
    }
    for (session, pair) in &stored {
        let read = logs[0].session(*session).await.unwrap();
        let members: Vec<PlayerId> = read.state.matched().unwrap().players().cloned().collect();
        assert_eq!((&members, read.history.len()), (&pair.to_vec(), 1));
        assert_eq!(partners.remove(session), Some(members));
    }
    assert_eq!(partners, HashMap::new(), "players were matched in sessions whose append failed");
    assert_one_decision_per_aggregate_and_commit(&logs[0], begin).await;
}

/// The event that puts a player into a session; `None` if the player cannot be matched.
fn join(player: &Player, session: SessionId) -> Option<player::Event> {
    let ticket = player.state.ticket()?;
    player::decide(&player.state, Command::Match { ticket, session, team: "red".into(), requeue: true }).ok()
}

/// Checks that no commit holds two decisions on one aggregate, because the server would store both. Each decision has a
/// correlation of its own.
async fn assert_one_decision_per_aggregate_and_commit<L: Raw>(log: &L, begin: u64) {
    let end = log.end("garage.>").await;
    let mut decisions: HashMap<(String, Aggregate), HashSet<uuid::Uuid>> = HashMap::new();
    for message in range(log, "garage.>", begin, end).await {
        let Some(commit) = message.commit else { continue };
        let aggregate = Aggregate::of(&message.subject).unwrap();
        decisions.entry((commit, aggregate)).or_default().insert(message.envelope.correlation);
    }
    assert!(!decisions.is_empty(), "there was no commit of several messages");
    for ((commit, aggregate), decisions) in decisions {
        assert_eq!(decisions.len(), 1, "decisions on {aggregate} in commit {commit}");
    }
}

fn conflicts_over(outcome: &Result<Vec<u64>, AppendError>, aggregate: &Aggregate) -> bool {
    matches!(outcome, Err(AppendError::Conflict(changed)) if changed == aggregate)
}
