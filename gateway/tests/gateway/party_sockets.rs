//! The frames about parties, and members who disconnect. `support` checks each frame against the description.

use std::{fmt::Debug, future::Future};

use garage_events::{
    log::Load,
    party::{self, Party},
    player::{CancelReason, Event, Matched},
    presence,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    parties::{code, join, members, party, post, queue, ready, send, start, waits},
    support::{App, DEADLINE, Socket, matched},
};

/// The next frame about parties. Skips events.
async fn notice(socket: &mut Socket) -> (String, Value) {
    loop {
        let frame = socket.event().await;
        if frame.get("seq").is_none() {
            return (frame["type"].as_str().unwrap().to_owned(), frame["data"].clone());
        }
    }
}

/// The data of the first frame `party` that satisfies the condition.
async fn shown(socket: &mut Socket, condition: impl Fn(&Value) -> bool) -> Value {
    loop {
        let (kind, data) = notice(socket).await;
        assert_eq!(kind, "party", "{data}");
        if condition(&data) {
            return data;
        }
    }
}

/// Repeats a read until it returns something.
async fn until<T: Debug, F: Future<Output = Option<T>>>(read: impl Fn() -> F) -> T {
    let found = async {
        loop {
            if let Some(found) = read().await {
                return found;
            }
        }
    };
    timeout(DEADLINE, found).await.unwrap()
}

async fn stored(app: &App, id: &str) -> Party {
    match app.log.party(id.parse().unwrap()).await.unwrap().state {
        party::State::Open(party) => party,
        other => panic!("{other:?}"),
    }
}

/// Waits until a member is away, and returns the party then.
async fn until_away(app: &App, id: &str, player: &str, away: bool) -> Party {
    let is_away = |party: &Party| party.member(&player.parse().unwrap()).is_some_and(|member| member.away == away);
    until(|| async { Some(stored(app, id).await).filter(is_away) }).await
}

#[tokio::test]
async fn every_member_receives_the_party_after_each_change_and_when_their_socket_opens() {
    let app = start(&[]).await;
    let mut ann = app.socket("ann", None).await;
    let id = party(&app, &["ann"]).await;
    let (kind, data) = notice(&mut ann).await;
    assert_eq!((kind.as_str(), &data["party"], &data["leader"]), ("party", &json!(id), &json!("ann")));
    let code = code(&app, "ann").await;
    assert!(shown(&mut ann, |data| data["code_expires_at"].is_string()).await["members"][0]["ready"] == false);
    assert_eq!(join(&app, "bob", &code).await.0, 200);
    let of_two = |data: &Value| data["members"].as_array().unwrap().len() == 2;
    let seen = shown(&mut ann, of_two).await;

    // bob's socket is at another gateway, and opens after the change.
    let other = app.another().await;
    let mut bob = app.socket_at(other, "bob", Some(0)).await;
    assert_eq!(shown(&mut bob, of_two).await, seen);
    ready(&app, "bob").await;
    let is_ready = |data: &Value| data["members"][1]["ready"] == true;
    assert_eq!(shown(&mut ann, is_ready).await, shown(&mut bob, is_ready).await);
    assert_eq!(queue(&app, "ann").await.0, 201);
    let has_ticket = |data: &Value| data["ticket"].is_string();
    assert_eq!(shown(&mut ann, has_ticket).await, shown(&mut bob, has_ticket).await);
}

#[tokio::test]
async fn a_player_receives_an_invitation_at_once_and_when_their_socket_opens_until_they_join() {
    let app = start(&[]).await;
    let id = party(&app, &["ann@x"]).await;
    let mut bob = app.socket("bob", None).await;
    assert_eq!(post(&app, "ann@x", "/v1/party/invitations", json!({"player": "bob"})).await.0, 200);
    let first = notice(&mut bob).await;
    assert_eq!(
        (first.0.as_str(), &first.1["party"], &first.1["from"]),
        ("party-invitation", &json!(id), &json!("ann@x"))
    );
    let mut again = app.socket("bob", None).await;
    assert_eq!(notice(&mut again).await, first);
    assert_eq!(post(&app, "bob", &format!("/v1/parties/{id}/join"), Value::Null).await.0, 200);
    assert_eq!(notice(&mut again).await.0, "party");
    let mut joined = app.socket("bob", None).await;
    assert_eq!(notice(&mut joined).await.0, "party", "the invitation is used");
}

