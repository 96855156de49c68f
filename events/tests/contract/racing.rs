//! Who decided on what is no longer so is told, and leaves no trace: this keeps a player out of two matches.

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
        Made, cancelled, made, matched, new_player, new_session, of_player, of_session, pod_failed, pod_requested,
        queued,
    },
};

/// How often the server gets the chance to be too late.
const ROUNDS: usize = 60;

pub(crate) async fn a_stale_head_of_a_player_is_a_conflict_and_stores_nothing(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let player = new_player();
    log.append(made(&player, Head::default(), [queued()]).decision).await.unwrap();
    let first = log.player(&player).await.unwrap().head;
    log.append(made(&player, first, [cancelled()]).decision).await.unwrap();
    let before = log.player(&player).await.unwrap();
    for stale in [Head::default(), first] {
        for log in [&log, &other] {
            let outcome = log.append(made(&player, stale, [queued()]).decision).await;
            assert!(conflicts_over(&outcome, &Aggregate::Player(player.clone())), "{stale:?}: {outcome:?}");
        }
    }
    assert_eq!(other.player(&player).await.unwrap(), before);
    assert_eq!(all(&log, &of_player(&player)).await.len(), 2);
}

pub(crate) async fn a_stale_head_of_a_session_is_a_conflict_and_stores_nothing(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let session = new_session();
    log.append(made(session, Head::default(), [matched(&[])]).decision).await.unwrap();
    let first = log.session(session).await.unwrap().head;
    log.append(made(session, first, [pod_requested(1)]).decision).await.unwrap();
    let before = log.session(session).await.unwrap();
    for stale in [Head::default(), first] {
        for log in [&log, &other] {
            // Of a type that the session has, of one that it does not have yet, and of both.
            for events in [vec![pod_requested(1)], vec![pod_failed(1)], vec![pod_requested(1), pod_failed(1)]] {
                let outcome = log.append(made(session, stale, events).decision).await;
                assert!(conflicts_over(&outcome, &Aggregate::Session(session)), "{stale:?}: {outcome:?}");
            }
        }
    }
    assert_eq!(other.session(session).await.unwrap(), before);
    assert_eq!(all(&log, &of_session(session)).await.len(), 2);
}

pub(crate) async fn a_head_that_never_was_is_a_conflict(fixture: impl Fixture) {
    let log = fixture.open().await;
    let (player, session) = (new_player(), new_session());
    let end = log.append(made(new_session(), Head::default(), [matched(&[])]).decision).await.unwrap()[0];
    // The sequence of another's event, and one that is still to come.
    for seq in [end, end + 1_000_000] {
        let head = Head { seq, n: 1 };
        let outcome = log.append(made(&player, head, [queued()]).decision).await;
        assert!(conflicts_over(&outcome, &Aggregate::Player(player.clone())), "{seq}: {outcome:?}");
        let outcome = log.append(made(session, head, [pod_requested(1), pod_failed(1)]).decision).await;
        assert!(conflicts_over(&outcome, &Aggregate::Session(session)), "{seq}: {outcome:?}");
        // Beside a new session, where nothing is expected, it is the player who is not where he should be.
        let several = Made::nothing().and(session, Head::default(), [matched(&[])]).and(&player, head, [queued()]);
        let outcome = log.append(several.decision).await;
        assert!(conflicts_over(&outcome, &Aggregate::Player(player.clone())), "{seq}: {outcome:?}");
    }
    assert_eq!(log.player(&player).await.unwrap(), Player::default());
    assert_eq!(log.session(session).await.unwrap(), Session::default());
}

