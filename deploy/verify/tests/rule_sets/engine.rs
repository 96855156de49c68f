//! The engine makes the matches that the definition says, and those that a new engine would make.

use std::sync::Arc;

use garage_rules::{
    engine::{Bounds, End, Engine, Limits, Place, Waiting},
    matcher::Match,
    rule_set::RuleSet,
    ticket::Ticket,
};
use proptest::{prelude::*, sample::Index};
use serde_json::{Value as Json, json};

use super::{
    config,
    generate::{Member, NOW_MS, accepted, document, group, ticket},
};

/// What happens to an engine.
#[derive(Debug, Clone)]
enum Step {
    /// A ticket comes, which expires after some milliseconds.
    Insert((Vec<Member>, i64), i64),
    Remove(Index),
    /// Time passes, in milliseconds.
    Wait(i64),
    Cycle(u64, Limits),
}

fn step() -> impl Strategy<Value = Step> {
    let limits = (1_usize..4, prop_oneof![3 => Just(usize::MAX), 1 => 1_usize..100]);
    let limits = limits.prop_map(|(matches, work)| Limits { matches, work });
    prop_oneof![
        6 => (group(), 1_i64..20_000).prop_map(|(group, valid)| Step::Insert(group, valid)),
        1 => any::<Index>().prop_map(Step::Remove),
        1 => (0_i64..4_000).prop_map(Step::Wait),
        3 => (0_u64..3, limits).prop_map(|(seed, limits)| Step::Cycle(seed, limits)),
    ]
}

/// An engine, and the tickets that should be in it.
struct Pool {
    rule_set: Arc<RuleSet>,
    bounds: Bounds,
    engine: Engine<u64>,
    tickets: Vec<Waiting<u64>>,
    now_ms: i64,
    next: u64,
}

impl Pool {
    fn new(rule_set: RuleSet, bounds: Bounds) -> Self {
        let rule_set = Arc::new(rule_set);
        let engine = Engine::new(Arc::clone(&rule_set), bounds);
        Self { rule_set, bounds, engine, tickets: Vec::new(), now_ms: NOW_MS, next: 0 }
    }

    fn step(&mut self, step: &Step) -> Option<Vec<Match<u64>>> {
        match step {
            Step::Insert((members, age), valid) => {
                self.next += 1;
                let mut ticket = ticket(usize::try_from(self.next).unwrap(), &(members.clone(), 0));
                ticket.since_ms = self.now_ms - age * 1_000;
                let place = Place { since_ms: ticket.since_ms, number: self.next };
                let waiting = Waiting { key: self.next, place, expires_ms: self.now_ms + valid, ticket };
                self.tickets.push(waiting.clone());
                self.engine.insert(waiting);
            }
            Step::Remove(index) if !self.tickets.is_empty() => {
                let removed = self.tickets.swap_remove(index.index(self.tickets.len()));
                self.engine.remove(&removed.key);
            }
            Step::Remove(_) => {}
            Step::Wait(time) => self.now_ms += time,
            Step::Cycle(seed, limits) => {
                self.tickets.retain(|waiting| waiting.expires_ms > self.now_ms);
                self.engine.begin(self.now_ms, *seed);
                return Some(keys(self.engine.run(*limits).matches));
            }
        }
        None
    }

    /// The matches that the definition makes, the ones with the oldest tickets first.
    fn defined(&mut self) -> Vec<Match<u64>> {
        self.tickets.sort_by_key(|waiting| waiting.place);
        let tickets: Vec<Ticket> = self.tickets.iter().map(|waiting| waiting.ticket.clone()).collect();
        let key = |index: usize| self.tickets[index].key;
        let matches = self.rule_set.matches(&tickets, self.now_ms).into_iter();
        let teams =
            |teams: Vec<Vec<usize>>| teams.into_iter().map(|team| team.into_iter().map(key).collect()).collect();
        matches.map(|found| Match { teams: teams(found.teams), evaluation: found.evaluation }).collect()
    }

