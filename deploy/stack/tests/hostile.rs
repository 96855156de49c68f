//! A hostile game server, with a real NATS user, disturbs nobody else: another game server's report arrives, and earlier
//! dead letters stay.
#![cfg(test)]

use std::{collections::BTreeSet, time::Duration};

use async_nats::jetstream;
use garage_events::{
    dead_letter::DeadLetter,
    env::{Env, System},
    game::{Loadout, MAX_REPORT, Nats as Access, Ports, Ready},
    id::{PlayerId, SessionId, TicketId},
    jetstream::{
        JetStreamLog,
        setup::{self, SESSION_REPORTS},
    },
    log::{Append, Decision, Head, Load},
    session::{Event, Limits, Matched, Member, PodFailed, PodReady, PodRequested, Team},
    subject::{self, Aggregate, Report, ReportKind, game_inbox},
};
use garage_gameserver::report::{NatsReporter, Reporter};
use garage_session::{
    keys::GameKey,
    reaction::{App, Effects},
};
use garage_stack::{
    hostile::{Flood, HostileServer, Sent},
    process::DEADLINE,
    servers::{Nats, Role},
};
use garage_worker::{
    Health, Shutdown,
    reactor::{Failure, react},
};
use time::OffsetDateTime;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// The session worker reacts only to reports here, so it has no other side effects.
#[derive(Clone)]
struct NoEffects;

impl Effects for NoEffects {
    async fn loadouts(&self, _: Vec<PlayerId>) -> Result<Vec<Loadout>, Failure> {
        Ok(Vec::new())
    }

    async fn park(&self, _: SessionId, _: u32, _: OffsetDateTime, _: Duration) -> Result<GameKey, Failure> {
        Err(Failure::Unavailable(anyhow::anyhow!("no keys")))
    }

    async fn absent(&self, _: Vec<(PlayerId, OffsetDateTime)>) -> BTreeSet<PlayerId> {
        BTreeSet::new()
    }

    async fn set_timer(&self, _: SessionId, _: Option<OffsetDateTime>) -> Result<(), Failure> {
        Ok(())
    }
}

/// Repeats `check` until it returns a value. Panics after the deadline.
async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, found).await.unwrap_or_else(|_| panic!("no success within {DEADLINE:?}: {what}"))
}

/// NATS with Garage's streams, and the part of the session worker that reacts to reports.
struct Fixture {
    nats: Nats,
    log: JetStreamLog,
    context: jetstream::Context,
    shutdown: Shutdown,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn start(nodes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nats = Nats::start(folder.path(), nodes).await.unwrap();
        let admin = nats.connect(Role::Admin).await.unwrap();
        setup::init(admin.clone(), nodes).await.unwrap();
        let log = JetStreamLog::open(admin.clone()).await.unwrap();
        // The worker uses its own NATS user.
        let worker = nats.connect(Role::Session).await.unwrap();
        let own = JetStreamLog::open(worker.clone()).await.unwrap();
        let app = App { log: own, env: System, effects: NoEffects, limits: Limits::default() };
        let shutdown = Shutdown::new();
        let handler = move |delivery| {
            let app = app.clone();
            async move { app.on_report(&delivery).await }
        };
        let context = jetstream::new(worker);
        tokio::spawn(react(context, SESSION_REPORTS, 16, Health::default(), shutdown.clone(), handler));
        Self { nats, log, context: jetstream::new(admin), shutdown, _folder: folder }
    }

    /// Appends a session that waits for its first game server.
    async fn session(&self) -> SessionId {
        let id = SessionId::new(System.id());
        let member = Member { player: "anna".parse().unwrap(), ticket: TicketId::new(System.id()), rank: 1 };
        let matched = Matched {
            queue: "ranked".parse().unwrap(),
            region: "eu".parse().unwrap(),
            teams: vec![Team { name: "1".into(), players: vec![member] }],
            rules: "test".into(),
            pool_seq: 1,
            clock: System.now(),
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
            latencies: Default::default(),
        };
        let requested = PodRequested {
            attempt: 1,
            region: "eu".parse().unwrap(),
            loadouts: Vec::new(),
            public_key: "public".into(),
            fingerprint: "f00d".into(),
            ends_at: None,
        };
        let decision = Decision::new(&System, id.uuid(), None);
        let events = [Event::from(matched), requested.into()];
        self.log.append(decision.change(&System, Aggregate::Session(id), Head::default(), events)).await.unwrap();
        id
    }

    /// Waits for an event of the session that `pick` accepts.
    async fn event<T>(&self, id: SessionId, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        until(what, async || {
            let history = self.log.session(id).await.ok()?.history;
            history.iter().find_map(|recorded| pick(&recorded.event))
        })
        .await
    }

    async fn messages(&self, stream: &str) -> u64 {
        self.context.get_stream(stream).await.unwrap().cached_info().state.messages
    }

