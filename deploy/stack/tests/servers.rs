//! Each real server starts, answers, restarts after a kill, and leaves no process behind.
#![cfg(test)]

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use async_nats::{
    Client, RequestErrorKind,
    jetstream::{self, stream},
};
use garage_events::{
    deadline::exit_blocking,
    projection::{SESSIONS, parked_key},
};
use garage_stack::{
    process::{DEADLINE, Launch},
    proxy::Proxy,
    servers::{Database, Nats, Redis, Role},
};
use sqlx::{Connection, MySqlConnection};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Repeats the probe until it returns a value, and fails after the deadline.
async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        // Limit each call, as the time-out of a client could be longer than the deadline.
        if let Ok(Some(found)) = tokio::time::timeout(Duration::from_secs(5), probe()).await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Processes whose command line contains the folder, and processes with one of the ids.
fn processes_of(root: &Path, pids: &[u32]) -> Vec<String> {
    let root = root.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // A zombie has an empty command line.
        if pids.contains(&pid) || line.contains(root) {
            found.push(format!("{pid} {line}"));
        }
    }
    found
}

async fn log_stream(client: &Client, replicas: usize) -> jetstream::Context {
    let context = jetstream::new(client.clone());
    let config = stream::Config {
        name: "GARAGE".into(),
        subjects: vec!["garage.>".into()],
        num_replicas: replicas,
        allow_atomic_publish: true,
        ..Default::default()
    };
    until("a stream", async || context.create_stream(config.clone()).await.ok()).await;
    context
}

async fn publish(context: &jetstream::Context, subject: &str) -> Option<u64> {
    let ack = context.publish(subject.to_owned(), "{}".into()).await.ok()?;
    Some(ack.await.ok()?.sequence)
}

#[tokio::test]
async fn nats_keeps_its_data_through_a_kill_and_leaves_no_process() {
    let root = tempfile::tempdir().unwrap();
    let mut nats = Nats::start(root.path(), 1).await.unwrap();
    let admin = nats.connect(Role::Admin).await.unwrap();
    let context = log_stream(&admin, 1).await;
    assert_eq!(publish(&context, "garage.player.a").await, Some(1));

    let node = nats.node(0).unwrap();
    let killed = node.process().pid().unwrap();
    node.kill();
    assert_eq!(node.process().pid(), None);
    node.restart().await.unwrap();
    let pid = node.process().pid().unwrap();
    assert_ne!(killed, pid);
    let sequence = until("a write after the restart", async || publish(&context, "garage.player.b").await).await;
    assert!(sequence >= 2, "the first write is gone: {sequence}");

    drop(nats);
    assert_eq!(processes_of(root.path(), &[killed, pid]), Vec::<String>::new());
}

#[tokio::test]
async fn a_paused_nats_answers_nothing_until_it_is_resumed() {
    let root = tempfile::tempdir().unwrap();
    let mut nats = Nats::start(root.path(), 1).await.unwrap();
    let client = nats.connect(Role::Admin).await.unwrap();
    // A running server reports at once that there is no responder.
    let ask = async || client.request("nobody", "".into()).await.unwrap_err().kind();
    let answered = async || (ask().await == RequestErrorKind::NoResponders).then_some(());
    // Repeat it, because a pause that returns too early does so only by a fraction of a millisecond.
    for _ in 0..20 {
        nats.node(0).unwrap().pause().unwrap();
        let early = tokio::time::timeout(Duration::from_millis(50), ask()).await;
        assert!(early.is_err(), "a paused server answered: {early:?}");
        nats.node(0).unwrap().resume().unwrap();
        until("an answer after the pause", answered).await;
    }
    // Dropping the value must also stop a paused server.
    nats.node(0).unwrap().pause().unwrap();
    drop(nats);
    assert_eq!(processes_of(root.path(), &[]), Vec::<String>::new());
}

