//! The decisions on a pool: matches and ticket time-outs. Their outcome updates the players in the pool. This module
//! reads the log only for players whose state is in doubt, and it never waits for events: the caller folds them.

use std::{slice, sync::Arc, time::Duration};

use futures::future::join_all;
use garage_events::{
    env::Env,
    event::Recorded,
    id::{PlayerId, QueueName, SessionId, TicketId},
    log::{AppendError, Decision, Head, Log},
    player::{self, Candidates, NO_COMMON_REGION},
    queue::Queues,
    session::{self, Matched},
    subject::Aggregate,
};
use time::OffsetDateTime;

use crate::{
    domain::{Pool, Proposal, WaitingPlayer, candidates, oldest, pool::Tickets, propose},
    lead::Lead,
};

/// The maximum number of matches in one cycle, and also of time-outs. It is enough for several commits. The other
/// tickets wait for the next cycle, which also sees newer tickets.
pub const MAX_PER_CYCLE: usize = 500;

/// How many tickets of a queue a cycle may leave out because newer state of their players is known. Each match records
/// them. If there are more, the queue waits for the fold.
const MAX_SKIPPED: usize = 100;

/// Longest wait for events between two cycles. Also the pause before retrying when the log does not answer.
pub const IDLE: Duration = Duration::from_secs(1);

/// Decides on the queues that this instance leads. Its pool covers the other queues as well.
#[derive(Debug)]
pub struct Matching<G, W, L> {
    log: G,
    env: W,
    queues: Queues,
    lead: L,
    pool: Pool,
}

/// The outcome of a cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cycle {
    /// The cycle made decisions, so the next one may find more.
    pub busy: bool,
    /// The log did not answer, refused, or lags behind. Pause before the next cycle, so that retries do not add load.
    pub failed: bool,
}

impl<G: Log, W: Env, L: Lead> Matching<G, W, L> {
    /// Starts with an empty pool.
    pub fn new(log: G, env: W, queues: Queues, lead: L) -> Self {
        for (name, queue) in &queues.queues {
            let name = name.to_string();
            metrics::counter!("garage_matches_total", "queue" => name.clone()).increment(0);
            let rules = queue.rules();
            let names = rules.rule_set.rules.iter().map(|rule| rule.name.as_str());
            for rule in names.chain([NO_COMMON_REGION]) {
                metrics::counter!("garage_excluded_total", "queue" => name.clone(), "rule" => rule.to_owned())
                    .increment(0);
            }
            drop(metrics::histogram!("garage_queue_wait_seconds", "queue" => name));
        }
        Self { log, env, queues, lead, pool: Pool::default() }
    }

    /// Replaces the pool with one from a snapshot.
    pub fn restore(&mut self, pool: Pool) {
        self.pool = pool;
    }

    /// The queues.
    pub fn queues(&self) -> &Queues {
        &self.queues
    }

    /// Declares that this instance is ready to lead.
    pub fn compete(&self) {
        self.lead.compete();
    }

    /// The waiting players.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Returns the pool, and releases the leadership.
    pub fn into_pool(self) -> Pool {
        self.pool
    }

    /// Waits until this instance gains or loses the leadership of a queue.
    pub async fn lead_changed(&mut self) {
        self.lead.changed().await;
    }

    /// Whether this instance writes snapshots. The leader of the first queue does.
    pub fn writes_snapshots(&self) -> bool {
        self.queues.queues.keys().next().is_some_and(|queue| self.lead.leads(queue))
    }

    /// Folds the next event of the log.
    pub fn fold(&mut self, player: &PlayerId, recorded: &Recorded<player::Event>) {
        self.pool.fold(player, Head { seq: recorded.seq, n: recorded.n }, &recorded.event);
    }

    /// The queues whose tickets this instance times out: the queues that it leads, and queues that were removed from
    /// the configuration, because no instance leads a removed queue.
    fn queues_to_expire(&self) -> impl Iterator<Item = &QueueName> {
        self.pool.queues().filter(|queue| self.queues.get(queue).is_none() || self.lead.leads(queue))
    }

    /// How long the caller may wait for events before the next cycle: until the next ticket expires, at most [`IDLE`].
    pub fn max_wait(&self) -> Duration {
        let expiries = self.queues_to_expire().filter_map(|queue| self.pool.next_expiry(queue));
        let until = expiries.min().map(|at| at - self.env.now());
        until.map_or(IDLE, |until| Duration::try_from(until).unwrap_or_default().min(IDLE))
    }

