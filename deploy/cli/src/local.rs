//! `garage up`: a local Garage for development.

use std::path::{Path, PathBuf};

use garage_stack::{
    servers::Role,
    supervisor::supervise,
    workers::{Options, Stack},
};
use garage_worker::Shutdown;

use crate::{games, report::say};

/// Runs a local Garage until Ctrl-C, and prints its addresses. If one of its processes ends, this is printed too, and
/// the process is restarted.
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// Folder of the data, secrets and logs. If it has data from an earlier run, that data is used again.
    #[arg(long, env = "GARAGE_ROOT", default_value = "target/garage")]
    root: PathBuf,
    /// The queues file. The default has the queues `ranked` and `casual` with two players per match,
    /// and `teams` with two teams of five.
    #[arg(long, env = "GARAGE_QUEUES")]
    queues: Option<PathBuf>,
    /// Number of NATS nodes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    nats_nodes: u8,
    /// Number of instances of each worker.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    instances: u8,
    #[command(flatten)]
    games: games::Flags,
}

impl Up {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let root = std::path::absolute(&self.root)?;
        let mut options = Options {
            nats_nodes: self.nats_nodes.into(),
            instances: self.instances.into(),
            queues: self.queues,
            ..Options::default()
        };
        options.check()?;
        let games = tokio::select! {
            games = self.games.prepare() => games?,
            () = shutdown.cancelled() => return Ok(()),
        };
        say(format!("starting in {} …", root.display()));
        options.games = games.options();
        let result = serve(&root, options, shutdown).await;
        games.clear(result).await
    }
}

async fn serve(root: &Path, options: Options, shutdown: Shutdown) -> anyhow::Result<()> {
    let starting = Stack::start(root, options);
    let mut stack = tokio::select! {
        stack = starting => stack?,
        () = shutdown.cancelled() => return Ok(()),
    };
    say("Garage is up. Paste these lines into another shell:\n");
    say(format!("export GATEWAY={}", stack.gateway()));
    say(format!("export GARAGE_GATEWAY_JWT_KEY_FILE={}", root.join("secrets/jwt.key").display()));
    say(format!("export GARAGE_NATS_URL={}", stack.nats.url()));
    say(format!("export GARAGE_NATS_CREDENTIALS={}", stack.nats.credentials(Role::Admin).display()));
    say(format!("export GARAGE_REDIS_URL={}", stack.redis.url()));
    say(format!("export GARAGE_REDIS_PASSWORD_FILE={}", stack.redis.password_file().display()));
    say(format!("\nDashboard: {}", stack.ops()));
    say("Press Ctrl-C to stop.");
    supervise(&mut stack, &shutdown, say).await;
    say("stopping …");
    stack.stop().await;
    Ok(())
}
