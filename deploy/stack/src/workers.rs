//! A complete local Garage: the servers, the secrets, and the workers as separate processes.

use std::{
    borrow::Cow,
    ffi::OsString,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ed25519_dalek::{
    SigningKey,
    pkcs8::{EncodePrivateKey, EncodePublicKey, spki::der::pem::LineEnding},
};
use garage_events::{
    env::{Env, System},
    queue::{QueueError, Queues},
};
use garage_nats::private;
use garage_worker::instance::{self, Signal};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use rand::Rng;
use serde_json::json;

use crate::{
    Error, Result, ports,
    process::{Launch, Process},
    secret,
    servers::{Database, Nats, Redis, Role, nats::Node},
};

/// A worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Worker {
    /// Serves REST and the WebSocket.
    Gateway,
    /// Makes matches.
    Matchmaker,
    /// Carries out the steps of each session, from the match to its end.
    Session,
    /// Starts and removes game servers.
    Director,
    /// Stores cars and coins.
    Inventory,
}

impl Worker {
    /// All workers in start order. A worker may depend on the workers before it.
    pub const ALL: [Self; 5] = [Self::Inventory, Self::Director, Self::Session, Self::Matchmaker, Self::Gateway];

    /// The name, for example `gateway`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.role().name()
    }

    /// The worker's NATS user.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::Gateway => Role::Gateway,
            Self::Matchmaker => Role::Matchmaker,
            Self::Session => Role::Session,
            Self::Director => Role::Director,
            Self::Inventory => Role::Inventory,
        }
    }
}

/// The settings of a stack.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of NATS nodes: 1 or 3.
    pub nats_nodes: usize,
    /// Whether the routes between the NATS nodes run through proxies that can cut them. Ignored with [`Games::Kube`].
    pub cuttable: bool,
    /// Number of instances of each worker.
    pub instances: usize,
    /// The queues file. `None` for the queues `ranked` and `casual` with two players each, and `teams` of five.
    pub queues: Option<PathBuf>,
    /// Where the game servers run.
    pub games: Games,
    /// Additional environment variables for all workers, for example `GARAGE_READY_S`.
    pub env: Vec<(String, String)>,
}

/// Where the game servers of a stack run.
#[derive(Debug, Clone)]
pub enum Games {
    /// As processes on this machine, reachable only through loopback.
    Process,
    /// As pods in a Kubernetes cluster.
    Kube(Pods),
}

/// Settings for game servers as pods. Pods outlive the stack: the caller must remove them.
#[derive(Debug, Clone)]
pub struct Pods {
    /// The kubeconfig file with the address of the cluster and the credentials.
    pub kubeconfig: PathBuf,
    /// The namespace. No other stack may use it.
    pub namespace: String,
    /// The image of the game server.
    pub image: String,
    /// When a node pulls the image: `Always`, `IfNotPresent` or `Never`.
    pub pull_policy: String,
    /// The address of this machine at which pods reach NATS.
    pub advertise: IpAddr,
}

impl Default for Options {
    fn default() -> Self {
        Self { nats_nodes: 1, cuttable: false, instances: 1, queues: None, games: Games::Process, env: Vec::new() }
    }
}

impl Options {
    /// Checks the queues file. [`Stack::start`] does this too, before it starts anything.
    ///
    /// # Errors
    /// [`Error::Queues`]
    pub fn check(&self) -> Result<()> {
        self.queues_text().map(drop)
    }

    /// The text of the queues file, which is valid.
    fn queues_text(&self) -> Result<Cow<'static, str>> {
        let Some(path) = &self.queues else { return Ok(QUEUES.into()) };
        let text = fs::read_to_string(path).map_err(|source| QueueError::Read { path: path.clone(), source })?;
        Queues::parse(&text, path)?;
        Ok(text.into())
    }
}

/// The default queues file.
pub const QUEUES: &str = include_str!("../../local/queues.toml");

/// The rule set that the default queues file names.
const TEAMS: (&str, &str) = ("teams.json", include_str!("../../local/teams.json"));

