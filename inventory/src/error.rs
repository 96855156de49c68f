//! What can go wrong, by what the caller must do.

use garage_events::id::Invalid;
use sqlx::mysql::MySqlDatabaseError;

use crate::domain::store::Rejection;

/// Why the inventory did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Asked for something that cannot be, as things are.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The idempotency key names another command of this player.
    #[error("the idempotency key has been used for another command")]
    KeyReused,
    /// Asked for more, or less, than one request may.
    #[error("{asked} asked for at once, it may be 1 to {most}")]
    TooMany {
        /// How many were asked for.
        asked: usize,
        /// How many may be.
        most: usize,
    },
    /// MySQL does not answer, or not this time; asking again later may help.
    #[error("mysql is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// MySQL refused a statement: a fault of this build, or of the schema.
    #[error("mysql refused a statement: {0}")]
    Refused(#[source] sqlx::Error),
    /// A row that no version of Garage writes.
    #[error("mysql holds what cannot be read: {0}")]
    Corrupt(String),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => Self::Unavailable(error),
            sqlx::Error::Database(_) if number(&error).is_some_and(passes) => Self::Unavailable(error),
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Self::Corrupt(error.to_string()),
            _ => Self::Refused(error),
        }
    }
}

impl From<Invalid> for Error {
    fn from(error: Invalid) -> Self {
        Self::Corrupt(error.to_string())
    }
}

impl Error {
    /// Whether the transaction met another one and would meet its outcome, or no one, when begun anew.
    pub(crate) fn is_contention(&self) -> bool {
        match self {
            Self::Unavailable(error) | Self::Refused(error) => {
                number(error).is_some_and(|number| contends(number) || number == DUPLICATE)
            }
            Self::Rejected(_) | Self::KeyReused | Self::TooMany { .. } | Self::Corrupt(_) => false,
        }
    }
}

/// The server's number of an error.
pub(crate) fn number(error: &sqlx::Error) -> Option<u16> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

/// ER_DUP_ENTRY: another transaction did it first; begun anew, ours finds it done.
const DUPLICATE: u16 = 1062;

/// ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT, and ER_CHECKREAD (MariaDB ≥ 11.6 with innodb_snapshot_isolation).
fn contends(number: u16) -> bool {
    matches!(number, 1213 | 1205 | 1020)
}

/// Errors of a server that may be well again later, by its own doing or its operator's: contention; disk or table
/// full; too many connections; access denied while a password is changed; shutting down; blocked or out of quota;
/// statement or connection killed; read-only during a failover.
fn passes(number: u16) -> bool {
    contends(number)
        || matches!(
            number,
            1021 | 1114
                | 1040
                | 1203
                | 1044
                | 1045
                | 1053
                | 1077
                | 1079
                | 1129
                | 1226
                | 1317
                | 1836
                | 1927
                | 1290
                | 3024
                | 1969
        )
}
