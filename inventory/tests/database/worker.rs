//! Tests the whole worker through NATS, as other workers use it.

use std::path::Path;

use async_nats::Client;
use clap::Parser;
use futures::future::join_all;
use garage_events::{
    env::System,
    game::Placing,
    id::{PlayerId, SessionId},
    jetstream::JetStreamLog,
    log::{Append, Decision, Head},
    player::Ending,
    session::{self, Closed},
    subject::Aggregate,
    svc::{self, CallError, Command, Execute, GetGarage, GetLedger, GetProfile, Loadouts, StoreCars, StoreItems},
};
use garage_inventory::{Config, domain::STARTER_CAR, mysql, run};
use garage_worker::Shutdown;
use sqlx::MySqlPool;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use uuid::Uuid;

use crate::{
    nats::{Nats, free_port, history},
    support::{PASSWORD, as_root, count, disconnect, empty_database, player, server, until},
};

struct Worker {
    task: JoinHandle<anyhow::Result<()>>,
    shutdown: Shutdown,
    admin: u16,
}

impl Worker {
    fn start(nats: &Nats, database: &str, password_file: &Path) -> Self {
        let admin = free_port();
        let config = Config::parse_from([
            "garage-inventory",
            "--nats-url",
            &nats.url,
            "--admin",
            &format!("127.0.0.1:{admin}"),
            "--mysql-url",
            &format!("mysql://{database}@{}/{database}", server().address),
            "--mysql-password-file",
            &password_file.display().to_string(),
            "--mysql-pool-size",
            "4",
            "--mysql-match-pool-size",
            "4",
            "--mysql-acquire-timeout-ms",
            "1000",
        ]);
        assert!(!format!("{config:?}").contains(PASSWORD));
        let shutdown = Shutdown::new();
        Self { task: tokio::spawn(run(config, shutdown.clone())), shutdown, admin }
    }

    /// The HTTP response of /readyz. Empty if the worker does not listen yet.
    async fn readyz(&self) -> String {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.admin)).await else { return String::new() };
        let mut answer = String::new();
        let _ = stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    async fn is_ready(&self) -> bool {
        assert!(!self.task.is_finished(), "the worker ended");
        let answer = self.readyz().await;
        answer.contains("200 OK") && answer.contains("mysql: ok")
    }
}

fn password_file(folder: &tempfile::TempDir) -> std::path::PathBuf {
    let file = folder.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    file
}

async fn garage(client: &Client, player: &PlayerId) -> Result<svc::Garage, CallError> {
    svc::call(client, &GetGarage { player: player.clone() }).await
}

/// Appends the end of a session.
async fn close(log: &JetStreamLog, winner: &PlayerId, loser: &PlayerId) {
    let session = SessionId::new(Uuid::from_u128(7));
    let place = |player: &PlayerId, place, time_ms| Placing { player: player.clone(), place, time_ms, joined: true };
    let closed = Closed {
        why: Ending::Finished,
        results: vec![place(winner, 1, Some(9_000)), place(loser, 2, None)],
        teams: Vec::new(),
    };
    let decision = Decision::new(&System, session.uuid(), None).change(
        &System,
        Aggregate::Session(session),
        Head::default(),
        [session::Event::from(closed)],
    );
    log.append(decision).await.unwrap();
}

