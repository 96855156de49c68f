//! Checks the events of players: each is an event that the decider writes, and each ticket ends once.

use std::collections::HashMap;

use garage_events::{
    event::Event as _,
    id::{PartyId, PlayerId, TicketId},
    player::{self, Command, Event, State, TimedOut},
};
use time::Duration;

use crate::violation::{Rule, Violation};

/// All players of the log.
#[derive(Debug, Default)]
pub(crate) struct Players {
    all: HashMap<PlayerId, Player>,
    /// Number of tickets in the log.
    pub(crate) tickets: u64,
}

#[derive(Debug, Default)]
struct Player {
    status: Status,
    /// Sequence of the player's last event.
    seq: u64,
    /// The player's last ended ticket, and the sequence of its end.
    ended: Option<(TicketId, u64)>,
}

/// The state of a player, stored compactly: most players are idle.
#[derive(Debug, Default)]
enum Status {
    /// The last event cannot be read, or is older than the log.
    #[default]
    Unknown,
    /// The ticket that has ended, the absences, and the party.
    Idle(Option<TicketId>, u32, Option<PartyId>),
    Other(Box<State>),
}

impl Players {
    /// Marks a player's state as unknown. The player's next event contains the whole state again.
    pub(crate) fn forget(&mut self, id: &PlayerId) {
        self.all.insert(id.clone(), Player::default());
    }

    /// Checks an event of a player.
    pub(crate) fn check(&mut self, id: &PlayerId, seq: u64, event: &Event, found: &mut Vec<Violation>) {
        let new = || Player { status: State::New.into(), ..Player::default() };
        let player = self.all.entry(id.clone()).or_insert_with(new);
        self.tickets += u64::from(matches!(event, Event::Queued(_)));
        if let Err(violation) = player.check(seq, event) {
            found.push(violation.player(id));
        }
        if let Some(ticket) = ends(event) {
            player.ended = Some((ticket, seq));
        }
        if matches!(event, Event::Requeued(_)) {
            // The ticket waits again, so it may end once more.
            player.ended = None;
        }
        (player.status, player.seq) = (State::evolve(event).into(), seq);
    }

    /// The ticket with which a player waits; `None` if the player does not wait, or if their state is unknown.
    pub(crate) fn ticket(&self, id: &PlayerId) -> Option<&player::Queued> {
        match &self.all.get(id)?.status {
            Status::Other(state) => match &**state {
                State::Waiting(queued) => Some(queued),
                State::New | State::Proposed(_) | State::Matched(_) | State::Playing(_) | State::Idle { .. } => None,
            },
            Status::Unknown | Status::Idle(..) => None,
        }
    }

    /// The party that a player is in; the outer `None` if it is not known.
    pub(crate) fn party(&self, id: &PlayerId) -> Option<Option<PartyId>> {
        match &self.all.get(id)?.status {
            Status::Unknown => None,
            Status::Idle(_, _, party) => Some(*party),
            Status::Other(state) => Some(state.party()),
        }
    }

    /// Number of players.
    pub(crate) fn count(&self) -> u64 {
        self.all.len() as u64
    }

    /// The players that wait for a match, each with the sequence of their last event.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (&PlayerId, u64)> {
        let waits = |status: &Status| matches!(status, Status::Other(state) if matches!(**state, State::Waiting(_)));
        self.all.iter().filter(move |(_, player)| waits(&player.status)).map(|(id, player)| (id, player.seq))
    }
}

impl From<State> for Status {
    fn from(state: State) -> Self {
        match state {
            State::Idle { ticket, absences, party } => Self::Idle(ticket, absences, party),
            state => Self::Other(Box::new(state)),
        }
    }
}

