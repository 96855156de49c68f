//! `garage bench`: benchmarks. Each speed benchmark also measures the machine's own limit in the same run.

mod abuse;
mod capacity;
mod director;
mod gateway;
mod log;
mod matching;
mod recovery;
mod sample;

use std::collections::BTreeMap;

use garage_events::{
    env::{Env, System},
    id::TicketId,
    player::Queued,
};
use garage_rules::rule_set::Value;
use garage_worker::Shutdown;

use crate::report::say;

/// Runs a benchmark.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Bench {
    /// Measures commits per second of the log, with and without group commit, and the disk's own fsync rate.
    Log(log::Log),
    /// Measures memory, latency and requests of a gateway with many sockets, and the same machine without a gateway.
    Gateway(gateway::Gateway),
    /// Measures how much data matches leave in the log, NATS, Redis and MySQL.
    Capacity(capacity::Capacity),
    /// Measures how soon a matchmaker works again after a restart, and how fast projections are rebuilt.
    Recovery(recovery::Recovery),
    /// Measures how fast matches are made, and compares it with a writer that only stores the same events.
    Matching(matching::Matching),
    /// Measures the pods that a director creates per second, and a client that only sends the requests.
    Director(director::Director),
    /// Measures how long a report takes while a game server floods NATS, and without the flood.
    Abuse(abuse::Abuse),
    /// Runs the simulated API server for `bench director`, which starts it as a separate process.
    #[command(hide = true)]
    ApiServer(director::SimulatedApiServer),
    /// Runs the clients for `bench gateway`, which starts them as a separate process.
    #[command(hide = true)]
    GatewayClients(gateway::Clients),
}

impl Bench {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        if cfg!(debug_assertions) && !matches!(self, Self::GatewayClients(_) | Self::ApiServer(_)) {
            say("This is a debug build, which is slower than a release build. `make bench` uses a release build.");
        }
        match self {
            Self::Log(bench) => interruptible(&shutdown, bench.run()).await,
            Self::Gateway(bench) => interruptible(&shutdown, bench.run()).await,
            Self::Capacity(bench) => interruptible(&shutdown, bench.run()).await,
            Self::Recovery(bench) => interruptible(&shutdown, bench.run()).await,
            Self::Matching(bench) => interruptible(&shutdown, bench.run()).await,
            // It stops its reaction before its NATS.
            Self::Abuse(bench) => bench.run(shutdown).await,
            // It removes its pods before it ends.
            Self::Director(bench) => bench.run(shutdown).await,
            Self::ApiServer(server) => interruptible(&shutdown, server.run()).await,
            Self::GatewayClients(clients) => interruptible(&shutdown, clients.run()).await,
        }
    }
}

/// Runs a benchmark until its end or Ctrl-C.
async fn interruptible(shutdown: &Shutdown, measuring: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        result = measuring => result,
        () = shutdown.cancelled() => anyhow::bail!("interrupted"),
    }
}

/// A ticket of typical size in the queue `ranked`, which does not time out during a benchmark.
fn queued(attributes: BTreeMap<String, Value>) -> anyhow::Result<Queued> {
    let now = System.now();
    Ok(Queued {
        ticket: TicketId::new(System.id()),
        queue: "ranked".parse()?,
        rank: 1_000,
        latencies: [("eu".parse()?, 20), ("us".parse()?, 90)].into(),
        attributes,
        group: Vec::new(),
        waiting_since: now,
        expires_at: now + time::Duration::HOUR,
        requeues: 0,
        absences: 0,
        party: None,
    })
}
