//! Makes matches of a queue's tickets by its rule set.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use garage_events::{
    id::{PlayerId, QueueName, Region, TicketId},
    player::{Candidates, MAX_CONSIDERED, NO_COMMON_REGION},
    rules::{Rules, millis},
    session,
};
use garage_rules::{
    engine::{Bounds, End, Engine, Limits, Place, Waiting},
    evaluate::Evaluation,
    matcher::{Exclusion, Match},
    ticket::Ticket,
};
use time::OffsetDateTime;

use super::{
    Pool, WaitingPlayer,
    packed::{PackedPlayer, Players},
    pool::Changes,
};

/// A match that the rules propose.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The region of the game server.
    pub region: Region,
    pub teams: Vec<Team>,
    /// For each region that all players can use: their latencies, in the order of the teams.
    pub latencies: BTreeMap<Region, Vec<u32>>,
}

/// A team of a proposed match.
#[derive(Debug, Clone, PartialEq)]
pub struct Team {
    pub name: String,
    pub players: Vec<WaitingPlayer>,
}

impl Proposal {
    /// The match of an evaluation, with its players. `None` if it has no region.
    fn new(rules: &Rules, evaluation: Evaluation, teams: impl IntoIterator<Item = Vec<WaitingPlayer>>) -> Option<Self> {
        let region = evaluation.location?.parse().ok()?;
        let teams = rules.rule_set.teams.iter().zip(teams);
        // A team may have a minimum of no players.
        let teams = teams.filter(|(_, players)| !players.is_empty());
        let teams: Vec<Team> = teams.map(|(team, players)| Team { name: team.name.clone(), players }).collect();
        let latencies = common_latencies(&teams);
        Some(Self { region, teams, latencies })
    }

    /// The players of all teams.
    pub fn players(&self) -> impl Iterator<Item = &WaitingPlayer> {
        self.teams.iter().flat_map(|team| &team.players)
    }

    /// The teams as the log records them.
    pub fn recorded_teams(&self) -> Vec<session::Team> {
        let member = |entry: &WaitingPlayer| session::Member {
            player: entry.player.clone(),
            ticket: entry.queued.ticket,
            rank: entry.queued.rank,
        };
        let team =
            |team: &Team| session::Team { name: team.name.clone(), players: team.players.iter().map(member).collect() };
        self.teams.iter().map(team).collect()
    }
}

/// Makes the matches of a queue. It keeps the tickets of a pool in an [`Engine`], which looks only at what has changed.
#[derive(Debug)]
pub struct Matcher {
    rules: Arc<Rules>,
    engine: Engine<TicketId>,
    /// Tickets that are not in the engine, although the pool has not changed. Each has one of its players.
    missing: BTreeMap<TicketId, PlayerId>,
    /// Whether the engine has the tickets of the pool.
    is_filled: bool,
    /// The last event in the pool when its tickets were read for the last time.
    seq: u64,
}

/// The outcome of [`Matcher::run`].
#[derive(Debug)]
pub struct Proposals {
    pub proposals: Vec<Proposal>,
    /// How many searches ended before they had tried every match.
    pub bounded: u64,
    pub end: End,
}

impl Matcher {
    /// A matcher without tickets.
    pub fn new(rules: Arc<Rules>, bounds: Bounds) -> Self {
        let engine = Engine::new(Arc::new(rules.rule_set.clone()), bounds);
        Self { rules, engine, missing: BTreeMap::new(), is_filled: false, seq: 0 }
    }

    /// The rule set.
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// When the next ticket expires or reaches an age at which the rules change, in milliseconds since 1970.
    pub fn next_change(&self) -> Option<i64> {
        self.engine.next_change()
    }

    /// Whether a new cycle could make matches, even if the pool does not change.
    pub fn is_due(&self) -> bool {
        self.engine.is_due() || !self.missing.is_empty()
    }

    /// Reads what has changed in the pool, and begins a cycle. With an odd seed, tickets are tried in random order,
    /// otherwise the oldest first.
    pub fn begin(&mut self, pool: &mut Pool, queue: &QueueName, seed: u32, now: OffsetDateTime) {
        self.seq = pool.seq();
        match pool.changes(queue) {
            Changes::Only(changed) if self.is_filled => {
                for (ticket, player) in changed.into_iter().chain(std::mem::take(&mut self.missing)) {
                    self.engine.remove(&ticket);
                    let players = pool.available(ticket, &player);
                    if let Some(waiting) = players.and_then(|players| waiting(&self.rules, &players)) {
                        self.engine.insert(waiting);
                    }
                }
            }
            Changes::Only(_) | Changes::All => {
                self.missing.clear();
                let tickets = pool.tickets(queue).filter_map(|players| waiting(&self.rules, &players));
                self.engine.fill(millis(now), tickets);
                self.is_filled = true;
            }
        }
        self.engine.begin(millis(now), seed.into());
    }

    /// Makes the next matches of the cycle. The pool may have changed since the cycle began. A match is left out if one of
    /// its players has a newer event.
    pub fn run(&mut self, pool: &Pool, limits: Limits) -> Proposals {
        let part = self.engine.run(limits);
        let mut proposals = Vec::new();
        for found in part.matches {
            match self.proposal(pool, &found) {
                Some(proposal) => proposals.push(proposal),
                None => {
                    let tickets = found.teams.into_iter().flatten();
                    let first = |waiting: &Waiting<TicketId>| waiting.ticket.players.first()?.id.parse().ok();
                    self.missing.extend(tickets.filter_map(|waiting| Some((waiting.key, first(&waiting)?))));
                }
            }
        }
        Proposals { proposals, bounded: part.bounded, end: part.end }
    }

