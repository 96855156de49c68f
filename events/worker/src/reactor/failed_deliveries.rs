//! Counts the failed deliveries of each message.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The maximum number of counted messages. It equals the consumer's `max_ack_pending`: the server delivers no further
/// messages until some are acknowledged.
const MAX_MESSAGES: usize = 1_000;

/// The number of failed deliveries of each message, by sequence. This instance does not notice if another instance
/// handles a message. So the oldest entry is removed when there are more than [`MAX_MESSAGES`].
#[derive(Debug, Clone, Default)]
pub(super) struct FailedDeliveries(Arc<Mutex<BTreeMap<u64, u32>>>);

impl FailedDeliveries {
    /// The number of failed deliveries of a message so far.
    pub(super) fn so_far(&self, seq: u64) -> u32 {
        self.counts().get(&seq).copied().unwrap_or_default()
    }

    /// Counts a failed delivery, and returns the new number.
    pub(super) fn count(&self, seq: u64) -> u32 {
        let mut counts = self.counts();
        let count = counts.entry(seq).or_default();
        *count += 1;
        let count = *count;
        if counts.len() > MAX_MESSAGES {
            counts.pop_first();
        }
        count
    }

    /// Removes a message that was handled or became a dead letter.
    pub(super) fn forget(&self, seq: u64) {
        self.counts().remove(&seq);
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u32>> {
        // Each change is a single step, so a panic while the lock is held cannot leave inconsistent data.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_has_its_own_count_until_it_is_forgotten() {
        let failed = FailedDeliveries::default();
        assert_eq!((failed.so_far(7), failed.count(7), failed.count(7), failed.count(8)), (0, 1, 2, 1));
        assert_eq!((failed.so_far(7), failed.so_far(8)), (2, 1));
        failed.forget(7);
        assert_eq!((failed.so_far(7), failed.so_far(8)), (0, 1));
    }

    #[test]
    fn the_number_of_counted_messages_is_bounded() {
        let failed = FailedDeliveries::default();
        let max = u64::try_from(MAX_MESSAGES).unwrap();
        for seq in 1..=max + 1 {
            failed.count(seq);
        }
        assert_eq!(failed.counts().len(), MAX_MESSAGES);
        assert_eq!((failed.so_far(1), failed.so_far(2), failed.so_far(max + 1)), (0, 1, 1));
    }
}
