//! Tests the rights of NATS users: of each role, and of game servers.
#![cfg(test)]

use std::{path::Path, time::Duration};

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event,
    jetstream::{self, stream},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use garage_events::{
    deadline::receive,
    env::{Env, System},
    game::{MAX_REPORT, Secret},
    id::SessionId,
    subject::{Report, ReportKind, game_inbox},
};
use garage_stack::{
    process::DEADLINE,
    servers::{Nats, Role},
};
use nkeys::KeyPair;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{sync::mpsc, time::timeout};

/// Publishes with the credentials of the role, and returns whether the server allowed it.
async fn may_publish(nats: &Nats, role: Role, subject: &'static str) -> bool {
    let options = nats.options(role).unwrap();
    !refusal(nats, options, async |client| client.publish(subject, "".into()).await.unwrap()).await.contains("publish")
}

/// Runs an action with a new client, and returns the server's first error in lower case. If the server allows the
/// action, the error is about the marker subject `forbidden`.
async fn refusal(nats: &Nats, options: ConnectOptions, act: impl AsyncFnOnce(&Client)) -> String {
    let (events, mut seen) = mpsc::unbounded_channel();
    let options = options.event_callback(move |event| {
        let events = events.clone();
        async move {
            if let Event::ServerError(error) = event {
                let _ = events.send(error.to_string());
            }
        }
    });
    let client = options.connect(servers(nats)).await.unwrap();
    act(&client).await;
    // The absence of an error proves nothing. So the client then subscribes to a subject that no role may subscribe to.
    // The error about this marker comes first only if the action caused none.
    let _marker = client.subscribe("forbidden").await.unwrap();
    let error = receive(&mut seen, DEADLINE).await.unwrap().to_lowercase();
    assert!(error.contains("permissions violation"), "{error}");
    error
}