pub(crate) async fn of_a_decision_on_several_all_is_stored_or_nothing(fixture: impl Fixture) {
    let log = fixture.open().await;
    // Whichever of the aggregates it is that has moved.
    for moved in 0..4 {
        let (players, session) = ([new_player(), new_player(), new_player()], new_session());
        let mut heads = Vec::new();
        for player in &players {
            log.append(made(player, Head::default(), [queued()]).decision).await.unwrap();
            heads.push(log.player(player).await.unwrap().head);
        }
        let culprit = match players.get(moved) {
            Some(player) => {
                log.append(made(player, heads[moved], [cancelled()]).decision).await.unwrap();
                Aggregate::Player(player.clone())
            }
            None => {
                log.append(made(session, Head::default(), [matched(&[])]).decision).await.unwrap();
                Aggregate::Session(session)
            }
        };
        let before = snapshot(&log, &players, session).await;
        let events = [matched(&players), pod_requested(1)];
        let decision = Made::nothing()
            .and(&players[0], heads[0], [cancelled()])
            .and(session, Head::default(), events)
            .and(&players[1], heads[1], [cancelled()])
            .and(&players[2], heads[2], [cancelled()]);
        let outcome = log.append(decision.decision).await;
        assert!(conflicts_over(&outcome, &culprit), "{culprit}: {outcome:?}");
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

pub(crate) async fn of_two_decisions_of_one_instant_on_a_player_one_is_stored(fixture: impl Fixture) {
    // Two of one process, and one of another.
    let mine = fixture.open().await;
    let logs = [mine.clone(), mine, fixture.open().await];
    let begin = logs[0].end("garage.>").await + 1;
    for round in 0..ROUNDS {
        let player = new_player();
        let mut head = Head::default();
        for n in 1..=2 {
            let tries: Vec<Made> = logs.iter().map(|_| made(&player, head, [queued()])).collect();
            let appends = logs.iter().zip(&tries).map(|(log, made)| log.append(made.decision.clone()));
            // Others', so that there are commits for them to meet in.
            let others: Vec<Made> = (0..6).map(|_| made(&new_player(), Head::default(), [queued()])).collect();
            let beside = logs.iter().cycle().zip(&others).map(|(log, made)| log.append(made.decision.clone()));
            let (outcomes, others) = tokio::join!(join_all(appends), join_all(beside));
            assert!(others.iter().all(Result::is_ok), "round {round}: {others:?}");
            assert_eq!(one_wins(&outcomes), 1, "round {round}: {outcomes:?}");
            let Player { head: new, last, .. } = logs[0].player(&player).await.unwrap();
            let winner = outcomes.iter().position(Result::is_ok).unwrap();
            assert_eq!(vec![last.unwrap().id], tries[winner].ids(), "round {round}");
            assert_eq!(new.n, n);
            head = new;
        }
        assert_eq!(all(&logs[0], &of_player(&player)).await.len(), 2, "round {round}");
    }
    at_most_one_decision_on_an_aggregate_in_each_commit(&logs[0], begin).await;
}

pub(crate) async fn of_two_decisions_of_one_instant_on_a_session_one_is_stored(fixture: impl Fixture) {
    let mine = fixture.open().await;
    let logs = [mine.clone(), mine, fixture.open().await];
    let begin = logs[0].end("garage.>").await + 1;
    for round in 0..ROUNDS {
        let session = new_session();
        // With different events each time: different subjects, of which only the filter knows that they are one session.
        let begun = || vec![vec![matched(&[])], vec![matched(&[]), pod_requested(1)], vec![pod_requested(1)]];
        let then = || vec![vec![pod_requested(2)], vec![pod_failed(2)], vec![pod_requested(2), pod_failed(2)]];
        let mut head = Head::default();
        for events in [begun(), then()] {
            let before = logs[0].session(session).await.unwrap().history.len();
            let tries: Vec<Made> = events.into_iter().map(|events| made(session, head, events)).collect();
            let appends = logs.iter().zip(&tries).map(|(log, made)| log.append(made.decision.clone()));
            let outcomes = join_all(appends).await;
            assert_eq!(one_wins(&outcomes), 1, "round {round}: {outcomes:?}");
            let read = logs[0].session(session).await.unwrap();
            let winner = outcomes.iter().position(Result::is_ok).unwrap();
            let added: Vec<_> = read.history[before..].iter().map(|one| one.id).collect();
            assert_eq!(added, tries[winner].ids(), "round {round}");
            head = read.head;
        }
    }
    at_most_one_decision_on_an_aggregate_in_each_commit(&logs[0], begin).await;
}

/// How many were stored, when all others were told of a conflict.
fn one_wins(outcomes: &[Result<Vec<u64>, AppendError>]) -> usize {
    let conflicts = outcomes.iter().filter(|outcome| matches!(outcome, Err(AppendError::Conflict(_)))).count();
    let stored = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(stored + conflicts, outcomes.len(), "neither stored nor a conflict: {outcomes:?}");
    stored
}

pub(crate) async fn of_many_decisions_of_one_instant_the_stale_ones_conflict_and_the_others_are_stored(
    fixture: impl Fixture,
) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let mut decisions = Vec::new();
    for i in 0..200 {
        let (player, second, session) = (new_player(), new_player(), new_session());
        let stale = i % 5 == 3;
        if stale {
            // Either the player that comes first, or the session that comes last, has moved.
            let moves = match i % 2 {
                0 => made(&player, Head::default(), [queued()]),
                _ => made(session, Head::default(), [matched(&[])]),
            };
            other.append(moves.decision).await.unwrap();
        }
        let made = Made::nothing()
            .and(&player, Head::default(), [queued()])
            .and(&second, Head::default(), [queued()])
            .and(session, Head::default(), [matched(&[]), pod_requested(1)]);
        decisions.push((stale, second, session, made));
    }
    let outcomes = join_all(decisions.iter().map(|(.., made)| log.append(made.decision.clone()))).await;
    for ((stale, second, session, made), outcome) in decisions.iter().zip(outcomes) {
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
            assert_eq!(ids, made.ids()[1..]);
        }
    }
}

