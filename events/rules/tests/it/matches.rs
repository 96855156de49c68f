//! Which matches are made.

use garage_rules::rule_set::RuleSet;

use crate::support::{group, list, map, matches, number, plain, player, rule_set, solo};

fn two_teams(min: u32, max: u32, more: &str) -> RuleSet {
    rule_set(&format!(
        r#""teams": [{{"name": "red", "minPlayers": {min}, "maxPlayers": {max}}}, {{"name": "blue", "minPlayers": {min}, "maxPlayers": {max}}}]
        {more}"#
    ))
}

/// The tickets of each match, sorted.
fn made(rules: &RuleSet, pool: &[garage_rules::ticket::Ticket], now: i64) -> Vec<Vec<usize>> {
    let tickets = matches(rules, pool, now).into_iter().map(|teams| {
        let mut tickets: Vec<_> = teams.into_iter().flatten().collect();
        tickets.sort_unstable();
        tickets
    });
    tickets.collect()
}

#[test]
fn the_oldest_tickets_are_matched_first() {
    let rules = two_teams(1, 1, "");
    let pool = plain(&rules, &[5, 1, 3, 2, 4]);
    assert_eq!(made(&rules, &pool, 9), [vec![1, 3], vec![2, 4]], "the newest one is left");
}

#[test]
fn a_match_has_as_many_players_as_possible() {
    let rules = two_teams(2, 3, "");
    assert_eq!(made(&rules, &plain(&rules, &[0; 3]), 0), Vec::<Vec<usize>>::new());
    assert_eq!(made(&rules, &plain(&rules, &[0; 5]), 0), [vec![0, 1, 2, 3, 4]]);
    assert_eq!(made(&rules, &plain(&rules, &[0; 6]), 0), [vec![0, 1, 2, 3, 4, 5]]);
    assert_eq!(made(&rules, &plain(&rules, &[0; 100]), 0).len(), 17, "sixteen of six players, and one of four");
}

/// One team of four; after 30, 40 and 45 seconds three, two and one are enough. Players came at 0 and at 10 seconds. The
/// age of a match is that of its newest ticket, so the second player makes the pair younger.
#[test]
fn a_younger_ticket_makes_a_match_younger() {
    let rules = |steps: &str| {
        rule_set(&format!(
            r#""teams": [{{"name": "all", "minPlayers": 4, "maxPlayers": 4}}],
            "expansions": [{{"target": "teams[all].minPlayers", "steps": [{steps}]}}]"#
        ))
    };
    let step = |wait: u32, value: u32| format!(r#"{{"waitTimeSeconds": {wait}, "value": {value}}}"#);
    let slow = rules(&[step(30, 3), step(40, 2), step(45, 1)].join(", "));
    let pool = plain(&slow, &[0, 10]);
    assert_eq!(made(&slow, &pool, 44), Vec::<Vec<usize>>::new());
    assert_eq!(made(&slow, &pool, 45), [vec![0]], "alone");
    assert_eq!(made(&slow, &pool[1..], 54), Vec::<Vec<usize>>::new());
    assert_eq!(made(&slow, &pool[1..], 55), [vec![0]], "alone, too");
    let quick = rules(&[step(5, 3), step(15, 2), step(45, 1)].join(", "));
    assert_eq!(made(&quick, &pool, 24), Vec::<Vec<usize>>::new());
    assert_eq!(made(&quick, &pool, 25), [vec![0, 1]], "together");
}

#[test]
fn all_players_of_a_ticket_are_in_one_team() {
    let rules = two_teams(
        2,
        2,
        r#", "rules": [{"name": "Equal", "type": "comparison", "measurements": ["count(teams[red].players)"], "operation": "=",
            "referenceValue": "count(teams[blue].players)"}], "playerAttributes": [{"name": "skill", "type": "number", "default": 1}]"#,
    );
    let pair = |id: &str| group(&rules, id, "skill", &[number(1.0), number(1.0)]);
    let single = |id: &str| solo(&rules, id, &[], 0);
    assert_eq!(matches(&rules, &[pair("a"), pair("b")], 0), [vec![vec![0], vec![1]]]);
    // A pair and two singles fill the teams, although the sizes differ on the way.
    assert_eq!(matches(&rules, &[single("a"), pair("b"), single("c")], 0), [vec![vec![0, 2], vec![1]]]);
    let three = vec![player("a", &[], &[]), player("b", &[], &[]), player("c", &[], &[])];
    assert!(rules.ticket(three, 0).is_err(), "no team has room for three");
}

