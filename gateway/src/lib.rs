//! REST and WebSocket for game clients. The only decisions that the gateway makes are on players' own commands: to
//! queue, to cancel, and to form parties.
//!
//! - [`Config`]: the configuration; [`token`]: the players' tokens.
//! - `admission`: limits for the requests of one account.
//! - `server`, `tls`, `write_timeout`: the accept loop; `connections`: limits for open connections; `proxy`: the
//!   client's address behind a proxy; `cors`: which web pages may call the gateway; `routes`: REST; `problem`: errors
//!   in the format of RFC 9457.
//! - [`commands`], `ticket` (pure): queueing and cancelling; `party` (pure), `parties`: the open parties; `request`: parses and checks requests; `queue_status`: the
//!   closed queues; `blocks`: the blocked players; `regions`: where clients measure their latency; `wait_estimate`: the
//!   wait estimates; `ops`: the dashboard on the admin port.
//! - `answers`: accepting and declining proposed matches; `progress`: how many players have accepted.
//! - `upgrade`, `socket`, `hub`, `frame`: push the log's events to players; `presence`: which players have a socket, on
//!   any gateway.

mod absence;
mod admission;
mod answers;
mod app;
mod blocks;
pub mod commands;
mod config;
mod connections;
mod cors;
mod frame;
mod hub;
mod limits;
mod ops;
mod parties;
mod party;
mod presence;
mod problem;
mod progress;
mod proxy;
mod queue_status;
mod regions;
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
use garage_events::env::System;
use garage_worker::{Pages, Runtime, Shutdown, bucket, metrics::Metric, rules::AppliedRules};
use tokio::net::TcpListener;

pub use absence::AbsenceWait;
use app::App;
pub use config::{Config, ProxyHeader, RateLimits};
use connections::Connections;
use cors::Cors;
pub use cors::Origin;
pub use problem::Problem;
use proxy::Proxies;
pub use queue_status::QueueStatuses;
pub use ticket::Ticket;
pub use token::sign_token;

/// A gateway that listens. It answers once [`serve`](Self::serve) runs.
#[derive(Debug)]
pub struct Gateway {
    runtime: Runtime,
    address: SocketAddr,
}

/// Runs a gateway until `shutdown`.
///
/// # Errors
/// If the configuration is wrong, if the log does not exist, or if a long-running task ends before the shutdown.
pub async fn run(config: Config, shutdown: Shutdown) -> anyhow::Result<()> {
    Gateway::bind(config, shutdown).await?.serve().await
}

/// What the worker measures.
const METRICS: [Metric; 17] = [
    Metric::counter("garage_gateway_requests_total", "requests answered").with_later_labels(),
    // A route appears with its first request; failures of any route are an increase.
    Metric::histogram("garage_gateway_request_seconds", "time from the head of a request to the head of its answer")
        .with(&[("route", &["none"]), ("status", &["2xx", "4xx", "5xx"])]),
    Metric::gauge("garage_gateway_sockets", "open sockets"),
    Metric::counter("garage_gateway_frames_total", "frames written to sockets"),
    Metric::counter("garage_gateway_skipped_total", "messages of the log that could not be read, and were not sent"),
    Metric::counter("garage_gateway_limited_total", "requests refused because a limit was reached")
        .with(&[("limit", admission::LABELS)]),
    Metric::counter("garage_gateway_vanished_total", "tickets cancelled because the player did not reconnect in time"),
    Metric::counter(
        "garage_gateway_connections_refused_total",
        "connections closed or requests refused because of a limit for connections",
    )
    .with(&[("reason", &["address", "full", "player", "proxy"])]),
    Metric::counter("garage_gateway_socket_tokens_total", "tokens that clients sent on their sockets")
        .with(&[("outcome", &["accepted", "refused"])]),
    Metric::counter("garage_gateway_blocked_total", "requests refused because an operator has blocked the player"),
    Metric::counter(
        "garage_gateway_closed_by_operator_total",
        "sockets closed because an operator blocked or kicked the player",
    )
    .with(&[("command", &["block", "kick"])]),
    Metric::counter("garage_gateway_tokens_refused_total", "requests refused because of their token")
        .with(&[("reason", &token::Refused::REASONS)]),
    Metric::counter("garage_gateway_jwks_reads_total", "reads of the identity provider's keys")
        .with(&[("outcome", &["ok", "failed"])]),
    Metric::gauge("garage_gateway_jwks_keys", "usable keys of the identity provider"),
    Metric::gauge("garage_gateway_parties", "open parties"),
    Metric::counter(
        "garage_gateway_party_codes_refused_total",
        "requests to join a party with a wrong or expired code",
    ),
    Metric::counter(
        "garage_gateway_party_members_away_total",
        "members of parties who did not reconnect in time, and count as away",
    ),
];

