//! Checks the log of a finished run. The check does not know how the log came about.

use std::collections::{BTreeMap, BTreeSet};

use garage_events::{
    event::{DecodeError, Event as _, Recorded},
    id::{PlayerId, SessionId, TicketId},
    party,
    player::{self, State},
    session::{self, Event},
    sim::Message,
    subject::Aggregate,
};
use time::OffsetDateTime;

/// Reads a message as an event.
pub(crate) fn decode<E: garage_events::event::Event>(message: &Message) -> Result<Recorded<E>, DecodeError> {
    Recorded::decode(message.seq, message.time, &message.body)
}

/// A summary of a log.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// The number of events by type.
    pub(crate) events: BTreeMap<&'static str, u64>,
    /// The event types of each ticket.
    pub(crate) tickets: BTreeMap<TicketId, BTreeSet<&'static str>>,
    /// How each session ended.
    pub(crate) ends: BTreeMap<SessionId, End>,
    /// The acceptances of proposed matches.
    pub(crate) accepted: BTreeSet<(SessionId, PlayerId)>,
}

/// How a session ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) why: player::Ending,
    pub(crate) at: OffsetDateTime,
    /// The last attempt at starting a game server.
    pub(crate) attempt: u32,
}

#[derive(Default)]
struct SessionCheck {
    n: u64,
    /// Determines which events may come next.
    phase: Phase,
    attempt: u32,
    scheduled: bool,
    ready: bool,
    members: BTreeMap<PlayerId, TicketId>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    New,
    Proposed,
    Unassigned,
    Starting,
    Running,
    ServerFailed,
    Finished,
    Failed,
    Closed,
}

#[derive(Default)]
struct PlayerCheck {
    n: u64,
    state: State,
}

/// The players of each session to whom one commit proposes a match, or whom it matches, notifies of the opening, or releases or requeues.
#[derive(Default)]
struct Notices {
    proposed: BTreeMap<SessionId, BTreeSet<PlayerId>>,
    matched: BTreeMap<SessionId, BTreeSet<PlayerId>>,
    opened: BTreeMap<SessionId, BTreeSet<PlayerId>>,
    released: BTreeMap<SessionId, BTreeSet<PlayerId>>,
}

/// Checks a complete log.
///
/// # Errors
/// Describes the first violation, with its sequence if it is in one event.
pub(crate) fn check(messages: &[Message]) -> Result<Tally, String> {
    let mut check = Checker::default();
    for commit in messages.chunk_by(|one, next| one.commit == next.commit) {
        check.commit(commit)?;
    }
    check.end()
}

#[derive(Default)]
struct Checker {
    sessions: BTreeMap<SessionId, SessionCheck>,
    players: BTreeMap<PlayerId, PlayerCheck>,
    /// The open session of each player, according to the session events.
    active: BTreeMap<PlayerId, SessionId>,
    tally: Tally,
}

impl Checker {
    fn commit(&mut self, messages: &[Message]) -> Result<(), String> {
        let (mut expected, mut found) = (Notices::default(), Notices::default());
        for message in messages {
            let at = |what: String| format!("event {} ({}): {what}", message.seq, message.subject);
            let corrupt = |error: DecodeError| at(error.to_string());
            match Aggregate::of(&message.subject) {
                Some(Aggregate::Session(id)) => {
                    let recorded = decode(message).map_err(corrupt)?;
                    self.session(id, &recorded, &mut expected).map_err(at)?;
                    *self.tally.events.entry(recorded.event.type_name()).or_default() += 1;
                }
                Some(Aggregate::Player(id)) => {
                    let recorded = decode(message).map_err(corrupt)?;
                    self.player(&id, &recorded, &mut found).map_err(at)?;
                    *self.tally.events.entry(recorded.event.type_name()).or_default() += 1;
                }
                // `garage verify` checks parties.
                Some(Aggregate::Party(_)) => {
                    let recorded = decode::<party::Event>(message).map_err(corrupt)?;
                    *self.tally.events.entry(recorded.event.type_name()).or_default() += 1;
                }
                Some(Aggregate::Inventory(_)) | None => {
                    return Err(at("no worker of this simulation writes such an event".into()));
                }
            }
        }
        let seq = messages.first().map_or(0, |first| first.seq);
        for (what, expected, found) in [
            ("MatchProposed", expected.proposed, found.proposed),
            ("Matched", expected.matched, found.matched),
            ("PlayerMatched", expected.opened, found.opened),
            ("Released", expected.released, found.released),
        ] {
            if expected != found {
                return Err(format!(
                    "commit at event {seq}: players have {what} {found:?}, and sessions expect {expected:?}"
                ));
            }
        }
        Ok(())
    }

