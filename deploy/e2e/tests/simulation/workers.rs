//! Garage's workers on the stage: the real deciders and reactions, with simulated dependencies.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    path::Path,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::{Either, select};
use garage_director::{
    backend::{Backend, CreateError, Unavailable},
    reaction::{self as director, GameSettings, Keys},
    watch::Watch,
};
use garage_events::{
    event::Recorded,
    game::{Car, Loadout, Secret, Secrets, Stats},
    id::{PlayerId, QueueName, SessionId},
    player,
    queue::Queues,
    rules::Rules,
    session::Limits,
    sim::Message,
    subject::{Aggregate, PLAYERS},
};
use garage_matchmaker::{
    domain::snapshot,
    lead::Lead,
    matching::{Change, IDLE, Matching, Next},
};
use garage_session::{
    keys::GameKey,
    reaction::{self as session, Effects},
};
use garage_worker::reactor::Failure;
use rand::RngExt;
use time::OffsetDateTime;

use crate::{
    games::Games,
    net::{Clock, Net},
    plan::Plan,
    stage::{Process, Stage},
};

/// How many messages an instance handles at a time, per consumer.
const REACTIONS: usize = 3;

/// How often a director lists its instances.
const LIST_INTERVAL: Duration = Duration::from_millis(500);

/// The minimum age of an orphan, if directors remove orphans in this run.
const GRACE: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_secs(1_000_000);

/// The default limits, except that a session ends after a minute.
pub(crate) fn limits() -> Limits {
    Limits { session: time::Duration::MINUTE, ..Limits::default() }
}

/// The queues: only `ranked`. A match has two teams, which differ in size if the number of players is odd.
pub(crate) fn queues(plan: &Plan) -> Queues {
    let acceptance_s = if plan.acceptance { 8 } else { 0 };
    let queues = format!(
        "[queues.ranked]\nplayers = 2\nrank_band = 100\ntimeout_s = 30\nacceptance_s = {acceptance_s}\n\
         regions = {{ eu = 100 }}"
    );
    let queues = Queues::parse(&queues, Path::new("queues.toml")).expect("the queues are valid");
    let (red, blue) = (plan.match_size.div_ceil(2), plan.match_size / 2);
    let rules = format!(
        r#"{{
            "ruleLanguageVersion": "1.0",
            "playerAttributes": [{{"name": "rank", "type": "number"}}],
            "teams": [
                {{"name": "red", "minPlayers": {red}, "maxPlayers": {red}}},
                {{"name": "blue", "minPlayers": {blue}, "maxPlayers": {blue}}}
            ],
            "rules": [{{"name": "Near", "type": "batchDistance", "batchAttribute": "rank", "maxDistance": 100}}],
            "expansions": [
                {{"target": "rules[Near].maxDistance", "steps": [{{"waitTimeSeconds": 10, "value": 400}}]}}
            ]
        }}"#
    );
    for queue in queues.queues.values() {
        queue.use_rules(Arc::new(Rules::read(&rules, queue.timeout_s).expect("the rule set is valid")));
    }
    queues
}

/// The state that all instances share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) stage: Stage,
    pub(crate) net: Net,
    pub(crate) games: Games,
    /// The expiry times of the keys in Redis, by fingerprint.
    keys: Arc<Mutex<BTreeMap<String, OffsetDateTime>>>,
    keys_made: Arc<Mutex<u64>>,
    snapshot: Arc<Mutex<Option<Vec<u8>>>>,
    /// Each session worker's process and clock, to answer requests.
    sessions: Arc<Mutex<Vec<(Process, Clock)>>>,
}

impl Shared {
    pub(crate) fn new(stage: &Stage) -> Self {
        let net = Net::new(stage);
        let games = Games::new(stage, &net);
        let (keys, keys_made, snapshot, sessions) = Default::default();
        Self { stage: stage.clone(), net, games, keys, keys_made, snapshot, sessions }
    }

    /// A clock that is wrong by up to two seconds.
    pub(crate) fn clock(&self) -> Clock {
        let offset = self.stage.draw(|rng| rng.random_range(-2_000..=2_000));
        Clock { env: self.stage.env.clone(), offset: time::Duration::milliseconds(offset) }
    }

    /// Calls a dependency, which may be down.
    async fn call(&self, dependency: &'static str) -> anyhow::Result<()> {
        self.stage.hop().await;
        anyhow::ensure!(!self.stage.fault(self.stage.plan.down), "{dependency} is down");
        Ok(())
    }

