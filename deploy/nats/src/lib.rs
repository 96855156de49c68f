//! NATS in operator mode, for a local stack and for a deployment: one account, a user with its rights for each worker,
//! and the key that signs a user for each game server.
//!
//! - [`Role`]: the users, and what each of them may publish and subscribe to.
//! - [`Operator`]: creates the keys, and writes the credentials and the servers' settings into a folder.
//! - [`private`]: files that only their owner can read.

mod operator;
pub mod private;
mod role;

use std::io;

pub use self::{operator::Operator, role::Role};

/// Why keys, credentials or settings could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or written, or a seed file is not valid.
    #[error("could not {action}")]
    Io {
        /// What was attempted, with the path.
        action: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A key could not be created, or could not sign.
    #[error("could not {action}: {reason}")]
    Key {
        /// What was attempted.
        action: &'static str,
        /// The reason, without any secret.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: names what was attempted.
    fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// For `map_err`: names what was attempted.
    fn key<E: std::fmt::Display>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |reason| Self::Key { action, reason: reason.to_string() }
    }
}
