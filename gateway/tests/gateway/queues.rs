//! Closed queues, and wait estimates.

use garage_events::{
    env::{Env, System},
    player::State,
    queue_status::{self, QueueStatus},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{App, DEADLINE, TICKETS, matched, queued, ticket_request};

/// Sets the status of a queue, like an operator.
async fn set(app: &App, queue: &str, queue_status: &QueueStatus) {
    let subject = queue_status::subject(&queue.parse().unwrap());
    let body = serde_json::to_vec(queue_status).unwrap();
    async_nats::jetstream::new(app.client.clone()).publish(subject, body.into()).await.unwrap().await.unwrap();
}

fn closed() -> QueueStatus {
    QueueStatus::Closed { reason: "season's end".into() }
}

/// Repeats a request until it returns a value.
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

/// Waits until a request for a ticket is refused. Returns the problem. Uses a new player each time, because an earlier
/// one is queued.
async fn until_refused(app: &App) -> Value {
    until(async || match app.queue(&System.id().to_string(), None).await {
        (503, problem) => Some(problem),
        (201, _) => None,
        other => panic!("{other:?}"),
    })
    .await
}

#[tokio::test]
async fn a_closed_queue_accepts_no_new_tickets_until_it_is_opened() {
    let app = App::start().await;
    let (_, ann) = app.queue("ann", Some("k")).await;
    set(&app, "ranked", &closed()).await;
    let problem = until_refused(&app).await;
    let expected = json!({"type": "/problems/queue-closed", "title": "Queue closed", "status": 503,
        "detail": "queue ranked is closed: season's end", "queue": "ranked", "reason": "season's end"});
    assert_eq!(problem, expected);
    let response = app.request("bob", Method::POST, TICKETS).json(&ticket_request()).send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "60");

    // A player who already waits keeps waiting, and sees the same ticket.
    assert!(matches!(app.player("ann").await.state, State::Waiting(_)));
    assert_eq!(app.queue("ann", Some("k")).await, (201, ann.clone()));
    assert_eq!(app.queue("ann", None).await.0, 409);
    assert_eq!(app.get("ann", &format!("{TICKETS}/{}", ann["ticket"].as_str().unwrap())).await, (200, ann));

    set(&app, "ranked", &QueueStatus::Open).await;
    until(async || (app.queue("bob", None).await.0 == 201).then_some(())).await;
}

#[tokio::test]
async fn a_starting_gateway_knows_the_closed_queues() {
    let mut app = App::start().await;
    // Only the last status counts.
    for queue_status in [closed(), QueueStatus::Open, closed()] {
        set(&app, "ranked", &queue_status).await;
    }
    set(&app, "unheard-of", &closed()).await;
    app.address = app.another().await;
    assert_eq!(app.queue("ann", None).await.0, 503);
}

#[tokio::test]
async fn a_gateway_sees_a_queue_closed_after_a_restart_of_nats() {
    let mut app = App::start().await;
    app.nats.node(0).unwrap().restart().await.unwrap();
    set(&app, "ranked", &closed()).await;
    // Use a new player each time, because an earlier one may be queued.
    let refused = until(async || match app.queue(&System.id().to_string(), None).await {
        (503, problem) if problem["type"] == "/problems/queue-closed" => Some(problem),
        _ => None,
    });
    assert_eq!(refused.await["reason"], "season's end");
}

#[tokio::test]
async fn a_queued_player_sees_the_wait_estimate() {
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
    let estimate = until(async || {
        let (_, ticket) = app.get("ann", &path).await;
        ticket["estimated_wait_ms"].as_u64().filter(|estimate| (40_000..600_000).contains(estimate))
    });
    estimate.await;
    // The answer to the original request stays the same.
    assert_eq!(app.queue("ann", Some("k")).await, (201, first.clone()));
    // A ticket that does not wait has no estimate.
    app.cancel("ann", first["ticket"].as_str().unwrap()).await;
    let (_, ended) = app.get("ann", &path).await;
    assert_eq!((&ended["status"], ended.get("estimated_wait_ms")), (&json!("ended"), None));
}
