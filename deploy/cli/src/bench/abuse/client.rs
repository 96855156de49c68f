//! `garage bench abuse --client`: one account sends ten times as many requests as its limits allow.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, bail};
use async_nats::jetstream;
use clap::Parser;
use futures::TryStreamExt;
use garage_events::{
    event::Recorded,
    id::{PlayerId, SessionId},
    jetstream::{JetStreamLog, follow::Follow},
    player, presence,
    rate::RateLimit,
    subject::{Aggregate, HISTORY, PLAYERS, STREAM},
};
use garage_gateway::RateLimits;
use garage_stack::{
    abuser::{Abuse, Abuser, Answers},
    servers::Role,
    workers::{Options, Stack, Worker},
};
use garage_worker::Shutdown;
use reqwest::Client;
use serde_json::json;
use time::OffsetDateTime;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    bench::{
        gateway::due_times,
        interruptible,
        sample::{Latencies, median, spread},
    },
    report::{note, say, table},
};

/// The abuser sends this many times the requests per second that a limit allows.
const TIMES: f64 = 10.0;

/// The ranks of the players, and of the abuser, who must not be matched with them.
const RANK: i32 = 0;
const ABUSERS_RANK: i32 = 100_000;

/// Seconds between two tickets of a player.
const PAUSE_S: u32 = 2;

/// Players who queue before the measurements, so that every connection and every table exists.
const WARM_UP: u32 = 100;

/// How long to wait for the last match.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The load of the players.
#[derive(Debug, clap::Args)]
pub(super) struct Load {
    /// With --client: the load is that of this many players who queue every two seconds. But each ticket has a new
    /// player, because no game servers run that could end a match.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=10_000), conflicts_with = "game_server")]
    players: u32,
    /// With --client: tickets in each measurement.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(2..=1_000_000), conflicts_with = "game_server")]
    samples: u32,
    /// With --client: how often each measurement runs. The table shows the median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=99), conflicts_with = "game_server")]
    runs: u8,
}

/// The limits of a gateway with default settings.
#[derive(Debug, clap::Parser)]
struct Defaults {
    #[command(flatten)]
    limits: RateLimits,
}

/// A limit that the abuser exceeds: so many requests at once, and so many per second.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    burst: f64,
    rate: f64,
}

/// What the abuser does, and the limit that it exceeds.
fn kinds() -> anyhow::Result<Vec<(&'static str, Abuse, Allowed)>> {
    let Defaults { limits } = Defaults::try_parse_from(["garage"])?;
    let kinds = [
        ("tickets", Abuse::Tickets, limits.limit_tickets),
        ("garage", Abuse::Garage, limits.limit_garage),
        ("reads", Abuse::Reads, limits.limit_reads),
        ("sockets", Abuse::Sockets, limits.limit_sockets),
    ];
    let per_second = |(name, abuse, limit)| match limit {
        RateLimit::Bucket { burst, refill } => {
            Ok((name, abuse, Allowed { burst: f64::from(burst.get()), rate: 1.0 / refill.as_secs_f64() }))
        }
        RateLimit::Off => bail!("{name} have no limit"),
    };
    kinds.into_iter().map(per_second).collect()
}

pub(super) async fn run(load: Load, shutdown: Shutdown) -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("garage-bench-").tempdir()?;
    let mut stack = Stack::start(folder.path(), Options::default()).await?;
    for worker in [Worker::Session, Worker::Director] {
        // Game servers would use most of the machine.
        for instance in stack.instances(worker) {
            instance.process.stop().await;
        }
    }
    let result = interruptible(&shutdown, measure(&load, &mut stack)).await;
    stack.kill();
    result
}

