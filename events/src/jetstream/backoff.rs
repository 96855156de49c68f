//! Growing delays between the consumers that a reader or a worker creates, so that a repeated failure does not become a
//! load for the stream's leader. Each consumer lives on there for a while after its reader has left it.

use std::time::Duration;

use tokio::time::Instant;

/// Delays that double from one failure to the next, until there has been no failure for a while.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    /// After this time without a failure, the next delay is the first one again.
    forget_after: Duration,
    /// When the last delay was taken, and its length.
    last: Option<(Instant, Duration)>,
}

impl Backoff {
    /// Delays from `first` to `longest`. `forget_after` must be longer than `longest`, or the delays would not grow.
    pub const fn new(first: Duration, longest: Duration, forget_after: Duration) -> Self {
        Self { first, longest, forget_after, last: None }
    }

    /// The delay that applies now.
    pub fn delay(&self, now: Instant) -> Duration {
        match self.last {
            Some((taken, delay)) if now.saturating_duration_since(taken) < self.forget_after => {
                self.longest.min(delay * 2)
            }
            _ => self.first,
        }
    }

    /// Takes the delay that applies now. The next one is longer.
    pub fn take(&mut self, now: Instant) -> Duration {
        let delay = self.delay(now);
        self.last = Some((now, delay));
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delays_double_up_to_the_longest_and_start_again_after_a_quiet_time() {
        let (millis, mut now) = (Duration::from_millis, Instant::now());
        let mut backoff = Backoff::new(millis(20), millis(100), millis(1_000));
        let delays: Vec<_> = (0..5).map(|_| backoff.take(now).as_millis()).collect();
        assert_eq!(delays, [20, 40, 80, 100, 100]);
        now += millis(999);
        assert_eq!(backoff.take(now), millis(100));
        now += millis(1_000);
        assert_eq!(backoff.delay(now), millis(20));
        assert_eq!((backoff.take(now), backoff.take(now)), (millis(20), millis(40)));
    }
}
