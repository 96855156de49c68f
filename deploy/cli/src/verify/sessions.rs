//! Sessions: whether each event is what the decider writes, and whether any has a player of another.

use std::collections::HashMap;

use garage_events::{
    event::{Event as _, Recorded},
    game,
    id::{PlayerId, SessionId},
    player::Ending,
    session::{self, Command, Event, Failed, Finished, Limits, Next, PodReady, State},
};
use time::{Duration, OffsetDateTime};

use super::violation::{Rule, Violation};

/// All sessions that the log has.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    all: HashMap<SessionId, Standing>,
    /// The live session of each player, and where it began.
    players: HashMap<PlayerId, (SessionId, u64)>,
    /// How many began.
    pub(crate) begun: u64,
}

/// Where a session stands.
#[derive(Debug)]
pub(crate) enum Standing {
    /// It began before the log does, or a message of it could not be read.
    Unknown,
    /// It lives; its last event.
    Open(Box<State>, u64),
    /// It is over; where and when it ended, by the stream's timestamp.
    Closed { seq: u64, time: OffsetDateTime },
}

impl Sessions {
    /// Where a session stands, if there is any.
    pub(crate) fn get(&self, id: SessionId) -> Option<&Standing> {
        self.all.get(&id)
    }

    /// Those that are not closed, each with its last event. One that began before the log does is not among them.
    pub(crate) fn open(&self) -> impl Iterator<Item = (SessionId, u64)> {
        self.all.iter().filter_map(|(id, standing)| match standing {
            Standing::Open(_, seq) => Some((*id, *seq)),
            Standing::Unknown | Standing::Closed { .. } => None,
        })
    }

    /// The players of a session that lives.
    pub(crate) fn players(&self, id: SessionId) -> Option<Vec<PlayerId>> {
        match self.all.get(&id) {
            Some(Standing::Open(state, _)) => Some(state.matched()?.players().cloned().collect()),
            Some(Standing::Unknown | Standing::Closed { .. }) | None => None,
        }
    }

    /// From now on nothing is known of a session.
    pub(crate) fn lose(&mut self, id: SessionId) {
        self.all.insert(id, Standing::Unknown);
    }

    /// Judges the events of a session in one commit.
    pub(crate) fn judge(&mut self, id: SessionId, events: &[Recorded<Event>], found: &mut Vec<Violation>) {
        let mut standing = self.all.remove(&id).unwrap_or_else(|| Standing::Open(Box::default(), 0));
        let mut rest = events;
        while let Some(first) = rest.first() {
            let decided = command(rest);
            let (now, later) = rest.split_at(decided.as_ref().map_or(1, |(_, count)| *count));
            rest = later;
            standing = match standing {
                Standing::Unknown => Standing::Unknown,
                Standing::Closed { seq, time } => {
                    let what = format!("{} after the session was closed", first.event.type_name());
                    found.push(Violation::new(Rule::Decided, [seq, first.seq], what).session(id));
                    Standing::Closed { seq, time }
                }
                Standing::Open(state, before) => {
                    if let Err(reason) = legal(&state, decided.map(|(command, _)| command), now) {
                        let what = format!("no command brings this {}: {reason}", first.event.type_name());
                        found.push(Violation::new(Rule::Decided, [before, first.seq], what).session(id));
                    }
                    now.iter()
                        .fold(Standing::Open(state, before), |standing, event| self.evolve(id, standing, event, found))
                }
            };
        }
        self.all.insert(id, standing);
    }

    fn evolve(
        &mut self,
        id: SessionId,
        standing: Standing,
        recorded: &Recorded<Event>,
        found: &mut Vec<Violation>,
    ) -> Standing {
        let Standing::Open(state, _) = standing else { return standing };
        if let (State::New, Event::Matched(matched)) = (&*state, &recorded.event) {
            self.begun += 1;
            for player in matched.players() {
                if let Some((other, began)) = self.players.insert(player.clone(), (id, recorded.seq)) {
                    let what = format!("the player is in session {other}, which is not closed");
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
                Standing::Closed { seq: recorded.seq, time: recorded.time }
            }
            state => Standing::Open(Box::new(state), recorded.seq),
        }
    }
}

/// Whether a command brings just these events.
fn legal(state: &State, command: Option<Command>, events: &[Recorded<Event>]) -> Result<(), String> {
    let command = command.ok_or("it is never written alone")?;
    let decided = session::decide(state, command).map_err(|rejection| rejection.to_string())?;
    if !decided.iter().eq(events.iter().map(|recorded| &recorded.event)) {
        return Err("the decider writes something else in it".into());
    }
    // The decider takes the address from whoever asks; there is but one that it can be.
    match (state, decided.first()) {
        (State::Open(open), Some(Event::Opened(opened)))
            if open.next(&Limits::default()) != Next::Open(opened.clone()) =>
        {
            Err("its server listens elsewhere".into())
        }
        _ => Ok(()),
    }
}

/// The command that brings the first of these events, if any does, and how many of them.
fn command(events: &[Recorded<Event>]) -> Option<(Command, usize)> {
    let first = events.first()?;
    let next = events.get(1).map(|next| &next.event);
    let one = |command| Some((command, 1));
    match (first.event.clone(), next) {
        (Event::Matched(matched), _) => one(Command::Create(matched)),
        (Event::PodRequested(requested), _) => one(Command::RequestPod(requested)),
        (Event::PodScheduled(scheduled), _) => one(Command::Schedule(scheduled)),
        // Also what a deadline writes.
        (Event::PodFailed(failed), _) => one(Command::FailPod(failed)),
        (Event::PodReady(PodReady { attempt, tcp_port, udp_port }), _) => {
            one(Command::Ready { attempt, report: game::Ready { tcp_port, udp_port } })
        }
        (Event::Opened(opened), _) => one(Command::Open(opened)),
        (Event::Failed(_), Some(Event::Closed(closed))) if closed.why == Ending::Abandoned => {
            // Whatever the limits were, it can only be the hard end that had come.
            let limits = Limits { attempts: 0, ready: Duration::ZERO, session: Duration::ZERO };
            Some((Command::Deadline { now: first.time, limits }, 2))
        }
        (Event::Failed(Failed { reason }), Some(Event::Closed(_))) => Some((Command::Fail { reason }, 2)),
        (Event::Finished(Finished { attempt, results }), Some(Event::Closed(_))) => {
            Some((Command::Finish { attempt, report: game::Finished { results } }, 2))
        }
        (Event::Failed(_) | Event::Finished(_) | Event::Closed(_), _) => None,
    }
}
