//! Errors, grouped by what the caller must do.

use garage_events::id::Invalid;
use sqlx::mysql::MySqlDatabaseError;

use crate::domain::store::Rejection;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules do not allow the command in the current state.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The player has used the idempotency key for another command.
    #[error("the idempotency key has been used for another command")]
    KeyReused,
    /// The request asks for too few or too many entries.
    #[error("the request asks for {requested} entries; it must ask for 1 to {max}")]
    TooMany { requested: usize, max: usize },
    /// MySQL does not answer, or failed temporarily. A later retry may succeed.
    #[error("mysql is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// MySQL refused a statement. The cause is a bug in this build, or a wrong schema.
    #[error("mysql refused a statement: {0}")]
    Refused(#[source] sqlx::Error),
    /// The database contains a value that no version of Garage writes, or a value is too large for its column.
    #[error("mysql contains a value that is not valid: {0}")]
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
            sqlx::Error::Database(_) if number(&error).is_some_and(is_transient) => Self::Unavailable(error),
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
    /// Whether the transaction failed because of a concurrent one. If so, retrying the whole transaction may succeed.
    pub(crate) fn is_contention(&self) -> bool {
        match self {
            Self::Unavailable(error) | Self::Refused(error) => {
                number(error).is_some_and(|number| is_lock_conflict(number) || number == DUPLICATE)
            }
            Self::Rejected(_) | Self::KeyReused | Self::TooMany { .. } | Self::Corrupt(_) => false,
        }
    }
}

/// The MySQL error number, if the server reported the error.
pub(crate) fn number(error: &sqlx::Error) -> Option<u16> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

/// ER_DUP_ENTRY. A concurrent transaction has inserted the row; a retry finds it.
const DUPLICATE: u16 = 1062;

/// ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT, and ER_CHECKREAD (MariaDB ≥ 11.6 with innodb_snapshot_isolation).
fn is_lock_conflict(number: u16) -> bool {
    matches!(number, 1213 | 1205 | 1020)
}

/// Whether an error may go away without a change to Garage: lock conflicts; disk or table full; too many connections;
/// access denied while an operator changes the password; server shutdown; host blocked or out of quota; statement or
/// connection killed; server read-only during a failover.
fn is_transient(number: u16) -> bool {
    is_lock_conflict(number)
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
