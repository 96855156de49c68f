//! Rebuilds the projections from the log, and replaces the live ones with the result in one step.
//!
//! The rebuild first folds the whole log in memory, and writes the result under other keys, with its own watermark.
//! Then it applies the events that were appended meanwhile, and finally switches the keys. After that, a running
//! projector sees a changed watermark and continues from there. If a second rebuild starts during the first one, the
//! first one fails.

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::{Client, jetstream};
use garage_events::{
    crash::Point,
    deadline::receive,
    env::{Env, System},
    jetstream::reader::{Range, Reader},
    log::ReadError,
    projection::REBUILD,
    subject::STREAM,
};
use tokio::sync::mpsc;

use super::{InMemoryProjections, Message, apply, filters, identity, is_relevant};
use crate::{
    fold::ProjectedEvent,
    redis::{Advance, Applied, Redis},
};

/// How many events are folded at a time.
const BATCH_SIZE: usize = 10_000;

/// How many batches are read, and how many are decoded, ahead of the fold.
const AHEAD: usize = 2;

/// How long to wait for the next batch. Every request to NATS has a shorter time-out.
const STALLED: Duration = Duration::from_secs(120);

/// A channel of batches. `None` marks the end. If the channel closes without it, the sending task has failed.
type Batches<T> = mpsc::Receiver<Result<Option<Vec<T>>, ReadError>>;

/// The result of a rebuild.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// The sequence that the new projections had at the switch.
    pub seq: u64,
    /// The number of events folded.
    pub events: u64,
}

/// Rebuilds the projections, and replaces the live ones. `progress` receives the number of events folded, the sequence
/// reached, and the sequence to reach.
///
/// # Errors
/// If NATS or Redis does not answer, or if the new projections disappear from Redis. The live projections stay
/// unchanged.
pub async fn rebuild(
    client: Client,
    redis: &Redis,
    mut progress: impl FnMut(u64, u64, u64),
) -> anyhow::Result<Rebuilt> {
    let reader = Reader::open(client.clone(), STREAM).await?;
    let identity = identity(&jetstream::new(client)).await?;
    let name = format!("{identity} {}", System.id());
    redis.begin_rebuild(&name).await.context("Redis does not answer")?;

    let mut at = reader.bounds().await?.last;
    let (mut folded, mut events, mut time) = (InMemoryProjections::default(), 0, None);
    let mut batches = decode(read(reader.range(filters(), 1, at)));
    while let Some(batch) = receive(&mut batches, STALLED)
        .await
        .context("the task that reads the log has failed or does not progress")??
    {
        events += batch.len() as u64;
        let reached = batch.last().map_or(at, |last| last.seq);
        time = batch.last().map(|last| last.time).or(time);
        folded.fold(batch);
        progress(events, reached, at);
    }
    for changes in folded.parts() {
        advance(redis, &name, Advance { changes, ..Advance::default() }).await?;
    }
    advance(redis, &name, Advance { to: at, time, behind: Some(0), ..Advance::default() }).await?;

    // Apply the events that were appended meanwhile. All rounds share one read, and so one consumer.
    let mut range = reader.range(filters(), at + 1, at);
    loop {
        let end = reader.bounds().await?.last;
        range.extend(end);
        while at < end {
            let batch = gather(&mut range).await?;
            let to = batch.get(BATCH_SIZE - 1).map_or(end, |last| last.seq);
            let behind = batch.last().map(|last| last.pending);
            let advance = Advance { from: at, to, behind, ..Advance::default() };
            if apply(redis, Point::ProjectionsMade, &REBUILD, &name, &batch, advance).await? != Applied::At(to) {
                return lost();
            }
            at = to;
            events += batch.len() as u64;
            progress(events, at, end);
        }
        match redis.switch(&identity, &name, reader.bounds().await?.last).await.context("Redis does not answer")? {
            Applied::At(seq) if seq == at => return Ok(Rebuilt { seq, events }),
            // The live projections have a higher sequence. Read more events.
            Applied::At(_) => {}
            Applied::Foreign => return lost(),
        }
    }
}

async fn advance(redis: &Redis, name: &str, advance: Advance) -> anyhow::Result<()> {
    let to = advance.to;
    if redis.apply(Point::ProjectionsMade, &REBUILD, name, &advance).await? == Applied::At(to) {
        Ok(())
    } else {
        lost()
    }
}

/// Reads batches in a task, ahead of their use.
fn read(mut range: Range) -> Batches<Message> {
    let (sender, batches) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        loop {
            let batch = gather(&mut range).await;
            let last = batch.as_ref().map_or(true, |batch| batch.len() < BATCH_SIZE);
            if sender.send(batch.map(Some)).await.is_err() {
                return;
            }
            if last {
                let _ = sender.send(Ok(None)).await;
                return;
            }
        }
    });
    batches
}

/// Decodes batches in a task, so that reading, decoding and folding run in parallel.
fn decode(mut batches: Batches<Message>) -> Batches<ProjectedEvent> {
    let (sender, decoded) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        while let Ok(batch) = receive(&mut batches, STALLED).await {
            let events = |batch: Vec<Message>| batch.iter().filter_map(ProjectedEvent::of).collect();
            let batch = batch.map(|batch| batch.map(events));
            if sender.send(batch).await.is_err() {
                return;
            }
        }
    });
    decoded
}

/// The next messages of players and sessions; fewer than [`BATCH_SIZE`] only at the end of the range.
async fn gather(range: &mut Range) -> Result<Vec<Message>, ReadError> {
    let mut batch = Vec::with_capacity(BATCH_SIZE);
    while batch.len() < BATCH_SIZE
        && let Some(message) = range.next().await?
    {
        if is_relevant(&message) {
            batch.push(message);
        }
    }
    Ok(batch)
}

fn lost<T>() -> anyhow::Result<T> {
    bail!(
        "the new projections were lost: Redis was emptied, or another rebuild has begun; run the rebuild again if necessary"
    )
}
