//! Game servers as processes of this machine: the backend for development and for one machine.
//!
//! Each instance has a folder `<instances>/game-<session>-<attempt>/`: `config.json`, which holds the game's private
//! key; `log`, what the process writes; `lock`; `started` and, once its end was seen, `exit`. There is no file of
//! process ids: one that is read may name a stranger by then. The process is the one that runs with `--config` and the
//! very path of the configuration, whoever started it, so that any director finds it again.
//!
//! **An attempt is started at most once.** Under the instance's lock: one that runs is left running; one with the mark
//! `started` that does not run is over, and a redelivered request is told so (it ends in PodFailed and one more
//! attempt) instead of starting it anew, since its first life may have reported itself ready under the same subjects.
//! The mark is set before the spawn: a director that dies between the two costs an attempt, whereas with the mark
//! after it, a process that started and died unseen would be started twice. Before the mark, nothing is lost by a
//! director's death: the next delivery goes on from there.
//!
//! Whoever ends the director must leave its children alone: with systemd that takes `KillMode=process`.

mod folder;
mod log;
mod proc;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context;
use garage_events::{
    crash::{self, Point},
    game,
};
use time::OffsetDateTime;

use self::folder::{Folder, LockAttempt};
use crate::{
    backend::{Backend, CreateError, Exit, How, Instance, Listed, Made, Name, Order, Placed, State, Unavailable},
    config,
};

/// What a game server inherits of the director's environment. Not the rest: it is not the game's business where the
/// director's secrets are.
const INHERITED: [&str; 7] = ["PATH", "HOME", "LANG", "TZ", "RUST_LOG", "RUST_BACKTRACE", crash::FOLDER];
/// And all that begin so.
const INHERITED_PREFIX: &str = "GARAGE_GAMESERVER_";

/// How long a process may take to show its command line. It takes microseconds; what takes a second hangs in exec.
const VISIBLE: Duration = Duration::from_secs(1);

/// Game servers as processes of this machine.
#[derive(Debug, Clone)]
pub struct ProcessBackend(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Without symbolic links: it is compared with command lines.
    root: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
    node: String,
    public_ip: IpAddr,
    /// Those that this director started and whose end it has not noted yet.
    children: Mutex<HashMap<Name, Child>>,
}

/// The game server's program, which must be there.
pub(crate) fn program(config: &config::Process) -> anyhow::Result<PathBuf> {
    let program = match &config.gameserver {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("garage-gameserver"),
    };
    program.canonicalize().with_context(|| format!("there is no game server {} (--gameserver)", program.display()))
}

impl ProcessBackend {
    /// Opens the folder of instances.
    ///
    /// # Errors
    /// When there is no such program, or the folder cannot be made.
    pub fn open(config: &config::Process) -> anyhow::Result<Self> {
        let program = program(config)?;
        let instances = config.instances.as_deref().context("where instances live is not said (--instances)")?;
        let root =
            folder::root(instances).with_context(|| format!("cannot make {} (--instances)", instances.display()))?;
        let node = match &config.node {
            Some(node) => node.clone(),
            None => std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned(),
        };
        let ports = config.game_ports.iter().flat_map(|ports| ["--ports".to_owned(), ports.to_string()]);
        let arguments = ports.chain(config.game_arg.iter().filter(|argument| !argument.is_empty()).cloned()).collect();
        let (public_ip, children) = (config.public_ip, Mutex::default());
        Ok(Self(Arc::new(Inner { root, program, arguments, node, public_ip, children })))
    }

    /// Runs what waits for files and processes where it holds up nobody.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&inner)).await;
        done.map_err(|error| Unavailable(anyhow::Error::new(error).context("the backend's task ended")))
    }
}

impl Backend for ProcessBackend {
    async fn create(&self, order: &Order) -> Result<Made, CreateError> {
        let config = order.config.clone();
        let name = order.name();
        self.blocking(move |inner| inner.create(name, &config)).await?.map(Made::Placed)
    }

    async fn find(&self, name: Name) -> Result<Option<Made>, Unavailable> {
        let running = self.blocking(|inner| proc::running(&inner.root)).await?;
        let running = running.map_err(|error| unavailable(error, "look for processes"))?;
        Ok(running.contains_key(&name).then(|| Made::Placed(self.0.placed(name))))
    }

