//! Draws faults from a seed: which fault, of which process, when, and for how long.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use async_nats::jetstream::{self, stream};
use futures::future::join_all;
use garage_events::{
    event::Envelope,
    game::MAX_REPORT,
    id::SessionId,
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
        setup::DEFAULT_LOG_SIZE,
    },
    subject::{Aggregate, STREAM},
};
use garage_stack::{
    abuser::{Abuse, Abuser},
    proxy::Proxy,
    workers::{Instance, Worker},
};
use garage_worker::Shutdown;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::support::{Garage, until};

/// How long recovery from a fault may take while other faults occur.
const RECOVERY: Duration = Duration::from_secs(120);

/// The rank of the account that floods a gateway. It must not be matched with the players.
const FLOODERS_RANK: i32 = 100_000;

/// The number of connections of this account for each type of request.
const FLOOD_CONNECTIONS: usize = 8;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// SIGKILL, and a restart after a while.
    Killed(Part),
    /// SIGSTOP for a while. The process continues without noticing, and may believe that it still leads.
    Paused(Part),
    /// Redis is killed, and restarted with an older copy of its data.
    RolledBack,
    /// No connection to NATS.
    CutOff(Worker),
    /// A slow connection to NATS.
    Slowed(Worker),
    /// A game server is killed when its session has an event of this type.
    GameKilled(&'static str),
    /// The disk of a NATS node is full. Then there is room again, and the node is restarted, as the operators' guide says.
    DiskFull,
    /// The log is as large as it may be. Then it may grow again.
    LogFull,
    /// From an event of this type on, the NATS user of the session's game server floods NATS for a while.
    GameHostile(&'static str),
    /// An account sends as many requests as it can for tickets, cars and sockets.
    Flood,
    /// A game server's launcher drops its arguments, and runs something else forever.
    ArgumentsDropped,
    /// A NATS node without connections to the others.
    RoutesCut,
    /// A NATS node with slow connections to the others.
    RoutesSlowed,
}

/// A part of Garage that runs as processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Worker(Worker),
    Nats,
    Redis,
    Database,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker(worker) => worker.name(),
            Self::Nats => "nats-server",
            Self::Redis => "redis-server",
            Self::Database => "database",
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(Part::Redis) => f.write_str("redis-server killed, restarted empty"),
            Self::Killed(part) => write!(f, "{part} killed"),
            Self::Paused(part) => write!(f, "{part} paused"),
            Self::RolledBack => f.write_str("redis-server killed, restarted with an older copy"),
            Self::CutOff(worker) => write!(f, "{} cut off from NATS", worker.name()),
            Self::Slowed(worker) => write!(f, "slow connection from {} to NATS", worker.name()),
            Self::GameKilled(event) => write!(f, "game server killed at {event}"),
            Self::DiskFull => f.write_str("disk full"),
            Self::LogFull => f.write_str("log full"),
            Self::GameHostile(event) => write!(f, "hostile game server at {event}"),
            Self::Flood => f.write_str("flood of one account"),
            Self::ArgumentsDropped => f.write_str("launcher that drops its arguments"),
            Self::RoutesCut => f.write_str("NATS node cut off from the others"),
            Self::RoutesSlowed => f.write_str("slow connections to a NATS node"),
        }
    }
}

impl Kind {
    /// All kinds with their relative frequency.
    fn all(nodes: usize) -> Vec<(Self, u32)> {
        let workers = Worker::ALL.into_iter().flat_map(|worker| {
            let part = Part::Worker(worker);
            [(Self::Killed(part), 3), (Self::Paused(part), 2), (Self::CutOff(worker), 2), (Self::Slowed(worker), 1)]
        });
        let games = ["PodScheduled", "Opened", "Finished"].map(|event| (Self::GameKilled(event), 3));
        let hostile = ["PodRequested", "PodScheduled", "Opened"].map(|event| (Self::GameHostile(event), 1));
        let mut all: Vec<_> = workers.chain(games).chain(hostile).collect();
        all.extend([Part::Nats, Part::Redis, Part::Database].map(|part| (Self::Killed(part), 2)));
        all.extend([Part::Nats, Part::Redis, Part::Database].map(|part| (Self::Paused(part), 1)));
        all.extend([
            (Self::RolledBack, 2),
            (Self::ArgumentsDropped, 2),
            (Self::Flood, 3),
            (Self::DiskFull, 1),
            (Self::LogFull, 1),
        ]);
        if nodes > 1 {
            all.extend([(Self::RoutesCut, 2), (Self::RoutesSlowed, 1)]);
        }
        all
    }

