//! `garage bench capacity`: what matches leave behind, for who plans disk and memory.

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

/// Matches at a time: each has a game server and two players, and all of them must be quick enough for theirs.
const AT_ONCE: usize = 8;

/// What matches leave behind: bytes of the log, memory of NATS and Redis, rows of MySQL.
#[derive(Debug, clap::Args)]
pub(crate) struct Capacity {
    /// Matches that are played, each by two new players on a game server of its own; about three a second on two cores.
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
        // What the first match brings about is no later one's.
        play(stack, &http, "first").await?;
        let before = Sizes::read(stack).await?;
        say(format!("playing {} matches …", self.matches));
        let began = Instant::now();
        let playing = stream::iter(0..self.matches).map(async |number| play(stack, &http, &number.to_string()).await);
        playing.buffer_unordered(AT_ONCE).try_collect::<()>().await?;
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
        say(format!("\n{} matches of two new players each, {rate:.1} a second", self.matches));
        table(&["", "after them", "per 1,000 matches"], &rows);
        say(
            "\nThe log forgets after 12 h, its history after 72 h, Redis a player or session when he or it is through.",
        );
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

/// Sizes of what Garage keeps, by name.
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
        let nats = stack.nats.node(0)?.process().pid().context("nats-server has gone")?;
        sizes.insert("nats-server, KiB of memory".into(), exact(memory_kib(nats)?));
        sizes.insert("Redis, KiB of memory".into(), redis(&stack.redis.url_with_password()).await? / 1_024.0);
        let mysql = MySql {
            mysql_url: Secret::new(stack.mariadb.url()),
            mysql_password_file: Some(stack.mariadb.password_file().to_owned()),
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

/// What Redis says that its data takes, in bytes.
async fn redis(url: &str) -> anyhow::Result<f64> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let info: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await?;
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
    used.context("Redis does not tell its memory")
}

/// Exact up to 2^53, which no size here comes near.
#[expect(clippy::cast_precision_loss, reason = "said above")]
fn exact(size: u64) -> f64 {
    size as f64
}
