//! Starts a game server in the test process, with its keys, tokens and reports.

use std::{
    collections::BTreeMap,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ed25519_dalek::{
    SigningKey,
    pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, spki::der::pem::LineEnding},
};
use garage_events::{
    deadline::receive,
    game::{self, CONNECT_AUDIENCE, Car, Config, ConnectClaims, Finished, Loadout, Nats, Ready, Secret, Stats},
    id::{PlayerId, SessionId},
};
use garage_gameserver::{
    Error, Options, Outcome,
    client::{self, Connection, RaceError, Server},
    report::{self, Reporter},
    run_with,
    wire::{FromClient, FromServer, Welcome},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use time::OffsetDateTime;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// Time limit for everything that these tests wait for.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Waits for a future. The test fails after the deadline.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future).await.expect("timed out")
}

/// Generating an RSA key is slow, so all tests share one.
static RSA: LazyLock<(String, String)> = LazyLock::new(rsa_key);

/// Generates an RSA key. Returns it as PEM, with its fingerprint as the session worker would compute it.
pub(crate) fn rsa_key() -> (String, String) {
    use rsa::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _};
    let key = rsa::RsaPrivateKey::new(&mut rand::rng(), 2048).unwrap();
    let spki = key.to_public_key().to_public_key_der().unwrap();
    (key.to_pkcs8_pem(LineEnding::LF).unwrap().to_string(), game::fingerprint(spki.as_bytes()))
}

pub(crate) fn player(name: &str) -> PlayerId {
    name.parse().unwrap()
}

pub(crate) fn session() -> SessionId {
    SessionId::new(uuid::Uuid::from_bytes(rand::random()))
}

/// The time that is this many seconds from now.
#[expect(clippy::disallowed_methods, reason = "tokens and hard ends are on the real clock")]
pub(crate) fn in_seconds(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::seconds(seconds)
}

/// Signs connection tokens.
pub(crate) struct Signer(SigningKey);

impl Signer {
    pub(crate) fn new() -> Self {
        Self(SigningKey::from_bytes(&rand::random()))
    }

    pub(crate) fn public_pem(&self) -> String {
        self.0.verifying_key().to_public_key_pem(LineEnding::LF).unwrap()
    }

    pub(crate) fn kid(&self) -> String {
        game::fingerprint(self.0.verifying_key().to_public_key_der().unwrap().as_bytes())
    }

    pub(crate) fn sign(&self, claims: &ConnectClaims) -> String {
        self.sign_as(Some(self.kid()), claims)
    }

    /// A token with any `kid` in its header.
    pub(crate) fn sign_as(&self, kid: Option<String>, claims: &ConnectClaims) -> String {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF).unwrap();
        let key = EncodingKey::from_ed_pem(pem.as_bytes()).unwrap();
        jsonwebtoken::encode(&Header { kid, ..Header::new(Algorithm::EdDSA) }, claims, &key).unwrap()
    }
}

/// The claims of a valid token.
pub(crate) fn claims(session: SessionId, name: &str) -> ConnectClaims {
    ConnectClaims {
        sub: player(name),
        provider_sub: Some(name.to_owned()),
        session,
        aud: CONNECT_AUDIENCE.to_owned(),
        exp: in_seconds(60).unix_timestamp().try_into().unwrap(),
    }
}

/// The address of a game with a configuration from [`config`], from its ready report.
pub(crate) fn server(ready: Ready) -> Server {
    Server {
        address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), ready.ports.tcp_port),
        udp_port: ready.ports.udp_port,
        fingerprint: RSA.1.clone(),
    }
}

/// The configuration of a game in which all players have the same car.
pub(crate) fn config(players: &[&str], signer: &Signer, nats: &str) -> Config {
    let session = session();
    let stats = Stats { power_kw: 250.0, mass_kg: 1400.0, grip: 1.0, drag_m2: 0.6 };
    let car = Car { id: "coupe".parse().unwrap(), model: "m".into(), texture: "t".into(), stats };
    let loadout = |name: &&str| Loadout { player: player(name), car: car.clone(), items: BTreeMap::new() };
    Config {
        session,
        attempt: 1,
        players: players.iter().map(loadout).collect(),
        teams: Vec::new(),
        private_key: Secret::new(&RSA.0),
        token_key: signer.public_pem(),
        token_keys: [(signer.kid(), signer.public_pem())].into(),
        nats: Nats { url: nats.to_owned(), credentials: Secret::new("none"), inbox: "_INBOX.x".to_owned() },
        ready: format!("report.{session}.1.ready"),
        finished: format!("report.{session}.1.finished"),
        ends_at: in_seconds(120),
    }
}

