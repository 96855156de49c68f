//! Slows down one connection.

use std::num::NonZeroU32;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter, clock::Clock};
use tokio::time::sleep;

/// A token bucket of one connection.
#[derive(Debug)]
pub(crate) struct Pace(DefaultDirectRateLimiter);

impl Pace {
    pub(crate) fn new(burst: NonZeroU32, per_second: NonZeroU32) -> Self {
        Self(RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst)))
    }

    /// Takes a token, if there is one.
    pub(crate) fn take(&self) -> bool {
        self.0.check().is_ok()
    }

    /// Takes a token, and waits for one if necessary.
    pub(crate) async fn wait(&self) {
        while let Err(early) = self.0.check() {
            sleep(early.wait_time_from(self.0.clock().now())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NonZeroU32 = NonZeroU32::MIN;

    #[test]
    fn a_connection_has_tokens_for_a_burst_and_then_none() {
        let pace = Pace::new(NonZeroU32::new(3).unwrap(), ONE);
        assert_eq!([(); 4].map(|()| pace.take()), [true, true, true, false]);
    }

    #[tokio::test]
    async fn a_request_without_a_token_waits_for_the_next_one() {
        let pace = Pace::new(ONE, NonZeroU32::new(1_000).unwrap());
        while pace.take() {}
        pace.wait().await;
    }
}
