//! Keeps a stack running: restarts a process that has ended, and a nats-server that no longer stores messages.

use std::{collections::HashMap, path::Path, process::ExitStatus, time::Duration};

use garage_worker::Shutdown;
use nix::sys::statvfs::statvfs;
use tokio::time::{Instant, sleep};

use crate::{
    process::Process,
    servers::{Nats, nats::Node},
    workers::Stack,
};

/// Interval between looks at the processes.
const INTERVAL: Duration = Duration::from_millis(500);

/// The delay before the first restart of a process. It doubles with each restart, up to the longest delay.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// After a run of this length, the delay is the first one again.
const STEADY: Duration = Duration::from_secs(60);

/// The share of its disk that must be free before a nats-server with a write error is restarted, in percent. With less
/// room, it would soon fail again.
const FREE_PERCENT: u64 = 5;

/// Watches a stack until `shutdown`, and restarts what has ended. `say` gets a line about each change.
pub async fn supervise(stack: &mut Stack, shutdown: &Shutdown, say: impl Fn(String)) {
    let mut supervisor = Supervisor { restarts: HashMap::new(), say };
    let watching = async {
        loop {
            sleep(INTERVAL).await;
            for process in stack.processes() {
                supervisor.look(process);
            }
            supervisor.look_at_stores(&mut stack.nats).await;
        }
    };
    shutdown.run_until_cancelled(watching).await;
}

struct Supervisor<S> {
    /// By the name of the process.
    restarts: HashMap<String, Restarts>,
    say: S,
}

/// The restarts of one process.
struct Restarts {
    started: Instant,
    delay: Duration,
    /// When it is started again, if it has ended.
    due: Option<Instant>,
    /// Before this, it is not restarted because of a write error again.
    not_before: Option<Instant>,
    /// Whether it was said that its disk is full.
    said_full: bool,
}

impl Restarts {
    fn new() -> Self {
        Self { started: Instant::now(), delay: FIRST_DELAY, due: None, not_before: None, said_full: false }
    }

    /// The delay before the next restart.
    fn next_delay(&mut self, now: Instant) -> Duration {
        if now - self.started >= STEADY {
            self.delay = FIRST_DELAY;
        }
        let delay = self.delay;
        self.delay = LONGEST_DELAY.min(delay * 2);
        delay
    }
}

impl<S: Fn(String)> Supervisor<S> {
    fn look(&mut self, process: &mut Process) {
        let ended = match process.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => Some(status),
            // An earlier restart has failed.
            Err(_) => None,
        };
        let now = Instant::now();
        let (name, log) = (process.name().to_owned(), process.log().display().to_string());
        let restarts = self.restarts.entry(name.clone()).or_insert_with(Restarts::new);
        match restarts.due {
            None => {
                let delay = restarts.next_delay(now);
                restarts.due = Some(now + delay);
                let how = ended.as_ref().map_or_else(|| "could not be started".to_owned(), ending);
                (self.say)(format!("{name} {how}; its log is {log}; restarting it in {} s", delay.as_secs()));
            }
            Some(due) if due <= now => {
                restarts.due = None;
                restarts.started = now;
                match process.restart() {
                    Ok(()) => (self.say)(format!("{name} was restarted")),
                    Err(error) => (self.say)(format!("{name} was not restarted: {error}")),
                }
            }
            Some(_) => {}
        }
    }

    /// Restarts each nats-server that had a write error, as soon as its disk has room.
    async fn look_at_stores(&mut self, nats: &mut Nats) {
        for node in nats.all_nodes() {
            if node.process_mut().is_running() && node.store_fault().await.is_some() {
                self.restart_store(node).await;
            }
        }
    }

    async fn restart_store(&mut self, node: &mut Node) {
        let now = Instant::now();
        let (name, store) = (node.process().name().to_owned(), node.store().display().to_string());
        let restarts = self.restarts.entry(name.clone()).or_insert_with(Restarts::new);
        if !has_room(node.store()) {
            if !std::mem::replace(&mut restarts.said_full, true) {
                (self.say)(format!("{name} stores nothing, because its disk is full; make room in {store}"));
            }
            return;
        }
        if restarts.not_before.is_some_and(|not_before| now < not_before) {
            return;
        }
        (self.say)(format!("{name} stores nothing since its disk was full, but there is room again; restarting it"));
        let process = node.process_mut();
        process.stop().await;
        let now = Instant::now();
        restarts.not_before = Some(now + restarts.next_delay(now));
        (restarts.started, restarts.said_full) = (now, false);
        if let Err(error) = process.restart() {
            (self.say)(format!("{name} was not restarted: {error}"));
        }
    }
}

/// For example `ended (exit status: 1)`.
fn ending(status: &ExitStatus) -> String {
    format!("ended ({status})")
}

/// Whether the file system of a folder has enough room. If that is unknown, the answer is yes: a restart does no harm.
fn has_room(folder: &Path) -> bool {
    statvfs(folder)
        .map_or(true, |disk| disk.blocks_available().saturating_mul(100) >= disk.blocks().saturating_mul(FREE_PERCENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_and_is_short_again_after_a_steady_run() {
        let mut restarts = Restarts::new();
        let now = restarts.started;
        let delays: Vec<_> = (0..7).map(|_| restarts.next_delay(now).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(restarts.next_delay(now + STEADY), FIRST_DELAY);
    }
}
