//! The processes of the game servers that a director runs on this machine.
//!
//! Each game server has a folder. A process belongs to the game server if one of these is true:
//!
//! - The variable [`FOLDER`] in its environment names the folder. The game server inherits it from the director, and
//!   passes it on to every process that it starts. So it does not matter which arguments a launcher passes on, or
//!   whether it starts the game server with `exec` or as a child. The variable is there from the first moment of a
//!   process, so a director that dies just after it has started one loses nothing.
//! - It is in the process group that the game server's first process leads. The file `pid` in the folder names that
//!   process. A process that removes the variable is found this way.
//!
//! The kernel uses a process id again. So the file also holds the time when the process started, and the id of the
//! machine's boot. If they differ, the file names no process. If the first process has ended, its id still names the
//! group as long as a process with the variable is in the group: the kernel does not use the id of a living group.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs,
    io::{self, ErrorKind},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

pub use nix::sys::signal::Signal;
use nix::{
    errno::Errno,
    sys::signal::kill,
    unistd::{Pid, geteuid},
};

/// The environment variable of a game server with the path of its folder.
pub const FOLDER: &str = "GARAGE_INSTANCE";

/// The file in a game server's folder that names its first process.
pub const PID_FILE: &str = "pid";

/// How long [`end`] waits after each signal.
pub const GRACE: Duration = Duration::from_secs(2);

const POLL: Duration = Duration::from_millis(20);

/// A process that has not ended. A zombie has: its parent has only not read its exit status yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// The process id.
    pub id: i32,
    group: i32,
    /// When it started, in ticks since the boot.
    started: u64,
}

impl Process {
    /// The process with this id.
    pub fn of(id: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // The format is `id (name) state parent group …`. The name may contain any character, even parentheses.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let group = fields.nth(1)?.parse().ok()?;
        let started = fields.nth(16)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { id, group, started })
    }

    /// Whether it leads its process group, as a game server's first process does.
    pub const fn leads(&self) -> bool {
        self.id == self.group
    }

    /// The content of the [`PID_FILE`].
    ///
    /// # Errors
    /// When the id of the boot cannot be read.
    pub fn record(&self) -> io::Result<String> {
        Ok(format!("{} {} {}\n", self.id, self.started, boot()?))
    }

    fn runs(&self) -> bool {
        Self::of(self.id).is_some_and(|now| now.started == self.started)
    }
}

/// The content of a [`PID_FILE`] of this boot.
struct Recorded {
    id: i32,
    started: u64,
}

