//! The decisions on a pool: matches and expired tickets, and what their outcome taught. It reads nothing but whom it
//! doubts, and does not wait; who reads the log folds it in.

use std::{slice, time::Duration};

use futures::future::join_all;
use garage_events::{
    env::Env,
    event::Recorded,
    id::{PlayerId, QueueName, SessionId},
    log::{AppendError, Decision, Head, Log},
    player,
    queue::Queues,
    session::{self, Matched},
    subject::Aggregate,
};

use crate::{
    domain::{Pool, Proposal, WaitingPlayer, propose, rule},
    lead::Lead,
};

/// Matches, and expired tickets, of one cycle; several commits' worth. More waits for the next cycle, which sees more.
const CYCLE: usize = 500;

/// The longest that one waits for news, or until a log is asked again that does not answer.
pub const IDLE: Duration = Duration::from_secs(1);

/// Decides on the queues that it leads; of the others it knows who waits.
#[derive(Debug)]
pub struct Matching<G, W, L> {
    log: G,
    env: W,
    queues: Queues,
    lead: L,
    pool: Pool,
}

/// How a cycle went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cycle {
    /// There was something to do, so that there may be more.
    pub busy: bool,
    /// The log does not answer, or refuses, or lags: asking at once again would only add to it.
    pub failed: bool,
}

impl<G: Log, W: Env, L: Lead> Matching<G, W, L> {
    /// Knows nobody yet.
    pub fn new(log: G, env: W, queues: Queues, lead: L) -> Self {
        Self { log, env, queues, lead, pool: Pool::default() }
    }

    /// Begins with a pool of before.
    pub fn restore(&mut self, pool: Pool) {
        self.pool = pool;
    }

    /// From now on this instance is ready to lead.
    pub fn compete(&self) {
        self.lead.compete();
    }

    /// Who waits.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The pool alone; another may lead from now on.
    pub fn into_pool(self) -> Pool {
        self.pool
    }

    /// Waits until it leads another queue than before.
    pub async fn lead_changed(&mut self) {
        self.lead.changed().await;
    }

    /// Whether this instance is the one that writes snapshots: it leads the first of the queues.
    pub fn writes(&self) -> bool {
        self.queues.queues.keys().next().is_some_and(|queue| self.lead.leads(queue))
    }

    /// Takes the next event of the log in.
    pub fn fold(&mut self, player: &PlayerId, recorded: &Recorded<player::Event>) {
        self.pool.fold(player, Head { seq: recorded.seq, n: recorded.n }, &recorded.event);
    }

    /// The queues whose tickets it ends: those that it leads, and those that nobody can lead because their file no longer
    /// has them.
    fn ended_here(&self) -> impl Iterator<Item = &QueueName> {
        self.pool.queues().filter(|queue| self.queues.get(queue).is_none() || self.lead.leads(queue))
    }

    /// How long one may wait for news before the next cycle.
    pub fn max_wait(&self) -> Duration {
        let expiries = self.ended_here().filter_map(|queue| self.pool.next_expiry(queue));
        let until = expiries.min().map(|at| at - self.env.now());
        until.map_or(IDLE, |until| Duration::try_from(until).unwrap_or_default().min(IDLE))
    }

    /// Makes what matches can be made, and ends what tickets have expired.
    pub async fn cycle(&mut self) -> Cycle {
        let now = self.env.now();
        let expired = self.ended_here().flat_map(|queue| self.pool.expired(queue, now));
        let expired: Vec<WaitingPlayer> = expired.take(CYCLE).cloned().collect();
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
        Cycle { busy, failed }
    }

    async fn make(&self, name: &QueueName, proposal: &Proposal, now: time::OffsetDateTime) -> Outcome {
        let session = SessionId::new(self.env.id());
        let teams = proposal.teams();
        let matched = Matched {
            queue: name.clone(),
            region: proposal.region.clone(),
            teams: teams.clone(),
            rules: rule::VERSION.into(),
            pool_seq: self.pool.seq(),
            clock: now,
        };
        let mut decision = Decision::new(&self.env, session.uuid(), None).change(
            &self.env,
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
                    decision = decision.change(&self.env, aggregate, entry.head, [event]);
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

    async fn time_out(&self, entry: &WaitingPlayer, now: time::OffsetDateTime) -> Outcome {
        let ticket = entry.queued.ticket;
        let state = player::State::Waiting(entry.queued.clone());
        let Ok(event) = player::decide(&state, player::Command::TimeOut { ticket, now }) else {
            return Outcome::default();
        };
        let decision = Decision::new(&self.env, ticket.uuid(), None).change(
            &self.env,
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

    async fn recover(&self, error: AppendError, entries: &[WaitingPlayer]) -> Outcome {
        match error {
            AppendError::Conflict(aggregate) => {
                metrics::counter!("garage_conflicts_total").increment(1);
                tracing::debug!(%aggregate, "match not made");
                let moved = |entry: &&WaitingPlayer| aggregate == Aggregate::Player(entry.player.clone());
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
    async fn reread(&self, entries: &[WaitingPlayer]) -> Outcome {
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