/// One against five. Who wants to be the monster fits only there.
#[test]
fn a_ticket_is_tried_in_every_team() {
    let rules = rule_set(
        r#""teams": [{"name": "hunters", "minPlayers": 5, "maxPlayers": 5}, {"name": "monster", "minPlayers": 1, "maxPlayers": 1}],
        "playerAttributes": [{"name": "wantsToBeMonster", "type": "number", "default": 0}],
        "rules": [
            {"name": "Monster", "type": "comparison", "measurements": ["teams[monster].players.attributes[wantsToBeMonster]"],
                "operation": "=", "referenceValue": 1},
            {"name": "Hunters", "type": "comparison", "measurements": ["teams[hunters].players.attributes[wantsToBeMonster]"],
                "operation": "=", "referenceValue": 0}]"#,
    );
    let ticket = |id: &str, wants: f64| solo(&rules, id, &[("wantsToBeMonster", number(wants))], 0);
    let mut pool: Vec<_> = (0..5).map(|id| ticket(&id.to_string(), 0.0)).collect();
    pool.insert(0, ticket("grendel", 1.0));
    pool.push(ticket("shrek", 1.0));
    assert_eq!(matches(&rules, &pool, 0), [vec![vec![1, 2, 3, 4, 5], vec![0]]]);
    assert!(matches(&rules, &pool[1..6], 0).is_empty(), "there is no monster");
}

/// Two medics cannot be in one team, and two players of different maps neither. In different teams, they can play.
#[test]
fn a_rule_about_each_team_does_not_keep_tickets_of_different_teams_apart() {
    let rule = |name: &str, rest: &str| {
        let rules = two_teams(
            1,
            1,
            &format!(
                r#", "playerAttributes": [{{"name": "roles", "type": "string_list"}}, {{"name": "map", "type": "string"}}],
                "rules": [{{"name": "{name}", {rest}}}]"#
            ),
        );
        let ticket = |id: &str, map: &str| {
            solo(&rules, id, &[("roles", list(&["medic"])), ("map", crate::support::text(map))], 0)
        };
        let pool = [ticket("a", "ice"), ticket("b", "dust")];
        assert_eq!(rules.exclusion(&[&pool[0], &pool[1]], 0), None, "{name}");
        assert_eq!(made(&rules, &pool, 0), [vec![0, 1]], "{name}");
    };
    rule(
        "OneMedic",
        r#""type": "collection", "operation": "contains", "referenceValue": "medic", "maxCount": 1,
        "measurements": ["flatten(teams[red].players.attributes[roles])", "flatten(teams[blue].players.attributes[roles])"]"#,
    );
    rule(
        "OneMedicOfTeams",
        r#""type": "collection", "operation": "contains", "referenceValue": "medic", "maxCount": 1,
        "measurements": ["teams[*].players.attributes[roles]"]"#,
    );
    rule(
        "OneMap",
        r#""type": "comparison", "operation": "=",
        "measurements": ["teams[red].players.attributes[map]", "teams[blue].players.attributes[map]"]"#,
    );
}

