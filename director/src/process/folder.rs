//! An instance's folder, and the lock that lets only one director at a time work on it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use garage_events::{
    crash::{self, Point},
    game,
};
use garage_worker::instance::{PID_FILE, Process};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use time::OffsetDateTime;

use crate::backend::{ExitKind, Name};

/// How long to wait for a lock that another director holds. A removal holds it for up to 5 s: two signals, each with
/// [`GRACE`](garage_worker::instance::GRACE), and the exit status.
const LOCK_TIMEOUT: Duration = Duration::from_secs(6);

const POLL: Duration = Duration::from_millis(5);

/// The prefix of folders that are being removed.
const REMOVED: &str = ".gone-";

/// Creates the folder of instances, accessible to its owner only. Returns its path without symbolic links.
pub(super) fn root(path: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    path.canonicalize()
}

/// Lists the instances that have a folder. Also finishes the removals that another director began.
pub(super) fn names(root: &Path) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let file = entry.file_name();
        let Some(text) = file.to_str() else { continue };
        if text.strip_prefix(REMOVED).is_some_and(|name| name.parse::<Name>().is_ok()) {
            remove(&entry.path())?;
        } else if let Ok(name) = text.parse()
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// A director holds the lock while it creates or removes an instance. Dropping the value, or the end of the process,
/// releases it.
pub(super) type Lock = Flock<File>;

/// The result of an attempt to lock a folder.
pub(super) enum LockAttempt {
    Acquired(Lock),
    /// Another director or task holds the lock.
    Busy,
    /// The folder does not exist, or does not exist any more.
    NoFolder,
}

/// An instance's folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    config: PathBuf,
    /// The folder is renamed to this path before its content is removed.
    removed: PathBuf,
}

impl Folder {
    pub(super) fn of(root: &Path, name: Name) -> Self {
        let (path, removed) = (root.join(name.to_string()), root.join(format!("{REMOVED}{name}")));
        Self { config: path.join("config.json"), path, removed }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn config(&self) -> &Path {
        &self.config
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Creates the folder if it does not exist, and locks it.
    pub(super) fn create_and_lock(&self) -> io::Result<Lock> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            let create = || DirBuilder::new().mode(0o700).create(&self.path);
            match crash::effect_blocking(Point::InstanceClaimed, create) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if let Some(lock) = self.lock_until(deadline)? {
                return Ok(lock);
            }
        }
    }

    /// Locks the folder if it exists.
    pub(super) fn lock(&self) -> io::Result<Option<Lock>> {
        self.lock_until(Instant::now() + LOCK_TIMEOUT)
    }

    fn lock_until(&self, deadline: Instant) -> io::Result<Option<Lock>> {
        loop {
            match self.try_lock()? {
                LockAttempt::Acquired(lock) => return Ok(Some(lock)),
                LockAttempt::NoFolder => return Ok(None),
                LockAttempt::Busy if Instant::now() >= deadline => {
                    return Err(io::Error::new(ErrorKind::TimedOut, "another director holds the instance's lock"));
                }
                LockAttempt::Busy => sleep(POLL),
            }
        }
    }

    /// Locks the folder, without waiting for a lock that another director holds.
    pub(super) fn try_lock(&self) -> io::Result<LockAttempt> {
        let path = self.path.join("lock");
        let file = match OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(LockAttempt::NoFolder),
            Err(error) => return Err(error),
        };
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(LockAttempt::Busy),
            Err((_, error)) => return Err(error.into()),
        };
        // The previous holder may have removed the folder after this call opened the lock file. Then the path may
        // already lead to the lock file of a new folder.
        let same = match fs::metadata(&path) {
            Ok(on_disk) => {
                let locked = lock.metadata()?;
                (on_disk.dev(), on_disk.ino()) == (locked.dev(), locked.ino())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(LockAttempt::NoFolder),
            Err(error) => return Err(error),
        };
        Ok(if same { LockAttempt::Acquired(lock) } else { LockAttempt::Busy })
    }

    /// When the instance was created. The lock file tells: it is created first, and never written to.
    pub(super) fn created(&self) -> Option<OffsetDateTime> {
        let metadata = fs::metadata(self.path.join("lock")).or_else(|_| fs::metadata(&self.path));
        metadata.and_then(|metadata| metadata.modified()).ok().map(OffsetDateTime::from)
    }

    /// Writes the configuration atomically.
    pub(super) fn write_config(&self, config: &game::Config) -> io::Result<()> {
        let config = serde_json::to_vec(config)?;
        crash::effect_blocking(Point::InstanceConfigured, || put(&self.config, &config))
    }

    /// Opens the file for the output of the process.
    pub(super) fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.log())
    }

    pub(super) fn started(&self) -> bool {
        self.path.join("started").exists()
    }

    pub(super) fn mark_started(&self) -> io::Result<()> {
        let mark = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path.join("started"));
        crash::effect_blocking(Point::InstanceMarked, mark).map(drop)
    }

    pub(super) fn unmark_started(&self) -> io::Result<()> {
        fs::remove_file(self.path.join("started"))
    }

    pub(super) fn pid_recorded(&self) -> bool {
        self.path.join(PID_FILE).exists()
    }

    /// Records the instance's first process.
    pub(super) fn record_pid(&self, first: &Process) -> io::Result<()> {
        let record = first.record()?;
        crash::effect_blocking(Point::PidNoted, || put(&self.path.join(PID_FILE), record.as_bytes()))
    }

    /// Records how the process ended.
    pub(super) fn write_exit(&self, kind: ExitKind) -> io::Result<()> {
        let text = match kind {
            ExitKind::Code(code) => format!("code {code}\n"),
            ExitKind::Signal(signal) => format!("signal {signal}\n"),
            // A process ends with a code or by a signal; these kinds do not occur here.
            ExitKind::Unknown | ExitKind::Failed(_) => return Ok(()),
        };
        crash::effect_blocking(Point::ExitNoted, || put(&self.path.join("exit"), text.as_bytes()))
    }

    pub(super) fn read_exit(&self) -> ExitKind {
        let text = fs::read_to_string(self.path.join("exit")).unwrap_or_default();
        match text.trim().split_once(' ').map(|(kind, number)| (kind, number.parse())) {
            Some(("code", Ok(code))) => ExitKind::Code(code),
            Some(("signal", Ok(signal))) => ExitKind::Signal(signal),
            _ => ExitKind::Unknown,
        }
    }

    /// Removes the folder. It is renamed first, in one step, so that no other director sees a half-removed folder.
    pub(super) fn remove(&self, lock: Lock) -> io::Result<()> {
        // Another director may have died during a removal.
        remove(&self.removed)?;
        crash::effect_blocking(Point::InstanceRemoved, || fs::rename(&self.path, &self.removed))?;
        drop(lock);
        remove(&self.removed)
    }
}

/// Writes a file with mode 0600 atomically: under another name first, then a rename.
fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The mode takes effect only when the file is created.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    fs::rename(&temporary, path)
}

/// Removes a folder that another director may be removing at the same time.
fn remove(path: &Path) -> io::Result<()> {
    loop {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => match fs::symlink_metadata(path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => {}
            },
            result => return result,
        }
    }
}
