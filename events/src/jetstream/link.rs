//! Detects a lost connection, so that nobody waits for an answer or a message that can no longer arrive.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{Client, Statistics, connection::State};
use tokio::time::{Instant, sleep};

/// How often the connection is checked during a wait. The client does not report a lost connection in another way.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Watches the connection of a client.
#[derive(Debug, Clone)]
pub(super) struct Link {
    client: Client,
    statistics: Arc<Statistics>,
}

impl Link {
    pub(super) fn new(client: Client) -> Self {
        let statistics = client.statistics();
        Self { client, statistics }
    }

    /// Waits until the client is connected, for at most `at_most`, and returns whether it is. Requests that are sent
    /// while the client is disconnected pile up in its buffer, and are sent too late.
    pub(super) async fn wait_until_connected(&self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        while self.client.connection_state() != State::Connected {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(POLL_INTERVAL).await;
        }
        true
    }

    /// The number of connections so far. If it has changed, answers and messages in transit on the old one are lost.
    pub(super) fn connections(&self) -> u64 {
        self.statistics.connects.load(Ordering::Relaxed)
    }

    /// Waits until there is a newer connection than the one with this number.
    pub(super) async fn replaced(&self, connection: u64) {
        while self.connections() == connection {
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits for a result that arrives on the current connection; `None` if the connection is replaced first.
    pub(super) async fn on_current_connection<T>(&self, waiting: impl Future<Output = T>) -> Option<T> {
        let connection = self.connections();
        tokio::select! {
            biased;
            result = waiting => Some(result),
            () = self.replaced(connection) => None,
        }
    }
}
