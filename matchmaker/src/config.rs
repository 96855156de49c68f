//! What the matchmaker is told.

use std::path::PathBuf;

use garage_events::queue::Queues;
use garage_worker::config;

/// Matchmaker: matches waiting players by rank and latency.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "garage-matchmaker", version)]
pub struct Config {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub worker: config::Worker,

    /// The file that describes the queues.
    #[arg(long, env = "GARAGE_QUEUES")]
    pub queues: PathBuf,
}

impl Config {
    /// Checks what can be checked before anything connects.
    ///
    /// # Errors
    /// What the worker would refuse to start for.
    pub fn check(&self) -> anyhow::Result<()> {
        Queues::load(&self.queues)?;
        self.worker.check()
    }
}
