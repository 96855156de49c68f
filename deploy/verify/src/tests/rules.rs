//! Matches that break the rule set that made them.

use garage_events::{
    id::TicketId,
    rules::RuleSetId,
    session::{Matched, Member, Team},
};
use garage_rules::rule_set::Value;

use super::{
    story::{StoryEvent, is_matched, of_player, of_session},
    *,
};

const DUEL: &str = r#"{
    "ruleLanguageVersion": "1.0",
    "playerAttributes": [{"name": "skill", "type": "number", "default": "5"}], // A quoted number.
    "teams": [{"name": "red", "minPlayers": 1, "maxPlayers": 2}, {"name": "blue", "minPlayers": 1, "maxPlayers": 2}],
    "rules": [{"name": "Near", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 10}],
}"#;

/// A waiting player: name, ticket, skill, latency to `eu` and to `us`.
type Waiting<'a> = (&'a str, u128, Option<f64>, [u32; 2]);

/// A match of these teams in a region. The groups are those of players with the same ticket.
fn story(region: &str, teams: &[(&str, &[Waiting<'_>])]) -> Story {
    let mut story = Story::default();
    let all: Vec<&Waiting<'_>> = teams.iter().flat_map(|(_, players)| *players).collect();
    for (name, number, skill, [eu, us]) in &all {
        let group: Vec<_> =
            all.iter().filter(|other| other.1 == *number).map(|other| other.0.parse().unwrap()).collect();
        let queued = player::Queued {
            attributes: skill.iter().map(|skill| ("skill".to_owned(), Value::Number(*skill))).collect(),
            latencies: [("eu".parse().unwrap(), *eu), ("us".parse().unwrap(), *us)].into(),
            group: if group.len() > 1 { group } else { Vec::new() },
            ..queued(*number)
        };
        story.player(name, queued);
    }
    let member = |(name, number, ..): &Waiting<'_>| Member {
        player: name.parse().unwrap(),
        ticket: TicketId::new(story::id(*number)),
        rank: 0,
    };
    let team = |(name, players): &(&str, &[Waiting<'_>])| Team {
        name: (*name).into(),
        players: players.iter().map(member).collect(),
    };
    let matched = Matched {
        region: region.parse().unwrap(),
        teams: teams.iter().map(team).collect(),
        rules: RuleSetId::of(DUEL).to_string(),
        ..story::matched(&[])
    };
    let mut changes = vec![(of_session(1), vec![StoryEvent::session(matched)])];
    for (team, players) in teams {
        for (name, number, ..) in *players {
            changes.push((of_player(name), vec![StoryEvent::player(is_matched(*number, 1, team))]));
        }
    }
    story.commit(changes);
    story
}

/// What is wrong with the only match of a story.
fn found(mut story: Story, rule_set: Option<&str>) -> String {
    story.rule_sets = rule_set.into_iter().map(str::to_owned).collect();
    let (found, _) = story.check(End::Open);
    match &found[..] {
        [] => String::new(),
        [violation] => {
            assert_eq!((violation.rule, violation.session), (Rule::Rules, Some(session(1))), "{violation}");
            violation.what.clone()
        }
        more => panic!("{more:#?}"),
    }
}

#[test]
fn a_match_must_satisfy_the_rule_set_that_made_it() {
    let near = ("anna", 1, Some(5.0), [20, 30]);
    for (region, red, blue, what) in [
        ("eu", &[near][..], &[("bert", 2, Some(15.0), [20, 30])][..], ""),
        // The default counts for a player without a value.
        ("eu", &[near], &[("bert", 2, None, [20, 30])], ""),
        ("eu", &[near], &[("bert", 2, Some(15.5), [20, 30])], "rules that do not hold: Near"),
        ("us", &[near], &[("bert", 2, Some(5.0), [20, 30])], "the match is in us, but its best region is Some(\"eu\")"),
        ("eu", &[near, ("cleo", 3, None, [20, 30])], &[], "the size of a team is not allowed by the rule set"),
        // A group of two in one team, and split over two.
        ("eu", &[near, ("cleo", 1, None, [20, 30])], &[("bert", 2, None, [20, 30])], ""),
        ("eu", &[near], &[("cleo", 1, None, [20, 30])], "is not in one team with all of its players"),
    ] {
        let found = found(story(region, &[("red", red), ("blue", blue)]), Some(DUEL));
        assert!(found.contains(what) && found.is_empty() == what.is_empty(), "{what}: {found}");
    }
    let stranger = [("green", &[near][..]), ("blue", &[("bert", 2, None, [20, 30])])];
    assert_eq!(found(story("eu", &stranger), Some(DUEL)), "the rule set has no team green");
}

#[test]
fn a_match_whose_rule_set_is_not_stored_cannot_be_checked() {
    let teams = [("red", &[("anna", 1, None, [20, 30])][..]), ("blue", &[("bert", 2, None, [20, 30])])];
    assert_eq!(found(story("eu", &teams), None), "its rule set is not stored");
    let mut forged = story("eu", &teams);
    forged.edit(3, |body| body["data"]["rules"] = "x".into());
    assert_eq!(found(forged, Some(DUEL)), "its rules are \"x\": not the id of a rule set: 64 hex digits");
}

#[test]
fn a_match_of_a_build_without_rule_sets_is_valid() {
    for version in ["band-region-fifo/1", "band-region-fifo/2"] {
        let teams = [("1", &[("anna", 1, None, [20, 30])][..]), ("2", &[("bert", 2, None, [20, 30])])];
        let mut story = story("eu", &teams);
        story.edit(3, |body| body["data"]["rules"] = version.into());
        assert_eq!(found(story, None), "");
    }
}
