//! Requests and replies between workers.
#![cfg(test)]

use std::time::Duration;

use futures::{StreamExt, future::join_all};
use garage_events::svc::{Call, CallError, call};
use garage_stack::servers::{Nats, Role};
use garage_worker::{Shutdown, service::Service};
use serde::{Deserialize, Serialize};

/// Asks for a text of this length.
#[derive(Debug, Serialize, Deserialize)]
struct Text {
    bytes: usize,
}

impl Call for Text {
    const SUBJECT: &'static str = "svc.test.text";
    type Reply = String;
    const TIMEOUT: Duration = Duration::from_secs(2);

    fn may_repeat(&self) -> bool {
        false
    }
}

/// A request with an empty reply.
#[derive(Debug, Serialize, Deserialize)]
struct Empty {
    /// Whether the caller may send it again.
    repeat: bool,
}

impl Call for Empty {
    const SUBJECT: &'static str = "svc.test.empty";
    type Reply = ();
    const TIMEOUT: Duration = Duration::from_secs(3);

    fn may_repeat(&self) -> bool {
        self.repeat
    }
}

#[tokio::test]
async fn a_lost_request_is_sent_again_if_it_may_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::start(folder.path(), 1).await.unwrap();
    let client = nats.connect(Role::Admin).await.unwrap();
    for repeat in [false, true] {
        let mut requests = client.subscribe(Empty::SUBJECT).await.unwrap();
        client.flush().await.unwrap();
        let answering = async {
            let _lost = requests.next().await.unwrap();
            let again = requests.next().await.unwrap();
            client.publish(again.reply.unwrap(), "null".into()).await.unwrap();
            std::future::pending::<()>().await;
        };
        let request = Empty { repeat };
        let reply = tokio::select! { reply = call(&client, &request) => reply, () = answering => unreachable!() };
        assert_eq!(reply.is_ok(), repeat, "{reply:?}");
    }
}

#[tokio::test]
async fn if_the_repeated_request_is_refused_the_reply_to_the_first_counts() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::start(folder.path(), 1).await.unwrap();
    let client = nats.connect(Role::Admin).await.unwrap();
    let mut requests = client.subscribe(Empty::SUBJECT).await.unwrap();
    client.flush().await.unwrap();
    let answering = async {
        let first = requests.next().await.unwrap();
        let again = requests.next().await.unwrap();
        let mut busy = async_nats::HeaderMap::new();
        busy.insert("Nats-Service-Error-Code", "503");
        client.publish_with_headers(again.reply.unwrap(), busy, "".into()).await.unwrap();
        client.flush().await.unwrap();
        client.publish(first.reply.unwrap(), "null".into()).await.unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        reply = call(&client, &Empty { repeat: true }) => reply.unwrap(),
        () = answering => unreachable!(),
    }
}

#[tokio::test]
async fn the_caller_of_a_request_with_a_too_large_reply_receives_an_error() {
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

#[tokio::test]
async fn a_request_that_cannot_be_answered_in_time_is_refused_and_not_started() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::start(folder.path(), 1).await.unwrap();
    let client = nats.connect(Role::Admin).await.unwrap();
    let service = Service::start(&client, "test", "texts").await.unwrap();
    let (sender, mut started) = tokio::sync::mpsc::unbounded_channel();
    let serving = service.serve::<Text, _, _>(1, Shutdown::new(), move |Text { bytes }| {
        let sender = sender.clone();
        async move {
            sender.send(bytes).unwrap();
            std::future::pending().await
        }
    });
    tokio::spawn(serving.await.unwrap());
    // One request has the slot, eight wait, and the tenth is refused.
    let answers = join_all((0..10).map(|bytes| {
        let client = client.clone();
        async move { call(&client, &Text { bytes }).await }
    }));
    let mut reasons: Vec<_> = answers.await.into_iter().map(|answer| answer.unwrap_err().to_string()).collect();
    reasons.sort();
    let late = "svc.test.text refused with 503: not completed in time";
    assert_eq!(reasons, [&[late; 9][..], &["svc.test.text refused with 503: too many requests are waiting"]].concat());
    assert!(started.try_recv().is_ok());
    assert!(started.try_recv().is_err(), "a waiting request was started");
}
