//! The database: its connection pool, its schema, and the rules for transactions.
//!
//! Lock order: a transaction that changes what players own first locks their rows in `wallets`, ordered by player id
//! (see `lock`). Only then does it read, so that its snapshot is not older than its locks.

pub mod catalogue;
pub mod commands;
pub mod garage;
pub mod idempotency;
pub mod ledger;
pub mod ledger_audit;
pub mod outbox;
pub mod players;
pub mod ratings;
pub mod rewards;
mod row;
pub mod size;

use std::{collections::BTreeMap, fmt::Display, sync::LazyLock, time::Duration};

use garage_events::{
    crash::{self, Point},
    id::PlayerId,
};
use sqlx::{
    Executor, MySql, MySqlConnection, MySqlPool, QueryBuilder, SqlStr, Transaction,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
};

use crate::error::{self, Error};

/// The files in the folder `migrations`. A test checks that none is missing.
static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, name.into(), MigrationType::Simple, SqlStr::from_static(sql), false)
    };
    let mut migrator = Migrator::with_migrations(vec![
        migration(1, "schema", include_str!("../migrations/0001_schema.sql")),
        migration(2, "catalogue", include_str!("../migrations/0002_catalogue.sql")),
        migration(3, "store", include_str!("../migrations/0003_store.sql")),
        migration(4, "ratings", include_str!("../migrations/0004_ratings.sql")),
        migration(5, "outbox", include_str!("../migrations/0005_outbox.sql")),
    ]);
    // sqlx requests its lock with a time-out of -1. MariaDB does not wait in that case, so that one of two concurrent
    // migrations fails. `migrate` takes a lock of its own instead.
    migrator.set_locking(false);
    migrator
});

/// Takes the lock of this database. The name of a lock, like that of a database, has at most 64 characters, so it
/// contains a hash of the database's name. MySQL 9 has no MD5.
const LOCK: &str = "SELECT GET_LOCK(CONCAT('garage-init-', LEFT(SHA2(DATABASE(), 256), 40)), ?)";

/// How long `garage init` waits for a concurrent `garage init` to finish, in seconds.
const MIGRATION_WAIT_S: i64 = 60;

/// How often a transaction is retried after a conflict with another one. The pauses add up to a third of a second, far
/// less than the five seconds that a caller waits.
const RETRIES: u32 = 10;

/// ER_NO_SUCH_TABLE.
const NO_SUCH_TABLE: u16 = 1146;

