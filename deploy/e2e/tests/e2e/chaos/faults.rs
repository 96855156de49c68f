//! Faults, drawn by a seed: what, of whom, when, and for how long.

use std::{collections::BTreeMap, fmt, fs, time::Duration};

use async_nats::jetstream;
use garage_events::{
    event::Envelope,
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
    },
    subject::{Aggregate, STREAM},
};
use garage_stack::{
    proxy::Proxy,
    workers::{Instance, Worker},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::support::Garage;

/// How long it may take until what was mended is well, while other things fail.
const RECOVERING: Duration = Duration::from_secs(120);

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// SIGKILL; started again after a while.
    Killed(Part),
    /// SIGSTOP for a while: it wakes up as if nothing had been, and may believe that it still leads.
    Stopped(Part),
    /// Redis is killed, and back with an older copy of what it held.
    Aged,
    /// No connection to NATS.
    CutOff(Worker),
    /// A long way to NATS.
    Slowed(Worker),
    /// A game server is killed as soon as its session's log has an event of this type.
    GameKilled(&'static str),
    /// A node of NATS has no connection to the others.
    RoutesCut,
    /// A node of NATS is a long way from the others.
    RoutesSlowed,
}

/// What has a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Worker(Worker),
    Nats,
    Redis,
    MariaDb,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker(worker) => worker.name(),
            Self::Nats => "nats-server",
            Self::Redis => "redis-server",
            Self::MariaDb => "mariadbd",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(Part::Redis) => f.write_str("redis-server killed, back empty"),
            Self::Killed(part) => write!(f, "{part} killed"),
            Self::Stopped(part) => write!(f, "{part} stopped for a while"),
            Self::Aged => f.write_str("redis-server killed, back with an older copy"),
            Self::CutOff(worker) => write!(f, "{} cut off from NATS", worker.name()),
            Self::Slowed(worker) => write!(f, "{} far from NATS", worker.name()),
            Self::GameKilled(event) => write!(f, "game server killed at {event}"),
            Self::RoutesCut => f.write_str("NATS node cut off from the others"),
            Self::RoutesSlowed => f.write_str("NATS node far from the others"),
        }
    }
}

impl Kind {
    /// All kinds, and how often each comes, compared with the others.
    fn all(nodes: usize) -> Vec<(Self, u32)> {
        let workers = Worker::ALL.into_iter().flat_map(|worker| {
            let part = Part::Worker(worker);
            [(Self::Killed(part), 3), (Self::Stopped(part), 2), (Self::CutOff(worker), 2), (Self::Slowed(worker), 1)]
        });
        let games = ["PodScheduled", "Opened", "Finished"].map(|event| (Self::GameKilled(event), 3));
        let mut all: Vec<_> = workers.chain(games).collect();
        all.extend([Part::Nats, Part::Redis, Part::MariaDb].map(|part| (Self::Killed(part), 2)));
        all.extend([Part::Nats, Part::Redis, Part::MariaDb].map(|part| (Self::Stopped(part), 1)));
        all.push((Self::Aged, 2));
        if nodes > 1 {
            all.extend([(Self::RoutesCut, 2), (Self::RoutesSlowed, 1)]);
        }
        all
    }

    /// What it is done to: nothing is done to what suffers already.
    fn part(self) -> Option<Part> {
        match self {
            Self::Killed(part) | Self::Stopped(part) => Some(part),
            Self::CutOff(worker) | Self::Slowed(worker) => Some(Part::Worker(worker)),
            Self::Aged => Some(Part::Redis),
            Self::RoutesCut | Self::RoutesSlowed => Some(Part::Nats),
            Self::GameKilled(_) => None,
        }
    }
}

/// A fault that goes on: of which instance or node, and until when.
struct Present {
    kind: Kind,
    number: usize,
    until: Instant,
}

/// The faults of a run.
pub(super) struct Faults {
    random: StdRng,
    /// Between each worker and each node of NATS.
    proxies: Vec<Vec<Proxy>>,
    present: Vec<Present>,
    /// How long it took until all was well again, by kind.
    done: BTreeMap<String, Vec<Duration>>,
    /// Watches how long it takes until what was mended is well.
    recovering: JoinSet<(Kind, Duration)>,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count: usize = self.done.values().map(Vec::len).sum();
        writeln!(f, "{count} faults of {} kinds; recovery in s, median and longest:", self.done.len())?;
        for (kind, times) in &self.done {
            let mut times: Vec<_> = times.iter().map(Duration::as_secs_f64).collect();
            times.sort_by(f64::total_cmp);
            let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
            writeln!(f, "  {:>4}  {median:>5.1} {longest:>5.1}  {kind}", times.len())?;
        }
        Ok(())
    }
}

