//! `garage verify` on a log that players and workers wrote, and on forged entries.

use std::{fs, path::Path};

use async_nats::HeaderMap;
use garage_events::{
    jetstream::written::{BATCH, BATCH_COMMIT, BATCH_NUMBER},
    subject::STREAM,
};
use serde_json::{Value, json};

use crate::support::{
    Garage, Setup,
    history::{self, paid},
    play, until,
};

/// The arguments that check everything, with the game servers of this folder.
fn all_arguments(garage: &Garage, instances: &Path) -> Vec<String> {
    let stack = &garage.stack;
    let mut args = vec!["verify".into(), "--redis".into(), "--mysql".into()];
    let mut with = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    with("--redis-url", stack.redis.url());
    with("--redis-password-file", stack.redis.password_file().display().to_string());
    with("--mysql-url", stack.database.url());
    with("--mysql-password-file", stack.database.password_file().display().to_string());
    with("--instances", instances.display().to_string());
    for entry in fs::read_dir(stack.root().join("secrets")).unwrap() {
        let path = entry.unwrap().path();
        if !fs::read_to_string(&path).unwrap().contains("PUBLIC KEY") {
            with("--secret-file", path.display().to_string());
        }
    }
    args
}

async fn verify(garage: &Garage, args: &[String]) -> (bool, String) {
    garage.cli(&args.iter().map(String::as_str).collect::<Vec<_>>()).await
}

/// Checks everything when no work is in progress, once the projections have applied the whole log. Returns the summary
/// that `garage verify` prints.
pub(crate) async fn until_valid(garage: &Garage) -> String {
    let args = [all_arguments(garage, &garage.stack.instances_folder()), vec!["--settled".into()]].concat();
    until("the projections have applied the whole log", async || {
        let (valid, text) = verify(garage, &args).await;
        assert!(valid || text.contains("the projections have not applied"), "{text}");
        valid.then_some(text)
    })
    .await
}

/// The violations when no work is in progress: rule, player, session and sequences.
async fn violations(garage: &Garage, args: &[String]) -> Vec<Value> {
    let (valid, text) = verify(garage, &[args, &["--settled".into(), "--json".into()]].concat()).await;
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found: Vec<_> =
        lines.map(|line| json!([line["rule"], line["player"], line["session"], line["seqs"]])).collect();
    assert_eq!(valid, found.is_empty(), "{text}");
    found
}

#[tokio::test]
async fn a_real_log_is_valid_and_forged_entries_are_found() {
    // The first server of each match dies.
    let script = "case $config in *-1/config.json) exit 1;; esac";
    let garage = Setup::short().instances(2).game_server(script).start().await;
    let bots = garage.bots("player", 4);
    let cancels = garage.bot("cancels");
    cancels.cancel(&cancels.queue("ranked").await.unwrap()).await.unwrap();
    let args = all_arguments(&garage, &garage.stack.instances_folder());

    // During the matches.
    let playing = async {
        play(&bots).await;
        play(&bots).await;
    };
    let watching = async {
        loop {
            let (valid, text) = verify(&garage, &args).await;
            assert!(valid, "{text}");
        }
    };
    tokio::select! {
        () = playing => {}
        () = watching => {}
    }

    // After the matches.
    let events = garage.settled().await;
    let text = until_valid(&garage).await;
    let expected = format!("{} events: 5 players, 4 sessions, 9 tickets, 8 paid; no violations", events.len());
    assert!(text.contains(&expected), "{text}");
    assert_eq!(violations(&garage, &args).await, [] as [Value; 0]);

    // A wrong projection, and a game server that was not removed.
    let mut connection = garage.redis().await;
    let seq: u64 = redis::cmd("HGET").arg("garage:watermark").arg("seq").query_async(&mut connection).await.unwrap();
    let wrong = json!({ "status": "waiting", "queue": "ranked", "since": "2026-01-01T00:00:00Z" }).to_string();
    redis::cmd("HSET").arg("garage:players").arg("player-0").arg(wrong).exec_async(&mut connection).await.unwrap();
    assert_eq!(violations(&garage, &args).await, [json!(["projected", "player-0", null, [seq]])]);
    redis::cmd("HDEL").arg("garage:players").arg("player-0").exec_async(&mut connection).await.unwrap();

    let session = history::sessions(&events)[0];
    let closed = history::of_session(&events, session).last().unwrap().seq;
    // In another folder, which no director lists.
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join(format!("game-{session}-1"))).unwrap();
    let found = violations(&garage, &all_arguments(&garage, folder.path())).await;
    assert_eq!(found, [json!(["instance", null, session, [closed]])]);

    // An operator repeats a payment, with the correct expectation and the next number.
    let reward = paid(&events, "player-0")[0];
    let last = history::of_belongings(&events, "player-0").last().unwrap();
    let jetstream = garage.jetstream();
    let message = jetstream.get_stream(STREAM).await.unwrap().get_raw_message(reward.seq).await.unwrap();
    let mut body: Value = serde_json::from_slice(&message.payload).unwrap();
    body["n"] = json!(last.n + 1);
    let mut headers = HeaderMap::new();
    for (name, values) in message.headers.iter() {
        let name: &str = name.as_ref();
        if ![BATCH, BATCH_NUMBER, BATCH_COMMIT].contains(&name) {
            headers.insert(name, values[0].clone());
        }
    }
    headers.insert("Nats-Expected-Last-Subject-Sequence", last.seq.to_string().as_str());
    let forged = jetstream.publish_with_headers(message.subject, headers, body.to_string().into());
    let forged = forged.await.unwrap().await.unwrap().sequence;
    let expected = json!(["paid", "player-0", reward.text("session"), [reward.seq, forged]]);
    assert_eq!(violations(&garage, &args).await, [expected]);
    let (valid, text) = verify(&garage, &args).await;
    assert!(!valid && text.contains("player player-0") && text.contains(reward.text("session")), "{text}");
}
