//! How long a player who does not join their matches must wait before they can queue again. Pure.

use std::time::Duration;

use garage_events::{log::Player, player::Event};
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
        // After another event, the player has queued again since, so the wait is over.
        let last = player.last.as_ref()?;
        let Event::Released(released) = &last.event else { return None };
        let doublings = released.absences.checked_sub(2)?;
        let wait = self.first.saturating_mul(2_u32.saturating_pow(doublings)).min(self.max);
        Some((last.time + wait, released.absences))
    }
}

#[cfg(test)]
mod tests {
    use garage_events::{
        event::Recorded,
        id::{SessionId, TicketId},
        player::{CancelReason, Cancelled, Ending, Released},
    };
    use uuid::Uuid;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const WAIT: AbsenceWait = AbsenceWait { first: MINUTE, max: Duration::from_secs(3_600) };

    fn after(event: impl Into<Event>) -> Player {
        let (time, id) = (OffsetDateTime::UNIX_EPOCH, Uuid::nil());
        let last = Recorded { seq: 1, time, id, n: 1, correlation: id, event: event.into() };
        Player { last: Some(last), ..Player::default() }
    }

    #[test]
    fn the_wait_begins_with_the_second_missed_match_doubles_and_has_a_limit() {
        let (ticket, session) = (TicketId::new(Uuid::nil()), SessionId::new(Uuid::nil()));
        let minutes = [0, 1, 2, 3, 4, 7, 8, 9, 40, u32::MAX].map(|absences| {
            let released = Released { ticket, session, why: Ending::Finished, reason: None, absences };
            WAIT.until(&after(released)).map(|(until, _)| (until - OffsetDateTime::UNIX_EPOCH).whole_minutes())
        });
        let expected = [None, None, Some(1), Some(2), Some(4), Some(32), Some(60), Some(60), Some(60), Some(60)];
        assert_eq!(minutes, expected);
    }

    #[test]
    fn a_player_who_has_queued_since_does_not_wait_again() {
        let (ticket, queue) = (TicketId::new(Uuid::nil()), "ranked".parse().unwrap());
        let cancelled = Cancelled { ticket, queue, reason: CancelReason::Player, absences: 5 };
        assert_eq!(WAIT.until(&after(cancelled)), None);
        assert_eq!(WAIT.until(&Player::default()), None);
    }
}