async fn measure(load: &Load, stack: &mut Stack) -> anyhow::Result<()> {
    let admin = stack.instances(Worker::Gateway).next().map(|gateway| gateway.admin.clone());
    let harmless = Abuse::Url(format!("http://{}/livez", admin.context("no gateway")?));
    let log = JetStreamLog::open(stack.nats.connect(Role::Admin).await?).await?;
    let stage = Stage { stack, log, http: Client::builder().timeout(MAX_WAIT).build()? };
    stage.players("warm-up", WARM_UP, load.rate()).await?;

    let (mut rows, mut lines) = (Vec::new(), Vec::new());
    for (name, abuse, limit) in kinds()? {
        let rate = (limit.rate * TIMES).ceil();
        let (mut beside_harmless, mut beside_abuse) = (Repeated::default(), Repeated::default());
        for run in 1..=load.runs {
            note(format!("{name}, run {run} of {}: {rate} requests per second to /livez …", load.runs));
            let (seen, _) = stage.beside(load, &format!("{name}-{run}-livez"), &harmless, rate).await?;
            beside_harmless.add(&seen);
            note(format!("{name}, run {run} of {}: {rate} requests per second …", load.runs));
            let (seen, flood) = stage.beside(load, &format!("{name}-{run}"), &abuse, rate).await?;
            beside_abuse.add(&seen);
            if run == load.runs {
                lines.push(flood.line(name, limit));
            }
        }
        rows.extend(beside_harmless.rows(&format!("{rate}/s to /livez"), None));
        rows.extend(beside_abuse.rows(&format!("{rate}/s to {name}"), Some(&beside_harmless)));
    }
    say(format!(
        "\n{} players queue every {PAUSE_S} s; median (lowest..highest) of {} runs with {} tickets each; target: a p99 of at \
         most 1.5 times that beside /livez",
        load.players, load.runs, load.samples
    ));
    table(&["", "p50 ms", "p99 ms", "/ beside /livez"], &rows);
    say("\nThe abuser in the last run:");
    lines.into_iter().for_each(say);
    Ok(())
}

impl Load {
    /// Tickets per second of all players.
    fn rate(&self) -> u32 {
        (self.players / PAUSE_S).max(1)
    }
}

/// What the players of one measurement saw.
#[derive(Debug, Default)]
struct Seen {
    /// From the time when a request was due until its answer.
    answered: Latencies,
    /// From the time when both tickets of a match are stored until the match is.
    matched: Latencies,
}

/// The percentiles of several measurements, in milliseconds.
#[derive(Debug, Default)]
struct Repeated {
    /// p50 and p99 of each run.
    answered: [Vec<f64>; 2],
    matched: [Vec<f64>; 2],
}

impl Repeated {
    fn add(&mut self, seen: &Seen) {
        for (all, latencies) in [(&mut self.answered, &seen.answered), (&mut self.matched, &seen.matched)] {
            for (values, share) in all.iter_mut().zip([0.5, 0.99]) {
                values.extend(latencies.at(share));
            }
        }
    }

    fn rows(&self, when: &str, compared: Option<&Self>) -> Vec<Vec<String>> {
        let row = |name: &str, [p50, p99]: &[Vec<f64>; 2], other: Option<&[Vec<f64>; 2]>| {
            let ratio = other.map(|[_, other]| format!("{:.2}", median(p99) / median(other)));
            vec![format!("{name}, beside {when}"), spread(p50, 2), spread(p99, 2), ratio.unwrap_or_default()]
        };
        vec![
            row("POST ticket → answer", &self.answered, compared.map(|other| &other.answered)),
            row("both queued → matched", &self.matched, compared.map(|other| &other.matched)),
        ]
    }
}

/// What the abuser achieved.
#[derive(Debug)]
struct Flooded {
    answers: Answers,
    time: Duration,
    /// The number of messages that the abuser added, by stream.
    added: Vec<(&'static str, u64)>,
}

impl Flooded {
    fn line(&self, name: &str, limit: Allowed) -> String {
        let seconds = self.time.as_secs_f64();
        let answers: Vec<_> = self.answers.0.iter().map(|(status, count)| format!("{count} × {status}")).collect();
        let added: Vec<_> = self.added.iter().map(|(stream, count)| format!("{count} in {stream}")).collect();
        let Allowed { burst, rate } = limit;
        let allowed = burst + rate * seconds;
        format!(
            "  {name}: in {seconds:.0} s {}; messages stored: {}; requests that the limit allows: {burst} + {rate}/s = {allowed:.0}",
            answers.join(", "),
            added.join(", ")
        )
    }
}

/// A running Garage.
struct Stage<'a> {
    stack: &'a Stack,
    log: JetStreamLog,
    http: Client,
}

