//! Accepting and declining proposed matches. A test double answers as the session worker does, with the same decisions on
//! the same log; the other workers do not run.

use futures::{SinkExt, future::join_all};
use garage_events::{
    env::{Env, System},
    event::Event as _,
    id::{PlayerId, SessionId},
    jetstream::JetStreamLog,
    log::{Append, Decision, Head, Load},
    player::{self, DeclineReason, Event, State},
    reaction::decide_session,
    session::{self, Command, Matched, Member, Proposed, Rejection, Team},
    subject::Aggregate,
    svc::{Accept, Decline},
};
use garage_worker::service::{Refusal, Service};
use reqwest::Method;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{App, DEADLINE, Socket, TICKETS, read};

async fn decide(log: JetStreamLog, session: SessionId, command: Command) -> Result<(), Refusal> {
    match decide_session(&log, &System, session, command, None).await {
        Ok(Ok(_) | Err(Rejection::Repeated)) => Ok(()),
        Ok(Err(Rejection::Unknown | Rejection::NotAPlayer)) => Err(Refusal::new(404, "no such session")),
        Ok(Err(rejection)) => Err(Refusal::new(409, rejection.to_string())),
        Err(error) => Err(Refusal::new(503, error.to_string())),
    }
}

/// A gateway with this grace period in seconds, and the double of the session worker.
async fn start(grace: u32) -> App {
    let app = App::start_with(|_| vec![format!("--grace={grace}")]).await;
    let service = Service::start(&app.client, "session", "a double").await.unwrap();
    let log = app.log.clone();
    let accept = service.serve(16, app.shutdown.clone(), move |Accept { session, player }| {
        decide(log.clone(), session, Command::Accept { player, now: System.now() })
    });
    tokio::spawn(accept.await.unwrap());
    let log = app.log.clone();
    let decline = service.serve(16, app.shutdown.clone(), move |Decline { session, player, why }| {
        decide(log.clone(), session, Command::Decline { player, why })
    });
    tokio::spawn(decline.await.unwrap());
    app
}

/// Queues the players, and proposes a match to them. Players of the same team share a ticket if there are several.
async fn propose(app: &App, teams: &[&[&str]], accept_by: OffsetDateTime) -> SessionId {
    let session = SessionId::new(System.id());
    let (mut recorded, mut events) = (Vec::new(), Vec::new());
    for (number, names) in teams.iter().enumerate() {
        let team = number.to_string();
        let ticket = garage_events::id::TicketId::new(System.id());
        let ids: Vec<PlayerId> = names.iter().map(|name| name.parse().unwrap()).collect();
        let group = if ids.len() > 1 { ids.clone() } else { Vec::new() };
        let mut players = Vec::new();
        for id in ids {
            app.append(id.as_str(), player::Queued { ticket, group: group.clone(), ..crate::support::queued() }).await;
            let found = app.player(id.as_str()).await;
            let (team, players_in_all) = (team.clone(), teams.iter().map(|names| names.len()).sum::<usize>() as u32);
            let propose = player::Command::Propose {
                ticket,
                session,
                team,
                accept_by,
                players: players_in_all,
                may_requeue: true,
            };
            events.push((id.clone(), found.head, player::decide(&found.state, propose).unwrap()));
            players.push(Member { player: id, ticket, rank: 1 });
        }
        recorded.push(Team { name: team, players });
    }
    let matched = Matched {
        queue: "ranked".parse().unwrap(),
        region: "eu".parse().unwrap(),
        teams: recorded,
        latencies: Default::default(),
        rules: "test".into(),
        pool_seq: 1,
        clock: System.now(),
        seed: 0,
        skipped: Vec::new(),
        left_out: Vec::new(),
        search_steps: None,
    };
    let proposed = session::Event::from(Proposed { accept_by, names_decliner: true, matched });
    let decision = Decision::new(&System, session.uuid(), None);
    let mut decision = decision.change(&System, Aggregate::Session(session), Head::default(), [proposed]);
    for (id, head, event) in events {
        decision = decision.change(&System, Aggregate::Player(id), head, [event]);
    }
    app.log.append(decision).await.unwrap();
    session
}

