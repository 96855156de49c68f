//! The real servers that Garage depends on.

pub(crate) mod binary;
mod database;
pub mod nats;
mod redis;

pub use binary::openid_provider;
pub use database::Database;
pub use garage_nats::Role;
pub use nats::Nats;
pub use redis::Redis;
