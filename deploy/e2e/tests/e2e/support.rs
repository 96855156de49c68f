//! Starts a Garage for one test.

pub(crate) mod browser;
pub(crate) mod cluster;
pub(crate) mod consumers;
pub(crate) mod crowd;
pub(crate) mod history;
mod hostile;
mod kubelet;
pub(crate) mod operations;
mod setup;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::Path,
    sync::LazyLock,
    time::{Duration, Instant},
};

use async_nats::{Client, jetstream};
use garage_events::{
    game::Secret,
    id::SessionId,
    jetstream::{
        JetStreamLog,
        follow::{Follow, Message},
        rule_store,
        setup::CONSUMERS,
    },
    projection::Live,
    rules::RuleSetId,
    subject::{ALL, STREAM},
};
use garage_stack::{
    bot::{Bot, Played},
    hostile::HostileServer,
    servers::Role,
    small_disk::SmallDisk,
    workers::{Stack, Worker, binary},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    runtime::{self, Runtime},
    sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit},
    task::JoinSet,
};

pub(crate) use self::setup::Setup;
use self::{history::Event, hostile::Hostile};
use crate::decisions;

/// A queue whose players are released at once when their match fails.
pub(crate) const NO_REQUEUE: &str = "[queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\nrequeue = false\n\
                                     [queues.ranked.regions]\neu = 120\n";

/// How long a test waits for a condition. Generous, for a machine that is busy with other work.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

const POLL: Duration = Duration::from_millis(20);

/// Limits how many Garages run at a time, for any number of test threads: each Garage is ten processes.
static PERMITS: Semaphore = Semaphore::const_new(2);

/// Waits until one more Garage may run.
pub(crate) async fn acquire_permit() -> SemaphorePermit<'static> {
    PERMITS.acquire().await.unwrap()
}

/// Polls until there is a result, and panics after the deadline.
pub(crate) async fn until<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        // Without a limit for each poll, a client's own time-out could outlast the deadline.
        if let Ok(Some(found)) = tokio::time::timeout(Duration::from_secs(10), poll()).await {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "timed out after {DEADLINE:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// The runtime of the bots, on threads of its own. On the runtime of a test, busy bots would delay the test's own work:
/// its probe of `/readyz` once timed out again and again, although the worker answered within milliseconds.
static PLAYERS: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = runtime::Builder::new_multi_thread();
    builder.worker_threads(2).thread_name("players").enable_all().build().unwrap()
});

/// The runtime on which bots play.
pub(crate) fn players_runtime() -> &'static runtime::Handle {
    PLAYERS.handle()
}

/// Lets every bot play one match in the queue `ranked`.
pub(crate) async fn play(bots: &[Bot]) -> Vec<Played> {
    play_in("ranked", bots).await
}

/// Lets every bot play one match in a queue.
pub(crate) async fn play_in(queue: &'static str, bots: &[Bot]) -> Vec<Played> {
    // A set of tasks, so that the bots stop when the test fails.
    let mut playing = JoinSet::new();
    for (number, bot) in bots.iter().cloned().enumerate() {
        playing.spawn_on(async move { (number, bot.play(queue).await) }, players_runtime());
    }
    let mut played = playing.join_all().await;
    played.sort_by_key(|(number, _)| *number);
    played.into_iter().map(|(_, played)| played.unwrap_or_else(|error| panic!("{error}"))).collect()
}

/// A running Garage. When a test panics, it prints the log and the ends of the processes' logs.
pub(crate) struct Garage {
    /// The servers and workers.
    pub(crate) stack: Stack,
    /// A NATS connection with the operator's rights.
    pub(crate) admin: Client,
    log: JetStreamLog,
    http: reqwest::Client,
    read: Mutex<Vec<Event>>,
    hostile: Hostile,
    /// The disks of the NATS nodes, if they are small. Dropped after the servers, which write to them.
    pub(crate) disk: Option<SmallDisk>,
    folder: Option<TempDir>,
    _permit: SemaphorePermit<'static>,
}

impl Garage {
    /// A player of rank 0 at the first gateway.
    pub(crate) fn bot(&self, name: &str) -> Bot {
        self.bot_at(name, &self.stack.gateway())
    }

