//! Compares a pool with a naive model that has no indexes.

use std::collections::{BTreeMap, BTreeSet};

use garage_events::player::{CancelReason, Cancelled};
use proptest::prelude::*;
use time::Duration;

use super::*;

/// The players of each group. The others are alone.
const GROUPS: [&[&str]; 4] = [&["a", "b"], &["c", "d", "e"], &["f"], &["g"]];

const QUEUES: [&str; 2] = ["ranked", "casual"];

#[derive(Debug, Clone)]
enum Step {
    /// A commit queues the players of a group, or ends their tickets. Its events are in the log, and later steps fold them
    /// one by one.
    Commit {
        group: usize,
        queue: usize,
        waits: bool,
        since: i64,
        valid: i64,
    },
    /// The next event of the log is folded.
    Fold,
    Claim(usize),
    Release(usize),
    /// The outcome of a commit: the player's newest event in the log, although it is not folded yet.
    Learn(usize),
    /// The answer of a node that lags behind.
    LearnOld(usize),
    Gone(usize),
    Drain(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let player = 0..7_usize;
    prop_oneof![
        6 => (0..GROUPS.len(), 0..2_usize, prop::bool::weighted(0.7), 0..5_i64, 1..5_i64)
            .prop_map(|(group, queue, waits, since, valid)| Step::Commit { group, queue, waits, since, valid }),
        12 => Just(Step::Fold),
        2 => player.clone().prop_map(Step::Claim),
        2 => player.clone().prop_map(Step::Release),
        2 => player.clone().prop_map(Step::Learn),
        1 => player.clone().prop_map(Step::LearnOld),
        2 => player.prop_map(Step::Gone),
        2 => (0..2_usize).prop_map(Step::Drain),
    ]
}

/// A waiting player of the model, by which it is equal to one of the pool.
type Waiting = (PlayerId, u64, Queued);

#[derive(Debug, Default)]
struct Model {
    /// The whole log.
    log: Vec<(PlayerId, Event)>,
    folded: BTreeMap<PlayerId, Waiting>,
    ahead: BTreeMap<PlayerId, (u64, Option<Waiting>)>,
    claims: BTreeSet<PlayerId>,
    seq: u64,
}

fn waiting(player: &PlayerId, seq: u64, event: &Event) -> Option<Waiting> {
    match event {
        Event::Queued(queued) => Some((player.clone(), seq, queued.clone())),
        _ => None,
    }
}

impl Model {
    /// The newest event of a player in the log.
    fn last(&self, player: &PlayerId) -> Option<(u64, &Event)> {
        let at = self.log.iter().rposition(|(other, _)| other == player)?;
        Some((at as u64 + 1, &self.log[at].1))
    }

    /// The newest known states of the players who wait in a queue, in the order of their places.
    fn newest(&self, queue: &QueueName) -> Vec<&Waiting> {
        let folded = self.folded.values().filter(|(player, ..)| !self.ahead.contains_key(player));
        let ahead = self.ahead.values().filter_map(|(_, entry)| entry.as_ref());
        let mut newest: Vec<_> = folded.chain(ahead).filter(|(.., queued)| queued.queue == *queue).collect();
        newest.sort_by_key(|(_, seq, queued)| (queued.waiting_since, *seq));
        newest
    }

    /// The tickets of the fold in a queue, the oldest first.
    fn tickets(&self, queue: &QueueName) -> Vec<(TicketId, Vec<&Waiting>)> {
        let mut entries: Vec<_> = self.folded.values().filter(|(.., queued)| queued.queue == *queue).collect();
        entries.sort_by_key(|(_, seq, queued)| (queued.waiting_since, *seq));
        let mut tickets: Vec<(TicketId, Vec<&Waiting>)> = Vec::new();
        for entry in entries {
            match tickets.iter_mut().find(|(ticket, _)| *ticket == entry.2.ticket) {
                Some((_, players)) => players.push(entry),
                None => tickets.push((entry.2.ticket, vec![entry])),
            }
        }
        tickets
    }

    fn is_hidden(&self, players: &[&Waiting]) -> bool {
        players.iter().any(|(player, ..)| self.ahead.contains_key(player) || self.claims.contains(player))
    }

