//! `garage bench`: figures, each beside the machine's own limit in the same run.

mod capacity;
mod director;
mod gateway;
mod log;
mod recovery;
mod sample;

use garage_events::{
    env::{Env, System},
    id::TicketId,
    player::{self, Queued},
};
use garage_worker::Shutdown;

use crate::report::say;

/// Measures.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Bench {
    /// Commits per second of the log, with and without group commit, beside the disk's own fsync rate.
    Log(log::Log),
    /// What a gateway takes and how quick it is with many sockets, beside what the machine does without it.
    Gateway(gateway::Gateway),
    /// What matches leave behind: bytes of the log, memory of NATS and Redis, rows of MySQL.
    Capacity(capacity::Capacity),
    /// How quickly a matchmaker matches again after a restart, and projections are rebuilt, with a long log.
    Recovery(recovery::Recovery),
    /// Pods that a director makes a second, beside a client that only asks the cluster for them.
    Director(director::Director),
    /// The API server of `director`, which starts it: a double in a process of its own.
    #[command(hide = true)]
    ApiServer(director::Double),
    /// The other side of `gateway`, which starts it: clients in a process of their own.
    #[command(hide = true)]
    GatewayClients(gateway::Clients),
}

impl Bench {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        if cfg!(debug_assertions) && !matches!(self, Self::GatewayClients(_) | Self::ApiServer(_)) {
            say("This is a debug build, slower than what is deployed; `make bench` measures a release build.");
        }
        match self {
            Self::Log(bench) => unless(&shutdown, bench.run()).await,
            Self::Gateway(bench) => unless(&shutdown, bench.run()).await,
            Self::Capacity(bench) => unless(&shutdown, bench.run()).await,
            Self::Recovery(bench) => unless(&shutdown, bench.run()).await,
            // It has pods to remove before it ends.
            Self::Director(bench) => bench.run(shutdown).await,
            Self::ApiServer(double) => unless(&shutdown, double.run()).await,
            Self::GatewayClients(clients) => unless(&shutdown, clients.run()).await,
        }
    }
}

/// Measures, unless it is interrupted.
async fn unless(shutdown: &Shutdown, measuring: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        result = measuring => result,
        () = shutdown.cancelled() => anyhow::bail!("interrupted"),
    }
}

/// An event like most.
fn queued() -> anyhow::Result<player::Event> {
    let now = System.now();
    let queued = Queued {
        ticket: TicketId::new(System.id()),
        queue: "ranked".parse()?,
        rank: 1_000,
        latencies: [("eu".parse()?, 20), ("us".parse()?, 90)].into(),
        attributes: [].into(),
        waiting_since: now,
        expires_at: now + time::Duration::HOUR,
    };
    Ok(queued.into())
}
