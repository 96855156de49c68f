//! The state that all routes and sockets of a gateway share.

use std::sync::Arc;

use garage_events::{env::System, jetstream::JetStreamLog, queue::Queues};

use crate::{
    absence::AbsenceWait, admission::Admission, blocks::Blocks, hub::Hub, parties::Parties, presence::Presence,
    queue_status::QueueStatuses, token::Keys, wait_estimate::WaitEstimates,
};

pub(crate) struct App {
    pub(crate) keys: Keys,
    pub(crate) queues: Queues,
    pub(crate) log: JetStreamLog,
    /// The NATS connection, for requests to other workers.
    pub(crate) client: async_nats::Client,
    pub(crate) hub: Hub,
    pub(crate) blocks: Blocks,
    pub(crate) queue_statuses: QueueStatuses,
    pub(crate) wait_estimates: WaitEstimates,
    pub(crate) presence: Presence,
    pub(crate) parties: Parties,
    pub(crate) absence_wait: AbsenceWait,
    pub(crate) admission: Arc<Admission>,
    pub(crate) env: System,
}
