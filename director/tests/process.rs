//! Tests the process backend with shell scripts as game servers.
#![cfg(test)]

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use garage_director::{
    backend::{Backend, CreateError, Created, Exit, ExitKind, Instance, Name, Order, Placed, State, name_of},
    config,
    process::ProcessBackend,
};
use garage_events::{
    deadline::exit_blocking,
    env::{Env, System},
    game::{Config, Nats, Secret},
};

const DEADLINE: Duration = Duration::from_secs(120);
const KEY: &str =
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n-----END PRIVATE KEY-----\n";
const USER: &str =
    "-----BEGIN USER NKEY SEED-----\nSUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7DHNCZQBKT\n------END USER NKEY SEED------\n";

/// Repeats `check` until it returns a value. Panics after the deadline.
async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "no success within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A folder with a shell script as the game server. Dropping it kills all processes of the script.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    /// Each start of the script adds a line to the file `starts`.
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let starts = folder.path().join("starts");
        let program = folder.path().join("game.sh");
        fs::write(&program, format!("#!/bin/sh\necho start >> {}\n{script}\n", starts.display())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn config(&self) -> config::Process {
        config::Process {
            gameserver: Some(self.folder.path().join("game.sh")),
            instances: Some(self.instances()),
            public_ip: "203.0.113.7".parse().unwrap(),
            game_ports: Some("7000-7100".parse().unwrap()),
            node: Some("here".into()),
            game_arg: vec!["--distance-m".into(), "50".into()],
        }
    }

    fn backend(&self) -> ProcessBackend {
        ProcessBackend::open(&self.config()).unwrap()
    }

    fn instances(&self) -> PathBuf {
        self.folder.path().join("instances")
    }

    fn folder_of(&self, name: Name) -> PathBuf {
        self.instances().join(name.to_string())
    }

    fn starts(&self) -> usize {
        fs::read_to_string(self.folder.path().join("starts")).unwrap_or_default().lines().count()
    }

    /// The processes whose command line names this folder, each with its command line. A zombie has no command line.
    fn processes(&self) -> Vec<(i32, String)> {
        let root = self.folder.path().to_str().unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(root) {
                found.push((pid, line));
            }
        }
        found
    }

    /// The living processes whose ids the script has written to the file `pids`.
    fn noted(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.folder.path().join("pids")).unwrap_or_default();
        let alive = |pid: &i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
        text.lines().map(|line| line.parse().unwrap()).filter(alive).collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for pid in self.processes().into_iter().map(|(pid, _)| pid).chain(self.noted()) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
        }
        for (pid, _) in self.processes() {
            let _ = Command::new("kill").args(["-9", "--", &format!("-{pid}")]).stderr(Stdio::null()).status();
        }
    }
}

fn game(attempt: u32) -> Config {
    let session = garage_events::id::SessionId::new(System.id());
    Config {
        session,
        attempt,
        players: Vec::new(),
        teams: Vec::new(),
        private_key: Secret::new(KEY),
        token_key: "public".into(),
        token_keys: [].into(),
        nats: Nats { url: "nats://x".into(), credentials: Secret::new(USER), inbox: "_INBOX.x".into() },
        ready: format!("report.{session}.{attempt}.ready"),
        finished: format!("report.{session}.{attempt}.finished"),
        ends_at: System.now(),
    }
}

/// Creates an instance. Retries when the backend is unavailable: while another test forks, the script may be open for
/// writing for a moment, and then it cannot be run.
async fn create(backend: &ProcessBackend, game: &Config) -> Result<Placed, CreateError> {
    let order = Order { queue: "ranked".parse().unwrap(), region: "eu".parse().unwrap(), config: game.clone() };
    until("an answer", async || match backend.create(&order).await {
        Err(CreateError::Unavailable(_)) => None,
        Ok(Created::Placed(placed)) => Some(Ok(placed)),
        Ok(Created::Waiting) => panic!("a process is placed at once"),
        Err(error) => Some(Err(error)),
    })
    .await
}

/// The only instance, if there is one.
async fn only(backend: &ProcessBackend) -> Option<Instance> {
    let mut instances = backend.list().await.instances;
    assert!(instances.len() <= 1, "{instances:?}");
    instances.pop()
}

async fn exit(backend: &ProcessBackend) -> Exit {
    until("the end of the process", async || match only(backend).await?.state {
        State::Exited(exit) => Some(exit),
        _ => None,
    })
    .await
}

