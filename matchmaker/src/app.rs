//! Fold, decide, commit, fold the outcome, and decide again.

use std::{
    slice,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use garage_events::{
    event::Recorded,
    id::{PlayerId, QueueName, SessionId},
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
    },
    log::{Append, AppendError, Decision, Head, Load, ReadError},
    player,
    queue::Queues,
    session::{self, Matched},
    subject::{Aggregate, PLAYERS, STREAM},
    world::World,
};
use garage_worker::{Health, Shutdown, lag, patiently};
use tokio::time::{sleep, timeout};

use crate::{
    domain::{Entry, Pool, Proposal, propose, rule, snapshot},
    lead::Lead,
    snapshots::{self, Writer},
};

/// Matches, and expired tickets, of one cycle; several commits' worth. More waits for the next cycle, which sees more.
const CYCLE: usize = 500;

/// Events folded before matches are made again.
const FOLD: usize = 2_000;

/// The longest that a cycle waits for news.
const IDLE: Duration = Duration::from_secs(1);

/// Matches players of the queues that it leads; of the others it knows who waits, so that it may lead them at once.
#[derive(Debug)]
pub struct Matchmaker<W, L> {
    log: JetStreamLog,
    world: W,
    queues: Queues,
    lead: L,
    health: Health,
    pool: Pool,
    /// Where the pool stands, for who watches it.
    folded: Arc<AtomicU64>,
}

