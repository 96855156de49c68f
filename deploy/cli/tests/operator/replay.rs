//! `garage replay`: range, selection and targets.

use anyhow::Context;
use async_nats::jetstream::{self, stream::Config};
use futures::StreamExt;
use serde_json::Value;
use tokio::time::timeout;

use crate::support::{DEADLINE, Fixture, bodies, seqs, until};

async fn replayed(fixture: &Fixture, args: &[&str]) -> anyhow::Result<Vec<u64>> {
    Ok(seqs(&fixture.json(&[&["replay", "--json"], args].concat()).await?))
}

#[tokio::test]
async fn a_replay_begins_and_ends_by_sequence_or_by_time() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    let lines = fixture.json(&["replay", "--json"]).await?;
    assert_eq!(seqs(&lines), [1, 2, 3, 4, 5]);
    let time = |seq: usize| lines[seq - 1]["time"].as_str().unwrap();
    for (args, expected) in [
        (&["--from-seq", "2", "--to-seq", "4"][..], &[2, 3, 4][..]),
        (&["--from-seq", "4"], &[4, 5]),
        (&["--to-seq", "100"], &[1, 2, 3, 4, 5]),
        (&["--from", time(2), "--to", time(4)], &[2, 3, 4]),
        (&["--from", "2000-01-01T00:00:00Z", "--to", time(1)], &[1]),
        (&["--from", time(3), "--to-seq", "3", "--speed", "recorded"], &[3]),
        (&["--speed", "recorded"], &[1, 2, 3, 4, 5]),
        (&["--speed", "20"], &[1, 2, 3, 4, 5]),
    ] {
        assert_eq!(replayed(&fixture, args).await?, expected, "{args:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_replay_contains_only_selected_events() -> anyhow::Result<()> {
    let (fixture, session) = Fixture::with_events().await?;
    let session = session.to_string();
    for (args, expected) in [
        (&["--subject", "garage.session.*.closed"][..], &[4][..]),
        (&["--subject", "garage.player.*"], &[1, 2, 5]),
        (&["--player", "anna"], &[1, 5]),
        (&["--session", &session], &[3, 4]),
        (&["--type", "Queued"], &[1, 2]),
        (&["--type", "Queued", "--type", "Closed", "--from-seq", "2"], &[2, 4]),
        (&["--player", "anna", "--type", "Cancelled"], &[5]),
    ] {
        assert_eq!(replayed(&fixture, args).await?, expected, "{args:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_replay_prints_one_line_per_event() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    let ran = fixture.run(&["replay"]).await?;
    assert_eq!((ran.code, ran.out.lines().count(), &*ran.err), (Some(0), 5, ""));
    let words: Vec<_> = ran.out.lines().next().context("a line")?.split_whitespace().collect();
    assert_eq!(words[1..4], ["1", "Queued", "garage.player.anna"]);
    assert!(words.contains(&"queue=ranked"), "{words:?}");
    // Each message is printed as it is in the log.
    let lines = fixture.json(&["replay", "--json"]).await?;
    for (line, (subject, body)) in lines.iter().zip(bodies(&fixture).await?) {
        assert_eq!((&line["subject"], &line["event"]), (&subject.into(), &serde_json::from_slice::<Value>(&body)?));
    }
    Ok(())
}

#[tokio::test]
async fn a_replay_writes_a_complete_file_or_none() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    let file = fixture.folder.path().join("events.jsonl");
    let ran = fixture.run(&["replay", "--out", "events.jsonl"]).await?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(ran.out, "5 events written to events.jsonl\n");
    let printed = fixture.run(&["replay", "--json"]).await?.out;
    assert_eq!(std::fs::read_to_string(&file)?, printed);

    let again = fixture.run(&["replay", "--out", "events.jsonl", "--from-seq", "5"]).await?;
    assert!(again.code == Some(1) && again.err.contains("--force"), "{again:?}");
    assert_eq!(std::fs::read_to_string(&file)?, printed);
    // A failed replay keeps the old file, and leaves no other.
    let empty = fixture.run(&["replay", "--out", "events.jsonl", "--force", "--player", "nobody"]).await?;
    assert!(empty.code == Some(1) && empty.err.contains("from 1 to 5"), "{empty:?}");
    assert_eq!(std::fs::read_to_string(&file)?, printed);
    let ran = fixture.run(&["replay", "--out", "events.jsonl", "--force", "--from-seq", "5"]).await?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(std::fs::read_to_string(&file)?.lines().count(), 1);
    let mut names: Vec<_> = std::fs::read_dir(fixture.folder.path())?.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["events.jsonl", "nats-1", "secrets"]);
    Ok(())
}

#[tokio::test]
async fn a_replay_is_published_to_subscribers() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    let mut listening = fixture.client.subscribe("lab.>").await?;
    fixture.client.flush().await?;
    let ran = fixture.run(&["replay", "--publish", "lab.one", "--speed", "1000"]).await?;
    assert!(ran.code == Some(0) && ran.out.starts_with("5 events published to lab.one.>;"), "{ran:?}");
    for (seq, (subject, body)) in (1..).zip(bodies(&fixture).await?) {
        let message = timeout(DEADLINE, listening.next()).await?.context("a message")?;
        assert_eq!(
            (message.subject.as_str(), message.payload.to_vec()),
            (&*format!("lab.one.{subject}"), body.clone())
        );
        let headers = message.headers.context("headers")?;
        let header = |name| headers.get(name).map(ToString::to_string);
        let event: Value = serde_json::from_slice(&body)?;
        assert_eq!(header("Garage-Type").as_deref(), event["type"].as_str());
        assert_eq!(header("Garage-Replay-Seq"), Some(format!("{seq}")));
    }
    Ok(())
}

