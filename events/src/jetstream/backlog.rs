//! Limits how many decisions on one aggregate wait in the committer at the same time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{log::AppendError, subject::Aggregate};

/// How many decisions on one aggregate may wait for their outcome in a process. Only one of them is sent at a time, and
/// once it is stored, the others conflict. So more of them achieve nothing, and only take the places of decisions
/// on other aggregates. A few are normal: some tasks of a process decide on the same aggregate at the same time.
const MAX_PER_AGGREGATE: usize = 4;

/// The number of waiting decisions of each aggregate that has any. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Backlog(Arc<Mutex<HashMap<Aggregate, usize>>>);

/// The place of a waiting decision. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    backlog: Backlog,
    aggregates: Vec<Aggregate>,
}

impl Backlog {
    /// Gives a place to a decision on these aggregates, each of which is named once.
    ///
    /// # Errors
    /// [`AppendError::Busy`] if too many decisions on one of the aggregates wait already.
    pub(super) fn enter<'a>(&self, aggregates: impl Iterator<Item = &'a Aggregate>) -> Result<Place, AppendError> {
        let aggregates: Vec<_> = aggregates.cloned().collect();
        let mut waiting = self.lock();
        let is_full = |one: &&Aggregate| waiting.get(one).is_some_and(|count| *count >= MAX_PER_AGGREGATE);
        if let Some(full) = aggregates.iter().find(is_full) {
            return Err(AppendError::Busy(full.clone()));
        }
        for aggregate in &aggregates {
            *waiting.entry(aggregate.clone()).or_default() += 1;
        }
        drop(waiting);
        Ok(Place { backlog: self.clone(), aggregates })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Aggregate, usize>> {
        // A poisoned lock is still consistent: nothing panics between two changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.backlog.lock();
        for aggregate in &self.aggregates {
            if let Some(count) = waiting.get_mut(aggregate) {
                *count -= 1;
                if *count == 0 {
                    waiting.remove(aggregate);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn player(name: &str) -> Aggregate {
        Aggregate::Player(name.parse().unwrap())
    }

    #[test]
    fn a_fifth_decision_on_an_aggregate_is_refused_until_one_of_the_four_has_its_outcome() {
        let backlog = Backlog::default();
        let (ann, bob) = (player("ann"), player("bob"));
        let mut places: Vec<_> = (0..4).map(|_| backlog.enter([&ann].into_iter()).unwrap()).collect();
        let refused = backlog.enter([&bob, &ann].into_iter()).unwrap_err();
        assert!(matches!(&refused, AppendError::Busy(full) if *full == ann), "{refused:?}");
        // A refused decision takes no place, also not of its other aggregates.
        let others: Vec<_> = (0..4).map(|_| backlog.enter([&bob].into_iter()).unwrap()).collect();
        places.pop();
        drop(others);
        places.push(backlog.enter([&ann, &bob].into_iter()).unwrap());
        assert!(backlog.enter([&ann].into_iter()).is_err());
    }

    #[test]
    fn an_aggregate_without_a_waiting_decision_takes_no_memory() {
        let backlog = Backlog::default();
        drop(backlog.enter([&player("ann"), &player("bob")].into_iter()).unwrap());
        assert!(backlog.lock().is_empty());
    }
}
