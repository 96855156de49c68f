//! Queueing and cancelling, and the events in the log afterwards.

use futures::future::join_all;
use garage_events::{
    env::{Env, System},
    event::Event as _,
    player::{Candidates, Ending, Event, PlayerMatched, Queued, Released, State, TimedOut},
};
use reqwest::Method;
use serde_json::json;

use crate::support::{App, TICKETS, address, matched, queued, read, ticket_request};

fn id(body: &serde_json::Value) -> String {
    body["ticket"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_player_queues_cancels_and_queues_again() {
    let app = App::start().await;
    let response = app.request("ann", Method::POST, TICKETS).json(&ticket_request()).send().await.unwrap();
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let (status, first) = read(response).await;
    assert_eq!(
        (status, &first["status"], &first["queue"], &first["seq"]),
        (201, &json!("waiting"), &json!("ranked"), &json!(1))
    );
    assert_eq!(location, format!("{TICKETS}/{}", id(&first)));
    let State::Waiting(data) = app.player("ann").await.state else { panic!("does not wait") };
    assert_eq!((data.rank, data.expires_at - data.waiting_since), (100, time::Duration::minutes(2)));

    assert_eq!(app.get("ann", &location).await, (200, first.clone()));
    let (status, me) = app.get("ann", "/v1/players/me").await;
    assert_eq!(status, 200);
    assert_eq!(me, json!({"player": "ann", "status": "waiting", "ticket": id(&first), "queue": "ranked", "seq": 1}));

    let (status, body) = app.queue("ann", None).await;
    assert_eq!((status, &body["ticket"]), (409, &first["ticket"]));

    assert_eq!(app.cancel("ann", &id(&first)).await.0, 204);
    assert_eq!(app.cancel("ann", &id(&first)).await.0, 204);
    let (_, ended) = app.get("ann", &location).await;
    assert_eq!((&ended["status"], &ended["ended"]), (&json!("ended"), &json!("cancelled")));
    assert_eq!(app.last().await, 2);

    let (status, second) = app.queue("ann", None).await;
    assert_eq!(status, 201);
    assert_ne!(id(&first), id(&second));
    assert_eq!(app.cancel("ann", &id(&first)).await.0, 404);
    assert_eq!(app.get("ann", &location).await.0, 404);
    assert_eq!(app.last().await, 3);
}

#[tokio::test]
async fn a_repeated_idempotency_key_returns_the_same_ticket() {
    let app = App::start().await;
    let (status, first) = app.queue("ann", Some("try-1")).await;
    assert_eq!(status, 201);
    assert_eq!(app.queue("ann", Some("try-1")).await, (201, first.clone()));
    // Another key is another request, and the same key of another player is another ticket.
    assert_eq!(app.queue("ann", Some("try-2")).await.0, 409);
    let (status, other) = app.queue("bob", Some("try-1")).await;
    assert_eq!(status, 201);
    assert_ne!(id(&first), id(&other));
    assert_eq!(app.last().await, 2);

    // When the ticket's status changes, the key still returns the same ticket.
    let State::Waiting(waiting) = app.player("ann").await.state else { panic!("does not wait") };
    let matched = matched(&waiting);
    let (ticket, queue, session) = (waiting.ticket, waiting.queue.clone(), matched.session);
    let events: [(Event, &str); 3] = [
        (matched.into(), "matched"),
        (PlayerMatched { ticket, queue, session, address: address(), absences: 0, party: None }.into(), "playing"),
        (Released { ticket, session, why: Ending::Finished, reason: None, absences: 0, party: None }.into(), "ended"),
    ];
    for (event, status) in events {
        let seq = app.append("ann", event).await;
        let (code, body) = app.queue("ann", Some("try-1")).await;
        assert_eq!((code, &body["ticket"], &body["status"]), (201, &first["ticket"], &json!(status)));
        assert_eq!((body["seq"].as_u64(), body["session"].as_str()), (Some(seq), Some(session.to_string().as_str())));
    }
    assert_eq!(app.last().await, 5);
}

#[tokio::test]
async fn of_many_concurrent_requests_only_one_gets_a_ticket() {
    let app = App::start().await;
    let answers = join_all((0..20).map(|_| app.queue("ann", None))).await;
    let tickets: Vec<_> = answers.iter().filter(|(status, _)| *status == 201).collect();
    assert_eq!(tickets.len(), 1, "{answers:?}");
    for (status, body) in &answers {
        assert!(*status == 201 || *status == 409 && body["ticket"] == tickets[0].1["ticket"], "{status} {body}");
    }
    // With the same key, all requests get the same ticket.
    let answers = join_all((0..20).map(|_| app.queue("bob", Some("k")))).await;
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.0 == 201), "{answers:?}");
    assert_eq!(app.last().await, 2);
}