/// Eight players of the first mode pass by one arm of the compound rule. Seven do not.
#[test]
fn a_compound_rule_chooses_by_mode() {
    let rules = two_teams(
        1,
        4,
        r#", "playerAttributes": [{"name": "modes", "type": "string_list", "default": ["classic"]}], "rules": [
        {"name": "classic", "type": "collection", "operation": "contains", "referenceValue": "classic", "minCount": 8,
            "measurements": ["flatten(teams[*].players.attributes[modes])"]},
        {"name": "practice", "type": "collection", "operation": "contains", "referenceValue": "practice", "minCount": 2,
            "measurements": ["flatten(teams[*].players.attributes[modes])"]},
        {"name": "mode", "type": "compound", "statement": "or(classic, practice)"}]"#,
    );
    assert_eq!(made(&rules, &plain(&rules, &[0; 8]), 0), [vec![0, 1, 2, 3, 4, 5, 6, 7]]);
    assert!(made(&rules, &plain(&rules, &[0; 7]), 0).is_empty());
    let practice = |id: &str| solo(&rules, id, &[("modes", list(&["practice"]))], 0);
    assert_eq!(made(&rules, &[practice("a"), practice("b")], 0), [vec![0, 1]]);
}

#[test]
fn the_first_sort_rule_decides_and_the_next_breaks_ties() {
    let rules = two_teams(
        1,
        1,
        r#", "playerAttributes": [{"name": "maps", "type": "string_number_map"}, {"name": "skill", "type": "number"}], "rules": [
        {"name": "Map", "type": "absoluteSort", "sortDirection": "descending", "sortAttribute": "maps", "mapKey": "maxValue"},
        {"name": "Skill", "type": "distanceSort", "sortDirection": "ascending", "sortAttribute": "skill"}]"#,
    );
    let ticket = |id: &str, dust: f64, ice: f64, skill: f64, since: i64| {
        solo(&rules, id, &[("maps", map(&[("dust", dust), ("ice", ice)])), ("skill", number(skill))], since)
    };
    // The oldest one likes ice most, so all are sorted by ice.
    let anchor = ticket("anchor", 1.0, 9.0, 100.0, 0);
    let [dusty, near, far] =
        [ticket("dusty", 99.0, 1.0, 100.0, 1), ticket("near", 0.0, 7.0, 110.0, 3), ticket("far", 0.0, 7.0, 200.0, 2)];
    let partner = |others: &[garage_rules::ticket::Ticket]| {
        let pool = [std::slice::from_ref(&anchor), others].concat();
        made(&rules, &pool, 9).first().and_then(|tickets| tickets.last().copied()).unwrap()
    };
    assert_eq!(partner(&[dusty.clone(), near.clone()]), 2, "more ice");
    assert_eq!(partner(&[dusty, far, near]), 3, "as much ice, and nearer in skill");
}

/// The oldest one fits into both teams. In red, only the youngest one fits into blue; in blue, the second one fits into red.
#[test]
fn of_two_matches_the_one_with_the_older_tickets_is_made() {
    let rules = two_teams(
        1,
        1,
        r#", "playerAttributes": [{"name": "skill", "type": "number"}], "rules": [{"name": "Weaker", "type": "comparison",
            "measurements": ["avg(teams[red].players.attributes[skill])"], "operation": "<=",
            "referenceValue": "avg(teams[blue].players.attributes[skill])"}]"#,
    );
    let ticket = |skill: f64, since: i64| solo(&rules, &since.to_string(), &[("skill", number(skill))], since);
    assert_eq!(matches(&rules, &[ticket(5.0, 0), ticket(3.0, 1), ticket(7.0, 2)], 9), [vec![vec![1], vec![0]]]);
}

#[test]
fn a_sorted_batch_prefers_tickets_that_are_near_the_oldest_one() {
    let rules = two_teams(
        1,
        1,
        r#", "playerAttributes": [{"name": "skill", "type": "number"}],
        "algorithm": {"batchingPreference": "sorted", "sortByAttributes": ["skill"]}"#,
    );
    let pool: Vec<_> = [50.0, 10.0, 60.0, 20.0]
        .iter()
        .map(|skill| solo(&rules, &skill.to_string(), &[("skill", number(*skill))], 0))
        .collect();
    assert_eq!(made(&rules, &pool, 0), [vec![0, 2], vec![1, 3]]);
}

