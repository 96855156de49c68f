//! What players get while the log has no room.

use async_nats::jetstream::stream::Config;
use garage_events::{jetstream::storage::NEARLY_FULL, player::State, subject::STREAM};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    parties::post,
    support::{App, DEADLINE},
};

/// Gives the log this size in bytes.
async fn resize(app: &App, size: u64) {
    let log = app.log.context().get_stream(STREAM).await.unwrap();
    let config = Config { max_bytes: i64::try_from(size).unwrap(), ..log.cached_info().config.clone() };
    app.log.context().update_stream(config).await.unwrap();
}

/// Requests tickets of new players until one is refused, and returns the refusal.
async fn until_refused(app: &App, prefix: &str) -> Value {
    let mut number = 0;
    let refused = async {
        loop {
            number += 1;
            match app.queue(&format!("{prefix}-{number}"), None).await {
                (201, _) => {}
                (_, problem) => return problem,
            }
        }
    };
    timeout(DEADLINE, refused).await.unwrap()
}

#[tokio::test]
async fn a_nearly_full_log_takes_no_new_tickets_and_everything_else() {
    let app = App::start().await;
    let (_, ann) = app.queue("ann", Some("key")).await;
    let (bytes, _) = app.log.measure().await.unwrap();
    // The log is 96 % full. The gateway measures it from time to time.
    resize(&app, bytes * 100 / (NEARLY_FULL + 1)).await;
    let problem = until_refused(&app, "bob").await;
    assert_eq!((&problem["type"], &problem["status"]), (&"/problems/log-full".into(), &503.into()), "{problem}");
    assert_eq!(app.queue("ann", Some("key")).await, (201, ann.clone()), "a repeated request");

    // There is room for the cancellation.
    resize(&app, bytes + 2_000).await;
    assert_eq!(app.cancel("ann", ann["ticket"].as_str().unwrap()).await.0, 204);
    assert!(!matches!(app.player("ann").await.state, State::Waiting(_)));
    resize(&app, 8 << 30).await;
    let room = async { while app.queue("carl", None).await.0 != 201 {} };
    timeout(DEADLINE, room).await.unwrap();
}

#[tokio::test]
async fn a_full_log_refuses_cancellations_too_and_says_that_it_is_full() {
    let app = App::start().await;
    let (_, ann) = app.queue("ann", None).await;
    let (bytes, _) = app.log.measure().await.unwrap();
    resize(&app, bytes).await;
    let (status, problem) = app.cancel("ann", ann["ticket"].as_str().unwrap()).await;
    assert_eq!((status, &problem["type"]), (503, &"/problems/log-full".into()), "{problem}");
    resize(&app, 8 << 30).await;
    assert_eq!(app.cancel("ann", ann["ticket"].as_str().unwrap()).await.0, 204);
}

#[tokio::test]
async fn a_nearly_full_log_takes_no_new_parties_but_a_member_can_leave() {
    let app = App::start().await;
    assert_eq!(post(&app, "ann", "/v1/parties", Value::Null).await.0, 201);
    let (bytes, _) = app.log.measure().await.unwrap();
    resize(&app, bytes * 100 / (NEARLY_FULL + 1)).await;
    until_refused(&app, "bob").await;
    let (status, problem) = post(&app, "carl", "/v1/parties", Value::Null).await;
    assert_eq!((status, &problem["type"]), (503, &"/problems/log-full".into()), "{problem}");

    // There is room for the end of the party.
    resize(&app, bytes + 4_000).await;
    assert_eq!(post(&app, "ann", "/v1/party/leave", Value::Null).await.0, 204);
}
