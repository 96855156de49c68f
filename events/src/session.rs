//! A session: one match, from the decision that made it until it is closed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    event::{Recorded, events},
    game::{self, Loadout, Placing},
    id::{PlayerId, QueueName, Region, TicketId},
    player::{Address, Ending},
};

pub use self::{
    limits::Limits,
    view::{Status, View},
};

mod limits;
mod view;

events! {
    /// What happens to a session.
    "session" {
        /// Players were matched.
        Matched = "matched" at Matched,
        /// A game server is asked for.
        PodRequested = "pod-requested" at PodRequested,
        /// It was started on a node.
        PodScheduled = "pod-scheduled" at PodScheduled,
        /// It could not be started, or died.
        PodFailed = "pod-failed" at PodFailed,
        /// It reported that it listens.
        PodReady = "pod-ready" at PodReady,
        /// The players are told where it is.
        Opened = "opened" at Opened,
        /// There will be no game.
        Failed = "failed" at Failed,
        /// The game server reported the results.
        Finished = "finished" at Finished,
        /// All is over; nothing follows.
        Closed = "closed" at Finished,
    }
}

/// See [`Event::Matched`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Matched {
    /// Where the players had waited.
    pub queue: QueueName,
    /// Where the server is to run.
    pub region: Region,
    /// Who plays with whom.
    pub teams: Vec<Team>,
    /// Version of the rule set that decided.
    pub rules: String,
    /// The last event of the log that the decision saw.
    pub pool_seq: u64,
    /// The clock that the decision went by.
    #[serde(with = "time::serde::rfc3339")]
    pub clock: OffsetDateTime,
}

impl Matched {
    /// All its players, team by team.
    pub fn players(&self) -> impl Iterator<Item = &PlayerId> {
        self.teams.iter().flat_map(|team| &team.players).map(|member| &member.player)
    }
}

/// A side of a match.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// For example `red`.
    pub name: String,
    /// Who is on it.
    pub players: Vec<Member>,
}

/// A player of a team.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub player: PlayerId,
    /// His wish that this match grants.
    pub ticket: TicketId,
    /// His skill when he queued.
    pub rank: i32,
}

/// See [`Event::PodRequested`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodRequested {
    /// 1 for the first.
    pub attempt: u32,
    /// Where it is to run.
    pub region: Region,
    /// What each player brings.
    pub loadouts: Vec<Loadout>,
    /// The game's public key, SubjectPublicKeyInfo PEM. The private one is parked elsewhere, sealed.
    pub public_key: String,
    /// Its fingerprint, under which the private key is parked.
    pub fingerprint: String,
}

/// See [`Event::PodScheduled`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodScheduled {
    /// Which attempt.
    pub attempt: u32,
    /// The instance's name.
    pub pod: String,
    /// Where it runs.
    pub node: String,
    /// How clients reach that node.
    pub public_ip: std::net::IpAddr,
}

/// See [`Event::PodFailed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFailed {
    /// Which attempt.
    pub attempt: u32,
    /// What went wrong, as one word.
    pub reason: String,
    /// What went wrong, for a person.
    pub message: String,
}

/// See [`Event::PodReady`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReady {
    /// Which attempt.
    pub attempt: u32,
    /// Port of the TLS WebSocket.
    pub tcp_port: u16,
    /// Port of the datagrams.
    pub udp_port: u16,
}

/// See [`Event::Opened`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Which attempt succeeded.
    pub attempt: u32,
    /// Where the server is.
    #[serde(flatten)]
    pub address: Address,
}

/// See [`Event::Failed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// What went wrong, as one word.
    pub reason: String,
}

/// See [`Event::Finished`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Which attempt reported.
    pub attempt: u32,
    /// How each player did.
    pub results: Vec<Placing>,
}

/// See [`Event::Closed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// How it ended.
    pub why: Ending,
    /// How each player did; empty unless it was finished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<Placing>,
}

/// Where a session stands.
#[derive(Debug, Clone, PartialEq, Default)]
#[expect(clippy::large_enum_variant, reason = "states are folded one at a time, and most are open")]
pub enum State {
    /// There is none.
    #[default]
    New,
    /// It lives.
    Open(Open),
    /// It is over.
    Closed(Box<Past>),
}

