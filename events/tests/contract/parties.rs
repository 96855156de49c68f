//! Parties under simultaneous decisions: nobody is in two parties, and a party never has more members than places.

use std::collections::BTreeMap;

use futures::future::{join_all, try_join_all};
use garage_events::{
    env::{Env, System},
    id::{PartyId, PlayerId},
    log::{Append, AppendError, Head, Load, Log, Party, Player},
    party::{self, Command, MAX_MEMBERS, Proof, Readiness, Rejection},
    player::{self, CancelReason, Queued},
    subject::Aggregate,
};

use crate::{
    fixture::{Fixture, all},
    samples::{new_player, prepare, queued},
};

/// How often each race is repeated.
const ROUNDS: usize = 10;

pub(crate) async fn the_last_event_of_a_party_is_loaded(fixture: impl Fixture) {
    let (log, other) = (fixture.open().await, fixture.open().await);
    let id = PartyId::new(System.id());
    assert_eq!(log.party(id).await.unwrap(), Party::default());
    let ann = new_player();
    act(&log, id, Command::Create { by: ann.clone() }, &ann).await.unwrap();
    act(&log, id, Command::Invite { by: ann.clone(), player: new_player() }, &ann).await.unwrap();
    for log in [&log, &other] {
        let Party { state, head, last } = log.party(id).await.unwrap();
        let last = last.unwrap();
        assert_eq!((state, head), (party::State::evolve(&last.event), Head { seq: last.seq, n: 2 }));
        assert!(matches!(last.event, party::Event::Invited(_)), "{last:?}");
        assert_eq!(log.player(&ann).await.unwrap().state.party(), Some(id));
    }
    // Both events of the party have the same subject, and the first one shares a commit with the player's event.
    let stored = all(&log, &Aggregate::Party(id).filter()).await;
    assert!(stored.iter().all(|stored| stored.subject == format!("garage.party.{id}")), "{stored:?}");
    assert_eq!(stored[0].commit, all(&log, &Aggregate::Player(ann).filter()).await[0].commit);
}

pub(crate) async fn two_events_of_a_party_in_one_decision_are_refused(fixture: impl Fixture) {
    let log = fixture.open().await;
    let (id, ann) = (PartyId::new(System.id()), new_player());
    let players = BTreeMap::new();
    let command = Command::Create { by: ann };
    let created = party::decide(id, &party::State::New, &players, command, System.now()).unwrap().event;
    let twice = prepare(Aggregate::Party(id), Head::default(), [created.clone(), created]);
    let outcome = log.append(twice.decision).await;
    assert!(matches!(outcome, Err(AppendError::Refused(_))), "{outcome:?}");
}

pub(crate) async fn of_several_players_who_join_the_last_place_at_once_one_gets_it(fixture: impl Fixture) {
    let logs = [fixture.open().await, fixture.open().await];
    let (id, leader) = (PartyId::new(System.id()), new_player());
    act(&logs[0], id, Command::Create { by: leader.clone() }, &leader).await.unwrap();
    let players: Vec<_> = (0..MAX_MEMBERS + 3).map(|_| new_player()).collect();
    let code = "00".repeat(32);
    act(&logs[0], id, Command::ChangeCode { by: leader.clone(), sha256: code.clone() }, &leader).await.unwrap();
    let joins = players.iter().zip(logs.iter().cycle()).map(async |(player, log)| {
        let command = Command::Join { player: player.clone(), proof: Proof::Code(code.clone()) };
        act(log, id, command, player).await
    });
    let outcomes = join_all(joins).await;
    let joined = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let full = outcomes.iter().filter(|outcome| **outcome == Err(Rejection::Full)).count();
    assert_eq!((joined, full), (MAX_MEMBERS - 1, 4), "{outcomes:?}");
    for (player, outcome) in players.iter().zip(outcomes) {
        let own = logs[0].player(player).await.unwrap().state.party();
        assert_eq!(own, outcome.is_ok().then_some(id), "{player}");
    }
    assert_agree(&logs[0], id).await;
}

