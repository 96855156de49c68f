//! Runs game servers as processes of this machine: the backend for development and for single-machine deployments.
//!
//! Each instance has a folder `<instances>/game-<session>-<attempt>/` with these files:
//!
//! - `config.json`: the game server's configuration, with the game's private key
//! - `log`: the output of the process
//! - `lock`: locked by the director that creates or removes the instance
//! - `started`: a marker, see below
//! - `pid`: the first process of the game server
//! - `exit`: how the process ended, once a director saw it
//!
//! Any director finds the processes of an instance, no matter which one started it. [`garage_worker::instance`] says
//! how. An instance runs as long as one of its processes does, and its removal ends all of them.
//!
//! **An attempt is started at most once.** Under the instance's lock, a director leaves a running process alone. A
//! `started` marker without a process means that the instance has exited. A redelivered request then does not start it
//! again, because the first process may have reported itself ready under the same subjects. Instead the attempt fails
//! with `PodFailed`, and the session worker requests another one.
//!
//! The marker is written before the spawn. A director that dies between the two costs one attempt. If the marker were
//! written after the spawn, a process that started and died unseen would be started twice. If a director dies before it
//! writes the marker, the next delivery of the request continues, and nothing is lost. If it dies after the spawn and
//! before it writes `pid`, the next director finds the process by its environment, and writes `pid`.
//!
//! The service manager must not kill the director's children. With systemd, set `KillMode=process`.

mod folder;
mod log;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context;
use garage_events::{
    crash::{self, Point},
    deadline::exit_blocking,
    game,
};
use garage_worker::instance::{self, Process, Signal};
use time::OffsetDateTime;
use tokio::time::timeout;

use self::folder::{Folder, LockAttempt};
use crate::{
    backend::{
        Backend, CreateError, Created, Exit, ExitKind, Instance, Listing, Name, Order, Placed, State, Unavailable,
    },
    config,
};

/// Environment variables that a game server inherits from the director. It does not get the others, because they tell
/// where the director's secrets are.
const INHERITED: [&str; 7] = ["PATH", "HOME", "LANG", "TZ", "RUST_LOG", "RUST_BACKTRACE", crash::FOLDER];
/// A game server also inherits the variables with this prefix.
const INHERITED_PREFIX: &str = "GARAGE_GAMESERVER_";

/// How long to wait for an operation on files and processes. Each of its own waits is shorter, so only the kernel can
/// take this long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What does not answer then.
const STUCK: &str = "the file system of --instances or from /proc; check the disk";

/// How long to wait for the exit status of a process that has ended. It takes microseconds.
const REAP_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs game servers as processes of this machine. Clones share one backend.
#[derive(Debug, Clone)]
pub struct ProcessBackend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The folder of instances, without symbolic links, because it is compared with the processes' environments.
    root: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
    node: String,
    public_ip: IpAddr,
    /// Processes that this director started and whose exit it has not recorded yet.
    children: Mutex<HashMap<Name, Child>>,
}

/// The path of the game server's program. The program must exist.
pub(crate) fn program(config: &config::Process) -> anyhow::Result<PathBuf> {
    let program = match &config.gameserver {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("garage-gameserver"),
    };
    program.canonicalize().with_context(|| format!("cannot find the game server {} (--gameserver)", program.display()))
}

impl ProcessBackend {
    /// Opens the folder of instances, and creates it if it does not exist.
    ///
    /// # Errors
    /// When the game server's program does not exist, or the folder cannot be created.
    pub fn open(config: &config::Process) -> anyhow::Result<Self> {
        let program = program(config)?;
        let instances = config.instances.as_deref().context("no folder for instances is set (--instances)")?;
        let root =
            folder::root(instances).with_context(|| format!("cannot create {} (--instances)", instances.display()))?;
        let node = match &config.node {
            Some(node) => node.clone(),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned(),
        };
        let ports = config.game_ports.iter().flat_map(|ports| ["--ports".to_owned(), ports.to_string()]);
        let arguments = ports.chain(config.game_arg.iter().filter(|argument| !argument.is_empty()).cloned()).collect();
        let (public_ip, children) = (config.public_ip, Mutex::default());
        Ok(Self(Arc::new(Inner { root, program, arguments, node, public_ip, children })))
    }

