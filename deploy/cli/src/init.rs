//! `garage init`: creates or upgrades what NATS and MySQL need for Garage.

use anyhow::Context;
use garage_events::jetstream::setup;
use garage_inventory::config::MySql;
use garage_worker::config::Nats;

use crate::report::say;

/// Creates or upgrades the NATS streams and consumers and the SQL schema. You can run it again at any time.
#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    #[command(flatten)]
    nats: Nats,
    #[command(flatten)]
    mysql: MySql,
    /// Copies that NATS keeps of each stream: 1 on one node, 3 on three nodes.
    #[arg(long, env = "GARAGE_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: u8,
    /// How much of the log NATS keeps, in MiB. The sizes of all other streams follow from it: together, they need almost
    /// twice as much.
    #[arg(long, env = "GARAGE_LOG_SIZE", default_value_t = setup::DEFAULT_LOG_SIZE >> 20, value_name = "MIB",
        value_parser = clap::value_parser!(u64).range(setup::LOG_SIZES.start() >> 20..=setup::LOG_SIZES.end() >> 20))]
    log_size: u64,
}

impl Init {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let client = self.nats.connect("init").await?;
        setup::init_sized(client, self.replicas.into(), self.log_size << 20).await?;
        say("streams and consumers are up to date");
        let pool = self.mysql.pool()?;
        garage_inventory::migrate(&pool).await.context("cannot upgrade the SQL schema")?;
        say("the SQL schema is up to date");
        Ok(())
    }
}
