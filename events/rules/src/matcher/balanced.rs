//! Large matches: fills the teams, and keeps an attribute's averages about the same.

use std::cmp::Reverse;

use super::{Attempt, Match};
use crate::{
    evaluate::{Candidate, near, ticket_number},
    plan::Plan,
    rule_set::{BatchingPreference, ExpansionAge, NumberAggregation, RuleKind, RuleSet},
    ticket::Ticket,
};

impl RuleSet {
    /// A match of the first ticket, the anchor. It is put together in several ways, and the one with the most players is
    /// made.
    ///
    /// It is tried at each age at which a rule changes, up to that of the anchor: at a greater age, fewer tickets are old
    /// enough, but the rules are usually less strict. For each age and location, tickets are added in three orders.
    pub(super) fn balanced(
        &self,
        plan: &Plan,
        tickets: &[&Ticket],
        (attribute, preference): (usize, BatchingPreference),
        now_ms: i64,
    ) -> Attempt {
        let mut attempt = Attempt { found: None, bounded: false, work: tickets.len() };
        let Some(anchor) = tickets.first() else { return attempt };
        if tickets.iter().map(|ticket| ticket.players.len()).sum::<usize>() < plan.least {
            return attempt;
        }
        attempt.bounded = true;
        let mut most = 0;
        let age = anchor.age(now_ms);
        let is_oldest = self.algorithm.expansion_age == ExpansionAge::Oldest;
        let earlier = plan.ages.iter().copied().filter(|from| *from <= age);
        let ages: Vec<u64> = if is_oldest { vec![age] } else { std::iter::once(0).chain(earlier).collect() };
        for from in ages {
            let old_enough = |index: &usize| tickets.get(*index).is_some_and(|of| is_oldest || of.age(now_ms) >= from);
            let others: Vec<usize> = (1..tickets.len()).filter(old_enough).collect();
            let orders = orders(tickets, &others, attribute);
            for location in self.preferred_locations(anchor, &others, tickets, from, preference) {
                for order in &orders {
                    attempt.work += order.len();
                    let chosen = self.choose(tickets, order, location, from);
                    let teams = self.fill(tickets, chosen, attribute, from);
                    let team =
                        |team: &Vec<usize>| team.iter().filter_map(|index| tickets.get(*index).copied()).collect();
                    let candidate = Candidate { teams: teams.iter().map(team).collect() };
                    let players = candidate.tickets().map(|ticket| ticket.players.len()).sum();
                    if players <= most {
                        continue;
                    }
                    let evaluation = self.evaluate(&candidate, now_ms);
                    if evaluation.holds {
                        most = players;
                        attempt.found = Some(Match { teams, evaluation });
                    }
                }
                if attempt.found.is_some() && preference == BatchingPreference::FastestRegion {
                    break;
                }
            }
        }
        attempt
    }

