//! What happens without an event of the log: instances that end by themselves, and those that nobody asks for.

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
    backend::{Backend, Exit, Instance, Listed, Name, State},
    reaction::{App, Keys},
};

/// How often instances are looked at: as long as a dead server may go unnoticed.
const LOOK: Duration = Duration::from_millis(250);

/// How often they are compared with the log.
pub const SCAN: Duration = Duration::from_secs(5);

/// Places told of at a time.
const AT_ONCE: usize = 16;

/// How long an instance is over before an end counts as a failure that may be none: one that nobody saw, as another
/// director on this machine that started it notes its end within [`LOOK`]; and one that went well, as its results were
/// acknowledged before it, and a node that leads the reports no longer may not know of them.
const DOUBT: Duration = Duration::from_secs(3);

/// Looks after instances until `shutdown`.
///
/// # Errors
/// None; a look that fails is repeated.
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
        let mut pause = LOOK;
        if !leads() {
            // Another looks, and tells how it goes.
            health.up("backend");
            gauge(&[]);
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => continue,
            }
        }
        let Listed { instances, whole } = backend.list().await;
        gauge(&instances);
        match &whole {
            Ok(()) => health.up("backend"),
            Err(error) => health.down("backend", error.to_string()),
        }
        let looked = watch.look(&instances, Instant::now()).await.map_err(|error| format!("{error:#}"));
        let result = looked.and(whole.map_err(|error| error.to_string()));
        if let Err(error) = &result {
            pause = Duration::from_secs(1);
            // Once for each time that something is down, not once a second.
            if !down {
                tracing::warn!("instances cannot be looked after; trying again: {error}");
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

/// What one director knows of the instances from looking at them.
#[derive(Debug)]
pub struct Watch<L, W, B, K> {
    app: App<L, W, B, K>,
    /// How old an instance must be to be taken for an orphan.
    grace: Duration,
    /// When they were last compared with the log.
    scanned: Option<Instant>,
    /// Instances that are over: since when this director knows, and whether it has judged them.
    seen: HashMap<Name, FirstSight>,
    /// Instances of which the log knows where they are placed.
    announced: HashSet<Name>,
    /// Instances that no open session asked for at the last scan. One read may be that of a node which leads no more;
    /// by the next scan it has noticed.
    suspects: HashSet<Name>,
}

#[derive(Debug)]
struct FirstSight {
    since: Instant,
    judged: bool,
}

impl<L: Log + Reports, W: Env, B: Backend, K: Keys> Watch<L, W, B, K> {
    /// Nothing is known yet.
    pub fn new(app: App<L, W, B, K>, grace: Duration) -> Self {
        Self { app, grace, scanned: None, seen: HashMap::new(), announced: HashSet::new(), suspects: HashSet::new() }
    }

    /// Looks at all instances: says where they are placed, judges those that are over, and every [`SCAN`] removes those
    /// that nobody asks for.
    ///
    /// # Errors
    /// The first [`Failure`]; the others were looked at all the same, and the next look tries it again.
    pub async fn look(&mut self, instances: &[Instance], now: Instant) -> Result<(), Failure> {
        // One that cannot be told of must not keep the others from being judged.
        let placed = self.places(instances).await;
        self.exits(instances, now).await?;
        placed?;
        if self.scanned.is_none_or(|at| now - at >= SCAN) {
            self.scanned = Some(now);
            self.orphans(instances).await?;
        }
        Ok(())
    }

    async fn places(&mut self, instances: &[Instance]) -> Result<(), Failure> {
        let placed = instances.iter().filter_map(|instance| match &instance.state {
            State::Running(placed) => Some((instance.name, placed)),
            State::Claimed | State::Waiting | State::Exited(_) => None,
        });
        let placed: Vec<_> = placed.collect();
        let there: HashSet<_> = placed.iter().map(|(name, _)| *name).collect();
        self.announced.retain(|name| there.contains(name));
        let news = placed.into_iter().filter(|(name, _)| !self.announced.contains(name));
        let news: Vec<_> = news.map(|(name, placed)| (name, placed.clone())).collect();
        // Together they are one commit.
        let app = &self.app;
        let announced = stream::iter(news)
            .map(async |(name, placed)| (name, app.placed(name, &placed).await))
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let mut first = Ok(());
        for (name, announced) in announced {
            match announced {
                Ok(true) => drop(self.announced.insert(name)),
                Ok(false) => {}
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    async fn exits(&mut self, instances: &[Instance], now: Instant) -> Result<(), Failure> {
        let over = instances.iter().filter(|instance| matches!(instance.state, State::Exited(_)));
        let over: HashSet<_> = over.map(|instance| instance.name).collect();
        self.seen.retain(|name, _| over.contains(name));
        // One that cannot be judged must not keep the others from it.
        let mut first = Ok(());
        for instance in instances {
            let State::Exited(exit) = &instance.state else { continue };
            let seen = self.seen.entry(instance.name).or_insert(FirstSight { since: now, judged: false });
            if seen.judged || (exit.doubtful() && now - seen.since < DOUBT) {
                continue;
            }
            match judge(&self.app, instance.name, exit).await {
                Ok(judged) => seen.judged = judged,
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    async fn orphans(&mut self, instances: &[Instance]) -> Result<(), Failure> {
        let now = self.app.env.now();
        let before = std::mem::take(&mut self.suspects);
        let mut first = Ok(());
        for Instance { name, created, .. } in instances {
            if now - *created < self.grace {
                continue;
            }
            match self.orphan(*name, before.contains(name)).await {
                Ok(false) => {}
                Ok(true) => drop(self.suspects.insert(*name)),
                Err(error) => first = first.and(Err(error)),
            }
        }
        first
    }

    /// Removes an instance that no open session asks for, nor did at the last scan; whether it is to be suspected now.
    async fn orphan(&self, name: Name, suspected: bool) -> Result<bool, Failure> {
        let session = self.app.log.session(name.session).await?;
        let wanted = session.state.present_attempt() == Some(name.attempt);
        if wanted || !suspected {
            return Ok(!wanted);
        }
        // One that is over may be gone already, and only its end be remembered.
        if self.app.backend.delete(name).await? {
            metrics::counter!("garage_orphans_removed_total").increment(1);
            tracing::warn!(session.id = %name.session, pod.name = %name, "orphan removed: no open session asks for it");
        }
        Ok(false)
    }
}

/// An instance is over: is its attempt? False when that cannot be said yet.
async fn judge<L: Log + Reports, W: Env, B: Backend, K: Keys>(
    app: &App<L, W, B, K>,
    name: Name,
    exit: &Exit,
) -> Result<bool, Failure> {
    let state = app.log.session(name.session).await?.state;
    if state.last_attempt() < name.attempt {
        // Who answered has not seen it asked for. If nobody ever did, it is an orphan.
        return Ok(false);
    }
    if state.present_attempt() != Some(name.attempt) {
        app.backend.delete(name).await?;
        return Ok(true);
    }
    if let session::State::Open(open) = &state {
        if app.env.now() >= open.began + app.terms.session {
            // Its session has come to its hard end, at which servers exit by themselves. It is abandoned, not failed,
            // and its own deadline says so.
            return Ok(true);
        }
        let results = Report { session: name.session, attempt: name.attempt, kind: ReportKind::Finished };
        if app.log.reported(results).await? {
            // It had done its work, however it ended; session is about to judge the results.
            return Ok(true);
        }
    }
    let reason = exit.reason();
    metrics::counter!("garage_instances_failed_total", "reason" => reason).increment(1);
    app.fail(name, reason, exit.to_string(), None).await?;
    Ok(true)
}
