//! `garage bench recovery`: how fast a matchmaker and the projections recover from the log.

mod history;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use async_nats::jetstream;
use garage_events::{
    game::Secret,
    jetstream::{JetStreamLog, reader::Reader, setup},
    subject::{self, ALL, HISTORY, STREAM},
};
use garage_session::{projector::rebuild, redis::Redis};
use garage_stack::{
    process::{Launch, Process},
    servers::{self, Nats, Role},
    workers::binary,
};
use garage_worker::config;
use tokio::time::timeout;

use self::history::Pairs;
use crate::{
    progress::Progress,
    report::{note, say, table},
};

/// A queue that matches only players of the same skill, so that many players can wait.
const QUEUES: &str = r#"
[queues.ranked]
rule_set = "rules.json"
timeout_s = 3600
attributes = { skill = "client" }
regions = { eu = 120 }
"#;

/// Its rule set. The skills of waiting players differ by two. Ranks have too few values for a million players.
const RULES: &str = r#"{
    "ruleLanguageVersion": "1.0",
    "playerAttributes": [{ "name": "skill", "type": "number" }],
    "algorithm": { "strategy": "exhaustiveSearch", "expansionAgeSelection": "oldest" },
    "teams": [{ "name": "player", "minPlayers": 1, "maxPlayers": 1, "quantity": 2 }],
    "rules": [{ "name": "SameSkill", "type": "batchDistance", "batchAttribute": "skill", "maxDistance": 1 }]
}"#;

/// Measured restarts of each kind.
const RESTARTS: i32 = 3;

/// Matches between a matchmaker's last snapshot and its kill: half a minute of a busy Garage.
const MATCHES_SINCE_SNAPSHOT: u32 = 2_000;

/// How long a start may take until its first match.
const DEADLINE: Duration = Duration::from_secs(600);

/// Measures how soon a matchmaker works again after a restart, and how fast projections are rebuilt.
///
/// Writing the log takes most of the time: some minutes on two cores with the defaults. The log needs 4 GiB in the
/// folder for temporary files. `--events 200000 --tickets 10000` is a short run. At most a million players can wait:
/// `--events 1000000 --tickets 1000000` measures restarts with them. Then the log has no matches.
#[derive(Debug, clap::Args)]
pub(crate) struct Recovery {
    /// Events in the log, of matches of two players.
    #[arg(long, default_value_t = 5_000_000, value_parser = clap::value_parser!(u32).range(1_000..=50_000_000))]
    events: u32,
    /// Players that wait during all measurements. Before, they play the matches. If this number is not less than
    /// `events`, there are no matches.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    tickets: u32,
}

impl Recovery {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let folder = tempfile::Builder::new().prefix("garage-bench-").tempdir()?;
        let nats = Nats::start(folder.path(), 1).await?;
        let client = nats.connect(Role::Admin).await?;
        setup::init(client.clone(), 1).await?;
        // The history would need as much disk again, and nothing here reads it.
        jetstream::new(client.clone()).delete_stream(HISTORY).await?;
        let log = JetStreamLog::open(client.clone()).await?;
        let events = self.write(&log).await?;

        let read = read(client.clone()).await?;
        let redis = servers::Redis::start(folder.path()).await?;
        let rebuilt = rebuilt(client, &redis).await?;
        say(format!("a log of {events} events, {} waiting players", self.tickets));
        let row = |name: &str, rate: f64| vec![name.into(), format!("{rate:.0}"), format!("{:.2}", rate / read)];
        let rows = [row("reading the log only (limit)", read), row("rebuilding the projections", rebuilt)];
        table(&["", "events/s", "share of the limit"], &rows);

        let mut matchmaker = Matchmaker::new(folder.path(), &nats, log)?;
        let rows = matchmaker.restarts().await?;
        say("");
        table(&["from the start of a matchmaker to its first match", "best s", "worst s"], &rows);
        Ok(())
    }

    /// Writes the log. Returns its number of events.
    async fn write(&self, log: &JetStreamLog) -> anyhow::Result<u64> {
        let count = self.tickets / 2;
        let matches = self.events.saturating_sub(self.tickets).div_ceil(history::MATCH * count);
        let pairs = Pairs { name: "player", count, first_skill: 0, matches };
        note(format!("writing a log of {} events …", pairs.events()));
        let (mut progress, mut done) = (Progress::new(true), 0);
        history::play(log, pairs, |events| {
            done += u64::from(events);
            progress.at(done, done, pairs.events());
        })
        .await?;
        Ok(log.state().await?.messages)
    }
}

