//! Parties through REST. `support` checks each response against the description.

use futures::future::join_all;
use garage_events::{
    env::{Env, System},
    log::{Append, Decision, Load},
    party::{self, MAX_MEMBERS},
    player::{self, CancelReason, Ending, Event, State},
    subject::Aggregate,
};
use garage_gateway::token::{GROUPS, sign_service_token};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    blocks,
    support::{App, DEADLINE, TICKETS, key, matched, read},
};

/// Two teams of up to 10, so that each party fits; `duo` has teams of 2.
const QUEUES: &str = r#"[queues.teams]
rule_set = "teams.json"
attributes = { mode = "claim:mode", role = "client" }
timeout_s = 120
regions = { eu = 120, us = 120 }
[queues.duo]
rule_set = "duo.json"
timeout_s = 120
regions = { eu = 120, us = 120 }"#;

fn rule_set(size: u32, attributes: &Value) -> String {
    let team = |name: &str| json!({"name": name, "minPlayers": 1, "maxPlayers": size});
    let attributes = attributes.clone();
    json!({"ruleLanguageVersion": "1.0", "playerAttributes": attributes, "teams": [team("red"), team("blue")]})
        .to_string()
}

/// Starts a gateway with queues for parties and with these flags, and no limit for the requests of one player.
pub(crate) async fn start(flags: &[&str]) -> App {
    App::start_with(|folder| {
        let attributes = json!([
            {"name": "mode", "type": "string", "default": "any"}, {"name": "role", "type": "string", "default": "any"}
        ]);
        for (name, text) in [
            ("queues.toml", QUEUES.to_owned()),
            ("teams.json", rule_set(10, &attributes)),
            ("duo.json", rule_set(2, &json!([]))),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let limits = ["--limit-parties=off", "--limit-party-joins=off", "--limit-reads=off", "--limit-tickets=off"];
        limits.iter().chain(flags).map(|flag| (*flag).to_owned()).collect()
    })
    .await
}

/// Sends a request of a player, with a body unless it is null.
pub(crate) async fn send(app: &App, player: &str, method: Method, path: &str, body: Value) -> (u16, Value) {
    let request = app.request(player, method, path);
    let request = if body.is_null() { request } else { request.json(&body) };
    read(request.send().await.unwrap()).await
}

pub(crate) async fn post(app: &App, player: &str, path: &str, body: Value) -> (u16, Value) {
    send(app, player, Method::POST, path, body).await
}

/// Queues the party of a player.
pub(crate) async fn queue(app: &App, player: &str) -> (u16, Value) {
    post(app, player, TICKETS, json!({"queue": "teams", "latencies": {"eu": 20}})).await
}

pub(crate) async fn ready(app: &App, player: &str) {
    let (status, body) =
        send(app, player, Method::PUT, "/v1/party/ready", json!({"latencies": {"eu": 30, "us": 40}})).await;
    assert_eq!(status, 200, "{body}");
}

/// Creates a party of these players, who join with a code. The first one leads it. Returns its id.
pub(crate) async fn party(app: &App, players: &[&str]) -> String {
    let (status, party) = post(app, players[0], "/v1/parties", Value::Null).await;
    assert_eq!(status, 201, "{party}");
    if players.len() > 1 {
        let code = code(app, players[0]).await;
        for player in &players[1..] {
            assert_eq!(join(app, player, &code).await.0, 200, "{player}");
        }
    }
    party["party"].as_str().unwrap().to_owned()
}

pub(crate) async fn code(app: &App, leader: &str) -> String {
    let (status, code) = post(app, leader, "/v1/party/code", Value::Null).await;
    assert_eq!(status, 201, "{code}");
    code["code"].as_str().unwrap().to_owned()
}

pub(crate) async fn join(app: &App, player: &str, code: &str) -> (u16, Value) {
    post(app, player, "/v1/parties/join", json!({"code": code})).await
}

/// The members of the player's party, the longest-standing first, and its leader. Empty if the player is in none.
pub(crate) async fn members(app: &App, player: &str) -> (Vec<String>, String) {
    let (status, party) = app.get(player, "/v1/party").await;
    if status == 404 {
        return (Vec::new(), String::new());
    }
    let members = party["members"].as_array().unwrap().iter();
    let members = members.map(|member| member["sub"].as_str().unwrap().to_owned()).collect();
    (members, party["leader"].as_str().unwrap().to_owned())
}

pub(crate) async fn waits(app: &App, player: &str) -> bool {
    matches!(app.player(player).await.state, State::Waiting(_))
}

#[track_caller]
fn is(answer: &(u16, Value), status: u16, kind: &str) {
    assert_eq!((answer.0, answer.1["type"].as_str()), (status, Some(kind)), "{}", answer.1);
}

const NONE: &str = "about:blank";

#[tokio::test]
async fn a_player_creates_a_party_and_others_join_by_invitation_or_with_a_code() {
    let app = start(&[]).await;
    is(&app.get("ann@x", "/v1/party").await, 404, NONE);
    let id = party(&app, &["ann@x"]).await;
    assert_eq!(app.get("ann@x", "/v1/players/me").await.1["party"], json!(id));

    let (status, invited) = post(&app, "ann@x", "/v1/party/invitations", json!({"player": "bob"})).await;
    assert_eq!((status, &invited["invited"][0]["sub"]), (200, &json!("bob")));
    is(&post(&app, "carl", &format!("/v1/parties/{id}/join"), Value::Null).await, 404, NONE);
    let (status, joined) = post(&app, "bob", &format!("/v1/parties/{id}/join"), Value::Null).await;
    assert_eq!((status, joined.get("invited")), (200, None), "the invitation is used");

    let code = code(&app, "ann@x").await;
    let typed = format!("{}-{}", &code[..5].to_lowercase(), &code[5..]);
    assert_eq!(join(&app, "carl", &typed).await.0, 200);
    assert_eq!(join(&app, "carl", &code).await.0, 200, "a repeated request changes nothing");
    let expected = ["ann@x", "bob", "carl"].map(String::from).to_vec();
    for player in ["ann@x", "bob", "carl"] {
        assert_eq!(members(&app, player).await, (expected.clone(), "ann=40x".into()));
    }
}

#[tokio::test]
async fn a_repeated_creation_with_the_same_key_gets_the_same_party() {
    let app = start(&[]).await;
    let create = async |key: &str| {
        read(app.request("ann", Method::POST, "/v1/parties").header("Idempotency-Key", key).send().await.unwrap()).await
    };
    let first = create("k").await;
    assert_eq!((first.0, create("k").await), (201, first.clone()));
    is(&create("other").await, 409, "/problems/in-party");
    assert_eq!(post(&app, "ann", "/v1/party/leave", Value::Null).await.0, 204);
    assert_eq!(create("k").await.0, 422, "the party has ended");
    assert_eq!(create("new").await.0, 201);
}

#[tokio::test]
async fn a_new_code_replaces_the_old_one_and_every_wrong_way_in_has_the_same_answer() {
    let app = start(&[]).await;
    let id = party(&app, &["ann"]).await;
    let old = code(&app, "ann").await;
    let new = code(&app, "ann").await;
    let mut answers = vec![
        join(&app, "bob", &old).await,
        join(&app, "bob", "0000000000").await,
        post(&app, "bob", &format!("/v1/parties/{id}/join"), Value::Null).await,
        post(&app, "bob", "/v1/parties/0198c5a0-7b1e-7c3d-8000-0123456789ab/join", Value::Null).await,
        post(&app, "bob", "/v1/party/leave", Value::Null).await,
        app.get("bob", "/v1/party").await,
    ];
    assert_eq!(answers[0].0, 404);
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(join(&app, "bob", &new).await.0, 200);
    let mut from = 1;
    while let Some(message) = app.log.next("garage.party.*", from).await.unwrap() {
        let text = String::from_utf8_lossy(&message.payload).into_owned();
        assert!(!text.contains(&new) && !text.contains(&old), "the log never holds a code: {text}");
        from = message.sequence + 1;
    }
    assert!(from > 1);
}

#[tokio::test]
async fn only_the_leader_removes_members_hands_over_makes_codes_and_disbands() {
    let app = start(&[]).await;
    party(&app, &["ann", "bob", "carl@x"]).await;
    for (method, path, body) in [
        (Method::DELETE, "/v1/party", Value::Null),
        (Method::DELETE, "/v1/party/members/ann", Value::Null),
        (Method::PUT, "/v1/party/leader", json!({"player": "bob"})),
        (Method::POST, "/v1/party/code", Value::Null),
    ] {
        let answer = send(&app, "bob", method, path, body).await;
        is(&answer, 403, "/problems/not-leader");
        assert_eq!(answer.1["leader"], "ann");
    }
    let answer = send(&app, "ann", Method::DELETE, "/v1/party/members/eve", Value::Null).await;
    is(&answer, 404, NONE);
    assert_eq!(answer.1["player"], "eve");
    assert_eq!(send(&app, "ann", Method::DELETE, "/v1/party/members/ann", Value::Null).await.0, 422);
    assert_eq!(send(&app, "ann", Method::DELETE, "/v1/party/members/carl%40x", Value::Null).await.0, 200);
    is(&app.get("carl@x", "/v1/party").await, 404, NONE);

    assert_eq!(send(&app, "ann", Method::PUT, "/v1/party/leader", json!({"player": "bob"})).await.0, 200);
    assert_eq!(members(&app, "ann").await.1, "bob");
    assert_eq!(send(&app, "bob", Method::DELETE, "/v1/party", Value::Null).await.0, 204);
    for player in ["ann", "bob"] {
        is(&app.get(player, "/v1/party").await, 404, NONE);
        assert_eq!(app.player(player).await.state.party(), None);
    }
}

#[tokio::test]
async fn when_the_leader_leaves_the_longest_standing_member_leads_and_the_last_member_ends_the_party() {
    let app = start(&[]).await;
    let id = party(&app, &["ann", "bob", "carl"]).await;
    assert_eq!(post(&app, "ann", "/v1/party/leave", Value::Null).await.0, 204);
    assert_eq!(members(&app, "carl").await, (vec!["bob".into(), "carl".into()], "bob".into()));
    let code = code(&app, "bob").await;
    assert_eq!(join(&app, "ann", &code).await.0, 200, "a player can come back");
    for player in ["bob", "carl", "ann"] {
        assert_eq!(post(&app, player, "/v1/party/leave", Value::Null).await.0, 204);
    }
    is(&join(&app, "ann", &code).await, 404, NONE);
    is(&post(&app, "ann", &format!("/v1/parties/{id}/join"), Value::Null).await, 404, NONE);
}

#[tokio::test]
async fn a_player_is_in_one_party_and_a_player_who_waits_is_in_none() {
    let app = start(&[]).await;
    party(&app, &["ann"]).await;
    party(&app, &["bob"]).await;
    let code = code(&app, "ann").await;
    is(&join(&app, "bob", &code).await, 409, "/problems/in-party");
    is(&post(&app, "bob", "/v1/parties", Value::Null).await, 409, "/problems/in-party");
    is(&post(&app, "ann", "/v1/party/invitations", json!({"player": "ann"})).await, 409, "/problems/in-party");
    assert_eq!(queue(&app, "carl").await.0, 201);
    is(&join(&app, "carl", &code).await, 409, "/problems/already-waiting");
    is(&post(&app, "carl", "/v1/parties", Value::Null).await, 409, "/problems/already-waiting");
}

#[tokio::test]
async fn a_party_has_a_maximum_of_members_and_of_invitations() {
    let app = start(&[]).await;
    let names: Vec<String> = (0..=MAX_MEMBERS).map(|number| format!("player-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    party(&app, &names[..MAX_MEMBERS]).await;
    let code = code(&app, names[0]).await;
    is(&join(&app, names[MAX_MEMBERS], &code).await, 409, "/problems/party-full");
    for number in 0..20 {
        let body = json!({"player": format!("friend-{number}")});
        assert_eq!(post(&app, names[1], "/v1/party/invitations", body).await.0, 200);
    }
    let answer = post(&app, names[2], "/v1/party/invitations", json!({"player": "one-more"})).await;
    is(&answer, 409, "/problems/party-full");
    let again = post(&app, names[2], "/v1/party/invitations", json!({"player": "friend-7"})).await;
    assert_eq!(again.0, 200, "a second invitation of the same player renews it");
}

#[tokio::test]
async fn the_leader_queues_all_members_with_their_own_values_and_one_ticket() {
    let app = start(&[]).await;
    let id = party(&app, &["ann", "bob"]).await;
    let answer = queue(&app, "ann").await;
    is(&answer, 409, "/problems/party-not-ready");
    assert_eq!(answer.1["players"], json!(["bob"]));
    let body = json!({"latencies": {"eu": 50, "us": 200}, "attributes": {"role": "medic"}});
    assert_eq!(send(&app, "bob", Method::PUT, "/v1/party/ready", body).await.0, 200);
    is(&queue(&app, "bob").await, 409, "/problems/in-party");
    let (status, ticket) = queue(&app, "ann").await;
    assert_eq!((status, &ticket["status"]), (201, &json!("waiting")));

    let (State::Waiting(ann), State::Waiting(bob)) = (app.player("ann").await.state, app.player("bob").await.state)
    else {
        panic!("they wait")
    };
    assert_eq!((ann.ticket, json!(ann.group), json!(ann.party)), (bob.ticket, json!(["ann", "bob"]), json!(id)));
    assert_eq!((json!(ann.latencies), json!(bob.latencies)), (json!({"eu": 20}), json!({"eu": 50})));
    assert_eq!(json!(bob.attributes), json!({"role": "medic"}));
    assert_eq!(bob.rank, 100, "the rank in bob's token");
    let (_, party) = app.get("bob", "/v1/party").await;
    assert_eq!((&party["ticket"], &party["members"][1]["ready"]), (&ticket["ticket"], &json!(false)));
    is(&queue(&app, "ann").await, 409, "/problems/already-waiting");

    // A member's DELETE cancels the ticket for all, and the party stays.
    assert_eq!(app.cancel("bob", ticket["ticket"].as_str().unwrap()).await.0, 204);
    assert!(!waits(&app, "ann").await && !waits(&app, "bob").await);
    assert_eq!(members(&app, "ann").await.0, ["ann", "bob"]);
}

#[tokio::test]
async fn a_party_of_one_queues_like_a_single_player() {
    let app = start(&[]).await;
    let id = party(&app, &["ann"]).await;
    let keyed = async || {
        let request = app.request("ann", Method::POST, TICKETS).header("Idempotency-Key", "k");
        read(request.json(&json!({"queue": "teams", "latencies": {"eu": 20}})).send().await.unwrap()).await
    };
    let first = keyed().await;
    assert_eq!((first.0, keyed().await), (201, first.clone()));
    let State::Waiting(waiting) = app.player("ann").await.state else { panic!("does not wait") };
    assert_eq!((waiting.group.len(), json!(waiting.party)), (0, json!(id)));
}

#[tokio::test]
async fn a_party_that_can_never_be_matched_is_refused_and_the_answer_names_the_members() {
    let app = start(&[]).await;
    party(&app, &["ann", "bob", "carl"]).await;
    ready(&app, "bob").await;
    ready(&app, "carl").await;
    let answer = post(&app, "ann", TICKETS, json!({"queue": "duo", "latencies": {"eu": 20}})).await;
    is(&answer, 422, "/problems/hopeless-ticket");
    assert_eq!(answer.1["players"], json!(["ann", "bob", "carl"]));
    // No region is common to all.
    let far = json!({"latencies": {"us": 20}});
    assert_eq!(send(&app, "carl", Method::PUT, "/v1/party/ready", far).await.0, 200);
    is(&queue(&app, "ann").await, 422, "/problems/hopeless-ticket");
    // No region is near enough for one of them.
    let far = json!({"latencies": {"us": 121}});
    assert_eq!(send(&app, "carl", Method::PUT, "/v1/party/ready", far).await.0, 200);
    let answer = queue(&app, "ann").await;
    is(&answer, 422, "/problems/latency-too-high");
    assert_eq!(answer.1["player"], "carl");
    for player in ["ann", "bob", "carl"] {
        assert!(!waits(&app, player).await);
    }
}

#[tokio::test]
async fn nobody_joins_a_party_that_waits_and_a_member_who_leaves_ends_the_wait_of_all() {
    let app = start(&[]).await;
    party(&app, &["ann", "bob", "carl"]).await;
    for player in ["bob", "carl"] {
        ready(&app, player).await;
    }
    let code = code(&app, "ann").await;
    assert_eq!(queue(&app, "ann").await.0, 201);
    is(&join(&app, "dora", &code).await, 409, "/problems/party-waits");

    let before = app.last().await;
    assert_eq!(post(&app, "bob", "/v1/party/leave", Value::Null).await.0, 204);
    assert_eq!(app.last().await, before + 4, "one commit: the party and three players");
    for (player, reason, party) in
        [("ann", CancelReason::Party, true), ("bob", CancelReason::Player, false), ("carl", CancelReason::Party, true)]
    {
        let last = app.player(player).await.last.unwrap().event;
        let Event::Cancelled(cancelled) = last else { panic!("{last:?}") };
        assert_eq!((cancelled.reason, cancelled.party.is_some()), (reason, party), "{player}");
    }
    assert_eq!(join(&app, "dora", &code).await.0, 200);
}

#[tokio::test]
async fn a_removed_member_and_a_disbanded_party_no_longer_wait() {
    let app = start(&[]).await;
    for (method, path) in [(Method::DELETE, "/v1/party/members/bob"), (Method::DELETE, "/v1/party")] {
        if members(&app, "ann").await.0.is_empty() {
            party(&app, &["ann"]).await;
        }
        let code = code(&app, "ann").await;
        assert_eq!(join(&app, "bob", &code).await.0, 200);
        ready(&app, "bob").await;
        assert_eq!(queue(&app, "ann").await.0, 201);
        assert!(send(&app, "ann", method, path, Value::Null).await.0 < 300);
        assert!(!waits(&app, "ann").await && !waits(&app, "bob").await, "{path}");
        assert_eq!(app.player("bob").await.state.party(), None, "{path}");
    }
}

#[tokio::test]
async fn a_member_who_must_wait_after_missed_matches_stops_the_party_and_a_party_does_not_shorten_the_wait() {
    let app = start(&[]).await;
    let (ticket, session) =
        (garage_events::id::TicketId::new(System.id()), garage_events::id::SessionId::new(System.id()));
    let why = Ending::Finished;
    app.append("bob", player::Released { ticket, session, why, reason: None, absences: 2, party: None }).await;
    is(&queue(&app, "bob").await, 409, "/problems/matches-missed");
    party(&app, &["ann", "bob"]).await;
    ready(&app, "bob").await;
    let answer = queue(&app, "ann").await;
    is(&answer, 409, "/problems/matches-missed");
    assert_eq!(answer.1["player"], "bob");
    assert_eq!(post(&app, "bob", "/v1/party/leave", Value::Null).await.0, 204);
    is(&queue(&app, "bob").await, 409, "/problems/matches-missed");
}

#[tokio::test]
async fn a_player_can_join_and_leave_a_party_during_a_match() {
    let app = start(&[]).await;
    party(&app, &["ann"]).await;
    let code = code(&app, "ann").await;
    assert_eq!(queue(&app, "bob").await.0, 201);
    let State::Waiting(waiting) = app.player("bob").await.state else { panic!("does not wait") };
    let matched = matched(&waiting);
    app.append("bob", matched.clone()).await;
    assert_eq!(join(&app, "bob", &code).await.0, 200);
    let me = app.get("bob", "/v1/players/me").await.1;
    assert_eq!((&me["status"], &me["session"]), (&json!("matched"), &json!(matched.session)));
    ready(&app, "bob").await;
    let answer = queue(&app, "ann").await;
    is(&answer, 409, "/problems/in-session");
    assert_eq!(answer.1["player"], "bob");
    assert_eq!(post(&app, "bob", "/v1/party/leave", Value::Null).await.0, 204);
    assert_eq!(app.get("bob", "/v1/players/me").await.1["status"], "matched");
}

#[tokio::test]
async fn a_party_whose_time_is_over_no_longer_counts() {
    let app = start(&[]).await;
    let id = party(&app, &["ann", "bob"]).await.parse().unwrap();
    ready(&app, "bob").await;
    // As if the party had been created or queued longer ago than a party lives.
    let loaded = app.log.party(id).await.unwrap();
    let party::State::Open(open) = loaded.state else { panic!("the party is open") };
    let state = party::Party { renewed_at: open.renewed_at - party::LIFETIME, ..open };
    let decision = Decision::new(&System, id.uuid(), None);
    let event: party::Event = party::LeaderChanged { state }.into();
    app.log.append(decision.change(&System, Aggregate::Party(id), loaded.head, [event])).await.unwrap();

    is(&app.get("ann", "/v1/party").await, 404, NONE);
    is(&post(&app, "ann", "/v1/party/leave", Value::Null).await, 404, NONE);
    assert_eq!(queue(&app, "ann").await.0, 201, "alone");
    let State::Waiting(waiting) = app.player("ann").await.state else { panic!("does not wait") };
    assert_eq!((waiting.party, waiting.group.len()), (None, 0));
    assert_eq!(post(&app, "bob", "/v1/parties", Value::Null).await.0, 201);
}

#[tokio::test]
async fn a_backend_cannot_queue_a_member_of_a_party_as_part_of_a_group() {
    let app = start(&[]).await;
    party(&app, &["ann"]).await;
    let token = sign_service_token(&key(), "backend", GROUPS, DEADLINE).unwrap();
    let group = async || {
        let member = |player: &str| json!({"player": player, "rank": 1, "latencies": {"eu": 20}});
        let body = json!({"queue": "teams", "players": [member("bob"), member("ann")]});
        let request = app.anonymous(Method::POST, "/v1/matchmaking/groups").bearer_auth(token.expose().to_owned());
        read(request.json(&body).send().await.unwrap()).await
    };
    let answer = group().await;
    is(&answer, 409, "/problems/in-party");
    assert_eq!(answer.1["player"], "ann");
    assert_eq!(post(&app, "ann", "/v1/party/leave", Value::Null).await.0, 204);
    assert_eq!(group().await.0, 201);
}

#[tokio::test]
async fn a_party_with_a_blocked_member_is_refused() {
    let app = start(&[]).await;
    party(&app, &["ann", "bob"]).await;
    ready(&app, "bob").await;
    blocks::block(&app, "bob", &blocks::forever()).await;
    blocks::until_status(&app, app.address, "bob", 403).await;
    let answer = queue(&app, "ann").await;
    is(&answer, 403, "/problems/blocked");
    assert_eq!(answer.1["player"], "bob");
    assert!(!waits(&app, "ann").await);
}

#[tokio::test]
async fn a_member_can_take_readiness_back_and_a_join_makes_nobody_unready() {
    let app = start(&[]).await;
    party(&app, &["ann", "bob"]).await;
    ready(&app, "bob").await;
    assert_eq!(send(&app, "bob", Method::DELETE, "/v1/party/ready", Value::Null).await.0, 200);
    is(&queue(&app, "ann").await, 409, "/problems/party-not-ready");
    ready(&app, "bob").await;
    let code = code(&app, "ann").await;
    assert_eq!(join(&app, "carl", &code).await.0, 200);
    let answer = queue(&app, "ann").await;
    assert_eq!(answer.1["players"], json!(["carl"]), "{}", answer.1);
    // The other members' values are not shown.
    let (_, party) = app.get("carl", "/v1/party").await;
    assert!(!party.to_string().contains("latencies"), "{party}");
}

#[tokio::test]
async fn all_members_can_be_ready_at_the_same_moment() {
    let app = start(&[]).await;
    let names: Vec<String> = (0..MAX_MEMBERS).map(|number| format!("player-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    party(&app, &names).await;
    join_all(names[1..].iter().map(|player| ready(&app, player))).await;
    assert_eq!(queue(&app, names[0]).await.0, 201);
}
