//! Places at which a process can be made to die, so that a test sees what a death there costs.
//!
//! What brings about an effect outside of its process takes a [`Point`], and dies before or after it where that is armed:
//! a file `<point>.before` or `<point>.after` in the folder that the environment names. Who dies puts his process id behind
//! its name, so that each is one death. Nothing can be armed in a build without debug assertions.

use std::{fmt, future::Future, time::Duration};

use tokio::time::sleep;

/// The environment's name for the folder of armed points.
pub const FOLDER: &str = "GARAGE_CRASH_POINTS";

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Where: which effect of which worker.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Point {
            $($(#[$doc])* $name,)*
        }

        impl Point {
            /// Every point, those of a worker one after the other.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name, `<worker>.<effect>`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

points! {
    /// A player's wish to be matched is appended.
    Queued = "gateway.queued",
    /// Its end by the player's wish is appended.
    Cancelled = "gateway.cancelled",
    /// It is noted where a player's sockets are.
    PresenceNoted = "gateway.presence-noted",
    /// A match is appended: the session and its players.
    Matched = "matchmaker.matched",
    /// The end of tickets that nobody matched is appended.
    TimedOut = "matchmaker.timed-out",
    /// A lease is taken, renewed or given back.
    LeaseKept = "matchmaker.lease-kept",
    /// A snapshot of who waits is written.
    SnapshotWritten = "matchmaker.snapshot-written",
    /// A session's deadline is set, or taken back.
    TimerSet = "session.timer-set",
    /// A game's private key is parked in Redis.
    KeyParked = "session.key-parked",
    /// A request for a game server is appended.
    PodRequested = "session.pod-requested",
    /// A game server's readiness is appended.
    PodReady = "session.pod-ready",
    /// A session's opening is appended, and its players are told.
    Opened = "session.opened",
    /// The results and the end of a session are appended, and its players are let go.
    Finished = "session.finished",
    /// The end of a session without a game is appended.
    Failed = "session.failed",
    /// An event of a session is acknowledged.
    SessionAcknowledged = "session.event-acknowledged",
    /// A game server's report is acknowledged.
    ReportAcknowledged = "session.report-acknowledged",
    /// A deadline is acknowledged.
    TimerAcknowledged = "session.timer-acknowledged",
    /// A message that cannot be handled is put with the dead letters.
    DeadLetterStored = "session.letter-stored",
    /// A consumer that has stopped is made again.
    ConsumerMade = "session.consumer-made",
    /// The projections are brought forward.
    Projected = "session.projected",
    /// The projections are begun anew.
    ProjectionsReset = "session.projections-reset",
    /// It is noted what is among the dead letters.
    DeadLettersNoted = "session.letters-noted",
    /// An instance's folder is made.
    InstanceClaimed = "director.instance-claimed",
    /// An instance's configuration is written.
    InstanceConfigured = "director.instance-configured",
    /// It is noted that an instance is about to start.
    InstanceMarked = "director.instance-marked",
    /// An instance's process is started.
    InstanceStarted = "director.instance-started",
    /// It is noted how an instance's process ended.
    ExitNoted = "director.exit-noted",
    /// An instance's process is ended, if it still runs.
    InstanceEnded = "director.instance-ended",
    /// An instance's folder is removed.
    InstanceRemoved = "director.instance-removed",
    /// A pod's secret is made.
    SecretMade = "director.secret-made",
    /// A pod is made.
    PodMade = "director.pod-made",
    /// A secret is made to go with its pod.
    OwnerSet = "director.owner-set",
    /// A pod is deleted.
    PodDeleted = "director.pod-deleted",
    /// A pod's secret is deleted.
    SecretDeleted = "director.secret-deleted",
    /// An instance's place is appended.
    PodScheduled = "director.pod-scheduled",
    /// An instance's failure is appended; session does it too.
    PodFailed = "director.pod-failed",
    /// An event of the director's consumer is acknowledged.
    DirectorAcknowledged = "director.event-acknowledged",
    /// New players get what all begin with.
    PlayersIntroduced = "inventory.players-introduced",
    /// A command on a player's belongings is carried out.
    CommandExecuted = "inventory.command-executed",
    /// A session's players are paid and rated, with the events in the outbox.
    Rewarded = "inventory.rewarded",
    /// An event of the outbox is appended.
    Published = "inventory.published",
    /// What was published is removed from the outbox.
    OutboxCleared = "inventory.outbox-cleared",
    /// It is noted that an event of the outbox cannot be published.
    OutboxHeld = "inventory.outbox-held",
    /// And why.
    OutboxReasonNoted = "inventory.outbox-reason-noted",
    /// Old idempotency keys are forgotten.
    KeysForgotten = "inventory.keys-forgotten",
    /// The end of a session is acknowledged.
    RewardAcknowledged = "inventory.event-acknowledged",
    /// The projections are about to be made anew beside the live ones, by `garage rebuild`.
    ProjectionsBegun = "garage.projections-begun",
    /// What was folded for them is written.
    ProjectionsMade = "garage.projections-made",
    /// Those that were made anew take the place of the live ones.
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

/// On which side of its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// It does not come about.
    Before,
    /// It has come about, and nobody here has taken note of it.
    After,
}

impl Moment {
    /// Both.
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

/// How long a client has to send what it was given: an acknowledgement is not waited for.
const SENDING: Duration = Duration::from_millis(50);

/// Brings an effect about.
pub async fn effect<T>(point: Point, effect: impl Future<Output = T>) -> T {
    if armed(point, Moment::Before) {
        die(point, Moment::Before);
    }
    let outcome = effect.await;
    if armed(point, Moment::After) {
        sleep(SENDING).await;
        die(point, Moment::After);
    }
    outcome
}

/// Brings an effect about that is not awaited.
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
    tracing::error!(%point, %moment, "dying, as was asked for");
    std::process::abort();
}

#[cfg(not(debug_assertions))]
fn armed(_: Point, _: Moment) -> bool {
    false
}

/// Whether who gets here is to die.
#[cfg(debug_assertions)]
fn armed(point: Point, moment: Moment) -> bool {
    use std::{env, fs, path::PathBuf, process, sync::LazyLock};

    static ARMED: LazyLock<Option<PathBuf>> = LazyLock::new(|| env::var_os(FOLDER).map(PathBuf::from));

    // Of two that get there at the same time, one renames the file.
    ARMED.as_ref().is_some_and(|folder| {
        let file = folder.join(file_name(point, moment));
        fs::rename(&file, file.with_added_extension(process::id().to_string())).is_ok()
    })
}
