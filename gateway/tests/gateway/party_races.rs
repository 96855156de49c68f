//! Commands on parties that arrive at the same moment, at two gateways.

use std::net::SocketAddr;

use futures::future::join_all;
use garage_events::{
    log::Load,
    party::{MAX_MEMBERS, State},
    player,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    parties::{code, join, members, party, ready, start},
    support::{App, TICKETS, read, token},
};

/// How often each race runs. Which command comes first is random.
const ROUNDS: usize = 10;

async fn send_to(app: &App, gateway: SocketAddr, player: &str, method: Method, path: &str, body: Value) -> u16 {
    let request = app.anonymous_at(gateway, method, path).bearer_auth(token(player));
    let request = if body.is_null() { request } else { request.json(&body) };
    read(request.send().await.unwrap()).await.0
}

fn ticket() -> Value {
    json!({"queue": "teams", "latencies": {"eu": 20}})
}

/// Checks that each player's own state agrees with the parties: who is a member, and whether all of them wait together.
async fn check(app: &App, players: &[&str]) {
    for name in players {
        let found = app.player(name).await.state;
        let Some(id) = found.party() else {
            assert!(!matches!(found, player::State::Waiting(_)), "{name} waits without the party");
            continue;
        };
        let State::Open(party) = app.log.party(id).await.unwrap().state else { panic!("{name} is in an ended party") };
        assert!(party.member(&name.parse().unwrap()).is_some(), "{name}");
        for member in party.players() {
            let other = app.log.player(member).await.unwrap().state;
            assert_eq!(other.party(), Some(id), "{member}");
            let is_waiting = |state: &player::State| matches!(state, player::State::Waiting(_));
            assert_eq!(is_waiting(&other), is_waiting(&found), "{name} and {member}");
        }
    }
}

#[tokio::test]
async fn two_members_who_queue_at_once_get_one_ticket() {
    let app = start(&[]).await;
    let other = app.another().await;
    party(&app, &["ann", "bob"]).await;
    for _ in 0..ROUNDS {
        ready(&app, "bob").await;
        let queue = async |gateway, player| send_to(&app, gateway, player, Method::POST, TICKETS, ticket()).await;
        let (ann, again, bob) = tokio::join!(queue(app.address, "ann"), queue(other, "ann"), queue(other, "bob"));
        let mut leader = [ann, again];
        leader.sort_unstable();
        assert_eq!((leader, bob), ([201, 409], 409));
        check(&app, &["ann", "bob"]).await;
        let player::State::Waiting(waiting) = app.player("ann").await.state else { panic!("ann waits") };
        assert_eq!(app.cancel("bob", &waiting.ticket.to_string()).await.0, 204);
    }
}

#[tokio::test]
async fn of_two_players_who_join_the_last_place_at_once_one_gets_in() {
    let app = start(&[]).await;
    let other = app.another().await;
    let names: Vec<String> = (1..MAX_MEMBERS).map(|number| format!("player-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    party(&app, &names).await;
    let code = code(&app, names[0]).await;
    for _ in 0..ROUNDS {
        let join = async |gateway, player| {
            send_to(&app, gateway, player, Method::POST, "/v1/parties/join", json!({"code": code})).await
        };
        let answers: (u16, u16) = tokio::join!(join(app.address, "yves"), join(other, "zoe"));
        let in_it = match answers {
            (200, 409) => "yves",
            (409, 200) => "zoe",
            other => panic!("{other:?}"),
        };
        assert_eq!(members(&app, in_it).await.0.len(), MAX_MEMBERS);
        assert_eq!(send_to(&app, other, in_it, Method::POST, "/v1/party/leave", Value::Null).await, 204);
    }
}

#[tokio::test]
async fn a_member_who_leaves_while_the_leader_queues_is_either_in_the_ticket_that_is_cancelled_or_not_in_it() {
    let app = start(&[]).await;
    let other = app.another().await;
    party(&app, &["ann", "bob", "carl"]).await;
    for _ in 0..ROUNDS {
        for player in ["bob", "carl"] {
            ready(&app, player).await;
        }
        let (queued, left) = tokio::join!(
            send_to(&app, app.address, "ann", Method::POST, TICKETS, ticket()),
            send_to(&app, other, "carl", Method::POST, "/v1/party/leave", Value::Null),
        );
        // 409: the gateway read the party before carl left and carl after it, so carl counts as not ready.
        assert!(matches!((queued, left), (201 | 409, 204)), "{queued} {left}");
        assert_eq!(app.player("carl").await.state.party(), None);
        check(&app, &["ann", "bob", "carl"]).await;
        if let player::State::Waiting(waiting) = app.player("ann").await.state {
            assert_eq!(waiting.group.len(), 2, "carl had left before");
            assert_eq!(app.cancel("ann", &waiting.ticket.to_string()).await.0, 204);
        }
        let code = code(&app, "ann").await;
        assert_eq!(join(&app, "carl", &code).await.0, 200);
    }
}

#[tokio::test]
async fn a_player_who_joins_two_parties_at_once_is_in_one() {
    let app = start(&[]).await;
    let other = app.another().await;
    party(&app, &["ann"]).await;
    party(&app, &["bob"]).await;
    let (of_ann, of_bob) = (code(&app, "ann").await, code(&app, "bob").await);
    for _ in 0..ROUNDS {
        let join = async |gateway, code: &str| {
            send_to(&app, gateway, "carl", Method::POST, "/v1/parties/join", json!({"code": code})).await
        };
        let mut answers: [u16; 2] = tokio::join!(join(app.address, &of_ann), join(other, &of_bob)).into();
        answers.sort_unstable();
        assert_eq!(answers, [200, 409]);
        check(&app, &["ann", "bob", "carl"]).await;
        assert_eq!(members(&app, "carl").await.0.len(), 2);
        assert_eq!(send_to(&app, other, "carl", Method::POST, "/v1/party/leave", Value::Null).await, 204);
    }
}

#[tokio::test]
async fn a_storm_of_commands_leaves_the_party_and_its_players_consistent() {
    let app = start(&[]).await;
    let other = app.another().await;
    let names: Vec<String> = (0..MAX_MEMBERS).map(|number| format!("player-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    party(&app, &names).await;
    let code = code(&app, names[0]).await;
    for round in 0..3 {
        let commands = names.iter().enumerate().map(|(number, player)| {
            let (app, code) = (&app, &code);
            let gateway = if (number + round) % 2 == 0 { app.address } else { other };
            async move {
                let send = async |method, path, body| send_to(app, gateway, player, method, path, body).await;
                let ready = json!({"latencies": {"eu": 20}});
                match (number + round) % 4 {
                    0 => vec![
                        send(Method::POST, "/v1/party/leave", Value::Null).await,
                        send(Method::POST, "/v1/parties/join", json!({"code": code})).await,
                    ],
                    1 => vec![send(Method::PUT, "/v1/party/ready", ready).await],
                    2 => vec![send(Method::POST, "/v1/party/invitations", json!({"player": "eve"})).await],
                    _ => vec![
                        send(Method::PUT, "/v1/party/ready", ready).await,
                        send(Method::POST, TICKETS, ticket()).await,
                    ],
                }
            }
        });
        for status in join_all(commands).await.into_iter().flatten() {
            assert!(matches!(status, 200 | 201 | 204 | 404 | 409), "no command fails because of the others: {status}");
        }
        check(&app, &names).await;
    }
}