/// Writes the default queues file into `folder`, with the rule set that it names. Returns its path.
///
/// # Errors
/// If a file cannot be written.
pub fn write_default_queues(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("queues.toml");
    for (path, text) in [(&path, QUEUES), (&folder.join(TEAMS.0), TEAMS.1)] {
        fs::write(path, text).map_err(Error::io(format!("write {}", path.display())))?;
    }
    Ok(path)
}

/// The default pod template.
pub const POD: &str = include_str!("../../local/pod.yaml");

/// A running Garage. Dropping it stops everything, including the game servers, unless they are pods.
#[derive(Debug)]
pub struct Stack {
    root: PathBuf,
    workers: Vec<Instance>,
    /// NATS.
    pub nats: Nats,
    /// Redis.
    pub redis: Redis,
    /// MariaDB or MySQL.
    pub database: Database,
    jwt_key: String,
    /// The last field, so that the lock is released after everything has stopped.
    _lock: Flock<fs::File>,
}

/// One instance of a worker.
#[derive(Debug)]
pub struct Instance {
    /// The kind of worker.
    pub worker: Worker,
    /// Address of the admin port, `127.0.0.1:<port>`.
    pub admin: String,
    /// Address for game clients. `None` if the worker is not a gateway.
    pub listen: Option<String>,
    /// The instance's process.
    pub process: Process,
}

impl Stack {
    /// Starts everything in a folder, and waits until each worker is ready.
    ///
    /// # Errors
    /// When a server or worker does not start. The error contains the end of its log.
    pub async fn start(root: &Path, options: Options) -> Result<Self> {
        let queues = options.queues_text()?;
        private::folder(root).map_err(Error::io(format!("create {}", root.display())))?;
        let lock = lock(root)?;
        let nats = async {
            match &options.games {
                Games::Kube(pods) => Nats::start_reachable(root, options.nats_nodes, pods.advertise).await,
                Games::Process if options.cuttable => Nats::start_cuttable(root, options.nats_nodes).await,
                Games::Process => Nats::start(root, options.nats_nodes).await,
            }
        };
        let (nats, redis, database) = futures::try_join!(nats, Redis::start(root), Database::start(root))?;
        let jwt_key = secret::load_or_create(&root.join("secrets/jwt.key"))?;
        let mut stack =
            Self { root: root.to_owned(), workers: Vec::new(), nats, redis, database, jwt_key, _lock: lock };
        stack.write_files(&queues, &options)?;
        stack.write_pod()?;
        stack.init(&options).await?;
        for worker in Worker::ALL {
            for number in 0..options.instances {
                let instance = stack.launch(worker, number, &options)?;
                stack.workers.push(instance);
            }
        }
        stack.wait_ready().await?;
        Ok(stack)
    }

    fn write_files(&self, queues: &str, options: &Options) -> Result<()> {
        let secrets = self.root.join("secrets");
        let mut random = [0; 32];
        rand::rng().fill_bytes(&mut random);
        if !secrets.join("seal.key").exists() {
            secret::write_private(&secrets.join("seal.key"), &STANDARD.encode(random))?;
        }
        if !secrets.join("token.pem").exists() {
            rand::rng().fill_bytes(&mut random);
            let key = SigningKey::from_bytes(&random);
            let private = key.to_pkcs8_pem(LineEnding::LF).map_err(Error::other("create a token key"))?;
            let public = key.verifying_key().to_public_key_pem(LineEnding::LF);
            let public = public.map_err(Error::other("create a token key"))?;
            secret::write_private(&secrets.join("token.pub.pem"), &public)?;
            secret::write_private(&secrets.join("token.pem"), &private)?;
        }
        // Copies, so that all workers of this stack have the same queues, also after a restart.
        let Some(original) = &options.queues else { return write_default_queues(&self.root).map(drop) };
        let path = self.root.join("queues.toml");
        fs::write(&path, queues).map_err(Error::io(format!("write {}", path.display())))?;
        for file in Queues::rule_set_files(queues) {
            let copy = self.root.join(&file);
            let failed = || Error::io(format!("copy the rule set {} to {}", file.display(), copy.display()));
            if let Some(parent) = copy.parent() {
                fs::create_dir_all(parent).map_err(failed())?;
            }
            fs::copy(original.parent().unwrap_or(Path::new("")).join(&file), &copy).map_err(failed())?;
        }
        Ok(())
    }

