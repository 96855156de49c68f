//! What bounds a session.

use time::Duration;

/// How long the phases may take, and how often a server is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Attempts at a game server.
    pub attempts: u32,
    /// From pod-requested to pod-ready.
    pub ready: Duration,
    /// From matched to the hard end.
    pub session: Duration,
}

impl Default for Limits {
    /// The defaults of the process backend; see the table in ARCHITECTURE.md.
    fn default() -> Self {
        Self { attempts: 3, ready: Duration::seconds(10), session: Duration::minutes(15) }
    }
}
