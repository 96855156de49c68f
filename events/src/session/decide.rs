//! The decider: which events a command results in.

use time::OffsetDateTime;

use super::{
    Closed, Event, Failed, Finished, Limits, Matched, NotAccepted, Opened, Phase, PodFailed, PodReady, PodRequested,
    PodScheduled, Proposed, Starting, State,
    results::{self, BadResults},
};
use crate::{failure::HARD_END, game, id::PlayerId, player::Ending};

/// What a worker can request for a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Begin the session.
    Create(Matched),
    /// Begin the session with a match that its players must accept.
    Propose(Proposed),
    /// Record that a player accepts the proposed match. The last one makes the match.
    Accept {
        player: PlayerId,
        /// The current time of the caller.
        now: OffsetDateTime,
    },
    /// End the proposal, because a player does not accept the match. A disconnect does not count once the player has
    /// accepted.
    Decline { player: PlayerId, why: NotAccepted },
    /// Request a game server.
    RequestPod(PodRequested),
    /// Record where the game server was placed.
    Schedule(PodScheduled),
    /// Record that the game server failed.
    FailPod(PodFailed),
    /// Record the game server's report that it listens.
    Ready { attempt: u32, report: game::Ready },
    /// Record that the players receive the game server's address.
    Open(Opened),
    /// Record the game server's report of the results, and close the session.
    Finish { attempt: u32, report: game::Finished },
    /// Fail and close the session.
    Fail {
        /// The cause as a stable code, for example `no-attempts`.
        reason: String,
    },
    /// Time out the current phase if its deadline has passed.
    Deadline {
        /// The current time of the caller.
        now: OffsetDateTime,
        limits: Limits,
    },
}

impl Command {
    /// The attempt whose server the command reports on.
    fn attempt(&self) -> Option<u32> {
        match self {
            Self::Schedule(PodScheduled { attempt, .. })
            | Self::FailPod(PodFailed { attempt, .. })
            | Self::Ready { attempt, .. }
            | Self::Finish { attempt, .. } => Some(*attempt),
            Self::Create(_)
            | Self::Propose(_)
            | Self::Accept { .. }
            | Self::Decline { .. }
            | Self::RequestPod(_)
            | Self::Open(_)
            | Self::Fail { .. }
            | Self::Deadline { .. } => None,
        }
    }
}

/// Why a command was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("session already exists")]
    Exists,
    #[error("session does not exist")]
    Unknown,
    #[error("session is closed")]
    Closed,
    /// The command is about an attempt that is not the current one.
    #[error("attempt {attempt} is not the current one")]
    Stale {
        /// The attempt of the command.
        attempt: u32,
    },
    /// The command is about an attempt that the log has not requested. The read may have been stale, so try again.
    #[error("this attempt has not been requested, or the read of the session was stale")]
    UnknownAttempt,
    /// The command is about results, but the session is not open yet: an earlier report is still on its way. Try again
    /// later.
    #[error("results cannot be recorded before the session is open")]
    TooEarly,
    /// The log already has the event that the command would record, or the command does not apply in the current phase.
    #[error("the command changes nothing in the current phase")]
    NoChange,
    /// The player of the answer is not in the match.
    #[error("the player is not in this match")]
    NotAPlayer,
    /// The log already has this answer of the player.
    #[error("the player has already given this answer")]
    Repeated,
    /// The proposal has ended: at its deadline, because a player declined, or because all players have accepted.
    #[error("the proposed match is no longer waiting for answers")]
    TooLate,
    /// The reported results contradict the session or themselves.
    #[error(transparent)]
    BadResults(#[from] BadResults),
}

