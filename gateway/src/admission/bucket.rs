//! Token buckets: how often each account may send one kind of request.

use garage_events::{id::PlayerId, rate::RateLimit};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock};

use super::Limit;
use crate::problem::Problem;

/// The token buckets of all accounts for one kind of request. An account that is not in the map has a full bucket.
pub(crate) struct Bucket {
    limit: Limit,
    /// `None` if there is no limit.
    buckets: Option<DefaultKeyedRateLimiter<PlayerId>>,
}

impl Bucket {
    pub(super) fn new(limit: Limit, rate: RateLimit) -> Self {
        let quota = match rate {
            RateLimit::Off => None,
            // `None` only if `refill` is zero, which no valid rate limit has.
            RateLimit::Bucket { burst, refill } => Quota::with_period(refill).map(|quota| quota.allow_burst(burst)),
        };
        Self { limit, buckets: quota.map(RateLimiter::keyed) }
    }

    /// Counts a request of an account: takes one token from its bucket.
    ///
    /// # Errors
    /// A 429 if the bucket is empty. It says when there is a token again.
    pub(crate) fn take(&self, account: &PlayerId) -> Result<(), Problem> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        buckets.check_key(account).map_err(|refused| {
            let (quota, wait) = (refused.quota(), refused.wait_time_from(buckets.clock().now()));
            tracing::debug!(player.id = %account, limit = %self.limit, "an account has reached a limit");
            let (burst, refill) = (quota.burst_size(), quota.replenish_interval().as_secs_f64());
            Problem::limited(&self.limit, format_args!("{burst} requests at once, and one every {refill} s"), wait)
        })
    }

    /// Removes the buckets that are full again.
    pub(super) fn forget_idle(&self) {
        if let Some(buckets) = &self.buckets {
            buckets.retain_recent();
            buckets.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn bucket(rate: &str) -> Bucket {
        Bucket::new(Limit::of_class("tickets"), rate.parse().unwrap())
    }

    #[test]
    fn each_account_has_a_bucket_of_its_own() {
        let bucket = bucket("2/0.001");
        let (ann, bob) = ("ann".parse().unwrap(), "bob".parse().unwrap());
        assert!(bucket.take(&ann).is_ok() && bucket.take(&ann).is_ok());
        let refused = bucket.take(&ann).unwrap_err();
        assert_eq!(refused.status(), 429);
        let why = "the limit `tickets` is reached: 2 requests at once, and one every 1000 s; try again in 1000 s";
        assert_eq!(refused.detail(), why);
        assert!(bucket.take(&bob).is_ok());
    }

    #[test]
    fn a_limit_that_is_off_refuses_nothing_and_stores_nothing() {
        let bucket = bucket("off");
        assert!((0..10_000).all(|_| bucket.take(&"ann".parse().unwrap()).is_ok()));
        assert!(bucket.buckets.is_none());
    }

    #[test]
    fn the_buckets_of_idle_players_are_removed_and_those_of_others_are_kept() {
        let known = |bucket: &Bucket| bucket.buckets.as_ref().unwrap().len();
        let players = || (0..100).map(|number| format!("player-{number}").parse().unwrap());
        let (fast, slow) = (bucket("1/1000000"), bucket("1/0.001"));
        players().for_each(|player| {
            let _ = (fast.take(&player), slow.take(&player));
        });
        // A bucket of `fast` is full again after a microsecond.
        let begin = Instant::now();
        while known(&fast) > 0 && begin.elapsed() < Duration::from_secs(60) {
            fast.forget_idle();
        }
        slow.forget_idle();
        assert_eq!((known(&fast), known(&slow)), (0, 100));
    }
}