impl Faults {
    pub(super) fn new(proxies: Vec<Vec<Proxy>>, seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            proxies,
            present: Vec::new(),
            done: BTreeMap::new(),
            recovering: JoinSet::new(),
        }
    }

    /// Strikes for so long, then mends all and waits until all is well.
    pub(super) async fn strike(&mut self, garage: &mut Garage, time: Duration) {
        let kinds = Kind::all(garage.stack.nats.nodes());
        let end = Instant::now() + time;
        while Instant::now() < end {
            let (kind, _) = *kinds.choose_weighted(&mut self.random, |(_, weight)| *weight).unwrap();
            let pause = Duration::from_millis(self.random.random_range(200..2_000));
            if let Kind::GameKilled(event) = kind {
                self.kill_game(garage, event).await;
            } else if !self.suffers(kind) {
                self.begin(garage, kind).await;
            }
            let next = Instant::now() + pause;
            while let Some(due) = self.due(next) {
                sleep_until(due.until).await;
                self.mend(garage, due).await;
            }
            sleep_until(next).await;
        }
        while let Some(due) = self.due(end + time) {
            self.mend(garage, due).await;
        }
        while let Some(recovered) = self.recovering.join_next().await {
            let (kind, took) = recovered.unwrap();
            self.done.entry(kind.to_string()).or_default().push(took);
        }
    }

    /// Whether the part has a fault already; of the two instances of a worker, either.
    fn suffers(&self, kind: Kind) -> bool {
        self.present.iter().any(|present| present.kind.part() == kind.part())
    }

    /// Takes out the fault that ends next, if it ends by then.
    fn due(&mut self, by: Instant) -> Option<Present> {
        let next = self.present.iter().enumerate().min_by_key(|(_, present)| present.until)?;
        let (at, ends) = (next.0, next.1.until);
        (ends <= by).then(|| self.present.swap_remove(at))
    }

    async fn begin(&mut self, garage: &mut Garage, kind: Kind) {
        let choices = if kind.part() == Some(Part::Nats) { garage.stack.nats.nodes() } else { 2 };
        let number = self.random.random_range(0..choices);
        let lasts = Duration::from_millis(self.random.random_range(match kind {
            Kind::Killed(_) | Kind::Aged => 0..2_000,
            // Longer than a lease, and than a delivery may be silent.
            Kind::Stopped(Part::Worker(_)) => 2_000..8_000,
            _ => 500..4_000,
        }));
        let far = Duration::from_millis(self.random.random_range(20..200));
        let stack = &mut garage.stack;
        match kind {
            Kind::Killed(Part::Worker(worker)) => instance(garage, worker, number).process.kill(),
            Kind::Stopped(Part::Worker(worker)) => instance(garage, worker, number).process.pause().unwrap(),
            Kind::Killed(Part::Nats) => stack.nats.node(number).unwrap().kill(),
            Kind::Stopped(Part::Nats) => stack.nats.node(number).unwrap().pause().unwrap(),
            Kind::Killed(Part::Redis) => stack.redis.kill(),
            Kind::Stopped(Part::Redis) => stack.redis.pause().unwrap(),
            Kind::Killed(Part::MariaDb) => stack.mariadb.kill(),
            Kind::Stopped(Part::MariaDb) => stack.mariadb.pause().unwrap(),
            Kind::Aged => {
                let mut connection = garage.redis().await;
                redis::cmd("SAVE").exec_async(&mut connection).await.unwrap();
            }
            Kind::CutOff(worker) => self.network(garage, worker, number).iter().for_each(Proxy::cut),
            Kind::Slowed(worker) => {
                self.network(garage, worker, number).iter().for_each(|proxy| proxy.delay(far));
            }
            Kind::RoutesCut => stack.nats.cut_routes(number).unwrap(),
            Kind::RoutesSlowed => stack.nats.delay_routes(number, far).unwrap(),
            Kind::GameKilled(_) => unreachable!("games have their own moments"),
        }
        self.present.push(Present { kind, number, until: Instant::now() + lasts });
    }

    async fn mend(&mut self, garage: &mut Garage, Present { kind, number, .. }: Present) {
        let stack = &mut garage.stack;
        match kind {
            Kind::Killed(Part::Worker(worker)) => instance(garage, worker, number).process.restart().unwrap(),
            Kind::Stopped(Part::Worker(worker)) => instance(garage, worker, number).process.resume().unwrap(),
            Kind::Killed(Part::Nats) => stack.nats.node(number).unwrap().restart().await.unwrap(),
            Kind::Stopped(Part::Nats) => stack.nats.node(number).unwrap().resume().unwrap(),
            Kind::Killed(Part::Redis) => stack.redis.restart_empty().await.unwrap(),
            Kind::Stopped(Part::Redis) => stack.redis.resume().unwrap(),
            Kind::Killed(Part::MariaDb) => stack.mariadb.restart().await.unwrap(),
            Kind::Stopped(Part::MariaDb) => stack.mariadb.resume().unwrap(),
            Kind::Aged => stack.redis.restart().await.unwrap(),
            Kind::CutOff(worker) => self.network(garage, worker, number).iter().for_each(Proxy::mend),
            Kind::Slowed(worker) => {
                self.network(garage, worker, number).iter().for_each(|proxy| proxy.delay(Duration::ZERO));
            }
            Kind::RoutesCut => stack.nats.mend_routes(number).unwrap(),
            Kind::RoutesSlowed => stack.nats.delay_routes(number, Duration::ZERO).unwrap(),
            Kind::GameKilled(_) => unreachable!("games have their own moments"),
        }
        // A worker is well when it says so; a server, when all who use it do.
        let concerned = |instance: &&mut Instance| match kind.part() {
            Some(Part::Worker(worker)) => instance.worker == worker,
            _ => true,
        };
        let urls = garage.stack.all_instances().filter(concerned).map(|at| format!("http://{}/readyz", at.admin));
        let urls: Vec<_> = urls.collect();
        self.watch(kind, async move {
            for url in urls {
                ready(&url).await;
            }
        });
    }

    fn network(&self, garage: &mut Garage, worker: Worker, number: usize) -> &[Proxy] {
        let first = garage.stack.all_instances().position(|instance| instance.worker == worker).unwrap();
        &self.proxies[first + number]
    }

    /// Waits for a session to get so far, and kills its game server.
    async fn kill_game(&mut self, garage: &Garage, at: &'static str) {
        let jetstream = garage.jetstream();
        let Ok(Ok(log)) = timeout(Duration::from_secs(5), JetStreamLog::open(garage.admin.clone())).await else {
            return;
        };
        let Ok(Ok(end)) = timeout(Duration::from_secs(5), log.last_sequence("garage.session.>")).await else { return };
        let found = timeout(Duration::from_secs(5), next(jetstream.clone(), "garage.session.>", end + 1, &[at])).await;
        let Ok(message) = found else { return };
        let Some(Aggregate::Session(session)) = Aggregate::of(&message.subject) else { return };
        let name = format!("game-{session}-");
        let runs_it = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| contains(&line, &name));
        let Some(pid) = garage.stack.game_servers().into_iter().find(runs_it) else { return };
        if kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).is_err() {
            return;
        }
        self.watch(Kind::GameKilled(at), async move {
            // Another attempt, or the end of it.
            let subject = format!("garage.session.{session}.>");
            next(jetstream, &subject, message.seq + 1, &["PodFailed", "Closed"]).await;
        });
    }

    /// Takes note of how long it takes until all is well.
    fn watch(&mut self, kind: Kind, well: impl Future<Output = ()> + Send + 'static) {
        self.recovering.spawn(async move {
            let began = Instant::now();
            let recovered = timeout(RECOVERING, well).await;
            assert!(recovered.is_ok(), "{kind}: not well within {RECOVERING:?}");
            (kind, began.elapsed())
        });
    }
}

fn instance(garage: &mut Garage, worker: Worker, number: usize) -> &mut Instance {
    garage.stack.instances(worker).nth(number).unwrap()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The next message that is of one of the types.
async fn next(jetstream: jetstream::Context, filter: &str, from: u64, types: &[&str]) -> Message {
    let mut follow = Follow::new(jetstream, STREAM, vec![filter.into()], from);
    loop {
        let message = follow.next().await;
        if types.contains(&&*Envelope::from_slice(&message.body).unwrap().type_name) {
            return message;
        }
    }
}

async fn ready(url: &str) {
    let client = reqwest::Client::new();
    let ready = async || {
        let answer = client.get(url).timeout(Duration::from_secs(1)).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    };
    while !ready().await {
        sleep(Duration::from_millis(20)).await;
    }
}