    fn available(&self, queue: &QueueName) -> Vec<(TicketId, Vec<PlayerId>)> {
        let mut tickets = self.tickets(queue);
        tickets.retain(|(_, players)| players.len() == players[0].2.group.len().max(1) && !self.is_hidden(players));
        let ids = |players: Vec<&Waiting>| players.into_iter().map(|(player, ..)| player.clone()).collect();
        tickets.into_iter().map(|(ticket, players)| (ticket, ids(players))).collect()
    }

    fn left_out(&self, queue: &QueueName, now: OffsetDateTime) -> Vec<u64> {
        let tickets = self.tickets(queue).into_iter().filter(|(_, players)| players[0].2.expires_at > now);
        let hidden = tickets.filter_map(|(_, players)| {
            let hidden = players.into_iter().filter(|player| self.is_hidden(&[player]));
            hidden.map(|(_, seq, _)| self.seq - seq).max()
        });
        hidden.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn is_claimed(&self, entry: &Waiting) -> bool {
        self.claims.contains(&entry.0) || entry.2.group.iter().any(|player| self.claims.contains(player))
    }

    fn expired(&self, queue: &QueueName, now: OffsetDateTime) -> Vec<Vec<PlayerId>> {
        let mut tickets: BTreeMap<TicketId, Vec<&Waiting>> = BTreeMap::new();
        for entry in self.newest(queue).into_iter().filter(|entry| entry.2.expires_at <= now) {
            tickets.entry(entry.2.ticket).or_default().push(entry);
        }
        let mut tickets: Vec<_> = tickets.into_values().filter(|players| !self.is_claimed(players[0])).collect();
        tickets.sort_by_key(|players| players.iter().map(|(_, seq, queued)| (queued.expires_at, *seq)).min());
        let ids = |players: Vec<&Waiting>| players.into_iter().map(|(player, ..)| player.clone()).collect();
        tickets.into_iter().map(ids).collect()
    }

    fn next_expiry(&self, queue: &QueueName) -> Option<OffsetDateTime> {
        let newest = self.newest(queue).into_iter().filter(|entry| !self.is_claimed(entry));
        newest.map(|(.., queued)| queued.expires_at).min()
    }
}

fn ids(players: &Players<'_>) -> Vec<PlayerId> {
    players.iter().map(|player| player.player().clone()).collect()
}

fn check(pool: &Pool, model: &Model) {
    for queue in QUEUES.map(|queue| queue.parse().unwrap()) {
        let available = model.available(&queue);
        let tickets: Vec<_> = pool.tickets(&queue).map(|players| (players[0].ticket(), ids(&players))).collect();
        assert_eq!(tickets, available);
        for (ticket, players) in model.tickets(&queue) {
            for (player, ..) in players {
                let found = pool.available(ticket, player).map(|players| (ticket, ids(&players)));
                assert_eq!(found.as_ref(), available.iter().find(|(other, _)| *other == ticket));
            }
        }
        assert_eq!(pool.left_out(&queue, START, 100), Some(model.left_out(&queue, START)));
        assert_eq!(pool.depth(&queue), model.newest(&queue).len());
        assert_eq!(pool.next_expiry(&queue), model.next_expiry(&queue));
        for now in (0..10).map(|seconds| START + Duration::seconds(seconds)) {
            let expired = model.expired(&queue, now);
            for limit in [1, 2, 100] {
                let found: Vec<_> = pool.expired(&queue, now, limit).iter().map(ids).collect();
                assert_eq!(found, expired[..limit.min(expired.len())]);
            }
        }
    }
    let mut folded: Vec<_> = pool.folded().iter().map(|entry| entry.unpack()).collect();
    folded.sort_by_key(|waiting| waiting.player.clone());
    let folded: Vec<Waiting> =
        folded.into_iter().map(|waiting| (waiting.player, waiting.head.seq, waiting.queued)).collect();
    assert_eq!(folded, model.folded.values().cloned().collect::<Vec<_>>());
}

const START: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

/// An index of the available tickets of each queue that is kept in step by [`Pool::changes`].
#[derive(Debug, Default)]
struct Mirror(BTreeMap<QueueName, BTreeMap<TicketId, Vec<PlayerId>>>);

impl Mirror {
    fn update(&mut self, pool: &mut Pool, queue: &QueueName) {
        let mirrored = self.0.entry(queue.clone()).or_default();
        match pool.changes(queue) {
            Changes::All => {
                let all = pool.tickets(queue).map(|players| (players[0].ticket(), ids(&players)));
                *mirrored = all.collect();
            }
            Changes::Only(changes) => {
                for (ticket, player) in changes {
                    mirrored.remove(&ticket);
                    if let Some(players) = pool.available(ticket, &player) {
                        mirrored.insert(ticket, ids(&players));
                    }
                }
            }
        }
    }
}

fn run(steps: Vec<Step>) {
    let (mut pool, mut model, mut mirror) = (Pool::default(), Model::default(), Mirror::default());
    let players: Vec<PlayerId> = ["a", "b", "c", "d", "e", "f", "g"].map(id).into();
    for (number, step) in (1_u128..).zip(steps) {
        match step {
            Step::Commit { group, queue, waits, since, valid } => {
                let members: Vec<_> = GROUPS[group].iter().map(|player| id(player)).collect();
                let ticket = TicketId::new(uuid::Uuid::from_u128(number));
                let queue: QueueName = QUEUES[queue].parse().unwrap();
                for player in &members {
                    let event = if waits {
                        let waiting_since = START + Duration::seconds(since);
                        let Event::Queued(queued) = super::queued(number) else { unreachable!() };
                        let group = if members.len() > 1 { members.clone() } else { Vec::new() };
                        let expires_at = waiting_since + Duration::seconds(valid);
                        Event::from(Queued { queue: queue.clone(), group, waiting_since, expires_at, ..queued })
                    } else {
                        let (queue, reason) = (queue.clone(), CancelReason::Player);
                        Cancelled { ticket, queue, reason, absences: 0, party: None }.into()
                    };
                    model.log.push((player.clone(), event));
                }
            }
            Step::Fold => {
                let next = model.seq + 1;
                let Some((player, event)) = model.log.get(model.seq as usize).cloned() else { continue };
                pool.fold(&player, Head { seq: next, n: 1 }, &event);
                model.seq = next;
                if model.ahead.get(&player).is_some_and(|(seq, _)| *seq <= next) {
                    model.ahead.remove(&player);
                }
                model.folded.remove(&player);
                model.folded.extend(waiting(&player, next, &event).map(|entry| (player, entry)));
            }
            Step::Claim(player) => {
                pool.claim(&players[player]);
                model.claims.insert(players[player].clone());
            }
            Step::Release(player) => {
                pool.release(&players[player]);
                model.claims.remove(&players[player]);
            }
            Step::Learn(player) => {
                let player = &players[player];
                let Some((seq, event)) = model.last(player) else { continue };
                assert!(pool.learn(player, found(seq, event), START));
                if seq > model.seq {
                    let entry = waiting(player, seq, event);
                    model.ahead.insert(player.clone(), (seq, entry));
                }
                model.claims.remove(player);
            }
            Step::LearnOld(player) => {
                let player = &players[player];
                let old = model.folded.contains_key(player);
                assert!(!pool.learn(player, Player::default(), START) || !old);
                model.claims.remove(player);
            }
            Step::Gone(player) => {
                // The player's decision is the newest event of the log.
                let player = &players[player];
                let Some((_, _, queued)) = model.folded.get(player) else { continue };
                let (ticket, queue) = (queued.ticket, queued.queue.clone());
                let reason = CancelReason::Player;
                model.log.push((player.clone(), Cancelled { ticket, queue, reason, absences: 0, party: None }.into()));
                let seq = model.log.len() as u64;
                pool.mark_gone(player, seq);
                model.ahead.insert(player.clone(), (seq, None));
                model.claims.remove(player);
            }
            Step::Drain(queue) => mirror.update(&mut pool, &QUEUES[queue].parse().unwrap()),
        }
        check(&pool, &model);
    }
    for queue in QUEUES.map(|queue| queue.parse().unwrap()) {
        mirror.update(&mut pool, &queue);
        let available: BTreeMap<_, _> = model.available(&queue).into_iter().collect();
        assert_eq!(mirror.0[&queue], available);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn a_pool_agrees_with_a_naive_model(steps in prop::collection::vec(step(), 1..60)) {
        run(steps);
    }
}
