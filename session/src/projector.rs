//! Keeps the projections in Redis up to date: live sessions, players, queues, and the statistics and timelines of the
//! last hour.
//!
//! The projections depend only on the log. Each script that changes them also sets the watermark: the log's identity
//! and the last sequence applied. If the watermark is missing (Redis was emptied) or has another identity (it is
//! another log), the projector empties the projections and folds the log from its beginning. An operator can also
//! rebuild them at any time ([`fn@rebuild`]).
//!
//! Several projectors may run. If another one was faster, a projector sees a changed watermark, and continues from
//! there.

mod in_memory;
mod rebuild;

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::Context;
use garage_events::{
    crash::Point,
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
    },
    projection::{FORMAT_VERSION, Keys, LIVE},
    subject::{ALL, Aggregate, PLAYERS, SESSIONS, STREAM},
};
use garage_worker::{Health, Shutdown, keep_trying};
use time::format_description::well_known::Rfc3339;
use tokio::time::{sleep, timeout};

pub use self::{
    in_memory::InMemoryProjections,
    rebuild::{Rebuilt, rebuild},
};
use crate::{
    fold::{ProjectedEvent, Touched, fold},
    redis::{Advance, Applied, Redis},
};

/// How many events one script applies at most. Redis executes nothing else during a script.
const BATCH_SIZE: usize = 500;

/// How long a batch waits for its next event.
const LINGER: Duration = Duration::from_millis(5);

/// How often an idle projector checks the watermark and reports its progress. Also the delay before a retry.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Folds the log into the projections.
#[derive(Debug)]
pub struct Projector {
    log: JetStreamLog,
    redis: Redis,
    health: Health,
}

impl Projector {
    pub fn new(log: JetStreamLog, redis: Redis, health: Health) -> Self {
        Self { log, redis, health }
    }

    /// Updates the projections until `shutdown`.
    ///
    /// # Errors
    /// None. If NATS or Redis does not answer, it retries.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.health.down("redis", "no answer yet");
        let project = async {
            let identity = keep_trying("the log's identity", || identity(self.log.context())).await;
            self.project(&identity).await;
        };
        shutdown.run_until_cancelled(project).await;
        Ok(())
    }

    async fn project(&self, identity: &str) {
        // No projections are at this sequence, so this applies nothing and returns the current sequence.
        let impossible = u64::MAX >> 12;
        let mut at = self.apply(identity, impossible, &[], None).await;
        let mut follow = self.follow(at);
        loop {
            let Batch { messages, behind } = gather(&mut follow).await;
            let (to, behind) = match messages.last() {
                Some(last) => (last.seq, behind),
                None => (at, self.confirm_end(at).await),
            };
            let reached = self.apply(identity, at, &messages, behind).await;
            if reached != to {
                tracing::info!(
                    from = reached,
                    "another projector or a rebuild changed the projections; continuing from there"
                );
                follow = self.follow(reached);
            }
            at = reached;
            metrics::gauge!("garage_projection_seq").set(f64::from(u32::try_from(at).unwrap_or(u32::MAX)));
        }
    }

    fn follow(&self, at: u64) -> Follow {
        Follow::new(self.log.context().clone(), STREAM, filters(), at + 1)
    }

    /// If no message arrives, the log may have no further message, or the read may be interrupted. Returns `Some(0)` if
    /// the log confirms that it has no further message, and `None` otherwise.
    async fn confirm_end(&self, at: u64) -> Option<u64> {
        let ends = async { tokio::try_join!(self.log.last_sequence(PLAYERS), self.log.last_sequence(SESSIONS)) };
        let (players, sessions) = timeout(IDLE_INTERVAL, ends).await.ok()?.ok()?;
        (players.max(sessions) <= at).then_some(0)
    }

    /// Applies a batch to the projections if they are at the sequence `from`. Retries until Redis answers. Returns the
    /// sequence of the projections afterwards.
    async fn apply(&self, identity: &str, from: u64, batch: &[Message], behind: Option<u64>) -> u64 {
        loop {
            let to = batch.last().map_or(from, |last| last.seq);
            let advance = Advance { from, to, behind, ..Advance::default() };
            let result = match apply(&self.redis, Point::Projected, &LIVE, identity, batch, advance).await {
                Ok(Applied::Foreign) => {
                    self.redis.reset(Point::ProjectionsReset, &LIVE, identity).await.map(|()| 0).map_err(Into::into)
                }
                Ok(Applied::At(seq)) => Ok(seq),
                Err(error) => Err(error),
            };
            match result {
                Ok(seq) => {
                    self.health.up("redis");
                    return seq;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "cannot update the projections in Redis; retrying");
                    self.health.down("redis", error);
                    sleep(IDLE_INTERVAL).await;
                }
            }
        }
    }
}

/// Folds a batch into a set of projections, if the set is at the sequence `advance.from`.
async fn apply(
    redis: &Redis,
    point: Point,
    keys: &Keys,
    identity: &str,
    batch: &[Message],
    mut advance: Advance,
) -> anyhow::Result<Applied> {
    let events: Vec<_> = batch.iter().filter_map(ProjectedEvent::of).collect();
    advance.time = batch.last().map(|last| last.time);
    if !events.is_empty() {
        let current = redis.read_touched(keys, &Touched::by(&events)).await?;
        advance.changes = fold(events, current);
    }
    redis.apply(point, keys, identity, &advance).await
}

/// The identity of the log, as stored in the watermark. It contains the stream's creation time, which differs if the
/// stream was deleted and recreated, and the version of the projections' format.
///
/// # Errors
/// If the log does not answer.
pub async fn identity(context: &Context) -> anyhow::Result<String> {
    let mut stream = context.get_stream(STREAM).await.context("cannot read the log's identity")?;
    let created = stream.info().await.context("cannot read the log's identity")?.created;
    Ok(format!("{FORMAT_VERSION} {}", created.format(&Rfc3339)?))
}

/// The filters of the read. They select all events, not only the events of players and sessions: with two filters, the
/// NATS server delivers 20 times fewer messages per second than with one. There are few other events.
fn filters() -> Vec<String> {
    vec![ALL.into()]
}

/// Whether a message belongs to a player or a session.
fn is_relevant(message: &Message) -> bool {
    matches!(Aggregate::of(&message.subject), Some(Aggregate::Player(_) | Aggregate::Session(_)))
}

/// The next messages; empty if none has arrived for [`IDLE_INTERVAL`].
#[derive(Debug, Default)]
struct Batch {
    messages: Vec<Message>,
    /// How many messages were still unread after the last one read; `None` if none was read.
    behind: Option<u64>,
}

/// Reads the messages that are available, up to [`BATCH_SIZE`].
async fn gather(follow: &mut Follow) -> Batch {
    let mut batch = Batch::default();
    let mut max_wait = IDLE_INTERVAL;
    while batch.messages.len() < BATCH_SIZE {
        let Ok(message) = timeout(max_wait, follow.next()).await else { break };
        batch.behind = Some(message.pending);
        max_wait = LINGER;
        if is_relevant(&message) {
            batch.messages.push(message);
        }
        if batch.behind == Some(0) {
            break;
        }
    }
    batch
}
