//! Runs one game and exits with a code that says how it ended.

use std::{io::IsTerminal, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use garage_events::game::EXIT_NO_PORT;
use garage_gameserver::{Error, Outcome, config, run};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tracing_subscriber::EnvFilter;

/// A signal stopped the game, or it could not start.
const FAILED: u8 = 1;
/// The configuration is not valid. clap uses the same code for flags that are not valid.
const INVALID_CONFIG: u8 = 2;
/// The session's hard end came before the results were reported.
const ENDED: u8 = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Fails only if a default provider is already installed, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = config::Cli::parse();
    init_tracing();
    let config = match config::load(&cli.config) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "cannot load the configuration");
            return ExitCode::from(INVALID_CONFIG);
        }
    };
    let span = tracing::info_span!("game", session.id = %config.session, attempt = config.attempt);
    let played = async {
        let shutdown = on_signal().context("listening for signals")?;
        Ok::<_, anyhow::Error>(run(config, cli.options, shutdown).await?)
    };
    match played.instrument(span).await {
        Ok(Outcome::Finished(_)) => ExitCode::SUCCESS,
        Ok(Outcome::Stopped) => {
            tracing::warn!("stopped before the results were reported");
            ExitCode::from(FAILED)
        }
        Ok(Outcome::Ended) => {
            tracing::error!("the session ended before the results were reported");
            ExitCode::from(ENDED)
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "game failed");
            let no_port = error.downcast_ref::<Error>().is_some_and(Error::is_no_port);
            ExitCode::from(if no_port { EXIT_NO_PORT } else { FAILED })
        }
    }
}

fn init_tracing() {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // At trace level these crates log frames and headers, including tokens. Limit them, whatever RUST_LOG says.
    for quiet in ["tungstenite=info", "tokio_tungstenite=info", "rustls=info", "async_nats=warn"] {
        if let Ok(directive) = quiet.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        lines.init();
    } else {
        lines.json().init();
    }
}

/// Returns a token that is cancelled on SIGTERM and SIGINT.
fn on_signal() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let shutdown = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        shutdown.cancel();
    });
    Ok(token)
}
