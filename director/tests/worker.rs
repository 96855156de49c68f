//! Tests the whole director with a real NATS and Redis, and with shell scripts as game servers.
#![cfg(test)]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use clap::Parser;
use garage_director::{
    backend::{Backend, Name, Order},
    process::ProcessBackend,
};
use garage_events::{
    env::{Env, System},
    game::{self, Car, Loadout, Ports, Ready, Stats},
    id::{PlayerId, QueueName, SessionId, TicketId},
    jetstream::{JetStreamLog, setup},
    log::{Append, Decision, Load, Session},
    player::{self, Address},
    projection::parked_key,
    reaction::decide_session,
    session::{self, Event, Matched, Member, Opened, Phase, PodFailed, PodRequested, State, Team},
    subject::{Aggregate, Report, ReportKind},
};
use garage_stack::servers::{Nats, Redis, Role};
use garage_worker::{Shutdown, seal::SealKey};

const DEADLINE: Duration = Duration::from_secs(120);
const FINGERPRINT: &str = "f00d";
const SEAL: [u8; 32] = [9; 32];
/// The hard end in every request for a game server.
const ENDS_AT: time::OffsetDateTime = time::macros::datetime!(2100-01-01 00:00 UTC);
const SLEEPS: &str = "sleep 300";

// Generated for this test with `openssl genpkey -algorithm ed25519 | openssl pkey -pubout`. The key id below each key
// comes from `openssl pkey -pubin -outform der | sha256sum`.
const TOKEN: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAu+uiWnok4oQmhpShKCapgw9QiTa/9u+CUzLxQqmAHoc=
-----END PUBLIC KEY-----
";
const KID: &str = "df06efc80b754169fd0e455f437e56eec7fbdb8998abca30df0db060e76dbc88";
const NEXT_TOKEN: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAuzH97YfhxWzcFuTfdNrkqI8XxEnKWaGb68S7vGXrLY4=
-----END PUBLIC KEY-----
";
const NEXT_KID: &str = "c670294ffaefeb749c91a0a0e866ba18b404743f295cc1d1ed9f5202372ef781";

/// Repeats `check` until it returns a value. Panics after the deadline.
async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "no success within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A director with its NATS, Redis and game servers. Dropping it stops them all.
struct Fixture {
    folder: tempfile::TempDir,
    nats: Nats,
    redis: Redis,
    log: JetStreamLog,
    director: Option<(Shutdown, tokio::task::JoinHandle<anyhow::Result<()>>)>,
    /// The value of `--orphan-grace`, in seconds.
    grace: u32,
    /// Additional flags for the director.
    flags: Vec<String>,
}

