//! Finds and ends the processes of instances, with the help of `/proc`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use super::config_of;
use crate::backend::Name;

/// The time from SIGTERM to SIGKILL, and again from SIGKILL until the removal fails.
const GRACE: Duration = Duration::from_secs(2);

const POLL: Duration = Duration::from_millis(20);

/// The living processes of instances. They run as the director's user, and their arguments are `--config` and the path
/// of an instance's configuration.
pub(super) fn running(root: &Path) -> io::Result<BTreeMap<Name, Vec<Process>>> {
    let mut running = BTreeMap::<Name, Vec<Process>>::new();
    for pid in pids()? {
        if let Some(name) = instance(root, pid)
            && let Some(process) = Process::of(pid)
        {
            running.entry(name).or_default().push(process);
        }
    }
    Ok(running)
}

/// Whether this process shows the command line of this instance.
pub(super) fn is(root: &Path, name: Name, pid: u32) -> bool {
    i32::try_from(pid).ok().and_then(|pid| instance(root, pid)) == Some(name)
}

/// A process that is not a zombie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    group: i32,
}

impl Process {
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The format is `pid (name) state parent group …`. The name may contain any character, even parentheses.
        let (_, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let group = fields.nth(1)?.parse().ok()?;
        // A zombie has exited, but its parent has not read its exit status yet.
        (!matches!(state, "Z" | "X")).then_some(Self { pid, group })
    }
}

/// Lists process ids. A process may exit while the list is read, so a missing process is not an error.
fn pids() -> io::Result<impl Iterator<Item = i32>> {
    Ok(fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

fn instance(root: &Path, pid: i32) -> Option<Name> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut arguments = line.split(|byte| *byte == 0);
    arguments.find(|argument| *argument == b"--config")?;
    let path = Path::new(OsStr::from_bytes(arguments.next()?));
    let name = path.strip_prefix(root).ok()?.parent()?.to_str()?.parse().ok()?;
    // The path must match exactly, and the process must belong to this user: a process of another user could imitate an
    // instance's arguments.
    let ours = || fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == geteuid().as_raw());
    (path == config_of(root, name) && ours()).then_some(name)
}

/// Ends an instance's processes with SIGTERM, and with SIGKILL after [`GRACE`]. This includes their child
/// processes that are still in the same process group.
pub(super) fn end(root: &Path, name: Name) -> io::Result<()> {
    let Some(found) = running(root)?.remove(&name) else { return Ok(()) };
    let pids: BTreeSet<i32> = found.iter().map(|process| process.pid).collect();
    // Signal only groups that one of these processes leads. Any other group may contain unrelated processes.
    let groups: BTreeSet<i32> =
        found.iter().map(|process| process.group).filter(|group| pids.contains(group)).collect();
    let alive = || -> io::Result<Vec<Process>> {
        let belongs = |process: &Process| pids.contains(&process.pid) || groups.contains(&process.group);
        Ok(self::pids()?.filter_map(Process::of).filter(belongs).collect())
    };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for process in alive()? {
            match kill(Pid::from_raw(process.pid), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let deadline = Instant::now() + GRACE;
        while !alive()?.is_empty() {
            if Instant::now() >= deadline {
                break;
            }
            sleep(POLL);
        }
    }
    if alive()?.is_empty() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the process is still alive after SIGKILL"))
}