    fn session(&mut self, id: SessionId, recorded: &Recorded<Event>, notices: &mut Notices) -> Result<(), String> {
        let session = self.sessions.entry(id).or_default();
        if recorded.n != session.n + 1 {
            return Err(format!("n is {} after {}", recorded.n, session.n));
        }
        session.n = recorded.n;
        let before = session.phase;
        let current = |attempt: u32| attempt == session.attempt;
        session.phase = match (before, &recorded.event) {
            (Phase::New, Event::Matched(session::Matched { teams, .. }))
            | (Phase::New, Event::Proposed(session::Proposed { matched: session::Matched { teams, .. }, .. })) => {
                let members = teams.iter().flat_map(|team| &team.players);
                session.members = members.map(|member| (member.player.clone(), member.ticket)).collect();
                for player in session.members.keys() {
                    if let Some(other) = self.active.insert(player.clone(), id) {
                        return Err(format!("{player} is still in {other}"));
                    }
                }
                let players = session.members.keys().cloned().collect();
                if let Event::Proposed(_) = recorded.event {
                    notices.proposed.insert(id, players);
                    Phase::Proposed
                } else {
                    notices.matched.insert(id, players);
                    Phase::Unassigned
                }
            }
            (Phase::Proposed, Event::Accepted(accepted)) => {
                let is_new = self.tally.accepted.insert((id, accepted.player.clone()));
                if !is_new || !session.members.contains_key(&accepted.player) {
                    return Err(format!("{} accepts twice, or is not in the match", accepted.player));
                }
                Phase::Proposed
            }
            (Phase::Proposed, Event::Matched(_)) => {
                let missing =
                    session.members.keys().find(|player| !self.tally.accepted.contains(&(id, (*player).clone())));
                if let Some(missing) = missing {
                    return Err(format!("{missing} has not accepted the match"));
                }
                notices.matched.insert(id, session.members.keys().cloned().collect());
                Phase::Unassigned
            }
            (Phase::Proposed, Event::ProposalEnded(_)) => Phase::Failed,
            (Phase::Unassigned, Event::PodRequested(requested)) if requested.attempt == session.attempt + 1 => {
                (session.attempt, session.scheduled, session.ready) = (requested.attempt, false, false);
                Phase::Starting
            }
            (Phase::Starting, Event::PodScheduled(scheduled)) if current(scheduled.attempt) && !session.scheduled => {
                session.scheduled = true;
                Phase::Starting
            }
            (Phase::Starting, Event::PodReady(ready)) if current(ready.attempt) && !session.ready => {
                session.ready = true;
                Phase::Starting
            }
            (Phase::Starting, Event::PodFailed(failed)) if current(failed.attempt) => Phase::Unassigned,
            (Phase::Running, Event::PodFailed(failed)) if current(failed.attempt) => Phase::ServerFailed,
            (Phase::Starting, Event::Opened(opened))
                if current(opened.attempt) && session.scheduled && session.ready =>
            {
                notices.opened.insert(id, session.members.keys().cloned().collect());
                Phase::Running
            }
            (Phase::Running | Phase::ServerFailed, Event::Finished(finished)) if current(finished.attempt) => {
                let named: BTreeSet<_> = finished.results.iter().map(|placing| placing.player.clone()).collect();
                if finished.results.len() != session.members.len() || !session.members.keys().eq(&named) {
                    return Err("the results do not name each player exactly once".into());
                }
                Phase::Finished
            }
            (Phase::Unassigned | Phase::Starting | Phase::Running | Phase::ServerFailed, Event::Failed(_)) => {
                Phase::Failed
            }
            (Phase::Finished | Phase::Failed, Event::Closed(closed)) => {
                if (before == Phase::Finished) != (closed.why == player::Ending::Finished) {
                    return Err(format!("closed as {:?} after {before:?}", closed.why));
                }
                self.active.retain(|_, session| *session != id);
                notices.released.insert(id, session.members.keys().cloned().collect());
                self.tally.ends.insert(id, End { why: closed.why, at: recorded.time, attempt: session.attempt });
                Phase::Closed
            }
            (before, event) => {
                return Err(format!("{} in phase {before:?} of attempt {}", event.type_name(), session.attempt));
            }
        };
        Ok(())
    }

