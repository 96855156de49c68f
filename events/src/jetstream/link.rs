//! What a connection that was lost means for those who wait for something on it.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_nats::{Client, Statistics, connection::State};
use tokio::time::{Instant, sleep};

/// How often the connection is looked at while something is waited for; the client tells of a loss in no other way.
const LOOK: Duration = Duration::from_millis(20);

/// The connection that answers and messages come on.
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

    /// Waits until the client is connected, at most so long; whether it is. What is sent before would only pile up, and
    /// leave late.
    pub(super) async fn up(&self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        while self.client.connection_state() != State::Connected {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }

    /// How many connections there have been. Another number than before: what was under way then is lost.
    pub(super) fn connections(&self) -> u64 {
        self.statistics.connects.load(Ordering::Relaxed)
    }

    /// Ends when there is another connection than the one of that number.
    pub(super) async fn replaced(&self, connection: u64) {
        while self.connections() == connection {
            sleep(LOOK).await;
        }
    }

    /// Waits for something that comes on the present connection; `None` when there is another before it came.
    pub(super) async fn through<T>(&self, waiting: impl Future<Output = T>) -> Option<T> {
        let connection = self.connections();
        tokio::select! {
            biased;
            came = waiting => Some(came),
            () = self.replaced(connection) => None,
        }
    }
}