    /// A player of rank 0 at a gateway.
    pub(crate) fn bot_at(&self, name: &str, gateway: &str) -> Bot {
        self.player(name, Some(0), gateway)
    }

    /// A player at the first gateway. Without a rank in the token, the player's rating counts.
    pub(crate) fn ranked(&self, name: &str, rank: impl Into<Option<i32>>) -> Bot {
        self.player(name, rank.into(), &self.stack.gateway())
    }

    fn player(&self, name: &str, rank: Option<i32>, gateway: &str) -> Bot {
        let token = self.stack.token(name, rank).unwrap();
        Bot::new(self.http.clone(), gateway, name, &token).with_max_wait(DEADLINE)
    }

    /// A player at the first gateway whose token has these further claims.
    pub(crate) fn claiming(&self, name: &str, claims: Value) -> Bot {
        let token = self.stack.token_with(name, claims).unwrap();
        Bot::new(self.http.clone(), &self.stack.gateway(), name, &token).with_max_wait(DEADLINE)
    }

    /// The studio's own backend.
    pub(crate) fn backend(&self) -> Bot {
        self.claiming("backend", json!({"scope": "matchmaking:groups"}))
    }

    /// Players `<prefix>-0`, `<prefix>-1` and so on. Each pair has a rank of its own, further from the others than the
    /// ranks of a match may differ at first.
    pub(crate) fn bots(&self, prefix: &str, count: usize) -> Vec<Bot> {
        let ranks = (0..).map(|number| number / 2 * 300);
        (0..count).zip(ranks).map(|(number, rank)| self.ranked(&format!("{prefix}-{number}"), rank)).collect()
    }

    /// All events of the log.
    pub(crate) async fn events(&self) -> Vec<Event> {
        self.until_log("the log can be read", |events| Some(events.to_vec())).await
    }

