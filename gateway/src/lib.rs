//! REST and WebSocket for game clients. It decides nothing but the player's own commands.
//!
//! - [`Config`], [`token`]: what it is told, and who its clients are.
//! - `server`, `tls`, `write_timeout`: the accept loop; `routes`: REST; `problem`: errors as RFC 9457 has them.
//! - `ticket` (pure), [`commands`]: queueing and cancelling; `request`: what a client may send; `queue_status`: which queues take
//!   nobody; `wait_estimate`: how long one waits; `ops`: the operators' page, on the admin port.
//! - `upgrade`, `socket`, `hub`, `frame`: the log, pushed to the players that are here; `presence`: who is, anywhere.

pub mod commands;
mod config;
mod frame;
mod hub;
mod ops;
mod presence;
mod problem;
mod queue_status;
mod request;
mod routes;
mod server;
mod socket;
mod ticket;
mod tls;
pub mod token;
mod upgrade;
mod wait_estimate;
mod write_timeout;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use garage_events::{env::System, jetstream::JetStreamLog, queue::Queues};
use garage_worker::{Pages, Runtime, Shutdown};
use tokio::net::TcpListener;

pub use config::Config;
pub use problem::Problem;
pub use queue_status::QueueStatuses;
pub use ticket::Ticket;
pub use token::sign_token;

/// What requests are answered with.
struct App {
    keys: token::Keys,
    queues: Queues,
    log: JetStreamLog,
    client: async_nats::Client,
    hub: hub::Hub,
    queue_statuses: queue_status::QueueStatuses,
    wait_estimates: wait_estimate::WaitEstimates,
    presence: presence::Presence,
    env: System,
}

/// A gateway that listens, and answers once it is served.
#[derive(Debug)]
pub struct Gateway {
    runtime: Runtime,
    address: SocketAddr,
}

/// Runs a gateway until `shutdown`.
///
/// # Errors
/// When the configuration is wrong, NATS or the log are not there, or a long task ends by itself.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    Gateway::bind(config, shutdown).await?.serve().await
}

impl Gateway {
    /// Checks the configuration, opens the log and then the port; from then on clients are served.
    ///
    /// # Errors
    /// When one of these cannot be done.
    pub async fn bind(config: Config, shutdown: Shutdown) -> anyhow::Result<Self> {
        let (keys, queues, tls, redis) = config.read()?;

        let ops = ops::Ops::new(redis, queues.names().cloned())?;
        let pages: Option<Arc<dyn Pages>> = Some(Arc::new(ops));
        let mut runtime = Runtime::start_with("gateway", &config.worker, pages, shutdown.clone()).await?;
        let log = runtime.open_log().await?;
        let client = runtime.client.clone();
        let hub = hub::Hub::default();
        let wait_estimates = wait_estimate::WaitEstimates::new(&queues);
        let follow =
            hub::follow(hub.clone(), wait_estimates.clone(), log.clone(), runtime.health.clone(), shutdown.clone())
                .await?;
        runtime.spawn("hub", follow);
        let queue_statuses = queue_status::QueueStatuses::new(&queues);
        let follow = queue_status::follow(
            queue_statuses.clone(),
            log.context().clone(),
            runtime.health.clone(),
            shutdown.clone(),
        )
        .await?;
        runtime.spawn("doors", follow);
        let grace = Duration::from_secs(config.grace.into());
        let presence = presence::Presence::open(log.clone(), hub.clone(), grace, shutdown.clone()).await?;
        runtime.spawn("presence", presence.clone().run());

        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {} (--listen)", config.listen))?;
        let address = listener.local_addr()?;
        tracing::info!(%address, tls = tls.is_some(), "gateway open");
        let app =
            Arc::new(App { keys, queues, log, client, hub, queue_statuses, wait_estimates, presence, env: System });
        let limit = config.max_connections;
        runtime.spawn("accept", server::serve(listener, tls, app, limit, shutdown));
        Ok(Self { runtime, address })
    }

    /// Where clients reach it; the real port when port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// When a long task ends by itself; names it.
    pub async fn serve(self) -> anyhow::Result<()> {
        self.runtime.wait().await
    }
}
