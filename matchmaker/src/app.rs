//! The main loop: fold events, decide, and decide again while the decisions are being stored.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_nats::jetstream::Context;
use garage_events::{
    deadline::receive,
    env::Env,
    event::Recorded,
    id::PlayerId,
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
        rule_store,
    },
    log::ReadError,
    player::{self, Candidates},
    queue::Queues,
    subject::{Aggregate, PLAYERS, STREAM},
};
use garage_worker::{Health, Shutdown, keep_trying, lag};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::{
    domain::snapshot,
    lead::Lead,
    matching::{Change, IDLE, Matching, Next},
    snapshots::{self, Writer},
};

/// The maximum number of events, outcomes and questions between two calls of [`Matching::decide`].
const MAX_TAKEN: usize = 2_000;

/// Makes matches in the queues that it leads. It folds the other queues as well, so that it can take over their
/// leadership at once.
#[derive(Debug)]
pub struct Matchmaker<W, L> {
    log: JetStreamLog,
    matching: Matching<JetStreamLog, W, L>,
    health: Health,
    /// The sequence of the last folded event, for the lag watch.
    folded: Arc<AtomicU64>,
    questions: mpsc::Receiver<Question>,
}

/// A question about a waiting player, see [`Matching::candidates`].
#[derive(Debug)]
pub struct Question {
    pub player: PlayerId,
    pub reply: oneshot::Sender<Option<Candidates>>,
}

impl<W: Env, L: Lead> Matchmaker<W, L> {
    /// A matchmaker with an empty pool.
    pub fn new(
        log: JetStreamLog,
        env: W,
        queues: Queues,
        lead: L,
        health: Health,
        questions: mpsc::Receiver<Question>,
    ) -> Self {
        let matching = Matching::new(log.clone(), env, queues, lead);
        Self { log, matching, health, folded: Arc::default(), questions }
    }

    /// Makes matches until `shutdown`.
    ///
    /// # Errors
    /// When an event of the log cannot be decoded. Decisions without it could be wrong.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.health.down("pool", "reading the log");
        let (context, queues) = (self.log.context().clone(), self.matching.queues().clone());
        let health = self.health.clone();
        let storing = store_rules(&context, &queues, &health);
        let Some(()) = shutdown.run_until_cancelled(storing).await else { return Ok(()) };
        let Some(caught_up) = shutdown.run_until_cancelled(self.catch_up()).await else { return Ok(()) };
        let (mut follow, mut writer) = caught_up?;
        self.health.up("pool");
        tracing::info!(event.seq = self.matching.pool().seq(), "the pool is up to date; matching starts");
        self.matching.compete();
        let (log, health, folded) = (self.log.clone(), self.health.clone(), Arc::clone(&self.folded));
        tokio::select! {
            result = self.match_until(&shutdown, &mut follow, &mut writer) => result?,
            never = lag::watch("pool", &log, PLAYERS, || folded.load(Ordering::Relaxed), &health) => never,
        }
        let writes_snapshots = self.matching.writes_snapshots();
        // This releases the leadership, so that another instance can take over while the snapshot is written.
        let pool = self.matching.into_pool();
        if writes_snapshots {
            writer.finish(&pool).await;
        }
        Ok(())
    }

    /// Brings the pool up to date, starting from the last snapshot or from the beginning of the log.
    async fn catch_up(&mut self) -> anyhow::Result<(Follow, Writer)> {
        let read_state = || async {
            let (created, state) = self.log.identity().await?;
            let log = snapshot::Log { created, first: state.first_sequence, last: state.last_sequence };
            Ok::<_, ReadError>((log, self.log.last_sequence(PLAYERS).await?))
        };
        let (log, end) = keep_trying("the log", read_state).await;
        let context = self.log.context().clone();
        let restored = snapshots::restore(&context, log).await;
        let start = restored.seq();
        self.matching.restore(restored);
        self.folded.store(start, Ordering::Relaxed);
        let writer = Writer::new(context.clone(), log, start);
        let mut follow = Follow::new(context, STREAM, vec![PLAYERS.into()], start + 1);
        while self.matching.pool().seq() < end {
            let message = follow.next().await;
            self.fold(&message)?;
        }
        Ok((follow, writer))
    }

    async fn match_until(
        &mut self,
        shutdown: &Shutdown,
        follow: &mut Follow,
        writer: &mut Writer,
    ) -> anyhow::Result<()> {
        let mut pause = Instant::now();
        while !shutdown.is_cancelled() {
            let now = Instant::now();
            let mut until = match now < pause {
                true => pause,
                false => match self.matching.decide() {
                    Next::Decide => now,
                    Next::Wait(time) => now + time,
                },
            };
            if self.matching.writes_snapshots() {
                writer.offer(self.matching.pool());
            }
            for _ in 0..MAX_TAKEN {
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => break,
                    change = self.matching.changed() => {
                        if let Change::Settled { failed: true } = change {
                            pause = Instant::now() + IDLE;
                        }
                    }
                    Ok(Question { player, reply }) = receive(&mut self.questions, shutdown) => {
                        // The sender may have stopped waiting.
                        let _ = reply.send(self.matching.candidates(&player));
                    }
                    message = timeout_at(until, follow.next()) => match message {
                        Ok(message) => self.fold(&message)?,
                        Err(_) => break,
                    },
                }
                // Take the others that are there already, and then decide.
                until = now;
            }
        }
        self.matching.settle().await;
        Ok(())
    }

    fn fold(&mut self, message: &Message) -> anyhow::Result<()> {
        self.folded.store(message.seq, Ordering::Relaxed);
        let Some(Aggregate::Player(player)) = Aggregate::of(&message.subject) else { return Ok(()) };
        let recorded = Recorded::<player::Event>::decode(message.seq, message.time, &message.body);
        let recorded =
            recorded.map_err(|error| anyhow::Error::from(error).context(format!("event {}", message.seq)))?;
        self.matching.fold(&player, &recorded);
        Ok(())
    }
}

/// Stores the rule sets of the queues. A match must not name a rule set that nobody can read.
async fn store_rules(context: &Context, queues: &Queues, health: &Health) {
    for (name, queue) in &queues.queues {
        let store = || async {
            rule_store::store(context, &queue.configured.text).await?;
            rule_store::configure(context, name, &queue.configuration()).await
        };
        let noted = || async {
            store().await.inspect_err(|error| health.down("rules", format!("cannot store a rule set: {error}")))
        };
        keep_trying("the store of rule sets", noted).await;
    }
    health.up("rules");
}
