//! `garage bench capacity`: the space that matches need, to plan disk and memory.

use std::{collections::BTreeMap, time::Instant};

use anyhow::Context;
use async_nats::jetstream;
use futures::{StreamExt, TryStreamExt, future::try_join, stream};
use garage_events::{
    game::Secret,
    subject::{HISTORY, STREAM},
};
use garage_inventory::{config::MySql, mysql::size};
use garage_stack::{
    bot::Bot,
    servers::Role,
    workers::{Options, Stack},
};

use super::sample::memory_kib;
use crate::report::{say, table};

/// Matches at the same time. Each needs a game server and two bots, and a small machine must keep up with all of them.
const CONCURRENCY: usize = 8;

/// Measures how much data matches leave in the log, NATS, Redis and MySQL.
#[derive(Debug, clap::Args)]
pub(crate) struct Capacity {
    /// Number of matches. Each has two new players and its own game server. Two cores play about three per second.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    matches: u32,
}

impl Capacity {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let folder = tempfile::Builder::new().prefix("garage-bench-").tempdir()?;
        let env = vec![("GARAGE_GAME_ARG".into(), "--distance-m 20".into())];
        let mut stack = Stack::start(folder.path(), Options { env, ..Options::default() }).await?;
        let result = self.measure(&mut stack).await;
        stack.kill();
        result
    }

    async fn measure(&self, stack: &mut Stack) -> anyhow::Result<()> {
        let http = reqwest::Client::new();
        // The first match warms up the servers and is not counted.
        play(stack, &http, "first").await?;
        let before = Sizes::read(stack).await?;
        say(format!("playing {} matches …", self.matches));
        let began = Instant::now();
        let playing = stream::iter(0..self.matches).map(async |number| play(stack, &http, &number.to_string()).await);
        playing.buffer_unordered(CONCURRENCY).try_collect::<()>().await?;
        let rate = f64::from(self.matches) / began.elapsed().as_secs_f64();
        let after = Sizes::read(stack).await?;

        let mut rows = Vec::new();
        for (name, after) in &after.0 {
            let grown = after - before.0.get(name).copied().unwrap_or_default();
            if grown != 0.0 {
                rows.push(vec![
                    name.clone(),
                    format!("{after:.0}"),
                    format!("{:.0}", grown * 1_000.0 / f64::from(self.matches)),
                ]);
            }
        }
        say(format!("\n{} matches of two new players each, {rate:.1} per second", self.matches));
        table(&["", "after the matches", "per 1,000 matches"], &rows);
        say("\nThe log keeps events for 12 h, the history for 72 h. Redis keeps live players and sessions, and the \
             last 500 closed sessions for an hour.");
        Ok(())
    }
}

async fn play(stack: &Stack, http: &reqwest::Client, name: &str) -> anyhow::Result<()> {
    let bot = |side: &str| {
        let player = format!("bot-{name}-{side}");
        anyhow::Ok(Bot::new(http.clone(), &stack.gateway(), &player, &stack.token(&player, Some(0))?))
    };
    let (left, right) = (bot("left")?, bot("right")?);
    try_join(left.play("ranked"), right.play("ranked")).await?;
    Ok(())
}

/// The sizes of Garage's data, by the name of the row.
#[derive(Debug)]
struct Sizes(BTreeMap<String, f64>);

impl Sizes {
    async fn read(stack: &mut Stack) -> anyhow::Result<Self> {
        let mut sizes = BTreeMap::new();
        let context = jetstream::new(stack.nats.connect(Role::Admin).await?);
        for name in [STREAM, HISTORY] {
            let state = context.get_stream(name).await?.cached_info().state.clone();
            sizes.insert(format!("{name}, messages"), exact(state.messages));
            sizes.insert(format!("{name}, KiB"), exact(state.bytes) / 1_024.0);
        }
        let nats = stack.nats.node(0)?.process().pid().context("nats-server has stopped")?;
        sizes.insert("nats-server, KiB of memory".into(), exact(memory_kib(nats)?));
        sizes.insert("Redis, KiB of memory".into(), redis(&stack.redis.url_with_password()).await? / 1_024.0);
        let mysql = MySql {
            mysql_url: Secret::new(stack.database.url()),
            mysql_password_file: Some(stack.database.password_file().to_owned()),
            mysql_pool_size: 4,
            mysql_acquire_timeout_ms: 2_000,
        };
        for size::Table { name, rows, bytes } in size::tables(&mysql.pool()?).await? {
            sizes.insert(format!("MySQL {name}, rows"), exact(rows));
            sizes.insert(format!("MySQL {name}, KiB"), exact(bytes) / 1_024.0);
        }
        Ok(Self(sizes))
    }
}

/// Memory that Redis uses for its data, in bytes.
async fn redis(url: &str) -> anyhow::Result<f64> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await?;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
    used.context("Redis does not report its memory")
}

/// Converts a size. The result is exact up to 2^53, far above all sizes here.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
fn exact(size: u64) -> f64 {
    size as f64
}
