//! The `nats` commands that the README shows, as the requests that they send: the CLI itself is not among the packages
//! that tests may install.
#![cfg(test)]

use std::{path::Path, time::Duration};

use anyhow::Context;
use async_nats::Client;
use futures::StreamExt;
use garage_events::{
    id::SessionId,
    jetstream::{JetStreamLog, setup},
    log::{Append, Decision, Head},
    player::{self, CancelReason, Cancelled},
    session,
    subject::{self, Aggregate},
    svc::GetSession,
    world::{System, World},
};
use garage_stack::servers::{Nats, Role};
use garage_worker::{Shutdown, service};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(30);

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
            rules: "test".into(),
            pool_seq: 0,
            clock: System.now(),
        });
        let closed = session::Event::from(session::Closed { why: player::Ending::Failed, results: Vec::new() });
        let ticket = garage_events::id::TicketId::new(System.id());
        let cancelled =
            player::Event::from(Cancelled { ticket, queue: "ranked".parse()?, reason: CancelReason::Player });
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
    // The CLI's pager: a nameless consumer that ends by itself, and one request for a page.
    let config = json!({ "stream_name": "GARAGE", "config": {
        "deliver_policy": "all", "ack_policy": "explicit", "replay_policy": "instant",
        "filter_subject": filter, "inactive_threshold": 30_000_000_000_u64,
    }});
    let made = fixture.request("$JS.API.CONSUMER.CREATE.GARAGE", config).await?;
    let name = field(&made, "/name")?.as_str().context("a name")?;
    let inbox = fixture.client.new_inbox();
    let mut page = fixture.client.subscribe(inbox.clone()).await?;
    let next = format!("$JS.API.CONSUMER.MSG.NEXT.GARAGE.{name}");
    let body = json!({ "batch": 10, "no_wait": true }).to_string();
    fixture.client.publish_with_reply(next, inbox, body.into()).await?;
    let mut types = Vec::new();
    while types.len() < 2 {
        let message = tokio::time::timeout(DEADLINE, page.next()).await?.context("a message")?;
        let event: Value = serde_json::from_slice(&message.payload)?;
        assert_eq!(field(&event, "/data/session")?, &json!(fixture.session));
        types.push(field(&event, "/type")?.clone());
    }
    assert_eq!(types, ["Matched", "Closed"]);
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
    let info = fixture.request("$JS.API.CONSUMER.INFO.GARAGE.session", Value::Null).await?;
    assert_eq!(field(&info, "/num_pending")?, 2);
    Ok(())
}

#[tokio::test]
async fn stream_view_of_the_dead_letters() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let context = async_nats::jetstream::new(fixture.client.clone());
    context.publish(subject::dead("session"), json!({ "error": "why" }).to_string().into()).await?.await?;
    let body = json!({ "last_by_subj": "dead.>" });
    let got = fixture.request("$JS.API.STREAM.MSG.GET.DEAD", body).await?;
    assert_eq!(field(&got, "/message/subject")?, "dead.session");
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

/// Every command of the README's block has its test above.
#[test]
fn the_readme_shows_no_other_command() -> anyhow::Result<()> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md"))?;
    let shown: Vec<_> = readme.lines().filter(|line| line.starts_with("nats ")).collect();
    let tested = [
        "nats stream info GARAGE",
        "nats stream view GARAGE --subject",
        "nats stream get GARAGE --last-for",
        "nats consumer info GARAGE session",
        "nats stream view DEAD",
        "nats service ls",
        "nats request svc.session.get",
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