    fn player(
        &mut self,
        id: &PlayerId,
        recorded: &Recorded<player::Event>,
        notices: &mut Notices,
    ) -> Result<(), String> {
        let player = self.players.entry(id.clone()).or_default();
        if recorded.n != player.n + 1 {
            return Err(format!("n is {} after {}", recorded.n, player.n));
        }
        player.n = recorded.n;
        let (session, ticket) = (player.state.session(), player.state.ticket());
        let legal = match (&player.state, &recorded.event) {
            // A ticket may be queued again only after another one, when the state no longer remembers it.
            (State::New | State::Idle { .. }, player::Event::Queued(queued)) => Some(queued.ticket) != ticket,
            (
                State::New | State::Idle { .. } | State::Matched(_) | State::Playing(_),
                player::Event::PartyChanged(_),
            ) => {
                let after = State::evolve(&recorded.event);
                after.ticket() == ticket && after.session() == session
            }
            (State::Waiting(_), player::Event::Cancelled(ended)) => Some(ended.ticket) == ticket,
            (State::Waiting(_), player::Event::TimedOut(ended)) => Some(ended.ticket) == ticket,
            (State::Waiting(_), player::Event::MatchProposed(proposed)) => {
                notices.proposed.entry(proposed.session).or_default().insert(id.clone());
                let member = self.sessions.get(&proposed.session).and_then(|session| session.members.get(id));
                Some(proposed.queued.ticket) == ticket && member == ticket.as_ref()
            }
            (State::Proposed(_), player::Event::MatchDeclined(declined)) => {
                notices.released.entry(declined.session).or_default().insert(id.clone());
                Some(declined.session) == session && Some(declined.ticket) == ticket
            }
            (State::Proposed(proposed), player::Event::Requeued(requeued)) => {
                notices.released.entry(requeued.session).or_default().insert(id.clone());
                Some(requeued.session) == session && requeued.queued == proposed.queued
            }
            (State::Waiting(_) | State::Proposed(_), player::Event::Matched(matched)) => {
                notices.matched.entry(matched.session).or_default().insert(id.clone());
                let member = self.sessions.get(&matched.session).and_then(|session| session.members.get(id));
                Some(matched.ticket) == ticket && member == ticket.as_ref()
            }
            (State::Matched(_), player::Event::PlayerMatched(matched)) => {
                notices.opened.entry(matched.session).or_default().insert(id.clone());
                Some(matched.session) == session && Some(matched.ticket) == ticket
            }
            (State::Matched(matched), player::Event::Requeued(requeued)) => {
                notices.released.entry(requeued.session).or_default().insert(id.clone());
                let queued = &requeued.queued;
                Some(requeued.session) == session
                    && Some(queued.ticket) == ticket
                    && queued.waiting_since == matched.waiting_since
            }
            (State::Proposed(_) | State::Matched(_) | State::Playing(_), player::Event::Released(released)) => {
                notices.released.entry(released.session).or_default().insert(id.clone());
                Some(released.session) == session && Some(released.ticket) == ticket
            }
            _ => false,
        };
        if !legal {
            return Err(format!("{:?} in state {:?}", recorded.event, player.state));
        }
        player.state = State::evolve(&recorded.event);
        if let Some(ticket) = player.state.ticket() {
            self.tally.tickets.entry(ticket).or_default().insert(recorded.event.type_name());
        }
        Ok(())
    }

    fn end(self) -> Result<Tally, String> {
        if let Some((id, session)) = self.sessions.iter().find(|(_, session)| session.phase != Phase::Closed) {
            return Err(format!("session {id} stays in phase {:?}", session.phase));
        }
        let ended = |state: &State| matches!(state, State::Idle { .. });
        if let Some((id, player)) = self.players.iter().find(|(_, player)| !ended(&player.state)) {
            return Err(format!("player {id} stays in state {:?}", player.state));
        }
        Ok(self.tally)
    }
}
