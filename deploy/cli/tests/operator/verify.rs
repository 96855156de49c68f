//! `garage verify` on a real log: valid logs, and violations.

use garage_events::id::SessionId;
use serde_json::{Value, json};

use crate::support::{Fixture, open, queue};

/// The rule, player, session and sequences of a JSON line.
fn about(line: &Value) -> Value {
    json!([line["rule"], line["player"], line["session"], line["seqs"]])
}

#[tokio::test]
async fn an_empty_log_is_valid() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let ran = fixture.run(&["verify", "--settled"]).await?;
    assert_eq!((ran.code, &*ran.out), (Some(0), "0 events: 0 players, 0 sessions, 0 tickets, 0 paid; no violations\n"));
    Ok(())
}

#[tokio::test]
async fn a_waiting_player_is_a_violation_only_with_settled() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let log = fixture.log().await?;
    queue(&log, "anna").await?;
    let ran = fixture.run(&["verify"]).await?;
    let expected = "1 events: 1 players, 0 sessions, 1 tickets, 0 paid; 1 unfinished; no violations\n";
    assert_eq!((ran.code, &*ran.out), (Some(0), expected));
    let ran = fixture.run(&["verify", "--settled"]).await?;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.starts_with("settled     at 1 player anna: the player's ticket is still waiting\n"), "{ran:?}");
    assert_eq!(ran.err, "error: 1 violations\n");
    Ok(())
}

#[tokio::test]
async fn events_that_no_worker_writes_are_reported_with_player_session_and_sequences() -> anyhow::Result<()> {
    // A session is matched and closed without events of its player, and a ticket ends that was never queued.
    let (fixture, session) = Fixture::with_events().await?;
    let ran = fixture.run(&["verify", "--json"]).await?;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let lines: Vec<Value> = ran.out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let anna = Some("anna");
    let nobody: Option<SessionId> = None;
    let expected = [
        json!(["matched", anna, session, [3]]),
        json!(["decided", nobody, session, [3, 4]]),
        json!(["told", anna, session, [4]]),
        json!(["decided", anna, nobody, [1, 5]]),
    ];
    assert_eq!(lines.iter().map(about).collect::<Vec<_>>(), expected, "{ran:?}");
    assert!(ran.err.starts_with("5 events: 2 players, 1 sessions, 2 tickets, 0 paid"), "{ran:?}");
    Ok(())
}

#[tokio::test]
async fn a_message_published_without_headers_is_found() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let log = fixture.log().await?;
    queue(&log, "anna").await?;
    assert_eq!(fixture.run(&["verify"]).await?.code, Some(0));
    let [(subject, body)] = crate::support::bodies(&fixture).await?.try_into().unwrap();
    log.context().publish(subject, body.into()).await?.await?;
    let ran = fixture.run(&["verify", "--json"]).await?;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let lines: Vec<Value> = ran.out.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    // It has no header with its type.
    assert_eq!(lines.iter().map(about).collect::<Vec<_>>(), [json!(["readable", "anna", null, [2]])], "{ran:?}");
    Ok(())
}

#[tokio::test]
async fn an_operators_secret_is_found_and_not_repeated() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let log = fixture.log().await?;
    open(&log, &[]).await?;
    let [(_, body)] = crate::support::bodies(&fixture).await?.try_into().unwrap();
    // A part of the session's event serves as the secret.
    assert!(String::from_utf8(body)?.contains(r#""rules":"band-region-fifo/1""#));
    let file = fixture.folder.path().join("secret");
    std::fs::write(&file, "\"rules\":\"band-region-fifo/1\"\n")?;
    let file = file.to_str().unwrap();
    let ran = fixture.run(&["verify", "--secret-file", file]).await?;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.out.starts_with("secret      at 1 session "), "{ran:?}");
    assert!(ran.out.contains(&format!("the secret in {file} is in the message")), "{ran:?}");
    assert!(!format!("{ran:?}").contains("rules"), "{ran:?}");

    let ran = fixture.run(&["verify", "--secret-file", "/nonexistent"]).await?;
    assert!(ran.code == Some(1) && ran.err.contains("cannot read the secret in /nonexistent"), "{ran:?}");
    assert_eq!(fixture.run(&["verify", "--secret-file"]).await?.code, Some(2));
    Ok(())
}