impl Player {
    fn check(&self, seq: u64, event: &Event) -> Result<(), Violation> {
        let idle;
        let state = match &self.status {
            Status::Unknown => return Ok(()),
            Status::Idle(ticket, absences, party) => {
                idle = State::Idle { ticket: *ticket, absences: *absences, party: *party };
                &idle
            }
            Status::Other(state) => state,
        };
        let name = event.type_name();
        if let Some((ticket, before)) = self.ended {
            if ends(event) == Some(ticket) {
                let what = format!("ticket {ticket} ends a second time, with {name}");
                return Err(Violation::new(Rule::Ticket, [before, seq], what));
            }
            if matches!(event, Event::Queued(queued) if queued.ticket == ticket) {
                let what = format!("ticket {ticket} is queued again after its end");
                return Err(Violation::new(Rule::Ticket, [before, seq], what));
            }
        }
        let illegal = |reason: String| {
            Violation::new(Rule::Decided, [self.seq, seq], format!("no command leads to this {name}: {reason}"))
        };
        let differs = || Err(illegal("the decider would write different data".into()));
        // Whether a player may join or leave a party, is checked with the events of the party. Only these events may.
        let may_change = matches!(event, Event::PartyChanged(_) | Event::Queued(_) | Event::Cancelled(_));
        let party = State::evolve(event).party();
        let changed;
        let state = if may_change && state.party() != party {
            changed = state.clone().with_party(party);
            &changed
        } else {
            state
        };
        match command(state, event).map(|command| player::decide(state, command)) {
            None if matches!(state, State::Waiting(_)) => Err(illegal("the player waits".into())),
            None if State::evolve(event) == *state => Ok(()),
            Some(Ok(decided)) if decided == *event => Ok(()),
            None | Some(Ok(_)) => differs(),
            Some(Err(rejection)) => Err(illegal(rejection.to_string())),
        }
    }
}

/// The ticket that an event ends.
fn ends(event: &Event) -> Option<TicketId> {
    match event {
        Event::Matched(player::Matched { ticket, .. })
        | Event::Cancelled(player::Cancelled { ticket, .. })
        | Event::MatchDeclined(player::MatchDeclined { ticket, .. })
        | Event::TimedOut(TimedOut { ticket, .. }) => Some(*ticket),
        Event::Queued(_)
        | Event::MatchProposed(_)
        | Event::PlayerMatched(_)
        | Event::Requeued(_)
        | Event::Released(_)
        | Event::PartyChanged(_) => None,
    }
}

/// The command that leads to an event; `None` if it is not one about a ticket.
fn command(state: &State, event: &Event) -> Option<Command> {
    Some(match event.clone() {
        Event::PartyChanged(_) => return None,
        Event::Queued(queued) => Command::Queue(queued),
        Event::Cancelled(player::Cancelled { ticket, reason, .. }) => Command::Cancel { ticket, reason },
        Event::TimedOut(timed_out) => {
            // `waited_ms` is rounded down. The end of the millisecond is the latest time that the decider can have had.
            let State::Waiting(waiting) = state else {
                let now = time::OffsetDateTime::UNIX_EPOCH;
                return Some(Command::TimeOut { ticket: timed_out.ticket, now, considered: None });
            };
            let waited = i64::try_from(timed_out.waited_ms).ok().map(Duration::milliseconds);
            let end = waited.and_then(|waited| waited.checked_add(Duration::nanoseconds(999_999)));
            let now = end.and_then(|end| waiting.waiting_since.checked_add(end)).unwrap_or(waiting.waiting_since);
            Command::TimeOut { ticket: timed_out.ticket, now, considered: timed_out.considered }
        }
        Event::MatchProposed(proposed) => {
            let player::MatchProposed { session, team, accept_by, players, may_requeue, queued } = proposed;
            Command::Propose { ticket: queued.ticket, session, team, accept_by, players, may_requeue }
        }
        Event::MatchDeclined(player::MatchDeclined { session, reason, players, .. }) => {
            Command::Decline { session, reason, players }
        }
        Event::Matched(player::Matched { session, .. }) if matches!(state, State::Proposed(_)) => {
            Command::Confirm { session }
        }
        Event::Matched(player::Matched { ticket, session, team, requeue, .. }) => {
            Command::Match { ticket, session, team, requeue: requeue.is_some() }
        }
        Event::PlayerMatched(player::PlayerMatched { session, address, .. }) => Command::Open { session, address },
        Event::Requeued(player::Requeued { session, reason, .. }) => {
            // The clock of the decision is unknown. At this time, no ticket has expired.
            Command::Requeue { session, reason, now: time::OffsetDateTime::UNIX_EPOCH }
        }
        Event::Released(player::Released { session, why, reason, absences, .. }) => {
            let joined = (absences != state.absences()).then_some(absences == 0);
            Command::Release { session, why, reason, joined }
        }
    })
}