/// A living session.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    /// What it began with.
    pub matched: Matched,
    /// When, by the stream's timestamp.
    pub began: OffsetDateTime,
    /// What it waits for.
    pub phase: Phase,
}

/// A closed session.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    /// What it began with.
    pub matched: Matched,
    /// How it ended.
    pub closed: Closed,
}

/// What a living session waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// A server to be asked for: the attempt after `attempts` failed ones.
    Unserved {
        /// Attempts that failed.
        attempts: u32,
        /// Why the last one did, as one word.
        reason: Option<String>,
    },
    /// The server to be placed and to report.
    Starting(Starting),
    /// The results.
    Running(Opened),
    /// To be given up: the server died after the players were told of it, and another one would be another match.
    Broken {
        /// Which attempt it was. What it reported before it died still counts.
        attempt: u32,
        /// Why, as one word.
        reason: String,
    },
    /// To be closed; the events that end a session come in one commit, so that only a fold in its midst sees this.
    Ending(Ending, Vec<Placing>),
}

/// A server that was asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Starting {
    /// Which attempt.
    pub attempt: u32,
    /// When it was asked for, by the stream's timestamp.
    pub since: OffsetDateTime,
    /// Fingerprint of its key.
    pub fingerprint: String,
    /// Where it was placed.
    pub scheduled: Option<PodScheduled>,
    /// What it reported.
    pub ready: Option<PodReady>,
}

impl State {
    /// The state after an event. Total: an event that does not fit changes nothing.
    #[must_use]
    pub fn evolve(self, recorded: &Recorded<Event>) -> Self {
        let mut open = match (self, &recorded.event) {
            (Self::New, Event::Matched(matched)) => {
                let phase = Phase::Unserved { attempts: 0, reason: None };
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
                    _ => Phase::Unserved { attempts: failed.attempt, reason: Some(reason) },
                };
            }
            (Event::Opened(opened), phase) => *phase = Phase::Running(opened.clone()),
            (Event::Failed(_), phase) => *phase = Phase::Ending(Ending::Failed, Vec::new()),
            (Event::Finished(data), phase) => *phase = Phase::Ending(Ending::Finished, data.results.clone()),
            (Event::Closed(closed), _) => {
                return Self::Closed(Box::new(Past { matched: open.matched, closed: closed.clone() }));
            }
        }
        Self::Open(open)
    }

    /// The attempt that has a server, or is getting one.
    pub fn present_attempt(&self) -> Option<u32> {
        match self {
            Self::Open(Open { phase: Phase::Starting(Starting { attempt, .. }), .. })
            | Self::Open(Open { phase: Phase::Running(Opened { attempt, .. }), .. }) => Some(*attempt),
            Self::Open(_) | Self::New | Self::Closed(_) => None,
        }
    }

    /// The last attempt that was asked for; 0 before the first, and where nothing is known of the session.
    pub fn last_attempt(&self) -> u32 {
        match self {
            Self::Open(Open { phase, .. }) => match phase {
                Phase::Unserved { attempts, .. } => *attempts,
                Phase::Starting(Starting { attempt, .. })
                | Phase::Running(Opened { attempt, .. })
                | Phase::Broken { attempt, .. } => *attempt,
                // Nothing is asked for any more.
                Phase::Ending(..) => u32::MAX,
            },
            Self::New => 0,
            Self::Closed(_) => u32::MAX,
        }
    }

    /// What it began with.
    pub fn matched(&self) -> Option<&Matched> {
        match self {
            Self::New => None,
            Self::Open(open) => Some(&open.matched),
            Self::Closed(past) => Some(&past.matched),
        }
    }
}

impl Open {
    /// When the present phase is overdue.
    pub fn deadline(&self, limits: &Limits) -> OffsetDateTime {
        let end = self.began + limits.session;
        match &self.phase {
            Phase::Starting(starting) => end.min(starting.since + limits.ready),
            Phase::Unserved { .. } | Phase::Running(_) | Phase::Broken { .. } | Phase::Ending(..) => end,
        }
    }

