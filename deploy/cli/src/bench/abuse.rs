//! `garage bench abuse`: how much one hostile client or game server slows others down.

mod client;
mod game_server;

use garage_worker::Shutdown;

/// Measures how much a game server or a client that floods Garage slows others down.
///
/// Starts its own servers and workers.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Abuse {
    #[command(flatten)]
    source: Source,
    /// With --game-server: seconds for each measurement. There are four.
    #[arg(
        long = "for",
        value_name = "SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=600),
        conflicts_with = "client"
    )]
    seconds: u64,
    /// With --game-server: number of NATS nodes.
    #[arg(
        long,
        default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=5),
        conflicts_with = "client"
    )]
    nats_nodes: u8,
    #[command(flatten)]
    load: client::Load,
}

/// Where the flood comes from.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A game server floods NATS. Measures the reports of other game servers, and how fast the disk is.
    #[arg(long)]
    game_server: bool,
    /// A player's client sends ten times as many requests as its limits allow. Measures the tickets and matches of
    /// other players, and the same while that client sends as many requests to /livez.
    #[arg(long)]
    client: bool,
}

impl Abuse {
    pub(super) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        if self.source.client {
            client::run(self.load, shutdown).await
        } else {
            game_server::run(self.seconds, self.nats_nodes, shutdown).await
        }
    }
}
