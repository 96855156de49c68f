use std::{collections::BTreeMap, path::Path};

use garage_events::rules::Rules;
use garage_events::{
    env::Simulated,
    failure::Code,
    id::TicketId,
    log::{Append, Load},
    player::{Event, Queued},
    sim::SimLog,
    subject::PLAYERS,
};
use garage_rules::rule_set::Value;
use time::macros::datetime;

use super::*;
use crate::domain::{Bounds, propose};

const START: time::OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

struct Always;

impl Lead for Always {
    fn compete(&self) {}

    fn leads(&self, _: &QueueName) -> bool {
        true
    }

    async fn changed(&mut self) {
        std::future::pending::<()>().await;
    }
}

fn queues() -> Queues {
    let queues = "[queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\nregions = { eu = 120, us = 120 }";
    Queues::parse(queues, Path::new("queues.toml")).unwrap()
}

/// A player's name, rank and latencies, and for how many seconds their ticket is valid.
type Ticket<'a> = (&'a str, i32, &'a [(&'a str, u32)], i64);

/// A log with these players, queued in this order. The matchmaker has read it.
async fn matching(
    queue: &str,
    players: &[Ticket<'_>],
) -> (Matching<SimLog<Simulated>, Simulated, Always>, SimLog<Simulated>, Simulated) {
    let env = Simulated::at(START);
    let log = SimLog::new(env.clone());
    let mut matching = Matching::new(log.clone(), env.clone(), queues(), Always);
    for player in players {
        self::queue(&mut matching, &log, &env, queue, player).await;
    }
    (matching, log, env)
}

/// Queues a player. The matchmaker reads it.
async fn queue(
    matching: &mut Matching<SimLog<Simulated>, Simulated, Always>,
    log: &SimLog<Simulated>,
    env: &Simulated,
    queue: &str,
    (name, rank, latencies, valid_s): &Ticket<'_>,
) {
    let latencies = latencies.iter().map(|(region, latency)| (region.parse().unwrap(), *latency));
    let queued = Queued {
        ticket: TicketId::new(env.id()),
        queue: queue.parse().unwrap(),
        rank: *rank,
        latencies: latencies.collect(),
        attributes: BTreeMap::new(),
        group: Vec::new(),
        waiting_since: START,
        expires_at: START + time::Duration::seconds(*valid_s),
        requeues: 0,
        absences: 0,
        party: None,
    };
    let player: PlayerId = name.parse().unwrap();
    let event = Event::from(queued);
    let decision = Decision::new(env, env.id(), None).change(
        env,
        Aggregate::Player(player.clone()),
        Head::default(),
        [event.clone()],
    );
    let seq = log.append(decision).await.unwrap()[0];
    matching.pool.fold(&player, Head { seq, n: 1 }, &event);
}

/// Decides until there is nothing left to decide, and waits for the outcomes.
async fn cycle(matching: &mut Matching<SimLog<Simulated>, Simulated, Always>) {
    while matching.decide() == Next::Decide {}
    assert!(!matching.settle().await);
}

#[tokio::test]
async fn a_time_out_counts_the_other_players_by_what_excluded_them() {
    // After the whole time-out, ranks may differ by 1,600 points.
    let players: [Ticket<'_>; 4] = [
        ("ann", 0, &[("eu", 20)], 120),
        ("bob", 1_601, &[("eu", 20)], 300),
        ("carl", 0, &[("us", 20)], 300),
        ("dora", -1_601, &[("eu", 20)], 300),
    ];
    let (mut matching, log, env) = matching("ranked", &players).await;
    env.advance(time::Duration::seconds(120));
    cycle(&mut matching).await;
    let ann = log.player(&"ann".parse().unwrap()).await.unwrap();
    let Event::TimedOut(timed_out) = ann.last.unwrap().event else { panic!("did not time out") };
    let excluded = [("RankDistance".to_owned(), 2), ("no-common-region".to_owned(), 1)].into();
    assert_eq!(timed_out.considered, Some(Candidates { count: 3, eligible: 0, excluded }));
    assert_eq!(log.messages(PLAYERS).len(), 5, "the others still wait");
}

#[tokio::test]
async fn a_time_out_in_a_removed_queue_has_no_candidates() {
    let (mut matching, log, env) = matching("removed", &[("ann", 0, &[("eu", 20)], 120)]).await;
    env.advance(time::Duration::seconds(120));
    cycle(&mut matching).await;
    let ann = log.player(&"ann".parse().unwrap()).await.unwrap();
    let Event::TimedOut(timed_out) = ann.last.unwrap().event else { panic!("did not time out") };
    assert_eq!(timed_out.considered, None);
}

#[tokio::test]
async fn a_match_records_its_rules_and_the_latencies_that_decided_its_region() {
    let ann: Ticket<'_> = ("ann", 0, &[("eu", 40), ("us", 115)], 120);
    let bob: Ticket<'_> = ("bob", 0, &[("eu", 60), ("us", 59)], 120);
    for (players, latencies) in
        [([ann, bob], r#"{"eu":[40,60],"us":[115,59]}"#), ([bob, ann], r#"{"eu":[60,40],"us":[59,115]}"#)]
    {
        let (mut matching, log, _) = matching("ranked", &players).await;
        cycle(&mut matching).await;
        let ann = log.player(&"ann".parse().unwrap()).await.unwrap();
        let session = log.session(ann.state.session().unwrap()).await.unwrap();
        let [matched] = &session.history[..] else { panic!("{session:?}") };
        let session::Event::Matched(matched) = &matched.event else { panic!("{matched:?}") };
        let rules = Rules::built_in(2, 200, 120).unwrap().id.to_string();
        assert_eq!((matched.region.as_str(), &matched.rules, matched.pool_seq), ("eu", &rules, 2));
        assert_eq!((matched.clock, &matched.skipped[..]), (START, &[][..]));
        assert_eq!(serde_json::to_string(&matched.latencies).unwrap(), latencies);
    }
}

/// The session of a player, with what its match recorded.
async fn matched(log: &SimLog<Simulated>, player: &str) -> session::Matched {
    let player = log.player(&player.parse().unwrap()).await.unwrap();
    let session = log.session(player.state.session().expect("the player is matched")).await.unwrap();
    let session::Event::Matched(matched) = session.history[0].event.clone() else { panic!("{session:?}") };
    matched
}

#[tokio::test]
async fn a_match_is_decided_while_another_is_being_stored_and_records_its_tickets() {
    let eu: &[(&str, u32)] = &[("eu", 20)];
    let (mut matching, log, env) = matching("ranked", &[("ann", 0, eu, 120), ("bob", 0, eu, 120)]).await;
    assert!(matches!(matching.decide(), Next::Wait(_)));
    // Its decision is not stored yet, and these players come.
    queue(&mut matching, &log, &env, "ranked", &("carl", 0, eu, 120)).await;
    queue(&mut matching, &log, &env, "ranked", &("dora", 0, eu, 120)).await;
    assert!(matches!(matching.decide(), Next::Wait(_)));
    assert!(!matching.settle().await);
    assert_eq!(matched(&log, "ann").await.left_out, [0; 0]);
    let second = matched(&log, "carl").await;
    let names: Vec<_> = second.players().map(ToString::to_string).collect();
    assert_eq!(names, ["carl", "dora"]);
    assert_eq!((second.pool_seq, second.left_out), (4, vec![2, 3]), "ann and bob, three and two events before");
}

#[tokio::test]
async fn a_player_whose_match_could_not_be_stored_is_matched_with_somebody_else() {
    let eu: &[(&str, u32)] = &[("eu", 20)];
    let players = [("ann", 0, eu, 120), ("bob", 0, eu, 120), ("carl", 0, eu, 120)];
    let (mut matching, log, env) = matching("ranked", &players).await;
    // The matchmaker has not read yet that ann has cancelled.
    let ann: PlayerId = "ann".parse().unwrap();
    let found = log.player(&ann).await.unwrap();
    let player::State::Waiting(Queued { ticket, queue, .. }) = found.state.clone() else { panic!("{found:?}") };
    let cancelled = player::Cancelled { ticket, queue, reason: player::CancelReason::Player, absences: 0, party: None };
    let decision = Decision::new(&env, env.id(), None);
    let decision = decision.change(&env, Aggregate::Player(ann.clone()), found.head, [Event::from(cancelled)]);
    log.append(decision).await.unwrap();
    cycle(&mut matching).await;
    assert!(log.player(&ann).await.unwrap().state.session().is_none());
    cycle(&mut matching).await;
    let names: Vec<_> = matched(&log, "bob").await.players().map(ToString::to_string).collect();
    assert_eq!(names, ["bob", "carl"]);
}

#[tokio::test]
async fn a_cycle_waits_if_too_many_tickets_would_be_left_out() {
    let eu: &[(&str, u32)] = &[("eu", 20)];
    let names: Vec<String> = (0..=MAX_LEFT_OUT + 1).map(|number| format!("p{number}")).collect();
    let players: Vec<Ticket<'_>> = names.iter().map(|name| (name.as_str(), 0, eu, 120)).collect();
    let (mut matching, log, env) = matching("ranked", &players).await;
    while matching.decide() == Next::Decide {}
    for name in ["late", "later"] {
        queue(&mut matching, &log, &env, "ranked", &(name, 0, eu, 120)).await;
    }
    assert_eq!(matching.decide(), Next::Wait(IDLE));
    assert!(!matching.settle().await);
    // The outcomes are known, but not read yet.
    assert_eq!(matching.decide(), Next::Wait(IDLE));
    assert!(log.player(&"late".parse().unwrap()).await.unwrap().state.session().is_none());
}

#[tokio::test]
async fn time_outs_do_not_keep_others_from_being_matched() {
    let eu: &[(&str, u32)] = &[("eu", 20)];
    let names: Vec<String> = (0..3 * MAX_LEFT_OUT).map(|number| format!("p{number}")).collect();
    let far = |(name, rank): (&'static str, i32)| (name, rank, eu, 300);
    let late = names.iter().zip(1..).map(|(name, number)| (name.as_str(), number * 5_000, eu, 120));
    let players: Vec<Ticket<'_>> = late.chain([far(("ann", 0)), far(("bob", 0))]).collect();
    let (mut matching, log, env) = matching("ranked", &players).await;
    env.advance(time::Duration::seconds(120));
    matching.decide();
    assert!(!matching.settle().await);
    assert_eq!(matched(&log, "ann").await.left_out, [0; 0], "nobody can be matched with a ticket that has expired");
    assert_eq!(matching.pool.expired(&"ranked".parse().unwrap(), env.now(), 1).len(), 0);
}

/// Two players whose ranks differ by 300 points. They can be matched when the older one has waited for 30 s.
#[tokio::test]
async fn a_clock_that_is_set_back_makes_no_ticket_younger_or_older() {
    let eu: &[(&str, u32)] = &[("eu", 20)];
    let (mut matching, log, env) = matching("ranked", &[("ann", 0, eu, 120)]).await;
    env.advance(time::Duration::seconds(30));
    matching.decide();
    // By a moment: the later time counts, and the match records it.
    env.advance(time::Duration::milliseconds(-500));
    queue(&mut matching, &log, &env, "ranked", &("bob", 300, eu, 120)).await;
    cycle(&mut matching).await;
    assert_eq!(matched(&log, "ann").await.clock, START + time::Duration::seconds(30));
    // By an hour: tickets that are valid at the new time are matched.
    env.advance(time::Duration::hours(1));
    matching.decide();
    env.advance(time::Duration::hours(-1));
    for name in ["carl", "dora"] {
        queue(&mut matching, &log, &env, "ranked", &(name, 0, eu, 120)).await;
    }
    cycle(&mut matching).await;
    assert_eq!(matched(&log, "carl").await.clock, env.now());
}

/// Two teams of two. Each pair of teams has about the same skill.
const TEAMS: &str = r#"{
    "ruleLanguageVersion": "1.0",
    "playerAttributes": [{"name": "skill", "type": "number"}],
    "teams": [{"name": "red", "minPlayers": 2, "maxPlayers": 2}, {"name": "blue", "minPlayers": 2, "maxPlayers": 2}],
    "rules": [{
        "name": "EqualTeams", "type": "distance", "maxDistance": 10,
        "measurements": ["avg(teams[red].players.attributes[skill])"],
        "referenceValue": "avg(teams[blue].players.attributes[skill])"
    }]
}"#;

/// Waiting players of `teams`: the groups of players and the skill of each. Groups without a name are single players.
fn waiting(groups: &[&[(&str, f64)]]) -> Pool {
    let (env, mut pool, mut seq) = (Simulated::at(START), Pool::default(), 0);
    for group in groups {
        let ticket = TicketId::new(env.id());
        let names: Vec<PlayerId> = group.iter().map(|(name, _)| name.parse().unwrap()).collect();
        for (name, skill) in *group {
            seq += 1;
            let queued = Queued {
                ticket,
                queue: "teams".parse().unwrap(),
                rank: 0,
                latencies: [("eu".parse().unwrap(), 20)].into(),
                attributes: [("skill".to_owned(), Value::Number(*skill))].into(),
                group: if names.len() > 1 { names.clone() } else { Vec::new() },
                waiting_since: START,
                expires_at: START + time::Duration::MINUTE,
                requeues: 0,
                absences: 0,
                party: None,
            };
            pool.fold(&name.parse().unwrap(), Head { seq, n: 1 }, &Event::from(queued));
        }
    }
    pool
}

/// The matches as texts: the players of each team.
fn proposed(pool: &Pool) -> Vec<String> {
    let rules = Rules::read(TEAMS, 120).unwrap();
    let queue = "teams".parse().unwrap();
    let proposals = propose(&rules, Bounds::default(), pool.tickets(&queue), 0, START);
    let team = |team: &crate::domain::matches::Team| {
        let players: Vec<_> = team.players.iter().map(|entry| entry.player.to_string()).collect();
        format!("{} {}", team.name, players.join(" "))
    };
    proposals.iter().map(|one| one.teams.iter().map(team).collect::<Vec<_>>().join(", ")).collect()
}

#[test]
fn a_group_is_in_one_team() {
    let pool = waiting(&[&[("ann", 10.0), ("bob", 50.0)], &[("carl", 32.0)], &[("dora", 30.0)]]);
    assert_eq!(proposed(&pool), ["red ann bob, blue carl dora"]);
}

#[test]
fn teams_of_unequal_skill_are_not_matched() {
    let pool = waiting(&[&[("ann", 10.0), ("bob", 50.0)], &[("carl", 42.0), ("dora", 39.0)]]);
    assert_eq!(proposed(&pool), [""; 0]);
    // Single players can be put together in other ways.
    let pool = waiting(&[&[("ann", 10.0)], &[("bob", 50.0)], &[("carl", 25.0)], &[("dora", 30.0)]]);
    assert_eq!(proposed(&pool), ["red ann bob, blue carl dora"]);
}

#[test]
fn an_incomplete_group_is_not_matched_and_a_group_with_newer_state_is_left_out() {
    let mut pool = waiting(&[&[("ann", 10.0), ("bob", 50.0)], &[("carl", 32.0)], &[("dora", 30.0)]]);
    let queue = "teams".parse().unwrap();
    let bob: PlayerId = "bob".parse().unwrap();
    let ticket = pool.ticket_of(&bob).unwrap().ticket();
    pool.mark_gone(&bob, 9);
    assert_eq!((pool.tickets(&queue).count(), pool.left_out(&queue, START, 9)), (2, Some(vec![2])));
    // Between two events of one commit, the group is incomplete.
    let cancelled = player::Cancelled {
        ticket,
        queue: queue.clone(),
        reason: player::CancelReason::Player,
        absences: 0,
        party: None,
    };
    pool.fold(&bob, Head { seq: 9, n: 2 }, &cancelled.into());
    assert_eq!((pool.tickets(&queue).count(), pool.left_out(&queue, START, 9)), (2, Some(vec![])));
}

#[tokio::test]
async fn a_match_of_a_queue_with_acceptance_is_proposed_with_its_deadline_and_its_tickets_leave_the_pool() {
    let eu: &[(&str, u32)] = &[("eu", 20)];
    let (mut matching, log, env) = matching("ranked", &[("ann", 0, eu, 120), ("bob", 0, eu, 120)]).await;
    let text = "[queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\nregions = { eu = 120 }\nrequeue = false\n\
        acceptance_s = 20\nacceptance_names_decliner = true";
    matching.queues = Queues::parse(text, Path::new("queues.toml")).unwrap();
    env.advance(time::Duration::SECOND);
    cycle(&mut matching).await;
    let accept_by = START + time::Duration::seconds(21);
    let ann = log.player(&"ann".parse().unwrap()).await.unwrap();
    let player::State::Proposed(proposed) = &ann.state else { panic!("{ann:?}") };
    assert_eq!((proposed.accept_by, proposed.players, proposed.may_requeue), (accept_by, 2, false));
    assert_eq!(proposed.queued.waiting_since, START);
    let session = log.session(proposed.session).await.unwrap();
    let [begun] = &session.history[..] else { panic!("{session:?}") };
    let session::Event::Proposed(begun) = &begun.event else { panic!("{begun:?}") };
    assert_eq!((begun.accept_by, begun.names_decliner), (accept_by, true));
    assert_eq!(begun.matched.players().map(PlayerId::as_str).collect::<Vec<_>>(), ["ann", "bob"]);
    // The tickets cannot be matched again. They do not expire either.
    env.advance(time::Duration::minutes(5));
    cycle(&mut matching).await;
    assert_eq!(log.messages(PLAYERS).len(), 4);
    // A ticket that waits again can be matched with another one.
    let requeue = player::Command::Requeue { session: proposed.session, reason: Code::NotAccepted, now: START };
    let event = player::decide(&ann.state, requeue).unwrap();
    matching.pool.fold(&"ann".parse().unwrap(), Head { seq: 9, n: 3 }, &event);
    assert!(matching.pool.ticket_of(&"ann".parse().unwrap()).is_some());
}
