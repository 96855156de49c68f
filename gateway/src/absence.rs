//! How long a player who does not accept or join their matches must wait before they can queue again. Pure.

use std::time::Duration;

use garage_events::{
    log::Player,
    player::{DeclineReason, Event, MatchDeclined, PartyChanged, Past, PastEvent, Released},
};
use time::OffsetDateTime;

/// The wait after missed matches. By default nobody waits.
#[derive(Debug, Clone, Copy, Default)]
pub struct AbsenceWait {
    /// The wait after the second missed match in a row. It doubles with each further one. The first match that a player
    /// does not join costs nothing: a client may crash.
    pub first: Duration,
    /// The wait after a match that the player did not accept, if it is the first missed match. It doubles with each further
    /// one in a row.
    pub declined: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl AbsenceWait {
    /// Until when the player must wait, and how many matches they have missed in a row. `None` if they need not wait.
    pub(crate) fn until(&self, player: &Player) -> Option<(OffsetDateTime, u32)> {
        let last = player.last.as_ref()?;
        let missed = |released: &Released| Some((self.first, released.absences, released.absences.checked_sub(2)?));
        let declined = |declined: &MatchDeclined| match declined.reason {
            // The other players of the ticket need not wait, whatever they have missed before.
            DeclineReason::Party => None,
            DeclineReason::Declined | DeclineReason::Disconnected | DeclineReason::Unanswered => {
                Some((self.declined, declined.absences, declined.absences.checked_sub(1)?))
            }
        };
        let ((first, absences, doublings), at) = match &last.event {
            Event::Released(released) => (missed(released)?, last.time),
            Event::MatchDeclined(data) => (declined(data)?, last.time),
            // Joining or leaving a party does not end the wait.
            Event::PartyChanged(PartyChanged { past: Some(Past { time, event }), .. }) => match event {
                PastEvent::Released(released) => (missed(released)?, *time),
                PastEvent::MatchDeclined(data) => (declined(data)?, *time),
                _ => return None,
            },
            // After another event, the player has queued again since, so the wait is over.
            _ => return None,
        };
        let wait = first.saturating_mul(2_u32.saturating_pow(doublings)).min(self.max);
        Some((at + wait, absences))
    }
}

#[cfg(test)]
mod tests {
    use garage_events::{
        event::Recorded,
        id::{PartyId, SessionId, TicketId},
        player::{self, CancelReason, Cancelled, Ending},
    };
    use uuid::Uuid;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const WAIT: AbsenceWait =
        AbsenceWait { first: MINUTE, declined: Duration::from_secs(30), max: Duration::from_secs(3_600) };

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
        let left = at(before_end, player::leave_party(&joined, CancelReason::Player).unwrap());
        let expected = Some((OffsetDateTime::UNIX_EPOCH + MINUTE, 2));
        assert_eq!([&before, &joined, &left].map(|player| WAIT.until(player)), [expected; 3]);
    }

    #[test]
    fn the_wait_begins_with_the_first_match_that_is_not_accepted_and_doubles() {
        let (ticket, session) = (TicketId::new(Uuid::nil()), SessionId::new(Uuid::nil()));
        let seconds = |reason, absences| {
            let (queue, players) = ("ranked".parse().unwrap(), Vec::new());
            let declined = MatchDeclined { ticket, queue, session, reason, players, absences, party: None };
            WAIT.until(&after(declined)).map(|(until, _)| (until - OffsetDateTime::UNIX_EPOCH).whole_seconds())
        };
        for reason in [DeclineReason::Declined, DeclineReason::Unanswered, DeclineReason::Disconnected] {
            let waits = [1, 2, 3, 8, u32::MAX].map(|absences| seconds(reason, absences));
            assert_eq!(waits, [Some(30), Some(60), Some(120), Some(3_600), Some(3_600)]);
        }
        assert_eq!(seconds(DeclineReason::Party, 5), None, "another player of the ticket declined");
    }

    #[test]
    fn a_player_who_has_queued_since_does_not_wait_again() {
        let (ticket, queue) = (TicketId::new(Uuid::nil()), "ranked".parse().unwrap());
        let cancelled = Cancelled { ticket, queue, reason: CancelReason::Player, absences: 5, party: None };
        assert_eq!(WAIT.until(&after(cancelled)), None);
        assert_eq!(WAIT.until(&Player::default()), None);
    }
}
