//! `garage rules apply`, `list`, `show` and `rollback`: an operator changes the rule set of a queue.

use std::fs;

use async_nats::jetstream;
use garage_events::{jetstream::rule_store, queue::Queues, rules::RuleSetId};
use serde_json::json;

use crate::support::Fixture;

/// A duel whose players differ by at most this skill.
fn duel(distance: u32) -> String {
    format!(
        r#"{{
  "name": "duel {distance}",
  "ruleLanguageVersion": "1.0",
  "playerAttributes": [{{"name": "skill", "type": "number"}}],
  "teams": [{{"name": "red", "minPlayers": 1, "maxPlayers": 1}}, {{"name": "blue", "minPlayers": 1, "maxPlayers": 1}}],
  "rules": [{{"name": "Near", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": {distance}}}]
}}
"#
    )
}

/// A fixture in which a matchmaker has stored the queue `duel`, whose rule set is `duel(100)`.
async fn with_queue() -> anyhow::Result<Fixture> {
    let fixture = Fixture::start().await?;
    let path = fixture.folder.path().join("queues.toml");
    fs::write(fixture.folder.path().join("file.json"), duel(100))?;
    let queues = "[queues.duel]\nrule_set = \"file.json\"\nattributes.skill = \"rating\"\n\
                  timeout_s = 60\nregions.eu = 100\n";
    let queues = Queues::parse(queues, &path)?;
    let context = jetstream::new(fixture.client.clone());
    for (name, queue) in &queues.queues {
        // A matchmaker does this at each start.
        for _ in 0..2 {
            rule_store::store(&context, &queue.configured.text).await?;
            rule_store::configure(&context, name, &queue.configuration()).await?;
        }
    }
    Ok(fixture)
}

/// The path of a file with this text.
fn file(fixture: &Fixture, name: &str, text: &str) -> anyhow::Result<String> {
    let path = fixture.folder.path().join(name);
    fs::write(&path, text)?;
    Ok(path.to_str().unwrap_or_default().to_owned())
}

/// The id of the rule set that the queue uses, and where it is from.
async fn used(fixture: &Fixture) -> anyhow::Result<(String, String)> {
    let lines = fixture.json(&["rules", "list", "--json"]).await?;
    let text = |field: &str| lines[0][field].as_str().unwrap_or_default().to_owned();
    Ok((text("rules"), text("from")))
}

#[tokio::test]
async fn a_rule_set_is_applied_shown_and_rolled_back() -> anyhow::Result<()> {
    let fixture = with_queue().await?;
    let id = |distance| RuleSetId::of(&duel(distance)).to_string();
    assert_eq!(used(&fixture).await?, (id(100), "file".into()));

    let wider = file(&fixture, "wider.json", &duel(200))?;
    let ran = fixture.run(&["rules", "apply", "duel", &wider, "--dry-run"]).await?;
    assert!(ran.code == Some(0) && ran.out.contains("-  \"name\": \"duel 100\""), "{ran:?}");
    assert!(ran.out.contains("+  \"name\": \"duel 200\""), "{ran:?}");
    assert_eq!(used(&fixture).await?.0, id(100), "a dry run changes nothing");

    let ran = fixture.run(&["rules", "apply", "duel", &wider]).await?;
    assert!(ran.code == Some(0) && ran.out.contains("2 teams, up to 2 players, 1 rule"), "{ran:?}");
    assert_eq!(used(&fixture).await?, (id(200), "applied".into()));
    let ran = fixture.run(&["rules", "apply", "duel", &wider]).await?;
    assert!(ran.code == Some(0) && ran.out.contains("already uses this rule set"), "{ran:?}");
    for what in ["duel", &id(200)] {
        assert_eq!(fixture.run(&["rules", "show", what]).await?.out, duel(200), "{what}");
    }
    assert_eq!(fixture.run(&["rules", "show", &id(100)]).await?.out, duel(100), "it is stored for ever");

    fixture.run(&["rules", "rollback", "duel"]).await?;
    assert_eq!(used(&fixture).await?, (id(100), "file".into()));
    fixture.run(&["rules", "rollback", "duel"]).await?;
    assert_eq!(used(&fixture).await?, (id(200), "applied".into()));
    let lines = fixture.json(&["rules", "list", "--json"]).await?;
    assert_eq!((&lines[0]["queue"], &lines[0]["name"]), (&json!("duel"), &json!("duel 200")));
    assert!(lines[0]["since"].is_string());
    Ok(())
}

#[tokio::test]
async fn a_rule_set_that_the_queue_cannot_use_is_refused_as_a_whole() -> anyhow::Result<()> {
    let fixture = with_queue().await?;
    let other_attribute = duel(100).replace("skill", "luck");
    for (text, why) in [
        (duel(100).replace("\"1.0\"", "\"2.0\""), "this version of the language is not known"),
        (other_attribute, "the rule set has no attribute skill"),
        (" ".repeat(70_000), "70000 bytes"),
        ("{".into(), "broken.json: 1:"),
    ] {
        let broken = file(&fixture, "broken.json", &text)?;
        let ran = fixture.run(&["rules", "apply", "duel", &broken]).await?;
        assert!(ran.code == Some(1) && ran.err.contains(why) && ran.err.contains("nothing was changed"), "{ran:?}");
        assert_eq!(used(&fixture).await?.1, "file");
    }
    for (arguments, why) in [
        (&["rules", "apply", "nowhere", "x.json"][..], "cannot read the rule set x.json"),
        (&["rules", "rollback", "nowhere"], "no matchmaker has a queue nowhere; the queues are: duel"),
        (&["rules", "rollback", "duel"], "queue duel has had no other rule set"),
        (&["rules", "show", "No Queue"], "neither a queue nor a rule set's id"),
        (&["rules", "show", &"0".repeat(64)], "there is no rule set 0000"),
    ] {
        let ran = fixture.run(arguments).await?;
        assert!(ran.code == Some(1) && ran.err.contains(why), "{arguments:?}: {ran:?}");
    }
    Ok(())
}
