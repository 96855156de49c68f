//! The configuration of the matchmaker.

use std::path::PathBuf;

use garage_events::queue::Queues;
use garage_worker::config;

/// Matchmaker: matches waiting players by the rule sets of their queues.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "garage-matchmaker", version)]
pub struct Config {
    #[command(flatten)]
    #[expect(missing_docs, reason = "a flattened group is documented by its fields")]
    pub worker: config::Worker,

    /// File that describes the queues.
    #[arg(long, env = "GARAGE_QUEUES")]
    pub queues: PathBuf,
}

impl Config {
    /// Validates the configuration without connecting to anything.
    ///
    /// # Errors
    /// When the worker would refuse to start with this configuration.
    pub fn check(&self) -> anyhow::Result<()> {
        Queues::load(&self.queues)?;
        self.worker.check()
    }
}
