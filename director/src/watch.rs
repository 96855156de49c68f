//! Checks the instances at regular intervals. It finds changes that no event of the log announces: instances that were
//! assigned to a node, instances that exited, and orphans.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use garage_events::{
    env::Env,
    log::{Log, Reports},
    session,
    subject::{Report, ReportKind},
};
use garage_worker::{Health, Shutdown, reactor::Failure};

use crate::{
    backend::{Backend, Exit, Instance, Listing, Name, State},
    reaction::{App, Keys, hard_end},
};

/// Time between two checks: a server's exit can go unnoticed for this long.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Time between two searches for orphans.
pub const SCAN_INTERVAL: Duration = Duration::from_secs(5);

/// Placements appended at the same time.
const CONCURRENCY: usize = 16;

/// How long to wait before an inconclusive exit counts as a failure. If nobody saw the exit, another director on this
/// machine may have started the server; that director records the exit within [`CHECK_INTERVAL`]. If the server exited
/// with code 0, its results were acknowledged before, but a NATS node that has just lost its leadership may not have
/// them.
const INCONCLUSIVE: Duration = Duration::from_secs(3);

/// Monitors the instances until `shutdown`. It pauses while `leads` returns false: then another director monitors them.
///
/// # Errors
/// None. A check that fails is repeated.
pub(crate) async fn run<L: Log + Reports, W: Env, B: Backend, K: Keys>(
    app: App<L, W, B, K>,
    grace: Duration,
    leads: impl Fn() -> bool,
    health: Health,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    let backend = app.backend.clone();
    let mut watch = Watch::new(app, grace);
    let mut down = false;
    loop {
        let mut pause = CHECK_INTERVAL;
        if !leads() {
            // Another director monitors the instances and reports the backend's health and metrics.
            health.up("backend");
            gauge(&[]);
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => continue,
            }
        }
        let Listing { instances, complete } = backend.list().await;
        gauge(&instances);
        match &complete {
            Ok(()) => health.up("backend"),
            Err(error) => health.down("backend", error.to_string()),
        }
        let checked = watch.check(&instances, Instant::now()).await.map_err(|error| format!("{error:#}"));
        let result = checked.and(complete.map_err(|error| error.to_string()));
        if let Err(error) = &result {
            pause = Duration::from_secs(1);
            // Log once per outage, not once a second.
            if !down {
                tracing::warn!("cannot check the instances; retrying: {error}");
            }
        }
        down = result.is_err();
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn gauge(instances: &[Instance]) {
    let count = |state: fn(&State) -> bool| {
        let count = instances.iter().filter(|instance| state(&instance.state)).count();
        u32::try_from(count).map_or(f64::INFINITY, f64::from)
    };
    metrics::gauge!("garage_instances", "state" => "claimed").set(count(|state| matches!(state, State::Claimed)));
    metrics::gauge!("garage_instances", "state" => "waiting").set(count(|state| matches!(state, State::Waiting)));
    metrics::gauge!("garage_instances", "state" => "running").set(count(|state| matches!(state, State::Running(_))));
    metrics::gauge!("garage_instances", "state" => "exited").set(count(|state| matches!(state, State::Exited(_))));
}

/// The state that one director keeps between its checks.
#[derive(Debug)]
pub struct Watch<L, W, B, K> {
    app: App<L, W, B, K>,
    /// The minimum age of an orphan.
    grace: Duration,
    /// When orphans were last searched for.
    scanned: Option<Instant>,
    /// The instances that have exited.
    exited: HashMap<Name, ObservedExit>,
    /// The running instances whose placement is in the log.
    recorded: HashSet<Name>,
    /// The instances that no open session needed at the last scan. They are removed only if the next scan agrees: the
    /// read may have come from a NATS node that had just lost its leadership.
    suspects: HashSet<Name>,
}

#[derive(Debug)]
struct ObservedExit {
    /// When this director saw the exit first.
    since: Instant,
    handled: bool,
}

impl<L: Log + Reports, W: Env, B: Backend, K: Keys> Watch<L, W, B, K> {
    /// Starts without knowledge of any instance. `grace` is the minimum age of an orphan.
    pub fn new(app: App<L, W, B, K>, grace: Duration) -> Self {
        Self { app, grace, scanned: None, exited: HashMap::new(), recorded: HashSet::new(), suspects: HashSet::new() }
    }

    /// Checks all instances: appends new placements, handles exits, and removes orphans every [`SCAN_INTERVAL`].
    ///
    /// # Errors
    /// The first [`Failure`]. The other instances were checked nevertheless, and the next check retries the failed one.
    pub async fn check(&mut self, instances: &[Instance], now: Instant) -> Result<(), Failure> {
        // After a failed append, the exits must still be handled.
        let placed = self.record_placements(instances).await;
        self.handle_exits(instances, now).await?;
        placed?;
        if self.scanned.is_none_or(|at| now - at >= SCAN_INTERVAL) {
            self.scanned = Some(now);
            self.remove_orphans(instances).await?;
        }
        Ok(())
    }

    async fn record_placements(&mut self, instances: &[Instance]) -> Result<(), Failure> {
        let placed = instances.iter().filter_map(|instance| match &instance.state {
            State::Running(placed) => Some((instance.name, placed)),
            State::Claimed | State::Waiting | State::Exited(_) => None,
        });
        let placed: Vec<_> = placed.collect();
        let running: HashSet<_> = placed.iter().map(|(name, _)| *name).collect();
        self.recorded.retain(|name| running.contains(name));
        let new = placed.into_iter().filter(|(name, _)| !self.recorded.contains(name));
        let new: Vec<_> = new.map(|(name, placed)| (name, placed.clone())).collect();
        // Concurrent appends share a commit.
        let app = &self.app;
        let results = stream::iter(new)
            .map(async |(name, placed)| (name, app.record_placement(name, &placed).await))
            .buffer_unordered(CONCURRENCY)
            .collect::<Vec<_>>()
            .await;
        let mut first = Ok(());
        for (name, result) in results {
            match result {
                Ok(true) => drop(self.recorded.insert(name)),
                Ok(false) => {}
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    async fn handle_exits(&mut self, instances: &[Instance], now: Instant) -> Result<(), Failure> {
        let exited = instances.iter().filter(|instance| matches!(instance.state, State::Exited(_)));
        let exited: HashSet<_> = exited.map(|instance| instance.name).collect();
        self.exited.retain(|name, _| exited.contains(name));
        // After a failure with one instance, the others must still be handled.
        let mut first = Ok(());
        for instance in instances {
            let State::Exited(exit) = &instance.state else { continue };
            let observed = self.exited.entry(instance.name).or_insert(ObservedExit { since: now, handled: false });
            if observed.handled || (exit.inconclusive() && now - observed.since < INCONCLUSIVE) {
                continue;
            }
            match handle_exit(&self.app, instance.name, exit).await {
                Ok(handled) => observed.handled = handled,
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    async fn remove_orphans(&mut self, instances: &[Instance]) -> Result<(), Failure> {
        let now = self.app.env.now();
        let suspects = std::mem::take(&mut self.suspects);
        let mut first = Ok(());
        for Instance { name, created, .. } in instances {
            if now - *created < self.grace {
                continue;
            }
            match self.remove_if_orphan(*name, suspects.contains(name)).await {
                Ok(false) => {}
                Ok(true) => drop(self.suspects.insert(*name)),
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    /// Removes an instance if no open session needs it, neither now nor at the last scan. Returns whether it is a
    /// suspect for the next scan.
    async fn remove_if_orphan(&self, name: Name, suspected: bool) -> Result<bool, Failure> {
        let session = self.app.log.session(name.session).await?;
        let needed = session.state.current_attempt() == Some(name.attempt);
        if needed || !suspected {
            return Ok(!needed);
        }
        // The backend may remember an exit after the instance itself is gone; then there is nothing to remove.
        if self.app.backend.delete(name).await? {
            metrics::counter!("garage_orphans_removed_total").increment(1);
            tracing::warn!(session.id = %name.session, pod.name = %name, "orphan removed: no open session needs it");
        }
        Ok(false)
    }
}

/// Decides whether an instance's exit means that its attempt failed. Returns false when the read is too old to decide.
async fn handle_exit<L: Log + Reports, W: Env, B: Backend, K: Keys>(
    app: &App<L, W, B, K>,
    name: Name,
    exit: &Exit,
) -> Result<bool, Failure> {
    let state = app.log.session(name.session).await?.state;
    if state.last_attempt() < name.attempt {
        // The NATS node that answered has not seen the request for this attempt. If there is no request at all, the
        // instance is an orphan.
        return Ok(false);
    }
    if state.current_attempt() != Some(name.attempt) {
        app.backend.delete(name).await?;
        return Ok(true);
    }
    if let session::State::Open(open) = &state {
        if app.env.now() >= hard_end(open) {
            // Servers exit by themselves at the session's hard end. Such an attempt has not failed: the session's timer
            // closes the session as abandoned.
            return Ok(true);
        }
        let results = Report { session: name.session, attempt: name.attempt, kind: ReportKind::Finished };
        if app.log.reported(results).await? {
            // The server has finished its work, no matter how it exited. The session worker processes the results.
            return Ok(true);
        }
    }
    let reason = exit.reason();
    metrics::counter!("garage_instances_failed_total", "reason" => reason).increment(1);
    app.fail(name, reason, exit.to_string(), None).await?;
    Ok(true)
}
