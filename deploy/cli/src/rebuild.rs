//! `garage rebuild`: the projections anew.

use anyhow::bail;
use garage_session::{projector::rebuild, redis::Redis};
use garage_worker::{Shutdown, config};

use crate::{progress::Progress, report::say};

/// Builds the projections in Redis anew from the log, beside the live ones, and switches at once.
///
/// Workers may run meanwhile. Killed in the middle it leaves the live projections as they were; it may be run again at
/// any time.
#[derive(Debug, clap::Args)]
pub(crate) struct Rebuild {
    #[command(flatten)]
    nats: config::Nats,
    #[command(flatten)]
    redis: config::Redis,
}

impl Rebuild {
    pub(crate) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let redis = Redis::new(garage_worker::redis::Redis::new(&self.redis)?);
        let client = self.nats.connect("cli").await?;
        let mut progress = Progress::new(false);
        let rebuilding = rebuild(client, &redis, |events, at, end| progress.at(events, at, end));
        let rebuilt = tokio::select! {
            rebuilt = rebuilding => rebuilt?,
            () = shutdown.cancelled() => bail!("interrupted; the live projections are whole, run it again to rebuild them"),
        };
        drop(progress);
        say(format!("{} events folded; the projections were replaced at {}", rebuilt.events, rebuilt.seq));
        Ok(())
    }
}