    /// The part that it affects. A part has at most one fault at a time.
    fn part(self) -> Option<Part> {
        match self {
            Self::Killed(part) | Self::Paused(part) => Some(part),
            Self::CutOff(worker) | Self::Slowed(worker) => Some(Part::Worker(worker)),
            Self::RolledBack => Some(Part::Redis),
            Self::DiskFull | Self::LogFull | Self::RoutesCut | Self::RoutesSlowed => Some(Part::Nats),
            Self::GameKilled(_) | Self::GameHostile(_) | Self::Flood | Self::ArgumentsDropped => None,
        }
    }
}

/// A fault in progress, with the affected instance or node and the fault's end.
struct Active {
    kind: Kind,
    number: usize,
    until: Instant,
}

/// Injects the faults of a run.
pub(super) struct Faults {
    rng: StdRng,
    /// For each worker instance, a proxy to each NATS node.
    proxies: Vec<Vec<Proxy>>,
    active: Vec<Active>,
    /// The recovery times by kind of fault.
    done: BTreeMap<String, Vec<Duration>>,
    /// The tasks that measure recovery times.
    recovering: JoinSet<(Kind, Duration)>,
    /// The floods of hostile game servers.
    floods: JoinSet<()>,
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
            rng: StdRng::seed_from_u64(seed),
            proxies,
            active: Vec::new(),
            done: BTreeMap::new(),
            recovering: JoinSet::new(),
            floods: JoinSet::new(),
        }
    }

    /// Injects faults for this time, then ends all faults and waits for recovery.
    pub(super) async fn inject(&mut self, garage: &mut Garage, time: Duration) {
        let kinds = Kind::all(garage.stack.nats.nodes());
        let end = Instant::now() + time;
        while Instant::now() < end {
            let (kind, _) = *kinds.choose_weighted(&mut self.rng, |(_, weight)| *weight).unwrap();
            let pause = Duration::from_millis(self.rng.random_range(200..2_000));
            match kind {
                Kind::GameKilled(event) => self.kill_game(garage, event).await,
                Kind::GameHostile(event) => self.flood_nats(garage, event).await,
                Kind::Flood => self.flood_gateway(garage),
                Kind::ArgumentsDropped => self.drop_arguments(garage.stack.root()).await,
                _ if !self.is_affected(kind) => self.begin(garage, kind).await,
                _ => {}
            }
            let next = Instant::now() + pause;
            while let Some(due) = self.due(next) {
                sleep_until(due.until).await;
                self.end(garage, due).await;
            }
            sleep_until(next).await;
        }
        while let Some(due) = self.due(end + time) {
            self.end(garage, due).await;
        }
        while let Some(ended) = self.floods.join_next().await {
            ended.unwrap();
        }
        while let Some(recovered) = self.recovering.join_next().await {
            let (kind, took) = recovered.unwrap();
            self.done.entry(kind.to_string()).or_default().push(took);
        }
    }

    /// Whether the part already has a fault. For a worker, one affected instance of the two counts.
    fn is_affected(&self, kind: Kind) -> bool {
        self.active.iter().any(|active| active.kind.part() == kind.part())
    }

    /// Removes and returns the fault that ends next, if it ends by then.
    fn due(&mut self, by: Instant) -> Option<Active> {
        let next = self.active.iter().enumerate().min_by_key(|(_, active)| active.until)?;
        let (at, ends) = (next.0, next.1.until);
        (ends <= by).then(|| self.active.swap_remove(at))
    }

    async fn begin(&mut self, garage: &mut Garage, kind: Kind) {
        let choices = if kind.part() == Some(Part::Nats) { garage.stack.nats.nodes() } else { 2 };
        let number = self.rng.random_range(0..choices);
        let duration = Duration::from_millis(self.rng.random_range(match kind {
            Kind::Killed(_) | Kind::RolledBack => 0..2_000,
            // Longer than a lease, and longer than a delivery may go without progress.
            Kind::Paused(Part::Worker(_)) | Kind::DiskFull => 2_000..8_000,
            _ => 500..4_000,
        }));
        let delay = Duration::from_millis(self.rng.random_range(20..200));
        let stack = &mut garage.stack;
        match kind {
            Kind::Killed(Part::Worker(worker)) => instance(garage, worker, number).process.kill(),
            Kind::Paused(Part::Worker(worker)) => instance(garage, worker, number).process.pause().unwrap(),
            Kind::Killed(Part::Nats) => stack.nats.node(number).unwrap().kill(),
            Kind::Paused(Part::Nats) => stack.nats.node(number).unwrap().pause().unwrap(),
            Kind::Killed(Part::Redis) => stack.redis.kill(),
            Kind::Paused(Part::Redis) => stack.redis.pause().unwrap(),
            Kind::Killed(Part::Database) => stack.database.kill(),
            Kind::Paused(Part::Database) => stack.database.pause().unwrap(),
            Kind::RolledBack => {
                let mut connection = garage.redis().await;
                redis::cmd("SAVE").exec_async(&mut connection).await.unwrap();
            }
            Kind::CutOff(worker) => self.network(garage, worker, number).iter().for_each(Proxy::cut),
            Kind::Slowed(worker) => {
                self.network(garage, worker, number).iter().for_each(|proxy| proxy.delay(delay));
            }
            Kind::DiskFull => garage.disk.as_ref().unwrap().fill(number).unwrap(),
            Kind::LogFull => resize_log(garage, LogSize::Full).await,
            Kind::RoutesCut => stack.nats.cut_routes(number).unwrap(),
            Kind::RoutesSlowed => stack.nats.delay_routes(number, delay).unwrap(),
            Kind::GameKilled(_) | Kind::GameHostile(_) | Kind::Flood | Kind::ArgumentsDropped => {
                unreachable!("these have functions of their own")
            }
        }
        self.active.push(Active { kind, number, until: Instant::now() + duration });
    }

    async fn end(&mut self, garage: &mut Garage, Active { kind, number, .. }: Active) {
        let stack = &mut garage.stack;
        match kind {
            Kind::Killed(Part::Worker(worker)) => instance(garage, worker, number).process.restart().unwrap(),
            Kind::Paused(Part::Worker(worker)) => instance(garage, worker, number).process.resume().unwrap(),
            Kind::Killed(Part::Nats) => stack.nats.node(number).unwrap().restart().await.unwrap(),
            Kind::Paused(Part::Nats) => stack.nats.node(number).unwrap().resume().unwrap(),
            Kind::Killed(Part::Redis) => stack.redis.restart_empty().await.unwrap(),
            Kind::Paused(Part::Redis) => stack.redis.resume().unwrap(),
            Kind::Killed(Part::Database) => stack.database.restart().await.unwrap(),
            Kind::Paused(Part::Database) => stack.database.resume().unwrap(),
            Kind::RolledBack => stack.redis.restart().await.unwrap(),
            Kind::CutOff(worker) => self.network(garage, worker, number).iter().for_each(Proxy::mend),
            Kind::Slowed(worker) => {
                self.network(garage, worker, number).iter().for_each(|proxy| proxy.delay(Duration::ZERO));
            }
            Kind::DiskFull => {
                garage.disk.as_ref().unwrap().make_room(number).unwrap();
                stack.nats.node(number).unwrap().restart().await.unwrap();
            }
            Kind::LogFull => resize_log(garage, LogSize::Default).await,
            Kind::RoutesCut => stack.nats.mend_routes(number).unwrap(),
            Kind::RoutesSlowed => stack.nats.delay_routes(number, Duration::ZERO).unwrap(),
            Kind::GameKilled(_) | Kind::GameHostile(_) | Kind::Flood | Kind::ArgumentsDropped => {
                unreachable!("these have functions of their own")
            }
        }
        // A worker has recovered when it is ready. A server has recovered when all workers are ready.
        let affected = |instance: &&mut Instance| match kind.part() {
            Some(Part::Worker(worker)) => instance.worker == worker,
            _ => true,
        };
        let urls = garage.stack.all_instances().filter(affected).map(|at| format!("http://{}/readyz", at.admin));
        let urls: Vec<_> = urls.collect();
        self.measure(kind, async move {
            for url in urls {
                ready(&url).await;
            }
        });
    }

    fn network(&self, garage: &mut Garage, worker: Worker, number: usize) -> &[Proxy] {
        let first = garage.stack.all_instances().position(|instance| instance.worker == worker).unwrap();
        &self.proxies[first + number]
    }

    /// Waits for an event of this type, and kills the game server of its session.
    async fn kill_game(&mut self, garage: &Garage, at: &'static str) {
        let jetstream = garage.jetstream();
        let Some((session, message)) = session_at(garage, at).await else { return };
        let name = format!("game-{session}-");
        let runs_it = |pid: &u32| fs::read(format!("/proc/{pid}/environ")).is_ok_and(|line| contains(&line, &name));
        let Some(pid) = garage.stack.game_servers().into_iter().find(runs_it) else { return };
        if kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).is_err() {
            return;
        }
        self.measure(Kind::GameKilled(at), async move {
            // The session recovers by another attempt, or ends.
            let subject = format!("garage.session.{session}.>");
            next(jetstream, &subject, message.seq + 1, &["PodFailed", "Closed"]).await;
        });
    }

    /// Floods a gateway as one account, always the same.
    fn flood_gateway(&mut self, garage: &Garage) {
        let token = garage.stack.token("flooder", Some(FLOODERS_RANK)).unwrap();
        let abuser = Abuser::new(garage.stack.gateways().choose(&mut self.rng).unwrap(), &token);
        let duration = Duration::from_millis(self.rng.random_range(500..4_000));
        self.recovering.spawn(async move {
            let all = [Abuse::Tickets, Abuse::Garage, Abuse::Sockets];
            let flood = join_all(all.iter().map(|abuse| abuser.flood(abuse, FLOOD_CONNECTIONS)));
            let _ = timeout(duration, flood).await;
            measured(Kind::Flood, abuser.until_served()).await
        });
    }

    /// Waits for an event of this type, and floods NATS as the game server of its session.
    async fn flood_nats(&mut self, garage: &Garage, at: &'static str) {
        let Some((session, message)) = session_at(garage, at).await else { return };
        let data: Value = serde_json::from_str(Envelope::from_slice(&message.body).unwrap().data.get()).unwrap();
        let attempt = data["attempt"].as_u64().and_then(|attempt| attempt.try_into().ok()).unwrap();
        let server = garage.hostile_server(session, attempt);
        let size = self.rng.random_range(1..2 * MAX_REPORT);
        let duration = Duration::from_millis(self.rng.random_range(500..4_000));
        self.floods.spawn(async move {
            let flood = server.reports(size);
            let _ = timeout(duration, server.run(&flood, Shutdown::new())).await;
        });
        let jetstream = garage.jetstream();
        self.measure(Kind::GameHostile(at), async move {
            // What NATS stores is a bad report. If the flood was too large or NATS was down, the match goes on.
            let subject = format!("garage.session.{session}.>");
            next(jetstream, &subject, message.seq + 1, &["PodFailed", "Closed"]).await;
        });
    }

    /// Makes the next launcher drop its arguments, and waits until it does.
    async fn drop_arguments(&mut self, root: &Path) {
        let [request, dropped] = ["drop-arguments", "dropped"].map(|name| root.join(name));
        let _ = fs::remove_file(&dropped);
        fs::write(&request, "").unwrap();
        let folder = async {
            loop {
                if let Some(folder) = fs::read_to_string(&dropped).unwrap_or_default().strip_suffix('\n') {
                    break PathBuf::from(folder);
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        let Ok(folder) = timeout(Duration::from_secs(5), folder).await else {
            let _ = fs::remove_file(&request);
            return;
        };
        self.measure(Kind::ArgumentsDropped, async move {
            // Once the processes are gone, the director removes the folder.
            while folder.exists() {
                sleep(Duration::from_millis(50)).await;
            }
        });
    }

    /// Measures how long recovery takes.
    fn measure(&mut self, kind: Kind, recovery: impl Future<Output = ()> + Send + 'static) {
        self.recovering.spawn(measured(kind, recovery));
    }
}

async fn measured(kind: Kind, recovery: impl Future<Output = ()>) -> (Kind, Duration) {
    let began = Instant::now();
    let recovered = timeout(RECOVERY, recovery).await;
    assert!(recovered.is_ok(), "{kind}: no recovery within {RECOVERY:?}");
    (kind, began.elapsed())
}

fn instance(garage: &mut Garage, worker: Worker, number: usize) -> &mut Instance {
    garage.stack.instances(worker).nth(number).unwrap()
}

/// Waits for an event of this type, and returns its session and its message; `None` if there is none soon.
async fn session_at(garage: &Garage, at: &'static str) -> Option<(SessionId, Message)> {
    let soon = Duration::from_secs(5);
    let log = timeout(soon, JetStreamLog::open(garage.admin.clone())).await.ok()?.ok()?;
    let end = timeout(soon, log.last_sequence("garage.session.>")).await.ok()?.ok()?;
    let message = timeout(soon, next(garage.jetstream(), "garage.session.>", end + 1, &[at])).await.ok()?;
    match Aggregate::of(&message.subject) {
        Some(Aggregate::Session(session)) => Some((session, message)),
        _ => None,
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// How large the log may be.
#[derive(Debug, Clone, Copy)]
enum LogSize {
    /// As large as it is.
    Full,
    Default,
}

/// Sets how large the log may be. Retries, because another NATS node may still be starting.
async fn resize_log(garage: &Garage, size: LogSize) {
    let jetstream = garage.jetstream();
    until("the log has another size", async || {
        let info = jetstream.get_stream(STREAM).await.ok()?.cached_info().clone();
        let bytes = match size {
            LogSize::Full => info.state.bytes,
            LogSize::Default => DEFAULT_LOG_SIZE,
        };
        let config = stream::Config { max_bytes: i64::try_from(bytes).unwrap().max(1), ..info.config };
        jetstream.update_stream(config).await.ok()
    })
    .await;
}

/// The next message with one of these types.
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
