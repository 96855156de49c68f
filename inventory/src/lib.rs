//! Cars, items, wallets and rewards, kept in MySQL.
//!
//! - [`domain`]: what a place earns, what an item adds; pure.
//! - [`mysql`]: the database, the one store of truth beside the log, and for this worker alone.
//! - [`outbox`]: what the database decided, told to the log.
//! - [`error`]: what can go wrong, by what the caller must do.

pub mod domain;
pub mod error;
pub mod mysql;
pub mod outbox;

pub use error::Error;
pub use mysql::{migrate, rewards::pay};