#[tokio::test]
async fn a_replay_into_a_stream_is_acknowledged() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    let context = jetstream::new(fixture.client.clone());
    let config =
        |name: &str, subject: &str| Config { name: name.into(), subjects: vec![subject.into()], ..Default::default() };
    let mut stream = context.create_stream(config("LAB", "lab.>")).await?;
    let ran = fixture.run(&["replay", "--publish", "lab"]).await?;
    assert!(ran.code == Some(0) && ran.out.contains("stored in stream LAB"), "{ran:?}");
    assert_eq!(stream.info().await?.state.messages, 5);

    // A stream that stores only the first events.
    context.create_stream(config("PART", "part.garage.player.>")).await?;
    let ran = fixture.run(&["replay", "--publish", "part"]).await?;
    assert!(ran.code == Some(1) && ran.err.contains("stream PART did not store event 3"), "{ran:?}");
    Ok(())
}

#[tokio::test]
async fn an_impossible_replay_is_refused_with_the_reason() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    for (args, code, reason) in [
        (&["--from-seq", "6"][..], 1, "the range from 6 to 5 is empty; stream GARAGE_HISTORY has 1 to 5"),
        (&["--from-seq", "4", "--to-seq", "3"], 1, "is empty"),
        (&["--to", "2000-01-01T00:00:00Z"], 1, "is empty"),
        (&["--player", "nobody"], 1, "none of the events from 1 to 5 is selected"),
        (&["--type", "Queued", "--player", "anna", "--from-seq", "2"], 1, "none of the events from 2 to 5"),
        (&["--type", "Queue"], 2, "Queued"),
        (&["--publish", "garage"], 2, "have a meaning in Garage"),
        (&["--publish", "timer.x"], 2, "have a meaning in Garage"),
        (&["--subject", "garage.>.x"], 2, "is not a subject"),
        (&["--from", "yesterday"], 2, "2026-11-22T10:00:00Z"),
        (&["--speed", "0"], 2, "recorded"),
        (&["--out", "nowhere/events.jsonl"], 1, "cannot write in nowhere"),
    ] {
        let ran = fixture.run(&[&["replay"], args].concat()).await?;
        assert!(ran.code == Some(code) && ran.err.contains(reason), "{args:?}: {ran:?}");
    }
    // The log has not changed.
    assert_eq!(replayed(&fixture, &[]).await?.len(), 5);
    Ok(())
}

#[tokio::test]
async fn a_replay_of_an_empty_log_fails() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let ran = fixture.run(&["replay"]).await?;
    assert!(ran.code == Some(1) && ran.err.contains("the log is empty"), "{ran:?}");
    Ok(())
}

#[tokio::test]
async fn an_interrupted_replay_says_how_to_continue() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    // So slow that the second event is not due during the test.
    let slow = ["replay", "--speed", "0.000001"];
    let mut running = fixture.spawn(&[&slow[..], &["--json"]].concat())?;
    let first: Value = serde_json::from_str(&running.line().await?)?;
    assert_eq!(first["seq"], 1);
    let ran = running.interrupt().await?;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains("interrupted after 1 events") && ran.err.contains("continue with --from-seq 2"),
        "{ran:?}"
    );
    assert_eq!(replayed(&fixture, &["--from-seq", "2"]).await?, [2, 3, 4, 5]);

    let mut listening = fixture.client.subscribe("lab.>").await?;
    fixture.client.flush().await?;
    let running = fixture.spawn(&[&slow[..], &["--publish", "lab"]].concat())?;
    timeout(DEADLINE, listening.next()).await?.context("the first event")?;
    let ran = running.interrupt().await?;
    assert!(ran.code == Some(1) && ran.err.contains("continue with --from-seq 2"), "{ran:?}");

    let files = || std::fs::read_dir(fixture.folder.path()).map(Iterator::count);
    let before = files()?;
    let running = fixture.spawn(&[&slow[..], &["--out", "events.jsonl"]].concat())?;
    until("the file is begun", async || Ok((files()? > before).then_some(()))).await?;
    let ran = running.interrupt().await?;
    assert!(ran.code == Some(1) && ran.err.contains("events.jsonl was not written"), "{ran:?}");
    assert_eq!(files()?, before);
    Ok(())
}