    fn write_pod(&self) -> Result<()> {
        let pod = self.root.join("pod.yaml");
        fs::write(&pod, POD).map_err(Error::io(format!("write {}", pod.display())))
    }

    /// Runs `garage init` like an operator.
    async fn init(&self, options: &Options) -> Result<()> {
        let mut init = Launch::new("garage init", binary("garage")?, self.log("init"))
            .arg("init")
            .args(["--replicas", &options.nats_nodes.to_string()])
            .env("GARAGE_NATS_URL", self.nats.url())
            .env("GARAGE_NATS_CREDENTIALS", self.nats.credentials(Role::Admin))
            .env("GARAGE_MYSQL_URL", self.database.url())
            .env("GARAGE_MYSQL_PASSWORD_FILE", self.database.password_file())
            .spawn()?;
        init.wait_success().await
    }

    fn launch(&self, worker: Worker, number: usize, options: &Options) -> Result<Instance> {
        let [admin, listen] = ports::reserve::<2>()?;
        let (admin, listen) = (format!("127.0.0.1:{admin}"), format!("127.0.0.1:{listen}"));
        let secrets = self.root.join("secrets");
        let name = format!("{}-{number}", worker.name());
        let program = binary(&format!("garage-{}", worker.name()))?;
        let mut launch = Launch::new(name.clone(), program, self.log(&name))
            .env("GARAGE_NATS_URL", self.nats.url())
            .env("GARAGE_NATS_CREDENTIALS", self.nats.credentials(worker.role()))
            .env("GARAGE_ADMIN", &admin);
        match worker {
            Worker::Gateway => {
                launch = launch
                    .env("GARAGE_REDIS_URL", self.redis.reader_url())
                    .env("GARAGE_REDIS_PASSWORD_FILE", self.redis.reader_password_file())
                    .env("GARAGE_GATEWAY_LISTEN", &listen)
                    // All players of this machine have the same address.
                    .env("GARAGE_GATEWAY_MAX_UNAUTHENTICATED_PER_ADDRESS", "10000")
                    .env("GARAGE_QUEUES", self.root.join("queues.toml"))
                    .env("GARAGE_GATEWAY_JWT_KEY_FILE", secrets.join("jwt.key"));
            }
            Worker::Matchmaker => launch = launch.env("GARAGE_QUEUES", self.root.join("queues.toml")),
            Worker::Session => {
                launch = launch
                    .env("GARAGE_REDIS_URL", self.redis.url())
                    .env("GARAGE_REDIS_PASSWORD_FILE", self.redis.password_file())
                    .env("GARAGE_SEAL_KEY_FILE", secrets.join("seal.key"))
                    .env("GARAGE_TOKEN_KEY_FILE", secrets.join("token.pem"))
                    .env("GARAGE_GAME_SIGNING_KEY", self.nats.game_signing_key());
                if matches!(options.games, Games::Kube(_)) {
                    launch = unless_set(launch, "GARAGE_READY_S", "60");
                }
            }
            Worker::Director => {
                launch = launch
                    .env("GARAGE_REDIS_URL", self.redis.url())
                    .env("GARAGE_REDIS_PASSWORD_FILE", self.redis.password_file())
                    .env("GARAGE_SEAL_KEY_FILE", secrets.join("seal.key"))
                    .env("GARAGE_TOKEN_PUBLIC_KEY_FILE", secrets.join("token.pub.pem"));
                launch = match &options.games {
                    Games::Process => launch
                        .env("GARAGE_BACKEND", "process")
                        .env("GARAGE_INSTANCES", self.instances_folder())
                        // The game servers inherit this variable, so that other machines cannot reach them.
                        .env("GARAGE_GAMESERVER_BIND", "127.0.0.1"),
                    Games::Kube(pods) => {
                        let launch = launch
                            .env("GARAGE_BACKEND", "kube")
                            .env("GARAGE_KUBECONFIG", &pods.kubeconfig)
                            .env("GARAGE_NAMESPACE", &pods.namespace)
                            .env("GARAGE_IMAGE", &pods.image)
                            .env("GARAGE_PULL_POLICY", &pods.pull_policy)
                            .env("GARAGE_GAME_NATS_URL", self.nats.url_by(pods.advertise));
                        let launch = unless_set(launch, "GARAGE_POD_TEMPLATE", self.root.join("pod.yaml"));
                        // The only node of a small cluster often has no external address.
                        unless_set(launch, "GARAGE_NODE_ADDRESS", "external-ip,internal-ip")
                    }
                };
            }
            Worker::Inventory => {
                launch = launch
                    .env("GARAGE_MYSQL_URL", self.database.url())
                    .env("GARAGE_MYSQL_PASSWORD_FILE", self.database.password_file());
            }
        }
        for (variable, value) in &options.env {
            launch = launch.env(variable, value);
        }
        let listen = (worker == Worker::Gateway).then_some(listen);
        Ok(Instance { worker, admin, listen, process: launch.spawn()? })
    }

