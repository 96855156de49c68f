//! No secret is written where it can be read later, or where all of the machine can see it.

use std::{fmt::Display, fs, path::Path};

use garage_events::{game::Config, subject::STREAM};
use garage_stack::workers::Worker;

use crate::support::{Garage, Setup, play};

/// What must not be written anywhere, by name.
struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// Those of the files of a folder. A key in PEM is given away by any line of it.
    fn of(folder: &Path) -> Self {
        let mut secrets = Self(Vec::new());
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let content = fs::read_to_string(entry.path()).unwrap();
            // A public key is none.
            if !content.contains("PUBLIC KEY") {
                secrets.add(entry.file_name().to_str().unwrap(), &content);
            }
        }
        secrets
    }

    fn add(&mut self, name: &str, content: &str) {
        for line in content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("-----")) {
            assert!(line.len() >= 16, "{name}: too short to be told from other text");
            self.0.push((name.to_owned(), line.to_owned()));
        }
    }

    /// What of them a text holds.
    fn find(&self, text: &str) -> Option<String> {
        if text.contains("PRIVATE KEY") {
            return Some("a private key".into());
        }
        if holds_token(text) {
            return Some("a token".into());
        }
        self.0.iter().find(|(_, secret)| text.contains(secret)).map(|(name, _)| name.clone())
    }
}

/// Whether there is a JWT: base64 of `{"`, characters of base64url, a dot, and base64 of `{"` again.
fn holds_token(text: &str) -> bool {
    let header = |tail: &str| {
        let end = tail.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(tail.len());
        tail[end..].starts_with(".eyJ")
    };
    text.match_indices("eyJ").any(|(at, _)| header(&text[at..]))
}

/// Every message of every stream, headers and subject included.
async fn messages(garage: &Garage) -> Vec<(String, String)> {
    use futures::TryStreamExt;
    let jetstream = garage.jetstream();
    let names: Vec<String> = jetstream.stream_names().try_collect().await.unwrap();
    assert!(names.iter().any(|name| name == STREAM), "{names:?}");
    let mut messages = Vec::new();
    for name in names {
        let stream = jetstream.get_stream(&name).await.unwrap();
        let state = stream.cached_info().state.clone();
        for seq in state.first_sequence..=state.last_sequence {
            // Of a stream that forgets, some are gone.
            let Ok(message) = stream.get_raw_message(seq).await else { continue };
            let body = String::from_utf8_lossy(&message.payload);
            messages.push((format!("{name} {seq}"), format!("{} {:?} {body}", message.subject, message.headers)));
        }
    }
    messages
}

#[test]
fn a_secret_is_found() {
    let secrets = Secrets(vec![("a.password".into(), "correct-horse-battery".into())]);
    for (text, found) in [
        ("the password is correct-horse-battery!", Some("a.password")),
        ("-----BEGIN PRIVATE KEY-----", Some("a private key")),
        ("Bearer eyJhbGciOi-_J9.eyJzdWIi.x", Some("a token")),
        ("eyJ eyJhbGci.eyJzdWIi", Some("a token")),
        ("eyJ and .eyJ", None),
        ("all is well", None),
    ] {
        assert_eq!(secrets.find(text).as_deref(), found, "{text}");
    }
}

#[tokio::test]
async fn neither_the_log_nor_what_is_printed_holds_a_secret() {
    // The first server dies with its key on its lips.
    let script = "case $config in *-1/config.json) cat $config; exit 1;; esac
        exec >> $root/logs/games.log 2>&1";
    let garage = Setup::short().env("RUST_LOG", "debug").game_server(script).start().await;
    play(&garage.bots("player", 4)).await;
    let waits = garage.bot("waits");
    waits.queue("ranked").await.unwrap();
    garage.settled().await;

    let secrets = Secrets::of(&garage.stack.root().join("secrets"));
    let messages = messages(&garage).await;
    assert!(messages.len() > 50);
    for (place, text) in messages {
        assert_eq!(secrets.find(&text), None, "in {place}: {text}");
    }
    let mut logs = garage.stack.logs();
    logs.push(garage.stack.root().join("logs/games.log"));
    for log in logs {
        let text = fs::read(&log).unwrap();
        for line in String::from_utf8_lossy(&text).lines() {
            assert_eq!(secrets.find(line), None, "in {}: {line}", log.display());
        }
    }
    // Keys are parked in Redis: sealed.
    let mut connection = garage.redis().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("garage:key:*").query_async(&mut connection).await.unwrap();
    assert!(!keys.is_empty());
    for key in keys {
        let parked: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut connection).await.unwrap();
        assert_eq!(secrets.find(&String::from_utf8_lossy(&parked)), None, "{key}");
    }
}

/// What a process was started with: its arguments, which any user may read, and its environment.
fn started_with(process: impl Display) -> Vec<String> {
    let read = |name| fs::read(format!("/proc/{process}/{name}")).unwrap_or_default();
    let both = [read("cmdline"), read("environ")].concat();
    String::from_utf8_lossy(&both).split('\0').map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn no_process_is_given_a_secret_in_its_arguments_or_its_environment() {
    let mut garage = Setup::long().start().await;
    let bots = garage.bots("player", 2);
    for bot in &bots {
        bot.queue("ranked").await.unwrap();
    }
    garage.until_event("Opened", 1).await;

    let root = garage.stack.root().to_owned();
    let mut secrets = Secrets::of(&root.join("secrets"));
    let [game] = garage.stack.games().try_into().unwrap();
    let config = fs::read(garage.stack.instances_folder().join(game).join("config.json")).unwrap();
    let config: Config = serde_json::from_slice(&config).unwrap();
    let key = config.private_key.expose();
    assert!(key.contains("PRIVATE KEY"));
    // A key's last line may be a few characters.
    let lines: Vec<_> = key.lines().filter(|line| line.len() >= 16).collect();
    secrets.add("the game's key", &lines.join("\n"));
    secrets.add("the game's NATS user", config.nats.credentials.expose());

    let [game_server] = garage.stack.game_servers().try_into().unwrap();
    let has = |pid: u32, begin: &str| started_with(pid).iter().any(|one| one.starts_with(begin));
    assert!(has(game_server, "--config"));
    let mut ours = vec![game_server];
    for worker in Worker::ALL {
        ours.extend(garage.stack.instances(worker).map(|instance| instance.process.pid().unwrap()));
    }
    assert_eq!(ours.len(), 6);
    assert!(ours[1..].iter().all(|pid| has(*pid, "GARAGE_NATS_CREDENTIALS=")));
    // The servers of NATS and MariaDB, and whoever else was told of this Garage's folder. Redis writes its title over both.
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let folder = root.to_str().unwrap();
    let received: Vec<u32> = pids.filter(|pid| started_with(pid).iter().any(|one| one.contains(folder))).collect();
    for server in ["nats-server", "mariadbd"] {
        assert!(received.iter().any(|pid| started_with(pid)[0].ends_with(server)), "{server} is looked at");
    }
    // Not what all inherit from whoever runs the tests; nor would that be anybody's to read in a failed test's words.
    let inherited = started_with("self");
    for pid in ours.into_iter().chain(received) {
        for given in started_with(pid).iter().filter(|given| !inherited.contains(given)) {
            let name = given.split('=').next().unwrap();
            assert_eq!(secrets.find(given), None, "process {pid} was given it in {name:.40}");
        }
    }
}