fn soon() -> OffsetDateTime {
    System.now() + Duration::MINUTE
}

async fn answer(app: &App, player: &str, session: SessionId, answer: &str) -> (u16, Value) {
    let path = format!("/v1/sessions/{session}/{answer}");
    read(app.request(player, Method::POST, &path).send().await.unwrap()).await
}

async fn types(app: &App, session: SessionId) -> Vec<&'static str> {
    let history = app.log.session(session).await.unwrap().history;
    history.iter().map(|recorded| recorded.event.type_name()).collect()
}

async fn last(app: &App, player: &str) -> Event {
    app.player(player).await.last.unwrap().event
}

async fn declined(app: &App, player: &str) -> DeclineReason {
    match last(app, player).await {
        Event::MatchDeclined(declined) => declined.reason,
        other => panic!("{player}: {other:?}"),
    }
}

async fn send(socket: &mut Socket, answer: &str, session: SessionId) {
    let frame = json!({"type": answer, "data": {"session": session}}).to_string();
    socket.0.send(Message::Text(frame.into())).await.unwrap();
}

/// The data of the next frame of this type.
async fn until(socket: &mut Socket, type_name: &str) -> Value {
    loop {
        let frame = socket.event().await;
        if frame["type"] == type_name {
            return frame["data"].clone();
        }
    }
}

#[tokio::test]
async fn when_all_players_accept_by_rest_they_are_matched_and_the_same_answer_may_be_repeated() {
    let app = start(15).await;
    let session = propose(&app, &[&["ann"], &["bob"]], soon()).await;
    let (_, me) = app.get("ann", "/v1/players/me").await;
    assert_eq!((&me["status"], &me["session"]), (&json!("proposed"), &json!(session)));
    assert!(me["accept_by"].is_string());
    let (_, ticket) = app.get("ann", &format!("{TICKETS}/{}", me["ticket"].as_str().unwrap())).await;
    assert_eq!((&ticket["status"], &ticket["accept_by"]), (&json!("proposed"), &me["accept_by"]));
    assert_eq!(app.queue("ann", None).await.0, 409, "a player in a proposed match cannot queue");

    assert_eq!(answer(&app, "ann", session, "accept").await, (204, Value::Null));
    assert_eq!(answer(&app, "ann", session, "accept").await, (204, Value::Null));
    assert!(matches!(last(&app, "ann").await, Event::MatchProposed(_)));
    assert_eq!(answer(&app, "bob", session, "accept").await.0, 204);
    for player in ["ann", "bob"] {
        assert!(matches!(last(&app, player).await, Event::Matched(matched) if matched.session == session), "{player}");
        assert_eq!(answer(&app, player, session, "accept").await.0, 204);
        let (status, body) = answer(&app, player, session, "decline").await;
        assert_eq!((status, &body["type"]), (409, &json!("/problems/proposal-over")));
    }
    assert_eq!(types(&app, session).await, ["Proposed", "Accepted", "Accepted", "Matched"]);
}

#[tokio::test]
async fn an_answer_after_the_deadline_or_to_another_match_is_refused() {
    let app = start(15).await;
    let late = propose(&app, &[&["ann"], &["bob"]], System.now() - Duration::SECOND).await;
    let (status, body) = answer(&app, "ann", late, "accept").await;
    assert_eq!((status, &body["type"]), (409, &json!("/problems/proposal-over")));
    let of_others = propose(&app, &[&["carl"], &["dora"]], soon()).await;
    let unknown = answer(&app, "ann", SessionId::new(System.id()), "accept").await;
    assert_eq!(unknown.0, 404);
    for kind in ["accept", "decline"] {
        assert_eq!(answer(&app, "ann", of_others, kind).await, unknown, "{kind}");
    }
    assert_eq!(types(&app, of_others).await, ["Proposed"]);
    let path = format!("/v1/sessions/{of_others}/accept");
    let (status, _) = read(app.request("carl", Method::GET, &path).send().await.unwrap()).await;
    assert_eq!(status, 405);
}

