use garage_events::{
    env::Simulated,
    id::TicketId,
    log::{Append, Load},
    player::{Event, Excluded, Queued},
    queue::Queue,
    sim::SimLog,
    subject::PLAYERS,
};
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
    let regions = [("eu", 120), ("us", 120)].map(|(region, max)| (region.parse().unwrap(), max)).into();
    let queue = Queue { players: 2, rank_band: 200, timeout_s: 120, client_rank: false, requeue: true, regions };
    Queues { queues: [("ranked".parse().unwrap(), queue)].into(), measured_at: BTreeMap::new() }
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
    let players: [Ticket<'_>; 5] = [
        ("ann", 0, &[("eu", 20)], 120),
        ("bob", 200, &[("eu", 20)], 300),
        ("carl", 0, &[("us", 20)], 300),
        ("dora", 400, &[("eu", 20)], 300),
        ("emil", 0, &[("eu", 500), ("mars", 1)], 300),
    ];
    let (mut matching, log, env) = matching("ranked", &players).await;
    env.advance(time::Duration::seconds(120));
    assert_eq!(matching.cycle().await, Cycle { busy: true, failed: false });
    let ann = log.player(&"ann".parse().unwrap()).await.unwrap();
    let Event::TimedOut(timed_out) = ann.last.unwrap().event else { panic!("did not time out") };
    let excluded = Excluded { rank: 2, region: 1, latency: 1 };
    assert_eq!(timed_out.candidates, Some(Candidates { count: 4, eligible: 0, excluded }));
    assert_eq!(log.messages(PLAYERS).len(), 6, "the others still wait");
}

#[tokio::test]
async fn a_time_out_in_a_removed_queue_has_no_candidates() {
    let (mut matching, log, env) = matching("removed", &[("ann", 0, &[("eu", 20)], 120)]).await;
    env.advance(time::Duration::seconds(120));
    matching.cycle().await;
    let ann = log.player(&"ann".parse().unwrap()).await.unwrap();
    let Event::TimedOut(timed_out) = ann.last.unwrap().event else { panic!("did not time out") };
    assert_eq!(timed_out.candidates, None);
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
        assert_eq!((matched.region.as_str(), &*matched.rules), ("eu", "band-region-fifo/2"));
        assert_eq!(serde_json::to_string(&matched.latencies).unwrap(), latencies);
    }
}