pub(crate) async fn no_player_is_ever_in_two_matches(fixture: impl Fixture) {
    const PLAYERS: usize = 120;
    // Two matchmakers that each believe to be the only one, and each of two tasks.
    let (one, two) = (fixture.open().await, fixture.open().await);
    let logs = [one.clone(), two.clone(), one, two];
    let begin = logs[0].end("garage.>").await + 1;
    let players: Vec<PlayerId> = (0..PLAYERS).map(|_| new_player()).collect();
    join_all(players.iter().map(async |player| {
        let decision = made(player, Head::default(), [queued()]).decision;
        logs[0].append(decision).await.unwrap();
    }))
    .await;

    // All want A with B, B with C, C with D and so on, all at once, until nobody is left who could be matched.
    let mut stored: BTreeMap<SessionId, [PlayerId; 2]> = BTreeMap::new();
    let mut conflicts = 0;
    loop {
        let seen: Vec<Player> = join_all(players.iter().map(async |id| logs[0].player(id).await.unwrap())).await;
        let mut tries = Vec::new();
        for (log, (pair, seen)) in logs
            .iter()
            .flat_map(|log| players.windows(2).zip(seen.windows(2)).map(move |ticket_request| (log, ticket_request)))
        {
            let session = new_session();
            let (Some(first), Some(second)) = (join(&seen[0], session), join(&seen[1], session)) else { continue };
            let pair = [pair[0].clone(), pair[1].clone()];
            let decision = Made::nothing()
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
        assert!(stored.len() > before, "nobody was matched, and somebody could have been");
    }
    assert!(conflicts > 0, "no two wishes collided");

    // What the log says, whatever was answered.
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
        let notified: Vec<PlayerId> = read.state.matched().unwrap().players().cloned().collect();
        assert_eq!((&notified, read.history.len()), (&pair.to_vec(), 1));
        assert_eq!(partners.remove(session), Some(notified));
    }
    assert_eq!(partners, HashMap::new(), "matched in sessions that nobody was told of");
    at_most_one_decision_on_an_aggregate_in_each_commit(&logs[0], begin).await;
}

/// His part in a match, if he can have one.
fn join(player: &Player, session: SessionId) -> Option<player::Event> {
    let ticket = player.state.ticket()?;
    player::decide(&player.state, Command::Match { ticket, session, team: "red".into() }).ok()
}

/// With two of them in one, the server would take both. Each decision of these cases has a correlation of its own.
async fn at_most_one_decision_on_an_aggregate_in_each_commit<L: Raw>(log: &L, begin: u64) {
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
    matches!(outcome, Err(AppendError::Conflict(moved)) if moved == aggregate)
}
