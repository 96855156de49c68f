//! `garage dead`: dead letters are listed, shown, and retried.

use std::sync::{Arc, Mutex};

use async_nats::{Client, jetstream};
use garage_events::{
    jetstream::setup::{Consumer, DIRECTOR, SESSION_REPORTS},
    subject,
};
use garage_stack::servers::Role;
use garage_worker::{
    Health, Shutdown,
    reactor::{Delivery, Failure, react},
};
use serde_json::Value;

use crate::support::{Fixture, of_session, open, until};

/// The handler of a worker.
type Handler = fn(&Delivery) -> Result<(), Failure>;

/// A worker whose handler can be replaced while it runs.
#[derive(Clone)]
struct Worker {
    handler: Arc<Mutex<Handler>>,
    seen: Arc<Mutex<Vec<Delivery>>>,
    shutdown: Shutdown,
}

impl Worker {
    /// Runs as the worker's NATS user, to test that its rights are sufficient.
    async fn start(fixture: &Fixture, consumer: Consumer, role: Role) -> anyhow::Result<Self> {
        let handler: Handler = |_| Err(Failure::Poison(anyhow::anyhow!("a mistake")));
        let worker = Self { handler: Arc::new(Mutex::new(handler)), seen: Arc::default(), shutdown: Shutdown::new() };
        let context = jetstream::new(fixture.nats.connect(role).await?);
        let running = worker.clone();
        tokio::spawn(react(context, consumer, 4, Health::default(), worker.shutdown.clone(), move |delivery| {
            let handler = *running.handler.lock().unwrap();
            let result = handler(&delivery);
            running.seen.lock().unwrap().push(delivery);
            async move { result }
        }));
        Ok(worker)
    }

    /// Replaces the handler, and forgets the deliveries so far.
    fn replace_handler(&self, handler: Handler) {
        *self.handler.lock().unwrap() = handler;
        self.seen.lock().unwrap().clear();
    }

    fn seen(&self) -> Vec<Delivery> {
        self.seen.lock().unwrap().clone()
    }
}

async fn report(client: &Client, attempt: u32, body: &'static [u8]) -> anyhow::Result<u64> {
    let ack = jetstream::new(client.clone()).publish(format!("report.x.{attempt}.ready"), body.into()).await?;
    Ok(ack.await?.sequence)
}

async fn dead_letters(fixture: &Fixture) -> anyhow::Result<Vec<Value>> {
    fixture.json(&["dead", "list", "--json"]).await
}

async fn until_dead(fixture: &Fixture, count: usize) -> anyhow::Result<Vec<Value>> {
    until("the dead letters are stored", async || {
        Ok(Some(dead_letters(fixture).await?).filter(|dead_letters| dead_letters.len() == count))
    })
    .await
}

#[tokio::test]
async fn a_dead_letter_is_shown_and_retried_until_it_is_handled() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let worker = Worker::start(&fixture, SESSION_REPORTS, Role::Session).await?;
    let seq = report(&fixture.client, 1, b"{\"tcp_port\":1}").await?;
    let dead = until_dead(&fixture, 1).await?.remove(0);
    for (field, expected) in [
        ("letter", 1.into()),
        ("error", Value::from("a mistake")),
        ("consumer", "session-reports".into()),
        ("stream", subject::REPORTS.into()),
        ("seq", seq.into()),
        ("subject", "report.x.1.ready".into()),
        ("body", "{\"tcp_port\":1}".into()),
    ] {
        assert_eq!(dead[field], expected, "{dead}");
    }
    let first = worker.seen().remove(0);
    let shown = fixture.run(&["dead", "show", "1"]).await?.out;
    for part in ["a mistake", "session-reports", "report.x.1.ready", "\"tcp_port\": 1"] {
        assert!(shown.contains(part), "{shown}");
    }
    assert_eq!(fixture.json(&["dead", "show", "--json", "1"]).await?, [dead]);

    worker.replace_handler(|_| Err(Failure::Poison(anyhow::anyhow!("another mistake"))));
    let ran = fixture.run(&["dead", "retry", "1"]).await?;
    assert!(ran.code == Some(1) && ran.err.contains("1: not handled: another mistake"), "{ran:?}");
    assert_eq!(dead_letters(&fixture).await?.len(), 1);
    worker.replace_handler(|_| Err(Failure::Unavailable(anyhow::anyhow!("redis is down"))));
    let ran = fixture.run(&["dead", "retry", "1"]).await?;
    assert!(ran.code == Some(1) && ran.err.contains("redis is down"), "{ran:?}");
    assert_eq!((worker.seen().len(), dead_letters(&fixture).await?.len()), (1, 1));

    worker.replace_handler(|_| Ok(()));
    let ran = fixture.run(&["dead", "retry", "1"]).await?;
    assert_eq!((ran.code, &*ran.out), (Some(0), "1: handled by session-reports\n"), "{ran:?}");
    // The retried delivery is the same as the first one.
    let again = worker.seen();
    assert_eq!(again.len(), 1);
    let parts = |one: &Delivery| (one.seq, one.time, one.subject.clone(), one.body.clone(), one.delivered);
    assert_eq!(parts(&again[0]), parts(&first));
    let ran = fixture.run(&["dead", "list"]).await?;
    assert_eq!((ran.code, &*ran.out), (Some(0), "no dead letters\n"));
    let ran = fixture.run(&["dead", "retry", "1"]).await?;
    assert!(ran.code == Some(1) && ran.err.contains("there is no dead letter 1"), "{ran:?}");
    Ok(())
}

