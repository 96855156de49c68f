//! The entry points that a worker's `main.rs` calls.

use std::{
    future::Future,
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::Parser;
use tracing_subscriber::{EnvFilter, fmt};

use crate::{Shutdown, Stopped};

/// Reads the configuration and runs the worker until it ends or a signal stops it. The exit code says whether it
/// succeeded.
pub fn main<C, F, R>(run: F) -> ExitCode
where
    C: Parser,
    F: FnOnce(C, Shutdown) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    process("info", run, |error| tracing::error!("{error:#}"))
}

/// Like [`main`], but for interactive commands: it logs only warnings and errors, and prints the final error as one
/// plain line.
pub fn command<C, F, R>(run: F) -> ExitCode
where
    C: Parser,
    F: FnOnce(C, Shutdown) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    // kube_client logs failures that the final error repeats.
    process("warn,kube_client=off", run, |error| {
        let _ = writeln!(std::io::stderr(), "error: {error:#}");
    })
}

fn process<C, F, R>(level: &str, run: F, report: impl FnOnce(&anyhow::Error)) -> ExitCode
where
    C: Parser,
    F: FnOnce(C, Shutdown) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let config = C::parse();
    init_tracing(level);
    // The whole workspace uses one TLS provider, so an error here only means that it is already installed.
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
    // Do not wait for blocking tasks: one that hangs must not delay the exit.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Stopped>() => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Waits for SIGTERM or SIGINT.
pub async fn shutdown_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::error!("cannot handle SIGTERM and SIGINT; stop the process with SIGKILL");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Logs to standard error: text on a terminal, JSON otherwise. `RUST_LOG` sets the filter; `level` is the default.
pub fn init_tracing(level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // In tests several workers share a process. The first call wins, and later calls fail without effect.
    let _ = if std::io::stderr().is_terminal() { log.try_init() } else { log.json().flatten_event(true).try_init() };
}