    /// What is to be done next, with nothing new having happened.
    pub fn next(&self, limits: &Limits) -> Next {
        match &self.phase {
            Phase::Unserved { attempts, .. } if *attempts < limits.attempts => {
                Next::RequestPod { attempt: attempts + 1 }
            }
            Phase::Unserved { reason, .. } => {
                Next::End(Command::Fail { reason: reason.clone().unwrap_or_else(|| "no-attempts".into()) })
            }
            Phase::Broken { reason, .. } => Next::End(Command::Fail { reason: reason.clone() }),
            Phase::Starting(Starting {
                scheduled: Some(scheduled), ready: Some(ready), attempt, fingerprint, ..
            }) => Next::Open(Opened {
                attempt: *attempt,
                address: Address {
                    ip: scheduled.public_ip,
                    tcp_port: ready.tcp_port,
                    udp_port: ready.udp_port,
                    fingerprint: fingerprint.clone(),
                },
            }),
            Phase::Starting(_) | Phase::Running(_) | Phase::Ending(..) => Next::Wait,
        }
    }
}

/// What a session needs next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Loadouts, a key, and then [`Command::RequestPod`].
    RequestPod {
        /// Which attempt it will be.
        attempt: u32,
    },
    /// [`Command::Open`], and each player told.
    Open(Opened),
    /// This command, and each player released.
    End(Command),
    /// Nothing but time or news.
    Wait,
}

/// What can be asked of a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// To begin.
    Create(Matched),
    /// To ask for a server.
    RequestPod(PodRequested),
    /// To note where it was placed.
    Schedule(PodScheduled),
    /// To note that it failed.
    FailPod(PodFailed),
    /// To note its report that it listens.
    Ready {
        /// Which attempt reported.
        attempt: u32,
        /// The report.
        report: game::Ready,
    },
    /// To tell the players.
    Open(Opened),
    /// To note its report of the results, and close.
    Finish {
        /// Which attempt reported.
        attempt: u32,
        /// The report.
        report: game::Finished,
    },
    /// To give up, and close.
    Fail {
        /// What went wrong, as one word.
        reason: String,
    },
    /// To look whether the present phase is overdue.
    Deadline {
        /// The clock of who asks.
        now: OffsetDateTime,
        /// The limits that hold.
        limits: Limits,
    },
}

impl Command {
    /// The attempt whose server it tells of.
    fn attempt(&self) -> Option<u32> {
        match self {
            Self::Schedule(PodScheduled { attempt, .. })
            | Self::FailPod(PodFailed { attempt, .. })
            | Self::Ready { attempt, .. }
            | Self::Finish { attempt, .. } => Some(*attempt),
            Self::Create(_) | Self::RequestPod(_) | Self::Open(_) | Self::Fail { .. } | Self::Deadline { .. } => None,
        }
    }
}

/// Why a command brings no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The session has begun already.
    #[error("session exists already")]
    Exists,
    /// There is no such session.
    #[error("session does not exist")]
    Unknown,
    /// It is over.
    #[error("session is closed")]
    Closed,
    /// It speaks of an attempt that is not the present one.
    #[error("attempt {attempt} is not the present one")]
    Stale {
        /// The attempt named.
        attempt: u32,
    },
    /// It speaks of a server that was never asked for, as far as was read: who read the session may not have seen all of
    /// it.
    #[error("no such server was asked for, as far as is known")]
    Unasked,
    /// It speaks of what must come after something that has not been noted yet; try again later.
    #[error("something that must come first is still on its way")]
    Early,
    /// It is known already, or does not fit the phase.
    #[error("nothing new for this phase")]
    Moot,
    /// The report does not name each player once.
    #[error("results do not name each player of the session once")]
    BadResults,
}

