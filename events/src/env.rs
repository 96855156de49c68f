//! Clock and id source. Deciders take times and ids as arguments; adapters get them from an [`Env`].

use std::sync::{Arc, Mutex};

use time::OffsetDateTime;
use uuid::Uuid;

/// A clock and a source of ids.
pub trait Env: Clone + Send + Sync + 'static {
    /// The current time, in UTC.
    fn now(&self) -> OffsetDateTime;
    /// A new id: a UUID v7.
    fn id(&self) -> Uuid;
}

/// The system's clock and random number generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Env for System {
    #[expect(clippy::disallowed_methods, reason = "this is the adapter that reads the clock")]
    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the adapter that generates ids")]
    fn id(&self) -> Uuid {
        Uuid::now_v7()
    }
}

/// For tests: a clock that only moves when a test advances it, and ids from a counter.
#[derive(Debug, Clone)]
pub struct Simulated(Arc<Mutex<(OffsetDateTime, u64)>>);

impl Simulated {
    /// Creates an environment whose clock shows `now`.
    pub fn at(now: OffsetDateTime) -> Self {
        Self(Arc::new(Mutex::new((now, 0))))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: time::Duration) {
        self.state().0 += by;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, (OffsetDateTime, u64)> {
        // A poisoned lock is still consistent: both fields are plain values, and each is changed in one step.
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
