//! The `nats` commands of `deploy/docs/cli.md`. Each test sends the requests that one of these commands sends, because
//! the `nats` tool itself is not among the packages that tests may install.
#![cfg(test)]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use async_nats::Client;
use futures::{StreamExt, TryStreamExt};
use garage_events::{
    block,
    env::{Env, System},
    id::SessionId,
    jetstream::{
        JetStreamLog, rule_store,
        setup::{self, SESSION_REPORTS},
    },
    log::{Append, Decision, Head},
    player::{self, CancelReason, Cancelled},
    queue_status::{self, QueueStatus},
    rules::{Applied, RuleSetId},
    session,
    subject::Aggregate,
    svc::GetSession,
};
use garage_stack::servers::{Nats, Role};
use garage_worker::{
    Health, Shutdown,
    reactor::{Failure, react},
    service,
};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(120);

struct Fixture {
    client: Client,
    session: SessionId,
    _nats: Nats,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let nats = Nats::start(folder.path(), 1).await?;
        let client = nats.connect(Role::Admin).await?;
        setup::init(client.clone(), 1).await?;
        let log = JetStreamLog::open(client.clone()).await?;
        let session = SessionId::new(System.id());
        let matched = session::Event::from(session::Matched {
            queue: "ranked".parse()?,
            region: "eu".parse()?,
            teams: Vec::new(),
            latencies: Default::default(),
            rules: "test".into(),
            pool_seq: 0,
            clock: System.now(),
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
        });
        let closed = session::Event::from(session::Closed {
            why: player::Ending::Failed,
            results: Vec::new(),
            teams: Vec::new(),
        });
        let ticket = garage_events::id::TicketId::new(System.id());
        let cancelled = player::Event::from(Cancelled {
            ticket,
            queue: "ranked".parse()?,
            reason: CancelReason::Player,
            absences: 0,
            party: None,
        });
        let decision = Decision::new(&System, session.uuid(), None)
            .change(&System, Aggregate::Session(session), Head::default(), [matched, closed])
            .change(&System, Aggregate::Player("anna".parse()?), Head::default(), [cancelled]);
        log.append(decision).await?;
        Ok(Self { client, session, _nats: nats, _folder: folder })
    }

    async fn request(&self, subject: &str, body: Value) -> anyhow::Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let reply = tokio::time::timeout(DEADLINE, self.client.request(subject.to_owned(), body.into())).await??;
        let value: Value = serde_json::from_slice(&reply.payload)?;
        anyhow::ensure!(value.get("error").is_none(), "{subject}: {value}");
        Ok(value)
    }

    /// A page of `nats stream view`: a nameless consumer that ends by itself, and one request for messages.
    async fn page(&self, stream: &str, begin: Value, count: usize) -> anyhow::Result<Vec<Value>> {
        let mut config = json!({ "ack_policy": "explicit", "replay_policy": "instant",
            "inactive_threshold": 30_000_000_000_u64 });
        config.as_object_mut().context("an object")?.extend(begin.as_object().context("an object")?.clone());
        let config = json!({ "stream_name": stream, "config": config });
        let made = self.request(&format!("$JS.API.CONSUMER.CREATE.{stream}"), config).await?;
        let name = field(&made, "/name")?.as_str().context("a name")?;
        let inbox = self.client.new_inbox();
        let mut page = self.client.subscribe(inbox.clone()).await?;
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}");
        let body = json!({ "batch": count, "expires": 20_000_000_000_u64 }).to_string();
        self.client.publish_with_reply(next, inbox, body.into()).await?;
        let mut messages = Vec::new();
        while messages.len() < count {
            let message = tokio::time::timeout(DEADLINE, page.next()).await?.context("a message")?;
            messages.push(serde_json::from_slice(&message.payload)?);
        }
        Ok(messages)
    }
}

fn types(events: &[Value]) -> anyhow::Result<Vec<&Value>> {
    events.iter().map(|event| field(event, "/type")).collect()
}

fn field<'a>(value: &'a Value, path: &str) -> anyhow::Result<&'a Value> {
    value.pointer(path).with_context(|| format!("no {path} in {value}"))
}

#[tokio::test]
async fn stream_info() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let info = fixture.request("$JS.API.STREAM.INFO.GARAGE", Value::Null).await?;
    assert_eq!(field(&info, "/state/messages")?, 3);
    assert_eq!(field(&info, "/config/discard")?, "new");
    Ok(())
}

#[tokio::test]
async fn stream_view_of_a_session() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let filter = format!("garage.session.{}.>", fixture.session);
    let page = fixture.page("GARAGE", json!({ "deliver_policy": "all", "filter_subject": filter }), 2).await?;
    for event in &page {
        assert_eq!(field(event, "/data/session")?, &json!(fixture.session));
    }
    assert_eq!(types(&page)?, ["Matched", "Closed"]);
    Ok(())
}

