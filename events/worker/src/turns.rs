//! Lets the requests of one player run one at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use garage_events::id::PlayerId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The maximum number of requests of one player that wait for their turn. A client has few requests in progress at the
/// same time, so more of them are a flood.
pub const MAX_WAITING: usize = 32;

/// The players with a request, each with those that wait. Clones share it. Players without a request take no memory.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<HashMap<PlayerId, Line>>>);

/// The requests of one player.
#[derive(Debug)]
struct Line {
    /// Has one permit: the turn. Those that wait get it in the order in which they began to wait.
    turn: Arc<Semaphore>,
    /// The request whose turn it is, and those that wait.
    requests: usize,
}

/// [`MAX_WAITING`] requests of the player already wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_WAITING} requests of the player wait already")]
pub struct TooMany;

/// A request in the line of its player. Dropping it takes the request out of the line.
#[derive(Debug)]
pub struct Waiting {
    turns: Turns,
    player: PlayerId,
    /// See [`Line::turn`].
    turn: Arc<Semaphore>,
}

/// The player's turn. It ends when this is dropped.
#[derive(Debug)]
pub struct Turn {
    // The permit comes first, so that it is returned before the line can be removed.
    _permit: Option<OwnedSemaphorePermit>,
    _waiting: Waiting,
}

impl Turns {
    /// Puts a request in the line of `player`.
    ///
    /// # Errors
    /// [`TooMany`]
    pub fn enter(&self, player: &PlayerId) -> Result<Waiting, TooMany> {
        let mut lines = self.lines();
        let new = || Line { turn: Arc::new(Semaphore::new(1)), requests: 0 };
        let line = lines.entry(player.clone()).or_insert_with(new);
        if line.requests > MAX_WAITING {
            return Err(TooMany);
        }
        line.requests += 1;
        Ok(Waiting { turns: self.clone(), player: player.clone(), turn: Arc::clone(&line.turn) })
    }

    /// Whether no player has a request.
    pub fn is_empty(&self) -> bool {
        self.lines().is_empty()
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<PlayerId, Line>> {
        // A panic under the lock cannot leave a line half changed: each change is one addition or one removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Waits for the request's turn. The caller limits the time.
    pub async fn turn(self) -> Turn {
        // There is always a permit: the semaphore is never closed.
        let permit = Arc::clone(&self.turn).acquire_owned().await.ok();
        Turn { _permit: permit, _waiting: self }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut lines = self.turns.lines();
        if let Some(line) = lines.get_mut(&self.player) {
            line.requests -= 1;
            if line.requests == 0 {
                lines.remove(&self.player);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::join_all};

    use super::*;

    fn player(name: &str) -> PlayerId {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn one_request_of_a_player_has_the_turn_and_other_players_do_not_wait() {
        let turns = Turns::default();
        let (ann, bob) = (player("ann"), player("bob"));
        let first = turns.enter(&ann).unwrap().turn().await;
        let mut second = Box::pin(turns.enter(&ann).unwrap().turn());
        assert!(second.as_mut().now_or_never().is_none());
        let other = turns.enter(&bob).unwrap().turn().now_or_never().unwrap();
        drop((first, other));
        drop(second.await);
        assert!(turns.is_empty(), "nothing is kept for players without a request");
    }

    #[tokio::test]
    async fn a_request_beyond_the_limit_is_refused_and_those_that_wait_get_their_turn() {
        let turns = Turns::default();
        let ann = player("ann");
        let first = turns.enter(&ann).unwrap().turn().await;
        let wait = || Box::pin(turns.enter(&ann).unwrap().turn());
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| wait()).collect();
        assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
        assert_eq!(turns.enter(&ann).unwrap_err(), TooMany);
        // A request that no longer waits makes room for another one.
        waiting.pop();
        waiting.push(wait());
        assert!(waiting.last_mut().unwrap().as_mut().now_or_never().is_none());
        drop(first);
        join_all(waiting.into_iter().map(|one| async { drop(one.await) })).await;
        assert!(turns.is_empty());
    }
}