    /// Waits until every running worker is ready.
    ///
    /// # Errors
    /// When a worker ends, or is not ready within [`DEADLINE`](crate::process::DEADLINE).
    pub async fn wait_ready(&mut self) -> Result<()> {
        for instance in &mut self.workers {
            if instance.process.is_running() || instance.process.pid().is_some() {
                instance.wait_ready().await?;
            }
        }
        Ok(())
    }

    /// The instances of one kind of worker.
    pub fn instances(&mut self, worker: Worker) -> impl Iterator<Item = &mut Instance> {
        self.workers.iter_mut().filter(move |instance| instance.worker == worker)
    }

    /// The instances of all workers.
    pub fn all_instances(&mut self) -> impl Iterator<Item = &mut Instance> {
        self.workers.iter_mut()
    }

    /// The processes of all servers and workers.
    pub(crate) fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let servers = [self.redis.process_mut(), self.database.process_mut()];
        let workers = self.workers.iter_mut().map(|instance| &mut instance.process);
        self.nats.all_nodes().map(Node::process_mut).chain(servers).chain(workers)
    }

    /// Base URL of the first gateway, for example `http://127.0.0.1:12345`.
    #[must_use]
    pub fn gateway(&self) -> String {
        self.gateways().into_iter().next().unwrap_or_default()
    }

    /// Base URLs of all gateways.
    #[must_use]
    pub fn gateways(&self) -> Vec<String> {
        self.workers.iter().filter_map(|instance| instance.listen.as_ref()).map(|at| format!("http://{at}")).collect()
    }

    /// URL of the dashboard at the first gateway.
    #[must_use]
    pub fn ops(&self) -> String {
        let gateway = self.workers.iter().find(|instance| instance.worker == Worker::Gateway);
        gateway.map(|gateway| format!("http://{}/ops", gateway.admin)).unwrap_or_default()
    }

    /// The folder of the stack.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder in which the director keeps its game servers.
    #[must_use]
    pub fn instances_folder(&self) -> PathBuf {
        self.root.join("games")
    }

    /// Creates a player's token, like the studio's identity provider would. It is valid for one hour. Without a rank in
    /// the token, the player's rating counts.
    ///
    /// # Errors
    /// When the token cannot be signed.
    pub fn token(&self, player: &str, rank: Option<i32>) -> Result<String> {
        self.token_with(player, json!({ "rank": rank }))
    }

    /// Issues a token with these claims, which are an object, besides `sub` and `exp`.
    ///
    /// # Errors
    /// When the token cannot be signed.
    pub fn token_with(&self, player: &str, mut claims: serde_json::Value) -> Result<String> {
        let expires = System.now() + time::Duration::HOUR;
        if let Some(claims) = claims.as_object_mut() {
            claims.insert("sub".into(), player.into());
            claims.insert("exp".into(), expires.unix_timestamp().into());
        }
        let key = EncodingKey::from_secret(self.jwt_key.as_bytes());
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).map_err(Error::other("sign a token"))
    }

    /// Shuts everything down cleanly. The servers stop last, so that the workers can finish their work in progress.
    pub async fn stop(&mut self) {
        for instance in self.workers.iter_mut().rev() {
            // Send SIGTERM to all workers first, so that they stop in parallel.
            let _ = instance.process.terminate();
        }
        for instance in self.workers.iter_mut().rev() {
            instance.process.stop().await;
        }
        self.end_games();
        futures::join!(self.nats.stop(), self.redis.stop(), self.database.stop());
    }

    /// Kills everything. This is faster than [`stop`](Self::stop), but loses work in progress.
    pub fn kill(&mut self) {
        for instance in &mut self.workers {
            instance.process.kill();
        }
        self.end_games();
        self.nats.kill();
        self.redis.kill();
        self.database.kill();
    }

    /// Kills the game servers and all processes that they have started. They outlive their director, but must not
    /// outlive the stack.
    fn end_games(&self) {
        let folder = self.canonical_instances_folder();
        if let Err(error) = instance::end(&folder, &folder, &[Signal::SIGKILL]) {
            tracing::warn!(%error, "cannot end the game servers");
        }
    }

    /// Process ids of the running game servers, and of the processes that they have started.
    #[must_use]
    pub fn game_servers(&self) -> Vec<u32> {
        let running = instance::running(&self.canonical_instances_folder()).unwrap_or_default();
        running.into_values().flatten().filter_map(|process| process.id.try_into().ok()).collect()
    }

    /// The path that the director passes to its game servers: without symbolic links.
    fn canonical_instances_folder(&self) -> PathBuf {
        let folder = self.instances_folder();
        folder.canonicalize().unwrap_or(folder)
    }

    /// The names of the director's game server instances: `game-<session>-<attempt>`.
    #[must_use]
    pub fn games(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.instances_folder()) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// The log files of all workers and servers.
    #[must_use]
    pub fn logs(&self) -> Vec<PathBuf> {
        let workers = self.workers.iter().map(|instance| instance.process.log().to_owned());
        let servers = [self.redis.process().log(), self.database.process().log()].map(Path::to_owned);
        workers.chain(servers).chain(self.nats.logs()).chain([self.log("init")]).collect()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Stop the directors first, so that they start no more game servers.
        self.workers.clear();
        self.end_games();
    }
}