    /// The matches that a new engine makes of the same tickets, which it gets in another order.
    fn made_anew(&mut self, seed: u64) -> Vec<Match<u64>> {
        let mut engine = Engine::new(Arc::clone(&self.rule_set), self.bounds);
        self.tickets.sort_by_key(|waiting| waiting.key.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        match self.next.is_multiple_of(2) {
            true => engine.fill(self.now_ms, self.tickets.clone()),
            false => self.tickets.iter().cloned().for_each(|waiting| engine.insert(waiting)),
        }
        engine.begin(self.now_ms, seed);
        // A cycle in parts has the same matches.
        let mut matches = Vec::new();
        loop {
            let part = engine.run(Limits { matches: 2, work: 50 });
            matches.extend(keys(part.matches));
            if part.end == End::Finished {
                return matches;
            }
        }
    }

    fn forget(&mut self, matches: &[Match<u64>]) {
        let gone: Vec<u64> = matches.iter().flat_map(|found| found.teams.iter().flatten()).copied().collect();
        self.tickets.retain(|waiting| !gone.contains(&waiting.key));
        assert_eq!(self.engine.len(), self.tickets.len());
    }
}

fn keys(matches: Vec<Match<Waiting<u64>>>) -> Vec<Match<u64>> {
    let team = |team: Vec<Waiting<u64>>| team.into_iter().map(|waiting| waiting.key).collect();
    let one = |found: Match<Waiting<u64>>| Match {
        teams: found.teams.into_iter().map(team).collect(),
        evaluation: found.evaluation,
    };
    matches.into_iter().map(one).collect()
}

/// Adds what divides tickets into groups and orders them.
fn with_groups(mut document: Json) -> RuleSet {
    let rules = document["rules"].as_array_mut().unwrap();
    rules.push(json!({"name": "SameMap", "type": "comparison", "operation": "=",
        "measurements": ["flatten(teams[*].players.attributes[map])"]}));
    rules.push(json!({"name": "Near", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 2.5}));
    document["expansions"].as_array_mut().unwrap().push(json!({"target": "rules[Near].maxDistance",
        "steps": [{"waitTimeSeconds": 4, "value": 5}, {"waitTimeSeconds": 8, "value": 12}]}));
    accepted(&document).unwrap()
}

fn rule_sets() -> impl Strategy<Value = RuleSet> {
    prop_oneof![document().prop_map(|document| accepted(&document).unwrap()), document().prop_map(with_groups)]
}

proptest! {
    #![proptest_config(config(600))]

    /// In small pools, every ticket is a neighbour of all others, so the definition says what must be found.
    #[test]
    fn the_engine_makes_the_matches_of_the_definition(rule_set in rule_sets(), steps in prop::collection::vec(step(), 1..14)) {
        let mut pool = Pool::new(rule_set, Bounds::default());
        for step in steps {
            let Some(made) = pool.step(&step) else { continue };
            let Step::Cycle(seed, limits) = step else { unreachable!() };
            if seed.is_multiple_of(2) {
                let mut expected = pool.defined();
                expected.truncate(limits.matches);
                match limits.work {
                    usize::MAX => prop_assert_eq!(&made, &expected),
                    _ => prop_assert!(expected.starts_with(&made)),
                }
            }
            pool.forget(&made);
        }
    }

    /// With few neighbours and few steps, searches miss matches. Still, the past makes no difference.
    #[test]
    fn the_engine_makes_the_matches_of_a_new_engine(
        rule_set in rule_sets(), steps in prop::collection::vec(step(), 1..60),
        neighbours in 1_usize..9, search in 1_usize..40,
    ) {
        let bounds = Bounds { steps: search, neighbours: Some(neighbours), exhaustive: 0 };
        let mut pool = Pool::new(rule_set, bounds);
        for step in steps {
            let Some(made) = pool.step(&step) else { continue };
            let Step::Cycle(seed, limits) = step else { unreachable!() };
            let mut expected = pool.made_anew(seed);
            expected.truncate(limits.matches);
            match limits.work {
                usize::MAX => prop_assert_eq!(&made, &expected),
                _ => prop_assert!(expected.starts_with(&made)),
            }
            pool.forget(&made);
        }
    }
}
