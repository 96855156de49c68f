//! The state of a session: the fold of its events, and the next step that it needs.

use time::OffsetDateTime;

use super::{Closed, Command, Event, Limits, Matched, Opened, PodReady, PodScheduled};
use crate::{
    event::Recorded,
    game::Placing,
    player::{Address, Ending},
};

/// The state of a session.
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(clippy::large_enum_variant, reason = "few states exist at the same time, and most of them are open")]
pub enum State {
    /// The session has no event yet.
    #[default]
    New,
    /// The session has begun and is not closed. (The status `open` in a view is [`Phase::Running`].)
    Open(Open),
    /// The session is closed.
    Closed(Box<ClosedSession>),
}

/// A session that is not closed yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    pub matched: Matched,
    /// When the session began: the stream's timestamp of its first event.
    pub began: OffsetDateTime,
    pub phase: Phase,
}

/// A closed session.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedSession {
    pub matched: Matched,
    pub closed: Closed,
}

/// The phase of an open session, named after what it waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// A game server must be requested.
    NeedsServer {
        /// The number of attempts that have failed.
        attempts: u32,
        /// The reason of the last failure; `None` before the first attempt.
        reason: Option<String>,
    },
    /// A game server was requested. It must be placed on a node and report that it is ready.
    Starting(Starting),
    /// The players have the server's address. The server must report the results.
    Running(Opened),
    /// The server died after the players received its address. The session must fail, because another server would be
    /// another match.
    Broken {
        /// The attempt of that server. Results that it reported before it died still count.
        attempt: u32,
        /// The reason of the failure.
        reason: String,
    },
    /// `Failed` or `Finished` was folded, but not `Closed`. Both are in one commit, so only a fold that stops in the
    /// middle of this commit sees this phase.
    Ending(Ending, Vec<Placing>),
}

/// A game server that was requested.
#[derive(Debug, Clone, PartialEq)]
pub struct Starting {
    pub attempt: u32,
    /// When it was requested, by the stream's timestamp.
    pub since: OffsetDateTime,
    /// Fingerprint of the server's key.
    pub fingerprint: String,
    /// `None` until the director has placed the server.
    pub scheduled: Option<PodScheduled>,
    /// `None` until the server has reported. It may report before `scheduled` is set.
    pub ready: Option<PodReady>,
}

impl State {
    /// The state after an event. An event that does not fit the state changes nothing.
    #[must_use]
    pub fn evolve(self, recorded: &Recorded<Event>) -> Self {
        let mut open = match (self, &recorded.event) {
            (Self::New, Event::Matched(matched)) => {
                let phase = Phase::NeedsServer { attempts: 0, reason: None };
                return Self::Open(Open { matched: matched.clone(), began: recorded.time, phase });
            }
            (Self::Open(open), _) => open,
            (state @ (Self::New | Self::Closed(_)), _) => return state,
        };
        match (&recorded.event, &mut open.phase) {
            (Event::Matched(_), _) => {}
            (Event::PodRequested(requested), phase) => {
                *phase = Phase::Starting(Starting {
                    attempt: requested.attempt,
                    since: recorded.time,
                    fingerprint: requested.fingerprint.clone(),
                    scheduled: None,
                    ready: None,
                });
            }
            (Event::PodScheduled(data), Phase::Starting(starting)) => starting.scheduled = Some(data.clone()),
            (Event::PodReady(data), Phase::Starting(starting)) => starting.ready = Some(data.clone()),
            (Event::PodScheduled(_) | Event::PodReady(_), _) => {}
            (Event::PodFailed(failed), phase) => {
                let reason = failed.reason.clone();
                *phase = match phase {
                    Phase::Running(_) => Phase::Broken { attempt: failed.attempt, reason },
                    _ => Phase::NeedsServer { attempts: failed.attempt, reason: Some(reason) },
                };
            }
            (Event::Opened(opened), phase) => *phase = Phase::Running(opened.clone()),
            (Event::Failed(_), phase) => *phase = Phase::Ending(Ending::Failed, Vec::new()),
            (Event::Finished(data), phase) => *phase = Phase::Ending(Ending::Finished, data.results.clone()),
            (Event::Closed(closed), _) => {
                return Self::Closed(Box::new(ClosedSession { matched: open.matched, closed: closed.clone() }));
            }
        }
        Self::Open(open)
    }

    /// The attempt that is starting or running a server; `None` if no server is needed, or if the next one has not been
    /// requested yet.
    pub fn current_attempt(&self) -> Option<u32> {
        match self {
            Self::Open(Open { phase: Phase::Starting(Starting { attempt, .. }), .. })
            | Self::Open(Open { phase: Phase::Running(Opened { attempt, .. }), .. }) => Some(*attempt),
            Self::Open(_) | Self::New | Self::Closed(_) => None,
        }
    }

    /// The last attempt that was requested: 0 if there was none, and `u32::MAX` once the session ends and no attempt
    /// will follow.
    pub fn last_attempt(&self) -> u32 {
        match self {
            Self::Open(Open { phase, .. }) => match phase {
                Phase::NeedsServer { attempts, .. } => *attempts,
                Phase::Starting(Starting { attempt, .. })
                | Phase::Running(Opened { attempt, .. })
                | Phase::Broken { attempt, .. } => *attempt,
                Phase::Ending(..) => u32::MAX,
            },
            Self::New => 0,
            Self::Closed(_) => u32::MAX,
        }
    }

    /// The event that began the session; `None` if the session is new.
    pub fn matched(&self) -> Option<&Matched> {
        match self {
            Self::New => None,
            Self::Open(open) => Some(&open.matched),
            Self::Closed(past) => Some(&past.matched),
        }
    }
}

impl Open {
    /// When the current phase times out. Once this time has passed, [`Command::Deadline`] takes effect.
    pub fn deadline(&self, limits: &Limits) -> OffsetDateTime {
        let end = self.began + limits.session;
        match &self.phase {
            Phase::Starting(starting) => end.min(starting.since + limits.ready),
            Phase::NeedsServer { .. } | Phase::Running(_) | Phase::Broken { .. } | Phase::Ending(..) => end,
        }
    }

    /// The next step that the session needs in its current state.
    pub fn next(&self, limits: &Limits) -> Next {
        match &self.phase {
            Phase::NeedsServer { attempts, .. } if *attempts < limits.attempts => {
                Next::RequestPod { attempt: attempts + 1 }
            }
            Phase::NeedsServer { reason, .. } => {
                Next::End(Command::Fail { reason: reason.clone().unwrap_or_else(|| "no-attempts".into()) })
            }
            Phase::Broken { reason, .. } => Next::End(Command::Fail { reason: reason.clone() }),
            Phase::Starting(Starting {
                scheduled: Some(scheduled), ready: Some(ready), attempt, fingerprint, ..
            }) => Next::Open(Opened {
                attempt: *attempt,
                address: Address { ip: scheduled.public_ip, ports: ready.ports, fingerprint: fingerprint.clone() },
            }),
            Phase::Starting(_) | Phase::Running(_) | Phase::Ending(..) => Next::Wait,
        }
    }
}

/// The next step for a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Get the loadouts and a key, then decide [`Command::RequestPod`].
    RequestPod {
        /// The number of the attempt that this request starts.
        attempt: u32,
    },
    /// Decide [`Command::Open`], and announce the address to each player.
    Open(Opened),
    /// Decide this command, and release each player.
    End(Command),
    /// Wait for an event or for the deadline.
    Wait,
}
