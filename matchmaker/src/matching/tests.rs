use std::{collections::BTreeMap, path::Path};

use garage_events::rules::Rules;
use garage_events::{
    env::Simulated,
    id::TicketId,
    log::{Append, Load},
    player::{Event, Queued},
    sim::SimLog,
    subject::PLAYERS,
};
use garage_rules::rule_set::Value;
use time::macros::datetime;

use super::*;

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
    for (name, rank, latencies, valid_s) in players {
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
        };
        let player: PlayerId = name.parse().unwrap();
        let event = Event::from(queued);
        let decision = Decision::new(&env, env.id(), None).change(
            &env,
            Aggregate::Player(player.clone()),
            Head::default(),
            [event.clone()],
        );
        let seq = log.append(decision).await.unwrap()[0];
        matching.pool.fold(&player, Head { seq, n: 1 }, &event);
    }
    (matching, log, env)
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
    assert_eq!(matching.cycle().await, Cycle { busy: true, failed: false });
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
    matching.cycle().await;
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
        matching.cycle().await;
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
    let proposals = propose(&rules, &pool.tickets(&queue).all, 0, START, 10);
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
    let ticket = pool.waiting(&queue).next().unwrap().queued.ticket;
    pool.mark_gone(&bob, 9);
    let Tickets { all, skipped } = pool.tickets(&queue);
    assert_eq!((all.len(), skipped), (2, vec![ticket]));
    // Between two events of one commit, the group is incomplete.
    let cancelled =
        player::Cancelled { ticket, queue: queue.clone(), reason: player::CancelReason::Player, absences: 0 };
    pool.fold(&bob, Head { seq: 9, n: 2 }, &cancelled.into());
    let Tickets { all, skipped } = pool.tickets(&queue);
    assert_eq!((all.len(), skipped), (2, vec![]));
}
