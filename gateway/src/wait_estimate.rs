//! How long one waits in a queue, told from those who were matched last.

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use garage_events::{id::QueueName, jetstream::follow::Message, player::Matched, queue::Queues};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Waits kept of each queue. Few, so that the estimate follows when players come or go.
const KEPT: usize = 32;

/// The last waits of each queue, in milliseconds. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct WaitEstimates(Arc<BTreeMap<QueueName, Mutex<VecDeque<u64>>>>);

/// What tells a match from other events.
#[derive(Deserialize)]
struct TypedEvent<'a> {
    #[serde(rename = "type", borrow)]
    type_name: Cow<'a, str>,
    #[serde(borrow)]
    data: &'a RawValue,
}

impl WaitEstimates {
    /// Of these queues; any other is none of ours.
    pub(crate) fn new(queues: &Queues) -> Self {
        Self(Arc::new(queues.queues.keys().map(|name| (name.clone(), Mutex::default())).collect()))
    }

    /// Notes an event of the log: whether somebody was matched, and after how long.
    pub(crate) fn note(&self, message: &Message) {
        // What is no event, or none that this build knows, is the hub's to complain of.
        let Ok(TypedEvent { type_name, data }) = serde_json::from_slice(&message.body) else { return };
        if type_name != "Matched" {
            return;
        }
        let Ok(Matched { queue, waiting_since, .. }) = serde_json::from_str(data.get()) else { return };
        let Some(recent_waits) = self.0.get(&queue) else { return };
        // The gateway's clock, with which it began, may be ahead of the stream's.
        let waited = u64::try_from((message.time - waiting_since).whole_milliseconds()).unwrap_or(0);
        let mut recent_waits = recent_waits.lock().unwrap_or_else(PoisonError::into_inner);
        if recent_waits.len() == KEPT {
            recent_waits.pop_front();
        }
        recent_waits.push_back(waited);
    }

    /// The median of the last waits in a queue, in milliseconds; none where nobody has been matched yet, as far as this
    /// gateway has seen.
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

    fn recent_waits() -> WaitEstimates {
        let queue = garage_events::queue::Queue {
            players: 2,
            rank_band: 1,
            timeout_s: 1,
            client_rank: false,
            regions: BTreeMap::new(),
        };
        WaitEstimates::new(&Queues { queues: [("ranked".parse().unwrap(), queue)].into() })
    }

    /// Somebody is matched, or whatever the type says, after so long.
    fn event(type_name: &str, queue: &str, waited_ms: i64) -> Message {
        let since = (NOW - Duration::milliseconds(waited_ms)).format(&Rfc3339).unwrap();
        let id = "0198c5a0-7b1e-7c3d-8000-0123456789ab";
        let data = json!({"ticket": id, "queue": queue, "session": id, "team": "1", "waiting_since": since});
        let body = json!({"n": 2, "type": type_name, "data": data}).to_string().into();
        Message { seq: 1, time: NOW, subject: "garage.player.ann".into(), body, headers: None, pending: 0 }
    }

    #[test]
    fn the_estimate_is_the_median_of_those_who_were_matched() {
        let (recent_waits, ranked) = (recent_waits(), "ranked".parse().unwrap());
        assert_eq!(recent_waits.estimate(&ranked), None);
        for (waited, estimate) in [(900, 900), (100, 900), (500, 500), (90_000, 900), (400, 500)] {
            recent_waits.note(&event("Matched", "ranked", waited));
            assert_eq!(recent_waits.estimate(&ranked), Some(estimate));
        }
    }

    #[test]
    fn nothing_else_counts() {
        let (recent_waits, ranked) = (recent_waits(), "ranked".parse().unwrap());
        recent_waits.note(&event("Queued", "ranked", 500));
        recent_waits.note(&event("Matched", "casual", 500));
        recent_waits.note(&Message { body: "rubbish".into(), ..event("Matched", "ranked", 500) });
        assert_eq!((recent_waits.estimate(&ranked), recent_waits.estimate(&"casual".parse().unwrap())), (None, None));
        recent_waits.note(&event("Matched", "ranked", -5));
        assert_eq!(recent_waits.estimate(&ranked), Some(0));
    }

    #[test]
    fn what_was_is_forgotten() {
        let (recent_waits, ranked) = (recent_waits(), "ranked".parse().unwrap());
        for waited in [vec![60_000; 1_000], vec![2_000; KEPT]].concat() {
            recent_waits.note(&event("Matched", "ranked", waited));
        }
        assert_eq!(recent_waits.estimate(&ranked), Some(2_000));
        assert_eq!(recent_waits.0[&ranked].lock().unwrap().len(), KEPT);
    }
}