#[tokio::test]
async fn a_player_who_declines_has_to_wait_and_the_other_tickets_wait_again_at_once() {
    let app = start(15).await;
    let session = propose(&app, &[&["ann", "bob"], &["carl"]], soon()).await;
    assert_eq!(answer(&app, "carl", session, "accept").await.0, 204);
    assert_eq!(answer(&app, "ann", session, "decline").await.0, 204);
    assert_eq!(answer(&app, "ann", session, "decline").await.0, 204);
    assert_eq!(
        (declined(&app, "ann").await, declined(&app, "bob").await),
        (DeclineReason::Declined, DeclineReason::Party)
    );
    assert!(matches!(last(&app, "bob").await, Event::MatchDeclined(of) if of.players == ["ann".parse().unwrap()]));
    assert!(matches!(app.player("carl").await.state, State::Waiting(_)));
    let (status, problem) = app.queue("ann", None).await;
    assert_eq!((status, &problem["type"], &problem["absences"]), (409, &json!("/problems/matches-missed"), &json!(1)));
    assert_eq!(app.queue("bob", None).await.0, 201, "only the decliner has to wait");
    assert_eq!(answer(&app, "carl", session, "accept").await.0, 409);
}

#[tokio::test]
async fn an_answer_on_the_socket_is_confirmed_and_progress_reaches_every_player_of_the_match() {
    let app = start(15).await;
    let other = app.another().await;
    let (mut ann, mut bob) = (app.socket("ann", None).await, app.socket_at(other, "bob", None).await);
    let session = propose(&app, &[&["ann"], &["bob"]], soon()).await;
    for socket in [&mut ann, &mut bob] {
        let proposed = until(socket, "MatchProposed").await;
        assert_eq!((&proposed["session"], &proposed["players"]), (&json!(session), &json!(2)));
    }
    send(&mut ann, "accept", session).await;
    assert_eq!(until(&mut bob, "match-progress").await, json!({"session": session, "accepted": 1, "of": 2}));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let frame = ann.event().await;
        seen.push(frame["type"].as_str().unwrap().to_owned());
        if frame["type"] == "match-answer" {
            let expected = json!({"session": session, "answer": "accept", "outcome": "recorded"});
            assert_eq!(frame["data"], expected);
        }
    }
    seen.sort();
    assert_eq!(seen, ["match-answer", "match-progress"]);
    send(&mut bob, "accept", session).await;
    assert_eq!(until(&mut ann, "Matched").await["session"], json!(session));
    // bob gets the last progress, the confirmation and the match, in any order.
    let mut seen: Vec<_> = [bob.event().await, bob.event().await, bob.event().await]
        .map(|frame| frame["type"].as_str().unwrap().to_owned())
        .into();
    seen.sort();
    assert_eq!(seen, ["Matched", "match-answer", "match-progress"]);
    send(&mut bob, "decline", session).await;
    assert_eq!(until(&mut bob, "match-answer").await["outcome"], "too-late");
    send(&mut bob, "accept", SessionId::new(System.id())).await;
    assert_eq!(until(&mut bob, "match-answer").await["outcome"], "unknown");
}

#[tokio::test]
async fn a_player_declines_on_the_socket() {
    let app = start(15).await;
    let mut ann = app.socket("ann", None).await;
    let session = propose(&app, &[&["ann"], &["bob"]], soon()).await;
    until(&mut ann, "MatchProposed").await;
    send(&mut ann, "decline", session).await;
    let mut seen = vec![ann.event().await["type"].clone(), ann.event().await["type"].clone()];
    seen.sort_by_key(ToString::to_string);
    assert_eq!(seen, ["MatchDeclined", "match-answer"]);
    assert!(matches!(app.player("bob").await.state, State::Waiting(_)));
}

