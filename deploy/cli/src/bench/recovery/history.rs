//! Writes a realistic history: the events of matches, appended through the log's own interface.

use std::collections::BTreeMap;

use anyhow::Context;
use futures::{StreamExt, stream};
use garage_events::{
    env::{Env, System},
    game::{Car, Loadout, Placing, Ports, Stats},
    id::{PlayerId, SessionId},
    jetstream::JetStreamLog,
    log::{Append, Decision, Head},
    player::{self, Address, Ending, PlayerMatched, Queued, Released},
    rules::Rules,
    session::{Closed, Event, Finished, Matched, Member, Opened, PodReady, PodRequested, PodScheduled, Team},
    subject::Aggregate,
};
use garage_rules::rule_set::Value;

use crate::bench::queued;

/// Events of one match of two players, including their queueing.
pub(super) const MATCH: u32 = 15;

/// Pairs that play at the same time. A commit takes up to 1,000 messages, and two commits are in flight.
const CONCURRENCY: usize = 2_000;

/// Pairs of new players. Each pair plays its matches one after the other. Then both players queue and wait. No two
/// waiting players have the same skill.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pairs<'a> {
    /// The prefix of the players' names.
    pub(super) name: &'a str,
    /// Number of pairs.
    pub(super) count: u32,
    /// The skill of the first player. Each further player has a skill that is higher by two.
    pub(super) first_skill: i32,
    /// Number of matches of each pair.
    pub(super) matches: u32,
}

impl Pairs<'_> {
    /// The number of events that they cause.
    pub(super) fn events(&self) -> u64 {
        u64::from(self.count) * u64::from(self.matches * MATCH + 2)
    }
}

/// Two players that always play against each other.
struct Pair([Player; 2]);

struct Player {
    id: PlayerId,
    head: Head,
}

/// Plays the matches of all pairs. Calls `progress` with the number of events stored since the last call.
pub(super) async fn play(log: &JetStreamLog, pairs: Pairs<'_>, mut progress: impl FnMut(u32)) -> anyhow::Result<()> {
    let Pairs { name, count, first_skill, matches } = pairs;
    let mut playing = stream::iter(0..count)
        .map(async |number| {
            let skill = first_skill + i32::try_from(number * 4)?;
            let mut pair = Pair::new(name, number)?;
            for _ in 0..matches {
                pair.play(log, skill).await?;
            }
            pair.queue(log, [skill, skill + 2]).await
        })
        .buffer_unordered(CONCURRENCY);
    while let Some(played) = playing.next().await {
        played?;
        progress(matches * MATCH + 2);
    }
    Ok(())
}

/// Queues two new players of the same skill, which no other waiting player has.
pub(super) async fn queue_pair(log: &JetStreamLog, name: &str) -> anyhow::Result<()> {
    Pair::new(name, 0)?.queue(log, [-10; 2]).await.map(drop)
}

impl Pair {
    fn new(name: &str, number: u32) -> anyhow::Result<Self> {
        let player =
            |side| anyhow::Ok(Player { id: format!("{name}-{number}-{side}").parse()?, head: Head::default() });
        Ok(Self([player("a")?, player("b")?]))
    }

    /// Queues both players. Returns their `Queued` events.
    async fn queue(&mut self, log: &JetStreamLog, skills: [i32; 2]) -> anyhow::Result<Vec<Queued>> {
        let mut tickets = Vec::new();
        for (player, skill) in self.0.iter_mut().zip(skills) {
            let queued = queued([("skill".to_owned(), Value::Number(skill.into()))].into())?;
            let decision = Decision::new(&System, queued.ticket.uuid(), None);
            append(log, decision, std::slice::from_mut(player), [queued.clone()]).await?;
            tickets.push(queued);
        }
        Ok(tickets)
    }

