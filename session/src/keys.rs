//! RSA keys for game servers, generated in advance: generating one takes 50 to 100 ms of CPU time.
//!
//! Two threads generate keys, and neither of them serves requests. One fills the pool at the lowest CPU priority, so
//! that it uses only time that nobody else needs. The other one has normal priority, and works only while a session
//! waits for a key.

use std::{
    collections::VecDeque,
    future::Future,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
pub use garage_keys::GameKey;
use tokio::{sync::oneshot, time::timeout};

/// How long to wait for a key if the pool is empty. It is many times as long as a key takes.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The lowest priority of a thread.
const LOWEST: i32 = 19;

/// A pool of generated keys. Clones share it.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Handle>);

/// Stops the threads when the last clone of the pool is dropped.
#[derive(Debug)]
struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a thread may have something to do.
    work: Condvar,
    size: usize,
}

#[derive(Debug, Default)]
struct State {
    keys: VecDeque<GameKey>,
    /// Those who wait for a key, in order. A waiter that has timed out is dropped when its turn comes.
    waiting: VecDeque<oneshot::Sender<GameKey>>,
    /// No key is needed any more.
    stopped: bool,
}

impl State {
    fn is_awaited(&mut self) -> bool {
        self.waiting.retain(|waiter| !waiter.is_closed());
        !self.waiting.is_empty()
    }
}

impl Pool {
    /// Starts to fill a pool of `size` keys. The future ends when all clones of the pool are dropped. It fails if a key
    /// cannot be generated.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn start(size: u16) -> anyhow::Result<(Self, impl Future<Output = anyhow::Result<()>> + Send + 'static)> {
        let size = usize::from(size.max(1));
        let shared = Arc::new(Shared { state: Mutex::default(), work: Condvar::new(), size });
        metrics::gauge!("garage_key_pool_capacity").set(as_f64(size));
        metrics::gauge!("garage_key_pool").set(0.0);
        let filling = spawn(Role::Fill, &shared)?;
        let helping = spawn(Role::Help, &shared)?;
        let ended = async move {
            futures::try_join!(filling, helping)?;
            Ok(())
        };
        Ok((Self(Arc::new(Handle(shared))), ended))
    }

    /// Takes a key. If the pool is empty, waits until one is generated.
    ///
    /// # Errors
    /// If no key is generated in time.
    pub async fn take(&self) -> anyhow::Result<GameKey> {
        let Handle(shared) = self.0.as_ref();
        let key = {
            let mut state = shared.state();
            ensure!(!state.stopped, "the key generator has stopped");
            match state.keys.pop_front() {
                Some(key) => {
                    shared.report(&state);
                    Ok(key)
                }
                None => {
                    let (give, receive) = oneshot::channel();
                    state.waiting.push_back(give);
                    Err(receive)
                }
            }
        };
        shared.work.notify_all();
        match key {
            Ok(key) => Ok(key),
            Err(receive) => {
                metrics::counter!("garage_key_waits_total").increment(1);
                let received = timeout(MAX_WAIT, receive).await;
                let received = received.with_context(|| format!("no key within {} s", MAX_WAIT.as_secs()))?;
                received.context("the key generator has stopped")
            }
        }
    }

    /// The number of keys in the pool.
    pub fn level(&self) -> usize {
        self.0.0.state().keys.len()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, state: &State) {
        metrics::gauge!("garage_key_pool").set(as_f64(state.keys.len()));
    }

    fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        state.waiting.clear();
        self.work.notify_all();
    }

    /// Gives a key to the first waiter, or else adds it to the pool.
    fn put(&self, mut key: GameKey) {
        let mut state = self.state();
        while let Some(waiter) = state.waiting.pop_front() {
            match waiter.send(key) {
                Ok(()) => return,
                Err(refused) => key = refused,
            }
        }
        state.keys.push_back(key);
        self.report(&state);
    }

    /// Generates keys whenever the thread's role needs one, until the pool is stopped.
    fn generate(&self, role: Role) -> anyhow::Result<()> {
        loop {
            let mut state = self.state();
            loop {
                if state.stopped {
                    return Ok(());
                }
                let is_short = role == Role::Fill && state.keys.len() < self.size;
                if is_short || state.is_awaited() {
                    break;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            drop(state);
            self.put(GameKey::generate().context("cannot generate a key for a game server")?);
        }
    }
}

/// What a thread generates keys for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// For the pool, at the lowest priority.
    Fill,
    /// For those who wait, at normal priority.
    Help,
}

/// Starts a thread that generates keys. The future ends with the thread.
fn spawn(role: Role, shared: &Arc<Shared>) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + use<>> {
    let (end, ended) = oneshot::channel();
    let shared = Arc::clone(shared);
    let name = match role {
        Role::Fill => "key-pool",
        Role::Help => "key-help",
    };
    let generate = move || {
        // On Linux, this changes only the calling thread.
        if role == Role::Fill
            && let Err(error) = rustix::process::nice(LOWEST)
        {
            tracing::warn!(%error, "cannot lower the priority of the thread that fills the key pool");
        }
        let outcome = shared.generate(role);
        // Those who wait must learn that no key comes.
        shared.stop();
        let _ = end.send(outcome);
    };
    thread::Builder::new().name(name.into()).spawn(generate).context("cannot start the key generator")?;
    Ok(async move { ended.await.map_err(|_closed| anyhow!("the key generator panicked"))? })
}

fn as_f64(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}