#[tokio::test]
async fn stream_view_of_the_history_from_a_sequence_or_since_a_time() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    // The mirror may be some milliseconds behind.
    let mirrored = async {
        loop {
            let info = fixture.request("$JS.API.STREAM.INFO.GARAGE_HISTORY", Value::Null).await?;
            if field(&info, "/state/last_seq")? == 3 {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(DEADLINE, mirrored).await??;
    let by_seq = json!({ "deliver_policy": "by_start_sequence", "opt_start_seq": 2 });
    let page = fixture.page("GARAGE_HISTORY", by_seq, 2).await?;
    assert_eq!(types(&page)?, ["Closed", "Cancelled"]);
    let hour_ago = System.now() - time::Duration::HOUR;
    let hour_ago = hour_ago.format(&time::format_description::well_known::Rfc3339)?;
    let by_time = json!({ "deliver_policy": "by_start_time", "opt_start_time": hour_ago });
    let page = fixture.page("GARAGE_HISTORY", by_time, 3).await?;
    assert_eq!(types(&page)?, ["Matched", "Closed", "Cancelled"]);
    Ok(())
}

#[tokio::test]
async fn sub_to_what_is_appended_from_now_on() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    // The CLI's ordered consumer, which pushes.
    let inbox = fixture.client.new_inbox();
    let mut pushed = fixture.client.subscribe(inbox.clone()).await?;
    let config = json!({ "stream_name": "GARAGE", "config": {
        "deliver_policy": "new", "ack_policy": "none", "replay_policy": "instant", "deliver_subject": inbox,
        "filter_subject": "garage.>", "max_deliver": 1, "mem_storage": true, "num_replicas": 1,
    }});
    fixture.request("$JS.API.CONSUMER.CREATE.GARAGE", config).await?;
    let log = JetStreamLog::open(fixture.client.clone()).await?;
    let cancelled = Cancelled {
        ticket: garage_events::id::TicketId::new(System.id()),
        queue: "ranked".parse()?,
        reason: CancelReason::Player,
        absences: 0,
        party: None,
    };
    let decision = Decision::new(&System, System.id(), None).change(
        &System,
        Aggregate::Player("bert".parse()?),
        Head::default(),
        [player::Event::from(cancelled)],
    );
    log.append(decision).await?;
    let message = tokio::time::timeout(DEADLINE, pushed.next()).await?.context("a message")?;
    assert_eq!(message.subject.as_str(), "garage.player.bert");
    Ok(())
}

#[tokio::test]
async fn stream_get_last_for_a_player() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let body = json!({ "last_by_subj": "garage.player.anna" });
    let got = fixture.request("$JS.API.STREAM.MSG.GET.GARAGE", body).await?;
    let data = field(&got, "/message/data")?.as_str().context("data")?;
    let event: Value = serde_json::from_slice(&base64_decode(data)?)?;
    assert_eq!(field(&event, "/type")?, "Cancelled");
    assert_eq!(field(&event, "/data/reason")?, "player");
    Ok(())
}

#[tokio::test]
async fn consumer_info() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let info = async || fixture.request("$JS.API.CONSUMER.INFO.GARAGE.session", Value::Null).await;
    // The consumer counts a message a moment after it is stored.
    let counted = async {
        while *field(&info().await?, "/num_pending")? != 2 {}
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, counted).await?
}

#[tokio::test]
async fn dead_letters_are_viewed_retried_and_removed() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let context = async_nats::jetstream::new(fixture.client.clone());
    let calls = Arc::new(AtomicU32::new(0));
    let called = Arc::clone(&calls);
    let shutdown = Shutdown::new();
    let handler = move |_| {
        let broken = called.fetch_add(1, Ordering::SeqCst) == 0;
        async move { if broken { Err(Failure::Poison(anyhow::anyhow!("why"))) } else { Ok(()) } }
    };
    let reacting =
        tokio::spawn(react(context.clone(), SESSION_REPORTS, 1, Health::default(), shutdown.clone(), handler));
    context.publish("report.x.1.ready", "{}".into()).await?.await?;

    let page = fixture.page("DEAD", json!({ "deliver_policy": "all" }), 1).await?;
    assert_eq!(field(&page[0], "/error")?, "why");
    let got = fixture.request("$JS.API.STREAM.MSG.GET.DEAD", json!({ "seq": 1 })).await?;
    assert_eq!(field(&got, "/message/subject")?, "dead.session-reports");

    let reply = fixture.client.request("retry.session-reports", json!({ "letter": 1 }).to_string().into()).await?;
    assert!(reply.headers.is_none_or(|headers| headers.get("Nats-Service-Error-Code").is_none()));
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    let removed = fixture.request("$JS.API.STREAM.MSG.DELETE.DEAD", json!({ "seq": 1 })).await?;
    assert_eq!(field(&removed, "/success")?, true);
    shutdown.cancel();
    reacting.await??;
    Ok(())
}

