//! `garage demo`: a local Garage, and bots that play on it through the public interfaces only.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use anyhow::Context;
use garage_events::{
    event::Envelope,
    id::{PlayerId, SessionId},
    jetstream::{JetStreamLog, follow::Follow},
    subject::{ALL, Aggregate, STREAM},
};
use garage_stack::{
    bot::{Bot, BotError, Played},
    servers::Role,
    workers::{Options, Stack},
};
use garage_worker::Shutdown;
use reqwest::Method;
use serde_json::json;
use time::OffsetDateTime;
use tokio::{sync::oneshot, task::JoinSet};

use crate::{
    games,
    report::{percentile, say, table},
    timeline,
};

/// Starts a local Garage, lets bots play, and prints how long each step took.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// Number of bots: a multiple of 2 in the queue `ranked`, and of 10 in the queue `teams`.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    players: u32,
    /// What the bots play: one against one, or two teams of five, made of groups of 1 to 5 players.
    #[arg(long, value_enum, default_value_t = DemoQueue::Ranked)]
    queue: DemoQueue,
    /// Number of NATS nodes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    nats_nodes: u8,
    #[command(flatten)]
    games: games::Flags,
}

/// How long a bot waits for each step. Even a slow machine needs much less.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// Failures that are printed at once. If Garage is broken, all players fail in the same way.
const MAX_SHOWN_FAILURES: usize = 5;

impl Demo {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let size = self.queue.match_size();
        let fits = self.players.is_multiple_of(size);
        anyhow::ensure!(fits, "--players must be a multiple of {size}, because each match has {size} players");
        let began = Instant::now();
        let games = tokio::select! {
            games = self.games.prepare() => games?,
            () = shutdown.cancelled() => anyhow::bail!("interrupted"),
        };
        let folder = tempfile::Builder::new().prefix("garage-demo-").tempdir()?;
        say("starting NATS, Redis, MariaDB and the workers …");
        // Environment variables for the workers. Each worker lists its variables with `--help`.
        let mut env = Vec::new();
        if std::env::var_os("GARAGE_GAME_ARG").is_none() {
            // A race of a few seconds. The game's default distance is a quarter mile.
            env.push(("GARAGE_GAME_ARG".into(), "--distance-m 60".into()));
        }
        let options = Options { nats_nodes: self.nats_nodes.into(), games: games.options(), env, ..Options::default() };
        let starting = Stack::start(folder.path(), options);
        let mut stack = tokio::select! {
            stack = starting => stack?,
            () = shutdown.cancelled() => anyhow::bail!("interrupted while starting"),
        };
        say(format!("ready after {:.1} s; dashboard: {}", began.elapsed().as_secs_f64(), stack.ops()));
        let result = tokio::select! {
            result = async {
                play(&stack, self.players, self.queue).await?;
                games.wait_none_left().await
            } => result,
            () = shutdown.cancelled() => {
                // After Ctrl-C, nothing is kept, not even the logs.
                stack.kill();
                return games.clear(Err(anyhow::anyhow!("interrupted"))).await;
            }
        };
        stack.stop().await;
        if result.is_err() {
            // The user needs the logs to find the cause.
            say(format!("the workers' logs are kept in {}", folder.keep().join("logs").display()));
            return games.clear(result).await;
        }
        say(format!("\nfinished after {:.1} s", began.elapsed().as_secs_f64()));
        Ok(())
    }
}

/// What the bots of the demo play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DemoQueue {
    Ranked,
    Teams,
}

impl DemoQueue {
    fn match_size(self) -> u32 {
        match self {
            Self::Ranked => 2,
            Self::Teams => 2 * TEAM,
        }
    }
}

/// The number of players in a team of the queue `teams`.
const TEAM: u32 = 5;

/// The groups of each team, in turn: their sizes add up to a team.
const GROUPS: [&[usize]; 6] = [&[5], &[4, 1], &[3, 2], &[3, 1, 1], &[2, 2, 1], &[1, 1, 1, 1, 1]];

