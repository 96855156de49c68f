//! Every process dies before and after each of its effects, while players play. What it had begun is finished, once.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    time::Duration,
};

use garage_events::{
    crash::{self, Moment, Point},
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
    support::{Garage, Setup, crowd::Crowd, history},
    verify,
};

/// Matches of two, and a queue in which nobody finds anybody.
const QUEUES: &str = "[queues.lonely]\nplayers = 64\nrank_band = 200\ntimeout_s = 1\n[queues.lonely.regions]\neu = 120\n\
                      [queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 20\n[queues.ranked.regions]\neu = 120\n";

/// A report that names no session.
const UNREADABLE: &str = "report.x.1.ready";

/// Players who are there at a time.
const AT_ONCE: usize = 20;

/// How long it may take until players, or what is done for it, have a process reach a point.
const REACHING: Duration = Duration::from_secs(60);

/// The longest that all may take: as many players come as that takes.
const WALK: Duration = Duration::from_secs(300);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Between two things that are done to have a point reached: a worker that is ended for it must first be at work again.
const fn pause(point: Point) -> Duration {
    match point {
        Point::SnapshotWritten | Point::KeysForgotten | Point::ConsumerMade => Duration::from_secs(4),
        _ => Duration::from_millis(500),
    }
}

/// The points of one kind of process, one after the other; those of different kinds at the same time.
struct Walk {
    left: VecDeque<(Point, Moment)>,
    armed: Option<Armed>,
}

struct Armed {
    point: Point,
    file: PathBuf,
    since: Instant,
    provoked: Option<Instant>,
}

/// On the cluster, of which there is none here: the director's own tests lose the answers to these.
const ON_CLUSTER: [Point; 5] =
    [Point::SecretMade, Point::PodMade, Point::OwnerSet, Point::PodDeleted, Point::SecretDeleted];

impl Armed {
    /// Whether somebody has got there, and is dead: until then he could reach the next point too.
    fn is_dead(&self) -> bool {
        let name = format!("{}.", self.file.file_name().unwrap().display());
        let entries = fs::read_dir(self.file.parent().unwrap()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // One that nobody has waited for yet has no command line any more.
        let dead = |pid: String| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty());
        let gone = |pid: &str| !Path::new("/proc").join(pid).exists();
        names.filter_map(|file| Some(file.strip_prefix(&name)?.to_owned())).any(|pid| gone(&pid) || dead(pid))
    }
}

impl Walk {
    /// One a kind of process, which a point's name begins with.
    fn all() -> Vec<Self> {
        let mut walks: BTreeMap<&str, VecDeque<_>> = BTreeMap::new();
        for &point in Point::ALL.iter().filter(|point| !ON_CLUSTER.contains(point)) {
            let (kind, _) = point.name().split_once('.').unwrap();
            walks.entry(kind).or_default().extend(Moment::ALL.map(|moment| (point, moment)));
        }
        walks.into_values().map(|left| Self { left, armed: None }).collect()
    }

    /// Goes on to the next point once somebody has died at this one; false when none is left.
    fn step(&mut self, folder: &Path) -> bool {
        if let Some(armed) = &self.armed {
            if !armed.is_dead() {
                let waited = armed.since.elapsed();
                assert!(waited < REACHING, "nobody has reached {} within {REACHING:?}", armed.file.display());
                return true;
            }
            self.armed = None;
        }
        let Some((point, moment)) = self.left.pop_front() else { return false };
        let file = folder.join(crash::file_name(point, moment));
        fs::write(&file, "").unwrap();
        self.armed = Some(Armed { point, file, since: Instant::now(), provoked: None });
        true
    }

    /// The point that is armed, if it is time to have it reached.
    fn due(&mut self) -> Option<Point> {
        let armed = self.armed.as_mut()?;
        if armed.provoked.is_some_and(|last| last.elapsed() < pause(armed.point)) {
            return None;
        }
        armed.provoked = Some(Instant::now());
        Some(armed.point)
    }
}

/// A Garage whose processes die at points.
struct Dying {
    garage: Garage,
    armed: TempDir,
    /// How often a worker has died.
    deaths: usize,
    /// How many players came on their own.
    strangers: usize,
}

impl Dying {
    async fn start() -> Self {
        let armed = tempfile::tempdir().unwrap();
        let folder = armed.path().to_str().unwrap();
        let setup = Setup::short().queues(QUEUES).env(crash::FOLDER, folder).env("GARAGE_GATEWAY_GRACE_S", "3");
        Self { garage: setup.start().await, armed, deaths: 0, strangers: 0 }
    }

    /// Lets processes die at every point.
    async fn walk(&mut self) {
        let mut walks = Walk::all();
        let mut left = true;
        while left {
            self.revive();
            left = false;
            for walk in &mut walks {
                left |= walk.step(self.armed.path());
                if let Some(point) = walk.due() {
                    self.provoke(point).await;
                }
            }
            sleep(LOOK).await;
        }
        self.revive();
        self.garage.stack.wait_ready().await.unwrap();
    }

