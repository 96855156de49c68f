//! Tests the process: its configuration file and its exit codes.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use async_nats::jetstream;
use garage_events::{
    deadline::{exit, exit_blocking},
    game::{Config, Finished, Ready},
    jetstream::setup,
    subject::{REPORTS, game_inbox},
};
use garage_gameserver::client::{self, Driving};
use garage_stack::servers::{Nats, Role};
use serde::de::DeserializeOwned;

use crate::game::{DEADLINE, Signer, claims, config, in_seconds, server, soon};

fn command(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_garage-gameserver"));
    command.arg("--config").arg(file).args(["--bind", "127.0.0.1"]).env_remove("RUST_LOG");
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn write_config(folder: &Path, text: &str, mode: u32) -> PathBuf {
    let file = folder.join("game.json");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    file
}

/// A configuration with a NATS address that does not answer, and its JSON.
fn game(change: impl FnOnce(&mut Config)) -> (Config, String) {
    let mut config = config(&["anna"], &Signer::new(), "nats://127.0.0.1:1");
    change(&mut config);
    let text = serde_json::to_string(&config).unwrap();
    (config, text)
}

/// Waits for a report on a subject.
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
fn an_invalid_configuration_exits_with_2_and_logs_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let output = command(&folder.path().join("none.json")).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(&output), Some(2), "{log}");
    assert!(log.contains("none.json") && log.contains("No such file"), "{log}");

    let (_, text) = game(|_| {});
    let output = command(&write_config(folder.path(), &text, 0o644)).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(&output), Some(2), "{log}");
    assert!(log.contains("0644"), "{log}");

    let output = command(&write_config(folder.path(), "{\"session\":1}", 0o600)).output().unwrap();
    assert_eq!(code(&output), Some(2));

    let (_, text) = game(|config| config.players.clear());
    let output = command(&write_config(folder.path(), &text, 0o600)).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(&output), Some(2), "{log}");
    assert!(log.contains("no players"), "{log}");
}

#[test]
fn a_session_that_has_ended_exits_with_3() {
    let folder = tempfile::tempdir().unwrap();
    let (_, text) = game(|config| config.ends_at = in_seconds(-1));
    let output = command(&write_config(folder.path(), &text, 0o600)).output().unwrap();
    assert_eq!(code(&output), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn sigterm_exits_with_1_and_the_log_contains_no_private_key() {
    let folder = tempfile::tempdir().unwrap();
    // If the signal does not work, the hard end stops the process.
    let (config, text) = game(|config| config.ends_at = in_seconds(30));
    let mut child = command(&write_config(folder.path(), &text, 0o600)).env("RUST_LOG", "trace").spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut log = String::new();
    while !log.contains("report not acknowledged") {
        assert!(stderr.read_line(&mut log).unwrap() > 0, "the process ended early: {log}");
    }
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(exit_blocking(&mut child, DEADLINE).unwrap().code(), Some(1));
    stderr.read_to_string(&mut log).unwrap();
    for line in config.private_key.expose().lines().filter(|line| !line.starts_with("---")) {
        assert!(!log.contains(line), "a line of the private key is in the log");
    }
}

#[tokio::test]
async fn a_finished_game_exits_with_0_after_its_second_report_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::start(folder.path(), 1).await.unwrap();
    let admin = nats.connect(Role::Admin).await.unwrap();
    setup::init(admin.clone(), 1).await.unwrap();
    let reports = jetstream::new(admin).get_stream(REPORTS).await.unwrap();
    let signer = Signer::new();
    let mut config = config(&["anna"], &signer, &nats.url());
    config.nats.credentials = nats.game(config.session, config.attempt, config.ends_at).unwrap();
    config.nats.inbox = game_inbox(config.session, config.attempt);
    let file = write_config(folder.path(), &serde_json::to_string(&config).unwrap(), 0o600);
    let mut command = command(&file);
    command.args(["--distance-m", "5"]);
    let mut game = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();

    let ready: Ready = report(&reports, &config.ready).await;
    let token = signer.sign(&claims(config.session, "anna"));
    let results = soon(client::drive(&server(ready), &token, Driving::default())).await.unwrap();
    assert_eq!(exit(&mut game, DEADLINE).await.unwrap().code(), Some(0));
    // Read the second report without waiting: it must be stored already.
    let finished = reports.get_last_raw_message_by_subject(&config.finished).await.unwrap();
    assert_eq!(serde_json::from_slice::<Finished>(&finished.payload).unwrap().results, results);
}