/// Events per second when the log is read and the events are dropped.
async fn read(client: async_nats::Client) -> anyhow::Result<f64> {
    note("reading the log …");
    let reader = Reader::open(client, STREAM).await?;
    let end = reader.bounds().await?.last;
    let (began, mut count) = (Instant::now(), 0);
    let mut range = reader.range(vec![ALL.into()], 1, end);
    let mut progress = Progress::new(true);
    while let Some(message) = range.next().await? {
        count += 1;
        progress.at(count, message.seq, end);
    }
    Ok(per_second(count, began.elapsed()))
}

/// Events per second when the projections are rebuilt.
async fn rebuilt(client: async_nats::Client, redis: &servers::Redis) -> anyhow::Result<f64> {
    note("rebuilding the projections …");
    let config = config::Redis {
        redis_url: Secret::new(redis.url()),
        redis_password_file: Some(redis.password_file().to_owned()),
    };
    let redis = Redis::new(garage_worker::redis::Redis::new(&config)?);
    let (began, mut progress) = (Instant::now(), Progress::new(true));
    let rebuilt = rebuild(client, &redis, |events, at, end| progress.at(events, at, end)).await?;
    Ok(per_second(rebuilt.events, began.elapsed()))
}

fn per_second(events: u64, took: Duration) -> f64 {
    f64::from(u32::try_from(events).unwrap_or(u32::MAX)) / took.as_secs_f64()
}

/// A matchmaker process.
struct Matchmaker {
    process: Process,
    log: JetStreamLog,
    /// How many pairs have been queued to get a first match.
    pairs: u32,
}

impl Matchmaker {
    /// Creates a stopped matchmaker, so that its first start can be measured too.
    fn new(root: &Path, nats: &Nats, log: JetStreamLog) -> anyhow::Result<Self> {
        let queues = root.join("queues.toml");
        fs::write(&queues, QUEUES)?;
        fs::write(root.join("rules.json"), RULES)?;
        let mut process = Launch::new("matchmaker", binary("garage-matchmaker")?, root.join("logs/matchmaker.log"))
            .env("GARAGE_NATS_URL", nats.url())
            .env("GARAGE_NATS_CREDENTIALS", nats.credentials(Role::Matchmaker))
            .env("GARAGE_QUEUES", queues)
            .spawn()?;
        process.kill();
        Ok(Self { process, log, pairs: 0 })
    }

    async fn restarts(&mut self) -> anyhow::Result<Vec<Vec<String>>> {
        note("starting a matchmaker without a snapshot …");
        let without_snapshot = self.first_match().await?;
        let (mut stopped, mut killed) = (Vec::new(), Vec::new());
        for restart in 1..=RESTARTS {
            note(format!("restarting the matchmaker, {restart} of {RESTARTS} …"));
            // A matchmaker that is stopped writes a snapshot.
            self.process.stop().await;
            stopped.push(self.first_match().await?);
            self.process.stop().await;
            self.first_match().await?;
            self.process.kill();
            history::play(&self.log, since(restart, &format!("since-{restart}")), |_| {}).await?;
            killed.push(self.first_match().await?);
        }
        Ok(vec![
            row("without a snapshot", &[without_snapshot]),
            row("after it was stopped", &stopped),
            row(&format!("after it was killed, {} events after its snapshot", since(1, "").events()), &killed),
        ])
    }

    /// Queues two players of the same skill and starts the matchmaker. Returns how long it takes until they are matched.
    async fn first_match(&mut self) -> anyhow::Result<Duration> {
        self.pairs += 1;
        history::queue_pair(&self.log, &format!("pair-{}", self.pairs)).await?;
        let matched = subject::sessions("matched");
        let from = self.log.state().await?.last_sequence + 1;
        let began = Instant::now();
        self.process.restart()?;
        let first = async {
            while self.log.next(&matched, from).await?.is_none() {
                anyhow::ensure!(self.process.is_running(), "the matchmaker has stopped:\n{}", self.process.log_tail());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(began.elapsed())
        };
        timeout(DEADLINE, first).await.context("no players were matched in time")?
    }
}

/// The pairs that play between a matchmaker's snapshot and its kill. Their skills are above those of all waiting players.
fn since(restart: i32, name: &str) -> Pairs<'_> {
    Pairs { name, count: MATCHES_SINCE_SNAPSHOT, first_skill: 3_000_000 + restart * 10_000, matches: 1 }
}

fn row(name: &str, took: &[Duration]) -> Vec<String> {
    let seconds = |took: Option<&Duration>| took.map_or_else(String::new, |took| format!("{:.2}", took.as_secs_f64()));
    vec![name.into(), seconds(took.iter().min()), seconds(took.iter().max())]
}
