//! A Garage for one test.

pub(crate) mod browser;
pub(crate) mod cluster;
pub(crate) mod crowd;
pub(crate) mod history;
mod kubelet;
pub(crate) mod operations;
mod setup;

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use async_nats::{Client, jetstream};
use futures::future::join_all;
use garage_events::{
    jetstream::{JetStreamLog, follow::Follow, setup::CONSUMERS},
    subject::{ALL, DEAD, STREAM},
};
use garage_stack::{
    bot::{Bot, Played},
    servers::Role,
    workers::{Stack, Worker, binary},
};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard, Semaphore, SemaphorePermit};

use self::history::Event;
pub(crate) use self::setup::Setup;

/// How long anything may take that is waited for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(20);

/// Garages that live at a time, whatever the number of test threads: each is ten processes.
static PLACES: Semaphore = Semaphore::const_new(2);

/// Waits for a place for one more Garage.
pub(crate) async fn place() -> SemaphorePermit<'static> {
    PLACES.acquire().await.unwrap()
}

/// Looks again and again until there is something, and fails after the deadline.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        // Without a limit for each look, a client's own time-out could outlast the deadline.
        if let Ok(Some(found)) = tokio::time::timeout(Duration::from_secs(10), look()).await {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Lets players play.
pub(crate) async fn play(bots: &[Bot]) -> Vec<Played> {
    join_all(bots.iter().map(async |bot| bot.play("ranked").await))
        .await
        .into_iter()
        .map(|played| played.unwrap_or_else(|error| panic!("{error}")))
        .collect()
}

/// A running Garage. A test that fails is shown its log, and the ends of the logs of its processes.
pub(crate) struct Garage {
    /// Its processes.
    pub(crate) stack: Stack,
    /// A connection of an operator.
    pub(crate) admin: Client,
    log: JetStreamLog,
    http: reqwest::Client,
    read: Mutex<Vec<Event>>,
    folder: Option<TempDir>,
    _place: SemaphorePermit<'static>,
}

impl Garage {
    /// A player at the first gateway.
    pub(crate) fn bot(&self, name: &str) -> Bot {
        self.bot_at(name, &self.stack.gateway())
    }

    /// A player at a gateway.
    pub(crate) fn bot_at(&self, name: &str, gateway: &str) -> Bot {
        self.player(name, Some(0), gateway)
    }

    /// A player of a rank, at the first gateway; without one, he is as good as his results.
    pub(crate) fn ranked(&self, name: &str, rank: impl Into<Option<i32>>) -> Bot {
        self.player(name, rank.into(), &self.stack.gateway())
    }

    fn player(&self, name: &str, rank: Option<i32>, gateway: &str) -> Bot {
        let token = self.stack.token(name, rank).unwrap();
        Bot::new(self.http.clone(), gateway, name, &token).with_max_wait(DEADLINE)
    }

    /// Players `<prefix>-0`, `<prefix>-1` and so on, each of his neighbour's rank.
    pub(crate) fn bots(&self, prefix: &str, count: usize) -> Vec<Bot> {
        let ranks = (0..).map(|number| number / 2 * 200);
        (0..count).zip(ranks).map(|(number, rank)| self.ranked(&format!("{prefix}-{number}"), rank)).collect()
    }

    /// The log as it is now.
    pub(crate) async fn events(&self) -> Vec<Event> {
        self.until_log("the log is read", |events| Some(events.to_vec())).await
    }

    /// Reads what is new in the log, up to where it is now: it may grow faster than it is read.
    async fn read_log(&self) -> Option<MutexGuard<'_, Vec<Event>>> {
        let mut events = self.read.lock().await;
        let end = self.log.last_sequence(ALL).await.ok()?;
        let next = events.last().map_or(1, |event| event.seq + 1);
        let mut follow = Follow::new(self.log.context().clone(), STREAM, vec![ALL.into()], next);
        while events.last().map_or(0, |event| event.seq) < end {
            let message = follow.next().await;
            events.push(Event::of(message.seq, message.time, &message.subject, &message.body));
        }
        Some(events)
    }

    /// Waits until the log shows something.
    pub(crate) async fn until_log<T>(&self, what: &str, look: impl Fn(&[Event]) -> Option<T>) -> T {
        until(what, async || look(&self.read_log().await?)).await
    }

    /// Waits until the log has an event of a type, `count` of them.
    pub(crate) async fn until_event(&self, type_name: &str, count: usize) {
        let what = format!("{count} {type_name}");
        self.until_log(&what, |events| (history::count(events, type_name) >= count).then_some(())).await;
    }

    /// Waits until nothing more is to come: every session is closed and paid for, every message reacted to, every game
    /// server gone. What then is in the log must be in order.
    pub(crate) async fn settled(&self) -> Vec<Event> {
        self.until_log("every session closed and paid for", |events| history::is_over(events).then_some(())).await;
        until("every game server gone", async || self.no_games().then_some(())).await;
        self.drained().await;
        let events = self.events().await;
        history::check(&events);
        let (holds, text) = self.cli(&["verify"]).await;
        assert!(holds, "{text}");
        let dead = self.jetstream().get_stream(DEAD).await.unwrap().cached_info().state.messages;
        assert_eq!(dead, 0, "messages that a worker gave up");
        events
    }

    /// Waits until every durable consumer has nothing to deliver and nothing unacknowledged.
    pub(crate) async fn drained(&self) {
        let jetstream = self.jetstream();
        until("every message reacted to", async || {
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

    /// Whether nothing of any game is left: no process, no folder.
    pub(crate) fn no_games(&self) -> bool {
        self.stack.game_servers().is_empty() && self.stack.games().is_empty()
    }

    /// An operator's JetStream.
    pub(crate) fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.admin.clone())
    }

    /// A connection to Redis.
    pub(crate) async fn redis(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.stack.redis.url_with_password()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// Kills every instance of a worker, and starts it again.
    pub(crate) fn kill_and_restart(&mut self, worker: Worker) {
        for instance in self.stack.instances(worker) {
            instance.process.restart().unwrap();
        }
    }

    /// Runs `garage` as an operator: whether it succeeded, and what it printed.
    pub(crate) async fn cli(&self, args: &[&str]) -> (bool, String) {
        self.cli_with(args, []).await
    }

    /// The same, with further variables in its environment.
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

    /// The log's end, without a runtime: the test's own may be what failed.
    fn last_events(&self) -> String {
        let (url, options) = (self.stack.nats.url(), self.stack.nats.options(Role::Admin).unwrap());
        let read = async {
            let client = options.connect(url.split(',').collect::<Vec<_>>()).await.ok()?;
            let log = JetStreamLog::open(client).await.ok()?;
            let (mut lines, mut from) = (Vec::new(), 1);
            while let Some(message) = log.next(ALL, from).await.ok()? {
                from = message.sequence + 1;
                lines.push(Event::of(message.sequence, message.time, &message.subject, &message.payload).to_string());
            }
            Some(lines.join("\n"))
        };
        let read = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(5), read).await.ok()? })
        };
        let read = std::thread::scope(|scope| scope.spawn(read).join().ok().flatten());
        read.unwrap_or_else(|| "(it does not answer)".into())
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\n==== the log\n{}", self.last_events());
            for log in self.stack.logs() {
                eprintln!("\n==== {}\n{}", log.display(), tail(&log));
            }
            if let Some(folder) = self.folder.take() {
                eprintln!("\n==== all is kept in {}", folder.keep().display());
            }
        }
        // Nobody will ask for what was in flight.
        self.stack.kill();
    }
}

fn tail(file: &Path) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let skip = text.lines().count().saturating_sub(15);
    text.lines().skip(skip).collect::<Vec<_>>().join("\n")
}
