//! Runs a local Garage: NATS, Redis, MariaDB and the workers on free ports, and bots that play on it.
//!
//! All servers are real. Each one has its own folder under a root that the caller chooses, and listens on loopback. A
//! server lives as long as its value in this library: dropping the value stops the server. It also stops when this
//! process ends, even if the process is killed.

pub mod abuser;
pub mod bot;
mod error;
pub mod hostile;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod secret;
pub mod servers;
pub mod small_disk;
mod spawner;
pub mod supervisor;
pub mod workers;

pub use error::{Error, Result};