/// Decides on a session.
///
/// # Errors
/// [`Rejection`] if the state does not allow the command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    if command.attempt().is_some_and(|attempt| attempt > state.last_attempt()) {
        return Err(Rejection::UnknownAttempt);
    }
    let (open, command) = match (state, command) {
        (State::New, Command::Create(matched)) => return Ok(vec![matched.into()]),
        (State::New, Command::Propose(proposed)) => return Ok(vec![proposed.into()]),
        (State::Open(_) | State::Closed(_), Command::Create(_) | Command::Propose(_)) => {
            return Err(Rejection::Exists);
        }
        (State::New, _) => return Err(Rejection::Unknown),
        (State::Proposed(proposal), command) => return proposal.decide(command),
        // The match was made, so the player has accepted it.
        (State::Open(open), Command::Accept { player, .. }) => {
            return open.matched.check_player(&player).and(Err(Rejection::Repeated));
        }
        (State::Open(open), Command::Decline { player, .. }) => {
            return open.matched.check_player(&player).and(Err(Rejection::TooLate));
        }
        (State::Closed(past), Command::Accept { player, .. }) => {
            return past.matched.check_player(&player).and(Err(Rejection::TooLate));
        }
        (State::Closed(past), Command::Decline { player, .. }) => {
            let repeats = past.ended.as_ref().is_some_and(|ended| ended.players.contains(&player));
            let rejection = if repeats { Rejection::Repeated } else { Rejection::TooLate };
            return past.matched.check_player(&player).and(Err(rejection));
        }
        (State::Closed(_), _) => return Err(Rejection::Closed),
        (State::Open(open), command) => (open, command),
    };
    let stale = |attempt| Err(Rejection::Stale { attempt });
    match (command, &open.phase) {
        (Command::RequestPod(requested), Phase::NeedsServer { attempts, .. }) => {
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
                Err(Rejection::NoChange)
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
                Err(Rejection::NoChange)
            } else {
                Ok(vec![PodReady { attempt, ports: report.ports }.into()])
            }
        }
        (Command::Open(opened), Phase::Starting(starting)) => {
            if opened.attempt != starting.attempt {
                stale(opened.attempt)
            } else if starting.scheduled.is_some() && starting.ready.is_some() {
                Ok(vec![opened.into()])
            } else {
                Err(Rejection::NoChange)
            }
        }
        (
            Command::Finish { attempt, report },
            Phase::Running(Opened { attempt: current, .. }) | Phase::Broken { attempt: current, .. },
        ) => {
            if attempt != *current {
                return stale(attempt);
            }
            let game::Finished { results, teams } = report;
            results::check(&open.matched, &results, &teams)?;
            let teams = results::with_players(&open.matched, teams);
            let closed = Closed { why: Ending::Finished, results: results.clone(), teams: teams.clone() };
            Ok(vec![Finished { attempt, results, teams }.into(), closed.into()])
        }
        // The results came too early: the server's ready report, or the opening of the session, is not in the log yet.
        (Command::Finish { attempt, .. }, Phase::Starting(starting)) => {
            if attempt == starting.attempt {
                Err(Rejection::TooEarly)
            } else {
                stale(attempt)
            }
        }
        (Command::Fail { reason }, _) => Ok(vec![Failed { reason }.into(), close(Ending::Failed)]),
        (Command::Deadline { now, limits }, phase) => {
            if now < open.deadline(&limits) {
                return Err(Rejection::NoChange);
            }
            if now >= open.hard_end(&limits) {
                let reason = HARD_END.into();
                return Ok(vec![Failed { reason }.into(), close(Ending::Abandoned)]);
            }
            match phase {
                // The server was ready in time. It is not the server's fault that the session is not open yet.
                Phase::Starting(Starting { scheduled: Some(_), ready: Some(_), .. }) => Err(Rejection::NoChange),
                Phase::Starting(Starting { attempt, .. }) => Ok(vec![
                    PodFailed::new(
                        *attempt,
                        "not-ready",
                        &format!("not placed and ready within {} s", limits.ready.whole_seconds()),
                    )
                    .into(),
                ]),
                Phase::NeedsServer { .. } | Phase::Running(_) | Phase::Broken { .. } | Phase::Ending(..) => {
                    Err(Rejection::NoChange)
                }
            }
        }
        _ => Err(Rejection::NoChange),
    }
}

fn close(why: Ending) -> Event {
    Closed { why, results: Vec::new(), teams: Vec::new() }.into()
}