    /// The locations in which the anchor can play, the preferred one first. One `None` if no location is needed.
    fn preferred_locations<'t>(
        &self,
        anchor: &'t Ticket,
        others: &[usize],
        tickets: &[&Ticket],
        age: u64,
        preference: BatchingPreference,
    ) -> Vec<Option<&'t str>> {
        let uses_latency = self.rules.iter().any(|rule| matches!(rule.kind.at(age), RuleKind::Latency(_)));
        if !uses_latency && !(Candidate { teams: vec![vec![anchor]] }).needs_location() {
            return vec![None];
        }
        let mut locations: Vec<&str> =
            anchor.locations().filter(|location| self.accepts(anchor, location, age)).collect();
        let population = |location: &str| {
            let tickets = others.iter().filter_map(|index| tickets.get(*index));
            tickets.filter(|ticket| self.accepts(ticket, location, age)).count()
        };
        match preference {
            BatchingPreference::LargestPopulation => locations.sort_by_key(|location| Reverse(population(location))),
            BatchingPreference::FastestRegion => locations.sort_by(|one, other| {
                let latency = |location| anchor.latency(location, NumberAggregation::Avg).unwrap_or(f64::MAX);
                latency(one).total_cmp(&latency(other))
            }),
        }
        locations.into_iter().map(Some).collect()
    }

    /// Whether a ticket has a latency to a location that all latency rules accept.
    fn accepts(&self, ticket: &Ticket, location: &str, age: u64) -> bool {
        let alone = Candidate { teams: vec![vec![ticket]] };
        let known = ticket.players.iter().all(|player| player.latencies.get(location).is_some());
        known
            && self.rules.iter().all(|rule| match rule.kind.at(age) {
                RuleKind::Latency(latency) => near(latency, &alone, location),
                _ => true,
            })
    }

    /// The tickets that fit together, in order. Each is added unless it breaks a batchDistance rule.
    fn choose(&self, tickets: &[&Ticket], order: &[usize], location: Option<&str>, age: u64) -> Vec<usize> {
        let max = usize::try_from(self.definitions.iter().map(|of| of.sizes.at(age).max * of.quantity).sum::<u32>());
        let (max, mut players) = (max.unwrap_or(usize::MAX), 0);
        let mut chosen: Vec<usize> = Vec::new();
        let mut together = Candidate { teams: vec![Vec::new()] };
        for index in order {
            let Some(ticket) = tickets.get(*index).copied() else { continue };
            if players + ticket.players.len() > max || location.is_some_and(|at| !self.accepts(ticket, at, age)) {
                continue;
            }
            let Some(chosen_tickets) = together.teams.first_mut() else { continue };
            chosen_tickets.push(ticket);
            let fits = self.rules.iter().all(|rule| match rule.kind.at(age) {
                kind @ RuleKind::BatchDistance(_) => self.holds(kind, &together),
                _ => true,
            });
            if fits {
                players += ticket.players.len();
                chosen.push(*index);
            } else if let Some(chosen_tickets) = together.teams.first_mut() {
                chosen_tickets.pop();
            }
        }
        chosen
    }

    /// Puts tickets into teams: first teams below their minimum, then all; of these the one with the most free places,
    /// then the one with the least sum of the attribute. (FlexMatch guide, "Design a large-match rule set".) The first
    /// ticket, the anchor, is placed first. A ticket for which no team has room is left out.
    pub(super) fn fill(
        &self,
        tickets: &[&Ticket],
        mut chosen: Vec<usize>,
        attribute: usize,
        age: u64,
    ) -> Vec<Vec<usize>> {
        let size = |index: &usize| tickets.get(*index).map_or(0, |ticket| ticket.players.len());
        let number = |index: &usize| number(tickets, *index, attribute).unwrap_or_default();
        // The largest tickets first, because they fit in fewer teams; then the greatest values, to balance the teams.
        if let Some(others) = chosen.get_mut(1..) {
            others.sort_by(|one, other| size(other).cmp(&size(one)).then(number(other).total_cmp(&number(one))));
        }
        let mut teams: Vec<(Vec<usize>, usize, f64)> = vec![(Vec::new(), 0, 0.0); self.teams.len()];
        for index in chosen {
            let sizes = |team: usize| self.sizes(team, age);
            let room = teams.iter().enumerate().filter_map(|(team, (_, players, sum))| {
                let (min, max) = (usize::try_from(sizes(team).min).ok()?, usize::try_from(sizes(team).max).ok()?);
                let free = max.checked_sub(players + size(&index))?;
                Some((*players >= min, Reverse(free), *sum, team))
            });
            let best = room.min_by(|(full, free, sum, team), (other_full, other_free, other_sum, other)| {
                (full, free).cmp(&(other_full, other_free)).then(sum.total_cmp(other_sum)).then(team.cmp(other))
            });
            if let Some((tickets, players, sum)) = best.and_then(|(_, _, _, team)| teams.get_mut(team)) {
                *players += size(&index);
                #[expect(clippy::cast_precision_loss, reason = "a ticket has at most 10 players")]
                let weight = size(&index) as f64;
                *sum += number(&index) * weight;
                tickets.push(index);
            }
        }
        teams.into_iter().map(|(tickets, _, _)| tickets).collect()
    }
}

/// The number of a ticket.
fn number(tickets: &[&Ticket], index: usize, attribute: usize) -> Option<f64> {
    ticket_number(tickets.get(index)?, attribute, NumberAggregation::Avg)
}

