//! Large matches: fills the teams, and keeps an attribute's averages about the same.

use std::cmp::Reverse;

use super::Match;
use crate::{
    evaluate::{Candidate, near, ticket_number},
    rule_set::{BatchingPreference, ExpansionAge, NumberAggregation, RuleKind, RuleSet},
    ticket::Ticket,
};

impl RuleSet {
    /// A match of an anchor. It is put together in several ways, and the one with the most players is made.
    ///
    /// It is tried at each age at which a rule changes, up to that of the anchor: at a greater age, fewer tickets are old
    /// enough, but the rules are usually less strict. For each age and location, tickets are added in three orders.
    pub(super) fn balanced(
        &self,
        pool: &[Ticket],
        (anchor, younger): (usize, &[usize]),
        (attribute, preference): (usize, BatchingPreference),
        now_ms: i64,
        work: &mut usize,
    ) -> Option<Match> {
        let first = pool.get(anchor)?;
        let oldest = self.algorithm.expansion_age == ExpansionAge::Oldest;
        let age = first.age(now_ms);
        let ages = if oldest { vec![age] } else { self.ages().into_iter().filter(|from| *from <= age).collect() };
        let mut best: Option<(usize, Match)> = None;
        for from in ages {
            let old_enough =
                |index: &&usize| oldest || pool.get(**index).is_some_and(|ticket| ticket.age(now_ms) >= from);
            let others: Vec<usize> = younger.iter().filter(old_enough).copied().collect();
            let orders = orders(pool, anchor, &others, attribute);
            for location in self.preferred_locations(first, &others, pool, from, preference) {
                for order in &orders {
                    *work = work.saturating_sub(order.len());
                    let chosen = self.choose(pool, order, location, from);
                    let teams = self.fill(pool, chosen, attribute, from);
                    let team = |team: &Vec<usize>| team.iter().filter_map(|index| pool.get(*index)).collect();
                    let candidate = Candidate { teams: teams.iter().map(team).collect() };
                    let players = candidate.tickets().map(|ticket| ticket.players.len()).sum();
                    if best.as_ref().is_some_and(|(most, _)| players <= *most) {
                        continue;
                    }
                    let evaluation = self.evaluate(&candidate, now_ms);
                    if evaluation.holds {
                        best = Some((players, Match { teams, evaluation }));
                    }
                }
                if best.is_some() && preference == BatchingPreference::FastestRegion {
                    break;
                }
            }
        }
        best.map(|(_, found)| found)
    }

    /// The ages at which something changes, ascending, beginning with 0.
    fn ages(&self) -> Vec<u64> {
        let rules = self.rules.iter().flat_map(|rule| rule.kind.all().map(|(from, _)| from));
        let sizes = self.definitions.iter().flat_map(|of| of.sizes.all().map(|(from, _)| from));
        let mut ages: Vec<u64> = rules.chain(sizes).chain([0]).collect();
        ages.sort_unstable();
        ages.dedup();
        ages
    }

    /// The locations in which the anchor can play, the preferred one first. One `None` if no location is needed.
    fn preferred_locations<'t>(
        &self,
        anchor: &'t Ticket,
        others: &[usize],
        pool: &[Ticket],
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
            let tickets = others.iter().filter_map(|index| pool.get(*index));
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
        let known = ticket.players.iter().all(|player| player.latencies.contains_key(location));
        known
            && self.rules.iter().all(|rule| match rule.kind.at(age) {
                RuleKind::Latency(latency) => near(latency, &alone, location),
                _ => true,
            })
    }

    /// The tickets that fit together, in order. Each is added unless it breaks a batchDistance rule.
    fn choose(&self, pool: &[Ticket], order: &[usize], location: Option<&str>, age: u64) -> Vec<usize> {
        let max = usize::try_from(self.definitions.iter().map(|of| of.sizes.at(age).max * of.quantity).sum::<u32>());
        let (max, mut players) = (max.unwrap_or(usize::MAX), 0);
        let mut chosen: Vec<usize> = Vec::new();
        let mut together = Candidate { teams: vec![Vec::new()] };
        for index in order {
            let Some(ticket) = pool.get(*index) else { continue };
            if players + ticket.players.len() > max || location.is_some_and(|at| !self.accepts(ticket, at, age)) {
                continue;
            }
            let Some(tickets) = together.teams.first_mut() else { continue };
            tickets.push(ticket);
            let fits = self.rules.iter().all(|rule| match rule.kind.at(age) {
                kind @ RuleKind::BatchDistance(_) => self.holds(kind, &together),
                _ => true,
            });
            if fits {
                players += ticket.players.len();
                chosen.push(*index);
            } else if let Some(tickets) = together.teams.first_mut() {
                tickets.pop();
            }
        }
        chosen
    }

    /// Puts tickets into teams: first teams below their minimum, then all; of these the one with the most free places,
    /// then the one with the least sum of the attribute. (FlexMatch guide, "Design a large-match rule set".) The first
    /// ticket, the anchor, is placed first. A ticket for which no team has room is left out.
    pub(super) fn fill(&self, pool: &[Ticket], mut chosen: Vec<usize>, attribute: usize, age: u64) -> Vec<Vec<usize>> {
        let size = |index: &usize| pool.get(*index).map_or(0, |ticket| ticket.players.len());
        let number = |index: &usize| number(pool, *index, attribute).unwrap_or_default();
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
fn number(pool: &[Ticket], index: usize, attribute: usize) -> Option<f64> {
    ticket_number(pool.get(index)?, attribute, NumberAggregation::Avg)
}

/// The anchor, and the others by their distance from its number: all of them, or first the greater ones, or first the
/// smaller ones. So a number that is at the edge of a batchDistance does not decide who else fits.
fn orders(pool: &[Ticket], anchor: usize, others: &[usize], attribute: usize) -> [Vec<usize>; 3] {
    let own = number(pool, anchor, attribute).unwrap_or_default();
    let mut distances: Vec<(f64, usize)> =
        others.iter().filter_map(|index| Some((number(pool, *index, attribute)? - own, *index))).collect();
    // The sort is stable: of two tickets at the same distance, the older one comes first.
    distances.sort_by(|(one, _), (other, _)| one.abs().total_cmp(&other.abs()));
    let order = |last: &dyn Fn(f64) -> bool| {
        let (behind, before): (Vec<_>, Vec<_>) = distances.iter().partition(|(distance, _)| last(*distance));
        let others = before.into_iter().chain(behind).map(|(_, index)| index);
        std::iter::once(anchor).chain(others).collect()
    };
    [order(&|_| false), order(&|distance| distance < 0.0), order(&|distance| distance > 0.0)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::{
        Options, check,
        rule_set::{RuleSet, Value},
        ticket::{PlayerRequest, Ticket},
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
            let player = PlayerRequest { id: index.to_string(), attributes, latencies: BTreeMap::new() };
            rule_set.ticket(vec![player], 0).unwrap()
        };
        (0..count).map(player).collect()
    }

    fn sizes(rule_set: &RuleSet, count: usize) -> Vec<usize> {
        let pool = players(rule_set, count);
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
        let teams = rule_set.fill(&pool, (0..50).collect(), 0, 0);
        let sums: Vec<usize> = teams.iter().map(|team| team.iter().sum()).collect();
        assert!(sums[0].abs_diff(sums[1]) <= 25, "{sums:?}");
    }
}