#[tokio::test]
async fn a_stack_on_an_old_folder_keeps_data_and_keys() {
    let root = tempfile::tempdir().unwrap();
    let mut nats = Nats::start(root.path(), 1).await.unwrap();
    let former = nats.options(Role::Session).unwrap();
    let admin = nats.connect(Role::Admin).await.unwrap();
    publish(&log_stream(&admin, 1).await, "garage.player.a").await.unwrap();
    nats.stop().await;
    drop(nats);

    let nats = Nats::start(root.path(), 1).await.unwrap();
    former.connect(nats.url()).await.expect("the previous credentials are accepted");
    let admin = nats.connect(Role::Admin).await.unwrap();
    let mut stream = jetstream::new(admin).get_stream("GARAGE").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1);
}

#[tokio::test]
async fn each_role_has_the_rights_for_its_work() {
    let root = tempfile::tempdir().unwrap();
    let nats = Nats::start(root.path(), 1).await.unwrap();
    let admin = nats.connect(Role::Admin).await.unwrap();
    let context = log_stream(&admin, 1).await;
    let reports = stream::Config { name: "REPORTS".into(), subjects: vec!["report.>".into()], ..Default::default() };
    context.create_stream(reports).await.unwrap();
    let bucket = jetstream::kv::Config { bucket: "LEASES".into(), ..Default::default() };
    context.create_key_value(bucket).await.unwrap();

    // A worker appends, reads and consumes.
    let session = jetstream::new(nats.connect(Role::Session).await.unwrap());
    assert_eq!(publish(&session, "garage.session.s1.opened").await, Some(1));
    let log = session.get_stream("GARAGE").await.unwrap();
    let raw = log.get_raw_message(1).await.unwrap();
    assert_eq!(raw.subject.as_str(), "garage.session.s1.opened");
    let pull = jetstream::consumer::pull::Config { durable_name: Some("session".into()), ..Default::default() };
    let consumer = log.create_consumer(pull).await.unwrap();
    let mut messages = consumer.fetch().max_messages(1).messages().await.unwrap();
    let message = futures::StreamExt::next(&mut messages).await.unwrap().unwrap();
    message.double_ack().await.unwrap();
    // It cannot create a durable consumer under a subject that does not contain the consumer's name.
    let hidden =
        serde_json::json!({"stream_name": "GARAGE", "config": {"durable_name": "director", "ack_policy": "explicit"}});
    let answer: jetstream::response::Response<jetstream::consumer::Info> =
        session.request("CONSUMER.CREATE.GARAGE", &hidden).await.unwrap();
    assert!(matches!(answer, jetstream::response::Response::Err { .. }), "{answer:?}");
    // The matchmaker acquires a lease.
    let matchmaker = jetstream::new(nats.connect(Role::Matchmaker).await.unwrap());
    let leases = matchmaker.get_key_value("LEASES").await.unwrap();
    leases.create("matchmaker.ranked", "me".into()).await.unwrap();

    // A request from one worker is answered by another.
    let inventory = nats.connect(Role::Inventory).await.unwrap();
    let mut requests = inventory.queue_subscribe("svc.inventory.cars", "inventory".into()).await.unwrap();
    let answer = tokio::spawn(async move {
        let request = futures::StreamExt::next(&mut requests).await.unwrap();
        inventory.publish(request.reply.unwrap(), "[]".into()).await.unwrap();
        inventory.flush().await.unwrap();
    });
    let gateway = nats.connect(Role::Gateway).await.unwrap();
    // There is no responder until the server has processed the subscription of the other connection.
    let ask = async || gateway.request("svc.inventory.cars", "{}".into()).await.ok();
    let reply = until("a reply", ask).await;
    assert_eq!(reply.payload, "[]");
    answer.await.unwrap();
}

