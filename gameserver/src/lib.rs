//! The reference game server: an authoritative drag race. One process serves one game.
//!
//! - [`config`]: flags, environment variables, and the game's configuration file.
//! - [`domain`]: the simulation of the race. Pure.
//! - `game`: waits for the players and runs the race; `player_slot`: a player's connection and datagram state.
//! - `socket`, `connections`, `tls`, `token`, `ports`: accept and authenticate players.
//! - [`wire`]: the protocol between client and server.
//! - [`report`]: sends reports to Garage.
//! - [`client`]: a client for bots and tests.
//!
//! The process has no admin port for health checks and metrics. Every game on a node would need one more free port, and
//! Garage monitors a game only through its reports and its process or pod.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::future::{FusedFuture, FutureExt};
use garage_events::{
    crash::Point,
    game::{Config, Finished, Placing, Ports, Ready},
};
use time::OffsetDateTime;
use tokio::{sync::mpsc, time::sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub mod client;
pub mod config;
mod connections;
pub mod domain;
mod game;
mod player_slot;
mod ports;
pub mod report;
mod socket;
mod tls;
mod token;
pub mod wire;

pub use config::Options;
pub use garage_events::game::fingerprint;

/// Capacity of the queue of messages from the connections to the game. When it is full, the connections wait.
const EVENT_QUEUE: usize = 256;

/// How a game ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The race is over, and Garage has acknowledged the results.
    Finished(Vec<Placing>),
    /// The session's hard end came first.
    Ended,
    /// `shutdown` was cancelled first.
    Stopped,
}

/// Why a game cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration breaks a rule.
    #[error("checking the configuration")]
    Config(#[from] config::Invalid),
    /// TLS cannot be set up with the game's private key.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// A key for connection tokens cannot be parsed.
    #[error(transparent)]
    Token(#[from] token::BadKey),
    /// No port is free, or listening failed.
    #[error(transparent)]
    Ports(#[from] ports::Error),
    /// The system does not return the port of a socket.
    #[error("reading the port of a socket")]
    Socket(#[source] std::io::Error),
    /// The address of NATS cannot be parsed.
    #[error(transparent)]
    Nats(#[from] report::BadAddress),
    /// A report cannot be written as JSON.
    #[error("writing a report as JSON")]
    Report(#[source] serde_json::Error),
}

impl Error {
    /// Whether all ports of the range are in use.
    #[must_use]
    pub fn is_no_port(&self) -> bool {
        matches!(self, Self::Ports(ports::Error::Exhausted { .. }))
    }
}

/// Serves one game and reports over NATS. Ends when the results are reported, the session ends, or `shutdown` is
/// cancelled.
///
/// # Errors
/// [`Error`] when the game cannot start.
pub async fn run(config: Config, options: Options, shutdown: CancellationToken) -> Result<Outcome, Error> {
    let reporter = report::NatsReporter::new(config.nats.clone())?;
    run_with(config, options, reporter, shutdown).await
}

/// Like [`run`], with another [`report::Reporter`].
///
/// # Errors
/// The same as [`run`].
pub async fn run_with<R: report::Reporter>(
    config: Config,
    options: Options,
    reporter: R,
    shutdown: CancellationToken,
) -> Result<Outcome, Error> {
    config::check(&config)?;
    let time_left = time_left(config.ends_at);
    tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(Outcome::Stopped),
        () = sleep(time_left) => Ok(Outcome::Ended),
        results = serve(config, options, reporter) => results.map(Outcome::Finished),
    }
}

/// The time until the session's hard end. A monotonic timer measures it, so that later changes of the clock have no
/// effect.
#[expect(clippy::disallowed_methods, reason = "the hard end is a time of day, and this is where it becomes a timer")]
fn time_left(ends_at: OffsetDateTime) -> Duration {
    (ends_at - OffsetDateTime::now_utc()).try_into().unwrap_or_default()
}

/// Serves the whole game. Dropping the future closes all connections.
async fn serve<R: report::Reporter>(config: Config, options: Options, reporter: R) -> Result<Vec<Placing>, Error> {
    let identity = tls::identity(&config.private_key)?;
    let tls = TlsAcceptor::from(Arc::clone(&identity.config));
    let acceptor = socket::Acceptor::new(tls, token::Verifier::new(&config)?, config.players.len());
    let listener = ports::tcp(options.bind, options.ports).await?;
    let udp = ports::udp(options.bind, options.ports).await?;
    let ports = Ports {
        tcp_port: listener.local_addr().map_err(Error::Socket)?.port(),
        udp_port: udp.local_addr().map_err(Error::Socket)?.port(),
    };
    let ready = Ready { ports };
    tracing::info!(
        ready.tcp_port = ports.tcp_port,
        ready.udp_port = ports.udp_port,
        fingerprint = identity.fingerprint,
        "listening for players"
    );

    let report = serde_json::to_vec(&ready).map_err(Error::Report)?;
    let mut ready = pin!(report::until_acknowledged(&reporter, Point::ReadyReported, &config.ready, report).fuse());
    let (events, received) = mpsc::channel(EVENT_QUEUE);
    let stop = CancellationToken::new();
    let game = game::Game::new(config.session, config.players, &options);
    let play = async {
        let results = game.play(received, udp, ready.as_mut(), &stop).await;
        stop.cancel();
        // Report ready before finished: Garage ignores the end of a game that it has not seen start.
        if !ready.is_terminated() {
            ready.as_mut().await;
        }
        let teams = domain::teams::placings(&config.teams, &results);
        let report = Finished { results: results.clone(), teams };
        let report = serde_json::to_vec(&report).map_err(Error::Report)?;
        report::until_acknowledged(&reporter, Point::FinishedReported, &config.finished, report).await;
        Ok(results)
    };
    let (results, ()) = tokio::join!(play, socket::accept(listener, acceptor, events, stop.clone()));
    results
}
