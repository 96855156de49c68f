//! The process itself: its configuration file, its exit codes.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use async_nats::jetstream;
use garage_events::{
    game::{Config, Finished, Ready},
    jetstream::setup,
    subject::{REPORTS, game_inbox},
};
use garage_gameserver::client::{self, Driving};
use garage_stack::servers::{Nats, Role};
use serde::de::DeserializeOwned;

use crate::game::{Signer, claims, config, in_seconds, server, soon};

fn command(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_garage-gameserver"));
    command.arg("--config").arg(file).args(["--bind", "127.0.0.1"]).env_remove("RUST_LOG");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn written(folder: &Path, text: &str, mode: u32) -> PathBuf {
    let file = folder.join("game.json");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    file
}

/// A game on a NATS that does not answer.
fn game(change: impl FnOnce(&mut Config)) -> (Config, String) {
    let mut config = config(&["anna"], &Signer::new(), "nats://127.0.0.1:1");
    change(&mut config);
    let text = serde_json::to_string(&config).unwrap();
    (config, text)
}

/// The last report on a subject, as soon as there is one.
async fn report<T: DeserializeOwned>(reports: &jetstream::stream::Stream, subject: &str) -> T {
    let stored = async {
        loop {
            if let Ok(message) = reports.get_last_raw_message_by_subject(subject).await {
                return serde_json::from_slice(&message.payload).unwrap();
            }
        }
    };
    soon(stored).await
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
fn a_bad_configuration_exits_with_2_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(&folder.path().join("none.json")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(&output), Some(2), "{said}");
    assert!(said.contains("none.json") && said.contains("No such file"), "{said}");

    let (_, text) = game(|_| {});
    let output = command(&written(folder.path(), &text, 0o644)).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(&output), Some(2), "{said}");
    assert!(said.contains("0644"), "{said}");

    let output = command(&written(folder.path(), "{\"session\":1}", 0o600)).output().unwrap();
    assert_eq!(code(&output), Some(2));

    let (_, text) = game(|config| config.players.clear());
    let output = command(&written(folder.path(), &text, 0o600)).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(&output), Some(2), "{said}");
    assert!(said.contains("no players"), "{said}");
}

#[test]
fn a_session_that_has_ended_exits_with_3() {
    let folder = tempfile::tempdir().unwrap();
    let (_, text) = game(|config| config.ends_at = in_seconds(-1));
    let output = command(&written(folder.path(), &text, 0o600)).output().unwrap();
    assert_eq!(code(&output), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn sigterm_exits_with_1_and_nothing_secret_is_said() {
    let folder = tempfile::tempdir().unwrap();
    // In case the signal does not work, the hard end does.
    let (config, text) = game(|config| config.ends_at = in_seconds(30));
    let mut child = command(&written(folder.path(), &text, 0o600)).env("RUST_LOG", "trace").spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("report not acknowledged") {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "it ended early: {said}");
    }
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    stderr.read_to_string(&mut said).unwrap();
    for line in config.private_key.expose().lines().filter(|line| !line.starts_with("---")) {
        assert!(!said.contains(line), "a line of the private key is in the log");
    }
}

#[tokio::test]
async fn a_game_that_is_played_exits_with_0_once_its_second_report_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::start(folder.path(), 1).await.unwrap();
    let admin = nats.connect(Role::Admin).await.unwrap();
    setup::init(admin.clone(), 1).await.unwrap();
    let reports = jetstream::new(admin).get_stream(REPORTS).await.unwrap();
    let signer = Signer::new();
    let mut config = config(&["anna"], &signer, &nats.url());
    config.nats.credentials = nats.game(config.session, config.attempt, config.ends_at).unwrap();
    config.nats.inbox = game_inbox(config.session, config.attempt);
    let file = written(folder.path(), &serde_json::to_string(&config).unwrap(), 0o600);
    let mut command = command(&file);
    command.args(["--distance-m", "5"]);
    let mut game = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();

    let ready: Ready = report(&reports, &config.ready).await;
    let token = signer.sign(&claims(config.session, "anna"));
    let results = soon(client::drive(&server(ready), &token, Driving::default())).await.unwrap();
    assert_eq!(soon(game.wait()).await.unwrap().code(), Some(0));
    // It is there, and not waited for.
    let finished = reports.get_last_raw_message_by_subject(&config.finished).await.unwrap();
    assert_eq!(serde_json::from_slice::<Finished>(&finished.payload).unwrap().results, results);
}