    pub(crate) fn add_session(&self) {
        let (shared, env) = (self.clone(), self.clock());
        self.stage.add_worker(move |process| {
            let net = &shared.net;
            let mut sessions = shared.sessions.lock().unwrap();
            if !sessions.iter().any(|(known, _)| *known == process) {
                sessions.push((process, env.clone()));
            }
            drop(sessions);
            let app = session::App { log: net.clone(), env: env.clone(), effects: shared.clone(), limits: limits() };
            let reactor = app.clone();
            net.session.react(process, REACTIONS, move |delivery| {
                let app = reactor.clone();
                async move { app.on_event(&delivery).await }
            });
            let reactor = app.clone();
            net.reports.react(process, REACTIONS, move |delivery| {
                let app = reactor.clone();
                async move { app.on_report(&delivery).await }
            });
            net.timers.react(process, REACTIONS, move |delivery| {
                let app = app.clone();
                async move { app.on_timer(&delivery).await }
            });
        });
    }

    /// A session worker that answers requests, and its process.
    pub(crate) fn session_worker(&self) -> (Process, session::App<Net, Clock, Self>) {
        let sessions = self.sessions.lock().unwrap();
        let (process, env) = sessions[self.stage.draw(|rng| rng.random_range(0..sessions.len()))].clone();
        (process, session::App { log: self.net.clone(), env, effects: self.clone(), limits: limits() })
    }

    pub(crate) fn add_director(&self) {
        let (shared, env) = (self.clone(), self.clock());
        // The start of an `Instant` is arbitrary: only differences matter.
        let (began, at) = (Instant::now(), self.stage.now());
        self.stage.add_worker(move |process| {
            let settings =
                GameSettings { token_key: String::new(), token_keys: BTreeMap::new(), nats_url: String::new() };
            let app = director::App {
                log: shared.net.clone(),
                env: env.clone(),
                backend: shared.games.clone(),
                keys: shared.clone(),
                settings: Arc::new(settings),
            };
            let grace = if shared.stage.plan.sweeps { GRACE } else { NEVER };
            let mut watch = Watch::new(app.clone(), grace);
            shared.net.director.react(process, REACTIONS, move |delivery| {
                let app = app.clone();
                async move { app.on_event(&delivery).await }
            });
            let (stage, games) = (shared.stage.clone(), shared.games.clone());
            shared.stage.spawn(process, async move {
                loop {
                    let listed = games.list().await;
                    if listed.complete.is_ok() {
                        let passed = Duration::try_from(stage.now() - at).unwrap_or_default();
                        // After a failure, the next round looks at the same instances again.
                        let _ = watch.check(&listed.instances, began + passed).await;
                    }
                    stage.sleep(LIST_INTERVAL).await;
                }
            });
        });
    }

    pub(crate) fn add_matchmaker(&self, leads: &Leads) {
        let (shared, env, leads) = (self.clone(), self.clock(), leads.clone());
        self.stage.add_worker(move |process| {
            let queues = queues(&shared.stage.plan);
            let matching = Matching::new(shared.net.clone(), env.clone(), queues, leads.clone());
            shared.stage.spawn(process, shared.clone().matchmaker(matching));
        });
    }

    async fn matchmaker(self, mut matching: Matching<Net, Clock, Leads>) {
        let stage = &self.stage;
        let end = loop {
            let log = self.net.log.clone();
            match stage.ask(async move { log.last_sequence(PLAYERS) }).await {
                Ok(end) => break end,
                Err(_) => stage.sleep(IDLE).await,
            }
        };
        let created = OffsetDateTime::UNIX_EPOCH;
        let snapshot = self.snapshot.lock().unwrap().clone();
        if let Some(bytes) = snapshot {
            let log = snapshot::Log { created, first: 1, last: u64::MAX };
            matching.restore(snapshot::decode(&bytes, log).expect("a snapshot of this log"));
        }
        let mut follow = self.net.log.follow(vec![PLAYERS.into()], matching.pool().seq() + 1);
        while matching.pool().seq() < end {
            fold(&mut matching, &follow.next().await);
        }
        loop {
            stage.hop().await;
            let mut max_wait = match matching.decide() {
                Next::Decide => Duration::ZERO,
                Next::Wait(time) => time,
            };
            if stage.fault(10) {
                let (pool, seq) = (matching.pool().folded(), matching.pool().seq());
                let bytes = snapshot::encode(created, seq, &pool).expect("a snapshot encodes");
                *self.snapshot.lock().unwrap() = Some(bytes);
            }
            loop {
                let message = within_time(stage, max_wait, follow.next());
                let first = match select(pin!(matching.changed()), pin!(message)).await {
                    Either::Left((change, _)) => Ok(change),
                    Either::Right((message, _)) => Err(message),
                };
                match first {
                    Ok(Change::Settled { failed: true }) => {
                        stage.sleep(IDLE).await;
                        break;
                    }
                    Ok(Change::Settled { failed: false } | Change::Lead) => {}
                    Err(Some(message)) => fold(&mut matching, &message),
                    Err(None) => break,
                }
                max_wait = Duration::ZERO;
            }
        }
    }
}