impl Recorded {
    fn read(folder: &Path) -> Option<Self> {
        let text = fs::read_to_string(folder.join(PID_FILE)).ok()?;
        let mut fields = text.split_ascii_whitespace();
        let (id, started) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (fields.next()? == boot().ok()?).then_some(Self { id, started })
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// The processes of all game servers whose folders are in `root`, by folder. `root` has no symbolic links.
///
/// # Errors
/// When the processes or the folders cannot be listed.
pub fn running(root: &Path) -> io::Result<BTreeMap<PathBuf, BTreeSet<Process>>> {
    // A process may end while the list is read, so a missing process is not an error.
    let ids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let processes: Vec<Process> = ids.filter_map(Process::of).collect();
    let marked = |process: &Process| Some((*process, folder_of(root, process.id)?));
    let mut folders: BTreeMap<Process, PathBuf> = processes.iter().filter_map(marked).collect();
    let groups = groups(root, &processes, &folders)?;
    for process in processes {
        if let Some(folder) = groups.get(&process.group) {
            folders.entry(process).or_insert_with(|| folder.clone());
        }
    }
    let mut running = BTreeMap::<_, BTreeSet<_>>::new();
    for (process, folder) in folders {
        running.entry(folder).or_default().insert(process);
    }
    Ok(running)
}

/// The folder in the environment of a process of this user. Other users could imitate the variable.
fn folder_of(root: &Path, id: i32) -> Option<PathBuf> {
    let of_this_user = fs::metadata(format!("/proc/{id}")).is_ok_and(|entry| entry.uid() == geteuid().as_raw());
    let environment = of_this_user.then(|| fs::read(format!("/proc/{id}/environ")).ok())??;
    let mut variables = environment.split(|byte| *byte == 0);
    let folder = variables.find_map(|variable| variable.strip_prefix(FOLDER.as_bytes())?.strip_prefix(b"="))?;
    let folder = Path::new(OsStr::from_bytes(folder));
    (folder.parent() == Some(root)).then(|| folder.to_owned())
}

/// The process groups of game servers, by id.
fn groups(
    root: &Path,
    processes: &[Process],
    marked: &BTreeMap<Process, PathBuf>,
) -> io::Result<BTreeMap<i32, PathBuf>> {
    let mut groups: BTreeMap<_, _> = marked
        .iter()
        .filter(|(process, _)| process.leads())
        .map(|(process, folder)| (process.id, folder.clone()))
        .collect();
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(groups),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let folder = entry?.path();
        let Some(first) = Recorded::read(&folder) else { continue };
        let leads = |process: &Process| (process.id, process.started) == (first.id, first.started);
        let survives = || marked.iter().any(|(process, of)| process.group == first.id && *of == folder);
        if processes.iter().any(leads) || survives() {
            groups.insert(first.id, folder);
        }
    }
    Ok(groups)
}

/// Ends the processes of the game servers in `root` whose folder is `folder` or in it. Sends them these signals, one
/// after the other, and waits up to [`GRACE`] after each.
///
/// # Errors
/// When a process cannot be signalled, or survives all signals.
pub fn end(root: &Path, folder: &Path, signals: &[Signal]) -> io::Result<()> {
    let find = || -> io::Result<BTreeSet<Process>> {
        let running = running(root)?.into_iter().filter(|(of, _)| of.starts_with(folder));
        Ok(running.flat_map(|(_, processes)| processes).collect())
    };
    for signal in signals {
        let deadline = Instant::now() + GRACE;
        let mut signalled = BTreeSet::new();
        loop {
            // They may have started others meanwhile.
            let left = find()?;
            if left.is_empty() {
                return Ok(());
            }
            for process in left.difference(&signalled) {
                send(*signal, process)?;
            }
            signalled.extend(left);
            while signalled.iter().any(Process::runs) && Instant::now() < deadline {
                sleep(POLL);
            }
            if Instant::now() >= deadline {
                break;
            }
        }
    }
    let left: Vec<_> = find()?.iter().map(|process| process.id.to_string()).collect();
    if left.is_empty() {
        return Ok(());
    }
    let signal = signals.last().map_or("no signal", |signal| signal.as_str());
    let message = format!("still alive {} s after {signal}: process {}", GRACE.as_secs(), left.join(", "));
    Err(io::Error::new(ErrorKind::TimedOut, message))
}

fn send(signal: Signal, process: &Process) -> io::Result<()> {
    if !process.runs() {
        return Ok(());
    }
    match kill(Pid::from_raw(process.id), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(io::Error::new(
            io::Error::from(error).kind(),
            format!("cannot send {signal} to process {}: {}", process.id, error.desc()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::CommandExt,
        process::{Child, Command},
    };

    use garage_events::deadline::exit_blocking;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A process that leads its own group and is ended with the value.
    struct Sleeper(Child);

    impl Sleeper {
        fn start(folder: Option<&Path>) -> Self {
            let mut command = Command::new("sleep");
            command.arg("600").process_group(0).envs(folder.map(|folder| (FOLDER, folder)));
            Self(command.spawn().unwrap())
        }

        fn process(&self) -> Process {
            Process::of(self.0.id().try_into().unwrap()).unwrap()
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            exit_blocking(&mut self.0, LONG).unwrap();
        }
    }

    /// A folder of instances with the folder of one, which has this record.
    fn root(record: &str) -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().canonicalize().unwrap().join("game");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(PID_FILE), record).unwrap();
        (root, folder)
    }

    fn found(folder: &Path) -> Vec<Process> {
        let running = running(folder.parent().unwrap()).unwrap();
        assert!(running.keys().all(|of| of == folder), "{running:?}");
        running.into_values().flatten().collect()
    }

    #[test]
    fn a_process_is_found_by_its_environment_without_a_record() {
        let (_root, folder) = root("");
        let _other = Sleeper::start(Some(&folder.with_file_name("x").join("y")));
        let sleeper = Sleeper::start(Some(&folder));
        assert_eq!(found(&folder), [sleeper.process()]);
    }

    #[test]
    fn a_process_is_found_by_the_record_without_its_environment() {
        let sleeper = Sleeper::start(None);
        let (_root, folder) = root(&sleeper.process().record().unwrap());
        assert_eq!(found(&folder), [sleeper.process()]);
    }

    #[test]
    fn a_reused_process_id_is_not_found_and_not_ended() {
        let sleeper = Sleeper::start(None);
        let process = sleeper.process();
        let earlier = Process { started: process.started - 1, ..process }.record().unwrap();
        let of_another_boot = process.record().unwrap().replace(&boot().unwrap(), "00000000");
        for record in [earlier, of_another_boot, format!("{}\n", process.id), String::new()] {
            let (_root, folder) = root(&record);
            assert_eq!(found(&folder), []);
            end(folder.parent().unwrap(), &folder, &[Signal::SIGKILL]).unwrap();
        }
        assert!(process.runs());
    }

    #[test]
    fn a_process_that_survives_all_signals_is_an_error() {
        let (_root, folder) = root("");
        let sleeper = Sleeper::start(Some(&folder));
        let error = end(folder.parent().unwrap(), &folder, &[Signal::SIGCONT]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(error.to_string().contains(&sleeper.0.id().to_string()), "{error}");
    }
}
