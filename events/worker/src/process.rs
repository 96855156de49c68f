//! What a worker's `main.rs` calls.

use std::{
    future::Future,
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::Parser;
use tracing_subscriber::{EnvFilter, fmt};

use crate::{Shutdown, Stopped};

/// Reads the configuration, runs the worker until it ends or the process is told to stop, and says how it went.
pub fn main<C, F, R>(run: F) -> ExitCode
where
    C: Parser,
    F: FnOnce(C, Shutdown) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    process("info", run, |error| tracing::error!("{error:#}"))
}

/// As [`main`], for a command that a person types: warnings only are logged, and the error is a line to be read.
pub fn command<C, F, R>(run: F) -> ExitCode
where
    C: Parser,
    F: FnOnce(C, Shutdown) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    // What that client logs, the error says too.
    process("warn,kube_client=off", run, |error| {
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
    })
}

fn process<C, F, R>(level: &str, run: F, complain: impl FnOnce(&anyhow::Error)) -> ExitCode
where
    C: Parser,
    F: FnOnce(C, Shutdown) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let config = C::parse();
    init_tracing(level);
    // One TLS provider for the whole workspace; a second installation is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        tokio::spawn(async move {
            shutdown_signal().await;
            stop.cancel();
        });
        run(config, shutdown).await
    });
    // A blocking task that hangs must not hold the process up.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Stopped>() => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Waits for SIGTERM or SIGINT.
pub async fn shutdown_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("signals cannot be received; the process can only be killed");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Logs to standard error: text on a terminal, JSON otherwise. `RUST_LOG` says how much; `level` by default.
pub fn init_tracing(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // In tests several workers share a process; the first one's choice holds.
    let _ = if std::io::stderr().is_terminal() { log.try_init() } else { log.json().flatten_event(true).try_init() };
}
