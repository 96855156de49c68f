//! Garage's workers on the stage: their deciders and reactions as they are, with doubles of what is beyond the log.

use std::{
    collections::BTreeMap,
    future::Future,
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
    reaction::{self as director, Keys, Terms},
    watch::Watch,
};
use garage_events::{
    event::Recorded,
    game::{Car, Loadout, Secret, Secrets, Stats},
    id::{PlayerId, QueueName, SessionId},
    player,
    queue::{Queue, Queues},
    session::Limits,
    sim::Message,
    subject::{Aggregate, PLAYERS},
};
use garage_matchmaker::{
    domain::snapshot,
    lead::Lead,
    matching::{Cycle, IDLE, Matching},
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
    stage::{Process, Stage},
};

/// Reactions of one consumer at a time.
const REACTIONS: usize = 3;

/// How often a director looks at its instances.
const LOOK: Duration = Duration::from_millis(500);

/// How old an instance must be to be an orphan, where orphans are swept up.
const GRACE: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_secs(1_000_000);

/// As by default, but that a session is over in a minute.
pub(crate) fn limits() -> Limits {
    Limits { session: time::Duration::MINUTE, ..Limits::default() }
}

/// The one queue.
pub(crate) fn queues(match_of: usize) -> Queues {
    let queue = Queue {
        players: match_of,
        rank_band: 100,
        timeout_s: 30,
        client_rank: false,
        regions: [("eu".parse().unwrap(), 100)].into(),
    };
    Queues { queues: [("ranked".parse().unwrap(), queue)].into() }
}

