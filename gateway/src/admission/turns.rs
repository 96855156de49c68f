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
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use garage_events::{id::PlayerId, svc::IdempotencyKey};
use hyper::Method;
use tokio::{sync::Semaphore, time::timeout};

use super::Limit;
use crate::{
    limits::{DEADLINE, MAX_WAITING, RETRY_WAITING},
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

/// The commands of all players: those on tickets, or those on cars and items. Players without a command take no memory.
pub(crate) struct Turns<T> {
    limit: Limit,
    players: Players<T>,
}

type Players<T> = Arc<Mutex<HashMap<PlayerId, Commands<T>>>>;

/// The commands of one player.
struct Commands<T> {
    /// It has one permit, and the command that holds it runs. Commands get it in the order of their arrival.
    turn: Arc<Semaphore>,
    /// How many commands wait or run.
    count: usize,
    /// The number of the next run.
    next: u64,
    /// The runs of commands with an idempotency key, each with its number.
    keyed: HashMap<Keyed, (u64, WeakShared<Run<T>>)>,
}

/// A command that waits or runs. Dropping it makes room for another one.
struct Place<T: Clone> {
    players: Players<T>,
    player: PlayerId,
    keyed: Option<Keyed>,
    number: u64,
}

impl<T: Clone + Send + Sync + 'static> Turns<T> {
    pub(super) fn new(limit: Limit) -> Self {
        Self { limit, players: Players::default() }
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
        let mut players = lock(&self.players);
        let commands = players.entry(player.clone()).or_default();
        if let Some(run) = keyed.as_ref().and_then(|keyed| commands.keyed.get(keyed)?.1.upgrade()) {
            return Ok(run);
        }
        if commands.count > MAX_WAITING {
            drop(players);
            let why = format_args!("{MAX_WAITING} commands of the player wait already");
            return Err(Problem::limited(&self.limit, why, RETRY_WAITING));
        }
        let number = commands.next;
        (commands.count, commands.next) = (commands.count + 1, number + 1);
        let turn = Arc::clone(&commands.turn);
        let place = Place { players: Arc::clone(&self.players), player: player.clone(), keyed: keyed.clone(), number };
        let run = async move {
            let turn = turn.acquire_owned().await;
            // While the command runs, a repetition finds its run even if all clients have disconnected.
            let run = place.run();
            let running = tokio::spawn(async move {
                let answer = timeout(DEADLINE, command).await;
                // Dropped before the client gets its answer, so that it can then send another command at once.
                drop(place);
                drop((turn, run));
                answer
            });
            match running.await {
                Ok(Ok(answer)) => Ok(answer),
                // The command timed out or panicked.
                _ => Err(Problem::unavailable("the command did not end in time; try again")),
            }
        };
        let run = run.boxed().shared();
        if let (Some(keyed), Some(weak)) = (keyed, run.downgrade()) {
            commands.keyed.insert(keyed, (number, weak));
        }
        Ok(run)
    }
}

impl<T: Clone> Place<T> {
    /// The run of this command, if equal commands can share it.
    fn run(&self) -> Option<Shared<Run<T>>> {
        let players = lock(&self.players);
        let (_, run) = players.get(&self.player)?.keyed.get(self.keyed.as_ref()?)?;
        run.upgrade()
    }
}

impl<T: Clone> Drop for Place<T> {
    fn drop(&mut self) {
        let mut players = lock(&self.players);
        let Some(commands) = players.get_mut(&self.player) else { return };
        commands.count -= 1;
        if let Some(keyed) = &self.keyed
            && commands.keyed.get(keyed).is_some_and(|(number, _)| *number == self.number)
        {
            commands.keyed.remove(keyed);
        }
        if commands.count == 0 {
            players.remove(&self.player);
        }
    }
}

// Not derived, because that would require `T: Default`.
impl<T> Default for Commands<T> {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), count: 0, next: 0, keyed: HashMap::new() }
    }
}

fn lock<T>(players: &Players<T>) -> MutexGuard<'_, HashMap<PlayerId, Commands<T>>> {
    // A poisoned lock is still consistent: nothing panics between two changes.
    players.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
