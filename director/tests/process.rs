//! Game servers as processes: started once, found again, removed without a trace.
#![cfg(test)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use garage_director::{
    backend::{Backend, CreateError, Exit, How, Instance, Made, Name, Order, Placed, State, name_of},
    config,
    process::ProcessBackend,
};
use garage_events::{
    env::{Env, System},
    game::{Config, Nats, Secret},
};

const DEADLINE: Duration = Duration::from_secs(30);
const KEY: &str =
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n-----END PRIVATE KEY-----\n";
const USER: &str =
    "-----BEGIN USER NKEY SEED-----\nSUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7DHNCZQBKT\n------END USER NKEY SEED------\n";

/// Looks again and again until there is something, and fails after the deadline.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A folder with a game server that is a shell script, which ends with the test.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    /// Each start of the script adds a line to `starts`.
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

    /// Command lines of all processes that name something of ours; a zombie has none.
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
}

impl Drop for Fixture {
    fn drop(&mut self) {
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
        private_key: Secret::new(KEY),
        token_key: "public".into(),
        token_keys: [].into(),
        nats: Nats { url: "nats://x".into(), credentials: Secret::new(USER), inbox: "_INBOX.x".into() },
        ready: format!("report.{session}.{attempt}.ready"),
        finished: format!("report.{session}.{attempt}.finished"),
        ends_at: System.now(),
    }
}