    async fn play(&mut self, log: &JetStreamLog, skill: i32) -> anyhow::Result<()> {
        let id = SessionId::new(System.id());
        let tickets = self.queue(log, [skill; 2]).await?;
        let decide = |head, events: Vec<Event>| {
            Decision::new(&System, id.uuid(), None).change(&System, Aggregate::Session(id), head, events)
        };

        let matched = self.matched(&tickets)?;
        let teams = matched.teams.iter().map(|team| team.name.clone());
        let player_events = tickets.iter().zip(teams).map(|(queued, team)| {
            let Queued { ticket, queue, waiting_since, .. } = queued.clone();
            player::Matched { ticket, queue, session: id, team, waiting_since, requeue: None, absences: 0, party: None }
        });
        let player_events: Vec<_> = player_events.collect();
        let mut seq = append(log, decide(Head::default(), vec![matched.into()]), &mut self.0, player_events).await?;

        let address = Address {
            ip: [10, 0, 0, 1].into(),
            ports: Ports { tcp_port: 30_001, udp_port: 30_002 },
            fingerprint: "f".repeat(64),
        };
        let scheduled =
            PodScheduled { attempt: 1, pod: format!("game-{id}-1"), node: "node-1".into(), public_ip: address.ip };
        let ready = PodReady { attempt: 1, ports: address.ports };
        let no_players = || [] as [Queued; 0];
        for (n, event) in (1..).zip([self.requested()?.into(), scheduled.into(), ready.into()]) {
            seq = append(log, decide(Head { seq, n }, vec![event]), &mut [], no_players()).await?;
        }
        let player_events = tickets.iter().map(|queued| {
            let Queued { ticket, queue, .. } = queued.clone();
            PlayerMatched { ticket, queue, session: id, address: address.clone(), absences: 0, party: None }
        });
        let opened = Opened { attempt: 1, address: address.clone() };
        let player_events: Vec<_> = player_events.collect();
        seq = append(log, decide(Head { seq, n: 4 }, vec![opened.into()]), &mut self.0, player_events).await?;

        let results: Vec<_> = self.0.iter().zip(1..).map(|(player, place)| placing(player, place)).collect();
        let why = Ending::Finished;
        let player_events: Vec<_> = tickets
            .iter()
            .map(|queued| Released { ticket: queued.ticket, session: id, why, reason: None, absences: 0, party: None })
            .collect();
        let ended = vec![
            Finished { attempt: 1, results: results.clone(), teams: Vec::new() }.into(),
            Closed { why, results, teams: Vec::new() }.into(),
        ];
        append(log, decide(Head { seq, n: 5 }, ended), &mut self.0, player_events).await.map(drop)
    }

    fn matched(&self, tickets: &[Queued]) -> anyhow::Result<Matched> {
        let teams = self.0.iter().zip(tickets).zip(1_u32..).map(|((player, queued), number)| Team {
            name: number.to_string(),
            players: vec![Member { player: player.id.clone(), ticket: queued.ticket, rank: queued.rank }],
        });
        Ok(Matched {
            queue: "ranked".parse()?,
            region: "eu".parse()?,
            teams: teams.collect(),
            latencies: Default::default(),
            rules: Rules::built_in(2, 1, 3_600).map_err(anyhow::Error::msg)?.id.to_string(),
            pool_seq: 0,
            clock: System.now(),
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
        })
    }

    fn requested(&self) -> anyhow::Result<PodRequested> {
        let car = Car {
            id: "comet".parse()?,
            model: "models/comet.glb".into(),
            texture: "textures/comet/red.ktx2".into(),
            stats: Stats { power_kw: 150.0, mass_kg: 1_300.0, grip: 1.0, drag_m2: 0.7 },
        };
        let loadout = |player: &Player| Loadout { player: player.id.clone(), car: car.clone(), items: BTreeMap::new() };
        Ok(PodRequested {
            attempt: 1,
            region: "eu".parse()?,
            loadouts: self.0.iter().map(loadout).collect(),
            // The length of an RSA key of 2,048 bits in PEM.
            public_key: "k".repeat(451),
            fingerprint: "f".repeat(64),
            ends_at: Some(System.now() + time::Duration::minutes(15)),
        })
    }
}

fn placing(player: &Player, place: u32) -> Placing {
    Placing { player: player.id.clone(), place, time_ms: Some(12_000 + u64::from(place)), joined: true }
}

/// Appends a decision, together with one event for each player. Returns the sequence of its first message.
async fn append<E: Into<player::Event>>(
    log: &JetStreamLog,
    mut decision: Decision,
    players: &mut [Player],
    player_events: impl IntoIterator<Item = E>,
) -> anyhow::Result<u64> {
    for (player, event) in players.iter().zip(player_events) {
        let aggregate = Aggregate::Player(player.id.clone());
        decision = decision.change(&System, aggregate, player.head, [event.into()]);
    }
    let sequences = log.append(decision).await?;
    // The players' events are the last of the decision.
    for (player, seq) in players.iter_mut().rev().zip(sequences.iter().rev()) {
        player.head = Head { seq: *seq, n: player.head.n + 1 };
    }
    sequences.first().copied().context("a decision without a message")
}
