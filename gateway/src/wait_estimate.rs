//! Estimates how long a player waits in a queue, from the waits of the players who were matched most recently.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use garage_events::{id::QueueName, jetstream::follow::Message, player::Matched, queue::Queues};
use serde::Deserialize;
use serde_json::value::RawValue;

/// How many waits are kept for each queue. Few, so that the estimate follows changes in the number of players quickly.
const KEPT_WAITS: usize = 32;

/// The most recent waits in each queue, in milliseconds. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct WaitEstimates(Arc<BTreeMap<QueueName, Mutex<VecDeque<u64>>>>);

/// The part of an envelope that shows whether the event is `Matched`.
#[derive(Deserialize)]
struct TypedEvent<'a> {
    #[serde(rename = "type", borrow)]
    type_name: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl WaitEstimates {
    /// Keeps waits for the configured queues only.
    pub(crate) fn new(queues: &Queues) -> Self {
        Self(Arc::new(queues.queues.keys().map(|name| (name.clone(), Mutex::default())).collect()))
    }

    /// Records the wait if the message is a player's `Matched` event.
    pub(crate) fn record(&self, message: &Message) {
        // The hub logs messages that are not events.
        let Ok(TypedEvent { type_name, data }) = serde_json::from_slice(&message.body) else { return };
        if type_name != "Matched" {
            return;
        }
        let Ok(matched) = serde_json::from_str::<Matched>(data.get()) else { return };
        // The wait of a requeued player includes the failed match.
        if matched.is_rematch() {
            return;
        }
        let Matched { queue, waiting_since, .. } = matched;
        let Some(recent_waits) = self.0.get(&queue) else { return };
        // Negative if the clock of the gateway that set `waiting_since` is ahead of the stream's clock.
        let waited = u64::try_from((message.time - waiting_since).whole_milliseconds()).unwrap_or(0);
        let mut recent_waits = recent_waits.lock().unwrap_or_else(PoisonError::into_inner);
        if recent_waits.len() == KEPT_WAITS {
            recent_waits.pop_front();
        }
        recent_waits.push_back(waited);
    }

    /// The median of the most recent waits in a queue, in milliseconds; `None` until this gateway has seen a match in
    /// the queue.
    pub(crate) fn estimate(&self, queue: &QueueName) -> Option<u64> {
        let mut recent_waits: Vec<_> =
            self.0.get(queue)?.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        recent_waits.sort_unstable();
        recent_waits.get(recent_waits.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

    use super::*;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-01-01 12:00 UTC);

    fn estimates() -> WaitEstimates {
        let queues = "[queues.ranked]\nplayers = 2\nrank_band = 1\ntimeout_s = 1\nregions = { eu = 120 }";
        WaitEstimates::new(&Queues::parse(queues, std::path::Path::new("queues.toml")).unwrap())
    }

    /// A player's event of this type, after a wait of `waited_ms`.
    fn event(type_name: &str, queue: &str, waited_ms: i64) -> Message {
        let since = (NOW - Duration::milliseconds(waited_ms)).format(&Rfc3339).unwrap();
        let id = "0198c5a0-7b1e-7c3d-8000-0123456789ab";
        let data = json!({"ticket": id, "queue": queue, "session": id, "team": "1", "waiting_since": since});
        let body = json!({"n": 2, "type": type_name, "data": data}).to_string().into();
        Message { seq: 1, time: NOW, subject: "garage.player.ann".into(), body, headers: None, pending: 0 }
    }

    #[test]
    fn the_estimate_is_the_median_wait_of_the_matched_players() {
        let (estimates, ranked) = (estimates(), "ranked".parse().unwrap());
        assert_eq!(estimates.estimate(&ranked), None);
        for (waited, estimate) in [(900, 900), (100, 900), (500, 500), (90_000, 900), (400, 500)] {
            estimates.record(&event("Matched", "ranked", waited));
            assert_eq!(estimates.estimate(&ranked), Some(estimate));
        }
    }

    #[test]
    fn only_matches_in_configured_queues_count() {
        let (estimates, ranked) = (estimates(), "ranked".parse().unwrap());
        estimates.record(&event("Queued", "ranked", 500));
        estimates.record(&event("Matched", "casual", 500));
        estimates.record(&Message { body: "rubbish".into(), ..event("Matched", "ranked", 500) });
        assert_eq!((estimates.estimate(&ranked), estimates.estimate(&"casual".parse().unwrap())), (None, None));
        estimates.record(&event("Matched", "ranked", -5));
        assert_eq!(estimates.estimate(&ranked), Some(0));
    }

    #[test]
    fn a_match_after_a_failed_one_does_not_count() {
        let (estimates, ranked) = (estimates(), "ranked".parse().unwrap());
        let mut again = event("Matched", "ranked", 60_000);
        let mut body: serde_json::Value = serde_json::from_slice(&again.body).unwrap();
        for (requeues, estimate) in [(1, None), (0, Some(60_000))] {
            body["data"]["requeue"] =
                json!({"rank": 0, "latencies": {}, "expires_at": "2026-01-01T12:02:00Z", "requeues": requeues});
            again.body = body.to_string().into();
            estimates.record(&again);
            assert_eq!(estimates.estimate(&ranked), estimate);
        }
    }

    #[test]
    fn old_waits_are_dropped() {
        let (estimates, ranked) = (estimates(), "ranked".parse().unwrap());
        for waited in [vec![60_000; 1_000], vec![2_000; KEPT_WAITS]].concat() {
            estimates.record(&event("Matched", "ranked", waited));
        }
        assert_eq!(estimates.estimate(&ranked), Some(2_000));
        assert_eq!(estimates.0[&ranked].lock().unwrap().len(), KEPT_WAITS);
    }
}