    /// The other tickets from the view of a waiting player. `None` if the player does not wait in a queue of this
    /// configuration.
    pub fn candidates(&self, player: &PlayerId) -> Option<Candidates> {
        let queued = self.pool.ticket_of(player)?;
        let rules = self.queues.get(&queued.queue)?.rules();
        let tickets = self.pool.tickets(&queued.queue).all;
        let own = tickets.iter().find(|ticket| ticket.iter().any(|entry| entry.player == *player))?;
        Some(candidates(&rules, &oldest(&rules, &tickets), own, self.env.now()))
    }

    /// Makes matches, and times out expired tickets.
    pub async fn cycle(&mut self) -> Cycle {
        let now = self.env.now();
        let mut timeouts = Vec::new();
        for name in self.queues_to_expire() {
            let expired = self.pool.expired(name, now);
            if expired.is_empty() {
                continue;
            }
            // A removed queue has no rules that could exclude a player.
            let considered = self.queues.get(name).map(|queue| {
                let rules = queue.rules();
                let oldest = oldest(&rules, &self.pool.tickets(name).all);
                (rules, oldest)
            });
            for ticket in expired.into_iter().take(MAX_PER_CYCLE) {
                let found = considered.as_ref().map(|(rules, oldest)| candidates(rules, oldest, &ticket, now));
                for (rule, count) in found.iter().flat_map(|found| &found.excluded) {
                    let (queue, rule) = (name.to_string(), rule.clone());
                    metrics::counter!("garage_excluded_total", "queue" => queue, "rule" => rule)
                        .increment((*count).into());
                }
                timeouts.push(self.time_out(ticket.into_iter().cloned().collect(), found, now));
            }
        }
        let (mut proposals, mut failed) = (Vec::new(), false);
        for (name, queue) in &self.queues.queues {
            metrics::gauge!("garage_queue_depth", "queue" => name.to_string())
                .set(f64::from(u32::try_from(self.pool.depth(name)).unwrap_or(u32::MAX)));
            // An operator may have applied another rule set.
            let players = u32::try_from(queue.players()).unwrap_or(u32::MAX);
            metrics::gauge!("garage_queue_players", "queue" => name.to_string()).set(f64::from(players));
            if !self.lead.leads(name) {
                continue;
            }
            let Tickets { all, skipped } = self.pool.tickets(name);
            if skipped.len() > MAX_SKIPPED {
                tracing::debug!(queue = %name, skipped = skipped.len(), "the fold is far behind; waiting for it");
                continue;
            }
            // The last 32 bits of an id are random.
            let seed = self.env.id().as_u64_pair().1 as u32;
            let rules = queue.rules();
            let found = propose(&rules, &all, seed, now, MAX_PER_CYCLE);
            let decided = Arc::new(Decided { rules: rules.id.to_string(), seed, skipped, now });
            proposals.extend(found.into_iter().map(|proposal| (name, proposal, Arc::clone(&decided))));
        }
        let matches = proposals.iter().map(|(name, proposal, decided)| self.make_match(name, proposal, decided));
        let (timed_out, matched) = futures::join!(join_all(timeouts), join_all(matches));
        let busy = !timed_out.is_empty() || !matched.is_empty();
        for outcome in timed_out.into_iter().chain(matched) {
            failed |= outcome.failed;
            for (player, seq) in outcome.gone {
                self.pool.mark_gone(&player, seq);
            }
            for (player, found) in outcome.reread {
                // The pool rejects an outdated answer of a NATS node that lags behind. The player is read again later.
                failed |= !self.pool.learn(&player, found, now);
            }
        }
        Cycle { busy, failed }
    }

