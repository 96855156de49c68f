//! The runtime that all workers share.
//!
//! - [`main`]: tracing, configuration and exit code. Each worker's `main.rs` calls it.
//! - [`Runtime`]: the connection to NATS, the admin port, long-running tasks and clean shutdown.
//! - [`redis`]: the connection to Redis.
//! - [`bucket`]: follows the entries of a key-value bucket. [`rules`]: the applied rule sets.
//! - [`instance`]: finds and ends the processes of game servers on this machine.
//! - [`lag`]: reports whether a reader of the log keeps up.
//! - `log_watch`: reports whether the log stores events.
//! - [`lease`]: elects one of several instances for a job.
//! - [`metrics`]: declares what a worker measures.
//! - [`operator`]: signs the JWTs of NATS operator mode, and creates a NATS user for each game server.
//! - [`seal`]: encrypts a game server's secrets on their way from the session worker to the director.
//! - [`service`]: answers requests. [`turns`]: one request of a player at a time.
//! - [`reactor`]: reacts to messages of the log, each at least once.

mod admin;
pub mod bucket;
pub mod config;
pub mod instance;
pub mod lag;
pub mod lease;
mod log_watch;
pub mod metrics;
pub mod operator;
mod process;
pub mod reactor;
pub mod redis;
pub mod rules;
mod runtime;
pub mod seal;
pub mod service;
pub mod turns;

pub use admin::{Health, Pages};
pub use process::{command, init_tracing, main, shutdown_signal};
pub use runtime::{Runtime, Stopped, keep_trying};
pub use tokio_util::sync::CancellationToken as Shutdown;

/// The allocator of all workers. With the system's allocator, a quarter of a busy matchmaker's time is allocation, and
/// it makes a fifth fewer matches per second (`garage bench matching`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