/// Starts bots, each of which plays one match.
fn start(stack: &Stack, players: u32, queue: DemoQueue) -> anyhow::Result<(JoinSet<Result<Played, BotError>>, Groups)> {
    let http = reqwest::Client::new();
    let bot = |name: &str, token: &str| Bot::new(http.clone(), &stack.gateway(), name, token).with_max_wait(MAX_WAIT);
    let (mut playing, mut listening) = (JoinSet::new(), VecDeque::new());
    for number in 0..players {
        let name = format!("bot-{number}");
        match queue {
            DemoQueue::Ranked => {
                // Both players of a pair have the same rank, so each finds an opponent. The ranks of 500 pairs are 300
                // apart, more than the ranks of a match may differ at first.
                let rank = i32::try_from(number / 2 % 500 * 300)? - 100_000;
                let bot = bot(&name, &stack.token(&name, Some(rank))?);
                playing.spawn(async move { bot.play("ranked").await });
            }
            DemoQueue::Teams => {
                let bot = bot(&name, &stack.token(&name, None)?);
                let (listens, when) = oneshot::channel();
                listening.push_back((name, when));
                let queueing = async move {
                    // The studio's backend queues the player.
                    let _ = listens.send(());
                    Ok(())
                };
                playing.spawn(async move { bot.play_after(queueing).await });
            }
        }
    }
    let backend = bot("backend", &stack.token_with("backend", json!({"scope": "matchmaking:groups"}))?);
    Ok((playing, Groups { backend, listening }))
}

/// The studio's backend, which queues groups of players.
struct Groups {
    backend: Bot,
    /// The players who are not queued yet, and when each of them listens to events.
    listening: VecDeque<(String, oneshot::Receiver<()>)>,
}

impl Groups {
    /// Queues all players, team by team.
    async fn queue(mut self) -> anyhow::Result<()> {
        for size in GROUPS.into_iter().cycle().flatten() {
            let mut players = Vec::new();
            for (player, listens) in self.listening.drain(..(*size).min(self.listening.len())) {
                // If the bot has failed, its own error says why.
                if listens.await.is_ok() {
                    players.push(json!({"player": player, "latencies": {"eu": 20}}));
                }
            }
            if players.is_empty() {
                break;
            }
            let request = json!({"queue": "teams", "players": players});
            let key = format!("{:032x}", rand::random::<u128>());
            let queued = self.backend.command::<serde_json::Value>(Method::POST, GROUPS_PATH, Some(request), &key);
            queued.await.map_err(|problem| anyhow::anyhow!("cannot queue a group: {problem:?}"))?;
        }
        Ok(())
    }
}

/// The path at which the studio's backend queues a group.
const GROUPS_PATH: &str = "/v1/matchmaking/groups";

async fn play(stack: &Stack, players: u32, queue: DemoQueue) -> anyhow::Result<()> {
    say(format!("{players} players queue …"));
    let (mut playing, groups) = start(stack, players, queue)?;
    groups.queue().await?;
    let mut played: Vec<Played> = Vec::new();
    let mut failed: Vec<BotError> = Vec::new();
    let mut shown = Instant::now();
    while let Some(done) = playing.join_next().await {
        match done? {
            Ok(one) => played.push(one),
            Err(error) => {
                if failed.len() < MAX_SHOWN_FAILURES {
                    say(format!("FAILED  {error}"));
                }
                failed.push(error);
            }
        }
        if shown.elapsed() > Duration::from_secs(2) {
            shown = Instant::now();
            say(format!("  {} of {players} players have raced and were paid", played.len()));
        }
    }
    let log = JetStreamLog::open(stack.nats.connect(Role::Admin).await?).await?;
    let notified = u32::try_from(played.len()).unwrap_or(u32::MAX);
    let steps = Steps::read(&log, u64::from(notified)).await?;
    if let Some(one) = played.first() {
        say(format!("\none match, as the log shows it (session {}):", one.session));
        timeline::print(&timeline::of_match(&log, one.session.parse::<SessionId>()?).await?);
    }
    say("\nduration of each step, from the log's timestamps:");
    steps.print();
    say("");
    let mut counts = steps.counts();
    counts.push(("paid (seen by the players)", notified));
    table(
        &["players", "count"],
        &counts.iter().map(|(name, count)| vec![(*name).to_owned(), count.to_string()]).collect::<Vec<_>>(),
    );
    if let Some(error) = failed.into_iter().next() {
        say(format!("\nthe events of player {}, as the log shows them:", error.player));
        timeline::print(&timeline::of_last_match(&log, &PlayerId::from_foreign(&error.player)?).await?);
        return Err(error.into());
    }
    if let Some((name, count)) = counts.iter().find(|(_, count)| *count != players) {
        let (player, last) = steps.straggler().unwrap_or_default();
        anyhow::bail!("{name}: {count} of {players}; for example player {player}, whose last event is {last}");
    }
    Ok(())
}

