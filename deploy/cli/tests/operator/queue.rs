//! `garage queue`: a queue stays closed until the operator opens it, and `list` shows it.

use async_nats::jetstream;
use garage_events::{lease, queue_status};
use serde_json::{Value, json};

use crate::support::Fixture;

/// Writes a lease, as a matchmaker of the queue does.
async fn add_matchmaker(fixture: &Fixture, queue: &str) -> anyhow::Result<()> {
    let subject = lease::subject(&lease::matchmaker(&queue.parse()?));
    jetstream::new(fixture.client.clone()).publish(subject, r#"{"holder":"me"}"#.into()).await?.await?;
    Ok(())
}

async fn list(fixture: &Fixture) -> anyhow::Result<Vec<Value>> {
    let mut lines = fixture.json(&["queue", "list", "--json"]).await?;
    for line in &mut lines {
        // The server sets the time. The test only checks whether there is one.
        line["since"] = line["since"].is_string().into();
    }
    Ok(lines)
}

#[tokio::test]
async fn a_queue_is_closed_and_opened() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    add_matchmaker(&fixture, "ranked").await?;
    add_matchmaker(&fixture, "casual").await?;
    let open = |queue: &str, since: bool| json!({"queue": queue, "state": "open", "since": since});
    assert_eq!(list(&fixture).await?, [open("casual", false), open("ranked", false)]);

    let ran = fixture.run(&["queue", "close", "ranked", "--reason", "season's end"]).await?;
    assert_eq!(
        (ran.code, &*ran.out),
        (Some(0), "queue ranked is closed; players who already wait are still matched\n"),
        "{ran:?}"
    );
    let closed = json!({"queue": "ranked", "state": "closed", "reason": "season's end", "since": true});
    assert_eq!(list(&fixture).await?, [open("casual", false), closed]);
    let text = fixture.run(&["queue", "list"]).await?.out;
    let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0], ["casual", "open", "-"]);
    assert_eq!((&lines[1][..2], &lines[1][3..]), (&["ranked", "closed"][..], &["season's", "end"][..]), "{text}");

    let ran = fixture.run(&["queue", "open", "ranked"]).await?;
    assert_eq!((ran.code, &*ran.out), (Some(0), "queue ranked is open\n"), "{ran:?}");
    assert_eq!(list(&fixture).await?, [open("casual", false), open("ranked", true)]);
    Ok(())
}

#[tokio::test]
async fn an_unknown_queue_is_refused_if_a_matchmaker_has_run() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let ran = fixture.run(&["queue", "list"]).await?;
    assert!(ran.code == Some(0) && ran.out.contains("no matchmaker has run"), "{ran:?}");
    // No matchmaker has written a lease yet, so the queues are not known.
    let ran = fixture.run(&["queue", "close", "ranked", "--reason", "not yet"]).await?;
    assert!(ran.code == Some(0) && ran.err.contains("cannot check that queue ranked exists"), "{ran:?}");

    add_matchmaker(&fixture, "casual").await?;
    for args in [&["queue", "close", "rankd", "--reason", "a slip"][..], &["queue", "open", "rankd"]] {
        let ran = fixture.run(args).await?;
        assert!(
            ran.code == Some(1) && ran.err.contains("no matchmaker has a queue rankd; the queues are: casual"),
            "{ran:?}"
        );
    }
    // A closed queue can be opened even if no matchmaker has it.
    assert_eq!(fixture.run(&["queue", "open", "ranked"]).await?.code, Some(0));
    for args in
        [&["queue", "close", "casual"][..], &["queue", "close", "casual", "--reason", " "], &["queue", "open", "A"]]
    {
        assert_eq!(fixture.run(args).await?.code, Some(2), "{args:?}");
    }
    assert_eq!(list(&fixture).await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_closed_queue_stays_closed_when_nats_restarts() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    add_matchmaker(&fixture, "ranked").await?;
    fixture.run(&["queue", "close", "ranked", "--reason", "maintenance"]).await?;
    let before = fixture.json(&["queue", "list", "--json"]).await?;
    fixture.nats.node(0)?.restart().await?;
    // The entries of the bucket do not expire.
    let bucket = jetstream::new(fixture.client.clone()).get_stream(queue_status::STREAM).await?;
    assert!(bucket.cached_info().config.max_age.is_zero());
    garage_events::jetstream::setup::init(fixture.client.clone(), 1).await?;
    assert_eq!(fixture.json(&["queue", "list", "--json"]).await?, before);
    Ok(())
}
