//! Fold, decide, commit, fold the outcome, and decide again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use garage_events::{
    env::Env,
    event::Recorded,
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
    },
    log::ReadError,
    player,
    queue::Queues,
    subject::{Aggregate, PLAYERS, STREAM},
};
use garage_worker::{Health, Shutdown, keep_trying, lag};
use tokio::time::{sleep, timeout};

use crate::{
    domain::snapshot,
    lead::Lead,
    matching::{Cycle, IDLE, Matching},
    snapshots::{self, Writer},
};

/// Events folded before matches are made again.
const FOLD: usize = 2_000;

/// Matches players of the queues that it leads; of the others it knows who waits, so that it may lead them at once.
#[derive(Debug)]
pub struct Matchmaker<W, L> {
    log: JetStreamLog,
    matching: Matching<JetStreamLog, W, L>,
    health: Health,
    /// Where the pool stands, for who watches it.
    folded: Arc<AtomicU64>,
}

impl<W: Env, L: Lead> Matchmaker<W, L> {
    /// A matchmaker that knows nobody yet.
    pub fn new(log: JetStreamLog, env: W, queues: Queues, lead: L, health: Health) -> Self {
        let matching = Matching::new(log.clone(), env, queues, lead);
        Self { log, matching, health, folded: Arc::default() }
    }

    /// Matches until `shutdown`.
    ///
    /// # Errors
    /// When an event of the log cannot be read: deciding without it could be wrong.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.health.down("pool", "reading the log");
        let Some(begun) = shutdown.run_until_cancelled(self.begin()).await else { return Ok(()) };
        let (mut follow, mut writer) = begun?;
        self.health.up("pool");
        tracing::info!(event.seq = self.matching.pool().seq(), "pool is up to date; matching begins");
        self.matching.compete();
        let (log, health, folded) = (self.log.clone(), self.health.clone(), Arc::clone(&self.folded));
        tokio::select! {
            result = self.match_until(&shutdown, &mut follow, &mut writer) => result?,
            never = lag::watch("pool", &log, PLAYERS, || folded.load(Ordering::Relaxed), &health) => never,
        }
        let writes = self.matching.writes();
        // Another may go on while the snapshot is written.
        let pool = self.matching.into_pool();
        if writes {
            writer.finish(&pool).await;
        }
        Ok(())
    }

    /// Brings the pool up to date, from the last snapshot or from the log's beginning.
    async fn begin(&mut self) -> anyhow::Result<(Follow, Writer)> {
        let look = || async {
            let (created, state) = self.log.identity().await?;
            let log = snapshot::Log { created, first: state.first_sequence, last: state.last_sequence };
            Ok::<_, ReadError>((log, self.log.last_sequence(PLAYERS).await?))
        };
        let (log, end) = keep_trying("the log", look).await;
        let context = self.log.context().clone();
        let restored = snapshots::restore(&context, log).await;
        let begin = restored.seq();
        self.matching.restore(restored);
        self.folded.store(begin, Ordering::Relaxed);
        let writer = Writer::new(context.clone(), log, begin);
        let mut follow = Follow::new(context, STREAM, vec![PLAYERS.into()], begin + 1);
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
        while !shutdown.is_cancelled() {
            let Cycle { busy, failed } = self.matching.cycle().await;
            if failed {
                sleep(IDLE).await;
            }
            if self.matching.writes() {
                writer.offer(self.matching.pool());
            }
            let mut max_wait = if busy { Duration::ZERO } else { self.matching.max_wait() };
            for _ in 0..FOLD {
                let message = tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = self.matching.lead_changed() => break,
                    message = timeout(max_wait, follow.next()) => message,
                };
                let Ok(message) = message else { break };
                self.fold(&message)?;
                max_wait = Duration::ZERO;
            }
        }
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
