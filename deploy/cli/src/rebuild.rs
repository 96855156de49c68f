//! `garage rebuild`: computes the projections in Redis again.

use anyhow::bail;
use garage_session::{projector::rebuild, redis::Redis};
use garage_worker::{Shutdown, config};

use crate::{progress::Progress, report::say};

/// Computes the projections in Redis again from the log, and replaces the live ones in one step.
///
/// Workers may run meanwhile. If this command is interrupted, the live projections stay as they were. You can run it
/// again at any time.
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
            () = shutdown.cancelled() => bail!("interrupted; the live projections are unchanged"),
        };
        drop(progress);
        say(format!("{} events read; the projections were replaced at sequence {}", rebuilt.events, rebuilt.seq));
        Ok(())
    }
}