/// The anchor, and the others by their distance from its number: all of them, or first the greater ones, or first the
/// smaller ones. So a number that is at the edge of a batchDistance does not decide who else fits.
fn orders(tickets: &[&Ticket], others: &[usize], attribute: usize) -> [Vec<usize>; 3] {
    let own = number(tickets, 0, attribute).unwrap_or_default();
    let mut distances: Vec<(f64, usize)> =
        others.iter().filter_map(|index| Some((number(tickets, *index, attribute)? - own, *index))).collect();
    // The sort is stable: of two tickets at the same distance, the older one comes first.
    distances.sort_by(|(one, _), (other, _)| one.abs().total_cmp(&other.abs()));
    let order = |last: &dyn Fn(f64) -> bool| {
        let (behind, before): (Vec<_>, Vec<_>) = distances.iter().partition(|(distance, _)| last(*distance));
        let others = before.into_iter().chain(behind).map(|(_, index)| index);
        std::iter::once(0).chain(others).collect()
    };
    [order(&|_| false), order(&|distance| distance < 0.0), order(&|distance| distance > 0.0)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::{
        Options, check,
        rule_set::{RuleSet, Value},
        ticket::{Latencies, PlayerRequest, Ticket},
    };

    fn read(teams: &str) -> RuleSet {
        let text = format!(
            r#"{{"ruleLanguageVersion": "1.0", "playerAttributes": [{{"name": "skill", "type": "number"}}],
                "algorithm": {{"strategy": "balanced", "balancedAttribute": "skill"}}, "teams": {teams}}}"#
        );
        check(&text, Options::default()).rule_set.unwrap()
    }

    fn players(rule_set: &RuleSet, count: usize) -> Vec<Ticket> {
        let player = |index: usize| {
            let skill = Value::Number(index as f64);
            let attributes = BTreeMap::from([("skill".to_owned(), skill)]);
            let player = PlayerRequest { id: index.to_string().into(), attributes, latencies: Latencies::default() };
            rule_set.ticket(vec![player], 0).unwrap()
        };
        (0..count).map(player).collect()
    }

    fn sizes(rule_set: &RuleSet, count: usize) -> Vec<usize> {
        let pool = players(rule_set, count);
        let pool: Vec<&Ticket> = pool.iter().collect();
        rule_set.fill(&pool, (0..count).collect(), 0, 0).iter().map(Vec::len).collect()
    }

    /// The example of the FlexMatch guide, "Design a large-match rule set": how teams are filled.
    #[test]
    fn teams_below_their_minimum_are_filled_first_then_those_with_the_most_free_places() {
        let rule_set = read(
            r#"[{"name": "Red", "minPlayers": 5, "maxPlayers": 10}, {"name": "Blue", "minPlayers": 5, "maxPlayers": 10},
                {"name": "Green", "minPlayers": 2, "maxPlayers": 3}]"#,
        );
        let expected = [(10, [5, 5, 0]), (12, [5, 5, 2]), (20, [9, 9, 2]), (23, [10, 10, 3])];
        for (count, expected) in expected {
            assert_eq!(sizes(&rule_set, count), expected, "{count} players");
        }
    }

    /// The example of the guide with ten teams of hunters and one of monsters.
    #[test]
    fn a_small_team_is_filled_when_its_free_places_are_the_most() {
        let rule_set = read(
            r#"[{"name": "Hunters", "minPlayers": 12, "maxPlayers": 15, "quantity": 10},
                {"name": "Monsters", "minPlayers": 5, "maxPlayers": 5}]"#,
        );
        let with = |hunters: usize, monsters: usize| [vec![hunters; 10], vec![monsters]].concat();
        for (count, expected) in [(100, with(10, 0)), (122, with(12, 2)), (125, with(12, 5)), (155, with(15, 5))] {
            assert_eq!(sizes(&rule_set, count), expected, "{count} players");
        }
    }

    #[test]
    fn the_averages_of_balanced_teams_are_about_the_same() {
        let rule_set = read(r#"[{"name": "a", "minPlayers": 25, "maxPlayers": 25, "quantity": 2}]"#);
        let pool = players(&rule_set, 50);
        let pool: Vec<&Ticket> = pool.iter().collect();
        let teams = rule_set.fill(&pool, (0..50).collect(), 0, 0);
        let sums: Vec<usize> = teams.iter().map(|team| team.iter().sum()).collect();
        assert!(sums[0].abs_diff(sums[1]) <= 25, "{sums:?}");
    }
}
