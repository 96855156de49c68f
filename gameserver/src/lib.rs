//! The reference game server: an authoritative drag race. It is one process for one game.
//!
//! - [`config`]: flags, variables, and the game's configuration file.
//! - [`domain`]: the race itself, pure.
//! - `game`: gathers the players, runs the race; `player_slot`: a player's place in it.
//! - `socket`, `places`, `tls`, `token`, `ports`: how players reach it; [`wire`]: what is said then.
//! - [`report`]: what Garage is told.
//! - [`client`]: the other end of [`wire`], for bots and tests.
//!
//! It serves no admin port: on a node's network a fourth of them per game would be one more thing to find a port for,
//! and Garage learns of a game by its reports and its pod alone.

use std::{pin::pin, sync::Arc, time::Duration};

use futures::future::{FusedFuture, FutureExt};
use garage_events::{
    crash::Point,
    game::{Config, Finished, Placing, Ready},
};
use time::OffsetDateTime;
use tokio::{sync::mpsc, time::sleep};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub mod client;
pub mod config;
pub mod domain;
mod game;
mod places;
mod player_slot;
mod ports;
pub mod report;
mod socket;
mod tls;
mod token;
pub mod wire;

pub use config::Options;
pub use garage_events::game::fingerprint;

/// How many messages of connections may wait for the game; then their sockets wait.
const EVENTS: usize = 256;

/// How a game ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was played and its results are reported.
    Finished(Vec<Placing>),
    /// The session's hard end came first.
    Ended,
    /// It was told to stop.
    Stopped,
}

/// Why a game could not be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration makes no sense.
    #[error("checking the configuration")]
    Config(#[from] config::Senseless),
    /// The game's key makes no TLS server.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The key of tokens cannot be read.
    #[error(transparent)]
    Token(#[from] token::BadKey),
    /// There is no port.
    #[error(transparent)]
    Ports(#[from] ports::Error),
    /// A socket does not say its port.
    #[error("asking a socket for its port")]
    Socket(#[source] std::io::Error),
    /// The address of NATS cannot be read.
    #[error(transparent)]
    Nats(#[from] report::BadAddress),
    /// A report has no JSON form.
    #[error("writing a report")]
    Report(#[source] serde_json::Error),
}

/// Serves one game, reporting over NATS, until it is finished and reported, its session ends, or `shutdown`.
///
/// # Errors
/// [`Error`] when it could not begin.
pub async fn run(config: Config, options: Options, shutdown: CancellationToken) -> Result<Outcome, Error> {
    let reporter = report::OverNats::new(config.nats.clone())?;
    run_with(config, options, reporter, shutdown).await
}

/// [`run`] with another way to report.
///
/// # Errors
/// As [`run`].
pub async fn run_with<R: report::Reporter>(
    config: Config,
    options: Options,
    reporter: R,
    shutdown: CancellationToken,
) -> Result<Outcome, Error> {
    config::check(&config)?;
    let left = left(config.ends_at);
    tokio::select! {
        biased;
        () = shutdown.cancelled() => Ok(Outcome::Stopped),
        () = sleep(left) => Ok(Outcome::Ended),
        results = serve(config, options, reporter) => results.map(Outcome::Finished),
    }
}

/// How long until the session's hard end; a monotonic timer counts it from here, so that a clock set later changes nothing.
#[expect(clippy::disallowed_methods, reason = "the hard end is a time of day, and this is where it becomes a timer")]
fn left(ends_at: OffsetDateTime) -> Duration {
    (ends_at - OffsetDateTime::now_utc()).try_into().unwrap_or_default()
}

/// The whole game. Dropping it anywhere cuts all connections.
async fn serve<R: report::Reporter>(config: Config, options: Options, reporter: R) -> Result<Vec<Placing>, Error> {
    let identity = tls::identity(&config.private_key)?;
    let tls = TlsAcceptor::from(Arc::clone(&identity.config));
    let acceptor = socket::Acceptor::new(tls, token::Verifier::new(&config)?, config.players.len());
    let listener = ports::tcp(options.bind, options.ports).await?;
    let udp = ports::udp(options.bind, options.ports).await?;
    let ready = Ready {
        tcp_port: listener.local_addr().map_err(Error::Socket)?.port(),
        udp_port: udp.local_addr().map_err(Error::Socket)?.port(),
    };
    tracing::info!(ready.tcp_port, ready.udp_port, fingerprint = identity.fingerprint, "listening");

    let report = serde_json::to_vec(&ready).map_err(Error::Report)?;
    let mut ready = pin!(report::until_acknowledged(&reporter, Point::ReadyReported, &config.ready, report).fuse());
    let (events, heard) = mpsc::channel(EVENTS);
    let stop = CancellationToken::new();
    let game = game::Game::new(config.session, config.players, &options);
    let play = async {
        let results = game.play(heard, udp, ready.as_mut()).await;
        stop.cancel();
        // In this order, because Garage has no use for the end of a game that it does not know to have begun.
        if !ready.is_terminated() {
            ready.as_mut().await;
        }
        let report = serde_json::to_vec(&Finished { results: results.clone() }).map_err(Error::Report)?;
        report::until_acknowledged(&reporter, Point::FinishedReported, &config.finished, report).await;
        Ok(results)
    };
    let (results, ()) = tokio::join!(play, socket::accept(listener, acceptor, events, stop.clone()));
    results
}
