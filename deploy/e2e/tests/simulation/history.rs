//! What a log may hold once all is over. It knows nothing of how the log came about.

use std::collections::{BTreeMap, BTreeSet};

use garage_events::{
    event::{DecodeError, Event as _, Recorded},
    id::{PlayerId, SessionId, TicketId},
    player::{self, State},
    session::Event,
    sim::Message,
    subject::Aggregate,
};
use time::OffsetDateTime;

/// Reads a message as an event.
pub(crate) fn decode<E: garage_events::event::Event>(message: &Message) -> Result<Recorded<E>, DecodeError> {
    Recorded::decode(message.seq, message.time, &message.body)
}

/// What happened, all in all.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Events by type.
    pub(crate) events: BTreeMap<&'static str, u64>,
    /// The events of each ticket.
    pub(crate) tickets: BTreeMap<TicketId, BTreeSet<&'static str>>,
    /// How each session ended.
    pub(crate) ends: BTreeMap<SessionId, End>,
}

/// How a session ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) why: player::Ending,
    pub(crate) at: OffsetDateTime,
    /// The last attempt at a server.
    pub(crate) attempt: u32,
}

#[derive(Default)]
struct Course {
    n: u64,
    /// What the next event must be one of.
    stage: Progress,
    attempt: u32,
    scheduled: bool,
    ready: bool,
    members: BTreeMap<PlayerId, TicketId>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Progress {
    #[default]
    New,
    Unserved,
    Starting,
    Running,
    Broken,
    Finished,
    Failed,
    Closed,
}

#[derive(Default)]
struct Life {
    n: u64,
    state: State,
}

/// What one commit told players of a session.
#[derive(Default)]
struct Notices {
    matched: BTreeMap<SessionId, BTreeSet<PlayerId>>,
    opened: BTreeMap<SessionId, BTreeSet<PlayerId>>,
    released: BTreeMap<SessionId, BTreeSet<PlayerId>>,
}

/// Judges a log to which nothing will be added.
///
/// # Errors
/// What is wrong with it, by sequence where it is one event.
pub(crate) fn judge(messages: &[Message]) -> Result<Tally, String> {
    let mut judge = Judge::default();
    for commit in messages.chunk_by(|one, next| one.commit == next.commit) {
        judge.commit(commit)?;
    }
    judge.end()
}

#[derive(Default)]
struct Judge {
    sessions: BTreeMap<SessionId, Course>,
    players: BTreeMap<PlayerId, Life>,
    /// In which living session a player is, by what sessions say.
    living: BTreeMap<PlayerId, SessionId>,
    tally: Tally,
}

impl Judge {
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
                Some(Aggregate::Inventory(_)) | None => return Err(at("nobody here writes that".into())),
            }
        }
        let seq = messages.first().map_or(0, |first| first.seq);
        for (what, expected, found) in [
            ("Matched", expected.matched, found.matched),
            ("PlayerMatched", expected.opened, found.opened),
            ("Released", expected.released, found.released),
        ] {
            if expected != found {
                return Err(format!("commit at event {seq}: {what} of {found:?}, and the sessions have {expected:?}"));
            }
        }
        Ok(())
    }

    fn session(&mut self, id: SessionId, recorded: &Recorded<Event>, notices: &mut Notices) -> Result<(), String> {
        let course = self.sessions.entry(id).or_default();
        if recorded.n != course.n + 1 {
            return Err(format!("n is {} after {}", recorded.n, course.n));
        }
        course.n = recorded.n;
        let before = course.stage;
        let present = |attempt: u32| attempt == course.attempt;
        course.stage = match (before, &recorded.event) {
            (Progress::New, Event::Matched(matched)) => {
                let members = matched.teams.iter().flat_map(|team| &team.players);
                course.members = members.map(|member| (member.player.clone(), member.ticket)).collect();
                for player in course.members.keys() {
                    if let Some(other) = self.living.insert(player.clone(), id) {
                        return Err(format!("{player} is in {other} still"));
                    }
                }
                notices.matched.insert(id, course.members.keys().cloned().collect());
                Progress::Unserved
            }
            (Progress::Unserved, Event::PodRequested(requested)) if requested.attempt == course.attempt + 1 => {
                (course.attempt, course.scheduled, course.ready) = (requested.attempt, false, false);
                Progress::Starting
            }
            (Progress::Starting, Event::PodScheduled(scheduled)) if present(scheduled.attempt) && !course.scheduled => {
                course.scheduled = true;
                Progress::Starting
            }
            (Progress::Starting, Event::PodReady(ready)) if present(ready.attempt) && !course.ready => {
                course.ready = true;
                Progress::Starting
            }
            (Progress::Starting, Event::PodFailed(failed)) if present(failed.attempt) => Progress::Unserved,
            (Progress::Running, Event::PodFailed(failed)) if present(failed.attempt) => Progress::Broken,
            (Progress::Starting, Event::Opened(opened))
                if present(opened.attempt) && course.scheduled && course.ready =>
            {
                notices.opened.insert(id, course.members.keys().cloned().collect());
                Progress::Running
            }
            (Progress::Running | Progress::Broken, Event::Finished(finished)) if present(finished.attempt) => {
                let named: BTreeSet<_> = finished.results.iter().map(|placing| placing.player.clone()).collect();
                if finished.results.len() != course.members.len() || !course.members.keys().eq(&named) {
                    return Err("the results do not name each player once".into());
                }
                Progress::Finished
            }
            (Progress::Unserved | Progress::Starting | Progress::Running | Progress::Broken, Event::Failed(_)) => {
                Progress::Failed
            }
            (Progress::Finished | Progress::Failed, Event::Closed(closed)) => {
                if (before == Progress::Finished) != (closed.why == player::Ending::Finished) {
                    return Err(format!("closed as {:?} after {before:?}", closed.why));
                }
                self.living.retain(|_, session| *session != id);
                notices.released.insert(id, course.members.keys().cloned().collect());
                self.tally.ends.insert(id, End { why: closed.why, at: recorded.time, attempt: course.attempt });
                Progress::Closed
            }
            (before, event) => {
                return Err(format!("{} while it was {before:?} in attempt {}", event.type_name(), course.attempt));
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
        let life = self.players.entry(id.clone()).or_default();
        if recorded.n != life.n + 1 {
            return Err(format!("n is {} after {}", recorded.n, life.n));
        }
        life.n = recorded.n;
        let (session, ticket) = (life.state.session(), life.state.ticket());
        let legal = match (&life.state, &recorded.event) {
            // The same ticket comes again only after another, when it is no longer remembered.
            (State::New | State::Idle { .. }, player::Event::Queued(queued)) => Some(queued.ticket) != ticket,
            (State::Waiting(_), player::Event::Cancelled(ended)) => Some(ended.ticket) == ticket,
            (State::Waiting(_), player::Event::TimedOut(ended)) => Some(ended.ticket) == ticket,
            (State::Waiting(_), player::Event::Matched(matched)) => {
                notices.matched.entry(matched.session).or_default().insert(id.clone());
                let member = self.sessions.get(&matched.session).and_then(|course| course.members.get(id));
                Some(matched.ticket) == ticket && member == ticket.as_ref()
            }
            (State::Matched(_), player::Event::PlayerMatched(matched)) => {
                notices.opened.entry(matched.session).or_default().insert(id.clone());
                Some(matched.session) == session && Some(matched.ticket) == ticket
            }
            (State::Matched(_) | State::Playing(_), player::Event::Released(released)) => {
                notices.released.entry(released.session).or_default().insert(id.clone());
                Some(released.session) == session && Some(released.ticket) == ticket
            }
            _ => false,
        };
        if !legal {
            return Err(format!("{:?} while he was {:?}", recorded.event, life.state));
        }
        life.state = State::evolve(&recorded.event);
        if let Some(ticket) = life.state.ticket() {
            self.tally.tickets.entry(ticket).or_default().insert(recorded.event.type_name());
        }
        Ok(())
    }

    fn end(self) -> Result<Tally, String> {
        if let Some((id, course)) = self.sessions.iter().find(|(_, course)| course.stage != Progress::Closed) {
            return Err(format!("session {id} is {:?}, and nothing more happens", course.stage));
        }
        let ended = |state: &State| matches!(state, State::Idle { .. });
        if let Some((id, life)) = self.players.iter().find(|(_, life)| !ended(&life.state)) {
            return Err(format!("player {id} is {:?}, and nothing more happens", life.state));
        }
        Ok(self.tally)
    }
}
