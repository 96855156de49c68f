//! Workers of this build, while workers of a newer build already write to the log.

use async_nats::HeaderMap;
use garage_events::{
    env::{Env, System},
    log::Head,
    subject::{Aggregate, DEAD},
    svc::{self, CallError, GetSession},
};
use garage_stack::{bot::Problem, workers::Worker};
use reqwest::Method;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use crate::support::{Garage, Setup, history, until};

/// An event as a newer build may write it.
struct NewerEvent {
    type_name: &'static str,
    v: u32,
    data: Value,
}

impl Garage {
    /// Appends an event as every build must: with the aggregate's next number and expected head. Returns its sequence.
    async fn append(&self, aggregate: &Aggregate, newer: NewerEvent) -> u64 {
        let events = self.events().await;
        let last = events.iter().rfind(|event| event.aggregate == *aggregate);
        let head = last.map_or_else(Head::default, |last| Head { seq: last.seq, n: last.n });
        let NewerEvent { type_name, v, data } = newer;
        let event = json!({
            "id": System.id(), "n": head.n + 1, "type": type_name, "v": v, "at": System.now().format(&Rfc3339).unwrap(),
            "correlation": System.id(), "cause": null, "mood": "a field that is new", "data": data,
        });
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", head.seq.to_string());
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", aggregate.filter());
        let subject = aggregate.filter().replace('>', &type_name.to_lowercase());
        let published = self.jetstream().publish_with_headers(subject, headers, event.to_string().into()).await;
        published.unwrap().await.unwrap().sequence
    }

    /// Waits until the log of a worker's first instance has a line with all these words.
    async fn until_logged(&self, worker: Worker, words: &[&str]) {
        let log = self.stack.root().join(format!("logs/{}-0.log", worker.name()));
        let logged = |text: &str| text.lines().any(|line| words.iter().all(|word| line.contains(word)));
        let poll = async || logged(&std::fs::read_to_string(&log).unwrap()).then_some(());
        until(&format!("{} logs {words:?}", worker.name()), poll).await;
    }

    /// Waits until the projections have skipped this many events.
    async fn until_skipped(&mut self, count: u32) {
        let session = self.stack.instances(Worker::Session).next().unwrap();
        let url = format!("http://{}/metrics", session.admin);
        let line = format!("garage_projection_skipped_total {count}");
        let poll = async || {
            let metrics = reqwest::get(&url).await.ok()?.text().await.ok()?;
            metrics.lines().any(|found| found == line).then_some(())
        };
        until(&line, poll).await;
    }

    async fn dead_letters(&self) -> u64 {
        self.jetstream().get_stream(DEAD).await.unwrap().cached_info().state.messages
    }
}

/// The advice to the operator in the error message.
const ADVICE: &str = "is unknown to this build; run one at least as new as the writer's";

#[tokio::test]
async fn new_fields_of_a_known_event_are_ignored() {
    let garage = Setup::long().start().await;
    let now = System.now();
    let [since, expires] = [now, now + time::Duration::MINUTE].map(|time| time.format(&Rfc3339).unwrap());
    let queued = json!({
        "ticket": System.id(), "queue": "ranked", "rank": 0, "latencies": {"eu": 20}, "attributes": {},
        "waiting_since": since, "expires_at": expires, "crew": ["a field that is new", 1],
    });
    let anna = Aggregate::Player("anna".parse().unwrap());
    let seq = garage.append(&anna, NewerEvent { type_name: "Queued", v: 1, data: queued }).await;
    let bert = garage.bot("bert");
    bert.queue("ranked").await.unwrap();
    garage.until_event("Opened", 1).await;
    let mut socket = garage.bot("anna").socket(Some(0)).await.unwrap();
    let frame = socket.next().await.unwrap();
    assert_eq!((frame.seq, &frame.data["crew"][1]), (seq, &json!(1)), "clients receive all fields");
}

