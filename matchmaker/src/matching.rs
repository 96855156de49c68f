//! Makes matches of a pool and times out tickets. These decisions are committed while further ones are made. Their
//! outcome updates the players in the pool. This module reads the log only for players whose state is in doubt, and it
//! never waits for events: the caller folds them.

use std::{collections::BTreeMap, slice, sync::Arc, time::Duration};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use garage_events::{
    env::Env,
    event::Recorded,
    id::{PlayerId, QueueName, SessionId},
    log::{AppendError, Decision, Head, Log},
    player::{self, Candidates, NO_COMMON_REGION},
    queue::{Queues, SEARCH_STEPS},
    rules::{Rules, millis},
    session::{self, Matched, Proposed},
    subject::Aggregate,
};
use garage_rules::engine::{End, Limits};
use time::OffsetDateTime;

use crate::{
    domain::{Matcher, Pool, Proposal, Proposals, WaitingPlayer, bounds, candidates, oldest},
    lead::Lead,
};

/// The maximum number of matches of a cycle. The next cycle continues, with newer tickets too.
const MAX_PER_CYCLE: usize = 2_000;

/// How much is done at once. The first matches of a cycle are committed while the next ones are made.
const PART: Limits = Limits { matches: 100, work: 50_000 };

/// The maximum number of parts of a cycle. With a release build, a cycle without matches takes about a second.
const MAX_PARTS: usize = 20;

/// The maximum number of time-outs that are decided at once for a queue.
const MAX_TIMEOUTS: usize = 500;

/// A cycle begins only if at most this many tickets of the queue must be left out, because a decision on them is being
/// committed or is not folded yet. Each match of the cycle records them.
const MAX_LEFT_OUT: usize = 100;

/// If the clock is set back by more than this, matchers begin again with the new time.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// The maximum number of decisions that are being committed.
const MAX_IN_FLIGHT: usize = 4_000;

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
    /// The matchers of the queues that this instance leads.
    matchers: BTreeMap<QueueName, QueueMatcher>,
    /// The decisions that are being committed, each with its players.
    in_flight: FuturesUnordered<BoxFuture<'static, (Vec<PlayerId>, Outcome)>>,
}

/// The matcher of a queue.
#[derive(Debug)]
struct QueueMatcher {
    matcher: Matcher,
    /// The cycle that has begun.
    cycle: Option<Arc<Cycle>>,
    /// The number of parts and matches of this cycle so far.
    parts: usize,
    matches: usize,
    /// Whether the next cycle must not begin with the oldest tickets, because the work was not enough for the last one.
    is_overloaded: bool,
    /// The time of the last cycle.
    now: OffsetDateTime,
}

/// What all matches of a queue in one cycle have in common. With the log, it is enough to make them again.
#[derive(Debug)]
struct Cycle {
    rules: String,
    search_steps: u32,
    seed: u32,
    pool_seq: u64,
    left_out: Vec<u64>,
    now: OffsetDateTime,
}

/// What a queue says about its matches.
#[derive(Debug, Clone, Copy)]
struct Offer {
    /// See [`garage_events::queue::Queue::requeue`].
    requeue: bool,
    /// How long the players have to accept; `None` if they need not accept.
    acceptance: Option<time::Duration>,
    /// See [`Proposed::names_decliner`].
    names_decliner: bool,
}

/// See [`Matching::changed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The outcome of a decision is known.
    Settled {
        /// The log did not answer, refused, or lags behind. Pause before the next decision, so that retries do not add
        /// load.
        failed: bool,
    },
    /// The leadership of a queue.
    Lead,
}

/// What to do after [`Matching::decide`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// There is more to decide now.
    Decide,
    /// Nothing can be decided before the next event, outcome, or the end of this time.
    Wait(Duration),
}

