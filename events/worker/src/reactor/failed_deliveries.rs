//! How often the tries at a message were in vain.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Messages that are counted at a time; a consumer gives out no more of them before some are acknowledged.
const MOST: usize = 1_000;

/// The deliveries in vain of each message, by its sequence. Of one that another instance has handled in the end nobody
/// hears here; beyond [`MOST`] the oldest is forgotten.
#[derive(Debug, Clone, Default)]
pub(super) struct FailedDeliveries(Arc<Mutex<BTreeMap<u64, u32>>>);

impl FailedDeliveries {
    /// How many there were of a message.
    pub(super) fn so_far(&self, seq: u64) -> u32 {
        self.counts().get(&seq).copied().unwrap_or_default()
    }

    /// Counts one more, and tells how many that makes.
    pub(super) fn count(&self, seq: u64) -> u32 {
        let mut counts = self.counts();
        let count = counts.entry(seq).or_default();
        *count += 1;
        let count = *count;
        if counts.len() > MOST {
            counts.pop_first();
        }
        count
    }

    /// Forgets a message that is through.
    pub(super) fn forget(&self, seq: u64) {
        self.counts().remove(&seq);
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, u32>> {
        // Each change is one step: a panic of another holder leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_counted_by_itself_until_it_is_through() {
        let failed_deliveries = FailedDeliveries::default();
        assert_eq!(
            (
                failed_deliveries.so_far(7),
                failed_deliveries.count(7),
                failed_deliveries.count(7),
                failed_deliveries.count(8)
            ),
            (0, 1, 2, 1)
        );
        assert_eq!((failed_deliveries.so_far(7), failed_deliveries.so_far(8)), (2, 1));
        failed_deliveries.forget(7);
        assert_eq!((failed_deliveries.so_far(7), failed_deliveries.so_far(8)), (0, 1));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let failed_deliveries = FailedDeliveries::default();
        let most = u64::try_from(MOST).unwrap();
        for seq in 1..=most + 1 {
            failed_deliveries.count(seq);
        }
        assert_eq!(failed_deliveries.counts().len(), MOST);
        assert_eq!(
            (failed_deliveries.so_far(1), failed_deliveries.so_far(2), failed_deliveries.so_far(most + 1)),
            (0, 1, 1)
        );
    }
}
