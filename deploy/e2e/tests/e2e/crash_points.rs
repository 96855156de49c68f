//! Crashes each process just before and just after each of its side effects, while players play. Then checks that the
//! work was completed exactly once.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    time::Duration,
};

use garage_events::{
    crash::{self, Moment, Point},
    env::{Env, System},
    jetstream::setup::SESSION_TIMERS,
    projection::WATERMARK,
    subject::{self, DEAD},
};
use garage_stack::{
    bot::{Bot, Problem},
    workers::Worker,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Connection;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{
    support::{
        Garage, Setup,
        crowd::{Crowd, Groups},
        history,
    },
    verify,
};

/// Matches of two, a queue that never fills a match, and one whose matches must be accepted.
const QUEUES: &str = "[queues.careful]\nplayers = 2\nrank_band = 200\ntimeout_s = 10\nacceptance_s = 5\n\
                      [queues.careful.regions]\neu = 120\n\
                      [queues.lonely]\nplayers = 64\nrank_band = 200\ntimeout_s = 1\n[queues.lonely.regions]\neu = 120\n\
                      [queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 20\n[queues.ranked.regions]\neu = 120\n";

/// The subject of a report without a valid session id. The report becomes a dead letter.
fn unreadable() -> String {
    format!("{UNREADABLE}{}.1.ready", System.id().simple())
}

const UNREADABLE: &str = "report.x";

/// Players at a time.
const AT_ONCE: usize = 20;

/// How long it may take until a process reaches an armed point.
const REACH_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest time for all points. It determines how many players are prepared.
const MAX_TIME: Duration = Duration::from_secs(300);

/// How often the test checks for crashed processes.
const POLL: Duration = Duration::from_millis(20);

/// The pause between two actions that make a process reach a point. Some points need a worker to be terminated; the
/// worker must be back at work before the next action.
const fn pause(point: Point) -> Duration {
    match point {
        Point::RulesStored | Point::SnapshotWritten | Point::KeysForgotten | Point::ConsumerMade => {
            Duration::from_secs(4)
        }
        _ => Duration::from_millis(500),
    }
}

/// The points of one kind of process, one after another. The walks of different kinds run at the same time.
struct Walk {
    left: VecDeque<(Point, Moment)>,
    armed: Option<Armed>,
}

struct Armed {
    point: Point,
    file: PathBuf,
    since: Instant,
    triggered: Option<Instant>,
}

/// Points of the Kubernetes backend. This test has no cluster; the director's own tests cover lost answers to these
/// requests.
const ON_CLUSTER: [Point; 5] =
    [Point::SecretMade, Point::PodMade, Point::OwnerSet, Point::PodDeleted, Point::SecretDeleted];

impl Armed {
    /// Whether a process has reached the point and is dead. Until it is dead, it could also reach the next point.
    fn is_dead(&self) -> bool {
        let name = format!("{}.", self.file.file_name().unwrap().display());
        let entries = fs::read_dir(self.file.parent().unwrap()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // A zombie process has an empty command line.
        let dead = |pid: String| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty());
        let gone = |pid: &str| !Path::new("/proc").join(pid).exists();
        names.filter_map(|file| Some(file.strip_prefix(&name)?.to_owned())).any(|pid| gone(&pid) || dead(pid))
    }
}

impl Walk {
    /// One walk per kind of process. A point's name begins with the kind.
    fn all() -> Vec<Self> {
        let mut walks: BTreeMap<&str, VecDeque<_>> = BTreeMap::new();
        for &point in Point::ALL.iter().filter(|point| !ON_CLUSTER.contains(point)) {
            let (kind, _) = point.name().split_once('.').unwrap();
            walks.entry(kind).or_default().extend(Moment::ALL.map(|moment| (point, moment)));
        }
        walks.into_values().map(|left| Self { left, armed: None }).collect()
    }

    /// Arms the next point once a process has crashed at this one. Returns false when none is left.
    fn step(&mut self, folder: &Path) -> bool {
        if let Some(armed) = &self.armed {
            if !armed.is_dead() {
                let waited = armed.since.elapsed();
                assert!(
                    waited < REACH_TIMEOUT,
                    "no process has reached {} within {REACH_TIMEOUT:?}",
                    armed.file.display()
                );
                return true;
            }
            self.armed = None;
        }
        let Some((point, moment)) = self.left.pop_front() else { return false };
        let file = folder.join(crash::file_name(point, moment));
        fs::write(&file, "").unwrap();
        self.armed = Some(Armed { point, file, since: Instant::now(), triggered: None });
        true
    }

    /// The armed point, if it is time for another action that makes a process reach it.
    fn due(&mut self) -> Option<Point> {
        let armed = self.armed.as_mut()?;
        if armed.triggered.is_some_and(|last| last.elapsed() < pause(armed.point)) {
            return None;
        }
        armed.triggered = Some(Instant::now());
        Some(armed.point)
    }
}

/// A Garage whose processes crash at armed points.
struct CrashingGarage {
    garage: Garage,
    armed: TempDir,
    /// How often a worker has crashed.
    crashes: usize,
    /// How many players were started to reach a point.
    extra_players: usize,
}

impl CrashingGarage {
    async fn start() -> Self {
        let armed = tempfile::tempdir().unwrap();
        let folder = armed.path().to_str().unwrap();
        let setup = Setup::short().queues(QUEUES).env(crash::FOLDER, folder).env("GARAGE_GATEWAY_GRACE_S", "3");
        Self { garage: setup.start().await, armed, crashes: 0, extra_players: 0 }
    }

    /// Crashes processes at every point.
    async fn walk(&mut self) {
        let mut walks = Walk::all();
        let mut left = true;
        while left {
            self.restart_dead();
            left = false;
            for walk in &mut walks {
                left |= walk.step(self.armed.path());
                if let Some(point) = walk.due() {
                    self.trigger(point).await;
                }
            }
            sleep(POLL).await;
        }
        // Another instance may have reached the last point too, and die only now.
        let mut tries = 0;
        loop {
            self.restart_dead();
            match self.garage.stack.wait_ready().await {
                Ok(()) => return,
                Err(error) if tries == 3 => panic!("{error:?}"),
                Err(_) => tries += 1,
            }
        }
    }

    /// Restarts workers that have ended, as a service manager does.
    fn restart_dead(&mut self) {
        for instance in self.garage.stack.all_instances() {
            let Some(status) = instance.process.try_wait().unwrap() else { continue };
            let died = status.signal() == Some(Signal::SIGABRT as i32);
            // The test terminated it, perhaps before it could handle SIGTERM.
            let ended = status.success() || status.signal() == Some(Signal::SIGTERM as i32);
            assert!(died || ended, "{}: {status}", instance.process.name());
            self.crashes += usize::from(died);
            instance.process.restart().unwrap();
        }
    }

    /// Makes a process reach a point that it does not reach by matches alone.
    async fn trigger(&mut self, point: Point) {
        let garage = &mut self.garage;
        match point {
            Point::TimedOut | Point::Cancelled | Point::PartyChanged | Point::CommandExecuted => {
                self.extra_players += 1;
                let bot = self.garage.bot(&format!("extra-{}", self.extra_players));
                // The gateway may crash before it answers.
                tokio::spawn(async move { send_command(&bot, point).await });
            }
            Point::Proposed | Point::Accepted | Point::ProposalEnded => {
                for answers in [true, false] {
                    self.extra_players += 1;
                    let bot = self.garage.bot(&format!("extra-{}", self.extra_players));
                    tokio::spawn(async move { wait_for_proposal(&bot, answers).await });
                }
            }
            // `Failed` is reached after the last attempt.
            Point::PodFailed | Point::Failed => {
                for pid in garage.stack.game_servers() {
                    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
                }
            }
            Point::DeadLetterStored => {
                garage.jetstream().publish(unreadable(), "{}".into()).await.unwrap().await.unwrap();
            }
            // A timer may fire more than once, and late.
            Point::TimerAcknowledged => {
                if let Some(&session) = history::sessions(&garage.events().await).first() {
                    garage.jetstream().publish(subject::timer_due(session), "".into()).await.unwrap().await.unwrap();
                }
            }
            Point::ConsumerMade => {
                let stream = garage.jetstream().get_stream_no_info(SESSION_TIMERS.stream).await.unwrap();
                // The consumer may be gone already.
                let _ = stream.delete_consumer(SESSION_TIMERS.name).await;
            }
            Point::RulesStored | Point::SnapshotWritten => terminate(garage, Worker::Matchmaker),
            Point::KeysForgotten => {
                let insert = "INSERT INTO idempotency (player, name, command, answer, created_at)
                    SELECT player, UUID(), '{}', '{}', NOW() - INTERVAL 2 DAY FROM wallets LIMIT 1";
                self.in_mysql(insert).await;
                terminate(&mut self.garage, Worker::Inventory);
            }
            Point::ProjectionsReset => {
                let mut redis = garage.redis().await;
                redis::cmd("DEL").arg(WATERMARK).exec_async(&mut redis).await.unwrap();
            }
            Point::ProjectionsBegun | Point::ProjectionsMade | Point::ProjectionsSwitched => {
                let (url, file) = (garage.stack.redis.url(), garage.stack.redis.password_file().display().to_string());
                let rebuild = ["rebuild", "--redis-url", &url, "--redis-password-file", &file];
                garage.cli_with(&rebuild, [(crash::FOLDER, self.armed.path().as_os_str())]).await;
            }
            // An event of an unknown type.
            Point::OutboxHeld | Point::OutboxReasonNoted => {
                let insert = "INSERT INTO outbox (player, event_type, version, data, event, correlation, decided_ms)
                    VALUES (UUID(), 'Unknown', 1, '{}', RANDOM_BYTES(16), RANDOM_BYTES(16), 0)";
                self.in_mysql(insert).await;
            }
            _ => {}
        }
    }

    async fn in_mysql(&self, statement: &'static str) {
        let url = format!("{}garage", self.garage.stack.database.admin_url());
        let mut connection = sqlx::MySqlConnection::connect(&url).await.unwrap();
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
}

/// Sends the command of a player that was started for a point.
async fn send_command(bot: &Bot, point: Point) -> Result<(), Problem> {
    match point {
        Point::CommandExecuted => {
            let tyres = json!({ "item": "tyres-sport" });
            bot.command::<Value>(Method::POST, "/v1/garage/items", Some(tyres), "1").await?;
        }
        Point::PartyChanged => drop(bot.command::<Value>(Method::POST, "/v1/parties", None, "1").await?),
        Point::Cancelled => bot.cancel(&bot.queue("lonely").await?).await?,
        _ => drop(bot.queue("lonely").await?),
    }
    Ok(())
}

/// Waits for a proposed match, and accepts it or does not answer. As the other player does the opposite, it ends at its
/// deadline.
async fn wait_for_proposal(bot: &Bot, answers: bool) -> Result<(), Problem> {
    let ticket = bot.queue("careful").await?;
    if !answers {
        return Ok(());
    }
    loop {
        let me = bot.me().await?;
        match me["status"].as_str() {
            Some("proposed") => return bot.accept(me["session"].as_str().unwrap_or_default()).await,
            Some("waiting") if me["ticket"] == ticket.ticket => sleep(Duration::from_millis(200)).await,
            _ => return Ok(()),
        }
    }
}

fn terminate(garage: &mut Garage, worker: Worker) {
    for instance in garage.stack.instances(worker) {
        // It may have ended already.
        let _ = instance.process.terminate();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_is_completed_exactly_once_wherever_a_process_crashes() {
    let mut crashing = CrashingGarage::start().await;
    let crowd = Crowd::start(&crashing.garage, 1, MAX_TIME, AT_ONCE, Groups::None);
    let began = Instant::now();
    crashing.walk().await;
    let (points, took) = (Point::ALL.len() - ON_CLUSTER.len(), began.elapsed());
    eprintln!("{points} points, before and after each: {} worker crashes in {took:.1?}", crashing.crashes);

    crashing.in_mysql("DELETE FROM outbox WHERE event_type = 'Unknown'").await;
    let players = crowd.finish().await;
    let garage = &crashing.garage;
    let dead = garage.jetstream().get_stream(DEAD).await.unwrap();
    let (_, dead_letters) = garage.cli(&["dead", "list", "--json"]).await;
    for dead_letter in dead_letters.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert!(dead_letter["subject"].as_str().unwrap().starts_with(UNREADABLE), "{dead_letter}");
    }
    assert!(!dead_letters.is_empty(), "an unreadable report becomes a dead letter");
    dead.purge().await.unwrap();
    let events = garage.settled().await;
    eprint!("{players}{}", verify::until_valid(garage).await);
    players.assert_served(1, &events);
}
