//! The NATS users and their rights: one user per role, and one per game server.

use garage_events::game::MAX_REPORT;
use garage_worker::operator::Rights;

/// A user of the account GARAGE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// May do everything. For operators, `garage init` and tests.
    Admin,
    /// `garage-gateway`.
    Gateway,
    /// `garage-matchmaker`.
    Matchmaker,
    /// `garage-session`.
    Session,
    /// `garage-director`.
    Director,
    /// `garage-inventory`.
    Inventory,
}

/// The maximum number of subscriptions that a game server may have on one connection. A NATS client needs one for all
/// its acknowledgements; some clients make one for each.
const MAX_GAME_SUBSCRIPTIONS: u32 = 8;

/// What every worker may publish: requests to read streams and buckets, and to consume messages.
///
/// No worker may create, change, purge or delete a stream or a message. There is one exception: the matchmaker purges
/// its older snapshots. A worker may create only its own durable consumers, whose names are in the subject. With the
/// subject `$JS.API.CONSUMER.CREATE.*`, which has no consumer name, the server creates no durable consumer.
const EVERY_WORKER_PUBLISHES: &[&str] = &[
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.DIRECT.GET.>",
    "$JS.API.CONSUMER.CREATE.*",
    "$JS.API.CONSUMER.INFO.*.*",
    "$JS.API.CONSUMER.MSG.NEXT.*.*",
    "$JS.ACK.>",
    "$JS.FC.>",
    "$SRV.>",
    "_INBOX.>",
    "svc.log.trouble",
];
/// `svc.log.>`: workers tell each other whether the log stores events.
const EVERY_WORKER_SUBSCRIBES: &[&str] = &["$SRV.>", "_INBOX.>", "svc.log.>"];

impl Role {
    /// All roles.
    pub const ALL: [Self; 6] =
        [Self::Admin, Self::Gateway, Self::Matchmaker, Self::Session, Self::Director, Self::Inventory];

    /// The name of the NATS user.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Gateway => "gateway",
            Self::Matchmaker => "matchmaker",
            Self::Session => "session",
            Self::Director => "director",
            Self::Inventory => "inventory",
        }
    }

    /// The rights of the user. `None` means that everything is allowed. In addition to the rights of every worker, a
    /// worker may publish the events that it appends, its dead letters, and requests to the workers that it calls. It
    /// may subscribe to the requests that it answers. One of these requests is the retry of a dead letter, which only an
    /// operator may send.
    pub(crate) fn rights(self) -> Option<Rights> {
        Some(match self {
            Self::Admin => return None,
            // It reads the buckets of closed queues and of blocked players. Only operators write to them.
            Self::Gateway => worker(
                &[
                    "garage.player.*",
                    "garage.party.*",
                    "$KV.PRESENCE.>",
                    "svc.session.*",
                    "svc.inventory.*",
                    "svc.matchmaker.*",
                    "dead.gateway",
                ],
                &[],
            ),
            Self::Matchmaker => worker(
                &[
                    "garage.player.*",
                    "garage.session.*.matched",
                    "garage.session.*.proposed",
                    "$KV.LEASES.matchmaker.*",
                    "$KV.RULES.text.*",
                    "$KV.RULES.configured.*",
                    "$O.SNAPSHOTS.>",
                    "$JS.API.STREAM.PURGE.OBJ_SNAPSHOTS",
                    "dead.matchmaker",
                ],
                &["svc.matchmaker.*"],
            ),
            Self::Session => worker(
                // Each consumer has its own subject for dead letters.
                &[
                    "garage.session.>",
                    "garage.player.*",
                    "timer.>",
                    "svc.inventory.*",
                    "$KV.LEASES.session.*",
                    "dead.session",
                    "dead.session-reports",
                    "dead.session-timers",
                    "$JS.API.CONSUMER.*.GARAGE.session",
                    "$JS.API.CONSUMER.*.REPORTS.session-reports",
                    "$JS.API.CONSUMER.*.TIMERS.session-timers",
                ],
                &["svc.session.*", "retry.session", "retry.session-reports", "retry.session-timers"],
            ),
            Self::Director => worker(
                &[
                    "garage.session.*.pod-scheduled",
                    "garage.session.*.pod-failed",
                    "$KV.LEASES.director.*",
                    "dead.director",
                    "$JS.API.CONSUMER.*.GARAGE.director",
                ],
                &["retry.director"],
            ),
            Self::Inventory => worker(
                &["garage.inventory.>", "dead.inventory", "$JS.API.CONSUMER.*.GARAGE.inventory"],
                &["svc.inventory.*", "retry.inventory"],
            ),
        })
    }
}

/// The rights of a game server's user: it may publish its own two reports. The session worker signs the user with the
/// key that has these rights as its scope. The NATS server replaces the tags with the values of the user's tags.
///
/// The limits are part of the scope, which is in the account's JWT: the server refuses a scoped user whose own JWT has
/// limits.
pub(crate) fn game() -> Rights {
    Rights {
        publish: vec![
            "report.{{tag(session)}}.{{tag(attempt)}}.ready",
            "report.{{tag(session)}}.{{tag(attempt)}}.finished",
        ],
        subscribe: vec!["_INBOX.{{tag(session)}}.{{tag(attempt)}}.>"],
        responds: false,
        max_subscriptions: Some(MAX_GAME_SUBSCRIPTIONS),
        max_payload: Some(MAX_REPORT),
    }
}

fn worker(own: &[&'static str], answers: &[&'static str]) -> Rights {
    Rights {
        publish: [own, EVERY_WORKER_PUBLISHES].concat(),
        subscribe: [answers, EVERY_WORKER_SUBSCRIBES].concat(),
        responds: true,
        max_subscriptions: None,
        max_payload: None,
    }
}