#[tokio::test]
async fn a_conflict_during_a_retry_is_tried_again_as_in_a_delivery() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let worker = Worker::start(&fixture, SESSION_REPORTS, Role::Session).await?;
    report(&fixture.client, 1, b"{}").await?;
    until_dead(&fixture, 1).await?;
    worker.replace_handler(|_| Err(Failure::Retry(anyhow::anyhow!("moved"))));
    let ran = fixture.run(&["dead", "retry", "1"]).await?;
    assert!(ran.code == Some(1) && ran.err.contains("moved"), "{ran:?}");
    assert_eq!(worker.seen().len(), 5);
    assert_eq!(dead_letters(&fixture).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_can_be_retried_when_its_worker_runs_again() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let worker = Worker::start(&fixture, SESSION_REPORTS, Role::Session).await?;
    // The body is not text, and the message's own stream no longer has it.
    report(&fixture.client, 1, b"\xff{").await?;
    until_dead(&fixture, 1).await?;
    let context = jetstream::new(fixture.client.clone());
    context.get_stream(subject::REPORTS).await?.purge().await?;
    worker.shutdown.cancel();
    until("nobody answers", async || {
        let ran = fixture.run(&["dead", "retry", "--all"]).await?;
        Ok((ran.code == Some(1) && ran.err.contains("no instance of the service is running")).then_some(()))
    })
    .await?;
    assert_eq!(dead_letters(&fixture).await?.len(), 1);

    let worker = Worker::start(&fixture, SESSION_REPORTS, Role::Session).await?;
    worker.replace_handler(|_| Ok(()));
    until(
        "it is handled",
        async || Ok((fixture.run(&["dead", "retry", "--all"]).await?.code == Some(0)).then_some(())),
    )
    .await?;
    assert_eq!(&*worker.seen()[0].body, b"\xff{");
    assert!(dead_letters(&fixture).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn all_dead_letters_or_those_of_one_worker_are_retried() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let reports = Worker::start(&fixture, SESSION_REPORTS, Role::Session).await?;
    let director = Worker::start(&fixture, DIRECTOR, Role::Director).await?;
    let (one, two) = (report(&fixture.client, 1, b"{}").await?, report(&fixture.client, 2, b"{}").await?);
    let log = fixture.log().await?;
    let session = open(&log, &["anna"]).await?;
    let closed = garage_events::session::Closed {
        why: garage_events::player::Ending::Failed,
        results: Vec::new(),
        teams: Vec::new(),
    };
    let event = of_session(&log, session, closed.into()).await?;
    until_dead(&fixture, 3).await?;
    let of = async |worker| anyhow::Ok(fixture.json(&["dead", "list", "--json", "--worker", worker]).await?.len());
    assert_eq!((of("session").await?, of("session-reports").await?, of("director").await?), (2, 2, 1));

    director.replace_handler(|_| Ok(()));
    reports.replace_handler(|delivery| match delivery.subject.as_str() {
        "report.x.1.ready" => Err(Failure::Poison(anyhow::anyhow!("still"))),
        _ => Ok(()),
    });
    let ran = fixture.run(&["dead", "retry", "--all", "--worker", "director"]).await?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(director.seen().iter().map(|one| one.seq).collect::<Vec<_>>(), [event]);
    assert_eq!(dead_letters(&fixture).await?.len(), 2);
    // A dead letter that fails again does not stop the others.
    let ran = fixture.run(&["dead", "retry", "--all"]).await?;
    assert!(ran.code == Some(1) && ran.err.contains("1 of 2 dead letters are kept"), "{ran:?}");
    let mut seen: Vec<_> = reports.seen().iter().map(|one| one.seq).collect();
    seen.sort_unstable();
    assert_eq!(seen, [one, two]);
    assert_eq!(dead_letters(&fixture).await?[0]["subject"], "report.x.1.ready");
    Ok(())
}

#[tokio::test]
async fn an_unreadable_dead_letter_is_shown_and_kept() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let _worker = Worker::start(&fixture, SESSION_REPORTS, Role::Session).await?;
    let context = jetstream::new(fixture.client.clone());
    context.publish(subject::dead(SESSION_REPORTS.name), "\u{1b}rubbish".into()).await?.await?;
    let ran = fixture.run(&["dead", "list"]).await?;
    assert!(
        ran.code == Some(0) && ran.out.contains("session-reports") && ran.out.contains("cannot be read"),
        "{ran:?}"
    );
    let ran = fixture.run(&["dead", "show", "1"]).await?;
    assert!(ran.code == Some(0) && ran.out.contains("rubbish") && !ran.out.contains('\u{1b}'), "{ran:?}");
    let ran = until("the worker answers", async || {
        Ok(Some(fixture.run(&["dead", "retry", "1"]).await?).filter(|ran| !ran.err.contains("no instance")))
    })
    .await?;
    assert!(ran.code == Some(1) && ran.err.contains("the dead letter cannot be read"), "{ran:?}");
    assert_eq!(dead_letters(&fixture).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_worker_may_not_request_a_retry_of_another_worker() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let worker = Worker::start(&fixture, SESSION_REPORTS, Role::Session).await?;
    report(&fixture.client, 1, b"{}").await?;
    until_dead(&fixture, 1).await?;
    worker.replace_handler(|_| Ok(()));
    let director = fixture.nats.connect(Role::Director).await?;
    // NATS denies the request. The flush waits until NATS has processed it.
    director.publish(subject::retry(SESSION_REPORTS.name), "{\"letter\":1}".into()).await?;
    director.flush().await?;
    let ran = fixture.run(&["dead", "retry", "1"]).await?;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(worker.seen().len(), 1);
    Ok(())
}