#[tokio::test]
async fn cancelling_the_ticket_of_a_proposed_match_declines_the_match() {
    let app = start(15).await;
    let session = propose(&app, &[&["ann"], &["bob"]], soon()).await;
    let ticket = app.player("ann").await.state.ticket().unwrap().to_string();
    assert_eq!(answer(&app, "ann", session, "accept").await.0, 204);
    assert_eq!(app.cancel("ann", &ticket).await.0, 204);
    assert_eq!(app.cancel("ann", &ticket).await.0, 204, "the ticket has ended");
    assert_eq!(declined(&app, "ann").await, DeclineReason::Declined);
    let (_, ended) = app.get("ann", &format!("{TICKETS}/{ticket}")).await;
    assert_eq!((&ended["ended"], &ended["decline_reason"]), (&json!("not-accepted"), &json!("declined")));
    assert_eq!(types(&app, session).await, ["Proposed", "Accepted", "ProposalEnded", "Closed"]);
    // bob waits again, and cancels as usual.
    let ticket = app.player("bob").await.state.ticket().unwrap().to_string();
    assert_eq!(app.cancel("bob", &ticket).await.0, 204);
    assert!(matches!(last(&app, "bob").await, Event::Cancelled(_)));
}

#[tokio::test]
async fn a_disconnect_past_the_grace_period_declines_only_for_a_player_who_has_not_accepted() {
    let app = start(1).await;
    let first = propose(&app, &[&["ann"], &["bob"]], soon()).await;
    let second = propose(&app, &[&["carl"], &["dora"]], soon()).await;
    let sockets = [app.socket("ann", None).await, app.socket("carl", None).await];
    assert_eq!(answer(&app, "ann", first, "accept").await.0, 204);
    drop(sockets);
    let ended = async { while types(&app, second).await.len() == 1 {} };
    timeout(DEADLINE, ended).await.unwrap();
    assert_eq!(declined(&app, "carl").await, DeclineReason::Disconnected);
    assert!(matches!(app.player("dora").await.state, State::Waiting(_)));
    // ann's grace period is over when she is marked as left, and bob can still accept.
    let bucket = app.log.context().get_key_value(garage_events::presence::BUCKET).await.unwrap();
    let marked = async {
        loop {
            let value = bucket.get("player.ann").await.unwrap().unwrap();
            let connection: garage_events::presence::Connection = serde_json::from_slice(&value).unwrap();
            if connection.left.is_some() {
                return;
            }
        }
    };
    timeout(DEADLINE, marked).await.unwrap();
    assert_eq!(answer(&app, "bob", first, "accept").await.0, 204);
    assert!(matches!(last(&app, "ann").await, Event::Matched(_)));
}

#[tokio::test]
async fn the_last_two_acceptances_at_two_gateways_at_once_make_one_match() {
    let app = start(15).await;
    let other = app.another().await;
    let names: Vec<(String, String)> = (0..8).map(|n| (format!("a{n}"), format!("b{n}"))).collect();
    let both = names.iter().map(async |(one, two)| {
        let session = propose(&app, &[&[one], &[two]], soon()).await;
        let path = format!("/v1/sessions/{session}/accept");
        let request = |player: &str, gateway| {
            let request = app.anonymous_at(gateway, Method::POST, &path);
            request.bearer_auth(crate::support::token(player)).send()
        };
        let (one, two) = tokio::join!(request(one, app.address), request(two, other));
        assert_eq!((one.unwrap().status().as_u16(), two.unwrap().status().as_u16()), (204, 204));
        assert_eq!(types(&app, session).await, ["Proposed", "Accepted", "Accepted", "Matched"]);
    });
    join_all(both).await;
}
