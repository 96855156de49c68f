//! The search for the best match of one ticket, the anchor, with younger tickets. For each anchor it puts tickets into
//! teams, within a number of steps.

use std::cmp::Ordering;

use crate::{
    evaluate::{Candidate, Evaluation, ticket_number},
    plan::Plan,
    rule_set::{BatchDistance, Rule, RuleKind, RuleSet},
    ticket::{Ticket, accepts},
};

/// How far a search goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How many times a search may put a ticket into a team.
    pub steps: usize,
    /// How many tickets on each side of a ticket are its neighbours. `None` for twice the players of a match, 25 to 200.
    pub neighbours: Option<usize>,
    /// With at most this many tickets (the anchor and those that can be matched with it), the limit is at least 200,000
    /// steps.
    pub exhaustive: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { steps: 2_000, neighbours: None, exhaustive: 12 }
    }
}

/// Enough steps to try all matches of 12 tickets, with the usual numbers of teams.
const ALL_STEPS: usize = 200_000;

/// How many locations of an anchor the search considers: those with the lowest names. A queue has at most 32.
const MAX_LOCATIONS: usize = 64;

/// The outcome of a search.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) best: Option<Best>,
    /// Whether the steps were not enough to try every match.
    pub(crate) bounded: bool,
    /// The work: the number of players of all candidates that were tried.
    pub(crate) work: usize,
}

/// The best match so far. Tickets are indices of [`Search::order`].
#[derive(Debug)]
pub(crate) struct Best {
    players: usize,
    /// Its tickets, ascending.
    positions: Vec<usize>,
    /// From this index of `positions` on, each position is the one before plus 1. So none of them can be smaller.
    settled: usize,
    pub(crate) teams: Vec<Vec<usize>>,
    pub(crate) evaluation: Evaluation,
}

/// Searches for the best match: the one with the most players, and of several such matches the one whose tickets come
/// first in `order`. The first ticket in `order` is the anchor. It is the oldest, and is in every match. None of the
/// others is excluded from a match with it.
pub(crate) fn search(rule_set: &RuleSet, plan: &Plan, order: &[&Ticket], now_ms: i64, bounds: Bounds) -> Outcome {
    let mut outcome = Outcome { best: None, bounded: false, work: order.len() };
    let Some(anchor) = order.first() else { return outcome };
    let mut rest = vec![0; order.len()];
    let mut sum = 0;
    for (ticket, rest) in order.iter().zip(&mut rest).rev() {
        sum += ticket.players.len();
        *rest = sum;
    }
    if sum < plan.least {
        return outcome;
    }
    let fits = Fits::new(rule_set, plan, order, anchor.age(now_ms));
    let mut search = Search {
        rule_set,
        plan,
        order,
        now_ms,
        candidate: Candidate { teams: vec![Vec::new(); rule_set.teams.len()] },
        teams: vec![Team::default(); rule_set.teams.len()],
        positions: Vec::new(),
        spans: fits.limits.iter().map(|_| (f64::INFINITY, f64::NEG_INFINITY)).collect(),
        fits,
        rest,
        steps: if order.len() <= bounds.exhaustive { bounds.steps.max(ALL_STEPS) } else { bounds.steps },
        outcome: &mut outcome,
    };
    search.add(0, 0, u64::MAX);
    outcome
}

/// What a ticket must have in common with others, computed once for all steps.
struct Fits<'r> {
    /// For each ticket, the locations that it can use, as bits.
    locations: Vec<u64>,
    /// How far apart numbers may be: one for each rule of [`Plan::spans`].
    limits: Vec<f64>,
    /// The numbers of each ticket for these rules.
    numbers: Vec<f64>,
    /// Rules that a further ticket can only break: the stages that are possible.
    worsening: Vec<Vec<&'r RuleKind>>,
}

