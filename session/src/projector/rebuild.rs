//! The projections made anew beside the live ones, and put in their place at once.
//!
//! They are folded by the same scripts under other keys, with a watermark of their own. A projector that runs meanwhile
//! finds the watermark moved after the switch, and goes on from there as it does when another projector was quicker.
//! Two rebuilds at a time help each other in the same way, until one has switched.

use anyhow::{Context as _, bail};
use async_nats::{Client, jetstream};
use garage_events::{
    jetstream::reader::{Range, Reader},
    log::ReadError,
    projection::ANEW,
    subject::STREAM,
};
use tokio::sync::mpsc;

use super::{Message, apply, concerns, filters, identity};
use crate::redis::{Applied, Redis};

/// Events applied in one script. The more there are, the more of a session are written at once; and Redis does nothing
/// else meanwhile, for some tens of milliseconds.
const ANEW_BATCH: usize = 10_000;

/// What a rebuild did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// Where in the log the projections stood when they were put in place.
    pub seq: u64,
    /// Events that were folded.
    pub events: u64,
}

/// Makes the projections anew, and puts them in place. `progress` is told of the events folded, and of the sequence
/// reached and the one to reach.
///
/// # Errors
/// When NATS or Redis does not answer, or Redis loses what was made; the live projections are as they were then.
pub async fn rebuild(
    client: Client,
    redis: &Redis,
    mut progress: impl FnMut(u64, u64, u64),
) -> anyhow::Result<Rebuilt> {
    let reader = Reader::open(client.clone(), STREAM).await?;
    let identity = identity(&jetstream::new(client)).await?;
    redis.begin_anew(&identity).await.context("redis does not answer")?;
    let (mut at, mut events) = (0, 0);
    loop {
        // Up to where the stream is, not only its last event of ours: that one may be too old to be there.
        let end = reader.bounds().await?.last;
        let mut batches = read(reader.range(filters(), at + 1, end));
        while at < end {
            // Without a batch nothing is left.
            let batch = batches.recv().await.transpose()?.unwrap_or_default();
            let to = batch.get(ANEW_BATCH - 1).map_or(end, |last| last.seq);
            let behind = batch.last().map(|last| last.pending);
            match apply(redis, &ANEW, &identity, at, to, &batch, behind).await? {
                Applied::At(stands) => {
                    if stands != to {
                        batches = read(reader.range(filters(), stands + 1, end));
                    }
                    at = stands;
                }
                Applied::Foreign => return gone(),
            }
            events += batch.len() as u64;
            progress(events, at, end);
        }
        match redis.switch(&identity, reader.bounds().await?.last).await.context("redis does not answer")? {
            Applied::At(seq) if seq == at => return Ok(Rebuilt { seq, events }),
            // A projector was quicker by some events: on to where the log is now.
            Applied::At(_) => {}
            Applied::Foreign => return gone(),
        }
    }
}

/// Reads a range, a batch ahead of who takes them.
fn read(mut range: Range) -> mpsc::Receiver<Result<Vec<Message>, ReadError>> {
    let (give, batches) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let batch = gather(&mut range).await;
            let last = batch.as_ref().map_or(true, |batch| batch.len() < ANEW_BATCH);
            // Who takes no more has found others to be quicker, or has ended.
            if give.send(batch).await.is_err() || last {
                return;
            }
        }
    });
    batches
}

/// What is left of the range, up to a bound.
async fn gather(range: &mut Range) -> Result<Vec<Message>, ReadError> {
    let mut batch = Vec::with_capacity(ANEW_BATCH);
    while batch.len() < ANEW_BATCH
        && let Some(message) = range.next().await?
    {
        if concerns(&message) {
            batch.push(message);
        }
    }
    Ok(batch)
}

fn gone() -> anyhow::Result<Rebuilt> {
    bail!("what was made anew is gone: redis was emptied, or another rebuild came to its end; run it again if need be")
}