fn code<T: std::fmt::Debug>(answer: Result<T, CallError>) -> u16 {
    match answer {
        Err(CallError::Refused { code, .. }) => code,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_answers_requests_pays_rewards_and_publishes_events() {
    let nats = Nats::start().await;
    let (database, options) = empty_database().await;
    mysql::migrate(&mysql::pool(options, 4, std::time::Duration::from_secs(5))).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let worker = Worker::start(&nats, &database, &password_file(&folder));
    until("the worker is ready", || worker.is_ready()).await;
    let client = nats.client().await;
    let (anna, bert) = (player("anna"), player("bert"));
    until("the worker answers requests", async || garage(&client, &anna).await.is_ok()).await;

    assert_eq!(svc::call(&client, &StoreCars {}).await.unwrap().len(), 8);
    let loadouts = svc::call(&client, &Loadouts { players: vec![bert.clone(), anna.clone()] }).await.unwrap();
    assert!(loadouts.iter().map(|loadout| &loadout.player).eq([&bert, &anna]));
    assert_eq!(code(svc::call(&client, &Loadouts { players: vec![anna.clone(); 201] }).await), 400);
    let car = garage(&client, &anna).await.unwrap().active_car;
    let execute = async |command, key: Option<&str>| {
        let key = key.map(|key| key.parse().unwrap());
        svc::call(&client, &Execute { player: anna.clone(), key, command }).await
    };
    let same = execute(Command::Activate { car }, None).await.unwrap();
    assert_eq!(same, garage(&client, &anna).await.unwrap());
    assert_eq!(code(execute(Command::Activate { car: "vixen".parse().unwrap() }, None).await), 404);
    assert_eq!(code(execute(Command::BuyCar { car: "vixen".parse().unwrap() }, None).await), 409);
    assert_eq!(svc::call(&client, &StoreItems {}).await.unwrap().len(), 20);
    let tyres = Command::BuyItem { item: "tyres-sport".parse().unwrap() };
    assert_eq!(execute(tyres.clone(), Some("k")).await.unwrap().balance, 650);
    assert_eq!(execute(tyres, Some("k")).await.unwrap().balance, 650);
    assert_eq!(code(execute(Command::BuyItem { item: "paint-red".parse().unwrap() }, Some("k")).await), 422);
    let ledger = async |limit| svc::call(&client, &GetLedger { player: anna.clone(), before: None, limit }).await;
    assert_eq!(ledger(100).await.unwrap().len(), 2);
    assert_eq!((code(ledger(0).await), code(ledger(101).await)), (400, 400));

    let log = nats.log().await;
    close(&log, &bert, &anna).await;
    until("bert is paid", async || garage(&client, &bert).await.unwrap().balance == 1_100).await;
    until("the events are published", async || history(&log, &bert).await.len() == 2).await;
    let rank = async |player: &PlayerId| svc::call(&client, &GetProfile { player: player.clone() }).await.unwrap().rank;
    assert!(rank(&bert).await > 1_500 && rank(&anna).await < 1_500 && rank(&player("carl")).await == 1_500);
    assert_eq!(garage(&client, &anna).await.unwrap().balance, 660);

    worker.shutdown.cancel();
    worker.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_is_not_ready_while_the_database_is_unavailable_and_recovers() {
    let nats = Nats::start().await;
    let (database, options) = empty_database().await;
    mysql::migrate(&mysql::pool(options, 4, std::time::Duration::from_secs(5))).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let worker = Worker::start(&nats, &database, &password_file(&folder));
    until("the worker is ready", || worker.is_ready()).await;
    let client = nats.client().await;
    let anna = player("anna");
    until("the worker answers requests", async || garage(&client, &anna).await.is_ok()).await;

    as_root(format!("ALTER USER '{database}'@'%' IDENTIFIED BY 'another'")).await;
    disconnect(&database).await;
    until("the worker is not ready", async || worker.readyz().await.contains("503")).await;
    assert_eq!(code(garage(&client, &anna).await), 503);

    as_root(format!("ALTER USER '{database}'@'%' IDENTIFIED BY '{PASSWORD}'")).await;
    until("the worker is ready again", || worker.is_ready()).await;
    assert_eq!(garage(&client, &anna).await.unwrap().balance, 1_000);

    worker.shutdown.cancel();
    worker.task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_refuses_a_database_without_the_schema() {
    let nats = Nats::start().await;
    let (database, _) = empty_database().await;
    let folder = tempfile::tempdir().unwrap();
    let worker = Worker::start(&nats, &database, &password_file(&folder));
    let error = worker.task.await.unwrap().unwrap_err();
    assert!(format!("{error:#}").contains("garage init"), "{error:#}");
    assert!(!format!("{error:#}").contains(PASSWORD));
}

/// A worker with its database, for the tests that block its commands.
struct Blocked {
    worker: Worker,
    client: Client,
    nats: Nats,
    database: String,
    pool: MySqlPool,
    _folder: tempfile::TempDir,
}

impl Blocked {
    async fn start() -> Self {
        let nats = Nats::start().await;
        let (database, options) = empty_database().await;
        let pool = mysql::pool(options, 4, std::time::Duration::from_secs(5));
        mysql::migrate(&pool).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let worker = Worker::start(&nats, &database, &password_file(&folder));
        until("the worker is ready", || worker.is_ready()).await;
        let client = nats.client().await;
        until("the worker answers requests", async || garage(&client, &player("anna")).await.is_ok()).await;
        Self { worker, client, nats, database, pool, _folder: folder }
    }

    /// Locks the wallets of these players, as a command does. The lock lasts as long as the transaction.
    async fn lock(&self, players: &[PlayerId]) -> sqlx::Transaction<'static, sqlx::MySql> {
        let mut transaction = self.pool.begin().await.unwrap();
        for player in players {
            garage(&self.client, player).await.unwrap();
            let lock = sqlx::query("SELECT balance FROM wallets WHERE player = ? FOR UPDATE").bind(player.as_str());
            lock.fetch_one(&mut *transaction).await.unwrap();
        }
        transaction
    }

    /// How many connections of the worker wait for a wallet that another transaction has locked.
    async fn waiting(&self) -> i64 {
        sqlx::query_scalar(
            "SELECT COUNT(*) FROM information_schema.processlist
             WHERE user = ? AND info LIKE 'SELECT player, balance FROM wallets%FOR UPDATE'",
        )
        .bind(&self.database)
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }

    async fn stop(self) {
        self.worker.shutdown.cancel();
        self.worker.task.await.unwrap().unwrap();
    }
}

/// Makes the active car active again, which every player may do.
fn activate(client: &Client, player: &PlayerId) -> impl Future<Output = Result<svc::Garage, CallError>> + Send + use<> {
    let (client, player) = (client.clone(), player.clone());
    async move {
        svc::call(
            &client,
            &Execute { player, key: None, command: Command::Activate { car: STARTER_CAR.parse().unwrap() } },
        )
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_players_commands_holds_one_connection_and_delays_nobody_else() {
    let fixture = Blocked::start().await;
    let (anna, bert) = (player("anna"), player("bert"));
    garage(&fixture.client, &bert).await.unwrap();
    let lock = fixture.lock(std::slice::from_ref(&anna)).await;
    // One runs, 32 wait, and the others are refused.
    let flood: Vec<_> = (0..100).map(|_| tokio::spawn(activate(&fixture.client, &anna))).collect();
    until("a command of the flood waits for the wallet", async || fixture.waiting().await > 0).await;
    // More commands than the pool has connections.
    for _ in 0..8 {
        activate(&fixture.client, &bert).await.unwrap();
        assert!(fixture.waiting().await <= 1, "the flood holds more than one connection");
    }
    lock.rollback().await.unwrap();
    let answers = join_all(flood).await;
    let codes = answers.into_iter().map(|answer| answer.unwrap().map_or_else(|error| code::<()>(Err(error)), |_| 200));
    let codes: Vec<_> = codes.collect();
    assert!(codes.iter().filter(|code| **code == 503).count() >= 67, "{codes:?}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_use_up_their_connections_delay_neither_loadouts_nor_rewards() {
    let fixture = Blocked::start().await;
    // More players than the pool has connections.
    let busy: Vec<_> = (0..12).map(|number| player(&format!("busy-{number}"))).collect();
    let (anna, bert) = (player("anna"), player("bert"));
    garage(&fixture.client, &bert).await.unwrap();
    let lock = fixture.lock(&busy).await;
    let commands: Vec<_> = busy.iter().map(|player| tokio::spawn(activate(&fixture.client, player))).collect();
    until("the commands hold all connections", async || fixture.waiting().await == 4).await;

    let log = fixture.nats.log().await;
    close(&log, &bert, &anna).await;
    let loadouts = svc::call(&fixture.client, &Loadouts { players: vec![bert.clone(), busy[0].clone()] }).await;
    assert_eq!(loadouts.unwrap().len(), 2);
    let paid = "SELECT COUNT(*) FROM ledger WHERE player = 'bert' AND reason = 'reward'";
    until("bert is paid", async || count(&fixture.pool, paid).await == 1).await;
    until("the event is published", async || !history(&log, &bert).await.is_empty()).await;
    lock.rollback().await.unwrap();
    for command in commands {
        // Some were refused, because no connection was free.
        let _ = command.await.unwrap();
    }
    fixture.stop().await;
}
