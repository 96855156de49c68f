//! The projections in Redis: live sessions, players, queues, the last hour's counts and timelines.
//!
//! They hold only what the retained log determines, and are applied together with a watermark: the log's identity and
//! the last sequence applied. When it is missing or foreign (Redis was flushed, the log is another) they are made anew
//! from the log's beginning; an operator may have them made anew at any time ([`fn@rebuild`]). Several projectors may run: whoever comes second sees the watermark moved and goes on from there.

pub mod fold;
mod rebuild;
mod whole;

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::Context;
use garage_events::{
    crash::Point,
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
    },
    projection::{FORM, Keys, LIVE},
    subject::{ALL, Aggregate, PLAYERS, SESSIONS, STREAM},
};
use garage_worker::{Health, Shutdown, keep_trying};
use time::format_description::well_known::Rfc3339;
use tokio::time::{sleep, timeout};

use self::fold::{ProjectedEvent, Touched, fold};
pub use self::{
    rebuild::{Rebuilt, rebuild},
    whole::{ProjectedState, Whole},
};
use crate::redis::{Advance, Applied, Redis};

/// Events applied in one script; Redis does nothing else meanwhile.
const BATCH: usize = 500;

/// How long a batch waits for a further event.
const LINGER: Duration = Duration::from_millis(5);

/// How often an idle projector looks whether its projections are still there.
const IDLE: Duration = Duration::from_secs(1);

/// Keeps the projections at the log's end.
#[derive(Debug)]
pub struct Projector {
    log: JetStreamLog,
    redis: Redis,
    health: Health,
}

impl Projector {
    /// A projector of a log into a Redis.
    pub fn new(log: JetStreamLog, redis: Redis, health: Health) -> Self {
        Self { log, redis, health }
    }

    /// Projects until `shutdown`.
    ///
    /// # Errors
    /// None; what does not answer is waited for.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.health.down("redis", "not asked yet");
        let project = async {
            let identity = keep_trying("the log's identity", || identity(self.log.context())).await;
            self.project(&identity).await;
        };
        shutdown.run_until_cancelled(project).await;
        Ok(())
    }

    async fn project(&self, identity: &str) {
        // Asking with an impossible `from` applies nothing, and tells where the projections stand.
        let nowhere = u64::MAX >> 12;
        let mut at = self.apply(identity, nowhere, &[], None).await;
        let mut follow = self.follow(at);
        loop {
            let Batch { messages, behind } = gather(&mut follow).await;
            let (to, behind) = match messages.last() {
                Some(last) => (last.seq, behind),
                None => (at, self.nothing_behind(at).await),
            };
            let stands = self.apply(identity, at, &messages, behind).await;
            if stands != to {
                tracing::info!(from = stands, "the projections were moved by another, or are made anew");
                follow = self.follow(stands);
            }
            at = stands;
            metrics::gauge!("garage_projection_seq").set(f64::from(u32::try_from(at).unwrap_or(u32::MAX)));
        }
    }

    fn follow(&self, at: u64) -> Follow {
        Follow::new(self.log.context().clone(), STREAM, filters(), at + 1)
    }

    /// That nothing comes may be because there is nothing, or because it does not get here: 0 if the log says that there
    /// is nothing behind a sequence, and else nothing that could be told.
    async fn nothing_behind(&self, at: u64) -> Option<u64> {
        let ends = async { tokio::try_join!(self.log.last_sequence(PLAYERS), self.log.last_sequence(SESSIONS)) };
        let (players, sessions) = timeout(IDLE, ends).await.ok()?.ok()?;
        (players.max(sessions) <= at).then_some(0)
    }

    /// Applies a batch, for as long as Redis takes, and tells where the projections stand then.
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
                    tracing::warn!(error, "projections wait for redis");
                    self.health.down("redis", error);
                    sleep(IDLE).await;
                }
            }
        }
    }
}

/// Folds a batch into a set of projections, if it stands at `from`.
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
        let present = redis.present(keys, &Touched::by(&events)).await?;
        advance.changes = fold(events, present);
    }
    redis.apply(point, keys, identity, &advance).await
}

/// What tells this log from one that was made later under the same name, and these projections from another build's.
///
/// # Errors
/// When the log does not answer.
pub async fn identity(context: &Context) -> anyhow::Result<String> {
    let mut stream = context.get_stream(STREAM).await.context("cannot read the log's identity")?;
    let created = stream.info().await.context("cannot read the log's identity")?.created;
    Ok(format!("{FORM} {}", created.format(&Rfc3339)?))
}

/// What is read for the projections. Not the filters of players and sessions alone: with two of them nats-server brings a
/// twentieth of what it does with one, and what is left out here are a few events of each match.
fn filters() -> Vec<String> {
    vec![ALL.into()]
}

/// Whether a message is one that the projections are made of.
fn concerns(message: &Message) -> bool {
    matches!(Aggregate::of(&message.subject), Some(Aggregate::Player(_) | Aggregate::Session(_)))
}

/// Messages, and how many were still to come behind what was read for them; after a while without news, nothing.
#[derive(Debug, Default)]
struct Batch {
    messages: Vec<Message>,
    behind: Option<u64>,
}

/// What is there, up to a bound.
async fn gather(follow: &mut Follow) -> Batch {
    let mut batch = Batch::default();
    let mut max_wait = IDLE;
    while batch.messages.len() < BATCH {
        let Ok(message) = timeout(max_wait, follow.next()).await else { break };
        batch.behind = Some(message.pending);
        max_wait = LINGER;
        if concerns(&message) {
            batch.messages.push(message);
        }
        if batch.behind == Some(0) {
            break;
        }
    }
    batch
}
