//! Time and attempt limits of a session.

use time::Duration;

/// How long the phases may take, and how many game servers may be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The maximum number of attempts at starting a game server.
    pub attempts: u32,
    /// The ready deadline: from the request until the game server must be placed and ready. Room for a game server must
    /// appear in the same time.
    pub ready: Duration,
    /// From the match until the hard end, the time at which the session closes in any phase. It applies until the first
    /// request for a game server, which records the hard end.
    pub session: Duration,
}

/// The pause after the first failure. It doubles with each further one, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::SECOND;

/// Short enough that room is noticed soon. Each attempt costs a key and two events.
const MAX_PAUSE: Duration = Duration::seconds(15);

/// The pause before the next attempt, after this many failures.
pub(super) fn pause_after(failures: u32) -> Duration {
    // Four doublings exceed the maximum.
    (FIRST_PAUSE * 2_i32.pow(failures.saturating_sub(1).min(4))).min(MAX_PAUSE)
}

impl Limits {
    /// The longest [`Limits::session`] that can be configured.
    pub const MAX_SESSION: Duration = Duration::hours(2);
}

impl Default for Limits {
    /// The defaults for game servers that run as processes.
    fn default() -> Self {
        Self { attempts: 3, ready: Duration::seconds(10), session: Duration::minutes(15) }
    }
}
