//! The real servers that Garage depends on.

pub(crate) mod binary;
mod mariadb;
pub mod nats;
mod redis;

pub use garage_nats::Role;
pub use mariadb::MariaDb;
pub use nats::Nats;
pub use redis::Redis;
