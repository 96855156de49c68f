//! Workers of this build beside those of a newer one, which has written to the log already.

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

/// A message as a newer build may write it.
struct Tomorrows {
    type_name: &'static str,
    v: u32,
    data: Value,
}

impl Garage {
    /// Appends an event as every build has to: the next of its aggregate, expecting its end. Tells its sequence.
    async fn append(&self, aggregate: &Aggregate, tomorrows: Tomorrows) -> u64 {
        let events = self.events().await;
        let last = events.iter().rfind(|event| event.aggregate == *aggregate);
        let head = last.map_or_else(Head::default, |last| Head { seq: last.seq, n: last.n });
        let Tomorrows { type_name, v, data } = tomorrows;
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

    /// Waits until the log of a worker's first instance has a line with all of these.
    async fn until_said(&self, worker: Worker, words: &[&str]) {
        let log = self.stack.root().join(format!("logs/{}-0.log", worker.name()));
        let says = |text: &str| text.lines().any(|line| words.iter().all(|word| line.contains(word)));
        let look = async || says(&std::fs::read_to_string(&log).unwrap()).then_some(());
        until(&format!("{} says {words:?}", worker.name()), look).await;
    }

    /// Waits until the projections have left out so many events.
    async fn until_skipped(&mut self, count: u32) {
        let session = self.stack.instances(Worker::Session).next().unwrap();
        let url = format!("http://{}/metrics", session.admin);
        let line = format!("garage_projection_skipped_total {count}");
        let look = async || {
            let metrics = reqwest::get(&url).await.ok()?.text().await.ok()?;
            metrics.lines().any(|found| found == line).then_some(())
        };
        until(&line, look).await;
    }

    async fn dead_letters(&self) -> u64 {
        self.jetstream().get_stream(DEAD).await.unwrap().cached_info().state.messages
    }
}

/// What an operator is told to do.
const CURE: &str = "is unknown to this build; run one at least as new as the writer's";

#[tokio::test]
async fn what_is_new_in_an_event_that_is_known_is_ignored() {
    let garage = Setup::long().start().await;
    let now = System.now();
    let [since, expires] = [now, now + time::Duration::MINUTE].map(|time| time.format(&Rfc3339).unwrap());
    let queued = json!({
        "ticket": System.id(), "queue": "ranked", "rank": 0, "latencies": {"eu": 20}, "attributes": {},
        "waiting_since": since, "expires_at": expires, "crew": ["a field that is new", 1],
    });
    let anna = Aggregate::Player("anna".parse().unwrap());
    let seq = garage.append(&anna, Tomorrows { type_name: "Queued", v: 1, data: queued }).await;
    let bert = garage.bot("bert");
    bert.queue("ranked").await.unwrap();
    garage.until_event("Opened", 1).await;
    let mut line = garage.bot("anna").socket(Some(0)).await.unwrap();
    let frame = line.next().await.unwrap();
    assert_eq!((frame.seq, &frame.data["crew"][1]), (seq, &json!(1)), "clients are shown all of it");
}

#[tokio::test]
async fn a_session_that_a_newer_build_has_gone_on_with_is_left_to_it() {
    let mut garage = Setup::long().start().await;
    for name in ["anna", "bert"] {
        garage.bot(name).queue("ranked").await.unwrap();
    }
    garage.until_event("Opened", 1).await;
    garage.drained().await;
    let session = history::sessions(&garage.events().await)[0];

    // A type that is not known, and a version that is not.
    for (count, type_name, v) in [(1, "Paused", 1), (2, "Finished", 2)] {
        let tomorrows = Tomorrows { type_name, v, data: json!({"attempt": 1}) };
        let seq = garage.append(&Aggregate::Session(session), tomorrows).await;
        garage.until_skipped(count).await;
        let (message, unknown) = (format!("message {seq} "), format!("event type {type_name} v{v} {CURE}"));
        garage.until_said(Worker::Session, &["left to a newer build", &message, &unknown]).await;
    }
    // Who asks about it is told as well.
    match svc::call(&garage.admin, &GetSession { session }).await {
        Err(CallError::Refused { code: 503, message, .. }) => assert!(message.contains(CURE), "{message}"),
        other => panic!("{other:?}"),
    }
    // Offered to whoever knows it, and not given up.
    let stream = garage.jetstream().get_stream("GARAGE").await.unwrap();
    assert_eq!(stream.consumer_info("session").await.unwrap().num_ack_pending, 2);
    assert_eq!(garage.dead_letters().await, 0);

    // Nobody else is held up by it.
    for name in ["carl", "dora"] {
        garage.bot(name).queue("ranked").await.unwrap();
    }
    garage.until_event("Opened", 2).await;
    assert_eq!(garage.dead_letters().await, 0);
}

#[tokio::test]
async fn a_player_of_whom_a_newer_build_has_written_is_left_to_it() {
    let mut garage = Setup::short().start().await;
    let anna = Aggregate::Player("anna".parse().unwrap());
    let bot = garage.bot("anna");
    let mut socket = bot.socket(Some(0)).await.unwrap();
    for (count, type_name, v) in [(1, "Promoted", 1), (2, "Queued", 2)] {
        let seq = garage.append(&anna, Tomorrows { type_name, v, data: json!({"to": "gold"}) }).await;
        // Her socket is no decider: what this build does not know, her client may.
        let frame = socket.next().await.unwrap();
        assert_eq!((frame.seq, &*frame.type_name, &frame.data["to"]), (seq, type_name, &json!("gold")));
        garage.until_skipped(count).await;

        // The gateway does not decide on her.
        let ticket_request = json!({"queue": "ranked", "latencies": {"eu": 20}});
        let refused: Result<Value, Problem> =
            bot.ask(Method::POST, "/v1/matchmaking/tickets", Some(ticket_request)).await;
        let refused = refused.unwrap_err();
        assert!(refused.may_pass(), "a newer gateway would: {refused:?}");
        let (message, unknown) = (format!("message {seq} "), format!("event type {type_name} v{v} {CURE}"));
        garage.until_said(Worker::Gateway, &[&message, &unknown]).await;
    }

    // The matchmaker does not decide on a pool in which she may be: it ends, and says why.
    let first = garage.events().await[0].seq;
    let matchmaker = garage.stack.instances(Worker::Matchmaker).next().unwrap();
    let ended = until("the matchmaker ends", async || matchmaker.process.try_wait().unwrap()).await;
    assert!(!ended.success(), "{ended}");
    garage
        .until_said(Worker::Matchmaker, &[&format!("event {first}:"), &format!("event type Promoted v1 {CURE}")])
        .await;
    // The others' commands are taken meanwhile, for the one that comes.
    garage.bot("bert").queue("ranked").await.unwrap();
    assert_eq!(garage.dead_letters().await, 0);
}
