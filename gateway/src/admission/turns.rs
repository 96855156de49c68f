//! The commands of one player run one after the other, in the order of their arrival.
//!
//! A command decides based on the player's last event. If several commands ran at the same time, only one could be
//! stored, and the others would have to decide again. When they run one after the other, each decides once.
//!
//! - A command that waits is dropped when its client disconnects. A command that runs is a task of its own. It
//!   continues without its client, and the next command starts after it.
//! - Equal commands with the same idempotency key ([`Keyed`]) share one run: the later ones wait for the answer of the
//!   first. The shared run keeps its place as long as one of their clients is connected.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use garage_events::{id::PlayerId, svc::IdempotencyKey};
use garage_worker::turns::TooMany;
use hyper::Method;
use tokio::time::timeout;

use super::Limit;
use crate::{
    limits::{DEADLINE, RETRY_WAITING},
    problem::Problem,
};

/// What identifies a command with an idempotency key. Only repetitions of the same request are equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Keyed {
    pub(crate) key: IdempotencyKey,
    /// Who sends it: the player, or the backend that queues a group.
    pub(crate) sender: PlayerId,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Bytes,
}

/// One run of a command, which returns its answer. The tasks of the clients that wait for it poll it.
type Run<T> = BoxFuture<'static, Result<T, Problem>>;

/// The commands of all players: those on tickets, or those on cars and items.
pub(crate) struct Turns<T> {
    limit: Limit,
    turns: garage_worker::turns::Turns,
    runs: Runs<T>,
    /// The number of the next run.
    next: AtomicU64,
}

/// The runs of commands with an idempotency key that wait or run, by the player in whose turn they run.
type Runs<T> = Arc<Mutex<HashMap<(PlayerId, Keyed), Numbered<T>>>>;

/// A run with its number.
type Numbered<T> = (u64, WeakShared<Run<T>>);

/// The entry of a command in [`Turns::runs`]. Dropping it removes the entry.
struct Entry<T: Clone> {
    runs: Runs<T>,
    key: (PlayerId, Keyed),
    number: u64,
}

impl<T: Clone + Send + Sync + 'static> Turns<T> {
    pub(super) fn new(limit: Limit) -> Self {
        Self { limit, turns: garage_worker::turns::Turns::default(), runs: Runs::default(), next: AtomicU64::new(0) }
    }

    /// Runs a command of a player after the player's earlier ones. If an equal command already waits or runs, waits for
    /// its answer instead.
    ///
    /// # Errors
    /// A 429 if too many commands of the player wait, a 503 if the command does not end in time.
    pub(crate) async fn run(
        &self,
        player: &PlayerId,
        keyed: Option<Keyed>,
        command: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Problem> {
        self.join(player, keyed, command)?.await
    }

    fn join(
        &self,
        player: &PlayerId,
        keyed: Option<Keyed>,
        command: impl Future<Output = T> + Send + 'static,
    ) -> Result<Shared<Run<T>>, Problem> {
        let mut runs = lock(&self.runs);
        let key = keyed.map(|keyed| (player.clone(), keyed));
        if let Some(run) = key.as_ref().and_then(|key| runs.get(key)?.1.upgrade()) {
            return Ok(run);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let waiting =
            self.turns.enter(player).map_err(|why: TooMany| Problem::limited(&self.limit, why, RETRY_WAITING))?;
        let entry = key.clone().map(|key| Entry { runs: Arc::clone(&self.runs), key, number });
        let run = async move {
            let turn = waiting.turn().await;
            // While the command runs, a repetition finds its run even if all clients have disconnected.
            let run = entry.as_ref().and_then(Entry::run);
            let running = tokio::spawn(async move {
                let answer = timeout(DEADLINE, command).await;
                // Dropped before the client gets its answer, so that it can then send another command at once.
                drop((entry, turn, run));
                answer
            });
            match running.await {
                Ok(Ok(answer)) => Ok(answer),
                // The command timed out or panicked.
                _ => Err(Problem::unavailable("the command did not end in time; try again")),
            }
        };
        let run = run.boxed().shared();
        if let (Some(key), Some(weak)) = (key, run.downgrade()) {
            runs.insert(key, (number, weak));
        }
        Ok(run)
    }
}

impl<T: Clone> Entry<T> {
    /// The run of this command, which equal commands share.
    fn run(&self) -> Option<Shared<Run<T>>> {
        let runs = lock(&self.runs);
        let (_, run) = runs.get(&self.key)?;
        run.upgrade()
    }
}

impl<T: Clone> Drop for Entry<T> {
    fn drop(&mut self) {
        let mut runs = lock(&self.runs);
        if runs.get(&self.key).is_some_and(|(number, _)| *number == self.number) {
            runs.remove(&self.key);
        }
    }
}

fn lock<T>(runs: &Runs<T>) -> MutexGuard<'_, HashMap<(PlayerId, Keyed), Numbered<T>>> {
    // A poisoned lock is still consistent: nothing panics between two changes.
    runs.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
