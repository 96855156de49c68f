//! The database: its pool, its schema, and how its transactions begin.
//!
//! The one order of locks: a transaction that changes what players own first takes their wallets' rows, in the order of
//! their ids (`lock`), and reads only then, so that its snapshot is as young as its lock.

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
pub mod size;

use std::{collections::BTreeMap, fmt::Display, sync::LazyLock, time::Duration};

use garage_events::{
    crash::{self, Point},
    id::PlayerId,
};
use sqlx::{
    Executor, MySql, MySqlConnection, MySqlPool, QueryBuilder, Transaction,
    migrate::{MigrateError, Migrator},
    mysql::{MySqlConnectOptions, MySqlPoolOptions},
};

use crate::error::{self, Error};

static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    // sqlx asks for its lock with a time-out of -1, which MariaDB does not wait on: two migrated at once, and one of
    // them failed. `migrate` takes its own lock.
    migrator.set_locking(false);
    migrator
});

/// How long `garage init` waits for another one to finish.
const MIGRATION_WAIT_S: i64 = 60;

/// How often a transaction is begun anew when it met another one. The waits between add up to a third of a second,
/// well within the five seconds that a caller waits.
const RETRIES: u32 = 10;

/// ER_NO_SUCH_TABLE.
const NO_SUCH_TABLE: u16 = 1146;

/// Makes a pool. It connects when it is first used: a worker starts, and says that it is not ready, without a database.
///
/// At most `size` connections, and `acquire_timeout` for one of them to be free.
pub fn pool(options: MySqlConnectOptions, size: u32, acquire_timeout: Duration) -> MySqlPool {
    MySqlPoolOptions::new()
        .max_connections(size)
        .acquire_timeout(acquire_timeout)
        // Below wait_timeout, so that the pool lets go of a connection before the server does.
        .idle_timeout(Duration::from_secs(30))
        .after_connect(|connection, _| {
            Box::pin(async move {
                // The level that `lock` counts on, whatever the server's default.
                connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
                // 50 s is the default, ten times what a caller waits. wait_timeout frees the locks of an instance
                // that vanished from the network; the default is 8 h.
                connection.execute("SET SESSION innodb_lock_wait_timeout = 3, wait_timeout = 60").await?;
                Ok(())
            })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                // Who is dropped while he waits for the answer to BEGIN leaves a transaction behind that sqlx does not
                // know of: whoever has the connection next would read what was, and commit nothing.
                connection.execute("ROLLBACK").await?;
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}

/// Creates the schema and the catalogue, or brings them up to this build's version. Idempotent, and safe when two do
/// it at once.
///
/// # Errors
/// When the server does not answer, or the database is at a version that this build does not know.
pub async fn migrate(pool: &MySqlPool) -> Result<(), SchemaError> {
    let mut connection = pool.acquire().await.map_err(Error::from)?;
    // Ended with the connection, whatever happens, so that the lock goes with it.
    connection.close_on_drop();
    let locked: Option<i64> = sqlx::query_scalar("SELECT GET_LOCK(CONCAT('garage-init-', MD5(DATABASE())), ?)")
        .bind(MIGRATION_WAIT_S)
        .fetch_one(&mut *connection)
        .await
        .map_err(Error::from)?;
    if locked != Some(1) {
        return Err(SchemaError::Busy);
    }
    // Not `run`: its future is Send on a pool only, and the lock is this connection's.
    MIGRATOR.run_direct(None, &mut *connection, false).await.map_err(|error| match error {
        MigrateError::Dirty(version) => SchemaError::Dirty { version },
        error => SchemaError::Migration(error),
    })
}

/// Why a worker cannot work on a database.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It lacks migrations of this build.
    #[error("the schema of the database is not current (migration {lacking} is missing); run `garage init`")]
    Outdated {
        /// The first one that it lacks.
        lacking: i64,
    },
    /// A migration broke off. MySQL cannot roll back statements that create tables.
    #[error(
        "migration {version} of the database broke off half-way; restore a backup, or drop the database, and run `garage init`"
    )]
    Dirty {
        /// Which.
        version: i64,
    },
    /// Another process migrates it, and does not finish.
    #[error("the schema of the database is being migrated by another process for {MIGRATION_WAIT_S} s already")]
    Busy,
    /// A migration failed.
    #[error("migrating the database: {0}")]
    Migration(#[source] MigrateError),
    /// It cannot be asked.
    #[error(transparent)]
    Database(#[from] Error),
}

/// Checks that the schema is at least at this build's version. A newer one is fine: migrations only add, so that the
/// instances of the version before work on while the new ones are rolled out.
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
            None => return Err(SchemaError::Outdated { lacking: migration.version }),
        }
    }
    Ok(())
}

/// Runs a transaction, and anew when it met another one: as the victim of a deadlock, waiting for a lock too long, or
/// inserting what the other one inserted first.
async fn retrying<T, F: Future<Output = Result<T, Error>>>(mut transaction: impl FnMut() -> F) -> Result<T, Error> {
    for attempt in 1..=RETRIES {
        match transaction().await {
            Err(error) if error.is_contention() => {
                tracing::debug!(attempt, %error, "transaction is begun anew");
                tokio::time::sleep(Duration::from_millis(6) * attempt).await;
            }
            outcome => return outcome,
        }
    }
    transaction().await
}

/// Makes a transaction's changes last.
async fn commit(point: Point, transaction: Transaction<'_, MySql>) -> Result<(), Error> {
    Ok(crash::effect(point, transaction.commit()).await?)
}

/// Takes the locks of players, and tells the balance of each that is known.
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

/// Appends `(?, ?, …)` with the players bound. The list must not be empty; SQL has no empty one.
fn push_list<'a>(query: &mut QueryBuilder<MySql>, players: impl IntoIterator<Item = &'a PlayerId>) {
    query.push("(");
    let mut list = query.separated(", ");
    for player in players {
        list.push_bind(player.as_str());
    }
    query.push(")");
}

/// Coins as Rust counts them.
fn unsigned(coins: i64) -> Result<u64, Error> {
    u64::try_from(coins).ok().ok_or_else(|| Error::Corrupt(format!("{coins} coins")))
}

/// Coins as the database counts them.
fn signed(coins: u64) -> Result<i64, Error> {
    i64::try_from(coins).ok().ok_or_else(|| beyond(coins))
}

fn beyond(number: impl Display) -> Error {
    Error::Corrupt(format!("{number} is beyond what a column takes"))
}
