//! Checks the events of sessions: each is an event that the decider writes, and no player is in two live sessions.

use std::collections::HashMap;

use garage_events::{
    event::{Event as _, Recorded},
    game,
    id::{PlayerId, SessionId},
    player::Ending,
    session::{
        self, Accepted, Command, Event, Failed, Finished, Limits, Next, NotAccepted, PodReady, ProposalEnded, State,
    },
};
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

use crate::violation::{Rule, Violation};

/// All sessions of the log.
#[derive(Debug, Default)]
pub struct Sessions {
    all: HashMap<SessionId, SessionStatus>,
    /// The live session of each player, and the sequence of its first event.
    players: HashMap<PlayerId, (SessionId, u64)>,
    /// Number of sessions that began in the log.
    pub(crate) begun: u64,
}

/// The state of a session in the log.
#[derive(Debug)]
pub enum SessionStatus {
    /// Its first events have expired, or a message of it cannot be read.
    Unknown,
    /// It is live: its state, and the sequence of its last event.
    Open(Box<State>, u64),
    /// It is closed.
    Closed {
        /// Sequence of the event that closed it.
        seq: u64,
        /// When that event was stored, by the stream's timestamp.
        time: OffsetDateTime,
    },
}

impl Sessions {
    /// The state of a session. `None` if the log has no event of it.
    pub(crate) fn get(&self, id: SessionId) -> Option<&SessionStatus> {
        self.all.get(&id)
    }

    /// The open sessions, each with the sequence of its last event. Sessions of unknown state are left out.
    pub(crate) fn open(&self) -> impl Iterator<Item = (SessionId, u64)> {
        self.all.iter().filter_map(|(id, status)| match status {
            SessionStatus::Open(_, seq) => Some((*id, *seq)),
            SessionStatus::Unknown | SessionStatus::Closed { .. } => None,
        })
    }

    /// The players of a live session. `None` if the session is closed, unknown, or not in the log.
    pub(crate) fn players(&self, id: SessionId) -> Option<Vec<PlayerId>> {
        match self.all.get(&id) {
            Some(SessionStatus::Open(state, _)) => Some(state.matched()?.players().cloned().collect()),
            Some(SessionStatus::Unknown | SessionStatus::Closed { .. }) | None => None,
        }
    }

    /// Marks the state of a session as unknown.
    pub(crate) fn forget(&mut self, id: SessionId) {
        self.all.insert(id, SessionStatus::Unknown);
    }

    /// Checks the events of a session in one commit.
    pub(crate) fn check(&mut self, id: SessionId, events: &[Recorded<Event>], found: &mut Vec<Violation>) {
        let mut status = self.all.remove(&id).unwrap_or_else(|| SessionStatus::Open(Box::default(), 0));
        let mut rest = events;
        while let Some(first) = rest.first() {
            let decided = command(rest);
            let (now, later) = rest.split_at(decided.as_ref().map_or(1, |(_, count)| *count));
            rest = later;
            status = match status {
                SessionStatus::Unknown => SessionStatus::Unknown,
                SessionStatus::Closed { seq, time } => {
                    let what = format!("{} after the session was closed", first.event.type_name());
                    found.push(Violation::new(Rule::Decided, [seq, first.seq], what).session(id));
                    SessionStatus::Closed { seq, time }
                }
                SessionStatus::Open(state, before) => {
                    if let Err(reason) = legal(&state, decided.map(|(command, _)| command), now) {
                        let what = format!("no command leads to this {}: {reason}", first.event.type_name());
                        found.push(Violation::new(Rule::Decided, [before, first.seq], what).session(id));
                    }
                    now.iter()
                        .fold(SessionStatus::Open(state, before), |status, event| self.evolve(id, status, event, found))
                }
            };
        }
        self.all.insert(id, status);
    }