#[tokio::test]
async fn service_ls_and_a_request() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let shutdown = Shutdown::new();
    let service = service::Service::start(&fixture.client, "session", "for this test").await?;
    let serving = service
        .serve::<GetSession, _, _>(1, shutdown.clone(), |asked| async move {
            Err(service::Refusal::new(404, format!("there is no session {}", asked.session)))
        })
        .await?;
    let serving = tokio::spawn(serving);
    let ping = fixture.request("$SRV.PING", Value::Null).await?;
    assert_eq!(field(&ping, "/name")?, "session");
    let body = json!({ "session": fixture.session }).to_string();
    let reply = fixture.client.request("svc.session.get", body.into()).await?;
    let code = reply.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error-Code"));
    assert_eq!(code.map(ToString::to_string).as_deref(), Some("404"));
    shutdown.cancel();
    serving.await??;
    Ok(())
}

#[tokio::test]
async fn kv_get_of_a_queue() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let context = async_nats::jetstream::new(fixture.client.clone());
    let closed = QueueStatus::Closed { reason: "season's end".into() };
    let subject = queue_status::subject(&"ranked".parse()?);
    context.publish(subject, serde_json::to_vec(&closed)?.into()).await?.await?;
    let entry = fixture.client.request("$JS.API.DIRECT.GET.KV_QUEUES.$KV.QUEUES.ranked", "".into()).await?;
    assert_eq!(serde_json::from_slice::<QueueStatus>(&entry.payload)?, closed);
    Ok(())
}

#[tokio::test]
async fn kv_get_of_a_block() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let context = async_nats::jetstream::new(fixture.client.clone());
    let entry = block::Block { until: None, reason: Some("cheating".into()) };
    let key = block::Key::Block("ann".parse()?).to_string();
    context.publish(key, serde_json::to_vec(&entry)?.into()).await?.await?;
    let found = context.get_key_value(block::BUCKET).await?.get("block.ann").await?.context("a block")?;
    assert_eq!(serde_json::from_slice::<block::Block>(&found)?, entry);
    Ok(())
}

#[tokio::test]
async fn kv_ls_get_and_put_of_rule_sets() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let context = async_nats::jetstream::new(fixture.client.clone());
    let text = r#"{"ruleLanguageVersion": "1.0", "teams": [{"name": "all", "minPlayers": 2, "maxPlayers": 2}]}"#;
    rule_store::store(&context, text).await?;
    let id = RuleSetId::of(text);

    let bucket = context.get_key_value("RULES").await?;
    let keys: Vec<_> = bucket.keys().await?.try_collect().await?;
    assert_eq!(keys, [format!("text.{id}")]);
    assert_eq!(bucket.get(format!("text.{id}")).await?.context("a text")?, text);

    bucket.put("applied.ranked", format!(r#"{{"rules":"{id}"}}"#).into()).await?;
    let subject = Applied::subject(&"ranked".parse()?);
    let entry = fixture.client.request(format!("$JS.API.DIRECT.GET.KV_RULES.{subject}"), "".into()).await?;
    assert_eq!(serde_json::from_slice::<Applied>(&entry.payload)?.rules, Some(id));
    Ok(())
}

/// Every command of the page has its test above.
#[test]
fn the_page_shows_no_other_command() -> anyhow::Result<()> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md"))?;
    let shown: Vec<_> = page.lines().filter(|line| line.starts_with("nats ")).collect();
    let tested = [
        "nats stream view GARAGE --subject",
        "nats stream get GARAGE --last-for",
        "nats sub --stream GARAGE --new",
        "nats stream view GARAGE_HISTORY --id",
        "nats stream view GARAGE_HISTORY --since",
        "nats stream info GARAGE",
        "nats consumer info GARAGE session",
        "nats service ls",
        "nats request svc.session.get",
        "nats kv get QUEUES",
        "nats kv get BLOCKS block.",
        "nats kv ls RULES",
        "nats kv get RULES text.",
        "nats kv put RULES applied.",
        "nats stream view DEAD",
        "nats stream get DEAD",
        "nats request retry.session-reports",
        "nats stream rmm DEAD",
    ];
    assert_eq!(shown.len(), tested.len());
    for (shown, tested) in shown.into_iter().zip(tested) {
        assert!(shown.starts_with(tested), "{shown}");
    }
    Ok(())
}

fn base64_decode(text: &str) -> anyhow::Result<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    Ok(STANDARD.decode(text)?)
}
