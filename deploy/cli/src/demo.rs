//! `garage demo`: a local Garage, and bots that play on it through public interfaces only.

use std::{
    collections::BTreeMap,
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
use time::OffsetDateTime;
use tokio::task::JoinSet;

use crate::{
    games,
    report::{percentile, say, table},
    timeline,
};

/// Starts a local Garage, lets bots play on it, and reports.
#[derive(Debug, clap::Args)]
pub(crate) struct Demo {
    /// How many bots play; two make a match.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    players: u32,
    /// Nodes of NATS.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    nats_nodes: u8,
    #[command(flatten)]
    games: games::Flags,
}

/// How long the bots may take altogether: what a machine needs for the races, and a good deal more.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// Failures that are shown as they happen; a hundred players of one broken Garage say the same.
const SHOWN: usize = 5;

impl Demo {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        anyhow::ensure!(self.players.is_multiple_of(2), "--players must be even: two make a match");
        let began = Instant::now();
        let games = tokio::select! {
            games = self.games.prepare() => games?,
            () = shutdown.cancelled() => anyhow::bail!("interrupted"),
        };
        let folder = tempfile::Builder::new().prefix("garage-demo-").tempdir()?;
        say("starting NATS, Redis, MariaDB and the workers …");
        // The workers inherit what is set here; see `garage-director --help` and the like.
        let mut env = Vec::new();
        if std::env::var_os("GARAGE_GAME_ARG").is_none() {
            // A few seconds of racing; the road of the real game is a quarter mile.
            env.push(("GARAGE_GAME_ARG".into(), "--distance-m 60".into()));
        }
        let options = Options { nats_nodes: self.nats_nodes.into(), games: games.options(), env, ..Options::default() };
        let starting = Stack::start(folder.path(), options);
        let mut stack = tokio::select! {
            stack = starting => stack?,
            () = shutdown.cancelled() => anyhow::bail!("interrupted while starting"),
        };
        say(format!("up after {:.1} s; what goes on is at {}", began.elapsed().as_secs_f64(), stack.ops()));
        let result = tokio::select! {
            result = async {
                play(&stack, self.players).await?;
                games.wait_none_left().await
            } => result,
            () = shutdown.cancelled() => {
                // Who interrupts a demo wants it gone, and nothing of it kept.
                stack.kill();
                return games.clear(Err(anyhow::anyhow!("interrupted"))).await;
            }
        };
        stack.stop().await;
        if result.is_err() {
            // The logs are what the person needs now.
            say(format!("the workers' logs are kept in {}", folder.keep().join("logs").display()));
            return games.clear(result).await;
        }
        say(format!("\n{:.1} s in all", began.elapsed().as_secs_f64()));
        Ok(())
    }
}

async fn play(stack: &Stack, players: u32) -> anyhow::Result<()> {
    say(format!("{players} players queue …"));
    let http = reqwest::Client::new();
    let mut playing = JoinSet::new();
    for number in 0..players {
        let name = format!("bot-{number}");
        // Neighbours in rank, so that each finds an opponent; there are ranks for 500 such pairs apart.
        let rank = i32::try_from(number / 2 % 500 * 200)?;
        let token = stack.token(&name, Some(rank))?;
        let bot = Bot::new(http.clone(), &stack.gateway(), &name, &token).with_max_wait(MAX_WAIT);
        playing.spawn(async move { bot.play("ranked").await });
    }
    let mut played: Vec<Played> = Vec::new();
    let mut failed: Vec<BotError> = Vec::new();
    let mut shown = Instant::now();
    while let Some(done) = playing.join_next().await {
        match done? {
            Ok(one) => played.push(one),
            Err(error) => {
                if failed.len() < SHOWN {
                    say(format!("FAILED  {error}"));
                }
                failed.push(error);
            }
        }
        if shown.elapsed() > Duration::from_secs(2) {
            shown = Instant::now();
            say(format!("  {} of {players} have raced and were paid", played.len()));
        }
    }
    let log = JetStreamLog::open(stack.nats.connect(Role::Admin).await?).await?;
    let notified = u32::try_from(played.len()).unwrap_or(u32::MAX);
    let steps = Steps::read(&log, u64::from(notified)).await?;
    if let Some(one) = played.first() {
        say(format!("\none match, from the log (session {}):", one.session));
        timeline::print(&timeline::of_match(&log, one.session.parse::<SessionId>()?).await?);
    }
    say("\nsteps, from the log's timestamps:");
    steps.print();
    say("");
    let mut counts = steps.counts();
    counts.push(("paid (seen by the players)", notified));
    table(
        &["players", "count"],
        &counts.iter().map(|(name, count)| vec![(*name).to_owned(), count.to_string()]).collect::<Vec<_>>(),
    );
    if let Some(error) = failed.into_iter().next() {
        say(format!("\nthe way of player {}, from the log:", error.player));
        timeline::print(&timeline::of_last_match(&log, &PlayerId::from_foreign(&error.player)?).await?);
        return Err(error.into());
    }
    if let Some((name, count)) = counts.iter().find(|(_, count)| *count != players) {
        let (player, last) = steps.straggler().unwrap_or_default();
        anyhow::bail!("{name}: {count} of {players}; for example player {player}, whose last event is {last}");
    }
    Ok(())
}

/// The steps of a player's way, by type of event, in their order.
const STEPS: [&str; 8] =
    ["Queued", "Matched", "PodRequested", "PodScheduled", "PodReady", "PlayerMatched", "Finished", "RewardGranted"];

/// When each player took each step; those of a session count for each of its players.
#[derive(Debug, Default)]
struct Steps(BTreeMap<String, BTreeMap<&'static str, OffsetDateTime>>);

impl Steps {
    /// Reads the whole log. The outbox may still be at work: waits for as many rewards as there are players, a while.
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
                None => {}
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

    /// A player who lacks a step, and the last one that he took.
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