    /// Starts workers again that have died, as whatever runs them would.
    fn revive(&mut self) {
        for instance in self.garage.stack.all_instances() {
            let Some(status) = instance.process.try_wait().unwrap() else { continue };
            let died = status.signal() == Some(Signal::SIGABRT as i32);
            // Or it was told to end, perhaps before it could listen.
            let ended = status.success() || status.signal() == Some(Signal::SIGTERM as i32);
            assert!(died || ended, "{}: {status}", instance.process.name());
            self.deaths += usize::from(died);
            instance.process.restart().unwrap();
        }
    }

    /// Does what has a process reach a point that it does not reach by players who play.
    async fn provoke(&mut self, point: Point) {
        let garage = &mut self.garage;
        match point {
            Point::TimedOut | Point::Cancelled | Point::CommandExecuted => {
                self.strangers += 1;
                let bot = self.garage.bot(&format!("stranger-{}", self.strangers));
                // Who answers him may die before that.
                tokio::spawn(async move { errand(&bot, point).await });
            }
            // In the end, after all attempts.
            Point::PodFailed | Point::Failed => {
                for pid in garage.stack.game_servers() {
                    let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
                }
            }
            Point::DeadLetterStored => {
                garage.jetstream().publish(UNREADABLE, "{}".into()).await.unwrap().await.unwrap();
            }
            // A deadline may come more than once, and late.
            Point::TimerAcknowledged => {
                if let Some(&session) = history::sessions(&garage.events().await).first() {
                    garage.jetstream().publish(subject::timer_due(session), "".into()).await.unwrap().await.unwrap();
                }
            }
            Point::ConsumerMade => {
                let stream = garage.jetstream().get_stream_no_info(SESSION_TIMERS.stream).await.unwrap();
                // It may be gone already.
                let _ = stream.delete_consumer(SESSION_TIMERS.name).await;
            }
            Point::SnapshotWritten => terminate(garage, Worker::Matchmaker),
            Point::KeysForgotten => {
                let old = "INSERT INTO idempotency (player, name, command, answer, created_at)
                    SELECT player, UUID(), '{}', '{}', NOW() - INTERVAL 2 DAY FROM wallets LIMIT 1";
                self.in_mysql(old).await;
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
            // An event that no build knows.
            Point::OutboxHeld | Point::OutboxReasonNoted => {
                let insert = "INSERT INTO outbox (player, event_type, version, data, event, correlation, decided_ms)
                    VALUES (UUID(), 'Unknown', 1, '{}', UNHEX(MD5(RAND())), UNHEX(MD5(RAND())), 0)";
                self.in_mysql(insert).await;
            }
            _ => {}
        }
    }

    async fn in_mysql(&self, statement: &'static str) {
        let url = format!("{}garage", self.garage.stack.mariadb.admin_url());
        let mut connection = sqlx::MySqlConnection::connect(&url).await.unwrap();
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
}

/// What a player does who came for a point.
async fn errand(bot: &Bot, point: Point) -> Result<(), Problem> {
    match point {
        Point::CommandExecuted => {
            let tyres = json!({ "item": "tyres-sport" });
            bot.command::<Value>(Method::POST, "/v1/garage/items", Some(tyres), "1").await?;
        }
        Point::Cancelled => bot.cancel(&bot.queue("lonely").await?).await?,
        _ => drop(bot.queue("lonely").await?),
    }
    Ok(())
}

fn terminate(garage: &mut Garage, worker: Worker) {
    for instance in garage.stack.instances(worker) {
        // It may have ended already.
        let _ = instance.process.terminate();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_process_dies_at_is_finished_once() {
    let mut dying = Dying::start().await;
    let crowd = Crowd::come(&dying.garage, 1, WALK, AT_ONCE);
    let began = Instant::now();
    dying.walk().await;
    let (points, took) = (Point::ALL.len() - ON_CLUSTER.len(), began.elapsed());
    eprintln!("{points} points, before and after each: {} deaths of workers in {took:.1?}", dying.deaths);

    dying.in_mysql("DELETE FROM outbox WHERE event_type = 'Unknown'").await;
    let players = crowd.leave().await;
    let garage = &dying.garage;
    let dead = garage.jetstream().get_stream(DEAD).await.unwrap();
    let (_, dead_letters) = garage.cli(&["dead", "list", "--json"]).await;
    for dead_letter in dead_letters.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        assert_eq!(dead_letter["subject"], UNREADABLE, "{dead_letter}");
    }
    assert!(!dead_letters.is_empty(), "what cannot be read is put aside");
    dead.purge().await.unwrap();
    let events = garage.settled().await;
    eprint!("{players}{}", verify::holds(garage).await);
    players.assert_served(1, &events);
}
