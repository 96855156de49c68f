//! One mariadbd for the test binary, and a database of its own for each test.

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
use sqlx::{AssertSqlSafe, Connection, FromRow, MySqlConnection, MySqlPool, mysql::MySqlConnectOptions};
use uuid::Uuid;

/// The password of each database's user, who has the database's name.
pub(crate) const PASSWORD: &str = "secret-of-the-tests";

pub(crate) struct Server {
    socket: PathBuf,
    pub(crate) port: u16,
    /// The shell around the server. It ends the server when its standard input closes, which the operating system
    /// does whichever way this process ends.
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
            // The data need not outlive the machine.
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

/// A server makes its socket when it is ready.
fn wait_for(socket: &Path, log: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "mariadbd does not start: {:?}", std::fs::read_to_string(log));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A new, empty database: its name and how root reaches it.
pub(crate) async fn empty_database() -> (String, MySqlConnectOptions) {
    // The first call blocks for some seconds; every test needs the server before it can do anything.
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

/// Does something that only root may.
pub(crate) async fn as_root(statement: String) {
    let mut connection = MySqlConnection::connect_with(&server().root()).await.unwrap();
    sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
}

/// A pool on a new database with nothing in it.
pub(crate) async fn empty() -> MySqlPool {
    mysql::pool(empty_database().await.1, 16, Duration::from_secs(10))
}

/// A pool on a new database that `garage init` has been at.
pub(crate) async fn pool() -> MySqlPool {
    let pool = empty().await;
    mysql::migrate(&pool).await.unwrap();
    pool
}

pub(crate) fn player(name: &str) -> PlayerId {
    PlayerId::from_foreign(name).unwrap()
}

/// A number that a statement tells.
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

#[derive(FromRow)]
struct Stored {
    event: Vec<u8>,
    player: String,
    correlation: Vec<u8>,
    event_type: String,
    version: u32,
    data: String,
}

/// All that waits to be published, in order.
pub(crate) async fn outbox(pool: &MySqlPool) -> Vec<Waiting> {
    let all = "SELECT event, player, correlation, event_type, version, data FROM outbox ORDER BY id";
    let rows: Vec<Stored> = sqlx::query_as(all).fetch_all(pool).await.unwrap();
    let read = rows.iter().map(|row| Waiting {
        id: Uuid::from_slice(&row.event).unwrap(),
        player: row.player.parse().unwrap(),
        correlation: Uuid::from_slice(&row.correlation).unwrap(),
        event: Event::decode(&row.event_type, row.version, &row.data).unwrap(),
    });
    read.collect()
}

/// Waits until something is so, which it must be within 20 s.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether every wallet holds the sum of its ledger, and what its last entry says.
pub(crate) async fn assert_ledger_balances(pool: &MySqlPool) {
    let wrong = "SELECT COUNT(*) FROM wallets w WHERE w.balance <>
            (SELECT COALESCE(SUM(l.amount), 0) FROM ledger l WHERE l.player = w.player)
         OR w.balance <> (SELECT l.balance FROM ledger l WHERE l.player = w.player ORDER BY l.id DESC LIMIT 1)";
    assert_eq!(count(pool, wrong).await, 0, "wallets that are not the sum of their ledger");
    let more =
        "SELECT COUNT(*) FROM (SELECT player, item, COUNT(*) AS mounted FROM mounted_items GROUP BY player, item) m
         JOIN owned_items o ON o.player = m.player AND o.item = m.item WHERE m.mounted > o.quantity";
    assert_eq!(count(pool, more).await, 0, "items mounted more often than owned");
}

/// Runs as many at once as asked, each in a task of its own, and fails with the first that fails.
pub(crate) async fn at_once<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    times: usize,
    task: impl Fn(usize) -> F,
) -> Vec<T> {
    let tasks = (0..times).map(|number| tokio::spawn(task(number)));
    join_all(tasks).await.into_iter().collect::<Result<_, _>>().unwrap()
}