#[tokio::test]
async fn a_new_ticket_replaces_an_expired_one() {
    let app = App::start().await;
    let old = Queued { expires_at: System.now() - time::Duration::SECOND, ..queued() };
    app.append("ann", old.clone()).await;
    let (status, body) = app.queue("ann", None).await;
    assert_eq!((status, body["seq"].as_u64()), (201, Some(3)));
    let (_, timed_out) = app.get("ann", &format!("{TICKETS}/{}", old.ticket)).await;
    assert_eq!(timed_out["status"], 404);
    let message = app.log.next("garage.player.ann", 2).await.unwrap();
    let envelope = garage_events::event::Envelope::from_slice(&message.unwrap().payload).unwrap();
    let event: Event = envelope.event().unwrap();
    assert!(event.type_name() == "TimedOut" && envelope.correlation == old.ticket.uuid(), "{event:?}");
    assert_eq!(app.player("ann").await.head.n, 3);
}

#[tokio::test]
async fn the_answer_says_which_latencies_count() {
    let app = App::start().await;
    let body = json!({"queue": "ranked", "latencies": {"eu": 20.4, "us": null, "mars": 3}});
    let post = async || {
        let request = app.request("ann", Method::POST, TICKETS).header("Idempotency-Key", "k").json(&body);
        read(request.send().await.unwrap()).await
    };
    let (status, ticket) = post().await;
    assert_eq!(
        (status, &ticket["latencies"], &ticket["ignored_regions"]),
        (201, &json!({"eu": 21}), &json!(["mars", "us"]))
    );
    assert_eq!(post().await, (201, ticket.clone()), "the answer to a repeated request is the same");
    let (_, later) = app.get("ann", &format!("{TICKETS}/{}", id(&ticket))).await;
    assert_eq!((&later["latencies"], later.get("ignored_regions")), (&json!({"eu": 21}), None));
    let State::Waiting(queued) = app.player("ann").await.state else { panic!("does not wait") };
    assert_eq!(json!(queued.latencies), json!({"eu": 21}));
}

#[tokio::test]
async fn a_ticket_that_can_never_be_matched_is_refused_with_the_limits_of_its_queue() {
    let app = App::start().await;
    let body = json!({"queue": "ranked", "latencies": {"eu": 121}});
    let (status, problem) = read(app.request("ann", Method::POST, TICKETS).json(&body).send().await.unwrap()).await;
    assert_eq!((status, problem["type"].as_str()), (422, Some("/problems/latency-too-high")));
    assert_eq!((&problem["queue"], &problem["max_latency_ms"]), (&json!("ranked"), &json!({"eu": 120, "us": 120})));
    assert_eq!(app.last().await, 0);
}

#[tokio::test]
async fn a_ticket_that_timed_out_says_who_else_waited() {
    let app = App::start().await;
    let (_, ticket) = app.queue("ann", None).await;
    let State::Waiting(queued) = app.player("ann").await.state else { panic!("does not wait") };
    let mut socket = app.socket("ann", None).await;
    let excluded = [("Rank".to_owned(), 4), ("no-common-region".to_owned(), 2)].into();
    let candidates = Some(Candidates { count: 7, eligible: 1, excluded });
    app.append(
        "ann",
        TimedOut {
            ticket: queued.ticket,
            queue: queued.queue,
            waited_ms: 120_000,
            considered: candidates,
            absences: 0,
            party: None,
        },
    )
    .await;
    let expected = json!({"count": 7, "eligible": 1, "excluded": {"Rank": 4, "no-common-region": 2}});
    assert_eq!(socket.event().await["data"]["considered"], expected);
    let (_, ended) = app.get("ann", &format!("{TICKETS}/{}", id(&ticket))).await;
    assert_eq!((&ended["ended"], &ended["candidates"]), (&json!("timed-out"), &expected));
}

#[tokio::test]
async fn a_matched_player_can_neither_queue_nor_cancel() {
    let app = App::start().await;
    let (_, body) = app.queue("ann", None).await;
    let State::Waiting(waiting) = app.player("ann").await.state else { panic!("does not wait") };
    let matched = matched(&waiting);
    app.append("ann", matched.clone()).await;
    for (status, problem) in [app.queue("ann", None).await, app.cancel("ann", &id(&body)).await] {
        assert_eq!((status, &problem["session"]), (409, &json!(matched.session)));
    }
    assert_eq!(app.last().await, 2);
}

#[tokio::test]
async fn another_players_ticket_is_not_found() {
    let app = App::start().await;
    let (_, body) = app.queue("ann", None).await;
    let path = format!("{TICKETS}/{}", id(&body));
    app.queue("bob", None).await;
    for other_player in ["bob", "carl"] {
        let (status, problem) = app.get(other_player, &path).await;
        assert_eq!(status, 404);
        assert!(!problem.to_string().contains("ann"), "{problem}");
        assert_eq!(app.cancel(other_player, &id(&body)).await.0, 404);
    }
    assert!(matches!(app.player("ann").await.state, State::Waiting(_)));
}
