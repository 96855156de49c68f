//! Starts one mariadbd for all tests, and creates a database for each test.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use garage_events::{event::Event as _, id::PlayerId, inventory::Event};
use garage_inventory::mysql;
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, MySqlPool, mysql::MySqlConnectOptions};
use uuid::Uuid;

/// The password of each database's user. The user has the same name as the database.
pub(crate) const PASSWORD: &str = "secret-of-the-tests";

pub(crate) struct Server {
    socket: PathBuf,
    pub(crate) port: u16,
    /// A shell that starts the server and kills it when the shell's standard input closes. The operating system closes
    /// it when this process ends, for whatever reason.
    _shell: Child,
}

static SERVER: OnceLock<Server> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// The server; the first test starts it.
pub(crate) fn server() -> &'static Server {
    SERVER.get_or_init(Server::start)
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("garage-mariadb-").tempdir().unwrap().keep();
        let data = folder.join("data");
        let socket = folder.join("socket");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let install = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal", "--skip-test-db"])
            .arg(format!("--datadir={}", data.display()))
            .output()
            .unwrap_or_else(|error| missing(&error));
        assert!(install.status.success(), "mariadb-install-db: {install:?}");
        let shell = Command::new("sh")
            .args(["-c", r#"trap "" INT TERM; mariadbd "$@" 2>"$0/log" & cat; kill -9 $!; wait; rm -rf "$0""#])
            .arg(&folder)
            .args(["--no-defaults", "--user=root", "--bind-address=127.0.0.1", "--skip-networking=0"])
            // Durability is not needed; the tests run faster without it.
            .args(["--innodb-flush-log-at-trx-commit=0", "--max-connections=2000"])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--port={port}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_for(&socket, &folder.join("log"));
        Self { socket, port, _shell: shell }
    }

    fn root(&self) -> MySqlConnectOptions {
        MySqlConnectOptions::new().socket(&self.socket).username("root")
    }
}

fn missing(error: &std::io::Error) -> ! {
    match error.kind() {
        ErrorKind::NotFound => panic!("MariaDB's server is missing; install it with deploy/local/install.sh"),
        _ => panic!("mariadb-install-db: {error}"),
    }
}

/// Waits until the server has created its socket, which means that it is ready.
fn wait_for(socket: &Path, log: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "mariadbd does not start: {:?}", std::fs::read_to_string(log));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Creates an empty database. Returns its name, and options to connect as root.
pub(crate) async fn empty_database() -> (String, MySqlConnectOptions) {
    // The first call blocks for some seconds. That is fine, since no test can do anything before.
    let server = server();
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    for statement in [
        format!("CREATE DATABASE {name}"),
        format!("CREATE USER '{name}'@'%' IDENTIFIED BY '{PASSWORD}'"),
        format!("GRANT ALL ON {name}.* TO '{name}'@'%'"),
    ] {
        as_root(statement).await;
    }
    let options = server.root().database(&name);
    (name, options)
}

/// Executes a statement as root.
pub(crate) async fn as_root(statement: String) {
    let mut connection = MySqlConnection::connect_with(&server().root()).await.unwrap();
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
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
