//! A history for the log: matches as Garage plays them, appended through the log itself.

use std::collections::BTreeMap;

use anyhow::Context;
use futures::{StreamExt, stream};
use garage_events::{
    env::{Env, System},
    game::{Car, Loadout, Placing, Stats},
    id::{PlayerId, SessionId, TicketId},
    jetstream::JetStreamLog,
    log::{Append, Decision, Head},
    player::{self, Address, Ending, PlayerMatched, Queued, Released},
    session::{Closed, Event, Finished, Matched, Member, Opened, PodReady, PodRequested, PodScheduled, Team},
    subject::Aggregate,
};

/// Events of one match of two, queueing included.
pub(super) const MATCH: u32 = 15;

/// Pairs that play at a time. A commit takes a thousand messages, and two are on their way.
const AT_ONCE: usize = 2_000;

/// Pairs of new players. Each pair plays its matches one after the other; then both wait, and no two who wait are of one
/// rank.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pairs<'a> {
    /// What their names begin with.
    pub(super) name: &'a str,
    /// How many.
    pub(super) count: u32,
    /// The rank of the first player; each further one is of the next rank.
    pub(super) first_rank: i32,
    /// Matches of each pair.
    pub(super) matches: u32,
}

impl Pairs<'_> {
    /// The events that they bring about.
    pub(super) fn events(&self) -> u64 {
        u64::from(self.count) * u64::from(self.matches * MATCH + 2)
    }
}

/// Two players who always play each other.
struct Pair([Player; 2]);

struct Player {
    id: PlayerId,
    head: Head,
}

/// Has pairs of players play, and tells `progress` of events as they are stored.
pub(super) async fn play(log: &JetStreamLog, pairs: Pairs<'_>, mut progress: impl FnMut(u32)) -> anyhow::Result<()> {
    let Pairs { name, count, first_rank, matches } = pairs;
    let mut playing = stream::iter(0..count)
        .map(async |number| {
            let rank = first_rank + i32::try_from(number * 2)?;
            let mut pair = Pair::new(name, number)?;
            for _ in 0..matches {
                pair.play(log, rank).await?;
            }
            pair.queue(log, [rank, rank + 1]).await
        })
        .buffer_unordered(AT_ONCE);
    while let Some(played) = playing.next().await {
        played?;
        progress(matches * MATCH + 2);
    }
    Ok(())
}

/// Has two new players wait who fit each other, and nobody else.
pub(super) async fn mates(log: &JetStreamLog, name: &str) -> anyhow::Result<()> {
    let rank = *player::RANKS.end();
    Pair::new(name, 0)?.queue(log, [rank; 2]).await.map(drop)
}

impl Pair {
    fn new(name: &str, number: u32) -> anyhow::Result<Self> {
        let player =
            |side| anyhow::Ok(Player { id: format!("{name}-{number}-{side}").parse()?, head: Head::default() });
        Ok(Self([player("a")?, player("b")?]))
    }

    /// Both queue; their wishes.
    async fn queue(&mut self, log: &JetStreamLog, ranks: [i32; 2]) -> anyhow::Result<Vec<Queued>> {
        let mut ticket_requests = Vec::new();
        for (player, rank) in self.0.iter_mut().zip(ranks) {
            let now = System.now();
            let ticket_request = Queued {
                ticket: TicketId::new(System.id()),
                queue: "ranked".parse()?,
                rank,
                latencies: [("eu".parse()?, 20), ("us".parse()?, 90)].into(),
                attributes: BTreeMap::new(),
                waiting_since: now,
                // Nobody is to time out while this is measured.
                expires_at: now + time::Duration::DAY,
            };
            let decision = Decision::new(&System, ticket_request.ticket.uuid(), None);
            append(log, decision, std::slice::from_mut(player), [ticket_request.clone()]).await?;
            ticket_requests.push(ticket_request);
        }
        Ok(ticket_requests)
    }