    /// Reads the new events of the log, up to its current end: the log may grow faster than it is read.
    async fn read_log(&self) -> Option<MutexGuard<'_, Vec<Event>>> {
        let mut events = self.read.lock().await;
        let end = self.log.last_sequence(ALL).await.ok()?;
        let next = events.last().map_or(1, |event| event.seq + 1);
        let mut follow = Follow::new(self.log.context().clone(), STREAM, vec![ALL.into()], next);
        while events.last().map_or(0, |event| event.seq) < end {
            events.push(Event::of(follow.next().await));
        }
        Some(events)
    }

    /// Polls the log's events until `poll` returns a result.
    pub(crate) async fn until_log<T>(&self, what: &str, poll: impl Fn(&[Event]) -> Option<T>) -> T {
        until(what, async || poll(&self.read_log().await?)).await
    }

    /// Waits until the log has `count` events of a type.
    pub(crate) async fn until_event(&self, type_name: &str, count: usize) {
        let what = format!("{count} {type_name}");
        self.until_log(&what, |events| (history::count(events, type_name) >= count).then_some(())).await;
    }

    /// Waits until all work is done: every session is closed and paid, every message is acknowledged, and every game
    /// server is gone. Then checks the log.
    pub(crate) async fn settled(&self) -> Vec<Event> {
        self.until_log("every session is closed and paid", |events| history::is_over(events).then_some(())).await;
        until("every game server is gone", async || self.no_games().then_some(())).await;
        self.drained().await;
        let events = self.events().await;
        self.check(&events).await;
        self.hostile.assert_no_other_dead_letters(&self.jetstream()).await;
        events
    }

    /// Checks the log, and makes each match again from the log.
    pub(crate) async fn check(&self, events: &[Event]) {
        let mut rule_sets = BTreeMap::new();
        for event in events {
            if let Ok(id) = event.text("rules").parse::<RuleSetId>()
                && !rule_sets.contains_key(&id)
            {
                let text = rule_store::text(self.log.context(), &id).await.unwrap();
                rule_sets.insert(id, text.expect("the rule set of a match is stored"));
            }
        }
        history::check(events, rule_sets.values());
        let messages = events.iter().map(|event| (event.seq, &*event.subject, &event.message.body[..]));
        let made_again = decisions::check(messages, rule_sets.values()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(made_again, history::count(events, "Matched"));
    }

    /// A hostile process with the NATS user of this attempt's game server.
    pub(crate) fn hostile_server(&self, session: SessionId, attempt: u32) -> HostileServer {
        self.hostile.server(&self.stack.nats, session, attempt)
    }

    /// Waits until no durable consumer has pending or unacknowledged messages.
    pub(crate) async fn drained(&self) {
        let jetstream = self.jetstream();
        until("every message is acknowledged", async || {
            for consumer in CONSUMERS {
                let stream = jetstream.get_stream_no_info(consumer.stream).await.ok()?;
                let info = stream.consumer_info(consumer.name).await.ok()?;
                if info.num_pending > 0 || info.num_ack_pending > 0 {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }

    /// Whether no game server has a process or a folder.
    pub(crate) fn no_games(&self) -> bool {
        self.stack.game_servers().is_empty() && self.stack.games().is_empty()
    }

    /// JetStream with the operator's rights.
    pub(crate) fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.admin.clone())
    }

    /// A connection to Redis with all rights.
    pub(crate) async fn redis(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.stack.redis.url_with_password()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// The projections in Redis as of one moment, or `None` while Redis does not answer.
    pub(crate) async fn projections(&self) -> Option<Live> {
        let config = garage_worker::config::Redis {
            redis_url: Secret::new(self.stack.redis.url()),
            redis_password_file: Some(self.stack.redis.password_file().to_owned()),
        };
        garage_session::redis::Redis::new(garage_worker::redis::Redis::new(&config).unwrap()).live().await.ok()
    }

    /// Kills every instance of a worker and starts it again.
    pub(crate) fn kill_and_restart(&mut self, worker: Worker) {
        for instance in self.stack.instances(worker) {
            instance.process.restart().unwrap();
        }
    }

    /// Runs `garage` as an operator. Returns whether it succeeded, and its output.
    pub(crate) async fn cli(&self, args: &[&str]) -> (bool, String) {
        self.cli_with(args, []).await
    }

    /// Like [`Garage::cli`], with more environment variables.
    pub(crate) async fn cli_with<const N: usize>(&self, args: &[&str], env: [(&str, &OsStr); N]) -> (bool, String) {
        let output = tokio::process::Command::new(binary("garage").unwrap())
            .args(args)
            .envs(env)
            .env("GARAGE_NATS_URL", self.stack.nats.url())
            .env("GARAGE_NATS_CREDENTIALS", self.stack.nats.credentials(Role::Admin))
            .output()
            .await
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// All events as text. Uses its own runtime, because the test's runtime may have failed.
    fn log_text(&self) -> String {
        let (url, options) = (self.stack.nats.url(), self.stack.nats.options(Role::Admin).unwrap());
        let read = async {
            let client = options.connect(url.split(',').collect::<Vec<_>>()).await.ok()?;
            let log = JetStreamLog::open(client).await.ok()?;
            let (mut lines, mut from) = (Vec::new(), 1);
            while let Some(message) = log.next(ALL, from).await.ok()? {
                from = message.sequence + 1;
                let (seq, time, subject) = (message.sequence, message.time, message.subject.to_string());
                let message = Message { seq, time, subject, headers: None, body: message.payload, pending: 0 };
                lines.push(Event::of(message).to_string());
            }
            Some(lines.join("\n"))
        };
        let read = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), read).await.ok()? })
        };
        let read = std::thread::scope(|scope| scope.spawn(read).join().ok().flatten());
        read.unwrap_or_else(|| "(the log cannot be read)".into())
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\n==== the log\n{}", self.log_text());
            for log in self.stack.logs() {
                eprintln!("\n==== {}\n{}", log.display(), tail(&log));
            }
            if let Some(folder) = self.folder.take() {
                eprintln!("\n==== all files are kept in {}", folder.keep().display());
            }
        }
        // Nothing in flight is needed any more: no clean shutdown.
        self.stack.kill();
    }
}

fn tail(file: &Path) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let skip = text.lines().count().saturating_sub(15);
    text.lines().skip(skip).collect::<Vec<_>>().join("\n")
}
