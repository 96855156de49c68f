//! `garage bench gateway`: what a gateway takes, and how quick it is, with many sockets.

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

/// Connections and files of a gateway besides the sockets.
const BESIDES: u64 = 4_096;

/// What a gateway takes and how quick it is with many sockets, beside what the machine does without it.
#[derive(Debug, clap::Args)]
pub(crate) struct Gateway {
    /// Sockets that are open all the time, each of a player of his own.
    // Their clients' ports are those of one address.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    sockets: u32,
    /// REST requests a second.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    rate: u32,
    /// Events a second that are pushed, each to another socket.
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
        let most = u64::from(self.sockets) + BESIDES;
        let env = vec![("GARAGE_GATEWAY_MAX_CONNECTIONS".into(), most.to_string())];
        let mut stack = Stack::start(folder.path(), Options { env, ..Options::default() }).await?;
        for matchmaker in stack.instances(Worker::Matchmaker) {
            // Nobody who queues here is to be matched.
            matchmaker.process.stop().await;
        }
        let result = self.measure(&mut stack).await;
        stack.kill();
        result
    }

    async fn measure(&self, stack: &mut Stack) -> anyhow::Result<()> {
        let pid = stack.instances(Worker::Gateway).next().and_then(|gateway| gateway.process.pid());
        let pid = pid.context("the gateway has gone")?;
        let url = stack.gateway();
        // What the first requests bring about is no socket's.
        rest::warm_up(&url, &stack.token("first", Some(0))?).await?;
        let before = memory_kib(pid)?;

        say(format!("opening {} sockets …", self.sockets));
        let players: Vec<String> = (0..self.sockets).map(|number| format!("socket-{number}")).collect();
        let tokens = players.iter().map(|player| stack.token(player, Some(0))).collect::<Result<Vec<_>, _>>()?;
        let mut clients = clients::start(&url, &tokens).await?;
        let after = memory_kib(pid)?;
        let each = f64::from(u32::try_from(after.saturating_sub(before))?) / f64::from(self.sockets);
        say(format!("  {each:.1} KiB of the gateway's memory a socket ({before} KiB before, {after} KiB with them)"));

        say(format!("pushing {} events/s, then one to everybody at once …", self.events));
        let nats = [stack.nats.connect(Role::Admin).await?, stack.nats.connect(Role::Admin).await?];
        let mut pushing = push::Pushing::new(&nats, &players, &mut clients).await?;
        let steady = pushing.steady(self.events, self.seconds).await?;
        let burst = pushing.burst().await?;
        let busy = memory_kib(pid)?;

        say(format!("{} requests/s …", self.rate));
        let load = rest::Load { rate: self.rate, seconds: self.seconds };
        let echo = load.echo(clients.echo()).await?;
        let tokens: Vec<String> = (0..rest::PLAYERS)
            .map(|number| stack.token(&format!("rest-{number}"), Some(0)))
            .collect::<Result<_, _>>()?;
        let rest = load.gateway(&url, &tokens).await?;

        say(format!(
            "\none gateway with {} sockets; latencies as its clients, in another process, see them",
            self.sockets
        ));
        let mut rows = Vec::new();
        for (name, pushed) in [(format!("at {}/s", self.events), steady), ("to all at once".into(), burst)] {
            rows.push(pushed.limit.row(&format!("NATS alone, publish → subscriber, {name} (limit)"), None));
            rows.push(pushed.stored.row(&format!("append → the log has it, {name}"), Some(&pushed.limit)));
            rows.push(pushed.frame.row(&format!("append → frame, {name}"), Some(&pushed.limit)));
        }
        rows.push(echo.row(&format!("bare HTTP on TCP, {}/s (limit)", self.rate), None));
        for (name, latencies) in &rest {
            rows.push(latencies.row(name, Some(&echo)));
        }
        table(&HEADINGS, &rows);
        say(format!(
            "\n{each:.1} KiB a socket when idle, {:.1} KiB after the events",
            f64::from(u32::try_from(busy.saturating_sub(before))?) / f64::from(self.sockets)
        ));
        Ok(())
    }

    /// Makes room for the sockets, here and in what is started from here, or says what the machine lacks.
    fn check_machine(&self) -> anyhow::Result<()> {
        let sockets = u64::from(self.sockets);
        let needed = sockets + BESIDES;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        anyhow::ensure!(
            needed <= hard,
            "{sockets} sockets need {needed} open files in a process, and this machine allows {hard} (`ulimit -Hn`); \
             raise that, or take fewer with --sockets"
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
            "{sockets} sockets need {needed} ports for outgoing connections, and this machine has {ports} ({file}); \
             widen that, or take fewer with --sockets"
        );
        Ok(())
    }
}

/// Runs a measurement's length.
fn length(rate: u32, seconds: u32) -> impl Iterator<Item = Duration> {
    (0..rate * seconds).map(move |number| Duration::from_secs(1) * number / rate)
}