impl Gateway {
    /// Checks the configuration, opens the log and the port, and starts to serve clients.
    ///
    /// # Errors
    /// If one of these steps fails.
    pub async fn bind(config: Config, shutdown: Shutdown) -> anyhow::Result<Self> {
        let (keys, queues, tls, redis) = config.read()?;

        let storage = ops::LogStorage::default();
        let ops = ops::Ops::new(redis, queues.names().cloned(), Arc::clone(&storage))?;
        let pages: Option<Arc<dyn Pages>> = Some(Arc::new(ops));
        let mut runtime = Runtime::start_with("gateway", &config.worker, pages, shutdown.clone()).await?;
        garage_worker::metrics::register(&METRICS);
        let log = runtime.open_log().await?;
        storage.get_or_init(|| log.storage().clone());
        keys.watch(&mut runtime);
        let client = runtime.client.clone();
        let hub = hub::Hub::default();
        let wait_estimates = wait_estimate::WaitEstimates::new(&queues);
        let blocks = blocks::Blocks::new(hub.clone(), log.clone(), shutdown.clone());
        // Starts before the blocks are read, so that no event after the block of a player is missed.
        let (estimates, health) = (wait_estimates.clone(), runtime.health.clone());
        let follow = hub::follow(hub.clone(), estimates, blocks.clone(), log.clone(), health, shutdown.clone()).await?;
        runtime.spawn("hub", follow);
        let follow = progress::follow(hub.clone(), log.clone(), shutdown.clone()).await?;
        runtime.spawn("progress", follow);
        let (context, health) = (log.context().clone(), runtime.health.clone());
        let follow = bucket::follow(blocks.clone(), "blocks", context, health, shutdown.clone()).await?;
        runtime.spawn("blocks", follow);
        let queue_statuses = queue_status::QueueStatuses::new(&queues);
        let (context, health) = (log.context().clone(), runtime.health.clone());
        let statuses = queue_statuses.clone();
        let follow = bucket::follow(statuses, "queues", context.clone(), health.clone(), shutdown.clone()).await?;
        runtime.spawn("queue-status", follow);
        let applied = AppliedRules { queues: queues.clone(), context: context.clone() };
        let follow = bucket::follow(applied, "rules", context, health, shutdown.clone()).await?;
        runtime.spawn("rules", follow);
        let grace = Duration::from_secs(config.grace.into());
        let presence = presence::Presence::open(log.clone(), hub.clone(), grace, shutdown.clone()).await?;
        runtime.spawn("presence", presence.clone().run());
        let parties = parties::Parties::new(hub.clone(), log.clone(), shutdown.clone());
        let follow = parties::follow(parties.clone(), runtime.health.clone()).await?;
        runtime.spawn("parties", follow);

        let listener = TcpListener::bind(config.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {} (--listen)", config.listen))?;
        let address = listener.local_addr()?;
        tracing::info!(%address, tls = tls.is_some(), "gateway is listening");
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let absence_wait = AbsenceWait {
            first: seconds(config.absence_wait),
            declined: seconds(config.decline_wait),
            max: seconds(config.absence_wait_max),
        };
        let admission = Arc::new(admission::Admission::new(&config.rate_limits, &queues));
        runtime.spawn("rate limits", Arc::clone(&admission).forget_idle(shutdown.clone()));
        let app = Arc::new(App {
            keys,
            queues,
            log,
            client,
            hub,
            blocks,
            queue_statuses,
            wait_estimates,
            presence,
            parties,
            absence_wait,
            admission,
            env: System,
        });
        let proxies = Proxies { header: config.proxy_header, trusted: config.trusted_proxies.clone() };
        let connections = Connections::new(config.limits()?, proxies.header.is_some());
        let access = server::Access { tls, connections, proxies, cors: Cors(config.cors_origins.clone()) };
        runtime.spawn("accept", server::serve(listener, app, access, shutdown));
        Ok(Self { runtime, address })
    }

    /// The address on which it listens, with the actual port if the configured port is 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs until the shutdown is complete.
    ///
    /// # Errors
    /// If a long-running task ends before the shutdown. The error names the task.
    pub async fn serve(self) -> anyhow::Result<()> {
        self.runtime.wait().await
    }
}