impl Stage<'_> {
    /// Measures the players while an account sends requests at this rate. `name` is new in each measurement.
    async fn beside(&self, load: &Load, name: &str, abuse: &Abuse, rate: f64) -> anyhow::Result<(Seen, Flooded)> {
        let player = format!("abuser-{name}");
        let abuser = Abuser::new(&self.stack.gateway(), &self.stack.token(&player, Some(ABUSERS_RANK))?);
        let entries = self.last_entry().await?;
        let (stop, began) = (Shutdown::new(), Instant::now());
        let flooding = tokio::spawn({
            let (abuse, stop) = (abuse.clone(), stop.clone());
            async move { abuser.at_rate(&abuse, Duration::from_secs_f64(1.0 / rate), stop).await }
        });
        let seen = self.players(name, load.samples, load.rate()).await;
        stop.cancel();
        let answers = flooding.await?;
        let time = began.elapsed();
        let mut added = self.messages(&player.parse()?).await?;
        // The players open no sockets, so these are the abuser's entries and the gateway's heartbeats.
        added.push((presence::STREAM, self.last_entry().await? - entries));
        Ok((seen?, Flooded { answers, time, added }))
    }

    /// The number of messages about a player in the log and its copy, by stream.
    async fn messages(&self, player: &PlayerId) -> anyhow::Result<Vec<(&'static str, u64)>> {
        let mut all = Vec::new();
        for name in [STREAM, HISTORY] {
            let stream = self.log.context().get_stream_no_info(name).await?;
            let mut count = 0;
            for aggregate in [Aggregate::Player(player.clone()), Aggregate::Inventory(player.clone())] {
                let subjects = stream.info_with_subjects(aggregate.filter()).await?;
                let counts: Vec<_> = subjects.try_collect().await?;
                count += counts.into_iter().map(|(_, count)| count as u64).sum::<u64>();
            }
            all.push((name, count));
        }
        Ok(all)
    }

    /// The sequence of the last entry of a socket or a gateway. A bucket keeps only the last entry of each player, so
    /// its messages cannot be counted afterwards.
    async fn last_entry(&self) -> anyhow::Result<u64> {
        Ok(self.log.context().get_stream(presence::STREAM).await?.cached_info().state.last_sequence)
    }

    /// Queues one player after another, and waits until all are matched.
    async fn players(&self, name: &str, count: u32, rate: u32) -> anyhow::Result<Seen> {
        let from = self.log.state().await?.last_sequence + 1;
        let context: jetstream::Context = self.log.context().clone();
        let mut follow = Follow::new(context, STREAM, vec![PLAYERS.into()], from);
        follow.connect().await.map_err(anyhow::Error::from_boxed)?;
        let prefix = format!("player-{name}-");
        let count = count / 2 * 2;
        let requests = (0..count).map(|number| {
            let token = self.stack.token(&format!("{prefix}{number}"), Some(RANK))?;
            let url = format!("{}/v1/matchmaking/tickets", self.stack.gateway());
            anyhow::Ok(
                self.http.post(url).bearer_auth(token).json(&json!({"queue": "ranked", "latencies": {"eu": 20}})),
            )
        });
        let requests: Vec<_> = requests.collect::<anyhow::Result<_>>()?;
        let matched = tokio::spawn(async move { matched(&mut follow, &prefix, count).await });

        let (mut answering, began) = (JoinSet::new(), Instant::now());
        for (request, due) in requests.into_iter().zip(due_times(rate, count.div_ceil(rate))) {
            let due = began + due;
            sleep_until(due).await;
            answering.spawn(async move {
                request.send().await?.error_for_status()?.bytes().await?;
                anyhow::Ok(due.elapsed())
            });
        }
        let answered = answering.join_all().await.into_iter().collect::<anyhow::Result<Latencies>>()?;
        let matched = timeout(MAX_WAIT, matched).await.context("not all players were matched within a minute")??;
        Ok(Seen { answered, matched: matched? })
    }
}

/// Waits until this many players, whose names begin with `prefix`, are matched in pairs.
async fn matched(follow: &mut Follow, prefix: &str, count: u32) -> anyhow::Result<Latencies> {
    let mut queued: HashMap<PlayerId, OffsetDateTime> = HashMap::new();
    // The players of each match so far, and when the later of them was queued.
    let mut sessions: HashMap<SessionId, OffsetDateTime> = HashMap::new();
    let (mut latencies, mut left) = (Latencies::default(), count);
    while left > 0 {
        let message = follow.next().await;
        let Some(Aggregate::Player(player)) = Aggregate::of(&message.subject) else { continue };
        if !player.as_str().starts_with(prefix) {
            continue;
        }
        match Recorded::<player::Event>::decode(message.seq, message.time, &message.body)?.event {
            player::Event::Queued(_) => drop(queued.insert(player, message.time)),
            player::Event::Matched(matched) => {
                let since = queued.remove(&player).context("a player was matched who was not queued")?;
                left -= 1;
                if let Some(other) = sessions.remove(&matched.session) {
                    latencies.add((message.time - since.max(other)).unsigned_abs());
                } else {
                    sessions.insert(matched.session, since);
                }
            }
            other => bail!("{player} was neither queued nor matched: {other:?}"),
        }
    }
    Ok(latencies)
}