#[tokio::test]
async fn a_player_learns_why_they_are_no_longer_in_the_party() {
    let app = start(&[]).await;
    let id = party(&app, &["ann", "bob", "carl", "dora"]).await;
    let mut sockets = Vec::new();
    for player in ["bob", "carl", "dora", "ann"] {
        let mut socket = app.socket(player, None).await;
        assert_eq!(notice(&mut socket).await.0, "party");
        sockets.push(socket);
    }
    assert_eq!(post(&app, "bob", "/v1/party/leave", Value::Null).await.0, 204);
    assert_eq!(send(&app, "ann", Method::DELETE, "/v1/party/members/carl", Value::Null).await.0, 200);
    assert_eq!(send(&app, "ann", Method::DELETE, "/v1/party", Value::Null).await.0, 204);
    for (socket, why) in sockets.iter_mut().zip(["left", "kicked", "disbanded", "disbanded"]) {
        loop {
            let (kind, data) = notice(socket).await;
            if kind == "party-left" {
                assert_eq!(data, json!({"party": id, "why": why}));
                break;
            }
        }
    }
}

#[tokio::test]
async fn the_last_member_who_leaves_receives_that_they_left() {
    let app = start(&[]).await;
    let id = party(&app, &["ann"]).await;
    let mut ann = app.socket("ann", None).await;
    assert_eq!(notice(&mut ann).await.0, "party");
    assert_eq!(post(&app, "ann", "/v1/party/leave", Value::Null).await.0, 204);
    assert_eq!(notice(&mut ann).await, ("party-left".into(), json!({"party": id, "why": "left"})));
}

#[tokio::test]
async fn a_leader_who_does_not_reconnect_in_time_is_away_another_member_leads_and_the_leader_can_return() {
    let app = start(&["--grace=1"]).await;
    let id = party(&app, &["ann", "bob"]).await;
    drop(app.socket("ann", None).await);
    let party = until_away(&app, &id, "ann", true).await;
    assert_eq!(party.leader.as_str(), "bob");
    let answer = queue(&app, "bob").await;
    assert_eq!((answer.0, &answer.1["players"]), (409, &json!(["ann"])));
    // When the player is back, bob still leads.
    let mut ann = app.socket("ann", None).await;
    assert_eq!(until_away(&app, &id, "ann", false).await.leader.as_str(), "bob");
    shown(&mut ann, |data| data["members"][0]["away"] == false).await;
}

#[tokio::test]
async fn if_all_members_are_away_the_first_who_returns_leads() {
    let app = start(&["--grace=1"]).await;
    let id = party(&app, &["ann", "bob"]).await;
    drop(app.socket("bob", None).await);
    until_away(&app, &id, "bob", true).await;
    drop(app.socket("ann", None).await);
    assert_eq!(until_away(&app, &id, "ann", true).await.leader.as_str(), "ann", "nobody is left who could lead");
    let _bob = app.socket("bob", None).await;
    assert_eq!(until_away(&app, &id, "bob", false).await.leader.as_str(), "bob");
}

#[tokio::test]
async fn a_command_of_a_member_who_is_away_brings_them_back() {
    let app = start(&["--grace=1"]).await;
    let id = party(&app, &["ann", "bob"]).await;
    drop(app.socket("bob", None).await);
    until_away(&app, &id, "bob", true).await;
    ready(&app, "bob").await;
    let party = stored(&app, &id).await;
    let bob = party.member(&"bob".parse().unwrap()).unwrap();
    assert!(!bob.away && bob.ready.is_some());
}

