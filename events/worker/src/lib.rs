//! The ground that every worker stands on.
//!
//! - [`main`]: tracing, configuration, exit code; what a worker's `main.rs` calls.
//! - [`Runtime`]: the connection to NATS, the admin port, long tasks and their clean end.
//! - [`redis`]: the connection to Redis.
//! - [`lag`]: whether a reader of the log keeps up with it; [`lease`]: which of several instances does something.
//! - [`operator`]: accounts and users of NATS in operator mode, and the games' users.
//! - [`seal`]: a game's secrets on their way from session to director.
//! - [`service`]: answering requests; [`reactor`]: reacting to the log's messages, each at least once.

mod admin;
pub mod config;
pub mod lag;
pub mod lease;
pub mod operator;
mod process;
pub mod reactor;
pub mod redis;
mod runtime;
pub mod seal;
pub mod service;

pub use admin::{Health, Pages};
pub use process::{command, init_tracing, main, shutdown_signal};
pub use runtime::{Runtime, Stopped, keep_trying};
pub use tokio_util::sync::CancellationToken as Shutdown;