fn fold(matching: &mut Matching<Net, Clock, Leads>, message: &Message) {
    if let Some(Aggregate::Player(player)) = Aggregate::of(&message.subject) {
        let recorded = Recorded::<player::Event>::decode(message.seq, message.time, &message.body);
        matching.fold(&player, &recorded.expect("an event"));
    }
}

/// Whether a matchmaker believes that it leads. It may be wrong.
#[derive(Clone, Default)]
pub(crate) struct Leads(pub(crate) Arc<AtomicBool>);

impl Lead for Leads {
    fn compete(&self) {}

    fn leads(&self, _: &QueueName) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn changed(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// Changes which matchmaker leads until the faults stop, then lets both lead. With `two_leaders`, both always lead.
pub(crate) async fn elect(stage: Stage, leads: [Leads; 2]) {
    let set =
        |values: [bool; 2]| leads.iter().zip(values).for_each(|(one, value)| one.0.store(value, Ordering::Relaxed));
    while stage.is_faulty() && !stage.plan.two_leaders {
        set(match stage.draw(|rng| rng.random_range(0..10)) {
            0 => [false, false],
            1 => [true, true],
            2..=5 => [true, false],
            _ => [false, true],
        });
        let term = stage.draw(|rng| rng.random_range(1_000..10_000));
        stage.sleep(Duration::from_millis(term)).await;
    }
    set([true, true]);
}

impl Effects for Shared {
    async fn loadouts(&self, players: Vec<PlayerId>) -> Result<Vec<Loadout>, Failure> {
        self.call("inventory").await.map_err(Failure::Unavailable)?;
        let car = || Car {
            id: "pebble".parse().unwrap(),
            model: String::new(),
            texture: String::new(),
            stats: Stats { power_kw: 80.0, mass_kg: 900.0, grip: 1.0, drag_m2: 0.6 },
        };
        Ok(players.into_iter().map(|player| Loadout { player, car: car(), items: BTreeMap::new() }).collect())
    }

    async fn park(
        &self,
        _session: SessionId,
        _attempt: u32,
        _ends_at: OffsetDateTime,
        keep: Duration,
    ) -> Result<GameKey, Failure> {
        self.call("redis").await.map_err(Failure::Unavailable)?;
        let fingerprint = {
            let mut keys_made = self.keys_made.lock().unwrap();
            *keys_made += 1;
            format!("key-{keys_made}")
        };
        if !self.stage.fault(self.stage.plan.lost_keys) {
            self.keys.lock().unwrap().insert(fingerprint.clone(), self.stage.now() + keep);
        }
        self.stage.hop().await;
        Ok(GameKey { public_key: String::new(), fingerprint, private_key: Secret::new("private") })
    }

    async fn absent(&self, players: Vec<(PlayerId, OffsetDateTime)>) -> BTreeSet<PlayerId> {
        self.stage.hop().await;
        // Nobody has a socket here. Some players count as gone, so that one match requeues some and releases others.
        players.into_iter().map(|(player, _)| player).filter(|_| self.stage.fault(20)).collect()
    }

    async fn set_timer(&self, session: SessionId, at: Option<OffsetDateTime>) -> Result<(), Failure> {
        self.call("the timer stream").await.map_err(Failure::Unavailable)?;
        let net = self.net.clone();
        self.stage.ask(async move { net.set_timer(session, at) }).await;
        Ok(())
    }
}

impl Keys for Shared {
    async fn secrets(&self, fingerprint: &str) -> Result<Secrets, CreateError> {
        self.call("redis").await.map_err(Unavailable)?;
        let kept = self.keys.lock().unwrap().get(fingerprint).is_some_and(|until| *until > self.stage.now());
        if !kept {
            return Err(CreateError::Refused { reason: "key-lost", message: "the key has expired".into() });
        }
        Ok(Secrets { private_key: Secret::new("private"), credentials: Secret::new("user") })
    }
}

/// Runs a player's command in a worker's process. `None` if the worker is down or does not answer in time.
pub(crate) async fn call_gateway<T: Send + 'static>(
    stage: &Stage,
    gateway: Process,
    command: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    stage.hop().await;
    if !stage.is_up(gateway) {
        return None;
    }
    let (reply, answer) = tokio::sync::oneshot::channel();
    let network = stage.clone();
    stage.spawn(gateway, async move {
        let done = command.await;
        network.hop().await;
        let _ = reply.send(done);
    });
    within_time(stage, Duration::from_secs(10), answer).await?.ok()
}

/// The output of a future, or `None` after this time.
async fn within_time<T>(stage: &Stage, time: Duration, future: impl Future<Output = T>) -> Option<T> {
    match select(pin!(future), pin!(stage.sleep(time))).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}