/// The steps of a player from queueing to the reward, as event types, in this order.
const STEPS: [&str; 8] =
    ["Queued", "Matched", "PodRequested", "PodScheduled", "PodReady", "PlayerMatched", "Finished", "RewardGranted"];

/// When each player reached each step, by player and event type. A session's event counts for each of its players.
#[derive(Debug, Default)]
struct Steps(BTreeMap<String, BTreeMap<&'static str, OffsetDateTime>>);

impl Steps {
    /// Reads the whole log. The inventory worker publishes rewards a little later than it pays them: waits until each
    /// of the `players` has one, or no event arrives for three seconds.
    async fn read(log: &JetStreamLog, players: u64) -> anyhow::Result<Self> {
        let mut steps = Self::default();
        let mut members: BTreeMap<SessionId, Vec<String>> = BTreeMap::new();
        let mut follow = Follow::new(log.context().clone(), STREAM, vec![ALL.into()], 1);
        let mut paid = 0;
        while let Ok(message) = tokio::time::timeout(Duration::from_secs(3), follow.next()).await {
            let envelope = Envelope::from_slice(&message.body).with_context(|| format!("event {}", message.seq))?;
            let Some(step) = STEPS.into_iter().find(|step| *step == envelope.type_name) else { continue };
            match Aggregate::of(&message.subject) {
                Some(Aggregate::Player(player) | Aggregate::Inventory(player)) => {
                    paid += u64::from(step == "RewardGranted");
                    steps.0.entry(player.to_string()).or_default().insert(step, message.time);
                }
                Some(Aggregate::Session(session)) if step == "Matched" => {
                    let matched: garage_events::session::Matched = serde_json::from_str(envelope.data.get())?;
                    members.insert(session, matched.players().map(ToString::to_string).collect());
                }
                Some(Aggregate::Session(session)) => {
                    for player in members.get(&session).into_iter().flatten() {
                        steps.0.entry(player.clone()).or_default().insert(step, message.time);
                    }
                }
                Some(Aggregate::Party(_)) | None => {}
            }
            if paid >= players && message.pending == 0 {
                break;
            }
        }
        Ok(steps)
    }

    fn counts(&self) -> Vec<(&'static str, u32)> {
        let count = |step: &str| u32::try_from(self.0.values().filter(|taken| taken.contains_key(step)).count());
        let named = ["Queued", "Matched", "PlayerMatched", "Finished", "RewardGranted"];
        named.into_iter().map(|step| (step, count(step).unwrap_or(u32::MAX))).collect()
    }

    /// A player who did not reach every step, and the last event of that player.
    fn straggler(&self) -> Option<(String, String)> {
        let (player, taken) = self.0.iter().find(|(_, taken)| taken.len() < STEPS.len())?;
        let last = taken.iter().max_by_key(|(_, time)| **time).map(|(step, _)| (*step).to_owned());
        Some((player.clone(), last.unwrap_or_default()))
    }

    fn print(&self) {
        let mut rows = Vec::new();
        for (from, to) in STEPS.into_iter().zip(STEPS.into_iter().skip(1)).chain([("Queued", "PlayerMatched")]) {
            let took = |taken: &BTreeMap<&str, OffsetDateTime>| {
                Some((*taken.get(to)? - *taken.get(from)?).as_seconds_f64() * 1_000.0)
            };
            let mut millis: Vec<f64> = self.0.values().filter_map(took).collect();
            millis.sort_by(f64::total_cmp);
            let show = |share| percentile(&millis, share).map_or_else(|| "-".into(), |value| format!("{value:.0}"));
            rows.push(vec![format!("{from} → {to}"), show(0.5), show(0.99)]);
        }
        table(&["step", "p50 ms", "p99 ms"], &rows);
    }
}
