//! Tests whole games, from the ready report to the finished report.

use std::time::Duration;

use garage_events::game::Placing;
use garage_gameserver::{
    Options, Outcome,
    client::{self, Driving, InputChannel, RaceError},
    wire::FromServer,
};

use crate::game::{DEADLINE, Game, in_seconds, options, player, soon};

fn absent(name: &str, place: u32) -> Placing {
    Placing { player: player(name), place, time_ms: None, joined: false }
}

#[tokio::test]
async fn two_clients_race_and_get_the_same_result() {
    let mut game = Game::start(&["anna", "bert"], options()).await;
    let (anna, bert) = (game.token("anna"), game.token("bert"));
    let driving = |channel, throttle| Driving { throttle, channel, timeout: DEADLINE };
    let (anna, bert) = tokio::join!(
        client::drive(&game.server, &anna, driving(InputChannel::WebSocket, 0.5)),
        client::drive(&game.server, &bert, driving(InputChannel::Datagram, 1.0)),
    );
    let results = anna.unwrap();
    assert_eq!(results, bert.unwrap());
    assert_eq!(results, game.finished().await.results);
    let order: Vec<_> = results.iter().map(|p| (p.place, p.player.as_str())).collect();
    assert_eq!(order, [(1, "bert"), (2, "anna")]);
    let times: Vec<_> = results.iter().map(|p| p.time_ms.expect("all finished")).collect();
    assert!(times[0] > 500 && times[0] < times[1], "{times:?}");
    assert_eq!(game.outcome().await, Outcome::Finished(results));
}

#[tokio::test]
async fn a_player_who_never_joins_is_placed_last_and_holds_nobody_up() {
    // The race would last for 10 minutes if it waited for the absent player.
    let short =
        Options { join_timeout: Duration::from_millis(100), race_timeout: Duration::from_secs(600), ..options() };
    let mut game = Game::start(&["absent", "bert"], short).await;
    let results = soon(client::drive(&game.server, &game.token("bert"), Driving::default())).await.unwrap();
    assert_eq!((results[0].player.as_str(), results[0].place), ("bert", 1));
    assert!(results[0].time_ms.is_some());
    assert_eq!(results[1], absent("absent", 2));
    assert_eq!(game.finished().await.results, results);
}

#[tokio::test]
async fn a_game_without_players_still_reports_results() {
    let short = Options { join_timeout: Duration::from_millis(10), ..options() };
    let mut game = Game::start(&["bert", "anna"], short).await;
    let expected = vec![absent("anna", 1), absent("bert", 1)];
    assert_eq!(game.finished().await.results, expected);
    assert_eq!(game.outcome().await, Outcome::Finished(expected));
}

#[tokio::test]
async fn reports_are_repeated_until_they_are_acknowledged() {
    let short = Options { join_timeout: Duration::from_millis(10), ..options() };
    let mut game = Game::start_with(&["anna"], short, 3, |_| {}).await;
    assert_eq!(game.finished().await.results, [absent("anna", 1)]);
}

#[tokio::test]
async fn players_who_join_late_or_reconnect_can_finish() {
    let short_wait = Options { join_timeout: Duration::from_millis(100), ..options() };
    let game = Game::start(&["anna", "bert"], short_wait).await;
    let (mut first, _) = game.join("anna").await;
    assert!(matches!(soon(client::receive(&mut first)).await, Ok(FromServer::Start)));
    let (anna, bert) = (game.token("anna"), game.token("bert"));
    let again = async { soon(client::drive(&game.server, &anna, Driving::default())).await.unwrap() };
    let late = async { soon(client::drive(&game.server, &bert, Driving::default())).await.unwrap() };
    let replaced = async {
        // Skip snapshots until the second connection replaces this one.
        loop {
            match soon(client::receive(&mut first)).await {
                Ok(FromServer::Snapshot(_)) => {}
                other => break other,
            }
        }
    };
    let (again, late, replaced) = tokio::join!(again, late, replaced);
    assert!(matches!(replaced, Err(RaceError::Replaced)), "{replaced:?}");
    assert_eq!(again, late);
    assert!(again.iter().all(|placing| placing.time_ms.is_some()), "{again:?}");
}

#[tokio::test]
async fn a_game_ends_at_the_sessions_hard_end() {
    let game = Game::start_with(&["anna"], options(), 0, |config| config.ends_at = in_seconds(2)).await;
    let _here = game.join("anna").await;
    assert_eq!(game.outcome().await, Outcome::Ended);
}

#[tokio::test]
async fn a_game_stops_on_shutdown() {
    let game = Game::start(&["anna"], options()).await;
    let (mut anna, _) = game.join("anna").await;
    game.shutdown.cancel();
    while soon(client::receive(&mut anna)).await.is_ok() {}
    assert_eq!(game.outcome().await, Outcome::Stopped);
}
