//! Statistics per minute.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Step;
use crate::id::QueueName;

/// The number of the minute that contains a time, counted from 1970.
pub fn minute_of(time: OffsetDateTime) -> i64 {
    time.unix_timestamp().div_euclid(60)
}

/// What happened in one minute, by the stream's timestamps. Its size is bounded by the number of queues, of their rules,
/// and of failure reasons.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Minute {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub queues: BTreeMap<QueueName, Flow>,
    /// How many sessions reached each step.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub steps: BTreeMap<Step, Reached>,
    /// The number of failed game servers, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub servers_failed: BTreeMap<String, u64>,
    /// The number of failed sessions, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sessions_failed: BTreeMap<String, u64>,
}

/// How many players entered and left a queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    pub queued: u64,
    pub matched: u64,
    pub cancelled: u64,
    pub timed_out: u64,
    /// Players who wait again after a failed match. They do not count as queued again.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub requeued: u64,
    /// How long the matched players waited.
    #[serde(default, skip_serializing_if = "Histogram::is_empty")]
    pub waited: Histogram,
    /// How many candidates each rule excluded from a match with a ticket that timed out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub excluded: BTreeMap<String, u64>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The sessions that reached a step for the first time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    /// The number of sessions.
    pub sessions: u64,
    /// The number of players in these sessions.
    pub players: u64,
    /// The time since the previous step.
    #[serde(default, skip_serializing_if = "Histogram::is_empty")]
    pub took: Histogram,
}

impl Minute {
    /// Adds the counts of another minute.
    pub fn add(&mut self, other: &Self) {
        for (queue, flow) in &other.queues {
            self.queues.entry(queue.clone()).or_default().add(flow);
        }
        for (step, reached) in &other.steps {
            let sum = self.steps.entry(*step).or_default();
            sum.sessions += reached.sessions;
            sum.players += reached.players;
            sum.took.add(&reached.took);
        }
        for (sums, counts) in
            [(&mut self.servers_failed, &other.servers_failed), (&mut self.sessions_failed, &other.sessions_failed)]
        {
            for (reason, count) in counts {
                *sums.entry(reason.clone()).or_default() += count;
            }
        }
    }
}

impl Flow {
    /// Adds the counts of another one.
    pub fn add(&mut self, other: &Self) {
        self.queued += other.queued;
        self.matched += other.matched;
        self.cancelled += other.cancelled;
        self.timed_out += other.timed_out;
        self.requeued += other.requeued;
        self.waited.add(&other.waited);
        for (rule, count) in &other.excluded {
            *self.excluded.entry(rule.clone()).or_default() += count;
        }
    }
}

/// A histogram of durations in milliseconds. Each power of two is divided into eight ranges, so the relative error of a
/// percentile is at most 1/16. Serialised as a map from range to count.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Histogram(BTreeMap<u16, u64>);

impl Histogram {
    /// Counts one duration.
    pub fn count(&mut self, took_ms: u64) {
        *self.0.entry(range_of(took_ms)).or_default() += 1;
    }

    /// Adds the counts of another one.
    pub fn add(&mut self, other: &Self) {
        for (range, count) in &other.0 {
            *self.0.entry(*range).or_default() += count;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A percentile in milliseconds: the middle of its range. `None` if nothing was counted.
    pub fn percentile_ms(&self, hundredths: u64) -> Option<u64> {
        let all: u64 = self.0.values().sum();
        let mut left = (all * hundredths).div_ceil(100).max(1);
        self.0.iter().find_map(|(range, count)| {
            left = left.saturating_sub(*count);
            (left == 0).then(|| middle_of(*range))
        })
    }
}

fn range_of(took_ms: u64) -> u16 {
    // A limit that no session and no wait reaches: 2^40 ms are 34 years.
    let ms = took_ms.min(1 << 40);
    if ms < 8 {
        return u16::try_from(ms).unwrap_or(0);
    }
    let doublings = ms.ilog2();
    let eighth = (ms >> (doublings - 3)) & 7;
    u16::try_from(u64::from(doublings - 2) * 8 + eighth).unwrap_or(u16::MAX)
}

fn middle_of(range: u16) -> u64 {
    let (doublings, eighth) = (u32::from(range / 8), u64::from(range % 8));
    match doublings.checked_sub(1) {
        None => eighth,
        Some(shift) => ((8 + eighth) << shift.min(50)) + (1 << shift.min(50)) / 2,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn histogram(durations: impl IntoIterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        for took in durations {
            histogram.count(took);
        }
        histogram
    }

    #[test]
    fn short_durations_have_exact_percentiles() {
        let histogram = histogram(1..=7);
        assert_eq!([1, 50, 99, 100].map(|share| histogram.percentile_ms(share)), [1, 4, 7, 7].map(Some));
        assert_eq!(Histogram::default().percentile_ms(50), None);
    }

    #[test]
    fn minutes_add_up() {
        let queue: QueueName = "ranked".parse().unwrap();
        let flow = Flow {
            queued: 3,
            matched: 2,
            cancelled: 1,
            timed_out: 0,
            requeued: 0,
            waited: histogram([5, 5]),
            excluded: [("Near".into(), 2)].into(),
        };
        let reached = Reached { sessions: 1, players: 2, took: histogram([7]) };
        let minute = Minute {
            queues: [(queue.clone(), flow)].into(),
            steps: [(Step::Opened, reached)].into(),
            servers_failed: [("exited".into(), 1)].into(),
            sessions_failed: [("exited".into(), 2)].into(),
        };
        let mut sum = Minute::default();
        sum.add(&minute);
        assert_eq!(sum, minute);
        sum.add(&minute);
        assert_eq!((sum.queues[&queue].queued, sum.queues[&queue].waited.percentile_ms(50)), (6, Some(5)));
        assert_eq!((sum.steps[&Step::Opened].players, sum.servers_failed["exited"]), (4, 2));
        assert_eq!(sum.sessions_failed["exited"], 4);
    }

    proptest! {
        #[test]
        fn the_error_of_a_percentile_is_at_most_a_sixteenth(
            mut durations in prop::collection::vec(prop_oneof![0..2_000u64, 0..2_000_000u64], 1..50),
            share in 1..=100u64,
        ) {
            let read = histogram(durations.iter().copied()).percentile_ms(share).unwrap();
            durations.sort_unstable();
            let rank = (durations.len() * share as usize).div_ceil(100);
            let exact = durations[rank - 1];
            prop_assert!(read.abs_diff(exact) * 16 <= exact, "{read} for {exact}");
        }

        #[test]
        fn a_histogram_survives_a_round_trip_through_json(durations in prop::collection::vec(any::<u64>(), 0..20)) {
            let histogram = histogram(durations);
            let text = serde_json::to_string(&histogram).unwrap();
            prop_assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
        }
    }
}