    fn evolve(
        &mut self,
        id: SessionId,
        status: SessionStatus,
        recorded: &Recorded<Event>,
        found: &mut Vec<Violation>,
    ) -> SessionStatus {
        let SessionStatus::Open(state, _) = status else { return status };
        let begun = match (&*state, &recorded.event) {
            (State::New, Event::Matched(matched)) => Some(matched),
            (State::New, Event::Proposed(proposed)) => Some(&proposed.matched),
            _ => None,
        };
        if let Some(matched) = begun {
            self.begun += 1;
            for player in matched.players() {
                if let Some((other, began)) = self.players.insert(player.clone(), (id, recorded.seq)) {
                    let what = format!("the player is still in session {other}, which is not closed");
                    let violation = Violation::new(Rule::OneSession, [began, recorded.seq], what);
                    found.push(violation.player(player).session(id));
                }
            }
        }
        match state.evolve(recorded) {
            State::Closed(past) => {
                for player in past.matched.players() {
                    if self.players.get(player).is_some_and(|(session, _)| *session == id) {
                        self.players.remove(player);
                    }
                }
                SessionStatus::Closed { seq: recorded.seq, time: recorded.time }
            }
            state => SessionStatus::Open(Box::new(state), recorded.seq),
        }
    }
}

/// Checks that the command leads to exactly these events.
fn legal(state: &State, command: Option<Command>, events: &[Recorded<Event>]) -> Result<(), String> {
    let command = command.ok_or("it is always written together with another event")?;
    let decided = session::decide(state, command).map_err(|rejection| rejection.to_string())?;
    if !decided.iter().eq(events.iter().map(|recorded| &recorded.event)) {
        return Err("the decider would write different data".into());
    }
    // The decider does not check the address in `Opened`, so this compares it with the reported one.
    match (state, decided.first()) {
        (State::Open(open), Some(Event::Opened(opened)))
            if open.next(&Limits::default()) != Next::Open(opened.clone()) =>
        {
            Err("the address is not that of the game server".into())
        }
        _ => Ok(()),
    }
}

/// The command that leads to the first of these events, and the number of events that it leads to.
fn command(events: &[Recorded<Event>]) -> Option<(Command, usize)> {
    let first = events.first()?;
    let next = events.get(1).map(|next| &next.event);
    let one = |command| Some((command, 1));
    match (first.event.clone(), next) {
        (Event::Matched(matched), _) => one(Command::Create(matched)),
        (Event::Proposed(proposed), _) => one(Command::Propose(proposed)),
        (Event::Accepted(Accepted { player, .. }), next) => {
            // The clock at that time is unknown. At this one, no proposal has ended.
            let command = Command::Accept { player, now: PrimitiveDateTime::MIN.assume_utc() };
            Some((command, if let Some(Event::Matched(_)) = next { 2 } else { 1 }))
        }
        (Event::ProposalEnded(ProposalEnded { why, players }), Some(Event::Closed(_))) => {
            let command = match (why, players.into_iter().next()) {
                (NotAccepted::Declined | NotAccepted::Disconnected, Some(player)) => Command::Decline { player, why },
                (NotAccepted::Declined | NotAccepted::Disconnected | NotAccepted::Unanswered, _) => at_the_end(),
            };
            Some((command, 2))
        }
        (Event::PodRequested(requested), _) => one(Command::RequestPod(requested)),
        (Event::PodScheduled(scheduled), _) => one(Command::Schedule(scheduled)),
        // A deadline writes the same event.
        (Event::PodFailed(failed), _) => one(Command::FailPod(failed)),
        (Event::PodReady(PodReady { attempt, ports }), _) => {
            one(Command::Ready { attempt, report: game::Ready { ports } })
        }
        (Event::Opened(opened), _) => one(Command::Open(opened)),
        (Event::Failed(_), Some(Event::Closed(closed))) if closed.why == Ending::Abandoned => Some((at_the_end(), 2)),
        (Event::Failed(Failed { reason }), Some(Event::Closed(_))) => Some((Command::Fail { reason }, 2)),
        (Event::Finished(Finished { attempt, results, teams }), Some(Event::Closed(_))) => {
            Some((Command::Finish { attempt, report: game::Finished { results, teams } }, 2))
        }
        (Event::ProposalEnded(_) | Event::Failed(_) | Event::Finished(_) | Event::Closed(_), _) => None,
    }
}

/// The command of a timer. The limits and the clock at that time are unknown. With the values below, a proposal has
/// reached its deadline, and the hard end is the reason for the end of any other session.
fn at_the_end() -> Command {
    let limits = Limits { attempts: 0, ready: Duration::ZERO, session: Duration::ZERO };
    Command::Deadline { now: PrimitiveDateTime::MAX.assume_utc(), limits }
}
