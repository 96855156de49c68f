//! The server that all tests share, and a database for each test.
//!
//! By default this is a server of its own: MariaDB, or the product that `GARAGE_LOCAL_DATABASE` names. With
//! `GARAGE_TEST_MYSQL_URL`, it is that server. The URL's user creates the databases and drops them at the end of each
//! test.

use std::{
    cell::RefCell,
    env,
    net::{SocketAddr, ToSocketAddrs},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures::future::join_all;
use garage_events::{event::Event as _, id::PlayerId, inventory::Event};
use garage_inventory::mysql;
use garage_stack::servers::Database;
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, MySqlPool, mysql::MySqlConnectOptions};
use tokio::runtime;
use uuid::Uuid;

/// The password of each database's user. The user has the same name as the database.
pub(crate) const PASSWORD: &str = "secret-of-the-tests";

/// Durability is not needed; the tests run faster without it. All tests together use many connections.
const OPTIONS: [&str; 2] = ["--innodb-flush-log-at-trx-commit=0", "--max-connections=2000"];

pub(crate) struct Server {
    /// How to connect as a user with all rights.
    admin: MySqlConnectOptions,
    pub(crate) address: SocketAddr,
    /// `None` if the server is not ours.
    _own: Option<Own>,
}

/// A server that the tests have started. It ends with this process.
struct Own {
    _database: Database,
    /// A shell that removes the server's folder when the shell's standard input closes. The operating system closes it
    /// when this process ends, for whatever reason.
    _remover: Child,
}

static SERVER: OnceLock<Server> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// The server; the first test starts it.
pub(crate) fn server() -> &'static Server {
    SERVER.get_or_init(|| match env::var("GARAGE_TEST_MYSQL_URL") {
        Ok(url) if !url.is_empty() => Server::at(&url, None),
        _ => Server::start(),
    })
}

impl Server {
    fn at(url: &str, own: Option<Own>) -> Self {
        let admin: MySqlConnectOptions = url.parse().expect("GARAGE_TEST_MYSQL_URL is mysql://user:password@host:port");
        let address = (admin.get_host(), admin.get_port()).to_socket_addrs().unwrap().next().unwrap();
        Self { admin, address, _own: own }
    }

    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("garage-database-").tempdir().unwrap().keep();
        let remover = Command::new("sh")
            .args(["-c", r#"trap "" INT TERM; cat; until rm -rf "$0"; do sleep 1; done"#])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let database = elsewhere(move || async move { Database::start_with(&folder, &OPTIONS).await.unwrap() });
        let url = database.admin_url();
        Self::at(&url, Some(Own { _database: database, _remover: remover }))
    }
}

/// Runs a future on another thread, and waits for it. The caller's thread may run another future, or be about to end.
fn elsewhere<T: Send + 'static, F: Future<Output = T>>(future: impl FnOnce() -> F + Send + 'static) -> T {
    let run = || runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future());
    thread::spawn(run).join().unwrap()
}

/// The databases that the test on this thread has created. They are dropped when the thread ends.
#[derive(Default)]
struct Created(RefCell<Vec<String>>);

thread_local!(static CREATED: Created = Created::default());

impl Drop for Created {
    fn drop(&mut self) {
        let names = self.0.take();
        elsewhere(move || async move {
            for name in names {
                as_root(format!("DROP DATABASE {name}")).await;
                as_root(format!("DROP USER '{name}'@'%'")).await;
            }
        });
    }
}

/// Creates an empty database. Returns its name, and options to connect to it with all rights.
pub(crate) async fn empty_database() -> (String, MySqlConnectOptions) {
    // The first call blocks for some seconds. That is fine, since no test can do anything before.
    let server = server();
    let name = format!("garage_test_{}_{}", std::process::id(), DATABASES.fetch_add(1, Ordering::Relaxed));
    for statement in [
        format!("CREATE DATABASE {name}"),
        format!("CREATE USER '{name}'@'%' IDENTIFIED BY '{PASSWORD}'"),
        format!("GRANT ALL ON {name}.* TO '{name}'@'%'"),
    ] {
        as_root(statement).await;
    }
    if server._own.is_none() {
        CREATED.with(|created| created.0.borrow_mut().push(name.clone()));
    }
    let options = server.admin.clone().database(&name);
    (name, options)
}

