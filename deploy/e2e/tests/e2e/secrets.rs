//! No secret appears in the log, in logs, in Redis, or in a process's arguments or environment.

use std::{fmt::Display, fs, path::Path};

use garage_events::{game::Config, subject::STREAM};
use garage_stack::workers::Worker;

use crate::support::{Garage, Setup, play};

/// The secrets that must not appear anywhere: name and text.
struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// The secrets of a folder's files. Each line of a PEM file counts as a secret of its own.
    fn of(folder: &Path) -> Self {
        let mut secrets = Self(Vec::new());
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let content = fs::read_to_string(entry.path()).unwrap();
            // A public key is not a secret.
            if !content.contains("PUBLIC KEY") {
                secrets.add(entry.file_name().to_str().unwrap(), &content);
            }
        }
        secrets
    }

    fn add(&mut self, name: &str, content: &str) {
        for line in content.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("-----")) {
            assert!(line.len() >= 16, "{name}: too short to distinguish from other text");
            self.0.push((name.to_owned(), line.to_owned()));
        }
    }

    /// The name of a secret that this text contains.
    fn find(&self, text: &str) -> Option<String> {
        if text.contains("PRIVATE KEY") {
            return Some("a private key".into());
        }
        if contains_token(text) {
            return Some("a token".into());
        }
        self.0.iter().find(|(_, secret)| text.contains(secret)).map(|(name, _)| name.clone())
    }
}

/// Whether the text contains a JWT: base64 of `{"`, characters of base64url, a dot, and base64 of `{"` again.
fn contains_token(text: &str) -> bool {
    let header = |tail: &str| {
        let end = tail.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(tail.len());
        tail[end..].starts_with(".eyJ")
    };
    text.match_indices("eyJ").any(|(at, _)| header(&text[at..]))
}

/// Every message of every stream, with its place: subject, headers and body.
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
            // Some streams discard old messages.
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
async fn no_secret_is_in_a_stream_a_log_file_or_redis() {
    // The first server prints its key and exits.
    let script = "case $config in *-1/config.json) cat $config; exit 1;; esac
        exec >> $root/logs/games.log 2>&1";
    let garage = Setup::short().env("RUST_LOG", "debug").game_server(script).start().await;
    play(&garage.bots("player", 4)).await;
    let waiting = garage.bot("waits");
    waiting.queue("ranked").await.unwrap();
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
    // Redis stores keys, but they are sealed.
    let mut connection = garage.redis().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("garage:key:*").query_async(&mut connection).await.unwrap();
    assert!(!keys.is_empty());
    for key in keys {
        let parked: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut connection).await.unwrap();
        assert_eq!(secrets.find(&String::from_utf8_lossy(&parked)), None, "{key}");
    }
}

/// A process's arguments, which any user may read, and its environment.
fn arguments_and_environment(process: impl Display) -> Vec<String> {
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
    // A key's last line may be too short.
    let lines: Vec<_> = key.lines().filter(|line| line.len() >= 16).collect();
    secrets.add("the game's key", &lines.join("\n"));
    secrets.add("the game's NATS user", config.nats.credentials.expose());

    let [game_server] = garage.stack.game_servers().try_into().unwrap();
    let has = |pid: u32, begin: &str| arguments_and_environment(pid).iter().any(|one| one.starts_with(begin));
    assert!(has(game_server, "--config"));
    let mut ours = vec![game_server];
    for worker in Worker::ALL {
        ours.extend(garage.stack.instances(worker).map(|instance| instance.process.pid().unwrap()));
    }
    assert_eq!(ours.len(), 6);
    assert!(ours[1..].iter().all(|pid| has(*pid, "GARAGE_NATS_CREDENTIALS=")));
    // NATS, the database, and every other process that knows this Garage's folder. Redis overwrites its arguments.
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let folder = root.to_str().unwrap();
    let involved: Vec<u32> =
        pids.filter(|pid| arguments_and_environment(pid).iter().any(|one| one.contains(folder))).collect();
    let nats = garage.stack.nats.node(0).unwrap().process().pid().unwrap();
    let database = garage.stack.database.process().pid().unwrap();
    assert!(involved.contains(&nats) && involved.contains(&database), "a server is not checked");
    // Without the variables that all processes inherit from the shell: a failed assertion must not print them.
    let inherited = arguments_and_environment("self");
    for pid in ours.into_iter().chain(involved) {
        for given in arguments_and_environment(pid).iter().filter(|given| !inherited.contains(given)) {
            let name = given.split('=').next().unwrap();
            assert_eq!(secrets.find(given), None, "process {pid} received a secret in {name:.40}");
        }
    }
}
