//! Counts the consumers that NATS creates.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_nats::Client;
use futures::StreamExt;
use serde_json::Value;
use tokio::task::JoinHandle;

/// Counts the consumers that are created from now on, by stream: those of the workers, and those of the test's own
/// reads of the log. Unlike a metric, the server's notices also cover processes that were killed.
pub(crate) struct CreatedConsumers {
    counts: Arc<Mutex<BTreeMap<String, usize>>>,
    counting: JoinHandle<()>,
}

impl CreatedConsumers {
    pub(crate) async fn count(admin: &Client) -> Self {
        let mut notices = admin.subscribe("$JS.EVENT.ADVISORY.CONSUMER.CREATED.>").await.unwrap();
        // The server has the subscription before the first consumer is created.
        admin.flush().await.unwrap();
        let counts = Arc::<Mutex<BTreeMap<String, usize>>>::default();
        let counted = Arc::clone(&counts);
        let counting = tokio::spawn(async move {
            while let Some(notice) = notices.next().await {
                let Ok(Value::Object(notice)) = serde_json::from_slice(&notice.payload) else { continue };
                let stream = notice.get("stream").and_then(Value::as_str).unwrap_or("?").to_owned();
                *counted.lock().unwrap_or_else(PoisonError::into_inner).entry(stream).or_default() += 1;
            }
        });
        Self { counts, counting }
    }

    /// The counts so far, by stream.
    pub(crate) fn by_stream(&self) -> BTreeMap<String, usize> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The count of all streams so far.
    pub(crate) fn total(&self) -> usize {
        self.by_stream().values().sum()
    }
}

impl Drop for CreatedConsumers {
    fn drop(&mut self) {
        self.counting.abort();
    }
}