/// Executes a statement with all rights.
pub(crate) async fn as_root(statement: String) {
    let mut connection = MySqlConnection::connect_with(&server().admin).await.unwrap();
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
}

/// Ends all connections of a database's user. MariaDB alone has a statement for this.
pub(crate) async fn disconnect(user: &str) {
    let mut connection = MySqlConnection::connect_with(&server().admin).await.unwrap();
    let connections: Vec<u64> =
        sqlx::query_scalar("SELECT CAST(id AS UNSIGNED) FROM information_schema.processlist WHERE user = ?")
            .bind(user)
            .fetch_all(&mut connection)
            .await
            .unwrap();
    for id in connections {
        // It may have ended meanwhile.
        let _ = sqlx::query(AssertSqlSafe(format!("KILL {id}"))).execute(&mut connection).await;
    }
}

/// A pool on a new, empty database.
pub(crate) async fn empty() -> MySqlPool {
    mysql::pool(empty_database().await.1, 16, Duration::from_secs(10))
}

/// A pool on a new database with the current schema, as after `garage init`.
pub(crate) async fn pool() -> MySqlPool {
    let pool = empty().await;
    mysql::migrate(&pool).await.unwrap();
    pool
}

pub(crate) fn player(name: &str) -> PlayerId {
    PlayerId::from_foreign(name).unwrap()
}

/// Executes a query that returns one number.
pub(crate) async fn count(pool: &MySqlPool, statement: &'static str) -> i64 {
    sqlx::query_scalar(statement).fetch_one(pool).await.unwrap()
}

/// An event that waits to be published.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) id: Uuid,
    pub(crate) player: PlayerId,
    pub(crate) correlation: Uuid,
    pub(crate) event: Event,
}

/// All events in the outbox, in order.
pub(crate) async fn outbox(pool: &MySqlPool) -> Vec<Waiting> {
    let all = "SELECT event, player, correlation, event_type, version, data FROM outbox ORDER BY id";
    type Row = (Vec<u8>, String, Vec<u8>, String, u32, String);
    let rows: Vec<Row> = sqlx::query_as(all).fetch_all(pool).await.unwrap();
    let read = rows.iter().map(|(event, player, correlation, event_type, version, data)| Waiting {
        id: Uuid::from_slice(event).unwrap(),
        player: player.parse().unwrap(),
        correlation: Uuid::from_slice(correlation).unwrap(),
        event: Event::decode(event_type, *version, data).unwrap(),
    });
    read.collect()
}

/// Waits until the condition is true. Fails after two minutes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition().await {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asserts that every wallet's balance is the sum of its ledger and the balance of its last entry, and that no item is
/// mounted more often than it is owned.
pub(crate) async fn assert_ledger_balances(pool: &MySqlPool) {
    let wrong = "SELECT COUNT(*) FROM wallets w WHERE w.balance <>
            (SELECT COALESCE(SUM(l.amount), 0) FROM ledger l WHERE l.player = w.player)
         OR w.balance <> (SELECT l.balance FROM ledger l WHERE l.player = w.player ORDER BY l.id DESC LIMIT 1)";
    assert_eq!(count(pool, wrong).await, 0, "wallets whose balance differs from their ledger");
    let more =
        "SELECT COUNT(*) FROM (SELECT player, item, COUNT(*) AS mounted FROM mounted_items GROUP BY player, item) m
         JOIN owned_items o ON o.player = m.player AND o.item = m.item WHERE m.mounted > o.quantity";
    assert_eq!(count(pool, more).await, 0, "items mounted more often than owned");
}

/// Runs `times` concurrent tasks and returns their results. Fails if a task panics.
pub(crate) async fn at_once<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    times: usize,
    task: impl Fn(usize) -> F,
) -> Vec<T> {
    let tasks = (0..times).map(|number| tokio::spawn(task(number)));
    join_all(tasks).await.into_iter().collect::<Result<_, _>>().unwrap()
}