impl<G: Log, W: Env, L: Lead> Matching<G, W, L> {
    /// Starts with an empty pool.
    pub fn new(log: G, env: W, queues: Queues, lead: L) -> Self {
        for (name, queue) in &queues.queues {
            let name = name.to_string();
            metrics::counter!("garage_matches_total", "queue" => name.clone()).increment(0);
            metrics::counter!("garage_incomplete_searches_total", "queue" => name.clone()).increment(0);
            let rules = queue.rules();
            let names = rules.rule_set.rules.iter().map(|rule| rule.name.as_str());
            for rule in names.chain([NO_COMMON_REGION]) {
                metrics::counter!("garage_excluded_total", "queue" => name.clone(), "rule" => rule.to_owned())
                    .increment(0);
            }
            drop(metrics::histogram!("garage_queue_wait_seconds", "queue" => name));
        }
        let (pool, matchers, in_flight) = (Pool::default(), BTreeMap::new(), FuturesUnordered::new());
        Self { log, env, queues, lead, pool, matchers, in_flight }
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

    /// The other tickets from the view of a waiting player. `None` if the player does not wait in a queue of this
    /// configuration.
    pub fn candidates(&self, player: &PlayerId) -> Option<Candidates> {
        let entry = self.pool.ticket_of(player)?;
        let rules = self.queues.get(entry.queue())?.rules();
        let own = self.pool.available(entry.ticket(), player)?;
        let oldest = oldest(&rules, &self.pool, entry.queue());
        Some(candidates(&rules, &oldest, &own, self.env.now()))
    }

    /// Makes some matches, and times out expired tickets. Their outcomes follow from [`Self::changed`].
    pub fn decide(&mut self) -> Next {
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return Next::Wait(IDLE);
        }
        self.decide_time_outs();
        let names: Vec<QueueName> = self.queues.queues.keys().cloned().collect();
        let mut next = Vec::new();
        for name in &names {
            self.report(name);
            if self.lead.leads(name) {
                next.push(self.decide_matches(name));
            } else {
                // Another instance decides. This one begins again when it leads.
                self.matchers.remove(name);
            }
        }
        let expiry = self.queues_to_expire().filter_map(|queue| self.pool.next_expiry(queue)).min();
        let now = self.env.now();
        // A time that is rounded down to milliseconds must not be waited for again and again.
        let until = expiry.map(|at| Duration::try_from(at - now).unwrap_or_default() + Duration::from_millis(1));
        let wait = until.map_or(IDLE, |until| until.min(IDLE));
        next.into_iter().fold(Next::Wait(wait), |one, other| match (one, other) {
            (Next::Wait(one), Next::Wait(other)) => Next::Wait(one.min(other)),
            (Next::Decide, _) | (_, Next::Decide) => Next::Decide,
        })
    }

    fn report(&self, name: &QueueName) {
        let to_f64 = |number: usize| f64::from(u32::try_from(number).unwrap_or(u32::MAX));
        metrics::gauge!("garage_queue_depth", "queue" => name.to_string()).set(to_f64(self.pool.depth(name)));
        // An operator may have applied another rule set.
        let players = self.queues.get(name).map_or(0, |queue| queue.players());
        metrics::gauge!("garage_queue_players", "queue" => name.to_string()).set(to_f64(players));
    }

    fn decide_time_outs(&mut self) {
        let now = self.env.now();
        let mut expired = Vec::new();
        for name in self.queues_to_expire() {
            let tickets = self.pool.expired(name, now, MAX_TIMEOUTS);
            if tickets.is_empty() {
                continue;
            }
            // A removed queue has no rules that could exclude a player.
            let considered = self.queues.get(name).map(|queue| {
                let rules = queue.rules();
                let oldest = oldest(&rules, &self.pool, name);
                (rules, oldest)
            });
            for ticket in tickets {
                let found = considered.as_ref().map(|(rules, oldest)| candidates(rules, oldest, &ticket, now));
                for (rule, count) in found.iter().flat_map(|found| &found.excluded) {
                    let (queue, rule) = (name.to_string(), rule.clone());
                    metrics::counter!("garage_excluded_total", "queue" => queue, "rule" => rule)
                        .increment((*count).into());
                }
                expired.push((ticket.unpack(), found));
            }
        }
        for (players, found) in expired {
            self.time_out(players, found, now);
        }
    }

    /// Makes the next matches of a queue.
    fn decide_matches(&mut self, name: &QueueName) -> Next {
        let Some(config) = self.queues.get(name) else { return Next::Wait(IDLE) };
        let (rules, search_steps) = (config.rules(), config.search_steps);
        let offer = Offer {
            requeue: config.requeue,
            acceptance: config.acceptance(),
            names_decliner: config.acceptance_names_decliner,
        };
        let queue = self.matchers.entry(name.clone()).or_insert_with(|| QueueMatcher::new(&rules, search_steps));
        let now = self.env.now();
        // With a time that was set back by more than a moment, tickets could have expired too early.
        if queue.matcher.rules().id != rules.id || now + CLOCK_STEP < queue.now {
            *queue = QueueMatcher::new(&rules, search_steps);
        }
        // Tickets do not become younger. The match records the time that counts.
        let now = now.max(queue.now);
        let cycle = match &queue.cycle {
            Some(cycle) => Arc::clone(cycle),
            None => {
                let left_out = self.pool.left_out(name, now, MAX_LEFT_OUT);
                let Some(left_out) = left_out else { return Next::Wait(IDLE) };
                // The last 32 bits of an id are random.
                let random = self.env.id().as_u64_pair().1 as u32;
                let seed = if queue.is_overloaded { random | 1 } else { random & !1 };
                let pool_seq = self.pool.seq();
                queue.now = now;
                queue.matcher.begin(&mut self.pool, name, seed, now);
                let cycle =
                    Arc::new(Cycle { rules: rules.id.to_string(), search_steps, seed, pool_seq, left_out, now });
                (queue.cycle, queue.parts, queue.matches) = (Some(Arc::clone(&cycle)), 0, 0);
                cycle
            }
        };
        let Proposals { proposals, bounded, end } = queue.matcher.run(&self.pool, PART);
        queue.parts += 1;
        queue.matches += proposals.len();
        if end == End::Finished || queue.parts >= MAX_PARTS || queue.matches >= MAX_PER_CYCLE {
            queue.cycle = None;
            // Every second cycle tries the oldest tickets first, whatever the load.
            queue.is_overloaded = end == End::Work && cycle.seed.is_multiple_of(2);
        }
        let until = queue.matcher.next_change().map(|at| at.saturating_sub(millis(self.env.now())));
        let wait = until.map(|until| Duration::from_millis(u64::try_from(until).unwrap_or_default()));
        let has_changed = self.pool.has_changes(name);
        let next = match queue.cycle.is_some() || queue.matcher.is_due() || has_changed {
            true => Next::Decide,
            false => Next::Wait(wait.map_or(IDLE, |wait| wait.min(IDLE))),
        };
        metrics::counter!("garage_incomplete_searches_total", "queue" => name.to_string()).increment(bounded);
        for proposal in proposals {
            self.make_match(name, proposal, &cycle, offer);
        }
        next
    }