#[tokio::test]
async fn a_cluster_survives_the_cut_of_a_node_and_heals() {
    let root = tempfile::tempdir().unwrap();
    let mut nats = Nats::start_cuttable(root.path(), 3).await.unwrap();
    let leader = until("a meta leader", async || nats.meta_leader().await).await;
    let admin = nats.connect(Role::Admin).await.unwrap();
    log_stream(&admin, 3).await;

    // Cutting off the leader is the worst case.
    nats.cut_routes(leader).unwrap();
    let others: Vec<usize> = (0..3).filter(|node| *node != leader).collect();
    let cut = async |nats: &mut Nats| nats.node(leader).unwrap().peers().await == Some(0);
    until("no route to the cut node", async || cut(&mut nats).await.then_some(())).await;
    let chosen = until("another leader", async || nats.meta_leader().await.filter(|new| *new != leader)).await;
    assert!(others.contains(&chosen));

    // A client of the majority can write. A client of the isolated node gets no acknowledgement.
    let here = nats.node(others[0]).unwrap().url();
    let there = nats.node(leader).unwrap().url();
    let majority = jetstream::new(nats.options(Role::Admin).unwrap().connect(here).await.unwrap());
    let mut alone = jetstream::new(nats.options(Role::Admin).unwrap().connect(there).await.unwrap());
    alone.set_timeout(Duration::from_millis(500));
    until("a write without the node", async || publish(&majority, "garage.player.a").await).await;
    assert_eq!(publish(&alone, "garage.player.b").await, None);
    assert!(cut(&mut nats).await, "a route bypasses the cut");

    nats.mend_routes(leader).unwrap();
    nats.wait_healthy().await.unwrap();
    assert_eq!(nats.node(leader).unwrap().peers().await, Some(2));
    until("a write by the healed node", async || publish(&alone, "garage.player.b").await).await;

    // A killed node restarts with its data.
    let node = nats.node(leader).unwrap();
    node.kill();
    node.restart().await.unwrap();
    nats.wait_healthy().await.unwrap();
    let pids: Vec<u32> = (0..3).map(|index| nats.node(index).unwrap().process().pid().unwrap()).collect();
    drop(nats);
    assert_eq!(processes_of(root.path(), &pids), Vec::<String>::new());
}

#[tokio::test]
async fn the_gateways_redis_user_may_only_read_the_projections() {
    let root = tempfile::tempdir().unwrap();
    let redis = Redis::start(root.path()).await.unwrap();
    let password = std::fs::read_to_string(redis.reader_password_file()).unwrap();
    let url = redis.reader_url().replace('@', &format!(":{password}@"));
    let mut reader = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    let read: Vec<(String, String)> = redis::cmd("HGETALL").arg(SESSIONS).query_async(&mut reader).await.unwrap();
    assert!(read.is_empty());
    for refused in [&["HSET", SESSIONS, "a", "b"][..], &["GET", &parked_key("a")], &["FLUSHALL"], &["KEYS", "*"]] {
        let error = redis::cmd(refused[0]).arg(&refused[1..]).exec_async(&mut reader).await.unwrap_err();
        assert_eq!(error.code(), Some("NOPERM"), "{refused:?}: {error}");
    }
}

