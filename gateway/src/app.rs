//! The state that all routes and sockets of a gateway share.

use garage_events::{env::System, jetstream::JetStreamLog, queue::Queues};

use crate::{
    absence::AbsenceWait, hub::Hub, presence::Presence, queue_status::QueueStatuses, token::Keys,
    wait_estimate::WaitEstimates,
};

pub(crate) struct App {
    pub(crate) keys: Keys,
    pub(crate) queues: Queues,
    pub(crate) log: JetStreamLog,
    /// The NATS connection, for requests to other workers.
    pub(crate) client: async_nats::Client,
    pub(crate) hub: Hub,
    pub(crate) queue_statuses: QueueStatuses,
    pub(crate) wait_estimates: WaitEstimates,
    pub(crate) presence: Presence,
    pub(crate) absence_wait: AbsenceWait,
    pub(crate) env: System,
}
