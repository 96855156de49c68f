//! A proposed match: who has accepted it, and which events an answer or the deadline results in.

use std::collections::BTreeSet;

use super::{Accepted, Closed, Command, Event, Matched, NotAccepted, ProposalEnded, Proposed, Rejection};
use crate::{id::PlayerId, player::Ending};

/// The state of a session whose match is proposed.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    pub proposed: Proposed,
    pub accepted: BTreeSet<PlayerId>,
    /// `ProposalEnded`, if it was folded, but not `Closed`. Both are in one commit, so only a fold that stops in the middle
    /// of this commit sees it.
    pub ended: Option<ProposalEnded>,
}

impl Proposal {
    pub(super) fn new(proposed: Proposed) -> Self {
        Self { proposed, accepted: BTreeSet::new(), ended: None }
    }

    /// Decides on a command for a proposed match.
    pub(super) fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        let accept_by = self.proposed.accept_by;
        match command {
            Command::Propose(_) | Command::Create(_) => Err(Rejection::Exists),
            _ if self.ended.is_some() => Err(Rejection::Closed),
            Command::Accept { player, now } => {
                self.proposed.matched.check_player(&player)?;
                if self.accepted.contains(&player) {
                    return Err(Rejection::Repeated);
                }
                if now >= accept_by { Err(Rejection::TooLate) } else { Ok(self.accept(player)) }
            }
            Command::Decline { player, why } => {
                self.proposed.matched.check_player(&player)?;
                // The match does not need the player's socket before its game server is ready.
                if why == NotAccepted::Disconnected && self.accepted.contains(&player) {
                    return Err(Rejection::NoChange);
                }
                Ok(end(why, vec![player]))
            }
            Command::Deadline { now, .. } if now >= accept_by => {
                Ok(end(NotAccepted::Unanswered, self.silent().cloned().collect()))
            }
            Command::Deadline { .. }
            | Command::RequestPod(_)
            | Command::Schedule(_)
            | Command::FailPod(_)
            | Command::Ready { .. }
            | Command::Open(_)
            | Command::Finish { .. }
            | Command::Fail { .. } => Err(Rejection::NoChange),
        }
    }

    /// The players who have not accepted.
    fn silent(&self) -> impl Iterator<Item = &PlayerId> {
        self.proposed.matched.players().filter(|player| !self.accepted.contains(*player))
    }

    fn accept(&self, player: PlayerId) -> Vec<Event> {
        let missing = self.silent().filter(|silent| **silent != player).count();
        let count = |players: usize| u32::try_from(players).unwrap_or(u32::MAX);
        let (accepted, of) = (count(self.accepted.len() + 1), count(self.proposed.matched.players().count()));
        let event = Event::from(Accepted { player, accepted, of });
        if missing > 0 { vec![event] } else { vec![event, self.proposed.matched.clone().into()] }
    }
}

impl Matched {
    /// Checks that a player is in the match.
    ///
    /// # Errors
    /// [`Rejection::NotAPlayer`]
    pub(super) fn check_player(&self, player: &PlayerId) -> Result<(), Rejection> {
        if self.players().any(|one| one == player) { Ok(()) } else { Err(Rejection::NotAPlayer) }
    }
}

fn end(why: NotAccepted, players: Vec<PlayerId>) -> Vec<Event> {
    let closed = Closed { why: Ending::NotAccepted, results: Vec::new(), teams: Vec::new() };
    vec![ProposalEnded { why, players }.into(), closed.into()]
}