#[tokio::test]
async fn a_member_who_disconnects_while_the_party_waits_ends_the_wait_of_all_and_is_away_in_one_commit() {
    let app = start(&["--grace=1"]).await;
    let id = party(&app, &["ann", "bob"]).await;
    ready(&app, "bob").await;
    let bob = app.socket("bob", None).await;
    assert_eq!(queue(&app, "ann").await.0, 201);
    let before = app.last().await;
    drop(bob);
    until_away(&app, &id, "bob", true).await;
    for (player, reason) in [("ann", CancelReason::Party), ("bob", CancelReason::Disconnected)] {
        let last = app.player(player).await.last.unwrap();
        let Event::Cancelled(cancelled) = last.event else { panic!("{last:?}") };
        assert_eq!(cancelled.reason, reason);
        assert!(cancelled.party.is_some(), "the party stays");
    }
    assert_eq!(app.last().await, before + 3, "one commit: the party and two players");
}

/// The leader requests the ticket, so a member without a socket does not want to wait without one.
#[tokio::test]
async fn a_party_that_queues_just_after_a_member_has_disconnected_waits_only_for_the_grace_period() {
    let app = start(&["--grace=5"]).await;
    let id = party(&app, &["ann", "bob"]).await;
    ready(&app, "bob").await;
    drop(app.socket("bob", None).await);
    let bucket = app.log.context().get_key_value(presence::BUCKET).await.unwrap();
    until(|| async {
        let entry = bucket.get("player.bob").await.unwrap()?;
        serde_json::from_slice::<presence::Connection>(&entry).unwrap().gone.then_some(())
    })
    .await;
    assert_eq!(queue(&app, "ann").await.0, 201);
    until_away(&app, &id, "bob", true).await;
    for (player, expected) in [("ann", CancelReason::Party), ("bob", CancelReason::Disconnected)] {
        let last = app.player(player).await.last.unwrap();
        assert!(matches!(&last.event, Event::Cancelled(cancelled) if cancelled.reason == expected), "{last:?}");
    }
}

#[tokio::test]
async fn a_member_who_disconnects_during_a_match_is_away_and_stays_in_the_match() {
    let app = start(&["--grace=1"]).await;
    let id = party(&app, &["ann", "bob"]).await;
    ready(&app, "bob").await;
    let bob = app.socket("bob", None).await;
    assert_eq!(queue(&app, "ann").await.0, 201);
    for player in ["ann", "bob"] {
        let garage_events::player::State::Waiting(waiting) = app.player(player).await.state else { panic!("waits") };
        app.append(player, Matched { party: waiting.party, ..matched(&waiting) }).await;
    }
    drop(bob);
    until_away(&app, &id, "bob", true).await;
    assert_eq!(app.get("bob", "/v1/players/me").await.1["status"], "matched");
    assert!(!waits(&app, "bob").await);
    assert_eq!(members(&app, "ann").await.0, ["ann", "bob"]);
}

#[tokio::test]
async fn a_restarted_gateway_knows_the_open_parties_their_codes_and_their_invitations() {
    let app = start(&[]).await;
    let id = party(&app, &["ann", "bob"]).await;
    let code = code(&app, "ann").await;
    assert_eq!(post(&app, "ann", "/v1/party/invitations", json!({"player": "carl"})).await.0, 200);
    let restarted = app.another().await;
    let mut carl = app.socket_at(restarted, "carl", None).await;
    assert_eq!(notice(&mut carl).await.1["party"], json!(id));
    let mut bob = app.socket_at(restarted, "bob", None).await;
    shown(&mut bob, |data| data["party"] == json!(id)).await;
    let request = app.anonymous_at(restarted, Method::POST, "/v1/parties/join");
    let request = request.bearer_auth(crate::support::token("dora")).json(&json!({"code": code}));
    assert_eq!(crate::support::read(request.send().await.unwrap()).await.0, 200);
}