    fn proposal(&self, pool: &Pool, found: &Match<Waiting<TicketId>>) -> Option<Proposal> {
        let players = |waiting: &Waiting<TicketId>| {
            let player = waiting.ticket.players.first()?.id.parse().ok()?;
            let players = pool.available(waiting.key, &player)?;
            players.iter().all(|player| player.head().seq <= self.seq).then(|| players.unpack())
        };
        let team = |team: &Vec<Waiting<TicketId>>| Some(team.iter().map(players).collect::<Option<Vec<_>>>()?.concat());
        let teams = found.teams.iter().map(team).collect::<Option<Vec<_>>>()?;
        Proposal::new(&self.rules, found.evaluation.clone(), teams)
    }
}

/// How far a search goes in a queue with this setting ([`garage_events::queue::Queue::search_steps`]).
pub fn bounds(search_steps: u32) -> Bounds {
    Bounds { steps: usize::try_from(search_steps).unwrap_or(usize::MAX), ..Bounds::default() }
}

/// Proposes all matches of these tickets, each with its players. No ticket is in two proposals.
///
/// The result depends on nothing but the arguments. So it can be computed again from the log, with the values that the
/// event `session.matched` records.
pub fn propose<'a>(
    rules: &Rules,
    bounds: Bounds,
    tickets: impl IntoIterator<Item = Players<'a>>,
    seed: u32,
    now: OffsetDateTime,
) -> Vec<Proposal> {
    let tickets = tickets.into_iter().filter_map(|players| Some((players.first()?.ticket(), players)));
    let tickets: HashMap<TicketId, Players<'_>> = tickets.collect();
    let mut engine = Engine::new(Arc::new(rules.rule_set.clone()), bounds);
    engine.fill(millis(now), tickets.values().filter_map(|players| waiting(rules, players)));
    engine.begin(millis(now), seed.into());
    let found = engine.run(Limits::NONE).matches.into_iter();
    let proposals = found.filter_map(|found| {
        let players = |waiting: &Waiting<TicketId>| tickets.get(&waiting.key).map(|players| players.unpack());
        let team = |team: &Vec<Waiting<TicketId>>| team.iter().filter_map(players).flatten().collect();
        Proposal::new(rules, found.evaluation, found.teams.iter().map(team).collect::<Vec<_>>())
    });
    proposals.collect()
}

/// `None` if the rule set cannot match the ticket: an operator has changed the rules since it was made.
fn as_ticket(rules: &Rules, players: &[&PackedPlayer]) -> Option<Ticket> {
    let since = millis(players.first()?.waiting_since());
    let members = players.iter().map(|player| {
        let attributes = player.attributes().map(|(name, value)| (name.to_owned(), value.clone()));
        let latencies = player.latencies().iter().map(|(region, latency)| (region, *latency));
        rules.player(player.player(), player.rank(), attributes, latencies)
    });
    rules.rule_set.ticket(members.collect(), since).ok()
}

/// A ticket for an engine. `None` if it cannot be matched: the rules do not allow it, or a player can use no region.
fn waiting(rules: &Rules, players: &[&PackedPlayer]) -> Option<Waiting<TicketId>> {
    let first = players.first().filter(|_| players.iter().all(|player| !player.latencies().is_empty()))?;
    let ticket = as_ticket(rules, players)?;
    let place = Place { since_ms: ticket.since_ms, number: first.head().seq };
    let expires = players.iter().map(|player| player.expires_at()).min()?;
    Some(Waiting { key: first.ticket(), place, expires_ms: millis(expires), ticket })
}

fn common_latencies(teams: &[Team]) -> BTreeMap<Region, Vec<u32>> {
    let mut players = teams.iter().flat_map(|team| &team.players);
    let Some(first) = players.next() else { return BTreeMap::new() };
    let of_all = |(region, latency): (&Region, &u32)| {
        let others = players.clone().map(|entry| entry.queued.latencies.get(region).copied());
        let latencies = std::iter::once(Some(*latency)).chain(others).collect::<Option<Vec<_>>>()?;
        Some((region.clone(), latencies))
    };
    first.queued.latencies.iter().filter_map(of_all).collect()
}

/// The oldest tickets of a queue, as many as [`candidates`] needs.
pub fn oldest(rules: &Rules, pool: &Pool, queue: &QueueName) -> Vec<(TicketId, Ticket)> {
    let read = |players: Players<'_>| Some((players.first()?.ticket(), as_ticket(rules, &players)?));
    // One of them may be the ticket that asks.
    pool.tickets(queue).take(MAX_CONSIDERED + 1).filter_map(read).collect()
}

/// The other tickets of the queue from the view of one of them. `oldest` is from [`oldest`].
pub fn candidates(
    rules: &Rules,
    oldest: &[(TicketId, Ticket)],
    own: &[&PackedPlayer],
    now: OffsetDateTime,
) -> Candidates {
    let mut found = Candidates::default();
    let (Some(first), Some(ticket)) = (own.first(), as_ticket(rules, own)) else { return found };
    let others = oldest.iter().filter(|(id, _)| *id != first.ticket());
    for (_, other) in others.take(MAX_CONSIDERED) {
        found.count += 1;
        let cause = match rules.rule_set.exclusion(&[&ticket, other], millis(now)) {
            None => {
                found.eligible += 1;
                continue;
            }
            Some(Exclusion::Rule(rule)) => rules.rule_set.rules.get(rule).map(|rule| rule.name.clone()),
            Some(Exclusion::Location) => Some(NO_COMMON_REGION.into()),
        };
        if let Some(cause) = cause {
            *found.excluded.entry(cause).or_default() += 1;
        }
    }
    found
}