impl<'r> Fits<'r> {
    fn new(rule_set: &'r RuleSet, plan: &Plan, order: &[&Ticket], age: u64) -> Self {
        let rules =
            |indices: &[usize]| -> Vec<_> { indices.iter().filter_map(|index| rule_set.rules.get(*index)).collect() };
        let known: Vec<&str> =
            order.first().into_iter().flat_map(|anchor| anchor.locations()).take(MAX_LOCATIONS).collect();
        let latencies = rules(&plan.latencies);
        let locations = order.iter().map(|ticket| {
            if known.is_empty() {
                return u64::MAX;
            }
            let usable = |location: &str| {
                ticket.players.iter().all(|player| player.latencies.get(location).is_some())
                    && latencies.iter().all(|rule| {
                        rule_set.possible_stages(rule, age).any(|kind| match kind {
                            RuleKind::Latency(latency) => accepts(latency, ticket, location),
                            _ => true,
                        })
                    })
            };
            known.iter().enumerate().filter(|(_, location)| usable(location)).map(|(bit, _)| 1 << bit).sum()
        });
        let spans = rules(&plan.spans);
        let span = |kind: &RuleKind| match kind {
            RuleKind::BatchDistance(BatchDistance { max, .. }) => *max,
            _ => None,
        };
        let limit = |rule: &&Rule| {
            rule_set.possible_stages(rule, age).filter_map(span).reduce(f64::max).unwrap_or(f64::INFINITY)
        };
        let number = |rule: &&Rule, ticket: &Ticket| match rule.kind.at(0) {
            RuleKind::BatchDistance(of) => ticket_number(ticket, of.attribute, of.party),
            _ => None,
        };
        let numbers = order.iter().flat_map(|ticket| spans.iter().map(|rule| number(rule, ticket).unwrap_or_default()));
        Self {
            locations: locations.collect(),
            limits: spans.iter().map(limit).collect(),
            numbers: numbers.collect(),
            worsening: rules(&plan.worsening)
                .into_iter()
                .map(|rule| rule_set.possible_stages(rule, age).collect::<Vec<_>>())
                .filter(|stages| stages.iter().all(|kind| rule_set.only_worsens(kind)))
                .collect(),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Team {
    positions: Vec<usize>,
    players: usize,
}

struct Search<'r, 't, 'o> {
    rule_set: &'r RuleSet,
    plan: &'r Plan,
    /// The anchor, and the others in the order in which they are tried.
    order: &'o [&'t Ticket],
    now_ms: i64,
    /// What has been put together so far.
    candidate: Candidate<'t>,
    teams: Vec<Team>,
    positions: Vec<usize>,
    /// The least and the greatest number of the candidate for each of [`Fits::limits`]; one set for each ticket, after
    /// one for no ticket.
    spans: Vec<(f64, f64)>,
    fits: Fits<'r>,
    /// For each position, the number of players from it on.
    rest: Vec<usize>,
    /// How many more times a ticket may be added.
    steps: usize,
    outcome: &'o mut Outcome,
}

impl Search<'_, '_, '_> {
    /// Adds tickets from the position `next` on, in all ways. `players` is the number of players so far, `locations` are
    /// the locations that all of them can use.
    fn add(&mut self, next: usize, players: usize, locations: u64) {
        self.consider(players);
        if players >= self.plan.most {
            return;
        }
        // The anchor is in every match.
        let end = if next == 0 { 1 } else { self.order.len() };
        for position in next..end {
            let (Some(ticket), Some(rest)) = (self.order.get(position).copied(), self.rest.get(position).copied())
            else {
                return;
            };
            if !self.can_improve(position, players + rest) {
                return;
            }
            let common = locations & self.fits.locations.get(position).copied().unwrap_or_default();
            let size = ticket.players.len();
            if common == 0 || players + size > self.plan.most || !self.push_spans(position) {
                continue;
            }
            for team in self.teams_with_room(size) {
                if !self.can_improve(position, players + rest) {
                    break;
                }
                if self.steps == 0 {
                    self.outcome.bounded = true;
                    break;
                }
                self.steps -= 1;
                self.outcome.work += players + size;
                self.put(team, position);
                if self.still_possible() {
                    self.add(position + 1, players + size, common);
                }
                self.take_back(team, size);
            }
            self.pop_spans();
            if self.outcome.bounded {
                return;
            }
        }
    }

    /// Whether a ticket at this or a later position can lead to a better match, with at most so many players.
    fn can_improve(&self, position: usize, players: usize) -> bool {
        let players = players.min(self.plan.most);
        let Some(best) = &self.outcome.best else { return players >= self.plan.least };
        match players.cmp(&best.players) {
            Ordering::Less => false,
            Ordering::Greater => true,
            Ordering::Equal => {
                let own = self.positions.iter().chain([&position]);
                match own.cmp(best.positions.iter().take(self.positions.len() + 1)) {
                    Ordering::Less => true,
                    Ordering::Equal => self.positions.len() + 1 < best.settled,
                    Ordering::Greater => false,
                }
            }
        }
    }

