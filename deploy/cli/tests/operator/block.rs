//! `garage block`, `unblock`, `kick` and `blocks`: what they write, what they list, and when it expires.

use async_nats::jetstream::{self, stream::Stream};
use garage_events::block::{self, Key};
use serde_json::{Value, json};

use crate::support::{Fixture, until};

async fn stream(fixture: &Fixture) -> anyhow::Result<Stream> {
    Ok(jetstream::new(fixture.client.clone()).get_stream(block::STREAM).await?)
}

/// The list, with the times replaced by whether there is one.
async fn list(fixture: &Fixture) -> anyhow::Result<Vec<Value>> {
    let mut lines = fixture.json(&["blocks", "--json"]).await?;
    for line in &mut lines {
        line["since"] = line["since"].is_string().into();
        line["until"] = line["until"].is_string().into();
    }
    Ok(lines)
}

/// The value that the gateways read; `None` without an entry. An empty value means that the entry was removed.
async fn entry(fixture: &Fixture, key: Key) -> anyhow::Result<Option<Vec<u8>>> {
    let found = stream(fixture).await?.get_last_raw_message_by_subject(&key.to_string()).await;
    Ok(found.ok().map(|message| message.payload.to_vec()))
}

#[tokio::test]
async fn a_player_is_blocked_listed_and_unblocked() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    assert_eq!(fixture.run(&["blocks"]).await?.out, "no player is blocked\n");
    let ran = fixture.run(&["block", "bob"]).await?;
    assert_eq!(
        (ran.code, &*ran.out),
        (Some(0), "player bob is blocked; if they are in a match, it continues\n"),
        "{ran:?}"
    );
    let ran = fixture.run(&["block", "ann@example.org", "--for", "2h", "--reason", "cheating"]).await?;
    assert!(ran.code == Some(0) && ran.out.starts_with("player ann@example.org is blocked until 2"), "{ran:?}");
    let ann = json!({"player": "ann@example.org", "since": true, "until": true, "reason": "cheating"});
    let bob = json!({"player": "bob", "since": true, "until": false});
    assert_eq!(list(&fixture).await?, [ann, bob.clone()]);
    let text = fixture.run(&["blocks"]).await?.out;
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        (lines[0][0], lines[0][3], lines[1][0], lines[1][2]),
        ("ann@example.org", "cheating", "bob", "-"),
        "{text}"
    );

    let unblock = async || anyhow::Ok(fixture.run(&["unblock", "ann@example.org"]).await?.out);
    assert_eq!(unblock().await?, "player ann@example.org is not blocked any more\n");
    assert_eq!(unblock().await?, "player ann@example.org is not blocked\n");
    assert_eq!(list(&fixture).await?, [bob]);
    let key = Key::Block("ann=40example=2Eorg".parse()?);
    assert_eq!(entry(&fixture, key).await?, Some(Vec::new()), "the gateways learn that the entry is removed");
    Ok(())
}

#[tokio::test]
async fn an_entry_disappears_from_the_bucket_when_its_block_ends() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture.run(&["block", "bob"]).await?;
    let ran = fixture.run(&["block", "ann", "--for", "1s"]).await?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let gone = async || anyhow::Ok(entry(&fixture, Key::Block("ann".parse()?)).await?.is_none().then_some(()));
    until("the entry is removed", gone).await?;
    assert_eq!(list(&fixture).await?.len(), 1, "a block without an end stays");
    assert!(stream(&fixture).await?.cached_info().config.max_age.is_zero());
    Ok(())
}

#[tokio::test]
async fn a_kick_is_stored_for_the_gateways_and_is_no_block() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let ran = fixture.run(&["kick", "ann", "--reason", "update"]).await?;
    assert_eq!((ran.code, &*ran.out), (Some(0), "player ann is kicked; they can come back at once\n"), "{ran:?}");
    let kick = entry(&fixture, Key::Kick("ann".parse()?)).await?;
    assert_eq!(kick.as_deref(), Some(&br#"{"reason":"update"}"#[..]));
    assert!(list(&fixture).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_wrong_duration_reason_or_name_is_refused() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let long = "x".repeat(201);
    for args in [
        &["block", "ann", "--for", "0s"][..],
        &["block", "ann", "--for", "soon"],
        &["block", "ann", "--reason", &long],
        &["kick", "ann", "--reason", "two\nlines"],
        &["block"],
    ] {
        assert_eq!(fixture.run(args).await?.code, Some(2), "{args:?}");
    }
    for command in ["block", "unblock", "kick"] {
        assert_eq!(fixture.run(&[command, ""]).await?.code, Some(1), "{command}");
    }
    assert!(list(&fixture).await?.is_empty());
    Ok(())
}