#[tokio::test]
async fn a_session_that_a_newer_build_has_continued_is_left_to_that_build() {
    let mut garage = Setup::long().start().await;
    for name in ["anna", "bert"] {
        garage.bot(name).queue("ranked").await.unwrap();
    }
    garage.until_event("Opened", 1).await;
    garage.drained().await;
    let session = history::sessions(&garage.events().await)[0];

    // An unknown type, and an unknown version of a known type.
    for (count, type_name, v) in [(1, "Paused", 1), (2, "Finished", 2)] {
        let newer = NewerEvent { type_name, v, data: json!({"attempt": 1}) };
        let seq = garage.append(&Aggregate::Session(session), newer).await;
        garage.until_skipped(count).await;
        let (message, unknown) = (format!("message {seq} "), format!("event type {type_name} v{v} {ADVICE}"));
        garage.until_logged(Worker::Session, &["only a newer build can handle this message", &message, &unknown]).await;
    }
    // A query about the session fails with the same advice.
    match svc::call(&garage.admin, &GetSession { session }).await {
        Err(CallError::Refused { code: 503, message, .. }) => assert!(message.contains(ADVICE), "{message}"),
        other => panic!("{other:?}"),
    }
    // The messages are redelivered for a newer build. They do not become dead letters.
    let stream = garage.jetstream().get_stream("GARAGE").await.unwrap();
    assert_eq!(stream.consumer_info("session").await.unwrap().num_ack_pending, 2);
    assert_eq!(garage.dead_letters().await, 0);

    // Other sessions are not affected.
    for name in ["carl", "dora"] {
        garage.bot(name).queue("ranked").await.unwrap();
    }
    garage.until_event("Opened", 2).await;
    assert_eq!(garage.dead_letters().await, 0);
}

#[tokio::test]
async fn a_player_that_a_newer_build_has_updated_is_left_to_that_build() {
    let mut garage = Setup::short().start().await;
    let anna = Aggregate::Player("anna".parse().unwrap());
    let bot = garage.bot("anna");
    let mut socket = bot.socket(Some(0)).await.unwrap();
    for (count, type_name, v) in [(1, "Promoted", 1), (2, "Queued", 2)] {
        let seq = garage.append(&anna, NewerEvent { type_name, v, data: json!({"to": "gold"}) }).await;
        // The socket passes unknown events on: a newer client may know them.
        let frame = socket.next().await.unwrap();
        assert_eq!((frame.seq, &*frame.type_name, &frame.data["to"]), (seq, type_name, &json!("gold")));
        garage.until_skipped(count).await;

        // The gateway accepts no command of this player.
        let ticket_request = json!({"queue": "ranked", "latencies": {"eu": 20}});
        let refused: Result<Value, Problem> =
            bot.ask(Method::POST, "/v1/matchmaking/tickets", Some(ticket_request)).await;
        let refused = refused.unwrap_err();
        assert!(refused.is_temporary(), "not a temporary failure: {refused:?}");
        let (message, unknown) = (format!("message {seq} "), format!("event type {type_name} v{v} {ADVICE}"));
        garage.until_logged(Worker::Gateway, &[&message, &unknown]).await;
    }

    // The matchmaker cannot know whether the player is still queued: it exits and says why.
    let first = garage.events().await[0].seq;
    let matchmaker = garage.stack.instances(Worker::Matchmaker).next().unwrap();
    let ended = until("the matchmaker ends", async || matchmaker.process.try_wait().unwrap()).await;
    assert!(!ended.success(), "{ended}");
    garage
        .until_logged(Worker::Matchmaker, &[&format!("event {first}:"), &format!("event type Promoted v1 {ADVICE}")])
        .await;
    // The gateway still accepts other players' commands, for the next matchmaker.
    garage.bot("bert").queue("ranked").await.unwrap();
    assert_eq!(garage.dead_letters().await, 0);
}