#[tokio::test]
async fn redis_restarts_empty_and_leaves_no_process() {
    let root = tempfile::tempdir().unwrap();
    let mut redis = Redis::start(root.path()).await.unwrap();
    let anonymous = redis::Client::open(redis.url()).unwrap();
    let mut anonymous = anonymous.get_multiplexed_async_connection().await.unwrap();
    let refused = redis::cmd("PING").query_async::<String>(&mut anonymous).await.unwrap_err();
    assert_eq!(refused.code(), Some("NOAUTH"));
    let client = redis::Client::open(redis.url_with_password()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let () = redis::cmd("SET").arg("k").arg("v").query_async(&mut connection).await.unwrap();

    let killed = redis.process().pid().unwrap();
    redis.restart_empty().await.unwrap();
    let pid = redis.process().pid().unwrap();
    assert_ne!(killed, pid);
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let value: Option<String> = redis::cmd("GET").arg("k").query_async(&mut connection).await.unwrap();
    assert_eq!(value, None);

    drop(redis);
    assert_eq!(processes_of(root.path(), &[killed, pid]), Vec::<String>::new());
}

#[tokio::test]
async fn the_database_keeps_its_data_through_a_kill_and_leaves_no_process() {
    let root = tempfile::tempdir().unwrap();
    let mut database = Database::start(root.path()).await.unwrap();
    let password = std::fs::read_to_string(database.password_file()).unwrap();
    let url = database.url().replace("garage@", &format!("garage:{password}@"));
    let mut garage = MySqlConnection::connect(&url).await.unwrap();
    sqlx::query("CREATE TABLE t (n INT PRIMARY KEY) ENGINE = InnoDB").execute(&mut garage).await.unwrap();
    sqlx::query("INSERT INTO t VALUES (7)").execute(&mut garage).await.unwrap();
    sqlx::query("CREATE DATABASE other").execute(&mut garage).await.unwrap_err();
    sqlx::query("SELECT * FROM mysql.user").execute(&mut garage).await.unwrap_err();
    let mut admin = MySqlConnection::connect(&database.admin_url()).await.unwrap();
    sqlx::query("CREATE DATABASE other").execute(&mut admin).await.unwrap();

    let killed = database.process().pid().unwrap();
    database.restart().await.unwrap();
    let pid = database.process().pid().unwrap();
    let mut garage = MySqlConnection::connect(&url).await.unwrap();
    let n: i32 = sqlx::query_scalar("SELECT n FROM t").fetch_one(&mut garage).await.unwrap();
    assert_eq!(n, 7);

    drop(database);
    assert_eq!(processes_of(root.path(), &[killed, pid]), Vec::<String>::new());
}

#[tokio::test]
async fn the_error_of_a_server_that_cannot_start_contains_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let log = root.path().join("log");
    let mut process = Launch::new("shell", "/bin/sh", log).args(["-c", "echo the reason; exit 3"]).spawn().unwrap();
    let error = process.wait_until("answer", async || false).await.unwrap_err().to_string();
    assert!(error.contains("the reason") && error.contains("exit status: 3"), "{error}");
}

#[tokio::test]
async fn a_proxy_cuts_mends_and_delays() {
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::start(echo.local_addr().unwrap()).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = echo.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = connection.split();
                tokio::io::copy(&mut from, &mut to).await
            });
        }
    });
    let turn = async |connection: &mut TcpStream| {
        let mut byte = [0];
        connection.write_all(b"x").await?;
        connection.read_exact(&mut byte).await
    };

    let mut live = TcpStream::connect(proxy.address()).await.unwrap();
    turn(&mut live).await.unwrap();
    proxy.cut();
    turn(&mut live).await.unwrap_err();
    let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
    turn(&mut refused).await.unwrap_err();
    proxy.mend();
    let mut mended = TcpStream::connect(proxy.address()).await.unwrap();
    turn(&mut mended).await.unwrap();

    proxy.delay(Duration::from_millis(50));
    let start = Instant::now();
    turn(&mut mended).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(100), "{:?}", start.elapsed());
}

/// The test runs itself in another process. That process starts a server, and is killed before it can stop the server.
#[tokio::test]
async fn no_server_survives_the_kill_of_its_owner() {
    const ROOT: &str = "GARAGE_STACK_TEST_ORPHAN";
    if let Some(root) = std::env::var_os(ROOT) {
        // Start the server from a thread that ends at once. The server must survive the thread.
        let start = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Redis::start(Path::new(&root))).map(|redis| (redis, root))
        };
        let (mut redis, root) = std::thread::spawn(start).join().unwrap().unwrap();
        let pid = redis.process().pid().unwrap();
        redis.pause().unwrap();
        redis.resume().unwrap();
        std::fs::write(Path::new(&root).join("pid"), pid.to_string()).unwrap();
        std::future::pending::<()>().await;
    }
    let root = tempfile::tempdir().unwrap();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "no_server_survives_the_kill_of_its_owner"])
        .env(ROOT, root.path())
        .spawn()
        .unwrap();
    let read = async || std::fs::read_to_string(root.path().join("pid")).ok()?.parse::<u32>().ok();
    let pid = until("the server of the other process", read).await;
    assert_eq!(processes_of(root.path(), &[pid]).len(), 1);
    owner.kill().unwrap();
    exit_blocking(&mut owner, DEADLINE).unwrap();
    let gone = async || processes_of(root.path(), &[]).is_empty().then_some(());
    until("the end of the server", gone).await;
}