#[tokio::test]
async fn a_role_may_publish_only_its_own_subjects() {
    let root = tempfile::tempdir().unwrap();
    let nats = Nats::start(root.path(), 1).await.unwrap();
    let allowed = [
        (Role::Gateway, "garage.player.p1"),
        (Role::Gateway, "garage.party.x"),
        (Role::Gateway, "svc.inventory.cars"),
        (Role::Gateway, "svc.session.get"),
        (Role::Gateway, "svc.matchmaker.candidates"),
        (Role::Gateway, "svc.log.trouble"),
        (Role::Matchmaker, "svc.log.trouble"),
        (Role::Session, "svc.log.trouble"),
        (Role::Director, "svc.log.trouble"),
        (Role::Inventory, "svc.log.trouble"),
        // A gateway reads the blocked players.
        (Role::Gateway, "$JS.API.STREAM.INFO.KV_BLOCKS"),
        (Role::Gateway, "$JS.API.STREAM.MSG.GET.KV_BLOCKS"),
        (Role::Session, "svc.inventory.loadouts"),
        (Role::Gateway, "$KV.PRESENCE.player.p1"),
        (Role::Matchmaker, "garage.session.s1.matched"),
        (Role::Matchmaker, "garage.session.s1.proposed"),
        (Role::Matchmaker, "$KV.LEASES.matchmaker.ranked"),
        (Role::Matchmaker, "$KV.RULES.text.x"),
        (Role::Matchmaker, "$O.SNAPSHOTS.C.x"),
        (Role::Session, "garage.session.s1.closed"),
        (Role::Session, "timer.set.s1"),
        (Role::Session, "$KV.LEASES.session.projector"),
        (Role::Director, "garage.session.s1.pod-failed"),
        (Role::Inventory, "garage.inventory.p1.car-purchased"),
        (Role::Inventory, "dead.inventory"),
        // A worker may recreate its own consumers if they stop.
        (Role::Session, "$JS.API.CONSUMER.CREATE.REPORTS.session-reports"),
        (Role::Director, "$JS.API.CONSUMER.DELETE.GARAGE.director"),
    ];
    for (role, subject) in allowed {
        assert!(may_publish(&nats, role, subject).await, "{role:?} may not publish {subject}");
    }
    let forbidden = [
        (Role::Gateway, "garage.session.x.closed"),
        (Role::Gateway, "$JS.API.STREAM.PURGE.GARAGE"),
        (Role::Gateway, "dead.session"),
        (Role::Gateway, "$KV.QUEUES.ranked"),
        (Role::Matchmaker, "$KV.QUEUES.ranked"),
        // Only an operator blocks and kicks players.
        (Role::Gateway, "$KV.BLOCKS.block.p1"),
        (Role::Gateway, "$KV.BLOCKS.kick.p1"),
        (Role::Session, "$KV.BLOCKS.block.p1"),
        (Role::Inventory, "$KV.BLOCKS.block.p1"),
        (Role::Matchmaker, "$KV.PRESENCE.player.p1"),
        (Role::Matchmaker, "$JS.API.STREAM.PURGE.GARAGE"),
        (Role::Session, "$KV.LEASES.matchmaker.ranked"),
        (Role::Director, "$KV.LEASES.session.projector"),
        (Role::Matchmaker, "garage.session.s1.closed"),
        (Role::Matchmaker, "timer.set.s1"),
        (Role::Session, "$JS.API.STREAM.DELETE.GARAGE"),
        (Role::Director, "garage.session.s1.closed"),
        // Only a gateway changes parties.
        (Role::Matchmaker, "garage.party.x"),
        (Role::Session, "garage.party.x"),
        (Role::Director, "garage.party.x"),
        (Role::Inventory, "garage.party.x"),
        (Role::Director, "garage.player.p1"),
        (Role::Inventory, "garage.player.p1"),
        (Role::Inventory, "$JS.API.CONSUMER.DELETE.GARAGE.session"),
        (Role::Director, "$JS.API.CONSUMER.CREATE.GARAGE.session"),
        // A worker may call only those that answer it.
        (Role::Matchmaker, "svc.inventory.execute"),
        (Role::Director, "svc.session.get"),
        (Role::Session, "svc.session.get"),
        (Role::Session, "svc.matchmaker.candidates"),
        // Only an operator changes the rule set of a queue.
        (Role::Gateway, "$KV.RULES.text.x"),
        (Role::Matchmaker, "$KV.RULES.applied.ranked"),
        (Role::Gateway, "$JS.API.CONSUMER.PAUSE.GARAGE.session"),
        (Role::Gateway, "$JS.API.CONSUMER.DURABLE.CREATE.GARAGE.session"),
    ];
    for (role, subject) in forbidden {
        assert!(!may_publish(&nats, role, subject).await, "{role:?} may publish {subject}");
    }
}

/// The user of a game server.
struct Game {
    session: SessionId,
    attempt: u32,
    credentials: Secret,
}

impl Game {
    /// The user for one attempt of a session that ends in a minute.
    fn of(nats: &Nats, session: SessionId, attempt: u32) -> Self {
        Self::until(nats, session, attempt, System.now() + time::Duration::MINUTE)
    }

    fn until(nats: &Nats, session: SessionId, attempt: u32, ends_at: OffsetDateTime) -> Self {
        Self { session, attempt, credentials: nats.game(session, attempt, ends_at).unwrap() }
    }

    fn options(&self) -> ConnectOptions {
        let options = ConnectOptions::with_credentials(self.credentials.expose()).unwrap();
        options.custom_inbox_prefix(game_inbox(self.session, self.attempt))
    }

    fn ready(&self) -> String {
        Report { session: self.session, attempt: self.attempt, kind: ReportKind::Ready }.to_string()
    }

    fn finished(&self) -> String {
        Report { session: self.session, attempt: self.attempt, kind: ReportKind::Finished }.to_string()
    }
}

fn servers(nats: &Nats) -> Vec<String> {
    nats.url().split(',').map(ToOwned::to_owned).collect()
}

fn session() -> SessionId {
    SessionId::new(System.id())
}