    async fn make_match(&self, name: &QueueName, proposal: &Proposal, decided: &Decided) -> Outcome {
        let session = SessionId::new(self.env.id());
        let Decided { rules, seed, skipped, now } = decided;
        let matched = Matched {
            queue: name.clone(),
            region: proposal.region.clone(),
            teams: proposal.recorded_teams(),
            latencies: proposal.latencies.clone(),
            rules: rules.clone(),
            pool_seq: self.pool.seq(),
            clock: *now,
            seed: *seed,
            skipped: skipped.clone(),
        };
        let players: Vec<WaitingPlayer> = proposal.players().cloned().collect();
        let mut decision = Decision::new(&self.env, session.uuid(), None).change(
            &self.env,
            Aggregate::Session(session),
            Head::default(),
            [session::Event::from(matched)],
        );
        let requeue = self.queues.get(name).is_some_and(|queue| queue.requeue);
        for team in &proposal.teams {
            for entry in &team.players {
                let state = player::State::Waiting(entry.queued.clone());
                let (ticket, team) = (entry.queued.ticket, team.name.clone());
                match player::decide(&state, player::Command::Match { ticket, session, team, requeue }) {
                    Ok(event) => {
                        let aggregate = Aggregate::Player(entry.player.clone());
                        decision = decision.change(&self.env, aggregate, entry.head, [event]);
                    }
                    Err(rejection) => {
                        let player = &entry.player;
                        tracing::error!(player.id = %player, %rejection, "a player in the pool is not waiting");
                        return self.reread(&players).await;
                    }
                }
            }
        }
        match self.log.append(decision).await {
            Ok(sequences) => {
                metrics::counter!("garage_matches_total", "queue" => name.to_string()).increment(1);
                let waits = metrics::histogram!("garage_queue_wait_seconds", "queue" => name.to_string());
                for entry in &players {
                    waits.record((*now - entry.queued.waiting_since).as_seconds_f64().max(0.0));
                }
                // The first sequence belongs to the session's event.
                let players = players.iter().map(|entry| entry.player.clone());
                Outcome { gone: players.zip(sequences.into_iter().skip(1)).collect(), ..Outcome::default() }
            }
            Err(error) => self.recover(error, &players).await,
        }
    }

    /// Times out a ticket, for all of its players in one commit.
    async fn time_out(
        &self,
        players: Vec<WaitingPlayer>,
        candidates: Option<Candidates>,
        now: OffsetDateTime,
    ) -> Outcome {
        let Some(first) = players.first() else { return Outcome::default() };
        let ticket = first.queued.ticket;
        let mut decision = Decision::new(&self.env, ticket.uuid(), None);
        for entry in &players {
            let state = player::State::Waiting(entry.queued.clone());
            let command = player::Command::TimeOut { ticket, now, considered: candidates.clone() };
            let Ok(event) = player::decide(&state, command) else { return Outcome::default() };
            let aggregate = Aggregate::Player(entry.player.clone());
            decision = decision.change(&self.env, aggregate, entry.head, [event]);
        }
        match self.log.append(decision).await {
            Ok(sequences) => {
                metrics::counter!("garage_timeouts_total").increment(1);
                let players = players.iter().map(|entry| entry.player.clone());
                Outcome { gone: players.zip(sequences).collect(), ..Outcome::default() }
            }
            Err(error) => self.recover(error, &players).await,
        }
    }

    async fn recover(&self, error: AppendError, entries: &[WaitingPlayer]) -> Outcome {
        match error {
            AppendError::Conflict(aggregate) => {
                metrics::counter!("garage_conflicts_total").increment(1);
                tracing::debug!(%aggregate, "conflict; match or time-out not stored");
                let moved = |entry: &&WaitingPlayer| aggregate == Aggregate::Player(entry.player.clone());
                match entries.iter().find(moved) {
                    Some(moved) => self.reread(slice::from_ref(moved)).await,
                    // The aggregate that changed is none of these players. Read all of them again: a retry with
                    // unchanged state would fail again.
                    None => self.reread(entries).await,
                }
            }
            error @ (AppendError::Unavailable(_) | AppendError::Full(_) | AppendError::Refused(_)) => {
                tracing::warn!(%error, "match or time-out not stored; will read its players again");
                Outcome { failed: true, ..self.reread(entries).await }
            }
        }
    }

    /// Reads the current state of players whose state in the pool may be outdated.
    async fn reread(&self, entries: &[WaitingPlayer]) -> Outcome {
        let mut outcome = Outcome::default();
        for entry in entries {
            match self.log.player(&entry.player).await {
                Ok(found) => outcome.reread.push((entry.player.clone(), found)),
                Err(error) => {
                    // The player stays in the pool. Decisions on this player fail until a read succeeds.
                    tracing::warn!(player.id = %entry.player, %error, "cannot read the player");
                    outcome.failed = true;
                }
            }
        }
        outcome
    }
}

/// What all matches of a queue in one cycle have in common. With the log, it is enough to make them again.
#[derive(Debug)]
struct Decided {
    rules: String,
    seed: u32,
    skipped: Vec<TicketId>,
    now: OffsetDateTime,
}

/// The state of a decision's players after the append, as far as it is known.
#[derive(Debug, Default)]
struct Outcome {
    /// Players who no longer wait, each with the sequence of the event that ended the wait.
    gone: Vec<(PlayerId, u64)>,
    /// Players who were read again, because the decision was not stored.
    reread: Vec<(PlayerId, garage_events::log::Player)>,
    /// See [`Cycle::failed`].
    failed: bool,
}

#[cfg(test)]
mod tests;
