//! Time and attempt limits of a session.

use time::Duration;

/// How long the phases may take, and how many game servers may be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The maximum number of attempts at starting a game server.
    pub attempts: u32,
    /// From the request until the game server must be placed and ready.
    pub ready: Duration,
    /// From the match until the hard end, the time at which the session closes in any phase.
    pub session: Duration,
}

impl Default for Limits {
    /// The defaults for game servers that run as processes.
    fn default() -> Self {
        Self { attempts: 3, ready: Duration::seconds(10), session: Duration::minutes(15) }
    }
}