/// What instances share besides the streams.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) stage: Stage,
    pub(crate) net: Net,
    pub(crate) games: Games,
    /// The parked keys, by fingerprint, and until when.
    keys: Arc<Mutex<BTreeMap<String, OffsetDateTime>>>,
    made: Arc<Mutex<u64>>,
    snapshot: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Shared {
    pub(crate) fn new(stage: &Stage) -> Self {
        let net = Net::new(stage);
        let games = Games::new(stage, &net);
        let (keys, made, snapshot) = Default::default();
        Self { stage: stage.clone(), net, games, keys, made, snapshot }
    }

    /// A clock that goes wrong by up to two seconds.
    pub(crate) fn clock(&self) -> Clock {
        let ahead = self.stage.draw(|dice| dice.random_range(-2_000..=2_000));
        Clock { env: self.stage.env.clone(), ahead: time::Duration::milliseconds(ahead) }
    }

    /// Something that is asked, and may be down.
    async fn asked(&self, whom: &'static str) -> anyhow::Result<()> {
        self.stage.hop().await;
        anyhow::ensure!(!self.stage.fault(self.stage.plan.down), "{whom} is down");
        Ok(())
    }

    pub(crate) fn employ_session(&self) {
        let (shared, env) = (self.clone(), self.clock());
        self.stage.employ(move |process| {
            let net = &shared.net;
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

    pub(crate) fn employ_director(&self) {
        let (shared, env) = (self.clone(), self.clock());
        // Instants count from whenever; only how far they lie apart matters.
        let (began, at) = (Instant::now(), self.stage.now());
        self.stage.employ(move |process| {
            let terms = Terms {
                token_key: String::new(),
                token_keys: BTreeMap::new(),
                nats_url: String::new(),
                session: limits().session,
            };
            let app = director::App {
                log: shared.net.clone(),
                env: env.clone(),
                backend: shared.games.clone(),
                keys: shared.clone(),
                terms: Arc::new(terms),
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
                    if listed.whole.is_ok() {
                        let passed = Duration::try_from(stage.now() - at).unwrap_or_default();
                        // What fails is looked at again the next time.
                        let _ = watch.look(&listed.instances, began + passed).await;
                    }
                    stage.sleep(LOOK).await;
                }
            });
        });
    }

    pub(crate) fn employ_matchmaker(&self, leads: &Leads) {
        let (shared, env, leads) = (self.clone(), self.clock(), leads.clone());
        self.stage.employ(move |process| {
            let queues = queues(shared.stage.plan.match_of);
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
            matching.restore(snapshot::decode(&bytes, log).expect("the snapshot is of this log"));
        }
        let mut follow = self.net.log.follow(vec![PLAYERS.into()], matching.pool().seq() + 1);
        while matching.pool().seq() < end {
            fold(&mut matching, &follow.next().await);
        }
        loop {
            stage.hop().await;
            let Cycle { busy, failed } = matching.cycle().await;
            if failed {
                stage.sleep(IDLE).await;
            }
            if stage.fault(10) {
                let (pool, seq) = (matching.pool().folded(), matching.pool().seq());
                let bytes = snapshot::encode(created, seq, &pool).expect("a snapshot can be written");
                *self.snapshot.lock().unwrap() = Some(bytes);
            }
            let mut max_wait = if busy { Duration::ZERO } else { matching.max_wait() };
            loop {
                let Some(message) = within(stage, max_wait, follow.next()).await else { break };
                fold(&mut matching, &message);
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

/// Whether a matchmaker leads, which it may believe wrongly.
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

/// Lets now this matchmaker lead, now that, until nothing goes wrong any more; rivals lead both. Then both do.
pub(crate) async fn elect(stage: Stage, leads: [Leads; 2]) {
    let set =
        |values: [bool; 2]| leads.iter().zip(values).for_each(|(one, value)| one.0.store(value, Ordering::Relaxed));
    while stage.is_faulty() && !stage.plan.rivals {
        set(match stage.draw(|dice| dice.random_range(0..10)) {
            0 => [false, false],
            1 => [true, true],
            2..=5 => [true, false],
            _ => [false, true],
        });
        let term = stage.draw(|dice| dice.random_range(1_000..10_000));
        stage.sleep(Duration::from_millis(term)).await;
    }
    set([true, true]);
}

impl Effects for Shared {
    async fn loadouts(&self, players: Vec<PlayerId>) -> Result<Vec<Loadout>, Failure> {
        self.asked("inventory").await.map_err(Failure::Unavailable)?;
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
        self.asked("redis").await.map_err(Failure::Unavailable)?;
        let fingerprint = {
            let mut made = self.made.lock().unwrap();
            *made += 1;
            format!("key-{made}")
        };
        if !self.stage.fault(self.stage.plan.lost_keys) {
            self.keys.lock().unwrap().insert(fingerprint.clone(), self.stage.now() + keep);
        }
        self.stage.hop().await;
        Ok(GameKey { public_key: String::new(), fingerprint, private_key: Secret::new("private") })
    }

    async fn set_timer(&self, session: SessionId, at: Option<OffsetDateTime>) -> Result<(), Failure> {
        self.asked("the timers' stream").await.map_err(Failure::Unavailable)?;
        let net = self.net.clone();
        self.stage.ask(async move { net.set_timer(session, at) }).await;
        Ok(())
    }
}

impl Keys for Shared {
    async fn secrets(&self, fingerprint: &str) -> Result<Secrets, CreateError> {
        self.asked("redis").await.map_err(Unavailable)?;
        let kept = self.keys.lock().unwrap().get(fingerprint).is_some_and(|until| *until > self.stage.now());
        if !kept {
            return Err(CreateError::Refused { reason: "key-lost", message: "it is gone".into() });
        }
        Ok(Secrets { private_key: Secret::new("private"), credentials: Secret::new("user") })
    }
}

/// The process that answers a player's command, one of the gateways, should it be there.
pub(crate) async fn at_gateway<T: Send + 'static>(
    stage: &Stage,
    gateway: Process,
    command: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    stage.hop().await;
    if !stage.is_up(gateway) {
        return None;
    }
    let (reply, answer) = tokio::sync::oneshot::channel();
    let gone = stage.clone();
    stage.spawn(gateway, async move {
        let done = command.await;
        gone.hop().await;
        let _ = reply.send(done);
    });
    within(stage, Duration::from_secs(10), answer).await?.ok()
}

/// What comes of a future within a time.
async fn within<T>(stage: &Stage, time: Duration, future: impl Future<Output = T>) -> Option<T> {
    match select(pin!(future), pin!(stage.sleep(time))).await {
        Either::Left((output, _)) => Some(output),
        Either::Right(_) => None,
    }
}
