//! The log and the database are lost and restored with the commands of `deploy/docs/operating.md`.

use std::path::Path;

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use garage_events::subject::{HISTORY, STREAM};
use garage_stack::bot::Bot;
use reqwest::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::{
    Garage, Setup,
    history::{self, assert_notified, paid},
    operations, play, until,
};

/// Everything that a stream stores of a message.
#[derive(Debug, Clone, PartialEq)]
struct StoredMessage {
    seq: u64,
    time: OffsetDateTime,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

/// All messages of a stream, read from its leader.
async fn messages(garage: &Garage, stream: &str) -> Vec<StoredMessage> {
    let stream = garage.jetstream().get_stream(stream).await.unwrap();
    let state = stream.cached_info().state.clone();
    let mut messages = Vec::new();
    for seq in state.first_sequence..=state.last_sequence {
        let jetstream::message::StreamMessage { subject, sequence, headers, payload, time } =
            stream.get_raw_message(seq).await.unwrap();
        messages.push(StoredMessage { seq: sequence, time, subject: subject.to_string(), headers, payload });
    }
    messages
}

/// The history's messages, once it has mirrored the whole log.
async fn mirrored(garage: &Garage) -> Vec<StoredMessage> {
    let end = messages(garage, STREAM).await.last().map(|message| message.seq);
    until("the history has mirrored the whole log", async || {
        let history = messages(garage, HISTORY).await;
        (history.last().map(|message| message.seq) == end).then_some(history)
    })
    .await
}

async fn back_up(garage: &Garage, backup: &Path) {
    let variables = operations::variables(&garage.stack.nats, &garage.stack.database, backup);
    operations::run("backup", garage.stack.root(), &variables).await;
}

/// A player's garage (cars, items, slots, balance), and all entries of the wallet's ledger.
async fn belongings(bot: &Bot) -> (Value, Value) {
    let garage = bot.ask_with_retry(Method::GET, "/v1/garage", None).await.unwrap();
    (garage, bot.ask_with_retry(Method::GET, "/v1/wallet/ledger?limit=100", None).await.unwrap())
}

async fn all_belongings(bots: &[Bot]) -> Vec<(Value, Value)> {
    futures::future::join_all(bots.iter().map(belongings)).await
}

/// Backs up an idle Garage, destroys it, and restores it.
async fn everything_is_restored(setup: Setup) {
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup");
    let garage = setup.clone().start().await;
    let bots = garage.bots("player", 4);
    let tyres = json!({"item": "tyres-sport"});
    bots[0].command::<Value>(Method::POST, "/v1/garage/items", Some(tyres.clone()), "1").await.unwrap();
    bots[0].command::<Value>(Method::PUT, "/v1/garage/cars/pebble/slots/tyres", Some(tyres), "2").await.unwrap();
    play(&bots).await;
    play(&bots).await;
    garage.settled().await;
    let (log, history) = (messages(&garage, STREAM).await, mirrored(&garage).await);
    let owned = all_belongings(&bots).await;
    back_up(&garage, &backup).await;
    drop(garage);

    let garage = setup.restored(&backup).start().await;
    let bots = garage.bots("player", 4);
    // Every reaction runs again and finds nothing to do.
    let events = garage.settled().await;
    assert_eq!(messages(&garage, STREAM).await, log);
    assert_eq!(mirrored(&garage).await, history);
    assert_eq!(all_belongings(&bots).await, owned);

    let played = play(&bots).await;
    let all = garage.settled().await;
    assert_eq!(all[..events.len()], events);
    for ((bot, played), (before, _)) in bots.iter().zip(&played).zip(owned) {
        let new = &all[events.len()..];
        assert_notified(new, &bot.player, &played.frames);
        assert_eq!((paid(&all, &bot.player).len(), paid(new, &bot.player).len()), (3, 1));
        assert_eq!(bot.balance().await.unwrap(), before["balance"].as_u64().unwrap() + played.earned);
    }
    // The history continues where it ended.
    assert_eq!(mirrored(&garage).await.len(), all.len());
}

#[tokio::test]
async fn everything_is_restored_on_one_node() {
    everything_is_restored(Setup::short()).await;
}

#[tokio::test]
async fn everything_is_restored_on_three_nodes() {
    everything_is_restored(Setup::short().three_nodes()).await;
}

#[tokio::test]
async fn players_of_matches_that_ran_during_the_backup_are_released() {
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup");
    // The session's first request for a game server records its hard end, so the restored Garage cannot shorten it.
    let garage = Setup::long().env("GARAGE_SESSION_S", "40").start().await;
    let bots = garage.bots("player", 4);
    for bot in &bots {
        bot.queue("ranked").await.unwrap();
    }
    garage.until_event("Opened", 2).await;
    back_up(&garage, &backup).await;
    drop(garage);

    let garage = Setup::short().restored(&backup).start().await;
    let events = garage.settled().await;
    assert_eq!((history::count(&events, "Closed"), history::count(&events, "Released")), (2, 4));
    let bots = garage.bots("player", 4);
    play(&bots).await;
    let events = garage.settled().await;
    for bot in &bots {
        assert_eq!(paid(&events, &bot.player).len(), 1);
    }
}

#[tokio::test]
async fn a_database_older_than_the_log_receives_the_missing_rewards() {
    let folder = tempfile::tempdir().unwrap();
    let (older, backup) = (folder.path().join("older"), folder.path().join("backup"));
    let garage = Setup::short().start().await;
    let bots = garage.bots("player", 2);
    play(&bots).await;
    garage.settled().await;
    back_up(&garage, &older).await;
    play(&bots).await;
    garage.settled().await;
    let mut balances = Vec::new();
    for bot in &bots {
        balances.push(bot.balance().await.unwrap());
    }
    back_up(&garage, &backup).await;
    drop(garage);
    std::fs::copy(older.join("garage.sql"), backup.join("garage.sql")).unwrap();

    let garage = Setup::short().restored(&backup).start().await;
    for (bot, balance) in garage.bots("player", 2).iter().zip(balances) {
        let what = format!("{} has {balance} coins again", bot.player);
        until(&what, async || (bot.balance().await.ok()? == balance).then_some(())).await;
    }
    garage.drained().await;
    for bot in garage.bots("player", 2) {
        let (_, ledger) = belongings(&bot).await;
        let rewards = ledger["entries"].as_array().unwrap().iter().filter(|entry| entry["reason"] == "reward").count();
        assert_eq!(rewards, 2, "{ledger}");
    }
}

#[tokio::test]
async fn an_invalid_backup_and_one_that_would_overwrite_data_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup");
    let garage = Setup::short().start().await;
    back_up(&garage, &backup).await;
    let to = backup.display().to_string();
    let refused = async |args: &[&str], why: &str| {
        let (done, text) = garage.cli(args).await;
        assert!(!done && text.contains(why), "{args:?}: {text}");
    };
    refused(&["backup", &to], "cannot create").await;
    refused(&["restore", &to], "stream GARAGE already exists").await;
    refused(&["restore", folder.path().to_str().unwrap()], "is not a complete backup").await;
    let log = backup.join("GARAGE.snapshot");
    let mut bytes = std::fs::read(&log).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&log, &bytes).unwrap();
    refused(&["restore", &to], "GARAGE.snapshot has changed since the backup").await;
    std::fs::remove_file(&log).unwrap();
    refused(&["restore", &to], "cannot read").await;
}
