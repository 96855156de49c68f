//! An instance's folder, and the lock that makes one director at a time work on it.

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
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use time::OffsetDateTime;

use super::config_of;
use crate::backend::{How, Name};

/// How long somebody else may hold a lock: removing takes 4 s at most, see [`super::proc`].
const LOCK: Duration = Duration::from_secs(6);

const POLL: Duration = Duration::from_millis(5);

/// Folders on their way out, not yet emptied.
const GONE: &str = ".gone-";

/// Makes the folder of instances, for its owner alone, and tells its path without symbolic links.
pub(super) fn root(path: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    path.canonicalize()
}

/// The instances that have a folder. What another director left half removed is removed here.
pub(super) fn names(root: &Path) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let file = entry.file_name();
        let Some(text) = file.to_str() else { continue };
        if text.strip_prefix(GONE).is_some_and(|name| name.parse::<Name>().is_ok()) {
            remove(&entry.path())?;
        } else if let Ok(name) = text.parse()
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// Held by who makes or removes an instance. It is released with the value, and with the process.
pub(super) type Lock = Flock<File>;

/// What became of an attempt to lock.
pub(super) enum LockAttempt {
    /// It is ours.
    Here(Lock),
    /// Somebody else has it.
    Elsewhere,
    /// There is no such folder, or no longer.
    Gone,
}

/// An instance's folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    config: PathBuf,
    gone: PathBuf,
}

impl Folder {
    pub(super) fn of(root: &Path, name: Name) -> Self {
        let (path, gone) = (root.join(name.to_string()), root.join(format!("{GONE}{name}")));
        Self { path, config: config_of(root, name), gone }
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

    /// Makes the folder if need be, and locks it.
    pub(super) fn claim(&self) -> io::Result<Lock> {
        let until = Instant::now() + LOCK;
        loop {
            let made = || DirBuilder::new().mode(0o700).create(&self.path);
            match crash::effect_blocking(Point::InstanceClaimed, made) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if let Some(lock) = self.hold_until(until)? {
                return Ok(lock);
            }
        }
    }

    /// Locks the folder if it is there.
    pub(super) fn hold(&self) -> io::Result<Option<Lock>> {
        self.hold_until(Instant::now() + LOCK)
    }

    fn hold_until(&self, until: Instant) -> io::Result<Option<Lock>> {
        loop {
            match self.try_hold()? {
                LockAttempt::Here(lock) => return Ok(Some(lock)),
                LockAttempt::Gone => return Ok(None),
                LockAttempt::Elsewhere if Instant::now() >= until => {
                    return Err(io::Error::new(ErrorKind::TimedOut, "another director holds the instance's lock"));
                }
                LockAttempt::Elsewhere => sleep(POLL),
            }
        }
    }

    /// Locks the folder unless somebody else has.
    pub(super) fn try_hold(&self) -> io::Result<LockAttempt> {
        let path = self.path.join("lock");
        let file = match OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(LockAttempt::Gone),
            Err(error) => return Err(error),
        };
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(LockAttempt::Elsewhere),
            Err((_, error)) => return Err(error.into()),
        };
        // Who had it may have removed the folder while this one waited; another one may be there by now, under another
        // lock.
        let same = match fs::metadata(&path) {
            Ok(there) => {
                let here = lock.metadata()?;
                (there.dev(), there.ino()) == (here.dev(), here.ino())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(LockAttempt::Gone),
            Err(error) => return Err(error),
        };
        Ok(if same { LockAttempt::Here(lock) } else { LockAttempt::Elsewhere })
    }

    /// When it was made: the lock is the first thing in it, and is never written to.
    pub(super) fn created(&self) -> Option<OffsetDateTime> {
        let made = fs::metadata(self.path.join("lock")).or_else(|_| fs::metadata(&self.path));
        made.and_then(|made| made.modified()).ok().map(OffsetDateTime::from)
    }

    /// Writes the configuration, whole or not at all.
    pub(super) fn write_config(&self, config: &game::Config) -> io::Result<()> {
        let config = serde_json::to_vec(config)?;
        crash::effect_blocking(Point::InstanceConfigured, || put(&self.config, &config))
    }

    /// Opens the file that the process writes to.
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

    /// Notes how the process ended.
    pub(super) fn write_exit(&self, how: How) -> io::Result<()> {
        let text = match how {
            How::Code(code) => format!("code {code}\n"),
            How::Signal(signal) => format!("signal {signal}\n"),
            // No process of this machine is ended by anything but a code or a signal.
            How::Unknown | How::Failed(_) => return Ok(()),
        };
        crash::effect_blocking(Point::ExitNoted, || put(&self.path.join("exit"), text.as_bytes()))
    }

    pub(super) fn read_exit(&self) -> How {
        let text = fs::read_to_string(self.path.join("exit")).unwrap_or_default();
        match text.trim().split_once(' ').map(|(kind, number)| (kind, number.parse())) {
            Some(("code", Ok(code))) => How::Code(code),
            Some(("signal", Ok(signal))) => How::Signal(signal),
            _ => How::Unknown,
        }
    }

    /// Removes it: out of the way first, in one step, so that nobody meets a folder that is half removed.
    pub(super) fn remove(&self, lock: Lock) -> io::Result<()> {
        // Of a director that died in the midst of this.
        remove(&self.gone)?;
        crash::effect_blocking(Point::InstanceRemoved, || fs::rename(&self.path, &self.gone))?;
        drop(lock);
        remove(&self.gone)
    }
}

/// Writes a file of mode 0600 whole: under another name first.
fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let other = path.with_extension("new");
    match fs::remove_file(&other) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A mode is given at creation only.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&other)?;
    file.write_all(content)?;
    fs::rename(&other, path)
}

/// Removes a folder that somebody else may be removing too.
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
