//! What can go wrong, by what the caller must do.

use garage_events::id::{CarId, Invalid, PlayerId};
use sqlx::mysql::MySqlDatabaseError;

/// Why the inventory did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Asked for something that cannot be; asking again is no use.
    #[error("{player} does not own the car {car}")]
    NotOwned {
        /// Who wanted it.
        player: PlayerId,
        /// What he does not own.
        car: CarId,
    },
    /// Asked for more players than one request may name.
    #[error("{asked} players asked for at once, the most is {most}")]
    TooMany {
        /// How many were named.
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
            Self::NotOwned { .. } | Self::TooMany { .. } | Self::Corrupt(_) => false,
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