/// Decides on a session.
///
/// # Errors
/// [`Rejection`] when its state does not admit the command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    if command.attempt().is_some_and(|attempt| attempt > state.last_attempt()) {
        return Err(Rejection::Unasked);
    }
    let (open, command) = match (state, command) {
        (State::New, Command::Create(matched)) => return Ok(vec![matched.into()]),
        (State::Open(_) | State::Closed(_), Command::Create(_)) => return Err(Rejection::Exists),
        (State::New, _) => return Err(Rejection::Unknown),
        (State::Closed(_), _) => return Err(Rejection::Closed),
        (State::Open(open), command) => (open, command),
    };
    let stale = |attempt| Err(Rejection::Stale { attempt });
    match (command, &open.phase) {
        (Command::RequestPod(requested), Phase::Unserved { attempts, .. }) => {
            if requested.attempt == attempts + 1 {
                Ok(vec![requested.into()])
            } else {
                stale(requested.attempt)
            }
        }
        (Command::Schedule(scheduled), Phase::Starting(starting)) => {
            if scheduled.attempt != starting.attempt {
                stale(scheduled.attempt)
            } else if starting.scheduled.is_some() {
                Err(Rejection::Moot)
            } else {
                Ok(vec![scheduled.into()])
            }
        }
        (
            Command::FailPod(failed),
            Phase::Starting(Starting { attempt, .. }) | Phase::Running(Opened { attempt, .. }),
        ) => {
            if failed.attempt == *attempt {
                Ok(vec![failed.into()])
            } else {
                stale(failed.attempt)
            }
        }
        (Command::Ready { attempt, report }, Phase::Starting(starting)) => {
            if attempt != starting.attempt {
                stale(attempt)
            } else if starting.ready.is_some() {
                Err(Rejection::Moot)
            } else {
                Ok(vec![PodReady { attempt, tcp_port: report.tcp_port, udp_port: report.udp_port }.into()])
            }
        }
        (Command::Open(opened), Phase::Starting(starting)) => {
            if opened.attempt != starting.attempt {
                stale(opened.attempt)
            } else if starting.scheduled.is_some() && starting.ready.is_some() {
                Ok(vec![opened.into()])
            } else {
                Err(Rejection::Moot)
            }
        }
        (
            Command::Finish { attempt, report },
            Phase::Running(Opened { attempt: present, .. }) | Phase::Broken { attempt: present, .. },
        ) => {
            if attempt != *present {
                return stale(attempt);
            }
            if !names_each_once(&open.matched, &report.results) {
                return Err(Rejection::BadResults);
            }
            let results = report.results;
            Ok(vec![Finished { attempt, results: results.clone() }.into(), close(Ending::Finished, results)])
        }
        // The server is further than the log: its earlier report is still on its way.
        (Command::Finish { attempt, .. }, Phase::Starting(starting)) => {
            if attempt == starting.attempt {
                Err(Rejection::Early)
            } else {
                stale(attempt)
            }
        }
        (Command::Fail { reason }, _) => Ok(vec![Failed { reason }.into(), close(Ending::Failed, Vec::new())]),
        (Command::Deadline { now, limits }, phase) => {
            if now < open.deadline(&limits) {
                return Err(Rejection::Moot);
            }
            if now >= open.began + limits.session {
                let reason = "hard-end".into();
                return Ok(vec![Failed { reason }.into(), close(Ending::Abandoned, Vec::new())]);
            }
            match phase {
                // It was ready in time; that nobody has opened the session yet is not the server's fault.
                Phase::Starting(Starting { scheduled: Some(_), ready: Some(_), .. }) => Err(Rejection::Moot),
                Phase::Starting(Starting { attempt, .. }) => Ok(vec![
                    PodFailed {
                        attempt: *attempt,
                        reason: "not-ready".into(),
                        message: format!("not placed and ready within {} s", limits.ready.whole_seconds()),
                    }
                    .into(),
                ]),
                Phase::Unserved { .. } | Phase::Running(_) | Phase::Broken { .. } | Phase::Ending(..) => {
                    Err(Rejection::Moot)
                }
            }
        }
        _ => Err(Rejection::Moot),
    }
}

fn close(why: Ending, results: Vec<Placing>) -> Event {
    Closed { why, results }.into()
}

fn names_each_once(matched: &Matched, results: &[Placing]) -> bool {
    let mut named: BTreeMap<&PlayerId, u32> = matched.players().map(|player| (player, 0)).collect();
    for placing in results {
        match named.get_mut(&placing.player) {
            Some(times) => *times += 1,
            None => return false,
        }
    }
    named.values().all(|times| *times == 1)
}

#[cfg(test)]
mod tests;
