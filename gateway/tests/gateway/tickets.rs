//! Queueing and cancelling, as the log has it afterwards.

use futures::future::join_all;
use garage_events::{
    env::{Env, System},
    event::Event as _,
    player::{Ending, Event, PlayerMatched, Queued, Released, State},
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
async fn an_idempotency_key_queues_once() {
    let app = App::start().await;
    let (status, first) = app.queue("ann", Some("try-1")).await;
    assert_eq!(status, 201);
    assert_eq!(app.queue("ann", Some("try-1")).await, (201, first.clone()));
    // Another key is another wish, and another player's same key is his own.
    assert_eq!(app.queue("ann", Some("try-2")).await.0, 409);
    let (status, other) = app.queue("bob", Some("try-1")).await;
    assert_eq!(status, 201);
    assert_ne!(id(&first), id(&other));
    assert_eq!(app.last().await, 2);

    // The ticket moves on; the key still finds it and queues nobody.
    let State::Waiting(waiting) = app.player("ann").await.state else { panic!("does not wait") };
    let matched = matched(&waiting);
    let (ticket, queue, session) = (waiting.ticket, waiting.queue.clone(), matched.session);
    let events: [(Event, &str); 3] = [
        (matched.into(), "matched"),
        (PlayerMatched { ticket, queue, session, address: address() }.into(), "playing"),
        (Released { ticket, session, why: Ending::Finished }.into(), "ended"),
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
async fn of_many_wishes_at_once_one_is_granted() {
    let app = App::start().await;
    let answers = join_all((0..20).map(|_| app.queue("ann", None))).await;
    let granted: Vec<_> = answers.iter().filter(|(status, _)| *status == 201).collect();
    assert_eq!(granted.len(), 1, "{answers:?}");
    for (status, body) in &answers {
        assert!(*status == 201 || *status == 409 && body["ticket"] == granted[0].1["ticket"], "{status} {body}");
    }
    // With one key for all, each is told of the one ticket.
    let answers = join_all((0..20).map(|_| app.queue("bob", Some("k")))).await;
    assert!(answers.iter().all(|answer| *answer == answers[0] && answer.0 == 201), "{answers:?}");
    assert_eq!(app.last().await, 2);
}

#[tokio::test]
async fn an_expired_ticket_makes_way() {
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
async fn who_is_matched_neither_queues_nor_cancels() {
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
async fn another_players_ticket_does_not_exist() {
    let app = App::start().await;
    let (_, body) = app.queue("ann", None).await;
    let path = format!("{TICKETS}/{}", id(&body));
    app.queue("bob", None).await;
    for stranger in ["bob", "carl"] {
        let (status, problem) = app.get(stranger, &path).await;
        assert_eq!(status, 404);
        assert!(!problem.to_string().contains("ann"), "{problem}");
        assert_eq!(app.cancel(stranger, &id(&body)).await.0, 404);
    }
    assert!(matches!(app.player("ann").await.state, State::Waiting(_)));
}