#[test]
fn a_bounded_search_finds_matches_in_a_large_pool_of_different_players() {
    let rules = two_teams(
        5,
        5,
        r#", "playerAttributes": [{"name": "mode", "type": "string"}],
        "rules": [{"name": "SameMode", "type": "comparison", "operation": "=", "measurements": ["flatten(teams[*].players.attributes[mode])"]}]"#,
    );
    let modes = ["a", "b", "c", "d", "e"];
    let pool: Vec<_> = (0..200)
        .map(|id| solo(&rules, &id.to_string(), &[("mode", crate::support::text(modes[id % modes.len()]))], 0))
        .collect();
    assert_eq!(made(&rules, &pool, 0).len(), 20);
}

fn large(teams: &str, rules: &str) -> RuleSet {
    rule_set(&format!(
        r#""playerAttributes": [{{"name": "skill", "type": "number"}}], "teams": [{teams}],
        "algorithm": {{"strategy": "balanced", "balancedAttribute": "skill"}}, "rules": [{rules}]"#
    ))
}

#[test]
fn the_oldest_ticket_is_in_a_large_match_although_larger_ones_are_placed_before_others() {
    let team = |name: &str| format!(r#"{{"name": "{name}", "minPlayers": 10, "maxPlayers": 21}}"#);
    let rules = large(&format!("{}, {}", team("red"), team("blue")), "");
    let sized = |id: &str, size: usize| group(&rules, id, "skill", &vec![number(1.0); size]);
    let pool: Vec<_> =
        [2, 10, 10, 10, 10].into_iter().enumerate().map(|(id, size)| sized(&id.to_string(), size)).collect();
    let found = made(&rules, &pool, 0);
    assert_eq!((found.len(), found[0].len(), found[0][0]), (1, 4, 0), "{found:?}");
}

#[test]
fn a_near_player_on_one_side_does_not_keep_those_on_the_other_side_out_of_a_large_match() {
    let rules = large(
        r#"{"name": "all", "minPlayers": 4, "maxPlayers": 41}"#,
        r#"{"name": "Near", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 10}"#,
    );
    let pool: Vec<_> = [50.0, 45.0, 56.0, 57.0, 58.0]
        .iter()
        .enumerate()
        .map(|(since, skill)| {
            solo(&rules, &since.to_string(), &[("skill", number(*skill))], i64::try_from(since).unwrap())
        })
        .collect();
    assert_eq!(made(&rules, &pool, 9), [vec![0, 2, 3, 4]]);
}

#[test]
fn a_large_match_takes_players_of_one_location_who_are_alike() {
    let rules = rule_set(
        r#""teams": [{"name": "all", "minPlayers": 60, "maxPlayers": 100}],
        "playerAttributes": [{"name": "skill", "type": "number"}, {"name": "mode", "type": "string"}],
        "algorithm": {"strategy": "balanced", "balancedAttribute": "skill"},
        "rules": [{"name": "Ping", "type": "latency", "maxLatency": 100}, {"name": "Mode", "type": "batchDistance", "batchAttribute": "mode"}],
        "expansions": [{"target": "teams[all].minPlayers", "steps": [{"waitTimeSeconds": 10, "value": 30}]}]"#,
    );
    let ticket = |index: usize| {
        let mode = if index.is_multiple_of(2) { "duel" } else { "race" };
        let attributes = [("skill", number(index as f64)), ("mode", crate::support::text(mode))];
        let latencies =
            [("eu", if index < 150 { 50.0 } else { 150.0 }), ("us", if index < 150 { 150.0 } else { 50.0 })];
        rules.ticket(vec![player(&index.to_string(), &attributes, &latencies)], 0).unwrap()
    };
    let pool: Vec<_> = (0..220).map(ticket).collect();
    let sizes = |now: i64| {
        let found = rules.matches(&pool, now * 1_000);
        found.iter().map(|found| (found.teams[0].len(), found.evaluation.location.clone().unwrap())).collect::<Vec<_>>()
    };
    let eu = [(75, "eu".to_owned()), (75, "eu".to_owned())];
    assert_eq!(sizes(9), eu);
    assert_eq!(sizes(10), [eu.to_vec(), vec![(35, "us".to_owned()), (35, "us".to_owned())]].concat());
}
