//! `garage bench gateway`: memory and latency of a gateway with many sockets.

mod clients;
mod push;
mod rest;

use std::{fs, time::Duration};

use anyhow::Context;
use garage_stack::{
    servers::Role,
    workers::{Options, Stack, Worker},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub(super) use self::clients::Clients;
use super::sample::{HEADINGS, memory_kib};
use crate::report::{say, table};

/// Connections and open files that a process needs besides the sockets.
const RESERVE: u64 = 4_096;

/// Measures memory, latency and requests of a gateway with many sockets, and the same machine without a gateway.
#[derive(Debug, clap::Args)]
pub(crate) struct Gateway {
    /// Sockets that stay open during all measurements. Each belongs to another player.
    // The clients share one address, whose ports limit the number.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    sockets: u32,
    /// REST requests per second.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    rate: u32,
    /// Events per second, sent to one socket after another.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    events: u32,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
}

impl Gateway {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        self.check_machine()?;
        let folder = tempfile::Builder::new().prefix("garage-bench-").tempdir()?;
        let most = u64::from(self.sockets) + RESERVE;
        let env = vec![("GARAGE_GATEWAY_MAX_CONNECTIONS".into(), most.to_string())];
        let mut stack = Stack::start(folder.path(), Options { env, ..Options::default() }).await?;
        for matchmaker in stack.instances(Worker::Matchmaker) {
            // No queued player may be matched.
            matchmaker.process.stop().await;
        }
        let result = self.measure(&mut stack).await;
        stack.kill();
        result
    }

    async fn measure(&self, stack: &mut Stack) -> anyhow::Result<()> {
        let pid = stack.instances(Worker::Gateway).next().and_then(|gateway| gateway.process.pid());
        let pid = pid.context("the gateway has stopped")?;
        let url = stack.gateway();
        // The first requests allocate memory that does not belong to the sockets.
        rest::warm_up(&url, &stack.token("first", Some(0))?).await?;
        let before = memory_kib(pid)?;

        say(format!("opening {} sockets …", self.sockets));
        let players: Vec<String> = (0..self.sockets).map(|number| format!("socket-{number}")).collect();
        let tokens = players.iter().map(|player| stack.token(player, Some(0))).collect::<Result<Vec<_>, _>>()?;
        let mut clients = clients::start(&url, &tokens).await?;
        let after = memory_kib(pid)?;
        let each = f64::from(u32::try_from(after.saturating_sub(before))?) / f64::from(self.sockets);
        say(format!("  {each:.1} KiB of gateway memory per socket ({before} KiB before, {after} KiB after)"));

        say(format!("sending {} events per second, then one event to all sockets at once …", self.events));
        let nats = [stack.nats.connect(Role::Admin).await?, stack.nats.connect(Role::Admin).await?];
        let mut pushing = push::Pushing::new(&nats, &players, &mut clients).await?;
        let steady = pushing.steady(self.events, self.seconds).await?;
        let burst = pushing.burst().await?;
        let busy = memory_kib(pid)?;

        say(format!("sending {} requests per second …", self.rate));
        let load = rest::Load { rate: self.rate, seconds: self.seconds };
        let echo = load.echo(clients.echo()).await?;
        let tokens: Vec<String> = (0..rest::PLAYERS)
            .map(|number| stack.token(&format!("rest-{number}"), Some(0)))
            .collect::<Result<_, _>>()?;
        let rest = load.gateway(&url, &tokens).await?;

        say(format!(
            "\none gateway with {} sockets; latencies as measured by its clients in another process",
            self.sockets
        ));
        let mut rows = Vec::new();
        for (name, pushed) in [(format!("{}/s", self.events), steady), ("all at once".into(), burst)] {
            rows.push(pushed.limit.row(&format!("NATS alone, publish → subscriber, {name} (limit)"), None));
            rows.push(pushed.stored.row(&format!("append → stored in the log, {name}"), Some(&pushed.limit)));
            rows.push(pushed.frame.row(&format!("append → frame, {name}"), Some(&pushed.limit)));
        }
        rows.push(echo.row(&format!("HTTP without a gateway, {}/s (limit)", self.rate), None));
        for (name, latencies) in &rest {
            rows.push(latencies.row(name, Some(&echo)));
        }
        table(&HEADINGS, &rows);
        say(format!(
            "\n{each:.1} KiB per socket when idle, {:.1} KiB per socket after the events",
            f64::from(u32::try_from(busy.saturating_sub(before))?) / f64::from(self.sockets)
        ));
        Ok(())
    }

    /// Raises the limit of open files for this process and its children. If the machine does not allow
    /// enough files or ports, the error says what to change.
    fn check_machine(&self) -> anyhow::Result<()> {
        let sockets = u64::from(self.sockets);
        let needed = sockets + RESERVE;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        anyhow::ensure!(
            needed <= hard,
            "{sockets} sockets need {needed} open files per process, but this machine allows {hard} (`ulimit -Hn`); \
             raise the limit, or use fewer sockets with --sockets"
        );
        if soft < needed {
            setrlimit(Resource::RLIMIT_NOFILE, needed, hard)?;
        }
        let file = "/proc/sys/net/ipv4/ip_local_port_range";
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
        let ends: Vec<u64> = text.split_whitespace().filter_map(|end| end.parse().ok()).collect();
        let ports = ends.last().zip(ends.first()).map_or(0, |(last, first)| last.saturating_sub(*first));
        anyhow::ensure!(
            needed <= ports,
            "{sockets} sockets need {needed} ports for outgoing connections, but this machine has {ports} ({file}); \
             widen the range, or use fewer sockets with --sockets"
        );
        Ok(())
    }
}

/// When each of `rate` operations per second is due, counted from the start of a measurement.
pub(super) fn due_times(rate: u32, seconds: u32) -> impl Iterator<Item = Duration> {
    (0..rate * seconds).map(move |number| Duration::from_secs(1) * number / rate)
}
