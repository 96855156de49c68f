//! Time and ids. Deciders take them as arguments; whoever talks to the outside takes them from a [`Env`].

use std::sync::{Arc, Mutex};

use time::OffsetDateTime;
use uuid::Uuid;

/// A clock and a source of ids.
pub trait Env: Clone + Send + Sync + 'static {
    /// The time.
    fn now(&self) -> OffsetDateTime;
    /// A new id, UUID v7.
    fn id(&self) -> Uuid;
}

/// The machine's clock and randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Env for System {
    #[expect(clippy::disallowed_methods, reason = "this is the adapter that reads the clock")]
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the adapter that draws ids")]
    fn id(&self) -> Uuid {
        Uuid::now_v7()
    }
}

/// A clock that stands until it is moved, and ids that count.
#[derive(Debug, Clone)]
pub struct Simulated(Arc<Mutex<(OffsetDateTime, u64)>>);

impl Simulated {
    /// A world at a time.
    pub fn at(now: OffsetDateTime) -> Self {
        Self(Arc::new(Mutex::new((now, 0))))
    }

    /// Moves the clock on.
    pub fn advance(&self, by: time::Duration) {
        self.state().0 += by;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, (OffsetDateTime, u64)> {
        // A panic of another holder leaves nothing half done: both fields are plain numbers.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Env for Simulated {
    fn now(&self) -> OffsetDateTime {
        self.state().0
    }

    fn id(&self) -> Uuid {
        let mut state = self.state();
        state.1 += 1;
        let millis = u64::try_from(state.0.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &counter_bytes(state.1)).into_uuid()
    }
}

fn counter_bytes(count: u64) -> [u8; 10] {
    let mut bytes = [0; 10];
    for (to, from) in bytes.iter_mut().skip(2).zip(count.to_be_bytes()) {
        *to = from;
    }
    bytes
}