    async fn list(&self) -> Listed {
        let listed = self
            .blocking(Inner::list)
            .await
            .and_then(|listed| listed.map_err(|error| unavailable(error, "look through the instances")));
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
        let lock = folder.claim().map_err(failed)?;
        let running = proc::running(&self.root).map_err(failed)?.contains_key(&name);
        self.reap();
        if running || self.children().contains_key(&name) {
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
            Ok(mut child) => {
                self.wait_visible(name, &mut child);
                drop(lock);
                tracing::info!(pod.name = %name, pid = child.id(), "instance started");
                self.children().insert(name, child);
                Ok(self.placed(name))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                let message = format!("{} cannot be run: {error}", self.program.display());
                Err(CreateError::Refused { reason: "not-started", message })
            }
            Err(error) => {
                // Too many processes, no memory: nothing ran, and it may do later.
                folder.unmark_started().map_err(failed)?;
                Err(failed(error))
            }
        }
    }

    /// Waits until a new process shows its command line or is over. A spawn returns a moment before the kernel shows
    /// it, and whoever got the lock in that moment would take the instance for a dead one.
    fn wait_visible(&self, name: Name, child: &mut Child) {
        let until = Instant::now() + VISIBLE;
        let pid = child.id();
        while Instant::now() < until && !proc::is(&self.root, name, pid) && matches!(child.try_wait(), Ok(None)) {
            sleep(Duration::from_micros(200));
        }
    }

    fn command(&self, folder: &Folder) -> Command {
        let inherited = std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            INHERITED.contains(&&*name) || name.starts_with(INHERITED_PREFIX)
        });
        let mut command = Command::new(&self.program);
        // A group of its own: the terminal's Ctrl-C is for the director alone.
        command.arg("--config").arg(folder.config()).args(&self.arguments).process_group(0);
        command.env_clear().envs(inherited).current_dir(folder.path());
        command
    }

    fn list(&self) -> io::Result<Vec<Instance>> {
        // Folders first: each process has had its folder before.
        let names = folder::names(&self.root)?;
        let mut running = proc::running(&self.root)?;
        self.reap();
        let mut instances = BTreeMap::new();
        let mut silent = Vec::new();
        for name in names {
            let folder = Folder::of(&self.root, name);
            let Some(created) = folder.created() else { continue };
            if running.remove(&name).is_some() || self.children().contains_key(&name) {
                instances.insert(name, Instance { name, created, state: self.running(name) });
                continue;
            }
            match folder.try_hold()? {
                LockAttempt::Gone => {}
                // Somebody is just making or removing it.
                LockAttempt::Elsewhere => {
                    instances.insert(name, Instance { name, created, state: self.running(name) });
                }
                LockAttempt::Here(lock) => silent.push((folder, name, created, lock)),
            }
        }
        // Of a folder that the director did not remove.
        for (name, _) in running {
            let created = OffsetDateTime::UNIX_EPOCH;
            instances.insert(name, Instance { name, created, state: self.running(name) });
        }
        if !silent.is_empty() {
            // It may have been started since the first look; under the locks nothing more is.
            let running = proc::running(&self.root)?;
            self.reap();
            for (folder, name, created, lock) in silent {
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
        let lock = folder.hold()?;
        crash::effect_blocking(Point::InstanceEnded, || proc::end(&self.root, name))?;
        let child = self.children().remove(&name);
        if let Some(mut child) = child {
            child.wait()?;
        }
        let Some(lock) = lock else { return Ok(false) };
        folder.remove(lock)?;
        tracing::info!(pod.name = %name, "instance removed");
        Ok(true)
    }

    /// Notes how children ended, where every director can read it.
    fn reap(&self) {
        self.children().retain(|name, child| {
            let status = match child.try_wait() {
                Ok(None) => return true,
                Ok(Some(status)) => status,
                Err(error) => {
                    tracing::warn!(pod.name = %name, %error, "cannot ask for the end of an instance");
                    return true;
                }
            };
            match Folder::of(&self.root, *name).write_exit(how(status)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(pod.name = %name, %error, "cannot note the end of an instance");
                    true
                }
                // Without its folder it was removed; nobody asks any more.
                _ => false,
            }
        });
    }

    fn children(&self) -> MutexGuard<'_, HashMap<Name, Child>> {
        // Each change is one insert or remove: a panic of another holder leaves nothing half done.
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn how(status: ExitStatus) -> How {
    match (status.code(), status.signal()) {
        (Some(code), _) => How::Code(code),
        (None, Some(signal)) => How::Signal(signal),
        (None, None) => How::Unknown,
    }
}

fn exit_of(folder: &Folder) -> Exit {
    Exit { how: folder.read_exit(), message: log::last_line(&folder.log(), folder.config()) }
}

/// The path of an instance's configuration.
fn config_of(root: &Path, name: Name) -> PathBuf {
    root.join(name.to_string()).join("config.json")
}
