//! Crash points: places where a test can crash a process, to check that the work is still completed correctly.
//!
//! Each side effect outside of its process has a [`Point`]. A test arms a point with a file in the folder that the
//! environment variable [`FOLDER`] names: `<point>.before` or `<point>.after`. The next process that reaches the point
//! aborts, just before or just after the effect. It first renames the file by appending its process id, so that each
//! file causes only one crash. Builds without debug assertions (release builds) ignore the files.

use std::{fmt, future::Future, time::Duration};

use tokio::time::sleep;

/// The environment variable with the path of the folder for armed points.
pub const FOLDER: &str = "GARAGE_CRASH_POINTS";

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A crash point: one side effect of one worker.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Point {
            $($(#[$doc])* $name,)*
        }

        impl Point {
            /// All points, grouped by worker.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The point's name, `<worker>.<effect>`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

points! {
    /// A player's new ticket is appended.
    Queued = "gateway.queued",
    /// The cancellation of a ticket is appended.
    Cancelled = "gateway.cancelled",
    /// A change of a party is appended, with the events of the players whose state changes.
    PartyChanged = "gateway.party-changed",
    /// A presence entry is written.
    PresenceNoted = "gateway.presence-noted",
    /// A match is appended: the events of the session and of its players.
    Matched = "matchmaker.matched",
    /// A proposed match is appended: the events of the session and of its players.
    Proposed = "matchmaker.proposed",
    /// The time-outs of tickets are appended.
    TimedOut = "matchmaker.timed-out",
    /// The lease of a queue is acquired, renewed or released. The director also does this with its own lease.
    LeaseKept = "matchmaker.lease-kept",
    /// A rule set is stored.
    RulesStored = "matchmaker.rules-stored",
    /// A snapshot of the waiting players is written.
    SnapshotWritten = "matchmaker.snapshot-written",
    /// A player's acceptance of a proposed match is appended; the last one with the match.
    Accepted = "session.accepted",
    /// The end of a proposed match that was not accepted is appended, with the events of its players.
    ProposalEnded = "session.proposal-ended",
    /// A session's timer is set or cancelled.
    TimerSet = "session.timer-set",
    /// The secrets of a game server are stored in Redis.
    KeyParked = "session.key-parked",
    /// A request for a game server is appended.
    PodRequested = "session.pod-requested",
    /// A game server's ready report is appended.
    PodReady = "session.pod-ready",
    /// The opening of a session is appended, with the events of its players.
    Opened = "session.opened",
    /// The results and the end of a session are appended, with the events of its players.
    Finished = "session.finished",
    /// The failure and the end of a session are appended, with the events of its players.
    Failed = "session.failed",
    /// The session worker acknowledges an event.
    SessionAcknowledged = "session.event-acknowledged",
    /// The session worker acknowledges a game server's report.
    ReportAcknowledged = "session.report-acknowledged",
    /// The session worker acknowledges a timer.
    TimerAcknowledged = "session.timer-acknowledged",
    /// A message that cannot be handled is stored as a dead letter.
    DeadLetterStored = "session.dead-letter-stored",
    /// A missing or stalled consumer is recreated.
    ConsumerMade = "session.consumer-made",
    /// Changes are written to the projections.
    Projected = "session.projected",
    /// The projector's lease is acquired, renewed or released.
    ProjectorLeaseKept = "session.lease-kept",
    /// The projections are emptied, to be folded again from the beginning.
    ProjectionsReset = "session.projections-reset",
    /// The summary of the dead letters is written.
    DeadLettersNoted = "session.dead-letters-noted",
    /// The folder of a game server is created.
    InstanceClaimed = "director.instance-claimed",
    /// The configuration of a game server is written.
    InstanceConfigured = "director.instance-configured",
    /// The file that marks a game server as about to start is written.
    InstanceMarked = "director.instance-marked",
    /// The process of a game server is started.
    InstanceStarted = "director.instance-started",
    /// The file that names the process of a game server is written.
    PidNoted = "director.pid-noted",
    /// The file with the exit status of a game server is written.
    ExitNoted = "director.exit-noted",
    /// The process of a game server is killed, if it still runs.
    InstanceEnded = "director.instance-ended",
    /// The folder of a game server is removed.
    InstanceRemoved = "director.instance-removed",
    /// The Kubernetes secret of a pod is created.
    SecretMade = "director.secret-made",
    /// A pod is created.
    PodMade = "director.pod-made",
    /// A pod is set as the owner of its secret.
    OwnerSet = "director.owner-set",
    /// A pod is deleted.
    PodDeleted = "director.pod-deleted",
    /// The secret of a pod is deleted.
    SecretDeleted = "director.secret-deleted",
    /// The placement of a game server is appended.
    PodScheduled = "director.pod-scheduled",
    /// The failure of a game server is appended. The session worker also does this.
    PodFailed = "director.pod-failed",
    /// The director acknowledges an event.
    DirectorAcknowledged = "director.event-acknowledged",
    /// New players get their first car and coins.
    PlayersIntroduced = "inventory.players-introduced",
    /// A player's command is executed.
    CommandExecuted = "inventory.command-executed",
    /// The players of a session get their rewards and new ratings, with the events in the outbox.
    Rewarded = "inventory.rewarded",
    /// An event of the outbox is appended.
    Published = "inventory.published",
    /// Published events are removed from the outbox.
    OutboxCleared = "inventory.outbox-cleared",
    /// An event of the outbox that cannot be published is held back.
    OutboxHeld = "inventory.outbox-held",
    /// The reason for holding it back is written.
    OutboxReasonNoted = "inventory.outbox-reason-noted",
    /// Old idempotency keys are deleted.
    KeysForgotten = "inventory.keys-forgotten",
    /// The inventory worker acknowledges the end of a session.
    RewardAcknowledged = "inventory.event-acknowledged",
    /// `garage rebuild` starts new projections next to the live ones.
    ProjectionsBegun = "garage.projections-begun",
    /// `garage rebuild` writes to the new projections.
    ProjectionsMade = "garage.projections-made",
    /// `garage rebuild` replaces the live projections with the new ones.
    ProjectionsSwitched = "garage.projections-switched",
    /// A game server reports that it is ready.
    ReadyReported = "gameserver.ready-reported",
    /// A game server reports its results.
    FinishedReported = "gameserver.finished-reported",
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a crash happens before or after the effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// The effect does not take place.
    Before,
    /// The effect has taken place, but the process has not processed its result.
    After,
}

impl Moment {
    /// Both moments.
    pub const ALL: [Self; 2] = [Self::Before, Self::After];
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Before => "before",
            Self::After => "after",
        })
    }
}