    /// Runs blocking work on files and processes outside the async runtime's threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let inner = Arc::clone(&self.0);
        let task = tokio::task::spawn_blocking(move || work(&inner));
        let stuck = |_| Unavailable(anyhow::anyhow!("no answer within {} s from {STUCK}", TIMEOUT.as_secs()));
        let done = timeout(TIMEOUT, task).await.map_err(stuck)?;
        done.map_err(|error| Unavailable(anyhow::Error::new(error).context("a task of the process backend failed")))
    }
}

impl Backend for ProcessBackend {
    async fn create(&self, order: &Order) -> Result<Created, CreateError> {
        let config = order.config.clone();
        let name = order.name();
        self.blocking(move |inner| inner.create(name, &config)).await?.map(Created::Placed)
    }

    async fn find(&self, name: Name) -> Result<Option<Created>, Unavailable> {
        let running = self.blocking(Inner::processes).await?;
        let running = running.map_err(|error| unavailable(error, "list the processes"))?;
        Ok(running.contains_key(&name).then(|| Created::Placed(self.0.placed(name))))
    }

    async fn list(&self) -> Listing {
        let listed = self
            .blocking(Inner::list)
            .await
            .and_then(|listed| listed.map_err(|error| unavailable(error, "list the instances")));
        listed.into()
    }

    async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
        let deleted = self.blocking(move |inner| inner.delete(name)).await?;
        deleted.map_err(|error| unavailable(error, &format!("remove {name}")))
    }
}

fn unavailable(error: io::Error, what: &str) -> Unavailable {
    Unavailable(anyhow::Error::new(error).context(format!("cannot {what}")))
}

impl Inner {
    fn running(&self, name: Name) -> State {
        State::Running(self.placed(name))
    }

    fn placed(&self, name: Name) -> Placed {
        Placed { pod: name.to_string(), node: self.node.clone(), public_ip: self.public_ip }
    }

    fn create(&self, name: Name, config: &game::Config) -> Result<Placed, CreateError> {
        let failed = |error| CreateError::from(unavailable(error, &format!("start {name}")));
        let folder = Folder::of(&self.root, name);
        let lock = folder.create_and_lock().map_err(failed)?;
        let running = self.processes().map_err(failed)?.remove(&name);
        self.reap();
        if let Some(processes) = running {
            if !folder.pid_recorded()
                && let Some(first) = processes.iter().find(|process| process.leads())
            {
                record_pid(&folder, name, first);
            }
            return Ok(self.placed(name));
        }
        if self.children().contains_key(&name) {
            return Ok(self.placed(name));
        }
        if folder.started() {
            return Err(CreateError::Over);
        }
        folder.write_config(config).map_err(failed)?;
        let log = folder.open_log().map_err(failed)?;
        let mut command = self.command(&folder);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
        folder.mark_started().map_err(failed)?;
        match crash::effect_blocking(Point::InstanceStarted, || command.spawn()) {
            Ok(child) => {
                let pid = child.id();
                self.children().insert(name, child);
                if let Some(first) = i32::try_from(pid).ok().and_then(Process::of) {
                    record_pid(&folder, name, &first);
                }
                drop(lock);
                tracing::info!(pod.name = %name, pid, "instance started");
                Ok(self.placed(name))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                let message = format!("{} cannot be run: {error}", self.program.display());
                Err(CreateError::Refused { reason: "not-started", message })
            }
            Err(error) => {
                // For example too many processes, or not enough memory. Nothing has run, and a retry may succeed.
                folder.unmark_started().map_err(failed)?;
                Err(failed(error))
            }
        }
    }

    /// The processes of each instance.
    fn processes(&self) -> io::Result<BTreeMap<Name, BTreeSet<Process>>> {
        let named = |(folder, processes): (PathBuf, _)| Some((folder.file_name()?.to_str()?.parse().ok()?, processes));
        Ok(instance::running(&self.root)?.into_iter().filter_map(named).collect())
    }

