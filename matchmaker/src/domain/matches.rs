//! Makes matches of a queue's tickets by its rule set.

use std::collections::BTreeMap;

use garage_events::{
    id::{Region, TicketId},
    player::{Candidates, MAX_CONSIDERED, NO_COMMON_REGION},
    rules::{Rules, millis},
    session,
};
use garage_rules::{matcher::Exclusion, ticket::Ticket};
use time::OffsetDateTime;

use super::WaitingPlayer;

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

/// Proposes at most `limit` matches of these tickets, each with its players. No ticket is in two proposals.
///
/// The result depends on nothing but the arguments. So it can be computed again from the log, with the values that the
/// event `session.matched` records.
pub fn propose(
    rules: &Rules,
    tickets: &[Vec<&WaitingPlayer>],
    seed: u32,
    now: OffsetDateTime,
    limit: usize,
) -> Vec<Proposal> {
    let waits = |index: &usize| {
        let ticket: Option<&Vec<&WaitingPlayer>> = tickets.get(*index);
        ticket.is_some_and(|ticket| ticket.iter().all(|entry| entry.queued.expires_at > now))
    };
    let live: Vec<usize> = (0..tickets.len()).filter(waits).collect();
    let ticket = |index: usize| tickets.get(*live.get(index)?);
    let found =
        rules.rule_set.decide(live.len(), |index| as_ticket(rules, ticket(index)?), seed.into(), millis(now), limit);
    let proposals = found.into_iter().filter_map(|found| {
        let region = found.evaluation.location?.parse().ok()?;
        let players = |indices: Vec<usize>| {
            let tickets = indices.into_iter().filter_map(ticket).flatten();
            tickets.map(|entry| WaitingPlayer::clone(entry)).collect()
        };
        let teams = rules.rule_set.teams.iter().zip(found.teams);
        // A team may have a minimum of no players.
        let teams = teams.map(|(team, indices)| Team { name: team.name.clone(), players: players(indices) });
        let teams: Vec<Team> = teams.filter(|team| !team.players.is_empty()).collect();
        let latencies = common_latencies(&teams);
        Some(Proposal { region, teams, latencies })
    });
    proposals.collect()
}

/// `None` if the rule set cannot match the ticket: an operator has changed the rules since it was made.
fn as_ticket(rules: &Rules, players: &[&WaitingPlayer]) -> Option<Ticket> {
    rules.ticket(players.iter().map(|entry| (&entry.player, &entry.queued))).ok()
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
pub fn oldest(rules: &Rules, tickets: &[Vec<&WaitingPlayer>]) -> Vec<(TicketId, Ticket)> {
    let read = |players: &Vec<&WaitingPlayer>| Some((players.first()?.queued.ticket, as_ticket(rules, players)?));
    // One of them may be the ticket that asks.
    tickets.iter().take(MAX_CONSIDERED + 1).filter_map(read).collect()
}

/// The other tickets of the queue from the view of one of them. `oldest` is from [`oldest`].
pub fn candidates(
    rules: &Rules,
    oldest: &[(TicketId, Ticket)],
    own: &[&WaitingPlayer],
    now: OffsetDateTime,
) -> Candidates {
    let mut found = Candidates::default();
    let (Some(first), Some(ticket)) = (own.first(), as_ticket(rules, own)) else { return found };
    let others = oldest.iter().filter(|(id, _)| *id != first.queued.ticket);
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
