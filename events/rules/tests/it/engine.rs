//! What the engine makes of tickets that come and go.

use std::sync::Arc;

use garage_rules::{
    engine::{Bounds, End, Engine, Limits, Place, Waiting},
    rule_set::RuleSet,
    ticket::Ticket,
};

use crate::support::{number, rule_set, solo, text};

/// Two players whose skills differ by at most 100. Those who are nearer come first.
fn duel() -> RuleSet {
    rule_set(
        r#""playerAttributes": [{"name": "skill", "type": "number"}],
        "algorithm": {"batchingPreference": "sorted", "sortByAttributes": ["skill"]},
        "teams": [{"name": "player", "minPlayers": 1, "maxPlayers": 1, "quantity": 2}],
        "rules": [{"name": "Near", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 100}]"#,
    )
}

/// A ticket since a time in seconds, which is valid for an hour.
fn waiting(key: u64, ticket: Ticket) -> Waiting<u64> {
    let place = Place { since_ms: ticket.since_ms, number: key };
    Waiting { key, place, expires_ms: ticket.since_ms + 3_600_000, ticket }
}

fn with_skill(rules: &RuleSet, key: u64, skill: f64, since: i64) -> Waiting<u64> {
    waiting(key, solo(rules, &key.to_string(), &[("skill", number(skill))], since))
}

/// The matches of a cycle at a time in seconds: the tickets of each, sorted.
fn cycle(engine: &mut Engine<u64>, now: i64) -> Vec<Vec<u64>> {
    engine.begin(now * 1_000, 0);
    let part = engine.run(Limits::NONE);
    assert_eq!(part.end, End::Finished);
    let tickets = part.matches.into_iter().map(|found| {
        let mut tickets: Vec<u64> = found.teams.into_iter().flatten().map(|waiting| waiting.key).collect();
        tickets.sort_unstable();
        tickets
    });
    tickets.collect()
}

/// Each second, two players come who fit better to each other than to a player who has waited for long. That player has a
/// skill for which there is nobody before the tenth second.
#[test]
fn a_ticket_does_not_starve_while_others_fit_better_to_each_other() {
    let rules = duel();
    let mut engine = Engine::new(Arc::new(rules.clone()), Bounds::default());
    engine.insert(with_skill(&rules, 1, 0.0, 0));
    for second in 1..=10 {
        let key = u64::try_from(second).unwrap() * 10;
        // Until the tenth second, they are too far away.
        let skill = if second < 10 { 150.0 } else { 99.0 };
        engine.insert(with_skill(&rules, key, skill, second));
        engine.insert(with_skill(&rules, key + 1, skill, second));
        let expected = if second < 10 { vec![key, key + 1] } else { vec![1, key] };
        assert_eq!(cycle(&mut engine, second), [expected], "second {second}");
    }
}

#[test]
fn of_equal_tickets_the_one_with_the_longest_wait_is_matched() {
    let rules = duel();
    for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
        let mut engine = Engine::new(Arc::new(rules.clone()), Bounds::default());
        for key in order {
            engine.insert(with_skill(&rules, key, 0.0, i64::try_from(key).unwrap()));
        }
        assert_eq!(cycle(&mut engine, 9), [[1, 2]]);
    }
}

#[test]
fn only_tickets_with_news_are_due() {
    let rules = duel();
    let mut engine = Engine::new(Arc::new(rules.clone()), Bounds::default());
    engine.fill(0, (0..100).map(|key| with_skill(&rules, key, key as f64 * 1_000.0, 0)));
    assert!(!engine.is_due(), "no ticket has a neighbour");
    engine.insert(with_skill(&rules, 100, 50_050.0, 1));
    assert!(engine.is_due());
    assert_eq!(cycle(&mut engine, 1), [[50, 100]]);
    assert!(!engine.is_due());
    assert!(engine.remove(&7));
    assert!(!engine.is_due(), "nobody has a new neighbour");
    assert!(!engine.remove(&7));
    assert_eq!(engine.len(), 98);
}

#[test]
fn a_ticket_that_has_expired_is_not_matched() {
    let rules = duel();
    let mut engine = Engine::new(Arc::new(rules.clone()), Bounds::default());
    engine.insert(Waiting { expires_ms: 5_000, ..with_skill(&rules, 1, 0.0, 0) });
    engine.insert(with_skill(&rules, 2, 0.0, 1));
    assert_eq!(engine.next_change(), Some(5_000));
    assert_eq!(cycle(&mut engine, 5), Vec::<Vec<u64>>::new());
    assert!(!engine.remove(&1) && engine.remove(&2));
}

