//! Queues that an operator closes, and how long one waits in those that are open.

use garage_events::{
    env::{Env, System},
    player::State,
    queue_status::{self, QueueStatus},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{App, DEADLINE, TICKETS, matched, queued, ticket_request};

/// As an operator would.
async fn set(app: &App, queue: &str, queue_status: &QueueStatus) {
    let subject = queue_status::subject(&queue.parse().unwrap());
    let body = serde_json::to_vec(queue_status).unwrap();
    async_nats::jetstream::new(app.client.clone()).publish(subject, body.into()).await.unwrap().await.unwrap();
}

fn closed() -> QueueStatus {
    QueueStatus::Closed { reason: "season's end".into() }
}

/// Asks again until the gateway has heard of it.
async fn until<T>(ask: impl AsyncFn() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
        }
    };
    timeout(DEADLINE, asking).await.unwrap()
}

/// Waits until a queue takes nobody; tells what the player was told.
async fn until_refused(app: &App, player: &str) -> Value {
    until(async || match app.queue(player, None).await {
        (503, problem) => Some(problem),
        (201, ticket) => {
            app.cancel(player, ticket["ticket"].as_str().unwrap()).await;
            None
        }
        other => panic!("{other:?}"),
    })
    .await
}

#[tokio::test]
async fn a_closed_queue_takes_nobody_and_says_why_until_it_is_opened() {
    let app = App::start().await;
    let (_, ann) = app.queue("ann", Some("k")).await;
    set(&app, "ranked", &closed()).await;
    let problem = until_refused(&app, "bob").await;
    let expected = json!({"type": "/problems/queue-closed", "title": "Queue closed", "status": 503,
        "detail": "queue ranked is closed: season's end", "queue": "ranked", "reason": "season's end"});
    assert_eq!(problem, expected);
    let response = app.request("bob", Method::POST, TICKETS).json(&ticket_request()).send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "60");

    // Who waits there waits on, and is told the same of his ticket.
    assert!(matches!(app.player("ann").await.state, State::Waiting(_)));
    assert_eq!(app.queue("ann", Some("k")).await, (201, ann.clone()));
    assert_eq!(app.queue("ann", None).await.0, 409);
    assert_eq!(app.get("ann", &format!("{TICKETS}/{}", ann["ticket"].as_str().unwrap())).await, (200, ann));

    set(&app, "ranked", &QueueStatus::Open).await;
    until(async || (app.queue("bob", None).await.0 == 201).then_some(())).await;
}

#[tokio::test]
async fn a_gateway_that_starts_knows_what_is_closed() {
    let mut app = App::start().await;
    // Of several, the last word counts.
    for queue_status in [closed(), QueueStatus::Open, closed()] {
        set(&app, "ranked", &queue_status).await;
    }
    set(&app, "unheard-of", &closed()).await;
    app.address = app.another().await;
    assert_eq!(app.queue("ann", None).await.0, 503);
}

#[tokio::test]
async fn it_is_heard_of_after_the_servers_were_away() {
    let mut app = App::start().await;
    app.nats.node(0).unwrap().restart().await.unwrap();
    set(&app, "ranked", &closed()).await;
    // A new player each time: an earlier one may have got in.
    let refused = until(async || match app.queue(&System.id().to_string(), None).await {
        (503, problem) if problem["type"] == "/problems/queue-closed" => Some(problem),
        _ => None,
    });
    assert_eq!(refused.await["reason"], "season's end");
}

#[tokio::test]
async fn who_waits_is_told_how_long_others_did() {
    let app = App::start().await;
    let (_, first) = app.queue("ann", Some("k")).await;
    let path = format!("{TICKETS}/{}", first["ticket"].as_str().unwrap());
    assert_eq!(app.get("ann", &path).await, (200, first.clone()));

    for (player, seconds) in [("bob", 3), ("carl", 40), ("dora", 600)] {
        let queued = garage_events::player::Queued {
            waiting_since: System.now() - time::Duration::seconds(seconds),
            ..queued()
        };
        app.append(player, queued.clone()).await;
        app.append(player, matched(&queued)).await;
    }
    let notified = until(async || {
        let (_, ticket) = app.get("ann", &path).await;
        ticket["estimated_wait_ms"].as_u64().filter(|estimate| (40_000..600_000).contains(estimate))
    });
    notified.await;
    // The answer to her wish stays what it was.
    assert_eq!(app.queue("ann", Some("k")).await, (201, first.clone()));
    // Who does not wait is told nothing of it.
    app.cancel("ann", first["ticket"].as_str().unwrap()).await;
    let (_, ended) = app.get("ann", &path).await;
    assert_eq!((&ended["status"], ended.get("estimated_wait_ms")), (&json!("ended"), None));
}
