//! Which instance matches a queue. It saves work, and makes nothing safe: with two that lead, the log takes one's match.

use std::future::Future;

use garage_events::{id::QueueName, lease};
use garage_worker::lease::Leases;

/// Knows of which queues this instance is the one that matches. Dropping it gives them back.
pub trait Lead: Send + 'static {
    /// From now on this instance is ready to lead.
    fn compete(&self);

    /// Whether it leads a queue.
    fn leads(&self, queue: &QueueName) -> bool;

    /// Waits until it leads another queue than before.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

impl Lead for Leases {
    fn compete(&self) {
        Self::compete(self);
    }

    fn leads(&self, queue: &QueueName) -> bool {
        self.holds(&lease::matchmaker(queue))
    }

    async fn changed(&mut self) {
        Self::changed(self).await;
    }
}
