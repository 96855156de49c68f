//! The state of a session: the fold of its events, and the next step that it needs.

use time::OffsetDateTime;

use super::{
    Closed, Command, Event, Limits, Matched, Opened, PodFailed, PodReady, PodScheduled, Proposal, ProposalEnded,
    limits::pause_after,
};
use crate::{
    event::Recorded,
    failure::NO_CAPACITY,
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
    /// The match is proposed. Its players must accept it before the session opens.
    Proposed(Box<Proposal>),
    /// The match is made and the session is not closed. (The status `open` in a view is [`Phase::Running`].)
    Open(Open),
    /// The session is closed.
    Closed(Box<ClosedSession>),
}

/// A session that is not closed yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    pub matched: Matched,
    /// When the match was made: the stream's timestamp of `Matched`.
    pub began: OffsetDateTime,
    /// The hard end, as the first request for a game server recorded it; `None` before, and if an older build wrote it.
    pub ends_at: Option<OffsetDateTime>,
    /// The failures before the session opened.
    pub failures: Failures,
    pub phase: Phase,
}

/// The failed attempts of a session, from which the pauses between attempts follow. All times are timestamps of the
/// stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failures {
    /// The number of failed attempts, without those that found no room. [`Limits::attempts`] limits it.
    pub counted: u32,
    /// The number of attempts that found no room, since the last failure of another kind.
    pub without_room: u32,
    /// When the last attempt was requested that did not follow a lack of room. Its ready deadline also limits how long
    /// the session waits for room, and the pauses between attempts.
    pub since: Option<OffsetDateTime>,
    /// When the last attempt failed.
    pub last: Option<OffsetDateTime>,
}

impl Failures {
    fn requested(&mut self, at: OffsetDateTime) {
        if self.without_room == 0 {
            self.since = Some(at);
        }
    }

    fn failed(&mut self, failed: &PodFailed, at: OffsetDateTime) {
        self.last = Some(at);
        if failed.reason == NO_CAPACITY {
            self.without_room += 1;
        } else {
            (self.counted, self.without_room) = (self.counted + 1, 0);
        }
    }

    /// Whether there was no room until the ready deadline.
    fn is_out_of_room(&self, limits: &Limits) -> bool {
        let last_try = self.last.zip(self.since).is_some_and(|(last, since)| last >= since + limits.ready);
        self.without_room > 0 && last_try
    }

    /// The earliest time of the next attempt: after a pause, but not later than the ready deadline of the failed one.
    /// So pauses do not prolong the start of a session. `None` before the first attempt.
    fn not_before(&self, limits: &Limits) -> Option<OffsetDateTime> {
        let pause = pause_after(if self.without_room > 0 { self.without_room } else { self.counted });
        self.last.zip(self.since).map(|(last, since)| (last + pause).min(since + limits.ready))
    }
}

/// A closed session.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedSession {
    /// The match that was made or proposed.
    pub matched: Matched,
    /// `None` if the match was made.
    pub ended: Option<ProposalEnded>,
    pub closed: Closed,
}

