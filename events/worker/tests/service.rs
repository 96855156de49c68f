//! Requests, and what becomes of their replies.
#![cfg(test)]

use std::time::Duration;

use futures::{StreamExt, future::join_all};
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
    const TIMEOUT: Duration = Duration::from_secs(2);

    fn may_repeat(&self) -> bool {
        false
    }
}

/// Asks for nothing, once or until it is answered.
#[derive(Debug, Serialize, Deserialize)]
struct Word {
    repeat: bool,
}

impl Call for Word {
    const SUBJECT: &'static str = "svc.test.word";
    type Reply = ();
    const TIMEOUT: Duration = Duration::from_secs(3);

    fn may_repeat(&self) -> bool {
        self.repeat
    }
}

#[tokio::test]
async fn a_request_that_is_lost_is_sent_again_if_it_may_be() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::start(folder.path(), 1).await.unwrap();
    let client = nats.connect(Role::Admin).await.unwrap();
    for repeat in [false, true] {
        let mut requests = client.subscribe(Word::SUBJECT).await.unwrap();
        client.flush().await.unwrap();
        let answering = async {
            let _lost = requests.next().await.unwrap();
            let again = requests.next().await.unwrap();
            client.publish(again.reply.unwrap(), "null".into()).await.unwrap();
            std::future::pending::<()>().await;
        };
        let word = Word { repeat };
        let reply = tokio::select! { reply = call(&client, &word) => reply, () = answering => unreachable!() };
        assert_eq!(reply.is_ok(), repeat, "{reply:?}");
    }
}

#[tokio::test]
async fn that_a_repeat_was_turned_away_hides_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::start(folder.path(), 1).await.unwrap();
    let client = nats.connect(Role::Admin).await.unwrap();
    let mut requests = client.subscribe(Word::SUBJECT).await.unwrap();
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
        reply = call(&client, &Word { repeat: true }) => reply.unwrap(),
        () = answering => unreachable!(),
    }
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

#[tokio::test]
async fn a_request_that_cannot_be_answered_in_time_is_refused_and_carried_out_for_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let nats = Nats::start(folder.path(), 1).await.unwrap();
    let client = nats.connect(Role::Admin).await.unwrap();
    let service = Service::start(&client, "test", "texts").await.unwrap();
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    let serving = service.serve::<Text, _, _>(1, Shutdown::new(), move |Text { bytes }| {
        let begun = begun.clone();
        async move {
            begun.send(bytes).unwrap();
            std::future::pending().await
        }
    });
    tokio::spawn(serving.await.unwrap());
    // One has the place, eight wait for it, and there is no room for a tenth.
    let answers = join_all((0..10).map(|bytes| {
        let client = client.clone();
        async move { call(&client, &Text { bytes }).await }
    }));
    let mut reasons: Vec<_> = answers.await.into_iter().map(|answer| answer.unwrap_err().to_string()).collect();
    reasons.sort();
    let late = "svc.test.text refused with 503: not done in time";
    assert_eq!(reasons, [&[late; 9][..], &["svc.test.text refused with 503: too many requests wait already"]].concat());
    assert!(begins.try_recv().is_ok());
    assert!(begins.try_recv().is_err(), "those that waited were not begun");
}
