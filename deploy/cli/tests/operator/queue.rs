//! `garage queue`: closed for as long as the operator says, and told to whoever asks.

use async_nats::jetstream;
use garage_events::{lease, queue_status};
use serde_json::{Value, json};

use crate::support::Fixture;

/// Notes a lease, as a matchmaker of the queue does.
async fn matched(fixture: &Fixture, queue: &str) -> anyhow::Result<()> {
    let subject = lease::subject(&lease::matchmaker(&queue.parse()?));
    jetstream::new(fixture.client.clone()).publish(subject, r#"{"holder":"me"}"#.into()).await?.await?;
    Ok(())
}

async fn list(fixture: &Fixture) -> anyhow::Result<Vec<Value>> {
    let mut lines = fixture.json(&["queue", "list", "--json"]).await?;
    for line in &mut lines {
        // When is the server's to say; whether, ours.
        line["since"] = line["since"].is_string().into();
    }
    Ok(lines)
}

#[tokio::test]
async fn a_queue_is_closed_and_opened() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    matched(&fixture, "ranked").await?;
    matched(&fixture, "casual").await?;
    let open = |queue: &str, since: bool| json!({"queue": queue, "state": "open", "since": since});
    assert_eq!(list(&fixture).await?, [open("casual", false), open("ranked", false)]);

    let ran = fixture.run(&["queue", "close", "ranked", "--reason", "season's end"]).await?;
    assert_eq!(
        (ran.code, &*ran.out),
        (Some(0), "queue ranked is closed; who waits there is still matched\n"),
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
async fn a_name_that_is_no_queues_is_refused_where_that_can_be_told() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let ran = fixture.run(&["queue", "list"]).await?;
    assert!(ran.code == Some(0) && ran.out.contains("no matchmaker has run"), "{ran:?}");
    // Nobody has said yet what queues there are.
    let ran = fixture.run(&["queue", "close", "ranked", "--reason", "not yet"]).await?;
    assert!(ran.code == Some(0) && ran.err.contains("it is not known whether there is a queue ranked"), "{ran:?}");

    matched(&fixture, "casual").await?;
    for args in [&["queue", "close", "rankd", "--reason", "a slip"][..], &["queue", "open", "rankd"]] {
        let ran = fixture.run(args).await?;
        assert!(
            ran.code == Some(1) && ran.err.contains("no matchmaker has a queue rankd; they have: casual"),
            "{ran:?}"
        );
    }
    // What was closed can be opened, whoever matches it.
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
async fn a_closed_queue_stays_closed_when_the_servers_start_again() -> anyhow::Result<()> {
    let mut fixture = Fixture::start().await?;
    matched(&fixture, "ranked").await?;
    fixture.run(&["queue", "close", "ranked", "--reason", "maintenance"]).await?;
    let before = fixture.json(&["queue", "list", "--json"]).await?;
    fixture.nats.node(0)?.restart().await?;
    // And is no matter of hours: the bucket forgets nothing.
    let bucket = jetstream::new(fixture.client.clone()).get_stream(queue_status::STREAM).await?;
    assert!(bucket.cached_info().config.max_age.is_zero());
    garage_events::jetstream::setup::init(fixture.client.clone(), 1).await?;
    assert_eq!(fixture.json(&["queue", "list", "--json"]).await?, before);
    Ok(())
}