/// The phase of an open session, named after what it waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// A game server must be requested.
    NeedsServer {
        /// The number of the last attempt; 0 before the first.
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
            (Self::New, Event::Proposed(proposed)) => {
                return Self::Proposed(Box::new(Proposal::new(proposed.clone())));
            }
            (Self::Proposed(mut proposal), event) => {
                match event {
                    Event::Matched(matched) => return Self::Open(Open::new(matched.clone(), recorded.time)),
                    Event::Closed(closed) => {
                        let (matched, ended) = (proposal.proposed.matched, proposal.ended);
                        return Self::Closed(Box::new(ClosedSession { matched, ended, closed: closed.clone() }));
                    }
                    Event::Accepted(accepted) => drop(proposal.accepted.insert(accepted.player.clone())),
                    Event::ProposalEnded(ended) => proposal.ended = Some(ended.clone()),
                    Event::Proposed(_)
                    | Event::PodRequested(_)
                    | Event::PodScheduled(_)
                    | Event::PodFailed(_)
                    | Event::PodReady(_)
                    | Event::Opened(_)
                    | Event::Failed(_)
                    | Event::Finished(_) => {}
                }
                return Self::Proposed(proposal);
            }
            (Self::New, Event::Matched(matched)) => {
                return Self::Open(Open::new(matched.clone(), recorded.time));
            }
            (Self::Open(open), _) => open,
            (state @ (Self::New | Self::Closed(_)), _) => return state,
        };
        match (&recorded.event, &mut open.phase) {
            (Event::Matched(_) | Event::Proposed(_) | Event::Accepted(_) | Event::ProposalEnded(_), _) => {}
            (Event::PodRequested(requested), phase) => {
                open.ends_at = open.ends_at.or(requested.ends_at);
                open.failures.requested(recorded.time);
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
                open.failures.failed(failed, recorded.time);
                *phase = match phase {
                    Phase::Running(_) => Phase::Broken { attempt: failed.attempt, reason },
                    _ => Phase::NeedsServer { attempts: failed.attempt, reason: Some(reason) },
                };
            }
            (Event::Opened(opened), phase) => *phase = Phase::Running(opened.clone()),
            (Event::Failed(_), phase) => *phase = Phase::Ending(Ending::Failed, Vec::new()),
            (Event::Finished(data), phase) => *phase = Phase::Ending(Ending::Finished, data.results.clone()),
            (Event::Closed(closed), _) => {
                let (matched, closed) = (open.matched, closed.clone());
                return Self::Closed(Box::new(ClosedSession { matched, ended: None, closed }));
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
            Self::Open(_) | Self::New | Self::Proposed(_) | Self::Closed(_) => None,
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
            Self::New | Self::Proposed(_) => 0,
            Self::Closed(_) => u32::MAX,
        }
    }

    /// Whether the players have received the game server's address, and the session is not closed yet.
    pub fn is_opened(&self) -> bool {
        matches!(self, Self::Open(Open { phase: Phase::Running(_) | Phase::Broken { .. }, .. }))
    }

    /// The match that is made or proposed; `None` if the session is new.
    pub fn matched(&self) -> Option<&Matched> {
        match self {
            Self::New => None,
            Self::Proposed(proposal) => Some(&proposal.proposed.matched),
            Self::Open(open) => Some(&open.matched),
            Self::Closed(past) => Some(&past.matched),
        }
    }
}

impl Open {
    fn new(matched: Matched, began: OffsetDateTime) -> Self {
        let phase = Phase::NeedsServer { attempts: 0, reason: None };
        Self { matched, began, ends_at: None, failures: Failures::default(), phase }
    }

    /// The hard end of the session.
    pub fn hard_end(&self, limits: &Limits) -> OffsetDateTime {
        self.ends_at.unwrap_or(self.began + limits.session)
    }

    /// When the current phase times out. Once this time has passed, [`Command::Deadline`] takes effect.
    pub fn deadline(&self, limits: &Limits) -> OffsetDateTime {
        let end = self.hard_end(limits);
        match &self.phase {
            Phase::Starting(starting) => end.min(starting.since + limits.ready),
            Phase::NeedsServer { .. } | Phase::Running(_) | Phase::Broken { .. } | Phase::Ending(..) => end,
        }
    }

    /// The next step that the session needs in its current state.
    pub fn next(&self, limits: &Limits) -> Next {
        match &self.phase {
            Phase::NeedsServer { attempts, .. }
                if self.failures.counted < limits.attempts && !self.failures.is_out_of_room(limits) =>
            {
                Next::RequestPod { attempt: attempts + 1, not_before: self.failures.not_before(limits) }
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
        /// Wait until this time of the stream's clock; `None` if there is no pause.
        not_before: Option<OffsetDateTime>,
    },
    /// Decide [`Command::Open`], and announce the address to each player.
    Open(Opened),
    /// Decide this command, and release each player.
    End(Command),
    /// Wait for an event or for the deadline.
    Wait,
}
