//! Limits for the requests of one account: how often it may send them ([`Bucket`]), and how many of its commands may
//! wait ([`Turns`]). Every gateway process counts for itself.

mod bucket;
mod pace;
mod turns;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use garage_events::{
    id::{PlayerId, QueueName},
    queue::{Queue, Queues},
};
use garage_worker::Shutdown;
use tokio::time::sleep;

use self::turns::Turns;
pub(crate) use self::{bucket::Bucket, pace::Pace, turns::Keyed};
use crate::{config::RateLimits, problem::Problem, routes::Answer};

/// The values of the label `limit` in `garage_gateway_limited_total`.
pub(crate) const LABELS: &[&str] = &[
    "tickets",
    "garage",
    "reads",
    "sockets",
    "connect-tokens",
    "groups",
    "parties",
    "party-joins",
    "queue",
    "tickets-waiting",
    "garage-waiting",
];

/// How often the gateway removes the token buckets of idle players. A bucket takes about 100 bytes.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// The name of a limit, for clients and metrics.
#[derive(Debug, Clone)]
pub(crate) struct Limit {
    /// One of [`LABELS`].
    pub(crate) label: &'static str,
    /// The queue, if the limit is that of one queue (`ticket_limit`).
    pub(crate) queue: Option<QueueName>,
}

impl Limit {
    fn of_class(label: &'static str) -> Self {
        Self { label, queue: None }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.queue {
            None => f.write_str(self.label),
            Some(queue) => write!(f, "{}:{queue}", self.label),
        }
    }
}

/// The limits of all accounts.
pub(crate) struct Admission {
    /// Commands on tickets.
    pub(crate) tickets: Bucket,
    /// Commands on cars and items.
    pub(crate) garage: Bucket,
    /// Requests that change nothing.
    pub(crate) reads: Bucket,
    /// Handshakes of sockets.
    pub(crate) sockets: Bucket,
    /// Requests for connection tokens.
    pub(crate) connect_tokens: Bucket,
    /// Tickets of groups, counted for the `sub` of the backend's token.
    pub(crate) groups: Bucket,
    /// Commands on parties, apart from joins.
    pub(crate) parties: Bucket,
    /// Joins of parties.
    pub(crate) party_joins: Bucket,
    /// Requests for tickets of each queue, with the queue's own limit.
    queues: BTreeMap<QueueName, Bucket>,
    /// Commands on tickets and parties run one after the other, for each player.
    pub(crate) ticket_turns: Turns<Answer>,
    /// The same for commands on cars and items.
    pub(crate) garage_turns: Turns<Answer>,
}

impl Admission {
    pub(crate) fn new(limits: &RateLimits, queues: &Queues) -> Self {
        let class = |label, limit| Bucket::new(Limit::of_class(label), limit);
        let of_queue = |(name, queue): (&QueueName, &Queue)| {
            let limit = Limit { label: "queue", queue: Some(name.clone()) };
            (name.clone(), Bucket::new(limit, queue.ticket_limit))
        };
        Self {
            tickets: class("tickets", limits.limit_tickets),
            garage: class("garage", limits.limit_garage),
            reads: class("reads", limits.limit_reads),
            sockets: class("sockets", limits.limit_sockets),
            connect_tokens: class("connect-tokens", limits.limit_connect_tokens),
            groups: class("groups", limits.limit_groups),
            parties: class("parties", limits.limit_parties),
            party_joins: class("party-joins", limits.limit_party_joins),
            queues: queues.queues.iter().map(of_queue).collect(),
            ticket_turns: Turns::new(Limit::of_class("tickets-waiting")),
            garage_turns: Turns::new(Limit::of_class("garage-waiting")),
        }
    }

    /// Counts a request for a ticket of a queue.
    ///
    /// # Errors
    /// A 429 if the queue's own limit is reached.
    pub(crate) fn queue(&self, queue: &QueueName, player: &PlayerId) -> Result<(), Problem> {
        self.queues.get(queue).map_or(Ok(()), |bucket| bucket.take(player))
    }

    /// Removes the token buckets of idle players until `shutdown`.
    pub(crate) async fn forget_idle(self: Arc<Self>, shutdown: Shutdown) -> anyhow::Result<()> {
        while shutdown.run_until_cancelled(sleep(FORGET_EVERY)).await.is_some() {
            let classes = [&self.tickets, &self.garage, &self.reads, &self.sockets, &self.connect_tokens, &self.groups];
            let classes = classes.into_iter().chain([&self.parties, &self.party_joins]);
            classes.chain(self.queues.values()).for_each(Bucket::forget_idle);
        }
        Ok(())
    }
}
