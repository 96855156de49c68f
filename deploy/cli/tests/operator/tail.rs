//! `garage tail`: what is appended is seen.

use garage_events::subject::STREAM;
use serde_json::Value;
use tokio::time::timeout;

use crate::support::{DEADLINE, Fixture, Running, cancel, open, queue, until};

async fn seq(tail: &mut Running) -> anyhow::Result<u64> {
    let line: Value = serde_json::from_str(&tail.line().await?)?;
    Ok(line["seq"].as_u64().unwrap())
}

#[tokio::test]
async fn tail_shows_what_was_and_what_comes() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    let log = fixture.log().await?;
    let mut tail = fixture.spawn(&["tail", "--json", "--since", "4"])?;
    assert_eq!((seq(&mut tail).await?, seq(&mut tail).await?), (4, 5));
    for name in ["carl", "dora"] {
        assert_eq!(queue(&log, name).await?, seq(&mut tail).await?);
    }
    let ran = tail.interrupt().await?;
    assert_eq!((ran.code, &*ran.out, &*ran.err), (Some(0), "", ""));
    Ok(())
}

#[tokio::test]
async fn tail_begins_with_what_is_appended_from_now_on() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    let log = fixture.log().await?;
    let stream = log.context().get_stream(STREAM).await?;
    let consumers = async || anyhow::Ok(stream.get_info().await?.state.consumer_count);
    let before = consumers().await?;
    let mut tail = fixture.spawn(&["tail"])?;
    until("tail reads", async || Ok((consumers().await? > before).then_some(()))).await?;
    queue(&log, "carl").await?;
    let line = tail.line().await?;
    assert!(line.contains(" 6  Queued ") && line.contains("garage.player.carl"), "{line}");
    Ok(())
}

#[tokio::test]
async fn tail_ends_when_nobody_reads_it_any_more() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    let log = fixture.log().await?;
    let mut tail = fixture.spawn(&["tail", "--since", "5"])?;
    tail.line().await?;
    let mut child = tail.unread();
    let ends = async {
        loop {
            queue(&log, "carl").await?;
            if let Some(status) = child.try_wait()? {
                return anyhow::Ok(status);
            }
        }
    };
    assert!(timeout(DEADLINE, ends).await??.success());
    Ok(())
}

#[tokio::test]
async fn tail_shows_what_is_selected() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    let log = fixture.log().await?;
    let mut anna = fixture.spawn(&["tail", "--json", "--since", "1h", "--player", "anna"])?;
    let mut matched = fixture.spawn(&["tail", "--json", "--since", "1", "--type", "Matched"])?;
    assert_eq!((seq(&mut anna).await?, seq(&mut anna).await?), (1, 5));
    assert_eq!(seq(&mut matched).await?, 3);
    queue(&log, "bert").await?;
    open(&log, &["bert"]).await?;
    let last = cancel(&log, "anna").await?;
    assert_eq!(seq(&mut anna).await?, last);
    assert_eq!(seq(&mut matched).await?, last - 1);
    Ok(())
}