    /// Adds the numbers of a ticket, unless they are too far from those of the candidate.
    fn push_spans(&mut self, position: usize) -> bool {
        let count = self.fits.limits.len();
        let (from, before) = (position * count, self.spans.len() - count);
        for rule in 0..count {
            let (Some(number), Some(limit), Some((least, most))) = (
                self.fits.numbers.get(from + rule),
                self.fits.limits.get(rule),
                self.spans.get(before + rule).copied(),
            ) else {
                return false;
            };
            let (least, most) = (least.min(*number), most.max(*number));
            if most - least > *limit {
                self.spans.truncate(before + count);
                return false;
            }
            self.spans.push((least, most));
        }
        true
    }

    fn pop_spans(&mut self) {
        self.spans.truncate(self.spans.len() - self.fits.limits.len());
    }

    /// Whether the rules that can only get worse still hold.
    fn still_possible(&self) -> bool {
        let holds = |kind: &&RuleKind| self.rule_set.holds(kind, &self.candidate);
        self.fits.worsening.iter().all(|stages| stages.iter().any(holds))
    }

    fn put(&mut self, team: usize, position: usize) {
        let ticket = self.order.get(position).copied();
        if let (Some(ticket), Some(tickets), Some(team)) =
            (ticket, self.candidate.teams.get_mut(team), self.teams.get_mut(team))
        {
            tickets.push(ticket);
            team.positions.push(position);
            team.players += ticket.players.len();
        }
        self.positions.push(position);
    }

    fn take_back(&mut self, team: usize, size: usize) {
        if let (Some(tickets), Some(team)) = (self.candidate.teams.get_mut(team), self.teams.get_mut(team)) {
            tickets.pop();
            team.positions.pop();
            team.players -= size;
        }
        self.positions.pop();
    }

    /// Makes the candidate the best match if it satisfies the rules and is better than the best one so far.
    fn consider(&mut self, players: usize) {
        if players < self.plan.least.max(1) {
            return;
        }
        let best = self.outcome.best.as_ref();
        let better = best
            .is_none_or(|best| players.cmp(&best.players).then_with(|| best.positions.cmp(&self.positions)).is_gt());
        let age = self.rule_set.age(self.candidate.tickets(), self.now_ms);
        if !better || !self.sizes_hold(age) {
            return;
        }
        self.outcome.work += players;
        if !self.rule_set.could_hold(&self.candidate, age) {
            return;
        }
        let evaluation = self.rule_set.evaluate(&self.candidate, self.now_ms);
        if evaluation.holds {
            let positions = self.positions.clone();
            let gap = positions.windows(2).rposition(|pair| matches!(pair, [one, next] if one + 1 < *next));
            let settled = gap.map_or(1, |index| index + 2);
            let teams = self.teams.iter().map(|team| team.positions.clone()).collect();
            self.outcome.best = Some(Best { players, positions, settled, teams, evaluation });
        }
    }

    /// Whether each team has an allowed number of players. The evaluation says the same, but takes longer.
    fn sizes_hold(&self, age: u64) -> bool {
        self.teams.iter().enumerate().all(|(index, team)| {
            let sizes = self.rule_set.sizes(index, age);
            u32::try_from(team.players).is_ok_and(|players| (sizes.min..=sizes.max).contains(&players))
        })
    }

    /// The teams that have room for a ticket, those with the most free places first. Of several empty teams of the same
    /// definition only the first one, unless a rule treats them differently.
    fn teams_with_room(&self, size: usize) -> Vec<usize> {
        let definition = |team: usize| self.rule_set.teams.get(team).map(|team| team.definition);
        let mut teams: Vec<(usize, usize)> = Vec::new();
        for (index, (team, max)) in self.teams.iter().zip(&self.plan.team_max).enumerate() {
            let is_twin = |(_, other): &(usize, usize)| {
                team.players == 0
                    && self.plan.interchangeable
                    && self.teams.get(*other).is_some_and(|other| other.players == 0)
                    && definition(*other) == definition(index)
            };
            if team.players + size <= *max && !teams.iter().any(is_twin) {
                teams.push((max - team.players, index));
            }
        }
        teams.sort_by_key(|(free, index)| (std::cmp::Reverse(*free), *index));
        teams.into_iter().map(|(_, index)| index).collect()
    }
}