/// The name of the file that arms a point.
pub fn file_name(point: Point, moment: Moment) -> String {
    format!("{point}.{moment}")
}

/// How long a process still runs after an effect, so that the NATS client can send its buffer. Acknowledgements of
/// messages are not awaited.
const FLUSH_TIME: Duration = Duration::from_millis(50);

/// Performs an effect, and crashes before or after it if its point is armed.
pub async fn effect<T>(point: Point, effect: impl Future<Output = T>) -> T {
    if armed(point, Moment::Before) {
        die(point, Moment::Before);
    }
    let outcome = effect.await;
    if armed(point, Moment::After) {
        sleep(FLUSH_TIME).await;
        die(point, Moment::After);
    }
    outcome
}

/// Like [`effect`], for a synchronous effect.
pub fn effect_blocking<T>(point: Point, effect: impl FnOnce() -> T) -> T {
    if armed(point, Moment::Before) {
        die(point, Moment::Before);
    }
    let outcome = effect();
    if armed(point, Moment::After) {
        die(point, Moment::After);
    }
    outcome
}

fn die(point: Point, moment: Moment) -> ! {
    tracing::error!(%point, %moment, "aborting the process at an armed crash point");
    std::process::abort();
}

#[cfg(not(debug_assertions))]
fn armed(_: Point, _: Moment) -> bool {
    false
}

/// Whether this process must crash here.
#[cfg(debug_assertions)]
fn armed(point: Point, moment: Moment) -> bool {
    use std::{env, fs, path::PathBuf, process, sync::LazyLock};

    static ARMED: LazyLock<Option<PathBuf>> = LazyLock::new(|| env::var_os(FOLDER).map(PathBuf::from));

    // If two processes get here at the same time, only one of them can rename the file.
    ARMED.as_ref().is_some_and(|folder| {
        let file = folder.join(file_name(point, moment));
        fs::rename(&file, file.with_added_extension(process::id().to_string())).is_ok()
    })
}
