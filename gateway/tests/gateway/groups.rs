//! Tickets of groups, and tickets that can never be matched. `support` checks each response against the description.

use garage_events::player::State;
use garage_gateway::token::{GROUPS, sign_service_token};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{App, DEADLINE, TICKETS, key, read};

const GROUPS_PATH: &str = "/v1/matchmaking/groups";

const QUEUES: &str = r#"[queues.teams]
rule_set = "teams.json"
attributes = { skill = "rating", mode = "claim:mode", role = "client" }
timeout_s = 120
regions = { eu = 120, us = 120 }"#;

const RULE_SET: &str = r#"{
    "ruleLanguageVersion": "1.0",
    "playerAttributes": [
        {"name": "skill", "type": "number"},
        {"name": "mode", "type": "string"},
        {"name": "role", "type": "string", "default": "any"}
    ],
    "teams": [{"name": "red", "minPlayers": 3, "maxPlayers": 3}, {"name": "blue", "minPlayers": 3, "maxPlayers": 3}]
}"#;

async fn start() -> App {
    App::start_with(|folder| {
        for (name, text) in [("queues.toml", QUEUES), ("teams.json", RULE_SET)] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Vec::new()
    })
    .await
}

/// Queues a group, like the studio's own backend.
async fn queue(app: &App, key_name: &str, body: &Value) -> (u16, Value) {
    let token = sign_service_token(&key(), "backend", GROUPS, DEADLINE).unwrap();
    let request = app.anonymous(Method::POST, GROUPS_PATH).bearer_auth(token.expose().to_owned());
    read(request.header("Idempotency-Key", key_name).json(body).send().await.unwrap()).await
}

fn member(player: &str) -> Value {
    json!({"player": player, "rank": 900, "latencies": {"eu": 20.4}, "attributes": {"mode": "capture"}})
}

fn group(players: &[&str]) -> Value {
    json!({"queue": "teams", "players": players.iter().copied().map(member).collect::<Vec<_>>()})
}

#[tokio::test]
async fn a_group_gets_one_ticket_that_each_player_reads_and_cancels() {
    let app = start().await;
    let players = ["ann@example.org", "bob"];
    let (status, ticket) = queue(&app, "k", &group(&players)).await;
    assert_eq!((status, &ticket["status"], &ticket["players"]), (201, &json!("waiting"), &json!(players)));
    assert_eq!(queue(&app, "k", &group(&players)).await, (201, ticket.clone()), "a repeated request");
    assert_eq!(app.last().await, 2);

    let State::Waiting(waiting) = app.player("bob").await.state else { panic!("does not wait") };
    assert_eq!(json!(waiting.attributes), json!({"skill": 900.0, "mode": "capture"}));
    assert_eq!(json!(waiting.group), json!(["ann=40example=2Eorg", "bob"]));
    let mut socket = app.socket("ann@example.org", Some(0)).await;
    assert_eq!(socket.event().await["data"]["group"], json!(waiting.group));
    let path = format!("{TICKETS}/{}", ticket["ticket"].as_str().unwrap());
    assert_eq!(app.get("bob", &path).await.1["status"], "waiting");

    assert_eq!(app.cancel("bob", ticket["ticket"].as_str().unwrap()).await.0, 204);
    assert_eq!(socket.event().await["data"]["reason"], "party");
    assert_eq!(queue(&app, "k", &group(&players)).await.1["status"], "ended");
}

#[tokio::test]
async fn a_group_is_refused_as_a_whole_and_the_answer_names_the_player() {
    let app = start().await;
    let (status, _) = queue(&app, "ann", &group(&["ann"])).await;
    assert_eq!(status, 201);
    let (status, problem) = queue(&app, "both", &group(&["bob", "ann"])).await;
    let expected = (409, &json!("/problems/already-waiting"), &json!("ann"));
    assert_eq!((status, &problem["type"], &problem["player"]), expected);

    let mut far = group(&["bob", "cleo@x"]);
    far["players"][1]["latencies"] = json!({"eu": 121});
    let (status, problem) = queue(&app, "far", &far).await;
    let expected = (422, &json!("/problems/latency-too-high"), &json!("cleo@x"));
    assert_eq!((status, &problem["type"], &problem["player"]), expected);

    let mut unknown = group(&["bob"]);
    unknown["players"][0]["attributes"] = json!({"luck": 1});
    let (status, problem) = queue(&app, "unknown", &unknown).await;
    assert_eq!((status, &problem["type"], &problem["player"]), (422, &json!("about:blank"), &json!("bob")));

    let (status, problem) = queue(&app, "large", &group(&["b", "c", "d", "e"])).await;
    assert_eq!((status, &problem["type"]), (422, &json!("/problems/hopeless-ticket")));
    assert_eq!(app.last().await, 1);
}

#[tokio::test]
async fn a_players_token_cannot_queue_a_group() {
    let app = start().await;
    let request = app.request("ann", Method::POST, GROUPS_PATH).json(&group(&["ann"]));
    let (status, problem) = read(request.send().await.unwrap()).await;
    assert_eq!(status, 403, "{problem}");
}

#[tokio::test]
async fn a_player_without_a_value_for_an_attribute_is_refused_at_once() {
    let app = start().await;
    let ask = async |attributes: Value| {
        let body = json!({"queue": "teams", "latencies": {"eu": 20}, "attributes": attributes});
        read(app.request("ann", Method::POST, TICKETS).json(&body).send().await.unwrap()).await
    };
    // The token has no claim `mode`.
    let (status, problem) = ask(json!({"role": "medic"})).await;
    assert_eq!((status, &problem["type"]), (422, &json!("/problems/hopeless-ticket")));
    assert!(problem["detail"].as_str().unwrap().contains("mode"), "{problem}");
    // A player cannot send it.
    let (status, problem) = ask(json!({"mode": "capture"})).await;
    assert_eq!((status, &problem["type"]), (422, &json!("about:blank")));
    assert_eq!(app.last().await, 0);
}
