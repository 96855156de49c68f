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

/// Instances handled at the same time: placements appended, exits handled, and orphans looked for.
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
    let (mut down, mut placed) = (false, true);
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
        let Listing { instances, complete, unplaced } = backend.list().await;
        gauge(&instances);
        let unplaced = unplaced.map_or(Ok(()), Err);
        match complete.as_ref().and(unplaced.as_ref()) {
            Ok(()) => health.up("backend"),
            Err(error) => health.down("backend", error.to_string()),
        }
        let placeable = unplaced.is_ok();
        if let (Err(error), true) = (unplaced, placed) {
            // The instances on other nodes go on at the usual pace.
            tracing::warn!("cannot place all instances; retrying: {error}");
        }
        placed = placeable;
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

/// Handles instances concurrently, at most [`CONCURRENCY`] at a time. Returns the answers, and the first failure: a
/// failure with one instance does not keep the others from being handled.
async fn several_at_a_time<T>(
    handling: impl Iterator<Item = impl Future<Output = (Name, Result<T, Failure>)>>,
) -> (Vec<(Name, T)>, Result<(), Failure>) {
    let results = stream::iter(handling).buffer_unordered(CONCURRENCY).collect::<Vec<_>>().await;
    let (mut answers, mut first) = (Vec::new(), Ok(()));
    for (name, result) in results {
        match result {
            Ok(answer) => answers.push((name, answer)),
            Err(error) => first = first.and(Err(error)),
        }
    }
    (answers, first)
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
        // A failure with one instance must not keep the others from being handled.
        let placed = self.record_placements(instances).await;
        let exited = self.handle_exits(instances, now).await;
        let mut scanned = Ok(());
        if self.scanned.is_none_or(|at| now - at >= SCAN_INTERVAL) {
            self.scanned = Some(now);
            scanned = self.remove_orphans(instances).await;
        }
        placed.and(exited).and(scanned)
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
        let record = new.into_iter().map(async |(name, placed)| (name, app.record_placement(name, &placed).await));
        let (answers, result) = several_at_a_time(record).await;
        self.recorded.extend(answers.into_iter().filter_map(|(name, recorded)| recorded.then_some(name)));
        result
    }

    async fn handle_exits(&mut self, instances: &[Instance], now: Instant) -> Result<(), Failure> {
        let exited = instances.iter().filter(|instance| matches!(instance.state, State::Exited(_)));
        let exited: HashSet<_> = exited.map(|instance| instance.name).collect();
        self.exited.retain(|name, _| exited.contains(name));
        let mut due = Vec::new();
        for instance in instances {
            let State::Exited(exit) = &instance.state else { continue };
            let observed = self.exited.entry(instance.name).or_insert(ObservedExit { since: now, handled: false });
            if !observed.handled && (!exit.inconclusive() || now - observed.since >= INCONCLUSIVE) {
                due.push((instance.name, exit.clone()));
            }
        }
        let app = &self.app;
        let handle = due.into_iter().map(async |(name, exit)| (name, handle_exit(app, name, &exit).await));
        let (answers, result) = several_at_a_time(handle).await;
        for (name, handled) in answers {
            if let Some(observed) = self.exited.get_mut(&name) {
                observed.handled = handled;
            }
        }
        result
    }

    async fn remove_orphans(&mut self, instances: &[Instance]) -> Result<(), Failure> {
        let now = self.app.env.now();
        let suspects = std::mem::take(&mut self.suspects);
        let old = instances.iter().filter(|instance| now - instance.created >= self.grace);
        let old: Vec<_> = old.map(|instance| (instance.name, suspects.contains(&instance.name))).collect();
        let watch = &*self;
        let remove =
            old.into_iter().map(async |(name, suspected)| (name, watch.remove_if_orphan(name, suspected).await));
        let (answers, result) = several_at_a_time(remove).await;
        self.suspects.extend(answers.into_iter().filter_map(|(name, suspect)| suspect.then_some(name)));
        result
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

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
    };

    use garage_events::{
        env::Simulated,
        event::Recorded,
        game::{Secret, Secrets},
        id::{PartyId, PlayerId, SessionId},
        inventory,
        log::{Append, AppendError, Decision, Head, Load, Party, Player, ReadError, Session},
        session::{Event, Matched, PodFailed, PodRequested},
        sim::SimLog,
        subject::Aggregate,
    };
    use time::macros::datetime;

    use super::*;
    use crate::{
        backend::{CreateError, Created, ExitKind, Order, Unavailable},
        reaction::GameSettings,
    };

    /// A backend that counts its concurrent removals. Each takes a while.
    #[derive(Clone, Default)]
    struct SlowBackend {
        now: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
        removed: Arc<AtomicUsize>,
    }

    impl Backend for SlowBackend {
        async fn create(&self, _: &Order) -> Result<Created, CreateError> {
            Err(CreateError::Over)
        }

        async fn find(&self, _: Name) -> Result<Option<Created>, Unavailable> {
            Ok(None)
        }

        async fn list(&self) -> Listing {
            Ok(Vec::new()).into()
        }

        async fn delete(&self, _: Name) -> Result<bool, Unavailable> {
            self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::task::yield_now().await;
            self.now.fetch_sub(1, SeqCst);
            self.removed.fetch_add(1, SeqCst);
            Ok(true)
        }
    }

    /// A log without reports of game servers.
    #[derive(Clone)]
    struct NoReports(SimLog<Simulated>);

    impl Load for NoReports {
        async fn player(&self, id: &PlayerId) -> Result<Player, ReadError> {
            self.0.player(id).await
        }

        async fn party(&self, id: PartyId) -> Result<Party, ReadError> {
            self.0.party(id).await
        }

        async fn session(&self, id: SessionId) -> Result<Session, ReadError> {
            self.0.session(id).await
        }

        async fn inventory(&self, id: &PlayerId) -> Result<Option<Recorded<inventory::Event>>, ReadError> {
            self.0.inventory(id).await
        }
    }

    impl Append for NoReports {
        async fn append(&self, decision: Decision) -> Result<Vec<u64>, AppendError> {
            self.0.append(decision).await
        }
    }

    impl Reports for NoReports {
        async fn reported(&self, _: Report) -> Result<bool, ReadError> {
            Ok(false)
        }
    }

    #[derive(Clone)]
    struct NoKeys;

    impl Keys for NoKeys {
        async fn secrets(&self, _: &str) -> Result<Secrets, CreateError> {
            Ok(Secrets { private_key: Secret::new(""), credentials: Secret::new("") })
        }
    }

    /// A session whose first attempt has failed.
    async fn failed(log: &SimLog<Simulated>, env: &Simulated) -> SessionId {
        let session = SessionId::new(env.id());
        let matched = Matched {
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            teams: Vec::new(),
            rules: "test".into(),
            pool_seq: 0,
            clock: env.now(),
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
            latencies: Default::default(),
        };
        let requested = PodRequested {
            attempt: 1,
            region: "eu".parse().unwrap(),
            loadouts: Vec::new(),
            public_key: "public".into(),
            fingerprint: "f00d".into(),
            ends_at: None,
        };
        let failed = PodFailed { attempt: 1, reason: "test".into(), message: String::new() };
        let events = [Event::from(matched), requested.into(), failed.into()];
        let decision = Decision::new(env, session.uuid(), None);
        log.append(decision.change(env, Aggregate::Session(session), Head::default(), events)).await.unwrap();
        session
    }

    #[tokio::test]
    async fn exits_are_handled_and_orphans_are_removed_several_at_a_time_but_not_all_at_once() {
        let env = Simulated::at(datetime!(2026-01-01 00:00 UTC));
        let log = SimLog::new(env.clone());
        let (backend, count) = (SlowBackend::default(), 3 * CONCURRENCY);
        let settings = GameSettings { token_key: String::new(), token_keys: BTreeMap::new(), nats_url: String::new() };
        let app = App {
            log: NoReports(log.clone()),
            env: env.clone(),
            backend: backend.clone(),
            keys: NoKeys,
            settings: Arc::new(settings),
        };
        let mut watch = Watch::new(app, Duration::ZERO);
        let (start, created) = (Instant::now(), env.now());
        let mut exited = Vec::new();
        for _ in 0..count {
            let name = Name { session: failed(&log, &env).await, attempt: 1 };
            let exit = Exit { kind: ExitKind::Code(1), message: None };
            exited.push(Instance { name, created, state: State::Exited(exit) });
        }
        watch.check(&exited, start).await.unwrap();
        assert_eq!((backend.removed.swap(0, SeqCst), backend.most.swap(0, SeqCst)), (count, CONCURRENCY));

        // Nobody knows the sessions of these instances. The second scan removes what the first one suspected.
        let orphan = |_| Name { session: SessionId::new(env.id()), attempt: 1 };
        let orphans = (0..count).map(orphan).map(|name| Instance { name, created, state: State::Waiting });
        let orphans: Vec<_> = orphans.collect();
        for scan in 1..=2 {
            watch.check(&orphans, start + scan * SCAN_INTERVAL).await.unwrap();
        }
        assert_eq!((backend.removed.swap(0, SeqCst), backend.most.swap(0, SeqCst)), (count, CONCURRENCY));
    }
}