async fn started(root: &Path, nodes: usize) -> Nats {
    let nats = Nats::start(root, nodes).await.unwrap();
    let context = jetstream::new(nats.connect(Role::Admin).await.unwrap());
    for (name, subject) in [("REPORTS", "report.>"), ("GARAGE", "garage.>")] {
        let subjects = vec![subject.to_owned()];
        let config = stream::Config { name: name.into(), subjects, num_replicas: nodes, ..Default::default() };
        // A node of a cluster that has just started may not have enabled JetStream for the account yet.
        let created = async {
            while let Err(error) = context.create_stream(config.clone()).await {
                assert!(nodes > 1, "{error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(Duration::from_secs(60), created).await.unwrap();
    }
    nats
}

#[tokio::test]
async fn a_game_server_may_report_only_for_its_own_attempt_on_one_node_and_on_three() {
    for nodes in [1, 3] {
        let root = tempfile::tempdir().unwrap();
        let nats = started(root.path(), nodes).await;
        let game = Game::of(&nats, session(), 1);
        let client = game.options().connect(servers(&nats)).await.unwrap();
        // The acknowledgement arrives in the game server's own inbox.
        let acknowledged = jetstream::new(client).publish(game.ready(), "{}".into()).await.unwrap().await.unwrap();
        assert_eq!((acknowledged.stream.as_str(), acknowledged.sequence), ("REPORTS", 1));
        let client = game.options().connect(servers(&nats)).await.unwrap();
        let largest = vec![b' '; MAX_REPORT].into();
        jetstream::new(client).publish(game.finished(), largest).await.unwrap().await.unwrap();

        let of_another = Game::of(&nats, session(), 1).ready();
        let next = Game::of(&nats, game.session, 2);
        for subject in [
            of_another,
            next.ready(),
            "garage.player.p1".into(),
            "garage.party.x".into(),
            format!("garage.session.{}.finished", game.session),
            // It may publish its two reports, and nothing else that begins in the same way.
            format!("report.{}.1.up", game.session),
            format!("{}.x", game.ready()),
            format!("svc.game.{}.x", game.session),
            "svc.inventory.execute".into(),
            "$JS.API.STREAM.INFO.GARAGE".into(),
            "$JS.API.STREAM.MSG.GET.GARAGE".into(),
            "$JS.API.DIRECT.GET.GARAGE.1".into(),
            "$JS.API.CONSUMER.CREATE.GARAGE".into(),
            "$JS.API.STREAM.PURGE.REPORTS".into(),
        ] {
            let error = refusal(&nats, game.options(), async |client| {
                client.publish(subject.clone(), "".into()).await.unwrap();
            });
            assert!(error.await.contains("publish"), "a game server may publish {subject}");
        }
        // The user of the next attempt may publish the report of that attempt.
        let client = next.options().connect(servers(&nats)).await.unwrap();
        jetstream::new(client).publish(next.ready(), "{}".into()).await.unwrap().await.unwrap();
    }
}

#[tokio::test]
async fn a_game_server_may_subscribe_only_to_its_own_inbox() {
    let root = tempfile::tempdir().unwrap();
    let nats = started(root.path(), 1).await;
    let (game, other) = (Game::of(&nats, session(), 1), Game::of(&nats, session(), 1));
    let may_subscribe = async |subject: String| {
        let error = refusal(&nats, game.options(), async |client| {
            client.subscribe(subject.clone()).await.unwrap();
        });
        // The first error is about the marker.
        error.await.contains("forbidden")
    };
    assert!(may_subscribe(format!("{}.x", game_inbox(game.session, 1))).await);
    for subject in [
        format!("{}.x", game_inbox(game.session, 2)),
        format!("{}.x", game_inbox(other.session, 1)),
        "_INBOX.>".into(),
        "garage.>".into(),
        "report.>".into(),
        ">".into(),
    ] {
        assert!(!may_subscribe(subject.clone()).await, "a game server may subscribe to {subject}");
    }
}

#[tokio::test]
async fn an_expired_user_is_refused_and_disconnected() {
    let root = tempfile::tempdir().unwrap();
    let nats = started(root.path(), 1).await;
    // A user expires five minutes after the end of its session. This is the end of a session whose user expires in the
    // given number of seconds.
    let expires_in = |seconds| System.now() - time::Duration::minutes(5) + time::Duration::seconds(seconds);
    let expired = Game::until(&nats, session(), 1, expires_in(-2));
    let refused = expired.options().connect(servers(&nats)).await.unwrap_err();
    assert_eq!(refused.kind(), ConnectErrorKind::AuthorizationViolation, "{refused}");

    let game = Game::until(&nats, session(), 1, expires_in(3));
    let (events, mut seen) = mpsc::unbounded_channel();
    let options = game.options().event_callback(move |event| {
        let _ = events.send(event);
        async {}
    });
    let client = options.connect(servers(&nats)).await.unwrap();
    client.flush().await.unwrap();
    while receive(&mut seen, DEADLINE).await.expect("the server disconnects the user") != Event::Disconnected {}
    // A user is valid until the end of its last second. Within that second, a connection attempt ends with another
    // error.
    let refused = async {
        loop {
            let connected = game.options().connect(servers(&nats)).await;
            if connected.is_err_and(|error| error.kind() == ConnectErrorKind::AuthorizationViolation) {
                return;
            }
        }
    };
    timeout(DEADLINE, refused).await.expect("the server refuses the user");
}

/// Credentials of a user with these claims, signed with the key for game servers.
fn signed(nats: &Nats, claims: &Value) -> String {
    let key = KeyPair::from_seed(std::fs::read_to_string(nats.game_signing_key()).unwrap().trim()).unwrap();
    let user = KeyPair::new_user();
    let mut token = json!({"jti": "1", "iss": key.public_key(), "sub": user.public_key(), "name": "x"});
    token["nats"] = claims.clone();
    let part = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let text = format!("{}.{}", part(&json!({"typ": "JWT", "alg": "ed25519-nkey"})), part(&token));
    let jwt = format!("{text}.{}", URL_SAFE_NO_PAD.encode(key.sign(text.as_bytes()).unwrap()));
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    )
}

/// The account of a game server's user.
fn account(game: &Game) -> Value {
    let jwt = game.credentials.expose().lines().find(|line| line.starts_with("eyJ")).unwrap();
    let claims = URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1).unwrap()).unwrap();
    serde_json::from_slice::<Value>(&claims).unwrap()["nats"]["issuer_account"].take()
}