#[test]
fn an_expansion_makes_a_match_when_its_time_has_come() {
    let rules = rule_set(
        r#""playerAttributes": [{"name": "skill", "type": "number"}],
        "teams": [{"name": "player", "minPlayers": 1, "maxPlayers": 1, "quantity": 2}],
        "rules": [{"name": "Near", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 100}],
        "expansions": [{"target": "rules[Near].maxDistance", "steps": [{"waitTimeSeconds": 30, "value": 200}]}]"#,
    );
    let mut engine = Engine::new(Arc::new(rules.clone()), Bounds::default());
    engine.insert(with_skill(&rules, 1, 0.0, 0));
    engine.insert(with_skill(&rules, 2, 150.0, 10));
    assert_eq!(cycle(&mut engine, 29), Vec::<Vec<u64>>::new());
    assert_eq!(engine.next_change(), Some(30_000));
    assert_eq!(cycle(&mut engine, 39), Vec::<Vec<u64>>::new(), "the newest ticket decides the age");
    assert_eq!(cycle(&mut engine, 40), [[1, 2]]);
}

/// Twenty tickets of one player, whose average must be exactly 10. Only the two youngest, 0 and 20, have it together.
#[test]
fn a_search_that_ends_early_is_counted_and_a_longer_one_finds_the_match() {
    let rules = rule_set(
        r#""playerAttributes": [{"name": "skill", "type": "number"}],
        "teams": [{"name": "all", "minPlayers": 2, "maxPlayers": 2}],
        "rules": [{"name": "Sum", "type": "comparison", "operation": "=", "referenceValue": 10,
            "measurements": ["avg(teams[all].players.attributes[skill])"]}]"#,
    );
    let found = |steps| {
        let mut engine = Engine::new(Arc::new(rules.clone()), Bounds { steps, ..Bounds::default() });
        let skill = |key: u64| [3.0, 0.0, 20.0][if key < 18 { 0 } else { key as usize - 17 }];
        (0..20).for_each(|key| engine.insert(with_skill(&rules, key, skill(key), i64::try_from(key).unwrap())));
        engine.begin(99_000, 0);
        let part = engine.run(Limits::NONE);
        (part.matches.len(), part.bounded > 0)
    };
    assert_eq!(found(10), (1, true), "the two youngest are found by themselves");
    assert_eq!(found(1_000), (1, false));
}

/// Fourteen players, of whom only the oldest and the youngest have the same map and mode. The others must not count as
/// tickets to try.
#[test]
fn a_rule_of_several_measurements_keeps_players_apart_by_each_of_them() {
    let rules = rule_set(
        r#""playerAttributes": [{"name": "map", "type": "string"}, {"name": "mode", "type": "string"}],
        "teams": [{"name": "all", "minPlayers": 2, "maxPlayers": 2}],
        "rules": [{"name": "Same", "type": "comparison", "operation": "=", "measurements": [
            "flatten(teams[*].players.attributes[map])", "flatten(teams[*].players.attributes[mode])"]}]"#,
    );
    let bounds = Bounds { steps: 3, exhaustive: 0, ..Bounds::default() };
    let mut engine = Engine::new(Arc::new(rules.clone()), bounds);
    for key in 0..14 {
        let mode = if key == 13 { "mode-0".into() } else { format!("mode-{key}") };
        let attributes = [("map", text("dust")), ("mode", text(&mode))];
        engine.insert(waiting(key, solo(&rules, &key.to_string(), &attributes, i64::try_from(key).unwrap())));
    }
    assert_eq!(cycle(&mut engine, 20), [[0, 13]]);
}

#[test]
fn a_cycle_in_parts_makes_the_matches_of_one_in_a_whole() {
    let rules = duel();
    let engine = || {
        let mut engine = Engine::new(Arc::new(rules.clone()), Bounds::default());
        engine.fill(0, (0..60).map(|key| with_skill(&rules, key, key as f64 * 40.0, i64::try_from(key % 7).unwrap())));
        engine
    };
    for seed in [0, 1, 7] {
        let (mut whole, mut parts) = (engine(), engine());
        whole.begin(60_000, seed);
        parts.begin(60_000, seed);
        let expected = whole.run(Limits::NONE).matches;
        let mut made = Vec::new();
        loop {
            let part = parts.run(Limits { matches: 3, work: 100 });
            made.extend(part.matches);
            if part.end == End::Finished {
                break;
            }
        }
        assert!(expected.len() > 20, "seed {seed}: {}", expected.len());
        assert_eq!(made, expected, "seed {seed}");
    }
}