/// Another test's fork may hold the script open for a moment, which is one of the things that pass by themselves.
async fn create(backend: &ProcessBackend, game: &Config) -> Result<Placed, CreateError> {
    let order = Order { queue: "ranked".parse().unwrap(), region: "eu".parse().unwrap(), config: game.clone() };
    until("an answer", async || match backend.create(&order).await {
        Err(CreateError::Unavailable(_)) => None,
        Ok(Made::Placed(placed)) => Some(Ok(placed)),
        Ok(Made::Waiting) => panic!("a process has its place at once"),
        Err(error) => Some(Err(error)),
    })
    .await
}

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
async fn an_instance_is_started_once_however_often_it_is_asked_for() {
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
    assert_eq!(backend.find(name).await.unwrap(), Some(Made::Placed(placed.clone())));
    assert_eq!(only(&backend).await.unwrap().state, State::Running(placed));
    let line = &fixture.processes().into_iter().find(|(_, line)| line.contains("--config")).unwrap().1;
    assert!(line.contains("config.json --ports 7000-7100 --distance-m 50"), "{line}");
    assert_eq!(fixture.starts(), 1);
    backend.delete(name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_directors_at_once_start_one() {
    let fixture = Fixture::new(SLEEPS);
    let (one, other) = (fixture.backend(), fixture.backend());
    for _ in 0..5 {
        let game = game(1);
        let before = fixture.starts();
        let asks = (0..8).map(|index| {
            let (backend, game) = (if index % 2 == 0 { one.clone() } else { other.clone() }, game.clone());
            // The work of each is done on a thread of its own.
            async move { create(&backend, &game).await }
        });
        for answer in futures::future::join_all(asks).await {
            answer.unwrap();
        }
        until("the start", async || (fixture.starts() > before).then_some(())).await;
        other.delete(name_of(&game)).await.unwrap();
        assert_eq!(fixture.starts(), before + 1);
    }
    assert_eq!(fixture.processes(), []);
}

#[tokio::test]
async fn an_instance_outlives_its_director_and_is_found_again() {
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
    // Dies unseen: the second is not its parent.
    let (pid, _) = fixture.processes().into_iter().find(|(_, line)| line.contains("--config")).unwrap();
    assert!(Command::new("kill").args(["-9", "--", &format!("-{pid}")]).status().unwrap().success());
    assert_eq!(exit(&second).await.how, How::Unknown);
    second.delete(name).await.unwrap();
    assert_eq!(only(&second).await, None);
}

#[tokio::test]
async fn the_end_of_an_instance_is_reported_and_it_is_not_started_again() {
    let fixture = Fixture::new("echo 'no port is free' >&2\necho >&2\nexit 3");
    let (backend, game) = (fixture.backend(), game(1));
    create(&backend, &game).await.unwrap();
    let seen = exit(&backend).await;
    assert_eq!(seen, Exit { how: How::Code(3), message: Some("no port is free".into()) });
    // Another director reads what the first has noted.
    assert_eq!(exit(&fixture.backend()).await, seen);
    let again = create(&fixture.backend(), &game).await;
    assert!(matches!(again, Err(CreateError::Over)), "{again:?}");
    assert_eq!(fixture.starts(), 1);
}

#[tokio::test]
async fn a_killed_instance_says_by_what() {
    let fixture = Fixture::new("kill -9 $$");
    let backend = fixture.backend();
    create(&backend, &game(1)).await.unwrap();
    assert_eq!(exit(&backend).await.how, How::Signal(9));
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
async fn a_program_that_cannot_be_run_is_refused() {
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
async fn deletion_leaves_nothing_and_may_be_repeated() {
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
async fn an_instance_deaf_to_sigterm_is_killed() {
    let fixture = Fixture::new("trap '' TERM\ntouch ../../deaf\nwhile :; do sleep 1; done");
    let (backend, game) = (fixture.backend(), game(1));
    create(&backend, &game).await.unwrap();
    until("deafness", async || fixture.folder.path().join("deaf").exists().then_some(())).await;
    // By a director that is not its parent.
    let start = Instant::now();
    fixture.backend().delete(name_of(&game)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(fixture.processes(), []);
}

#[tokio::test]
async fn the_configuration_is_for_the_owner_alone() {
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
async fn what_is_foreign_is_left_alone() {
    let fixture = Fixture::new(SLEEPS);
    let (backend, game) = (fixture.backend(), game(1));
    let name = name_of(&game);
    create(&backend, &game).await.unwrap();
    let instances = fixture.instances().canonicalize().unwrap();
    let config = instances.join(name.to_string()).join("config.json");
    for foreign in ["mine", "game-x-1", ".hidden"] {
        fs::create_dir(instances.join(foreign)).unwrap();
    }
    // They name the file, or another one, and are no instance of this name.
    let sleep = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        // Waits without a child of its own, which would outlive it.
        command.args(["-c", "read line", "sh"]).args(arguments).stdin(Stdio::piped()).spawn().unwrap()
    };
    let path = config.to_str().unwrap();
    let mut strangers = [sleep(&[path]), sleep(&["--config", &format!("{path}.new")]), sleep(&["--conf", path])];
    assert_eq!(only(&backend).await.unwrap().name, name);
    backend.delete(name).await.unwrap();
    assert_eq!(only(&backend).await, None);
    for stranger in &mut strangers {
        assert_eq!(stranger.try_wait().unwrap(), None);
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
    assert_eq!(fs::read_dir(instances).unwrap().count(), 3);
}

#[tokio::test]
async fn what_a_dead_director_began_is_gone_on_with() {
    let fixture = Fixture::new(SLEEPS);
    let (backend, game) = (fixture.backend(), game(1));
    let name = name_of(&game);
    // Died before the mark: nothing has run.
    let folder = fixture.folder_of(name);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.new"), "{").unwrap();
    assert_eq!(only(&backend).await.unwrap().state, State::Claimed);
    let placed = create(&backend, &game).await.unwrap();
    assert_eq!(only(&backend).await.unwrap().state, State::Running(placed));
    backend.delete(name).await.unwrap();
    // Died between the mark and the spawn: it may have run.
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("started"), "").unwrap();
    let again = create(&backend, &game).await;
    assert!(matches!(again, Err(CreateError::Over)), "{again:?}");
    backend.delete(name).await.unwrap();
    // Died in the midst of removing.
    let gone = fixture.instances().join(format!(".gone-{name}"));
    fs::create_dir(&gone).unwrap();
    fs::write(gone.join("config.json"), KEY).unwrap();
    assert_eq!(only(&backend).await, None);
    assert!(!gone.exists());
}
