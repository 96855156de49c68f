//! No secret is written where it can be read later.

use std::{fs, path::Path};

use garage_events::subject::STREAM;

use crate::support::{Garage, Setup, play};

/// What must not be written anywhere, by name.
struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// Those of the files of a folder. A key in PEM is given away by any line of it.
    fn of(folder: &Path) -> Self {
        let mut secrets = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let content = fs::read_to_string(entry.path()).unwrap();
            // A public key is none.
            if !content.contains("PUBLIC KEY") {
                let lines = content.lines().filter(|line| !line.starts_with("-----"));
                secrets.extend(lines.map(|line| (name.clone(), line.trim().to_owned())));
            }
        }
        assert!(secrets.iter().all(|(_, secret)| secret.len() >= 16), "too short to be told from other text");
        Self(secrets)
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
    let client = redis::Client::open(garage.stack.redis.url_with_password()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let keys: Vec<String> = redis::cmd("KEYS").arg("garage:key:*").query_async(&mut connection).await.unwrap();
    assert!(!keys.is_empty());
    for key in keys {
        let parked: Vec<u8> = redis::cmd("GET").arg(&key).query_async(&mut connection).await.unwrap();
        assert_eq!(secrets.find(&String::from_utf8_lossy(&parked)), None, "{key}");
    }
}
