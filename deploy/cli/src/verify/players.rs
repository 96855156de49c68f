//! Players: whether each event is what the decider writes, and whether each ticket ends once.

use std::collections::HashMap;

use garage_events::{
    event::Event as _,
    id::{PlayerId, TicketId},
    player::{self, Command, Event, State, TimedOut},
};
use time::Duration;

use super::violation::{Rule, Violation};

/// All players that the log has.
#[derive(Debug, Default)]
pub(crate) struct Players {
    all: HashMap<PlayerId, Player>,
    /// How many tickets there were.
    pub(crate) tickets: u64,
}

#[derive(Debug, Default)]
struct Player {
    stands: Stands,
    /// His last event.
    seq: u64,
    /// His last ticket that ended, and where.
    ended: Option<(TicketId, u64)>,
}

/// Where a player stands. Most are idle, and take little room.
#[derive(Debug, Default)]
enum Stands {
    /// His last event could not be read, or is older than the log.
    #[default]
    Unknown,
    Idle(TicketId),
    Otherwise(Box<State>),
}

impl Players {
    /// Begins a player whose earlier events the log has forgotten: his next event says all that there is to know.
    pub(crate) fn meet(&mut self, id: &PlayerId) {
        self.all.insert(id.clone(), Player::default());
    }

    /// Judges an event of a player.
    pub(crate) fn judge(&mut self, id: &PlayerId, seq: u64, event: &Event, found: &mut Vec<Violation>) {
        let new = || Player { stands: State::New.into(), ..Player::default() };
        let player = self.all.entry(id.clone()).or_insert_with(new);
        self.tickets += u64::from(matches!(event, Event::Queued(_)));
        if let Err(violation) = player.judge(seq, event) {
            found.push(violation.player(id));
        }
        if let Some(ticket) = ends(event) {
            player.ended = Some((ticket, seq));
        }
        (player.stands, player.seq) = (State::evolve(event).into(), seq);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.all.len() as u64
    }

    /// Those who wait for a match, each with the event that says so.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (&PlayerId, u64)> {
        let waits =
            |stands: &Stands| matches!(stands, Stands::Otherwise(state) if matches!(**state, State::Waiting(_)));
        self.all.iter().filter(move |(_, player)| waits(&player.stands)).map(|(id, player)| (id, player.seq))
    }
}

impl From<State> for Stands {
    fn from(state: State) -> Self {
        match state {
            State::Idle { ticket } => Self::Idle(ticket),
            state => Self::Otherwise(Box::new(state)),
        }
    }
}

impl Player {
    fn judge(&self, seq: u64, event: &Event) -> Result<(), Violation> {
        let idle;
        let state = match &self.stands {
            Stands::Unknown => return Ok(()),
            Stands::Idle(ticket) => {
                idle = State::Idle { ticket: *ticket };
                &idle
            }
            Stands::Otherwise(state) => state,
        };
        let name = event.type_name();
        if let Some((ticket, before)) = self.ended {
            if ends(event) == Some(ticket) {
                let what = format!("ticket {ticket} ends once more, with {name}");
                return Err(Violation::new(Rule::Ticket, [before, seq], what));
            }
            if matches!(event, Event::Queued(queued) if queued.ticket == ticket) {
                let what = format!("ticket {ticket} has ended and is queued again");
                return Err(Violation::new(Rule::Ticket, [before, seq], what));
            }
        }
        let illegal = |reason: String| {
            Violation::new(Rule::Decided, [self.seq, seq], format!("no command brings this {name}: {reason}"))
        };
        match player::decide(state, command(state, event)) {
            Ok(decided) if decided == *event => Ok(()),
            Ok(_) => Err(illegal("the decider writes something else in it".into())),
            Err(rejection) => Err(illegal(rejection.to_string())),
        }
    }
}

/// The ticket that an event ends.
fn ends(event: &Event) -> Option<TicketId> {
    match event {
        Event::Matched(player::Matched { ticket, .. })
        | Event::Cancelled(player::Cancelled { ticket, .. })
        | Event::TimedOut(TimedOut { ticket, .. }) => Some(*ticket),
        Event::Queued(_) | Event::PlayerMatched(_) | Event::Released(_) => None,
    }
}

/// The command that brings an event, if any does.
fn command(state: &State, event: &Event) -> Command {
    match event.clone() {
        Event::Queued(queued) => Command::Queue(queued),
        Event::Cancelled(player::Cancelled { ticket, reason, .. }) => Command::Cancel { ticket, reason },
        Event::TimedOut(timed_out) => {
            // Any time of the millisecond may have been the decider's; the last one is furthest past the expiry.
            let State::Waiting(waiting) = state else {
                return Command::TimeOut { ticket: timed_out.ticket, now: time::OffsetDateTime::UNIX_EPOCH };
            };
            let waited = i64::try_from(timed_out.waited_ms).ok().map(Duration::milliseconds);
            let end = waited.and_then(|waited| waited.checked_add(Duration::nanoseconds(999_999)));
            let now = end.and_then(|end| waiting.waiting_since.checked_add(end)).unwrap_or(waiting.waiting_since);
            Command::TimeOut { ticket: timed_out.ticket, now }
        }
        Event::Matched(player::Matched { ticket, session, team, .. }) => Command::Match { ticket, session, team },
        Event::PlayerMatched(player::PlayerMatched { session, address, .. }) => Command::Open { session, address },
        Event::Released(player::Released { session, why, .. }) => Command::Release { session, why },
    }
}