impl<W: World, L: Lead> Matchmaker<W, L> {
    /// A matchmaker that knows nobody yet.
    pub fn new(log: JetStreamLog, world: W, queues: Queues, lead: L, health: Health) -> Self {
        Self { log, world, queues, lead, health, pool: Pool::default(), folded: Arc::default() }
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
        tracing::info!(event.seq = self.pool.seq(), "pool is up to date; matching begins");
        self.lead.compete();
        let (log, health, folded) = (self.log.clone(), self.health.clone(), Arc::clone(&self.folded));
        tokio::select! {
            result = self.match_until(&shutdown, &mut follow, &mut writer) => result?,
            never = lag::watch("pool", &log, PLAYERS, || folded.load(Ordering::Relaxed), &health) => never,
        }
        let writes = self.writes();
        let Self { lead, pool, .. } = self;
        // Another may go on while the snapshot is written.
        drop(lead);
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
        let (log, end) = patiently("the log", look).await;
        let context = self.log.context().clone();
        self.pool = snapshots::restore(&context, log).await;
        self.folded.store(self.pool.seq(), Ordering::Relaxed);
        let writer = Writer::new(context.clone(), log, self.pool.seq());
        let mut follow = Follow::new(context, STREAM, vec![PLAYERS.into()], self.pool.seq() + 1);
        while self.pool.seq() < end {
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
            let made = self.cycle().await;
            if self.writes() {
                writer.offer(&self.pool);
            }
            let mut patience = if made { Duration::ZERO } else { self.patience() };
            for _ in 0..FOLD {
                let message = tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = self.lead.changed() => break,
                    message = timeout(patience, follow.next()) => message,
                };
                let Ok(message) = message else { break };
                self.fold(&message)?;
                patience = Duration::ZERO;
            }
        }
        Ok(())
    }

    /// Whether this instance is the one that writes snapshots: it leads the first of the queues.
    fn writes(&self) -> bool {
        self.queues.queues.keys().next().is_some_and(|queue| self.lead.leads(queue))
    }

    /// The queues whose tickets it ends: those that it leads, and those that nobody can lead because their file no longer
    /// has them.
    fn ended_here(&self) -> impl Iterator<Item = &QueueName> {
        self.pool.queues().filter(|queue| self.queues.get(queue).is_none() || self.lead.leads(queue))
    }

    fn fold(&mut self, message: &Message) -> anyhow::Result<()> {
        self.folded.store(message.seq, Ordering::Relaxed);
        let Some(Aggregate::Player(player)) = Aggregate::of(&message.subject) else { return Ok(()) };
        let recorded = Recorded::<player::Event>::decode(message.seq, message.time, &message.body);
        let recorded =
            recorded.map_err(|error| anyhow::Error::from(error).context(format!("event {}", message.seq)))?;
        self.pool.fold(&player, Head { seq: recorded.seq, n: recorded.n }, &recorded.event);
        Ok(())
    }

    fn patience(&self) -> Duration {
        let expiries = self.ended_here().filter_map(|queue| self.pool.next_expiry(queue));
        let until = expiries.min().map(|at| at - self.world.now());
        until.map_or(IDLE, |until| Duration::try_from(until).unwrap_or_default().min(IDLE))
    }

    /// Makes what matches can be made, and ends what tickets have expired. Tells whether there was anything to do.
    async fn cycle(&mut self) -> bool {
        let now = self.world.now();
        let expired = self.ended_here().flat_map(|queue| self.pool.expired(queue, now));
        let expired: Vec<Entry> = expired.take(CYCLE).cloned().collect();
        let timeouts = expired.iter().map(|entry| self.time_out(entry, now));
        let mut proposals = Vec::new();
        for (name, queue) in &self.queues.queues {
            metrics::gauge!("garage_queue_depth", "queue" => name.to_string())
                .set(f64::from(u32::try_from(self.pool.depth(name)).unwrap_or(u32::MAX)));
            if !self.lead.leads(name) {
                continue;
            }
            let live = self.pool.waiting(name).filter(|entry| entry.queued.expires_at > now);
            let found = propose(queue, live, CYCLE);
            proposals.extend(found.into_iter().map(|proposal| (name, proposal)));
        }
        let matches = proposals.iter().map(|(name, proposal)| self.make(name, proposal, now));
        let (ended, made) = futures::join!(join_all(timeouts), join_all(matches));
        let busy = !ended.is_empty() || !made.is_empty();
        let mut failed = false;
        for outcome in ended.into_iter().chain(made) {
            failed |= outcome.failed;
            for (player, seq) in outcome.gone {
                self.pool.gone(&player, seq);
            }
            for (player, found) in outcome.learnt {
                // What a lagging server says of him is no news: it is asked again later.
                failed |= !self.pool.learn(&player, found, now);
            }
        }
        if failed {
            // The log does not answer, or refuses: asking at once again would only add to it.
            sleep(IDLE).await;
        }
        busy
    }

    async fn make(&self, name: &QueueName, proposal: &Proposal, now: time::OffsetDateTime) -> Outcome {
        let session = SessionId::new(self.world.id());
        let teams = proposal.teams();
        let matched = Matched {
            queue: name.clone(),
            region: proposal.region.clone(),
            teams: teams.clone(),
            rules: rule::VERSION.into(),
            pool_seq: self.pool.seq(),
            clock: now,
        };
        let mut decision = Decision::new(&self.world, session.uuid(), None).change(
            &self.world,
            Aggregate::Session(session),
            Head::default(),
            [session::Event::from(matched)],
        );
        for (entry, team) in proposal.players.iter().zip(teams) {
            let state = player::State::Waiting(entry.queued.clone());
            let command = player::Command::Match { ticket: entry.queued.ticket, session, team: team.name };
            match player::decide(&state, command) {
                Ok(event) => {
                    let aggregate = Aggregate::Player(entry.player.clone());
                    decision = decision.change(&self.world, aggregate, entry.head, [event]);
                }
                Err(rejection) => {
                    tracing::error!(player.id = %entry.player, %rejection, "the pool holds who does not wait");
                    return self.reread(&proposal.players).await;
                }
            }
        }
        match self.log.append(decision).await {
            Ok(sequences) => {
                metrics::counter!("garage_matches_total", "queue" => name.to_string()).increment(1);
                // The first is the session's.
                let players = proposal.players.iter().map(|entry| entry.player.clone());
                Outcome { gone: players.zip(sequences.into_iter().skip(1)).collect(), ..Outcome::default() }
            }
            Err(error) => self.recover(error, &proposal.players).await,
        }
    }

    async fn time_out(&self, entry: &Entry, now: time::OffsetDateTime) -> Outcome {
        let ticket = entry.queued.ticket;
        let state = player::State::Waiting(entry.queued.clone());
        let Ok(event) = player::decide(&state, player::Command::TimeOut { ticket, now }) else {
            return Outcome::default();
        };
        let decision = Decision::new(&self.world, ticket.uuid(), None).change(
            &self.world,
            Aggregate::Player(entry.player.clone()),
            entry.head,
            [event],
        );
        match self.log.append(decision).await {
            Ok(sequences) => {
                metrics::counter!("garage_timeouts_total").increment(1);
                let gone = sequences.into_iter().map(|seq| (entry.player.clone(), seq)).collect();
                Outcome { gone, ..Outcome::default() }
            }
            Err(error) => self.recover(error, slice::from_ref(entry)).await,
        }
    }

    async fn recover(&self, error: AppendError, entries: &[Entry]) -> Outcome {
        match error {
            AppendError::Conflict(aggregate) => {
                metrics::counter!("garage_conflicts_total").increment(1);
                tracing::debug!(%aggregate, "match not made");
                let moved = |entry: &&Entry| aggregate == Aggregate::Player(entry.player.clone());
                match entries.iter().find(moved) {
                    Some(moved) => self.reread(slice::from_ref(moved)).await,
                    // Whoever it was, with all that is known unchanged the next try would fare the same.
                    None => self.reread(entries).await,
                }
            }
            error @ (AppendError::Unavailable(_) | AppendError::Refused(_)) => {
                tracing::warn!(%error, "match not made; its players are read again");
                Outcome { failed: true, ..self.reread(entries).await }
            }
        }
    }

    /// Reads players anew whose place in the pool is in doubt.
    async fn reread(&self, entries: &[Entry]) -> Outcome {
        let mut outcome = Outcome::default();
        for entry in entries {
            match self.log.player(&entry.player).await {
                Ok(found) => outcome.learnt.push((entry.player.clone(), found)),
                Err(error) => {
                    // He stays in the pool; the next decision on him will be refused until he can be read.
                    tracing::warn!(player.id = %entry.player, %error, "player cannot be read");
                    outcome.failed = true;
                }
            }
        }
        outcome
    }
}

/// What a decision taught about the players it was on.
#[derive(Debug, Default)]
struct Outcome {
    gone: Vec<(PlayerId, u64)>,
    learnt: Vec<(PlayerId, garage_events::log::Player)>,
    failed: bool,
}