const SLEEPS: &str = "sleep 300";

#[tokio::test]
async fn repeated_create_requests_start_an_instance_only_once() {
    let fixture = Fixture::new(SLEEPS);
    let (backend, game) = (fixture.backend(), game(1));
    let name = name_of(&game);
    assert_eq!(backend.find(name).await.unwrap(), None);
    let placed = create(&backend, &game).await.unwrap();
    assert_eq!(placed.pod, name.to_string());
    assert_eq!((placed.node.as_str(), placed.public_ip.to_string().as_str()), ("here", "203.0.113.7"));
    until("the start", async || (fixture.starts() == 1).then_some(())).await;
    for _ in 0..3 {
        assert_eq!(create(&backend, &game).await.unwrap(), placed);
    }
    assert_eq!(backend.find(name).await.unwrap(), Some(Created::Placed(placed.clone())));
    assert_eq!(only(&backend).await.unwrap().state, State::Running(placed));
    let line = &fixture.processes().into_iter().find(|(_, line)| line.contains("--config")).unwrap().1;
    assert!(line.contains("config.json --ports 7000-7100 --distance-m 50"), "{line}");
    assert_eq!(fixture.starts(), 1);
    backend.delete(name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_directors_that_create_the_same_instance_start_it_only_once() {
    let fixture = Fixture::new(SLEEPS);
    let (one, other) = (fixture.backend(), fixture.backend());
    for _ in 0..5 {
        let game = game(1);
        let before = fixture.starts();
        let requests = (0..8).map(|index| {
            let (backend, game) = (if index % 2 == 0 { one.clone() } else { other.clone() }, game.clone());
            // Each request runs on its own thread.
            async move { create(&backend, &game).await }
        });
        for answer in futures::future::join_all(requests).await {
            answer.unwrap();
        }
        until("the start", async || (fixture.starts() > before).then_some(())).await;
        other.delete(name_of(&game)).await.unwrap();
        assert_eq!(fixture.starts(), before + 1);
    }
    assert_eq!(fixture.processes(), []);
}

#[tokio::test]
async fn an_instance_outlives_its_director_and_the_next_director_finds_it() {
    let fixture = Fixture::new("sleep 300; exit 4");
    let game = game(2);
    let name = name_of(&game);
    let first = fixture.backend();
    let placed = create(&first, &game).await.unwrap();
    let created = only(&first).await.unwrap().created;
    drop(first);
    let second = fixture.backend();
    assert_eq!(only(&second).await.unwrap(), Instance { name, created, state: State::Running(placed) });
    create(&second, &game).await.unwrap();
    until("the start", async || (fixture.starts() == 1).then_some(())).await;
    // The second director is not the parent of the process, so it does not see how the process ends.
    let (pid, _) = fixture.processes().into_iter().find(|(_, line)| line.contains("--config")).unwrap();
    assert!(Command::new("kill").args(["-9", "--", &format!("-{pid}")]).status().unwrap().success());
    assert_eq!(exit(&second).await.kind, ExitKind::Unknown);
    second.delete(name).await.unwrap();
    assert_eq!(only(&second).await, None);
}

#[tokio::test]
async fn an_instance_that_exited_is_reported_and_not_restarted() {
    let fixture = Fixture::new("echo 'no port is free' >&2\necho >&2\nexit 3");
    let (backend, game) = (fixture.backend(), game(1));
    create(&backend, &game).await.unwrap();
    let exited = exit(&backend).await;
    assert_eq!(exited, Exit { kind: ExitKind::Code(3), message: Some("no port is free".into()) });
    // Another director reads what the first one recorded.
    assert_eq!(exit(&fixture.backend()).await, exited);
    let repeated = create(&fixture.backend(), &game).await;
    assert!(matches!(repeated, Err(CreateError::Over)), "{repeated:?}");
    assert_eq!(fixture.starts(), 1);
}

#[tokio::test]
async fn a_killed_instance_reports_the_signal() {
    let fixture = Fixture::new("kill -9 $$");
    let backend = fixture.backend();
    create(&backend, &game(1)).await.unwrap();
    assert_eq!(exit(&backend).await.kind, ExitKind::Signal(9));
}

#[tokio::test]
async fn a_last_line_with_a_secret_is_withheld() {
    for line in [
        "signing with SUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV",
        "key MIIEvQIBADANBgkqhkiG9w0BAQEFAASC is bad",
        "token eyJhbGciOiJFZERTQSJ9",
    ] {
        let fixture = Fixture::new(&format!("echo '{line}'\nexit 1"));
        let backend = fixture.backend();
        create(&backend, &game(1)).await.unwrap();
        let last = exit(&backend).await.message.unwrap();
        assert!(last.contains("withheld"), "{last}");
    }
    let fixture = Fixture::new("head -c 9000 /dev/zero | tr '\\0' x\nexit 1");
    let backend = fixture.backend();
    create(&backend, &game(1)).await.unwrap();
    assert_eq!(exit(&backend).await.message.unwrap(), "x".repeat(200));
}

#[tokio::test]
async fn a_program_that_is_not_executable_is_refused() {
    let fixture = Fixture::new("");
    fs::set_permissions(fixture.folder.path().join("game.sh"), fs::Permissions::from_mode(0o644)).unwrap();
    match create(&fixture.backend(), &game(1)).await {
        Err(CreateError::Refused { reason: "not-started", message }) => {
            assert!(message.contains("game.sh"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn deletion_removes_everything_and_can_be_repeated() {
    let fixture = Fixture::new(&format!("sh -c '{SLEEPS}' & wait"));
    let (backend, game) = (fixture.backend(), game(1));
    let name = name_of(&game);
    backend.delete(name).await.unwrap();
    create(&backend, &game).await.unwrap();
    until("the start", async || (fixture.starts() == 1).then_some(())).await;
    for _ in 0..2 {
        backend.delete(name).await.unwrap();
        assert_eq!(fixture.processes(), []);
        assert_eq!(fs::read_dir(fixture.instances()).unwrap().count(), 0);
    }
    assert_eq!(only(&backend).await, None);
}

#[tokio::test]
async fn an_instance_that_ignores_sigterm_is_killed() {
    let fixture = Fixture::new("trap '' TERM\ntouch ../../trapped\nwhile :; do sleep 1; done");
    let (backend, game) = (fixture.backend(), game(1));
    create(&backend, &game).await.unwrap();
    until("the trap", async || fixture.folder.path().join("trapped").exists().then_some(())).await;
    // A director that is not the parent of the process deletes it.
    tokio::time::timeout(DEADLINE, fixture.backend().delete(name_of(&game))).await.unwrap().unwrap();
    assert_eq!(fixture.processes(), []);
}

#[tokio::test]
async fn only_the_owner_can_read_the_configuration() {
    let fixture = Fixture::new(SLEEPS);
    let (backend, game) = (fixture.backend(), game(1));
    create(&backend, &game).await.unwrap();
    let folder = fixture.folder_of(name_of(&game));
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&fixture.instances()), 0o700);
    assert_eq!(mode(&folder), 0o700);
    for file in fs::read_dir(&folder).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
    let read: Config = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
    assert_eq!(read, game);
    backend.delete(name_of(&game)).await.unwrap();
}

#[tokio::test]
async fn foreign_folders_and_processes_are_left_alone() {
    let fixture = Fixture::new(SLEEPS);
    let (backend, game) = (fixture.backend(), game(1));
    let name = name_of(&game);
    create(&backend, &game).await.unwrap();
    let instances = fixture.instances().canonicalize().unwrap();
    for foreign in ["mine", "game-x-1", ".hidden"] {
        fs::create_dir(instances.join(foreign)).unwrap();
    }
    // These processes are similar to the instance's process, but none belongs to it.
    let sleep = |name: &str, value: &Path| {
        let mut command = Command::new("sleep");
        command.arg("600").env(name, value).process_group(0).spawn().unwrap()
    };
    let of = instances.join(name.to_string());
    let mut strangers =
        [sleep("INSTANCE", &of), sleep("GARAGE_INSTANCE", &of.join("config.json")), sleep("GARAGE_INSTANCES", &of)];
    assert_eq!(only(&backend).await.unwrap().name, name);
    backend.delete(name).await.unwrap();
    assert_eq!(only(&backend).await, None);
    for stranger in &mut strangers {
        assert_eq!(stranger.try_wait().unwrap(), None);
        stranger.kill().unwrap();
        exit_blocking(stranger, DEADLINE).unwrap();
    }
    assert_eq!(fs::read_dir(instances).unwrap().count(), 3);
}

#[tokio::test]
async fn a_director_continues_the_work_of_one_that_died() {
    let fixture = Fixture::new(SLEEPS);
    let (backend, game) = (fixture.backend(), game(1));
    let name = name_of(&game);
    // A director died before it wrote the marker: nothing has run.
    let folder = fixture.folder_of(name);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.new"), "{").unwrap();
    assert_eq!(only(&backend).await.unwrap().state, State::Claimed);
    let placed = create(&backend, &game).await.unwrap();
    assert_eq!(only(&backend).await.unwrap().state, State::Running(placed));
    backend.delete(name).await.unwrap();
    // A director died between the marker and the spawn: the server may have run.
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("started"), "").unwrap();
    let repeated = create(&backend, &game).await;
    assert!(matches!(repeated, Err(CreateError::Over)), "{repeated:?}");
    backend.delete(name).await.unwrap();
    // A director died during a removal.
    let removed = fixture.instances().join(format!(".gone-{name}"));
    fs::create_dir(&removed).unwrap();
    fs::write(removed.join("config.json"), KEY).unwrap();
    assert_eq!(only(&backend).await, None);
    assert!(!removed.exists());
}

/// Launchers whose game server does not have `--config` in its arguments, and the number of its processes.
const LAUNCHERS: [(&str, usize); 4] = [
    ("echo $$ >> ../../pids; exec sleep 600", 1),
    ("sleep 600 & echo $! >> ../../pids; echo $$ >> ../../pids; wait", 2),
    ("sleep 600 & echo $! >> ../../pids", 1),
    ("setsid sleep 600 & echo $! >> ../../pids", 1),
];

/// Removes the environment that the director sets.
const FORGETFUL: (&str, usize) = ("echo $$ >> ../../pids; exec env -i sleep 600", 1);

#[tokio::test]
async fn every_launcher_is_found_and_ended_by_its_director_and_by_the_next_one() {
    for (script, count) in LAUNCHERS.into_iter().chain([FORGETFUL]) {
        for restarted in [false, true] {
            let fixture = Fixture::new(script);
            let (mut backend, game) = (fixture.backend(), game(1));
            let name = name_of(&game);
            let placed = create(&backend, &game).await.unwrap();
            until(script, async || (fixture.noted().len() == count).then_some(())).await;
            if restarted {
                backend = fixture.backend();
            }
            assert_eq!(only(&backend).await.unwrap().state, State::Running(placed.clone()), "{script}");
            assert_eq!(create(&backend, &game).await.unwrap(), placed);
            tokio::time::timeout(DEADLINE, backend.delete(name)).await.expect(script).unwrap();
            assert_eq!((fixture.noted(), only(&backend).await), (vec![], None), "{script}");
            assert_eq!(fixture.starts(), 1);
        }
    }
}

#[tokio::test]
async fn a_director_that_died_before_it_recorded_the_process_leaks_nothing() {
    for (script, count) in LAUNCHERS {
        for requested_again in [false, true] {
            let fixture = Fixture::new(script);
            let game = game(1);
            let placed = create(&fixture.backend(), &game).await.unwrap();
            until(script, async || (fixture.noted().len() == count).then_some(())).await;
            let record = fixture.folder_of(name_of(&game)).join("pid");
            // A launcher that has exited before the director could read its start time has no record.
            let removed = fs::remove_file(&record).map_err(|error| error.kind());
            assert!(matches!(removed, Ok(()) | Err(io::ErrorKind::NotFound)), "{removed:?}");

            let next = fixture.backend();
            assert_eq!(only(&next).await.unwrap().state, State::Running(placed.clone()), "{script}");
            if requested_again {
                assert_eq!(create(&next, &game).await.unwrap(), placed);
                assert_eq!(fixture.starts(), 1);
            }
            tokio::time::timeout(DEADLINE, next.delete(name_of(&game))).await.expect(script).unwrap();
            assert_eq!((fixture.noted(), only(&next).await), (vec![], None), "{script}");
        }
    }
}

#[tokio::test]
async fn the_next_director_records_the_process_that_the_first_one_did_not() {
    let fixture = Fixture::new(LAUNCHERS[0].0);
    let game = game(1);
    create(&fixture.backend(), &game).await.unwrap();
    until("the start", async || (fixture.noted().len() == 1).then_some(())).await;
    let record = fixture.folder_of(name_of(&game)).join("pid");
    let recorded = fs::read(&record).unwrap();
    fs::remove_file(&record).unwrap();
    create(&fixture.backend(), &game).await.unwrap();
    assert_eq!(fs::read(&record).unwrap(), recorded);
    fixture.backend().delete(name_of(&game)).await.unwrap();
}