    async fn play(&mut self, log: &JetStreamLog, rank: i32) -> anyhow::Result<()> {
        let id = SessionId::new(System.id());
        let ticket_requests = self.queue(log, [rank; 2]).await?;
        let decide = |head, events: Vec<Event>| {
            Decision::new(&System, id.uuid(), None).change(&System, Aggregate::Session(id), head, events)
        };

        let matched = self.matched(&ticket_requests)?;
        let teams = matched.teams.iter().map(|team| team.name.clone());
        let notified = ticket_requests.iter().zip(teams).map(|(ticket_request, team)| {
            let Queued { ticket, queue, waiting_since, .. } = ticket_request.clone();
            player::Matched { ticket, queue, session: id, team, waiting_since }
        });
        let notified: Vec<_> = notified.collect();
        let mut seq = append(log, decide(Head::default(), vec![matched.into()]), &mut self.0, notified).await?;

        let address =
            Address { ip: [10, 0, 0, 1].into(), tcp_port: 30_001, udp_port: 30_002, fingerprint: "f".repeat(64) };
        let scheduled =
            PodScheduled { attempt: 1, pod: format!("game-{id}-1"), node: "node-1".into(), public_ip: address.ip };
        let ready = PodReady { attempt: 1, tcp_port: address.tcp_port, udp_port: address.udp_port };
        let nobody = || [] as [Queued; 0];
        for (n, event) in (1..).zip([self.requested()?.into(), scheduled.into(), ready.into()]) {
            seq = append(log, decide(Head { seq, n }, vec![event]), &mut [], nobody()).await?;
        }
        let notified = ticket_requests.iter().map(|ticket_request| {
            let Queued { ticket, queue, .. } = ticket_request.clone();
            PlayerMatched { ticket, queue, session: id, address: address.clone() }
        });
        let opened = Opened { attempt: 1, address: address.clone() };
        let notified: Vec<_> = notified.collect();
        seq = append(log, decide(Head { seq, n: 4 }, vec![opened.into()]), &mut self.0, notified).await?;

        let results: Vec<_> = self.0.iter().zip(1..).map(|(player, place)| placing(player, place)).collect();
        let why = Ending::Finished;
        let notified: Vec<_> = ticket_requests
            .iter()
            .map(|ticket_request| Released { ticket: ticket_request.ticket, session: id, why })
            .collect();
        let ended = vec![Finished { attempt: 1, results: results.clone() }.into(), Closed { why, results }.into()];
        append(log, decide(Head { seq, n: 5 }, ended), &mut self.0, notified).await.map(drop)
    }

    fn matched(&self, ticket_requests: &[Queued]) -> anyhow::Result<Matched> {
        let teams = self.0.iter().zip(ticket_requests).zip(1_u32..).map(|((player, ticket_request), number)| Team {
            name: number.to_string(),
            players: vec![Member {
                player: player.id.clone(),
                ticket: ticket_request.ticket,
                rank: ticket_request.rank,
            }],
        });
        Ok(Matched {
            queue: "ranked".parse()?,
            region: "eu".parse()?,
            teams: teams.collect(),
            rules: "band-region-fifo/1".into(),
            pool_seq: 0,
            clock: System.now(),
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
            // As long as one of 2,048 bits.
            public_key: "k".repeat(451),
            fingerprint: "f".repeat(64),
        })
    }
}

fn placing(player: &Player, place: u32) -> Placing {
    Placing { player: player.id.clone(), place, time_ms: Some(12_000 + u64::from(place)) }
}

/// Appends a decision with what players are told by it; the sequence of its first message.
async fn append<E: Into<player::Event>>(
    log: &JetStreamLog,
    mut decision: Decision,
    players: &mut [Player],
    notified: impl IntoIterator<Item = E>,
) -> anyhow::Result<u64> {
    for (player, event) in players.iter().zip(notified) {
        let aggregate = Aggregate::Player(player.id.clone());
        decision = decision.change(&System, aggregate, player.head, [event.into()]);
    }
    let sequences = log.append(decision).await?;
    // They are the last of it.
    for (player, seq) in players.iter_mut().rev().zip(sequences.iter().rev()) {
        player.head = Head { seq: *seq, n: player.head.n + 1 };
    }
    sequences.first().copied().context("a decision without a message")
}
