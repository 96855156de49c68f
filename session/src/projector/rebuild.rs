//! The projections made anew beside the live ones, and put in their place at once.
//!
//! They are folded in memory up to where the log ends, and written under other keys, with a watermark of their own; what
//! has come meanwhile is applied there as to the live ones. A projector that runs finds the watermark moved after the
//! switch, and goes on from there as it does when another projector was quicker. Of two rebuilds at a time the one that
//! began later comes to its end.

use anyhow::{Context as _, bail};
use async_nats::{Client, jetstream};
use garage_events::{
    crash::Point,
    env::{Env, System},
    jetstream::reader::{Range, Reader},
    log::ReadError,
    projection::ANEW,
    subject::STREAM,
};
use tokio::sync::mpsc;

use super::{Message, ProjectedEvent, Whole, apply, concerns, filters, identity};
use crate::redis::{Advance, Applied, Redis};

/// Events that are folded at a time.
const ANEW_BATCH: usize = 10_000;

/// Batches that are read, and parsed, ahead of the fold.
const AHEAD: usize = 2;

/// Batches, and nothing behind the last: who reads may have come to grief.
type Batches<T> = mpsc::Receiver<Result<Option<Vec<T>>, ReadError>>;

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
    let name = format!("{identity} {}", System.id());
    redis.begin_anew(&name).await.context("redis does not answer")?;

    let mut at = reader.bounds().await?.last;
    let (mut whole, mut events, mut time) = (Whole::default(), 0, None);
    let mut batches = parse(read(reader.range(filters(), 1, at)));
    while let Some(batch) = batches.recv().await.context("the log was not read to its end")?? {
        events += batch.len() as u64;
        let reached = batch.last().map_or(at, |last| last.seq);
        time = batch.last().map(|last| last.time).or(time);
        whole.fold(batch);
        progress(events, reached, at);
    }
    for changes in whole.parts() {
        advance(redis, &name, Advance { changes, ..Advance::default() }).await?;
    }
    advance(redis, &name, Advance { to: at, time, behind: Some(0), ..Advance::default() }).await?;

    // What has come meanwhile.
    loop {
        let end = reader.bounds().await?.last;
        let mut range = reader.range(filters(), at + 1, end);
        while at < end {
            let batch = gather(&mut range).await?;
            let to = batch.get(ANEW_BATCH - 1).map_or(end, |last| last.seq);
            let behind = batch.last().map(|last| last.pending);
            let advance = Advance { from: at, to, behind, ..Advance::default() };
            if apply(redis, Point::ProjectionsMade, &ANEW, &name, &batch, advance).await? != Applied::At(to) {
                return gone();
            }
            at = to;
            events += batch.len() as u64;
            progress(events, at, end);
        }
        match redis.switch(&identity, &name, reader.bounds().await?.last).await.context("redis does not answer")? {
            Applied::At(seq) if seq == at => return Ok(Rebuilt { seq, events }),
            // A projector is further.
            Applied::At(_) => {}
            Applied::Foreign => return gone(),
        }
    }
}

async fn advance(redis: &Redis, name: &str, advance: Advance) -> anyhow::Result<()> {
    let to = advance.to;
    if redis.apply(Point::ProjectionsMade, &ANEW, name, &advance).await? == Applied::At(to) { Ok(()) } else { gone() }
}

/// Reads ahead.
fn read(mut range: Range) -> Batches<Message> {
    let (give, batches) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        loop {
            let batch = gather(&mut range).await;
            let last = batch.as_ref().map_or(true, |batch| batch.len() < ANEW_BATCH);
            if give.send(batch.map(Some)).await.is_err() {
                return;
            }
            if last {
                let _ = give.send(Ok(None)).await;
                return;
            }
        }
    });
    batches
}

/// Parses ahead: neither who reads nor who folds waits for it.
fn parse(mut batches: Batches<Message>) -> Batches<ProjectedEvent> {
    let (give, parsed) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        while let Some(batch) = batches.recv().await {
            let parsed = |batch: Vec<Message>| batch.iter().filter_map(ProjectedEvent::of).collect();
            let batch = batch.map(|batch| batch.map(parsed));
            if give.send(batch).await.is_err() {
                return;
            }
        }
    });
    parsed
}

/// The next messages; fewer than [`ANEW_BATCH`] where there are no more.
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

fn gone<T>() -> anyhow::Result<T> {
    bail!("what was made anew is gone: redis was emptied, or another rebuild has begun; run it again if need be")
}