pub(crate) async fn a_player_who_joins_two_parties_at_once_is_in_one(fixture: impl Fixture) {
    let logs = [fixture.open().await, fixture.open().await];
    for round in 0..ROUNDS {
        let player = new_player();
        let parties = [PartyId::new(System.id()), PartyId::new(System.id())];
        for id in parties {
            let leader = new_player();
            act(&logs[0], id, Command::Create { by: leader.clone() }, &leader).await.unwrap();
            act(&logs[0], id, Command::Invite { by: leader.clone(), player: player.clone() }, &leader).await.unwrap();
        }
        let join = || Command::Join { player: player.clone(), proof: Proof::Invitation };
        let [one, other] = &logs;
        let outcomes = tokio::join!(act(one, parties[0], join(), &player), act(other, parties[1], join(), &player));
        let own = logs[0].player(&player).await.unwrap().state.party();
        let (joined, rejection) = match outcomes {
            (Ok(()), Err(rejection)) => (parties[0], rejection),
            (Err(rejection), Ok(())) => (parties[1], rejection),
            both => panic!("round {round}: {both:?}"),
        };
        assert_eq!(own, Some(joined), "round {round}");
        let expected = player::Rejection::InParty { party: joined };
        assert_eq!(rejection, Rejection::Player { player, rejection: expected }, "round {round}");
        for id in parties {
            assert_agree(&logs[0], id).await;
        }
    }
}

pub(crate) async fn a_member_who_leaves_while_the_party_queues_waits_with_nobody(fixture: impl Fixture) {
    let logs = [fixture.open().await, fixture.open().await];
    for round in 0..ROUNDS {
        let (id, ann, bob) = (PartyId::new(System.id()), new_player(), new_player());
        act(&logs[0], id, Command::Create { by: ann.clone() }, &ann).await.unwrap();
        act(&logs[0], id, Command::Invite { by: ann.clone(), player: bob.clone() }, &ann).await.unwrap();
        act(&logs[0], id, Command::Join { player: bob.clone(), proof: Proof::Invitation }, &bob).await.unwrap();
        let ready = Command::SetReady { player: bob.clone(), ready: Some(Readiness::default()) };
        act(&logs[0], id, ready, &bob).await.unwrap();
        let player::Event::Queued(request) = queued() else { unreachable!() };
        let both: BTreeMap<PlayerId, Queued> = [&ann, &bob].map(|player| (player.clone(), request.clone())).into();
        let queue = Command::Queue { by: ann.clone(), queued: both };
        let [one, other] = &logs;
        let leave = Command::Leave { player: bob.clone() };
        let (queued, left) = tokio::join!(act(one, id, queue, &ann), act(other, id, leave, &bob));
        left.unwrap();
        let [ann, bob] =
            try_join_all([&ann, &bob].map(|player| logs[0].player(player))).await.unwrap().try_into().unwrap();
        assert!(
            bob.state.party().is_none() && !matches!(bob.state, player::State::Waiting(_)),
            "round {round}: {bob:?}"
        );
        match (queued, &ann.state) {
            // Bob left before: Ann queued alone.
            (Ok(()), player::State::Waiting(waiting)) => {
                assert!(waiting.group.is_empty(), "round {round}: {waiting:?}");
            }
            // Bob left after: the ticket of both is cancelled.
            (Ok(()), _) => {
                let Some(player::Event::Cancelled(cancelled)) = ann.last.map(|last| last.event) else {
                    panic!("round {round}: Ann neither waits nor was cancelled")
                };
                assert_eq!((cancelled.reason, cancelled.party), (CancelReason::Party, Some(id)), "round {round}");
            }
            (Err(rejection), state) => panic!("round {round}: {rejection} in {state:?}"),
        }
        assert_agree(&logs[0], id).await;
    }
}

/// Decides on a party and appends the decision, until there is no conflict.
async fn act<L: Log>(log: &L, id: PartyId, command: Command, by: &PlayerId) -> Result<(), Rejection> {
    loop {
        let Party { state, head, .. } = log.party(id).await.unwrap();
        let members = state.open(System.now());
        let names: Vec<_> = members.iter().flat_map(|party| party.players()).chain([by]).cloned().collect();
        let loads = names.into_iter().map(async |player| {
            let found = log.player(&player).await?;
            Ok::<_, garage_events::log::ReadError>((player, found))
        });
        let players: BTreeMap<PlayerId, Player> = try_join_all(loads).await.unwrap().into_iter().collect();
        let decided = party::decide(id, &state, &players, command.clone(), System.now())?;
        match log.append(decided.decision(&System, (id, head), &players, None)).await {
            Ok(_) => return Ok(()),
            Err(AppendError::Conflict(_) | AppendError::Busy(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Asserts that each member is in the party according to their own events.
async fn assert_agree<L: Load>(log: &L, id: PartyId) {
    let party = log.party(id).await.unwrap().state.open(System.now()).expect("the party is open");
    assert!(party.members.len() <= MAX_MEMBERS, "{party:?}");
    for player in party.players() {
        assert_eq!(log.player(player).await.unwrap().state.party(), Some(id), "{player}");
    }
}
