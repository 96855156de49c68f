//! The garage-gameserver process: one game, then an exit code.

use std::{io::IsTerminal, process::ExitCode};

use anyhow::Context;
use clap::Parser;
use garage_gameserver::{Outcome, config, run};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use tracing_subscriber::EnvFilter;

/// Stopped by a signal, or a port or a key could not be had.
const FAILED: u8 = 1;
/// The configuration is not valid; flags that are not valid exit with 2 as well, which is clap's.
const NOT_VALID: u8 = 2;
/// The session's hard end came before the results were reported.
const ENDED: u8 = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Fails only if there is one already, which is then the one that counts.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = config::Cli::parse();
    trace();
    let config = match config::load(&cli.config) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(error = format!("{:#}", anyhow::Error::from(error)), "no game");
            return ExitCode::from(NOT_VALID);
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
            ExitCode::from(FAILED)
        }
    }
}

fn trace() {
    let mut filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // At their trace level these write frames and headers, tokens and all, whatever RUST_LOG wishes.
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

/// A token that SIGTERM and SIGINT cancel.
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