impl Fixture {
    async fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |file: &str| folder.path().join(file);
        let starts = at("starts");
        fs::write(at("game.sh"), format!("#!/bin/sh\necho start >> {}\n{script}\n", starts.display())).unwrap();
        fs::set_permissions(at("game.sh"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(at("seal"), "09".repeat(32)).unwrap();
        fs::write(at("token.pem"), TOKEN).unwrap();
        let nats = Nats::start(folder.path(), 1).await.unwrap();
        let redis = Redis::start(folder.path()).await.unwrap();
        let admin = nats.connect(Role::Admin).await.unwrap();
        setup::init(admin.clone(), 1).await.unwrap();
        let log = JetStreamLog::open(admin).await.unwrap();
        let fixture = Self { folder, nats, redis, log, director: None, grace: 60, flags: Vec::new() };
        fixture.park(FINGERPRINT, "the private key").await;
        fixture
    }

    async fn start(&mut self) {
        let file = |path: &Path| path.to_str().unwrap().to_owned();
        let flags = [
            ("--nats-url", self.nats.url()),
            ("--nats-credentials", file(&self.nats.credentials(Role::Director))),
            ("--redis-url", self.redis.url()),
            ("--redis-password-file", file(self.redis.password_file())),
            ("--seal-key-file", self.path("seal")),
            ("--token-key-file", self.path("token.pem")),
            ("--gameserver", self.path("game.sh")),
            ("--instances", self.path("games")),
            ("--node", "here".to_owned()),
            ("--orphan-grace", self.grace.to_string()),
        ];
        let flags = flags.into_iter().map(|(flag, value)| format!("{flag}={value}"));
        let flags = ["director".to_owned()].into_iter().chain(flags).chain(self.flags.clone());
        let config = garage_director::Config::parse_from(flags);
        let shutdown = Shutdown::new();
        self.director = Some((shutdown.clone(), tokio::spawn(garage_director::run(config, shutdown))));
    }

    async fn stop(&mut self) {
        let (shutdown, director) = self.director.take().unwrap();
        shutdown.cancel();
        tokio::time::timeout(DEADLINE, director).await.unwrap().unwrap().unwrap();
    }

    fn path(&self, file: &str) -> String {
        self.folder.path().join(file).to_str().unwrap().to_owned()
    }

    fn instance(&self, name: Name) -> PathBuf {
        self.folder.path().join("games").join(name.to_string())
    }

    async fn park(&self, fingerprint: &str, key: &str) {
        self.park_with(&SEAL, fingerprint, key).await;
    }

    async fn park_with(&self, seal: &[u8; 32], fingerprint: &str, key: &str) {
        let secrets =
            game::Secrets { private_key: game::Secret::new(key), credentials: game::Secret::new("the game's user") };
        let secrets = serde_json::to_vec(&secrets).unwrap();
        let sealed = SealKey::new(seal).seal(&secrets, fingerprint).unwrap();
        let client = redis::Client::open(self.redis.url_with_password()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let () = redis::cmd("SET").arg(parked_key(fingerprint)).arg(sealed).query_async(&mut connection).await.unwrap();
    }

    async fn unpark(&self, fingerprint: &str) {
        let client = redis::Client::open(self.redis.url_with_password()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let () = redis::cmd("DEL").arg(parked_key(fingerprint)).query_async(&mut connection).await.unwrap();
    }

    /// Appends a session that requests its first server.
    async fn session(&self) -> SessionId {
        let id = SessionId::new(System.id());
        let player: PlayerId = format!("p{}", System.id().simple()).parse().unwrap();
        let (ticket, team) = (TicketId::new(System.id()), "red".to_owned());
        let queue: QueueName = "ranked".parse().unwrap();
        let joined = player::Matched {
            ticket,
            queue,
            session: id,
            team: team.clone(),
            waiting_since: System.now(),
            requeue: None,
            absences: 0,
            party: None,
        };
        let matched = Matched {
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            teams: vec![Team { name: team, players: vec![Member { player: player.clone(), ticket, rank: 1 }] }],
            latencies: Default::default(),
            rules: "v1".into(),
            pool_seq: 1,
            clock: System.now(),
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
        };
        let events = [Event::from(matched), requested(1).into()];
        let decision = Decision::new(&System, id.uuid(), None);
        let decision = decision.change(&System, Aggregate::Session(id), Default::default(), events);
        let joined = [player::Event::from(joined)];
        let decision = decision.change(&System, Aggregate::Player(player), Default::default(), joined);
        self.log.append(decision).await.unwrap();
        id
    }

    async fn decide(&self, id: SessionId, command: session::Command) {
        decide_session(&self.log, &System, id, command, None).await.unwrap().unwrap();
    }

    async fn fail(&self, id: SessionId, attempt: u32) {
        let failed = PodFailed { attempt, reason: "test".into(), message: String::new() };
        self.decide(id, session::Command::FailPod(failed)).await;
    }

    /// Records that the first server is ready, and opens the session.
    async fn open(&self, id: SessionId) {
        let scheduled = self.scheduled(id, 1).await;
        let ports = Ports { tcp_port: 1, udp_port: 2 };
        self.decide(id, session::Command::Ready { attempt: 1, report: Ready { ports } }).await;
        let address = Address { ip: scheduled.public_ip, ports, fingerprint: FINGERPRINT.into() };
        self.decide(id, session::Command::Open(Opened { attempt: 1, address })).await;
    }

    async fn load(&self, id: SessionId) -> Session {
        self.log.session(id).await.unwrap()
    }

    /// Waits for an event of the session that `pick` accepts.
    async fn event<T>(&self, id: SessionId, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        until(what, async || self.load(id).await.history.iter().find_map(|recorded| pick(&recorded.event))).await
    }

    async fn scheduled(&self, id: SessionId, attempt: u32) -> session::PodScheduled {
        let pick = |event: &Event| match event {
            Event::PodScheduled(data) if data.attempt == attempt => Some(data.clone()),
            _ => None,
        };
        self.event(id, "pod-scheduled", pick).await
    }

    async fn failed(&self, id: SessionId) -> PodFailed {
        let pick = |event: &Event| match event {
            Event::PodFailed(data) => Some(data.clone()),
            _ => None,
        };
        self.event(id, "pod-failed", pick).await
    }

    async fn gone(&self, name: Name) {
        until("the instance to be gone", async || {
            (!self.instance(name).exists() && processes(&self.instance(name)).is_empty()).then_some(())
        })
        .await;
    }

    /// Waits until the director has acknowledged every message.
    async fn idle(&self) {
        let stream = self.log.context().get_stream_no_info(setup::DIRECTOR.stream).await.unwrap();
        until("the director to be idle", async || {
            let info = stream.consumer_info(setup::DIRECTOR.name).await.ok()?;
            (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
        })
        .await;
    }

    fn starts(&self) -> usize {
        fs::read_to_string(self.path("starts")).unwrap_or_default().lines().count()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for pid in processes(&self.folder.path().join("games")) {
            let _ = Command::new("kill").args(["-9", "--", &format!("-{pid}")]).stderr(Stdio::null()).status();
        }
    }
}

/// The processes whose command line names this folder.
fn processes(root: &Path) -> Vec<i32> {
    let root = root.to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(root).then_some(pid)
    });
    pids.collect()
}

fn requested(attempt: u32) -> PodRequested {
    let car = Car {
        id: "brick".parse().unwrap(),
        model: "m".into(),
        texture: "t".into(),
        stats: Stats { power_kw: 100.0, mass_kg: 1000.0, grip: 1.0, drag_m2: 0.6 },
    };
    PodRequested {
        attempt,
        region: "eu".parse().unwrap(),
        loadouts: vec![Loadout { player: "p1".parse().unwrap(), car, items: BTreeMap::new() }],
        public_key: "public".into(),
        fingerprint: FINGERPRINT.into(),
        ends_at: Some(ENDS_AT),
    }
}

const fn name(session: SessionId, attempt: u32) -> Name {
    Name { session, attempt }
}

#[tokio::test]
async fn a_requested_server_is_started_with_its_configuration() {
    let mut fixture = Fixture::new(SLEEPS).await;
    fixture.start().await;
    let id = fixture.session().await;
    let scheduled = fixture.scheduled(id, 1).await;
    assert_eq!(scheduled.pod, name(id, 1).to_string());
    assert_eq!((scheduled.node.as_str(), scheduled.public_ip.to_string().as_str()), ("here", "127.0.0.1"));
    let text = fs::read(fixture.instance(name(id, 1)).join("config.json")).unwrap();
    let config: game::Config = serde_json::from_slice(&text).unwrap();
    assert_eq!(config.players, requested(1).loadouts);
    assert_eq!(config.private_key.expose(), "the private key");
    assert_eq!(config.nats.credentials.expose(), "the game's user");
    assert_eq!(config.nats.inbox, format!("_INBOX.{id}.1"));
    assert_eq!(config.ready, format!("report.{id}.1.ready"));
    assert_eq!(config.finished, format!("report.{id}.1.finished"));
    assert_eq!(config.ends_at, ENDS_AT, "the request decides the hard end");
    fixture.stop().await;
    // The server keeps running without its director, and the next director removes it.
    assert!(!processes(&fixture.instance(name(id, 1))).is_empty());
    fixture.decide(id, session::Command::Fail { reason: "test".into() }).await;
    fixture.start().await;
    fixture.gone(name(id, 1)).await;
}

#[tokio::test]
async fn a_redelivered_request_leads_to_one_instance_and_one_event() {
    let mut fixture = Fixture::new(SLEEPS).await;
    let id = fixture.session().await;
    fixture.start().await;
    fixture.scheduled(id, 1).await;
    for _ in 0..2 {
        fixture.idle().await;
        fixture.stop().await;
        // Deliver the request again, as if the director had died before it acknowledged. Meanwhile the key is gone.
        fixture.unpark(FINGERPRINT).await;
        let stream = fixture.log.context().get_stream_no_info(setup::DIRECTOR.stream).await.unwrap();
        stream.delete_consumer(setup::DIRECTOR.name).await.unwrap();
        setup::create_or_update(fixture.log.context(), setup::DIRECTOR).await.unwrap();
        fixture.start().await;
    }
    fixture.idle().await;
    assert_eq!(fixture.load(id).await.history.len(), 3);
    assert_eq!(fixture.starts(), 1);
    assert!(!processes(&fixture.instance(name(id, 1))).is_empty());
}

#[tokio::test]
async fn a_request_for_an_attempt_that_is_over_starts_nothing() {
    let mut fixture = Fixture::new(SLEEPS).await;
    let id = fixture.session().await;
    fixture.fail(id, 1).await;
    let closed = fixture.session().await;
    fixture.decide(closed, session::Command::Fail { reason: "test".into() }).await;
    fixture.start().await;
    fixture.idle().await;
    assert_eq!(fixture.load(id).await.history.len(), 3);
    assert_eq!(fixture.starts(), 0);
    assert!(!fixture.instance(name(id, 1)).exists() && !fixture.instance(name(closed, 1)).exists());
}

#[tokio::test]
async fn a_request_removes_the_instances_of_earlier_attempts() {
    let mut fixture = Fixture::new(SLEEPS).await;
    fixture.start().await;
    let id = fixture.session().await;
    fixture.scheduled(id, 1).await;
    fixture.fail(id, 1).await;
    fixture.decide(id, session::Command::RequestPod(requested(2))).await;
    fixture.scheduled(id, 2).await;
    fixture.gone(name(id, 1)).await;
    assert!(!processes(&fixture.instance(name(id, 2))).is_empty());
}

#[tokio::test]
async fn during_a_key_rotation_both_seal_keys_open_and_game_servers_get_both_token_keys() {
    let mut fixture = Fixture::new(SLEEPS).await;
    let next_seal = [8; 32];
    fs::write(fixture.path("next-seal"), "08".repeat(32)).unwrap();
    fs::write(fixture.path("next-token.pem"), NEXT_TOKEN).unwrap();
    for (flag, file) in [("seal-key-also-file", "next-seal"), ("token-key-also-file", "next-token.pem")] {
        fixture.flags.push(format!("--{flag}={}", fixture.path(file)));
    }
    fixture.start().await;
    for seal in [SEAL, next_seal] {
        fixture.park_with(&seal, FINGERPRINT, "the private key").await;
        let id = fixture.session().await;
        fixture.scheduled(id, 1).await;
        let config = fs::read(fixture.instance(name(id, 1)).join("config.json")).unwrap();
        let config: game::Config = serde_json::from_slice(&config).unwrap();
        assert_eq!(config.private_key.expose(), "the private key");
        assert_eq!(config.token_key, TOKEN);
        let both = [(KID, TOKEN), (NEXT_KID, NEXT_TOKEN)].map(|(kid, key)| (kid.to_owned(), key.to_owned()));
        assert_eq!(config.token_keys, both.into());
    }
    fixture.stop().await;
    fixture.flags.clear();
    fixture.start().await;
    let id = fixture.session().await;
    let failed = fixture.failed(id).await;
    assert!(failed.reason == "key-lost" && failed.message.contains("--seal-key-also-file"), "{failed:?}");
}

#[tokio::test]
async fn a_token_key_file_without_a_public_key_is_refused() {
    let mut fixture = Fixture::new(SLEEPS).await;
    let private = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
    for text in ["", "key", private, &format!("{TOKEN}{private}"), "-----BEGIN PUBLIC KEY-----\n"] {
        fs::write(fixture.path("wrong.pem"), text).unwrap();
        fixture.flags = vec![format!("--token-key-also-file={}", fixture.path("wrong.pem"))];
        fixture.start().await;
        let (_, director) = fixture.director.take().unwrap();
        let ended = tokio::time::timeout(DEADLINE, director).await.unwrap().unwrap();
        let error = format!("{:#}", ended.unwrap_err());
        assert!(
            error.contains("wrong.pem (--token-key-also-file) is not a public key") && !error.contains("c2Vj"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_lost_key_fails_the_attempt() {
    let mut fixture = Fixture::new(SLEEPS).await;
    fixture.start().await;
    fixture.unpark(FINGERPRINT).await;
    let missing = fixture.session().await;
    assert_eq!(fixture.failed(missing).await.reason, "key-lost");
    // A key that was sealed for another game does not open.
    let client = redis::Client::open(fixture.redis.url_with_password()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let sealed = SealKey::new(&SEAL).seal(br#"{"private_key": "key", "credentials": "user"}"#, "other").unwrap();
    let () = redis::cmd("SET").arg(parked_key(FINGERPRINT)).arg(sealed).query_async(&mut connection).await.unwrap();
    let forged = fixture.session().await;
    assert_eq!(fixture.failed(forged).await.reason, "key-lost");
    assert_eq!(fixture.starts(), 0);
}

#[tokio::test]
async fn a_request_waits_for_redis() {
    let mut fixture = Fixture::new(SLEEPS).await;
    fixture.redis.kill();
    fixture.start().await;
    let id = fixture.session().await;
    let context = fixture.log.context().clone();
    let stream = context.get_stream_no_info(setup::DIRECTOR.stream).await.unwrap();
    until("the delivery", async || {
        (stream.consumer_info(setup::DIRECTOR.name).await.ok()?.num_ack_pending == 1).then_some(())
    })
    .await;
    fixture.redis.restart_empty().await.unwrap();
    fixture.park(FINGERPRINT, "the private key").await;
    // Redis was empty for a moment. If the director read the key just then, the attempt has failed. Otherwise the
    // server is scheduled.
    until("an answer", async || (fixture.load(id).await.history.len() == 3).then_some(())).await;
}

#[tokio::test]
async fn a_server_that_dies_before_it_is_ready_fails_the_attempt() {
    let mut fixture = Fixture::new("echo 'no port is free' >&2\nexit 3").await;
    fixture.start().await;
    let id = fixture.session().await;
    let failed = fixture.failed(id).await;
    assert_eq!((failed.attempt, failed.reason.as_str()), (1, "exited"));
    assert_eq!(failed.message, "exit code 3: no port is free");
    fixture.gone(name(id, 1)).await;
    assert_eq!(fixture.starts(), 1);
}

#[tokio::test]
async fn a_server_that_dies_during_the_match_breaks_the_session() {
    let mut fixture = Fixture::new("while [ ! -e ../../die ]; do sleep 0.05; done\nkill -9 $$").await;
    fixture.start().await;
    let id = fixture.session().await;
    fixture.open(id).await;
    fs::write(fixture.path("die"), "").unwrap();
    let failed = fixture.failed(id).await;
    assert_eq!((failed.reason.as_str(), failed.message.as_str()), ("killed", "signal 9"));
    // The session worker closes the session; the director does not have the right to do so.
    let State::Open(open) = fixture.load(id).await.state else { panic!("not open") };
    assert_eq!(open.phase, Phase::Broken { attempt: 1, reason: "killed".into() });
    fixture.gone(name(id, 1)).await;
}

#[tokio::test]
async fn the_server_of_a_failed_attempt_is_ended_at_once_before_and_after_the_opening() {
    let mut fixture = Fixture::new(SLEEPS).await;
    // Otherwise the servers would also be removed as orphans.
    fixture.grace = 3_600;
    fixture.start().await;
    let (starting, open) = (fixture.session().await, fixture.session().await);
    for id in [starting, open] {
        fixture.scheduled(id, 1).await;
    }
    fixture.open(open).await;
    for id in [starting, open] {
        fixture.fail(id, 1).await;
        fixture.gone(name(id, 1)).await;
        // It was not the end of the session that ended the server.
        assert!(matches!(fixture.load(id).await.state, State::Open(_)));
    }
    assert_eq!(fixture.starts(), 2);
}

#[tokio::test]
async fn a_server_that_reported_its_results_has_not_failed_no_matter_how_it_exited() {
    let mut fixture = Fixture::new("while [ ! -e ../../die ]; do sleep 0.05; done\nkill -9 $$").await;
    fixture.start().await;
    let (reported, silent) = (fixture.session().await, fixture.session().await);
    for id in [reported, silent] {
        let scheduled = fixture.scheduled(id, 1).await;
        let report = Ready { ports: Ports { tcp_port: 1, udp_port: 2 } };
        fixture.decide(id, session::Command::Ready { attempt: 1, report }).await;
        let address = Address {
            ip: scheduled.public_ip,
            ports: Ports { tcp_port: 1, udp_port: 2 },
            fingerprint: FINGERPRINT.into(),
        };
        fixture.decide(id, session::Command::Open(Opened { attempt: 1, address })).await;
    }
    // No director sees how they end, and the session worker has not processed the report yet.
    fixture.stop().await;
    let report = Report { session: reported, attempt: 1, kind: ReportKind::Finished };
    fixture.log.context().publish(report.to_string(), "{}".into()).await.unwrap().await.unwrap();
    fs::write(fixture.path("die"), "").unwrap();
    let running = |id| !processes(&fixture.instance(name(id, 1))).is_empty();
    until("both servers to have exited", async || (!running(reported) && !running(silent)).then_some(())).await;

    fixture.start().await;
    assert_eq!(fixture.failed(silent).await.reason, "exited");
    // The director handled both exits in the same check.
    let events = fixture.load(reported).await.history;
    assert!(matches!(events.last().unwrap().event, Event::Opened(_)), "{events:?}");
}

#[tokio::test]
async fn a_server_that_exits_with_code_0_has_failed_unless_it_reported_its_results() {
    let mut fixture = Fixture::new("while [ ! -e ../../die ]; do sleep 0.05; done").await;
    fixture.start().await;
    let (reported, silent) = (fixture.session().await, fixture.session().await);
    for id in [reported, silent] {
        fixture.scheduled(id, 1).await;
    }
    let report = Report { session: reported, attempt: 1, kind: ReportKind::Finished };
    fixture.log.context().publish(report.to_string(), "{}".into()).await.unwrap().await.unwrap();
    fs::write(fixture.path("die"), "").unwrap();
    let failed = fixture.failed(silent).await;
    assert_eq!((failed.reason.as_str(), failed.message.as_str()), ("exited", "exit code 0"));
    fixture.gone(name(silent, 1)).await;
    // The director handles a later exit later. After it has handled the exit of this server, it has also handled the
    // exit of the first server.
    let later = fixture.session().await;
    fixture.failed(later).await;
    let events = fixture.load(reported).await.history;
    assert!(matches!(events.last().unwrap().event, Event::PodScheduled(_)), "{events:?}");
    fixture.decide(reported, session::Command::Fail { reason: "test".into() }).await;
    fixture.gone(name(reported, 1)).await;
}

#[tokio::test]
async fn an_orphan_is_removed_and_a_needed_instance_is_not() {
    let mut fixture = Fixture::new(SLEEPS).await;
    fixture.grace = 0;
    let config = garage_director::Config::parse_from([
        "director",
        "--seal-key-file=s",
        "--token-key-file=t",
        &format!("--gameserver={}", fixture.path("game.sh")),
        &format!("--instances={}", fixture.path("games")),
    ]);
    // Create both instances without a director.
    let backend = ProcessBackend::open(&config.process).unwrap();
    let orphan = SessionId::new(System.id());
    let needed = fixture.session().await;
    for session in [orphan, needed] {
        let config = game::Config {
            session,
            attempt: 1,
            players: Vec::new(),
            teams: Vec::new(),
            private_key: game::Secret::new("key"),
            token_key: String::new(),
            token_keys: [].into(),
            nats: game::Nats { url: String::new(), credentials: game::Secret::new("user"), inbox: String::new() },
            ready: String::new(),
            finished: String::new(),
            ends_at: System.now(),
        };
        let order = Order { queue: "ranked".parse().unwrap(), region: "eu".parse().unwrap(), config };
        // Retry: while another test forks, the script may be open for writing for a moment, and then it cannot be run.
        until("the start", async || backend.create(&order).await.ok()).await;
    }
    fixture.start().await;
    fixture.gone(name(orphan, 1)).await;
    assert!(!processes(&fixture.instance(name(needed, 1))).is_empty());
    fixture.scheduled(needed, 1).await;
    assert_eq!(fixture.starts(), 2);
}
