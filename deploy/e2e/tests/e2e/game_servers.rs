//! Game servers that exit, hang, or never end.

use std::fs;

use garage_events::{player::Address, presence};
use garage_gameserver::{
    client::{self, Connection},
    wire::{FromClient, FromServer},
};
use garage_stack::{
    bot::{Bot, EventStream},
    workers::Worker,
};
use garage_worker::Shutdown;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{
    Garage, NO_REQUEUE, Setup,
    history::{self, Event, assert_notified, of_session, paid, steps},
    play, until,
};

/// Two queued players with their event streams.
async fn queued(garage: &Garage) -> Vec<(Bot, EventStream)> {
    let mut players = Vec::new();
    for bot in garage.bots("player", 2) {
        let event_stream = bot.event_stream().await.unwrap();
        bot.queue("ranked").await.unwrap();
        players.push((bot, event_stream));
    }
    players
}

/// Asserts that both players are released for this reason, can queue again, and were not paid. Returns the log.
async fn assert_released(garage: &Garage, players: Vec<(Bot, EventStream)>, why: &str, reason: &str) -> Vec<Event> {
    let mut balances = Vec::new();
    for (bot, mut event_stream) in players {
        let released = loop {
            let frame = event_stream.next().await.unwrap();
            if frame.type_name == "Released" {
                break frame;
            }
        };
        assert_eq!(released.data["why"], why);
        assert_eq!(released.data["reason"], reason);
        let ticket = released.data["ticket"].as_str().unwrap();
        let path = format!("/v1/matchmaking/tickets/{ticket}");
        let shown: Value = bot.ask_with_retry(Method::GET, &path, None).await.unwrap();
        assert_eq!((&shown["ended"], &shown["reason"]), (&json!(why), &json!(reason)));
        balances.push(bot.balance().await.unwrap());
        assert_notified(&garage.events().await, &bot.player, event_stream.frames());
        let ticket = bot.queue("ranked").await.unwrap();
        bot.cancel(&ticket).await.unwrap();
        event_stream.close().await;
    }
    let events = garage.settled().await;
    assert_eq!(balances, [1_000, 1_000]);
    assert!(events.iter().all(|event| event.type_name != "RewardGranted"));
    assert_eq!(history::sessions(&events).len(), 1);
    events
}

fn the_session(events: &[Event]) -> Vec<&Event> {
    of_session(events, history::sessions(events)[0])
}

/// Connects to the game server and joins.
async fn join(bot: &Bot, event_stream: &mut EventStream) -> Connection {
    let data = event_stream.until("PlayerMatched").await.unwrap().data;
    let address: Address = serde_json::from_value(data.clone()).unwrap();
    let (server, token) = bot.admission(data["session"].as_str().unwrap(), &address).await.unwrap();
    let mut connection = client::connect(&server).await.unwrap();
    let token = garage_events::game::Secret::new(token);
    client::send(&mut connection, &FromClient::Join { token }).await.unwrap();
    connection
}

/// Lets all players join, and waits until the race has started.
async fn race(players: &mut [(Bot, EventStream)]) -> Vec<Connection> {
    let mut connections = Vec::new();
    for (bot, event_stream) in players {
        connections.push(join(bot, event_stream).await);
    }
    for connection in &mut connections {
        while !matches!(client::receive(connection).await.unwrap(), FromServer::Start) {}
    }
    connections
}

#[tokio::test]
async fn a_game_server_that_exits_before_it_reports_is_replaced() {
    let script = "case $config in *-1/config.json) echo no engine; exit 7;; esac";
    let garage = Setup::short().game_server(script).start().await;

    let played = play(&garage.bots("player", 2)).await;

    let events = garage.settled().await;
    let session = the_session(&events);
    let failed = session.iter().find(|event| event.type_name == "PodFailed").unwrap();
    assert_eq!((failed.number("attempt"), failed.text("reason")), (1, "exited"));
    assert_eq!(failed.text("message"), "exit code 7: no engine");
    let opened = session.iter().find(|event| event.type_name == "Opened").unwrap();
    assert_eq!(opened.number("attempt"), 2);
    assert_eq!(history::count(&events, "PodRequested"), 2);
    for played in played {
        assert_eq!(played.frames.len(), 4);
    }
}

#[tokio::test]
async fn a_game_server_that_never_reports_is_replaced_after_its_deadline() {
    let script = "case $config in *-1/config.json) hang;; esac";
    let garage = Setup::short().env("GARAGE_READY_S", "15").game_server(script).start().await;

    play(&garage.bots("player", 2)).await;

    let events = garage.settled().await;
    let expected =
        ["Matched", "PodRequested", "PodScheduled", "PodFailed", "PodRequested", "PodScheduled", "PodReady", "Opened"];
    assert_eq!(steps(&the_session(&events))[..8], expected);
    let failed = events.iter().find(|event| event.type_name == "PodFailed").unwrap();
    assert_eq!((failed.number("attempt"), failed.text("reason")), (1, "not-ready"));
}

