//! Keeps the projections in Redis up to date: live sessions, players, queues, and the statistics and timelines of the
//! last hour.
//!
//! The projections depend only on the log. Each script that changes them also sets the watermark: the log's identity
//! and the last sequence applied. If the watermark is missing (Redis was emptied) or has another identity (it is
//! another log), the projector empties the projections and folds the log from its beginning. An operator can also
//! rebuild them at any time ([`fn@rebuild`]).
//!
//! One instance holds a lease and writes the projections. The others stand by: they read the log as well, and keep the
//! messages that the projections do not include yet. So an instance that takes over continues at once, with the
//! consumer that it has. The lease only avoids duplicate work. If two instances write for a moment, or if an operator
//! rebuilds the projections, the watermark does not match, and the projector continues from the sequence that it finds.

mod backlog;
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
    lease,
    projection::{FORMAT_VERSION, Keys, LIVE},
    subject::{ALL, Aggregate, PLAYERS, SESSIONS, STREAM},
};
use garage_worker::{Health, Shutdown, keep_trying, lease::Leases};
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep, timeout};

use self::backlog::Backlog;
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

/// How often an idle projector checks the watermark and reports its progress, and how often an instance that stands by
/// reads it. Also the delay before a retry.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);

/// Where the projections are after a step.
#[derive(Debug, Clone, Copy)]
enum At {
    /// There were none. Now there are empty ones.
    Beginning,
    /// At this sequence. If it is the one after the step, the step was applied.
    Found(u64),
}

impl At {
    fn seq(self) -> u64 {
        match self {
            Self::Beginning => 0,
            Self::Found(seq) => seq,
        }
    }
}

fn continue_from(seq: u64, backlog: &mut Backlog, follow: &mut Follow) {
    if !backlog.advance(seq) {
        backlog.restart(seq);
        follow.seek(seq + 1);
    }
}

/// Folds the log into the projections.
#[derive(Debug)]
pub struct Projector {
    log: JetStreamLog,
    redis: Redis,
    /// Includes [`lease::PROJECTOR`].
    leases: Leases,
    health: Health,
}

impl Projector {
    /// A projector that writes while it holds [`lease::PROJECTOR`], which must be one of the leases.
    pub fn new(log: JetStreamLog, redis: Redis, leases: Leases, health: Health) -> Self {
        Self { log, redis, leases, health }
    }

    /// Updates the projections until `shutdown`.
    ///
    /// # Errors
    /// None. If NATS or Redis does not answer, it retries.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.health.down("redis", "no answer yet");
        let project = async {
            let identity = keep_trying("the log's identity", || identity(self.log.context())).await;
            self.project(&identity).await;
        };
        shutdown.run_until_cancelled(project).await;
        Ok(())
    }

    async fn project(&mut self, identity: &str) {
        let at = loop {
            match self.watermark(identity).await {
                Some(seq) => break seq,
                None => sleep(IDLE_INTERVAL).await,
            }
        };
        let mut backlog = Backlog::new(at);
        let mut follow = Follow::new(self.log.context().clone(), STREAM, filters(), at + 1);
        self.leases.compete();
        let mut leading = false;
        let mut checked = Instant::now();
        loop {
            let led = leading;
            leading = self.leases.holds(lease::PROJECTOR);
            if leading && !led {
                // The former holder has written until now.
                self.take_over(identity, &mut backlog, &mut follow).await;
            } else if !leading && checked.elapsed() >= IDLE_INTERVAL {
                checked = Instant::now();
                if let Some(seq) = self.watermark(identity).await {
                    backlog.advance(seq);
                }
            }
            let full = leading && backlog.len() >= BATCH_SIZE;
            tokio::select! {
                () = self.leases.changed() => continue,
                // Dropping this future loses no message.
                () = backlog.gather(&mut follow), if !full => {}
                () = std::future::ready(()), if full => {}
            }
            if leading && self.leases.holds(lease::PROJECTOR) {
                self.advance(identity, &mut backlog, &mut follow).await;
            }
            metrics::gauge!("garage_projection_seq").set(f64::from(u32::try_from(backlog.after()).unwrap_or(u32::MAX)));
        }
    }

    /// Continues from the sequence that the projections have now.
    async fn take_over(&self, identity: &str, backlog: &mut Backlog, follow: &mut Follow) {
        // This applies nothing.
        if let Some(at) = self.apply(identity, backlog.after(), &[], None).await {
            continue_from(at.seq(), backlog, follow);
        }
    }

    /// Applies the next batch of the backlog. If another process has changed the projections, it continues from there.
    async fn advance(&self, identity: &str, backlog: &mut Backlog, follow: &mut Follow) {
        let from = backlog.after();
        let (batch, behind) = backlog.batch();
        let (to, behind) = match batch.last() {
            Some(last) => (last.seq, behind),
            None => (from, self.confirm_end(from).await),
        };
        let Some(at) = self.apply(identity, from, batch, behind).await else {
            return sleep(IDLE_INTERVAL).await;
        };
        if let At::Found(seq) = at
            && seq != to
        {
            tracing::info!(from = seq, "another projector or a rebuild changed the projections; continuing from there");
        }
        continue_from(at.seq(), backlog, follow);
    }

    /// The sequence of the projections; 0 if there are none yet. `None` if Redis does not answer.
    async fn watermark(&self, identity: &str) -> Option<u64> {
        self.answer(self.redis.watermark(identity).await).map(Option::unwrap_or_default)
    }

    /// If no message arrives, the log may have no further message, or the read may be interrupted. Returns `Some(0)` if
    /// the log confirms that it has no further message, and `None` otherwise.
    async fn confirm_end(&self, at: u64) -> Option<u64> {
        let ends = async { tokio::try_join!(self.log.last_sequence(PLAYERS), self.log.last_sequence(SESSIONS)) };
        let (players, sessions) = timeout(IDLE_INTERVAL, ends).await.ok()?.ok()?;
        (players.max(sessions) <= at).then_some(0)
    }

    /// Applies a batch to the projections if they are at the sequence `from`. Returns where they are afterwards; `None`
    /// if Redis does not answer.
    async fn apply(&self, identity: &str, from: u64, batch: &[Message], behind: Option<u64>) -> Option<At> {
        let to = batch.last().map_or(from, |last| last.seq);
        let advance = Advance { from, to, behind, ..Advance::default() };
        let result = match apply(&self.redis, Point::Projected, &LIVE, identity, batch, advance).await {
            Ok(Applied::Foreign) => {
                tracing::info!("Redis has no projections of this log; folding the log from its beginning");
                let reset = self.redis.reset(Point::ProjectionsReset, &LIVE, identity).await;
                reset.map(|()| At::Beginning).map_err(Into::into)
            }
            Ok(Applied::At(seq)) => Ok(At::Found(seq)),
            Err(error) => Err(error),
        };
        self.answer(result)
    }

    /// Reports whether Redis answers.
    fn answer<T>(&self, result: anyhow::Result<T>) -> Option<T> {
        match result {
            Ok(answer) => {
                self.health.up("redis");
                Some(answer)
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "cannot read or update the projections in Redis; retrying");
                self.health.down("redis", error);
                None
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