#[tokio::test]
async fn the_key_for_game_servers_cannot_sign_a_user_with_rights_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    let nats = started(root.path(), 1).await;
    let session = session();
    let account = account(&Game::of(&nats, session, 1));
    let plain = json!({
        "type": "user", "version": 2, "issuer_account": account, "tags": [format!("session:{session}"), "attempt:1"],
    });
    let connect = async |claims: &Value| {
        let options = ConnectOptions::with_credentials(&signed(&nats, claims)).unwrap();
        options.connect(servers(&nats)).await
    };
    connect(&plain).await.expect("a user with the rights of the scope is accepted");
    for (name, own) in [
        ("pub", json!({"allow": [">"]})),
        ("sub", json!({"allow": [">"]})),
        ("resp", json!({"max": 1, "ttl": 1_000_000_000})),
        ("subs", json!(-1)),
    ] {
        let mut claims = plain.clone();
        claims[name] = own;
        let refused = connect(&claims).await.expect_err(name);
        assert_eq!(refused.kind(), ConnectErrorKind::AuthorizationViolation, "{name}: {refused}");
    }
    // The scope's rights refer to the tags. Without tags, a user has no rights.
    let mut untagged = plain;
    untagged["tags"] = json!([]);
    let options = ConnectOptions::with_credentials(&signed(&nats, &untagged)).unwrap();
    let error = refusal(&nats, options, async |client| {
        client.publish(format!("report.{session}.1.ready"), "".into()).await.unwrap();
    });
    assert!(error.await.contains("publish"));
}
