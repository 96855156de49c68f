//! How long a player who does not join their matches must wait before they can queue again. Pure.

use std::time::Duration;

use garage_events::{
    log::Player,
    player::{Event, PartyChanged, Past, PastEvent},
};
use time::OffsetDateTime;

/// The wait after missed matches. The first missed match costs nothing: a client may crash. By default nobody waits.
#[derive(Debug, Clone, Copy, Default)]
pub struct AbsenceWait {
    /// The wait after the second missed match in a row. It doubles with each further one.
    pub first: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl AbsenceWait {
    /// Until when the player must wait, and how many matches they have missed in a row. `None` if they need not wait.
    pub(crate) fn until(&self, player: &Player) -> Option<(OffsetDateTime, u32)> {
        let last = player.last.as_ref()?;
        let (released, at) = match &last.event {
            Event::Released(released) => (released, last.time),
            // Joining or leaving a party does not end the wait.
            Event::PartyChanged(PartyChanged {
                past: Some(Past { time, event: PastEvent::Released(released) }),
                ..
            }) => (released, *time),
            // After another event, the player has queued again since, so the wait is over.
            _ => return None,
        };
        let doublings = released.absences.checked_sub(2)?;
        let wait = self.first.saturating_mul(2_u32.saturating_pow(doublings)).min(self.max);
        Some((at + wait, released.absences))
    }
}

#[cfg(test)]
mod tests {
    use garage_events::{
        event::Recorded,
        id::{PartyId, SessionId, TicketId},
        player::{self, CancelReason, Cancelled, Ending, Released},
    };
    use uuid::Uuid;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const WAIT: AbsenceWait = AbsenceWait { first: MINUTE, max: Duration::from_secs(3_600) };

    fn after(event: impl Into<Event>) -> Player {
        at(OffsetDateTime::UNIX_EPOCH, event)
    }

    fn at(time: OffsetDateTime, event: impl Into<Event>) -> Player {
        let id = Uuid::nil();
        Player::of(Some(Recorded { seq: 1, time, id, n: 1, correlation: id, event: event.into() }))
    }

    #[test]
    fn the_wait_begins_with_the_second_missed_match_doubles_and_has_a_limit() {
        let (ticket, session) = (TicketId::new(Uuid::nil()), SessionId::new(Uuid::nil()));
        let minutes = [0, 1, 2, 3, 4, 7, 8, 9, 40, u32::MAX].map(|absences| {
            let released = Released { ticket, session, why: Ending::Finished, reason: None, absences, party: None };
            WAIT.until(&after(released)).map(|(until, _)| (until - OffsetDateTime::UNIX_EPOCH).whole_minutes())
        });
        let expected = [None, None, Some(1), Some(2), Some(4), Some(32), Some(60), Some(60), Some(60), Some(60)];
        assert_eq!(minutes, expected);
    }

    #[test]
    fn a_player_who_joins_and_leaves_a_party_still_waits_as_long() {
        let (ticket, session) = (TicketId::new(Uuid::nil()), SessionId::new(Uuid::nil()));
        let released = Released { ticket, session, why: Ending::Finished, reason: None, absences: 2, party: None };
        let (before, before_end) = (after(released), OffsetDateTime::UNIX_EPOCH + MINUTE / 2);
        let party = PartyId::new(Uuid::nil());
        let joined = at(before_end, player::join_party(&before, party).unwrap());
        let left = at(before_end, player::leave_party(&joined, CancelReason::Player));
        let expected = Some((OffsetDateTime::UNIX_EPOCH + MINUTE, 2));
        assert_eq!([&before, &joined, &left].map(|player| WAIT.until(player)), [expected; 3]);
    }

    #[test]
    fn a_player_who_has_queued_since_does_not_wait_again() {
        let (ticket, queue) = (TicketId::new(Uuid::nil()), "ranked".parse().unwrap());
        let cancelled = Cancelled { ticket, queue, reason: CancelReason::Player, absences: 5, party: None };
        assert_eq!(WAIT.until(&after(cancelled)), None);
        assert_eq!(WAIT.until(&Player::default()), None);
    }
}
