//! Requests, and what becomes of their replies.
#![cfg(test)]

use garage_events::svc::{Call, CallError, call};
use garage_stack::servers::{Nats, Role};
use garage_worker::{Shutdown, service::Service};
use serde::{Deserialize, Serialize};

/// Asks for a text of so many bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Text {
    bytes: usize,
}

impl Call for Text {
    const SUBJECT: &'static str = "svc.test.text";
    type Reply = String;
}

#[tokio::test]
async fn a_reply_that_is_too_large_is_refused_and_not_lost() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::start(folder.path(), 1).await.unwrap();
    let client = nats.connect(Role::Admin).await.unwrap();
    let service = Service::start(&client, "test", "texts").await.unwrap();
    let serving = service.serve::<Text, _, _>(1, Shutdown::new(), async |Text { bytes }| Ok("x".repeat(bytes)));
    tokio::spawn(serving.await.unwrap());
    assert_eq!(call(&client, &Text { bytes: 3 }).await.unwrap(), "xxx");
    let refused = call(&client, &Text { bytes: 2 << 20 }).await;
    assert!(matches!(refused, Err(CallError::Refused { code: 413, .. })), "{refused:?}");
}