/// Options for a short race on this host: five metres, which take a second at full throttle.
pub(crate) fn options() -> Options {
    Options {
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        join_timeout: DEADLINE,
        race_timeout: DEADLINE,
        distance_m: 5.0,
        ..Options::default()
    }
}

/// Options for a race that does not end within a test.
pub(crate) fn long() -> Options {
    Options { distance_m: 1e6, race_timeout: Duration::from_secs(600), ..options() }
}

/// Hands reports to the test. The first `lost` attempts fail.
pub(crate) struct Reports {
    arrived: mpsc::UnboundedSender<(String, Vec<u8>)>,
    lost: AtomicUsize,
}

impl Reporter for Reports {
    async fn publish(&self, subject: &str, payload: Vec<u8>) -> Result<(), report::Error> {
        let lose = |left: usize| left.checked_sub(1);
        if self.lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lose).is_ok() {
            return Err(report::Error::Disconnected);
        }
        self.arrived.send((subject.to_owned(), payload)).unwrap();
        Ok(())
    }
}

pub(crate) struct Game {
    pub(crate) server: Server,
    pub(crate) config: Config,
    pub(crate) signer: Signer,
    pub(crate) shutdown: CancellationToken,
    reports: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
    outcome: JoinHandle<Result<Outcome, Error>>,
}

impl Game {
    pub(crate) async fn start(players: &[&str], options: Options) -> Self {
        Self::start_with(players, options, 0, |_| {}).await
    }

    /// Starts a game and waits for its ready report. The first `lost` attempts to report fail.
    pub(crate) async fn start_with(
        players: &[&str],
        options: Options,
        lost: usize,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let signer = Signer::new();
        let mut config = config(players, &signer, "nats://127.0.0.1:1");
        change(&mut config);
        let (arrived, mut reports) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let reporter = Reports { arrived, lost: AtomicUsize::new(lost) };
        let outcome = tokio::spawn(run_with(config.clone(), options, reporter, shutdown.clone()));
        let (subject, payload) = receive(&mut reports, DEADLINE).await.expect("a report");
        assert_eq!(subject, config.ready);
        let server = server(serde_json::from_slice(&payload).unwrap());
        Self { server, config, signer, shutdown, reports, outcome }
    }

    /// The claims of a valid token.
    pub(crate) fn claims(&self, name: &str) -> ConnectClaims {
        claims(self.config.session, name)
    }

    pub(crate) fn token(&self, name: &str) -> String {
        self.signer.sign(&self.claims(name))
    }

    /// Joins as a player that sends no input.
    pub(crate) async fn join(&self, name: &str) -> (Connection, Welcome) {
        let mut connection = soon(client::connect(&self.server)).await.unwrap();
        let join = FromClient::Join { token: Secret::new(self.token(name)) };
        client::send(&mut connection, &join).await.unwrap();
        match soon(client::receive(&mut connection)).await.unwrap() {
            FromServer::Welcome(welcome) => (connection, welcome),
            other => panic!("expected a welcome, got {other:?}"),
        }
    }

    /// Returns the server's answer to a token.
    pub(crate) async fn try_token(&self, token: &str) -> Result<FromServer, RaceError> {
        let mut connection = soon(client::connect(&self.server)).await.unwrap();
        client::send(&mut connection, &FromClient::Join { token: Secret::new(token) }).await.unwrap();
        soon(client::receive(&mut connection)).await
    }

    /// Waits for the finished report.
    pub(crate) async fn finished(&mut self) -> Finished {
        let (subject, payload) = receive(&mut self.reports, DEADLINE).await.expect("a report");
        assert_eq!(subject, self.config.finished);
        serde_json::from_slice(&payload).unwrap()
    }

    /// Waits for the server to end.
    pub(crate) async fn outcome(self) -> Outcome {
        soon(self.outcome).await.unwrap().unwrap()
    }
}
