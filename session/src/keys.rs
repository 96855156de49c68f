//! RSA keys for game servers, generated in advance: generating one takes 50 to 100 ms of CPU time.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::Context;
use garage_events::deadline::{Ended, receive};
pub use garage_keys::GameKey;
use tokio::{
    sync::{Mutex, mpsc},
    time::timeout,
};

/// How long to wait for a key. Then the message is delivered again.
const TAKE_TIMEOUT: Duration = Duration::from_secs(20);

/// A pool of generated keys. Clones share it.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Mutex<mpsc::Receiver<GameKey>>>);

impl Pool {
    /// Starts to fill a pool of `size` keys on its own thread. The future ends when all clones of the pool are dropped.
    /// It fails if a key cannot be generated.
    pub fn start(size: u16) -> (Self, impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        let (fill, keys) = mpsc::channel(usize::from(size.max(1)));
        let filling = tokio::task::spawn_blocking(move || {
            loop {
                let key = GameKey::generate().context("cannot generate a key for a game server")?;
                // Blocks while the pool is full. Fails when all clones of the pool are dropped.
                if fill.blocking_send(key).is_err() {
                    return Ok(());
                }
            }
        });
        (Self(Arc::new(Mutex::new(keys))), async move { filling.await.context("the key generator panicked")? })
    }

    /// Takes a key. Waits for the generator if the pool is empty.
    ///
    /// # Errors
    /// If the generator has stopped, or no key is ready in time.
    pub async fn take(&self) -> anyhow::Result<GameKey> {
        let take = async { receive(&mut *self.0.lock().await, TAKE_TIMEOUT).await };
        // Those who wait for the lock have the same limit.
        let taken = timeout(TAKE_TIMEOUT, take).await.unwrap_or(Err(Ended::TimedOut));
        taken.context("no key for a game server: the key generator is too slow or has stopped; see GARAGE_KEY_POOL")
    }
}