    fn command(&self, folder: &Folder) -> Command {
        let inherited = std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            INHERITED.contains(&&*name) || name.starts_with(INHERITED_PREFIX)
        });
        let mut command = Command::new(&self.program);
        // The server gets its own process group, so that Ctrl-C in a terminal stops only the director.
        command.arg("--config").arg(folder.config()).args(&self.arguments).process_group(0);
        command.env_clear().envs(inherited).env(instance::FOLDER, folder.path()).current_dir(folder.path());
        command
    }

    fn list(&self) -> io::Result<Vec<Instance>> {
        // Read the folders before the processes: an instance gets its folder before its process.
        let names = folder::names(&self.root)?;
        let mut running = self.processes()?;
        self.reap();
        let mut instances = BTreeMap::new();
        let mut without_process = Vec::new();
        for name in names {
            let folder = Folder::of(&self.root, name);
            let Some(created) = folder.created() else { continue };
            if running.remove(&name).is_some() || self.children().contains_key(&name) {
                instances.insert(name, Instance { name, created, state: self.running(name) });
                continue;
            }
            match folder.try_lock()? {
                LockAttempt::NoFolder => {}
                // Another director is creating or removing it.
                LockAttempt::Busy => {
                    instances.insert(name, Instance { name, created, state: self.running(name) });
                }
                LockAttempt::Acquired(lock) => without_process.push((folder, name, created, lock)),
            }
        }
        // These processes have no folder: something other than a director removed it.
        for (name, _) in running {
            let created = OffsetDateTime::UNIX_EPOCH;
            instances.insert(name, Instance { name, created, state: self.running(name) });
        }
        if !without_process.is_empty() {
            // Some may have been started since `running` was read. While the locks are held, no more are started.
            let running = self.processes()?;
            self.reap();
            for (folder, name, created, lock) in without_process {
                let running = running.contains_key(&name) || self.children().contains_key(&name);
                let state = match (running, folder.started()) {
                    (true, _) => self.running(name),
                    (false, false) => State::Claimed,
                    (false, true) => State::Exited(exit_of(&folder)),
                };
                drop(lock);
                instances.insert(name, Instance { name, created, state });
            }
        }
        Ok(instances.into_values().collect())
    }

    fn delete(&self, name: Name) -> io::Result<bool> {
        let folder = Folder::of(&self.root, name);
        let lock = folder.lock()?;
        let signals = [Signal::SIGTERM, Signal::SIGKILL];
        crash::effect_blocking(Point::InstanceEnded, || instance::end(&self.root, folder.path(), &signals))?;
        let child = self.children().remove(&name);
        if let Some(mut child) = child
            && let Err(error) = exit_blocking(&mut child, REAP_TIMEOUT)
        {
            // The next delivery tries again.
            self.children().insert(name, child);
            return Err(error);
        }
        let Some(lock) = lock else { return Ok(false) };
        folder.remove(lock)?;
        tracing::info!(pod.name = %name, "instance removed");
        Ok(true)
    }

    /// Records how child processes exited in their folders, where every director can read it.
    fn reap(&self) {
        self.children().retain(|name, child| {
            let status = match child.try_wait() {
                Ok(None) => return true,
                Ok(Some(status)) => status,
                Err(error) => {
                    tracing::warn!(pod.name = %name, %error, "cannot get the exit status of an instance");
                    return true;
                }
            };
            match Folder::of(&self.root, *name).write_exit(exit_kind(status)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(pod.name = %name, %error, "cannot record how an instance exited");
                    true
                }
                // Either the exit is recorded, or the instance was removed with its folder.
                _ => false,
            }
        });
    }

    fn children(&self) -> MutexGuard<'_, HashMap<Name, Child>> {
        // Each change is a single insert or remove, so a panic while the lock is held leaves no partial change.
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exit_kind(status: ExitStatus) -> ExitKind {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitKind::Code(code),
        (None, Some(signal)) => ExitKind::Signal(signal),
        (None, None) => ExitKind::Unknown,
    }
}

fn exit_of(folder: &Folder) -> Exit {
    Exit { kind: folder.read_exit(), message: log::last_line(&folder.log(), folder.config()) }
}

/// Records an instance's first process. If that fails, the process can still be found by its environment.
fn record_pid(folder: &Folder, name: Name, first: &Process) {
    if let Err(error) = folder.record_pid(first) {
        tracing::warn!(pod.name = %name, pid = first.id, %error, "cannot record the process of an instance");
    }
}
