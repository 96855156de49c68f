//! A local Garage: NATS, Redis, MariaDB and the workers on free ports, and bots to play on it.
//!
//! Each server is a real one in a folder of its own under a root that the caller gives, bound to loopback. It lives as
//! long as its value here: dropping it ends it, and so does the end of this process, however that comes.

pub mod bot;
mod error;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod secret;
pub mod servers;
mod spawner;
pub mod workers;

pub use error::{Error, Result};