#[tokio::test]
async fn a_session_whose_game_servers_all_exit_fails_and_releases_its_players() {
    let garage = Setup::short().queues(NO_REQUEUE).game_server("exit 7").start().await;
    let players = queued(&garage).await;
    let events = assert_released(&garage, players, "failed", "server_failed").await;
    let mut expected = vec!["Matched"];
    for event in the_session(&events).iter().filter(|event| event.type_name == "PodFailed") {
        assert_eq!(event.text("reason"), "exited");
    }
    // A server may exit before its placement is recorded.
    let seen: Vec<_> = steps(&the_session(&events)).into_iter().filter(|name| *name != "PodScheduled").collect();
    for _ in 0..3 {
        expected.extend(["PodRequested", "PodFailed"]);
    }
    expected.extend(["Failed", "Closed"]);
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn players_whose_match_fails_wait_again_with_the_same_ticket_and_play_later() {
    // The servers fail until this file exists.
    let script = "[ -e $root/works ] || exit 7";
    let garage = Setup::short().env("GARAGE_ATTEMPTS", "1").game_server(script).start().await;
    let mut players = queued(&garage).await;
    let mut requeued = Vec::new();
    for (_, event_stream) in &mut players {
        requeued.push(event_stream.until("Requeued").await.unwrap());
    }
    std::fs::write(garage.stack.root().join("works"), "").unwrap();
    for ((bot, event_stream), requeued) in players.iter_mut().zip(&requeued) {
        let queued = &event_stream.frames()[0];
        assert_eq!(requeued.data["reason"], "server_failed");
        for field in ["ticket", "queue", "waiting_since", "expires_at", "rank", "latencies"] {
            assert_eq!(requeued.data[field], queued.data[field], "{field}");
        }
        let ticket = queued.data["ticket"].clone();
        let matched = event_stream.until("PlayerMatched").await.unwrap();
        assert_eq!(matched.data["ticket"], ticket, "{}", bot.player);
    }
    for (_, event_stream) in &mut players {
        assert_eq!(event_stream.until("Released").await.unwrap().data["why"], "finished");
    }
    let events = garage.settled().await;
    assert!(history::count(&events, "Requeued") >= 2);
    for (bot, event_stream) in players {
        assert_notified(&events, &bot.player, event_stream.frames());
        event_stream.close().await;
    }
}

#[tokio::test]
async fn a_session_waits_until_a_port_is_free() {
    // A game server that finds no port exits with 75.
    let script = "[ -e $root/free ] || { echo all ports are in use; exit 75; }";
    let garage = Setup::short().env("GARAGE_ATTEMPTS", "1").game_server(script).start().await;
    let mut players = queued(&garage).await;
    garage.until_event("PodFailed", 2).await;
    std::fs::write(garage.stack.root().join("free"), "").unwrap();
    for (_, event_stream) in &mut players {
        event_stream.until("Released").await.unwrap();
    }
    let events = garage.settled().await;
    let failed = events.iter().filter(|event| event.type_name == "PodFailed");
    for event in failed {
        assert_eq!(
            (event.text("reason"), event.text("message")),
            ("no-capacity", "exit code 75: all ports are in use")
        );
    }
    assert_eq!((history::sessions(&events).len(), history::count(&events, "Requeued")), (1, 0));
}

#[tokio::test]
async fn a_player_who_has_left_is_not_requeued_when_the_match_fails() {
    let script = "until [ -e $root/fail ]; do sleep 0.1; done; exit 7";
    let garage = Setup::short().env("GARAGE_ATTEMPTS", "1").game_server(script).start().await;
    let mut players = queued(&garage).await;
    garage.until_event("PodRequested", 1).await;
    let (left, event_stream) = players.pop().unwrap();
    event_stream.close().await;
    let bucket = garage.jetstream().get_stream_no_info(presence::STREAM).await.unwrap();
    let key = presence::Key::Player(left.player.parse().unwrap()).to_string();
    until("the gateway notes that the player has left", async || {
        let entry = bucket.get_last_raw_message_by_subject(&key).await.ok()?;
        serde_json::from_slice::<presence::Connection>(&entry.payload).ok()?.left.map(drop)
    })
    .await;
    std::fs::write(garage.stack.root().join("fail"), "").unwrap();
    players[0].1.until("Requeued").await.unwrap();
    let events = garage.events().await;
    let released = events.iter().find(|event| event.type_name == "Released").unwrap();
    assert_eq!((released.text("player"), released.text("reason")), (left.player.as_str(), "server_failed"));
}

#[tokio::test]
async fn a_game_server_killed_during_the_race_ends_the_match_without_rewards() {
    let garage = Setup::long().start().await;
    let mut players = queued(&garage).await;
    let _connections = race(&mut players).await;

    let running = garage.stack.game_servers();
    assert_eq!(running.len(), 1);
    kill(Pid::from_raw(running[0].try_into().unwrap()), Signal::SIGKILL).unwrap();

    let events = assert_released(&garage, players, "failed", "server_lost").await;
    let expected = ["Matched", "PodRequested", "PodScheduled", "PodReady", "Opened", "PodFailed", "Failed", "Closed"];
    assert_eq!(steps(&the_session(&events)), expected);
    assert_eq!(the_session(&events)[5].text("reason"), "killed");
    assert!(paid(&events, "player-0").is_empty());
}

#[tokio::test]
async fn a_game_server_that_misbehaves_during_the_race_is_ended_at_once() {
    let garage = Setup::long().start().await;
    let mut players = queued(&garage).await;
    let _connections = race(&mut players).await;

    let session = history::sessions(&garage.events().await)[0];
    let server = garage.hostile_server(session, 1);
    let stop = Shutdown::new();
    let flooding = tokio::spawn({
        let stop = stop.clone();
        async move { server.run(&server.reports(4_096), stop).await }
    });

    let events = assert_released(&garage, players, "failed", "bad_results").await;
    stop.cancel();
    flooding.await.unwrap();
    let expected = ["Matched", "PodRequested", "PodScheduled", "PodReady", "Opened", "PodFailed", "Failed", "Closed"];
    assert_eq!(steps(&the_session(&events)), expected);
    assert_eq!(the_session(&events)[5].text("reason"), "misbehaved");
    assert!(garage.stack.game_servers().is_empty());
    let (_, dead_letters) = garage.cli(&["dead", "list", "--json"]).await;
    assert_eq!(dead_letters.lines().count(), 1, "{dead_letters}");
}

#[tokio::test]
async fn a_session_whose_server_never_reports_is_abandoned_at_its_hard_end() {
    let setup = Setup::short().queues(NO_REQUEUE).env("GARAGE_SESSION_S", "10");
    let garage = setup.game_server("hang").start().await;
    let players = queued(&garage).await;
    let events = assert_released(&garage, players, "abandoned", "time_limit").await;
    assert_eq!(steps(&the_session(&events)), ["Matched", "PodRequested", "PodScheduled", "Failed", "Closed"]);
    assert_eq!(the_session(&events)[3].text("reason"), "hard-end");
}

#[tokio::test]
async fn a_session_still_racing_is_abandoned_at_its_hard_end() {
    let garage = Setup::long().env("GARAGE_SESSION_S", "10").start().await;
    let mut players = queued(&garage).await;
    let _connections = race(&mut players).await;
    let events = assert_released(&garage, players, "abandoned", "time_limit").await;
    let ending = steps(&the_session(&events))[5..].to_vec();
    assert_eq!(ending, ["Failed", "Closed"]);
    assert_eq!(the_session(&events)[5].text("reason"), "hard-end");
}

#[tokio::test]
async fn launchers_that_drop_their_arguments_stop_no_other_match() {
    // More than the director handles at the same time. The launcher of the others passes on a relative path, and leaves
    // a process behind.
    const STUCK: usize = 16;
    let script = "if grep -q stuck- $config; then
            case $config in *-1/config.json) exec sleep 6000;; *) exit 7;; esac
        fi
        config=config.json
        sleep 6000 &";
    let mut garage = Setup::short().env("GARAGE_READY_S", "15").game_server(script).start().await;
    for bot in garage.bots("stuck", 2 * STUCK) {
        bot.queue("ranked").await.unwrap();
    }
    garage.until_event("PodScheduled", STUCK).await;
    assert_eq!(garage.stack.game_servers().len(), STUCK);
    garage.kill_and_restart(Worker::Director);
    garage.until_event("Closed", STUCK).await;

    play(&garage.bots("player", 2)).await;

    let events = garage.settled().await;
    assert_eq!(history::count(&events, "Finished"), 1);
    assert_eq!(paid(&events, "player-0").len(), 1);
}

#[tokio::test]
async fn no_game_server_outlives_the_stack() {
    let script = "sleep 6000 & echo $! >> $root/pids; echo $$ >> $root/pids; exec env -i sleep 6000";
    let mut garage = Setup::short().game_server(script).start().await;
    for bot in garage.bots("player", 2) {
        bot.queue("ranked").await.unwrap();
    }
    garage.until_event("PodScheduled", 1).await;
    let noted = fs::read_to_string(garage.stack.root().join("pids")).unwrap();
    assert_eq!(noted.lines().count(), 2);

    garage.stack.stop().await;

    let ended = |pid: &str| fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty());
    assert!(noted.lines().all(ended), "{noted}");
}
