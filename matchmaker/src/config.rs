//! What the matchmaker is told.

use std::path::PathBuf;

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