    /// Waits until the outcome of a decision is known, or until this instance gains or loses the leadership of a queue.
    pub async fn changed(&mut self) -> Change {
        let settled = async {
            match self.in_flight.next().await {
                Some(settled) => settled,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            (players, outcome) = settled => Change::Settled { failed: self.adopt(&players, outcome) },
            () = self.lead.changed() => Change::Lead,
        }
    }

    /// Waits until the outcomes of all decisions are known. Returns whether one of them failed, see [`Change::Settled`].
    pub async fn settle(&mut self) -> bool {
        let mut failed = false;
        while let Some((players, outcome)) = self.in_flight.next().await {
            failed |= self.adopt(&players, outcome);
        }
        failed
    }

    /// Updates the pool. Returns whether the decision failed.
    fn adopt(&mut self, players: &[PlayerId], outcome: Outcome) -> bool {
        let mut failed = outcome.failed;
        for (player, seq) in outcome.gone {
            self.pool.mark_gone(&player, seq);
        }
        let now = self.env.now();
        for (player, found) in outcome.reread {
            // The pool rejects an outdated answer of a NATS node that lags behind. The player is read again later.
            failed |= !self.pool.learn(&player, found, now);
        }
        // Nothing new is known about the other players of a decision that was not stored.
        players.iter().for_each(|player| self.pool.release(player));
        failed
    }

    /// Hides the players' tickets until the outcome of a decision is known.
    fn start(&mut self, players: &[WaitingPlayer], outcome: impl Future<Output = Outcome> + Send + 'static) {
        let players: Vec<PlayerId> = players.iter().map(|entry| entry.player.clone()).collect();
        players.iter().for_each(|player| self.pool.claim(player));
        self.in_flight.push(async move { (players, outcome.await) }.boxed());
    }

    fn make_match(&mut self, name: &QueueName, proposal: Proposal, cycle: &Cycle, offer: Offer) {
        let session = SessionId::new(self.env.id());
        let Cycle { rules, search_steps, seed, pool_seq, left_out, now } = cycle;
        let matched = Matched {
            queue: name.clone(),
            region: proposal.region.clone(),
            teams: proposal.recorded_teams(),
            latencies: proposal.latencies.clone(),
            rules: rules.clone(),
            pool_seq: *pool_seq,
            clock: *now,
            seed: *seed,
            skipped: Vec::new(),
            left_out: left_out.clone(),
            search_steps: Some(*search_steps).filter(|steps| *steps != SEARCH_STEPS),
        };
        let players: Vec<WaitingPlayer> = proposal.players().cloned().collect();
        let Offer { requeue, acceptance, names_decliner } = offer;
        // From now on, and not from the beginning of the cycle: the players learn of the match only after this.
        let accept_by = acceptance.map(|time| self.env.now() + time);
        let begun = match accept_by {
            Some(accept_by) => session::Event::from(Proposed { accept_by, names_decliner, matched }),
            None => session::Event::from(matched),
        };
        let size = u32::try_from(players.len()).unwrap_or(u32::MAX);
        let mut decision = Decision::new(&self.env, session.uuid(), None).change(
            &self.env,
            Aggregate::Session(session),
            Head::default(),
            [begun],
        );
        for team in proposal.teams {
            for entry in team.players {
                let ticket = entry.queued.ticket;
                let state = player::State::Waiting(entry.queued);
                let team = team.name.clone();
                let command = match accept_by {
                    Some(accept_by) => {
                        let (players, may_requeue) = (size, requeue);
                        player::Command::Propose { ticket, session, team, accept_by, players, may_requeue }
                    }
                    None => player::Command::Match { ticket, session, team, requeue },
                };
                match player::decide(&state, command) {
                    Ok(event) => {
                        let aggregate = Aggregate::Player(entry.player);
                        decision = decision.change(&self.env, aggregate, entry.head, [event]);
                    }
                    Err(rejection) => {
                        tracing::error!(player.id = %entry.player, %rejection, "a player in the pool is not waiting");
                        let (log, entries) = (self.log.clone(), players.clone());
                        return self.start(&players, async move { reread(&log, &entries).await });
                    }
                }
            }
        }
        let (log, queue, now, entries) = (self.log.clone(), name.to_string(), *now, players.clone());
        self.start(&players, async move {
            match log.append(decision).await {
                Ok(sequences) => {
                    metrics::counter!("garage_matches_total", "queue" => queue.clone()).increment(1);
                    let waits = metrics::histogram!("garage_queue_wait_seconds", "queue" => queue);
                    for entry in &entries {
                        waits.record((now - entry.queued.waiting_since).as_seconds_f64().max(0.0));
                    }
                    // The first sequence belongs to the session's event.
                    let players = entries.into_iter().map(|entry| entry.player);
                    Outcome { gone: players.zip(sequences.into_iter().skip(1)).collect(), ..Outcome::default() }
                }
                Err(error) => recover(&log, error, &entries).await,
            }
        });
    }

    /// Times out a ticket, for all of its players in one commit.
    fn time_out(&mut self, players: Vec<WaitingPlayer>, candidates: Option<Candidates>, now: OffsetDateTime) {
        let Some(first) = players.first() else { return };
        let ticket = first.queued.ticket;
        let mut decision = Decision::new(&self.env, ticket.uuid(), None);
        for entry in &players {
            let state = player::State::Waiting(entry.queued.clone());
            let command = player::Command::TimeOut { ticket, now, considered: candidates.clone() };
            let Ok(event) = player::decide(&state, command) else { return };
            let aggregate = Aggregate::Player(entry.player.clone());
            decision = decision.change(&self.env, aggregate, entry.head, [event]);
        }
        let (log, entries) = (self.log.clone(), players.clone());
        self.start(&players, async move {
            match log.append(decision).await {
                Ok(sequences) => {
                    metrics::counter!("garage_timeouts_total").increment(1);
                    let players = entries.into_iter().map(|entry| entry.player);
                    Outcome { gone: players.zip(sequences).collect(), ..Outcome::default() }
                }
                Err(error) => recover(&log, error, &entries).await,
            }
        });
    }
}

impl QueueMatcher {
    fn new(rules: &Arc<Rules>, search_steps: u32) -> Self {
        let matcher = Matcher::new(Arc::clone(rules), bounds(search_steps));
        Self { matcher, cycle: None, parts: 0, matches: 0, is_overloaded: false, now: OffsetDateTime::UNIX_EPOCH }
    }
}

async fn recover(log: &impl Log, error: AppendError, entries: &[WaitingPlayer]) -> Outcome {
    match error {
        AppendError::Conflict(aggregate) => {
            metrics::counter!("garage_conflicts_total").increment(1);
            tracing::debug!(%aggregate, "conflict; match or time-out not stored");
            let moved = |entry: &&WaitingPlayer| aggregate == Aggregate::Player(entry.player.clone());
            match entries.iter().find(moved) {
                Some(moved) => reread(log, slice::from_ref(moved)).await,
                // The aggregate that changed is none of these players. Read all of them again: a retry with
                // unchanged state would fail again.
                None => reread(log, entries).await,
            }
        }
        error @ (AppendError::Unavailable(_)
        | AppendError::Full(_)
        | AppendError::Busy(_)
        | AppendError::Refused(_)) => {
            tracing::warn!(%error, "match or time-out not stored; will read its players again");
            Outcome { failed: true, ..reread(log, entries).await }
        }
    }
}

/// Reads the current state of players whose state in the pool may be outdated.
async fn reread(log: &impl Log, entries: &[WaitingPlayer]) -> Outcome {
    let mut outcome = Outcome::default();
    for entry in entries {
        match log.player(&entry.player).await {
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

/// The state of a decision's players after the append, as far as it is known.
#[derive(Debug, Default)]
struct Outcome {
    /// Players who no longer wait, each with the sequence of the event that ended the wait.
    gone: Vec<(PlayerId, u64)>,
    /// Players who were read again, because the decision was not stored.
    reread: Vec<(PlayerId, garage_events::log::Player)>,
    /// The log did not answer, or refused.
    failed: bool,
}

#[cfg(test)]
mod tests;
