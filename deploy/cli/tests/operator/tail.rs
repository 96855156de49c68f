//! `garage tail` prints new events.

use garage_events::subject::STREAM;
use serde_json::Value;
use tokio::time::timeout;

use crate::support::{DEADLINE, Fixture, Running, cancel, open, queue, until};

async fn seq(tail: &mut Running) -> anyhow::Result<u64> {
    let line: Value = serde_json::from_str(&tail.line().await?)?;
    Ok(line["seq"].as_u64().unwrap())
}

#[tokio::test]
async fn tail_shows_earlier_events_and_then_new_ones() -> anyhow::Result<()> {
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
async fn tail_shows_only_new_events_by_default() -> anyhow::Result<()> {
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
async fn tail_ends_when_its_output_is_closed() -> anyhow::Result<()> {
    let (fixture, _) = Fixture::with_events().await?;
    let log = fixture.log().await?;
    let mut tail = fixture.spawn(&["tail", "--since", "5"])?;
    tail.line().await?;
    let mut child = tail.close_output();
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
async fn tail_shows_only_selected_events() -> anyhow::Result<()> {
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
