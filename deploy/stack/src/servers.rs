//! The servers that Garage stands on, each a real one.

pub(crate) mod binary;
mod mariadb;
pub mod nats;
mod redis;

pub use mariadb::MariaDb;
pub use nats::{Nats, Role};
pub use redis::Redis;