/// Creates a connection pool. It connects on first use, so that a worker can start without a database and report not
/// ready.
///
/// `size` is the maximum number of connections; `acquire_timeout` is how long to wait for a free one.
pub fn pool(options: MySqlConnectOptions, size: u32, acquire_timeout: Duration) -> MySqlPool {
    MySqlPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(acquire_timeout)
        // Below wait_timeout, so that the pool closes an idle connection before the server does.
        .idle_timeout(Duration::from_secs(30))
        .after_connect(|connection, _| {
            Box::pin(async move {
                // `lock` relies on this level. The server's default may differ.
                connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
                // The default of innodb_lock_wait_timeout is 50 s, ten times what a caller waits. wait_timeout frees
                // the locks of an instance that has lost its network; its default is 8 h.
                connection.execute("SET SESSION innodb_lock_wait_timeout = 3, wait_timeout = 60").await?;
                Ok(())
            })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                // If a future is dropped while it waits for the answer to BEGIN, the server has an open transaction
                // that sqlx does not know about. The next user of the connection would read an old snapshot, and its
                // changes would never be committed.
                connection.execute("ROLLBACK").await?;
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}

/// Creates the schema and the default catalogue, or migrates the schema to this build's version. Idempotent. Several
/// processes may call it concurrently.
///
/// # Errors
/// When the server does not answer, or the database has a migration that this build does not know.
pub async fn migrate(pool: &MySqlPool) -> Result<(), SchemaError> {
    let mut connection = pool.acquire().await.map_err(Error::from)?;
    // Do not return the connection to the pool: the lock is released when the connection closes.
    connection.close_on_drop();
    let locked: Option<i64> =
        sqlx::query_scalar(LOCK).bind(MIGRATION_WAIT_S).fetch_one(&mut *connection).await.map_err(Error::from)?;
    if locked != Some(1) {
        return Err(SchemaError::Busy);
    }
    // `run_direct` instead of `run`: the lock belongs to this connection, and the future of `run` is Send only on a
    // pool.
    MIGRATOR.run_direct(None, &mut *connection, false).await.map_err(|error| match error {
        MigrateError::Dirty(version) => SchemaError::Dirty { version },
        error => SchemaError::Migration(error),
    })
}

/// Why this build cannot use the database.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The database lacks migrations of this build.
    #[error("the database schema is out of date (migration {missing} is missing); run `garage init`")]
    Outdated {
        /// Version of the first missing migration.
        missing: i64,
    },
    /// A migration was interrupted. MySQL cannot roll back statements that create tables.
    #[error(
        "database migration {version} was interrupted; restore a backup or drop the database, then run `garage init`"
    )]
    Dirty { version: i64 },
    /// Another process holds the migration lock.
    #[error("another process has been migrating the database for more than {MIGRATION_WAIT_S} s; try again later")]
    Busy,
    /// A migration failed.
    #[error("migrating the database: {0}")]
    Migration(#[source] MigrateError),
    /// A query failed.
    #[error(transparent)]
    Database(#[from] Error),
}

/// Checks that the database has all migrations of this build. It may have newer ones: migrations only add, so that
/// instances of the previous version keep working during a rolling upgrade.
///
/// # Errors
/// See [`SchemaError`].
pub async fn check_schema(pool: &MySqlPool) -> Result<(), SchemaError> {
    let rows: Result<Vec<(i64, bool)>, _> =
        sqlx::query_as("SELECT version, success FROM _sqlx_migrations").fetch_all(pool).await;
    let applied: BTreeMap<i64, bool> = match rows {
        Ok(rows) => rows.into_iter().collect(),
        Err(error) if error::number(&error) == Some(NO_SUCH_TABLE) => BTreeMap::new(),
        Err(error) => return Err(Error::from(error).into()),
    };
    for migration in MIGRATOR.iter() {
        match applied.get(&migration.version) {
            Some(true) => {}
            Some(false) => return Err(SchemaError::Dirty { version: migration.version }),
            None => return Err(SchemaError::Outdated { missing: migration.version }),
        }
    }
    Ok(())
}

/// Runs a transaction and retries it after a conflict with a concurrent one: a deadlock, a lock time-out, or a row that
/// the other transaction inserted first.
async fn retrying<T, F: Future<Output = Result<T, Error>>>(mut transaction: impl FnMut() -> F) -> Result<T, Error> {
    for attempt in 1..=RETRIES {
        match transaction().await {
            Err(error) if error.is_contention() => {
                tracing::debug!(attempt, %error, "retrying transaction after a conflict");
                tokio::time::sleep(Duration::from_millis(6) * attempt).await;
            }
            outcome => return outcome,
        }
    }
    transaction().await
}

/// Commits a transaction. Fault tests can kill the process before and after it, at the given crash point.
async fn commit(point: Point, transaction: Transaction<'_, MySql>) -> Result<(), Error> {
    Ok(crash::effect(point, transaction.commit()).await?)
}

/// Locks the players' wallets until the transaction ends. Returns the balance of each player that exists.
async fn lock<'a>(
    connection: &mut MySqlConnection,
    players: impl IntoIterator<Item = &'a PlayerId>,
) -> Result<BTreeMap<PlayerId, u64>, Error> {
    let mut query = QueryBuilder::new("SELECT player, balance FROM wallets WHERE player IN ");
    push_list(&mut query, players);
    query.push(" ORDER BY player FOR UPDATE");
    let rows: Vec<(String, i64)> = query.build_query_as().fetch_all(connection).await?;
    rows.into_iter().map(|(player, balance)| Ok((player.parse()?, unsigned(balance)?))).collect()
}

/// Appends `(?, ?, …)` and binds the players. `players` must not be empty: SQL has no empty list.
fn push_list<'a>(query: &mut QueryBuilder<MySql>, players: impl IntoIterator<Item = &'a PlayerId>) {
    query.push("(");
    let mut list = query.separated(", ");
    for player in players {
        list.push_bind(player.as_str());
    }
    query.push(")");
}

/// Converts a column value to coins.
fn unsigned(coins: i64) -> Result<u64, Error> {
    u64::try_from(coins).ok().ok_or_else(|| Error::Corrupt(format!("{coins} coins")))
}

/// Converts coins to a column value.
fn signed(coins: u64) -> Result<i64, Error> {
    i64::try_from(coins).ok().ok_or_else(|| out_of_range(coins))
}

fn out_of_range(value: impl Display) -> Error {
    Error::Corrupt(format!("{value} is out of range for its column"))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;

    #[test]
    fn every_migration_file_is_included_under_its_number_and_name() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let file = |path: &Path| {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let (number, name) = name.split_once('_').unwrap();
            (number.parse().unwrap(), (name.replace('_', " "), fs::read_to_string(path).unwrap()))
        };
        let files = fs::read_dir(folder).unwrap().map(|entry| file(&entry.unwrap().path()));
        let files: BTreeMap<i64, (String, String)> = files.collect();
        let included = MIGRATOR.iter().map(|migration| {
            (migration.version, (migration.description.to_string(), migration.sql.as_str().to_owned()))
        });
        assert_eq!(included.collect::<BTreeMap<_, _>>(), files);
    }
}