impl Instance {
    /// Waits until the instance is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready within [`DEADLINE`](crate::process::DEADLINE).
    pub async fn wait_ready(&mut self) -> Result<()> {
        let url = format!("http://{}/readyz", self.admin);
        let client = reqwest::Client::new();
        let probe = async || {
            let response = client.get(&url).timeout(Duration::from_secs(1)).send().await;
            response.is_ok_and(|response| response.status().is_success())
        };
        self.process.wait_until("become ready", probe).await
    }
}

/// Adds an environment variable, unless this process inherited it.
fn unless_set(launch: Launch, name: &str, value: impl Into<OsString>) -> Launch {
    if std::env::var_os(name).is_some() { launch } else { launch.env(name, value) }
}

/// Locks the folder for one stack. A second set of servers would corrupt the data.
fn lock(root: &Path) -> Result<Flock<fs::File>> {
    let path = root.join("lock");
    let file = fs::File::create(&path).map_err(Error::io(format!("create {}", path.display())))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Error::FolderInUse { root: root.to_owned() },
        errno => Error::io(format!("lock {}", path.display()))(errno.into()),
    })
}

/// The path of a program of this workspace. It is in the same folder as the running program, or one level up if the
/// running program is a test.
///
/// # Errors
/// When the program has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().map_err(Error::io("find the path of the running program"))?;
    let folders = here.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| Error::Missing {
        program: name.into(),
        looked: here.display().to_string(),
        install: "cargo build --workspace",
    })
}
