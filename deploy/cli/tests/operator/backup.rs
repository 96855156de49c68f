//! `garage backup` and `garage restore` of a stream with many chunks. An end-to-end test restores a whole Garage.

use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream;
use garage_events::{jetstream::setup, subject::DEAD};
use tokio::{sync::oneshot, time::timeout};

use crate::support::Fixture;

/// Number of messages. Together they exceed the 16 MiB after which a server waits for acknowledgements of its chunks.
const MESSAGES: u64 = 240;

/// Incompressible data: 100 KiB from a xorshift generator (Marsaglia 2003).
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed | 1 << 63;
    let numbers = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    numbers.take(100 << 7).flatten().collect()
}

#[tokio::test]
async fn a_long_stream_is_restored_completely_although_it_grew_during_the_backup() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let context = jetstream::new(fixture.client.clone());
    for seed in 1..=MESSAGES {
        context.publish("dead.test", noise(seed).into()).await?.await?;
    }
    let (done, mut ended) = oneshot::channel::<()>();
    let writer = context.clone();
    let writing = tokio::spawn(async move {
        let mut written = 0_u64;
        while matches!(ended.try_recv(), Err(oneshot::error::TryRecvError::Empty)) {
            written += 1;
            writer.publish("dead.test", written.to_string().into()).await?.await?;
        }
        anyhow::Ok(written)
    });
    let ran = fixture.run(&["backup", "copy"]).await?;
    drop(done);
    assert!(writing.await?? > 0);
    assert_eq!(ran.code, Some(0), "{ran:?}");

    let other = Fixture::without_streams().await?;
    let folder = fixture.folder.path().join("copy").display().to_string();
    let ran = other.run(&["restore", &folder]).await?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let to = jetstream::new(other.client.clone());
    for name in setup::names() {
        to.get_stream(&name).await.with_context(|| format!("stream {name}"))?;
    }
    let (from, to) = (context.get_stream(DEAD).await?, to.get_stream(DEAD).await?);
    let last = to.cached_info().state.last_sequence;
    assert!(last >= MESSAGES, "{last}");
    for seq in 1..=last {
        let (was, is) = (from.get_raw_message(seq).await?, to.get_raw_message(seq).await?);
        assert!((was.payload, was.time, was.subject) == (is.payload, is.time, is.subject), "{seq}");
    }
    // `garage init` accepts the restored streams.
    timeout(Duration::from_secs(30), setup::init(other.client.clone(), 1)).await??;
    Ok(())
}
