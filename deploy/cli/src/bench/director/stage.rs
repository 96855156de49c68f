//! The servers that a director needs, a director, and sessions that request pods from it.

use std::{fs, path::Path};

use futures::future::try_join_all;
use garage_director::backend::Order;
use garage_events::{
    env::{Env, System},
    game::{self, Car, Loadout, Secret, Stats},
    id::{PlayerId, QueueName, Region, SessionId, TicketId},
    jetstream::{JetStreamLog, setup},
    log::{Append, Decision, Head},
    player,
    projection::parked_key,
    reaction::decide_session,
    session::{Command, Event, Matched, Member, PodRequested, Team},
    subject::{Aggregate, Report, ReportKind},
};
use garage_stack::{
    ports,
    process::Launch,
    servers::{Nats, Redis, Role},
    workers::{Instance, Worker, binary},
};
use garage_worker::seal::SealKey;

/// The key that seals the game secrets.
const SEAL: [u8; 32] = [9; 32];

/// The fingerprint of the key in Redis. All sessions share one key, because no game runs.
const FINGERPRINT: &str = "bench";

/// Length of a private key in PEM, in bytes.
const KEY_BYTES: usize = 1_704;

/// Length of the credentials of a game's NATS user, in bytes.
const CREDENTIALS_BYTES: usize = 1_000;

// From `openssl genpkey -algorithm ed25519 | openssl pkey -pubout`. Nothing is signed with it.
const TOKEN: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAu+uiWnok4oQmhpShKCapgw9QiTa/9u+CUzLxQqmAHoc=
-----END PUBLIC KEY-----
";

/// Dropping it stops all its processes.
pub(super) struct Stage {
    _director: Instance,
    log: JetStreamLog,
    nats: Nats,
    _redis: Redis,
}

impl Stage {
    /// Starts NATS, Redis and a director with these flags. Writes the director's keys into the folder.
    pub(super) async fn start(folder: &Path, flags: &[String]) -> anyhow::Result<Self> {
        let (nats, redis) = futures::try_join!(Nats::start(folder, 1), Redis::start(folder))?;
        let admin = nats.connect(Role::Admin).await?;
        setup::init(admin.clone(), 1).await?;
        let log = JetStreamLog::open(admin).await?;
        let sealed = SealKey::new(&SEAL).seal(&serde_json::to_vec(&secrets())?, FINGERPRINT)?;
        let client = redis::Client::open(redis.url_with_password())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let () = redis::cmd("SET").arg(parked_key(FINGERPRINT)).arg(sealed).query_async(&mut connection).await?;

        fs::write(folder.join("seal.key"), "09".repeat(SEAL.len()))?;
        fs::write(folder.join("token.pub.pem"), TOKEN)?;
        let [admin] = ports::reserve()?;
        let admin = format!("127.0.0.1:{admin}");
        let process = Launch::new("director", binary("garage-director")?, folder.join("director.log"))
            .args(flags)
            .env("GARAGE_ADMIN", &admin)
            .env("GARAGE_NATS_URL", nats.url())
            .env("GARAGE_NATS_CREDENTIALS", nats.credentials(Role::Director))
            .env("GARAGE_REDIS_URL", redis.url())
            .env("GARAGE_REDIS_PASSWORD_FILE", redis.password_file())
            .spawn()?;
        let mut director = Instance { worker: Worker::Director, admin, listen: None, process };
        director.wait_ready().await?;
        Ok(Self { _director: director, log, nats, _redis: redis })
    }

    /// Appends `count` sessions at once. Each has requested its first game server.
    pub(super) async fn sessions(&self, count: usize) -> anyhow::Result<Vec<SessionId>> {
        try_join_all((0..count).map(|_| self.session())).await
    }

    async fn session(&self) -> anyhow::Result<SessionId> {
        let id = SessionId::new(System.id());
        let player = PlayerId::from_foreign(&System.id().to_string())?;
        let (ticket, name) = (TicketId::new(System.id()), "red".to_owned());
        let joined = player::Matched {
            ticket,
            queue: queue()?,
            session: id,
            team: name.clone(),
            waiting_since: System.now(),
            requeue: None,
            absences: 0,
            party: None,
        };
        let matched = Matched {
            queue: queue()?,
            region: region()?,
            teams: vec![Team { name, players: vec![Member { player: player.clone(), ticket, rank: 1 }] }],
            latencies: Default::default(),
            rules: "bench".into(),
            pool_seq: 1,
            clock: System.now(),
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
        };
        let requested = PodRequested {
            attempt: 1,
            region: region()?,
            loadouts: vec![loadout(&player)?],
            public_key: "bench".into(),
            fingerprint: FINGERPRINT.into(),
            ends_at: Some(System.now() + time::Duration::minutes(15)),
        };
        let decision = Decision::new(&System, id.uuid(), None);
        let events = [Event::from(matched), requested.into()];
        let decision = decision.change(&System, Aggregate::Session(id), Head::default(), events);
        let joined = [player::Event::from(joined)];
        self.log.append(decision.change(&System, Aggregate::Player(player), Head::default(), joined)).await?;
        Ok(id)
    }

    /// Closes sessions. The director then removes their pods.
    pub(super) async fn close(&self, sessions: &[SessionId]) -> anyhow::Result<()> {
        try_join_all(sessions.iter().map(async |session| {
            let command = Command::Fail { reason: "bench".into() };
            decide_session(&self.log, &System, *session, command, None).await??;
            anyhow::Ok(())
        }))
        .await?;
        Ok(())
    }

    /// The order of a director for such a session.
    pub(super) fn order(&self) -> anyhow::Result<Order> {
        let session = SessionId::new(System.id());
        let report = |kind| Report { session, attempt: 1, kind }.to_string();
        let game::Secrets { private_key, credentials } = secrets();
        let config = game::Config {
            session,
            attempt: 1,
            players: vec![loadout(&PlayerId::from_foreign(&System.id().to_string())?)?],
            teams: Vec::new(),
            private_key,
            token_key: TOKEN.into(),
            token_keys: [("bench".into(), TOKEN.into())].into(),
            nats: game::Nats { url: self.nats.url(), credentials, inbox: String::new() },
            ready: report(ReportKind::Ready),
            finished: report(ReportKind::Finished),
            ends_at: System.now() + time::Duration::minutes(15),
        };
        Ok(Order { queue: queue()?, region: region()?, config })
    }
}

/// Secrets of the same length as a real game's secrets.
fn secrets() -> game::Secrets {
    let text = |bytes| Secret::new("k".repeat(bytes));
    game::Secrets { private_key: text(KEY_BYTES), credentials: text(CREDENTIALS_BYTES) }
}

fn queue() -> anyhow::Result<QueueName> {
    Ok("ranked".parse()?)
}

fn region() -> anyhow::Result<Region> {
    Ok("eu".parse()?)
}

fn loadout(player: &PlayerId) -> anyhow::Result<Loadout> {
    let stats = Stats { power_kw: 100.0, mass_kg: 1_000.0, grip: 1.0, drag_m2: 0.6 };
    let car = Car { id: "brick".parse()?, model: "brick".into(), texture: "red".into(), stats };
    Ok(Loadout { player: player.clone(), car, items: [].into() })
}
