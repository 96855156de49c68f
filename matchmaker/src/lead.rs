//! Leadership: which instance makes the matches of a queue. It only avoids duplicate work. Safety comes from the log:
//! if two instances lead the same queue, the log accepts a match of a player from only one of them.

use std::future::Future;

use garage_events::{id::QueueName, lease};
use garage_worker::lease::Leases;

/// The queues that this instance leads. Dropping it releases the leadership.
pub trait Lead: Send + 'static {
    /// Declares that this instance is ready to lead.
    fn compete(&self);

    /// Whether this instance leads the queue.
    fn leads(&self, queue: &QueueName) -> bool;

    /// Waits until this instance gains or loses the leadership of a queue.
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
