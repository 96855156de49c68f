//! Who may say what: the NATS users, one per role, and what the user of each game may.

use garage_worker::operator::Rights;

/// A user of the account GARAGE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// May do everything: `garage init`, the CLI, tests.
    Admin,
    /// The worker of that name.
    Gateway,
    /// The worker of that name.
    Matchmaker,
    /// The worker of that name.
    Session,
    /// The worker of that name.
    Director,
    /// The worker of that name.
    Inventory,
}

/// What every worker may publish: reading the log and its buckets, consuming, asking the others.
/// No worker may make, change, purge or delete a stream, or a message of one; but the matchmaker what is left of its
/// older snapshots. Nor a durable consumer but its own, of which the name is in the subject: without a name there, the
/// server takes none that is durable.
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
    "svc.>",
    "_INBOX.>",
];
const EVERY_WORKER_SUBSCRIBES: &[&str] = &["$SRV.>", "_INBOX.>"];

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Admin, Self::Gateway, Self::Matchmaker, Self::Session, Self::Director, Self::Inventory];

    /// The user's name.
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

    /// `None`: everything. A worker's own rows are the events it appends (DESIGN, section 2), its dead letters, and the
    /// requests it answers: also that it handle one of these letters again, which nobody but an operator may ask.
    pub(crate) fn rights(self) -> Option<Rights> {
        Some(match self {
            Self::Admin => return None,
            // Which queues are closed is for operators to say: it reads that bucket only.
            Self::Gateway => worker(&["garage.player.*", "$KV.PRESENCE.>", "dead.gateway"], &["svc.gateway.>"]),
            Self::Matchmaker => worker(
                &[
                    "garage.player.*",
                    "garage.session.*.matched",
                    "$KV.LEASES.matchmaker.*",
                    "$O.SNAPSHOTS.>",
                    "$JS.API.STREAM.PURGE.OBJ_SNAPSHOTS",
                    "dead.matchmaker",
                ],
                &["svc.matchmaker.>"],
            ),
            Self::Session => worker(
                // One dead letter box for each of its consumers.
                &[
                    "garage.session.>",
                    "garage.player.*",
                    "timer.>",
                    "dead.session",
                    "dead.session-reports",
                    "dead.session-timers",
                    "$JS.API.CONSUMER.*.GARAGE.session",
                    "$JS.API.CONSUMER.*.REPORTS.session-reports",
                    "$JS.API.CONSUMER.*.TIMERS.session-timers",
                ],
                &["svc.session.>", "svc.player.>", "retry.session", "retry.session-reports", "retry.session-timers"],
            ),
            Self::Director => worker(
                &[
                    "garage.session.*.pod-scheduled",
                    "garage.session.*.pod-failed",
                    "$KV.LEASES.director.*",
                    "dead.director",
                    "$JS.API.CONSUMER.*.GARAGE.director",
                ],
                &["svc.director.>", "retry.director"],
            ),
            Self::Inventory => worker(
                &["garage.inventory.>", "dead.inventory", "$JS.API.CONSUMER.*.GARAGE.inventory"],
                &["svc.inventory.>", "retry.inventory"],
            ),
        })
    }
}

/// What a game's user may: its own reports, and requests about its own session. The server fills in the tags of the user,
/// which session has signed with the key that has this scope.
pub(super) fn game() -> Rights {
    Rights {
        publish: vec!["report.{{tag(session)}}.{{tag(attempt)}}.>", "svc.game.{{tag(session)}}.>"],
        subscribe: vec!["_INBOX.{{tag(session)}}.{{tag(attempt)}}.>"],
        responds: false,
    }
}

fn worker(own: &[&'static str], answers: &[&'static str]) -> Rights {
    Rights {
        publish: [own, EVERY_WORKER_PUBLISHES].concat(),
        subscribe: [answers, EVERY_WORKER_SUBSCRIBES].concat(),
        responds: true,
    }
}