    async fn is_idle(&self) -> bool {
        let stream = self.context.get_stream_no_info(SESSION_REPORTS.stream).await.unwrap();
        let info = stream.consumer_info(SESSION_REPORTS.name).await;
        info.is_ok_and(|info| info.num_pending == 0 && info.num_ack_pending == 0)
    }
}

/// Everything that a game server can send, in one flood.
fn everything(server: &HostileServer, session: SessionId, other: SessionId) -> Flood {
    let mut flood = Flood::default();
    for id in 0..100 {
        flood = flood.subscribe(&format!("{}.{id}", game_inbox(session, 1)), id);
        flood =
            flood.publish(&server.report(ReportKind::Ready), 8).publish(&server.report(ReportKind::Finished), 4_096);
    }
    let report = |kind, attempt| Report { session: other, attempt, kind }.to_string();
    flood = flood.subscribe(">", 1_000);
    for subject in [
        report(ReportKind::Ready, 1),
        report(ReportKind::Finished, 1),
        format!("report.{session}.2.ready"),
        format!("report.{session}.1.junk"),
        format!("svc.game.{session}.x"),
        "svc.session.get".into(),
        "garage.player.anna".into(),
        format!("garage.session.{session}.closed"),
        "dead.session-reports".into(),
        "$JS.API.STREAM.PURGE.DEAD".into(),
    ] {
        flood = flood.publish(&subject, 64);
    }
    flood
        .publish(&server.report(ReportKind::Ready), MAX_REPORT)
        .publish(&server.report(ReportKind::Ready), MAX_REPORT + 1)
}

async fn a_hostile_game_server_disturbs_nobody_else(nodes: usize) {
    let fixture = Fixture::start(nodes).await;
    // A real dead letter of earlier days.
    fixture.context.publish(subject::dead("inventory"), "{}".into()).await.unwrap().await.unwrap();
    let (session, other) = (fixture.session().await, fixture.session().await);
    let ends_at = System.now() + time::Duration::MINUTE;
    let server = HostileServer::new(&fixture.nats, session, 1, ends_at).unwrap();
    let stop = CancellationToken::new();
    let flooding = tokio::spawn({
        let (server, stop, flood) = (server.clone(), stop.clone(), everything(&server, session, other));
        async move { server.run(&flood, stop).await }
    });
    let misbehaved: PodFailed = fixture
        .event(session, "the server has misbehaved", |event| match event {
            Event::PodFailed(failed) => Some(failed.clone()),
            _ => None,
        })
        .await;
    assert_eq!((misbehaved.attempt, &*misbehaved.reason), (1, "misbehaved"));

    // The flood goes on while another game server reports.
    let credentials = fixture.nats.game(other, 1, ends_at).unwrap();
    let reporter =
        NatsReporter::new(Access { url: fixture.nats.url(), credentials, inbox: game_inbox(other, 1) }).unwrap();
    let ports = Ports { tcp_port: 1, udp_port: 2 };
    let ready = Report { session: other, attempt: 1, kind: ReportKind::Ready }.to_string();
    // It repeats the report, as if each acknowledgement was lost.
    for _ in 0..4 {
        let body = serde_json::to_vec(&Ready { ports }).unwrap();
        until("the report is stored", async || reporter.publish(&ready, body.clone()).await.ok()).await;
    }
    let seen = fixture
        .event(other, "the report of the other server", |event| match event {
            Event::PodReady(PodReady { ports, .. }) => Some(*ports),
            _ => None,
        })
        .await;
    assert_eq!(seen, ports);
    until("everything is handled", async || fixture.is_idle().await.then_some(())).await;

    stop.cancel();
    let sent: Sent = flooding.await.unwrap();
    // Two messages on each of its subjects, and two of the other server.
    assert_eq!(fixture.messages(subject::REPORTS).await, 6, "{sent:?}");
    assert_eq!(fixture.messages(subject::DEAD).await, 2, "{sent:?}");
    let dead = fixture.context.get_stream(subject::DEAD).await.unwrap();
    let real = dead.get_last_raw_message_by_subject(&subject::dead("inventory")).await.unwrap();
    assert_eq!((real.sequence, &*real.payload), (1, &b"{}"[..]));
    let stored = dead.get_last_raw_message_by_subject(&subject::dead(SESSION_REPORTS.name)).await.unwrap();
    let dead_letter: DeadLetter = serde_json::from_slice(&stored.payload).unwrap();
    assert!(dead_letter.subject.starts_with(&format!("report.{session}.1.")), "{dead_letter:?}");
    // Each kind of abuse was refused, so it was really tried.
    for error in ["permissions violation", "maximum subscriptions", "maximum payload"] {
        assert!(sent.errors(error) > 0, "{error}: {sent:?}");
    }
    fixture.shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_one_node_a_hostile_game_server_disturbs_nobody_else() {
    a_hostile_game_server_disturbs_nobody_else(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_nodes_a_hostile_game_server_disturbs_nobody_else() {
    a_hostile_game_server_disturbs_nobody_else(3).await;
}
