//! Lets the requests of one player run one at a time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use garage_events::id::PlayerId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The maximum number of requests of one player that wait for their turn. A client has few requests in progress at the
/// same time, so more of them are a flood.
pub(super) const MAX_WAITING: usize = 32;

/// The players with a request, each with those who wait. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<PlayerId, Line>>>);

/// The requests of one player.
#[derive(Debug)]
struct Line {
    /// Has one permit: the turn. Those who wait get it in the order of their arrival.
    turn: Arc<Semaphore>,
    /// The request whose turn it is, and those that wait.
    requests: usize,
}

/// [`MAX_WAITING`] requests of the player already wait.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

/// A request in the line of its player. Dropping it takes the request out of the line.
#[derive(Debug)]
struct Place {
    turns: Turns,
    player: PlayerId,
}

/// The player's turn. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    // The permit comes first, so that it is returned before the line can be removed.
    _permit: OwnedSemaphorePermit,
    _place: Place,
}

impl Turns {
    /// Waits for the turn of a request of `player`. The caller limits the time.
    ///
    /// # Errors
    /// [`TooMany`]
    pub(super) async fn wait(&self, player: &PlayerId) -> Result<Turn, TooMany> {
        let (place, turn) = self.line_up(player)?;
        // The semaphore is never closed, so there is no other error.
        let Ok(permit) = turn.acquire_owned().await else { return Err(TooMany) };
        Ok(Turn { _permit: permit, _place: place })
    }

    fn line_up(&self, player: &PlayerId) -> Result<(Place, Arc<Semaphore>), TooMany> {
        let mut lines = self.lines();
        let new = || Line { turn: Arc::new(Semaphore::new(1)), requests: 0 };
        let line = lines.entry(player.clone()).or_insert_with(new);
        if line.requests > MAX_WAITING {
            return Err(TooMany);
        }
        line.requests += 1;
        Ok((Place { turns: self.clone(), player: player.clone() }, Arc::clone(&line.turn)))
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<PlayerId, Line>> {
        // A panic under the lock cannot leave a line half changed: each change is one addition or one removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
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
        let first = turns.wait(&ann).await.unwrap();
        let mut second = Box::pin(turns.wait(&ann));
        assert!(second.as_mut().now_or_never().is_none());
        let other = turns.wait(&bob).now_or_never().unwrap().unwrap();
        drop((first, other));
        drop(second.await.unwrap());
        assert!(turns.lines().is_empty(), "nothing is kept for players without a request");
    }

    #[tokio::test]
    async fn a_request_beyond_the_limit_is_refused_and_those_that_wait_get_their_turn() {
        let turns = Turns::default();
        let ann = player("ann");
        let first = turns.wait(&ann).await.unwrap();
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(turns.wait(&ann))).collect();
        assert!(waiting.iter_mut().all(|one| one.as_mut().now_or_never().is_none()));
        assert_eq!(turns.wait(&ann).await.unwrap_err(), TooMany);
        // A request that no longer waits makes room for another one.
        waiting.pop();
        waiting.push(Box::pin(turns.wait(&ann)));
        assert!(waiting.last_mut().unwrap().as_mut().now_or_never().is_none());
        drop(first);
        let got = join_all(waiting.into_iter().map(|one| async { one.await.map(drop) })).await;
        assert!(got.iter().all(Result::is_ok));
        assert!(turns.lines().is_empty());
    }
}
