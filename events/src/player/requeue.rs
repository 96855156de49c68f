//! What a match keeps of its ticket, to requeue it if the match fails.

use time::OffsetDateTime;

use super::{MAX_REQUEUES, MIN_CHANCE, Matched, Queued, Requeue};
use crate::id::SessionId;

impl Matched {
    /// The match of a waiting ticket. `requeue` is whether the player may be requeued if it fails.
    pub(super) fn of(queued: Queued, session: SessionId, team: String, requeue: bool) -> Self {
        let Queued {
            ticket,
            queue,
            rank,
            latencies,
            attributes,
            group,
            waiting_since,
            expires_at,
            requeues,
            absences,
            party,
        } = queued;
        let requeue = requeue.then_some(Requeue { rank, latencies, attributes, group, expires_at, requeues, party });
        Self { ticket, queue, session, team, waiting_since, requeue, absences, party }
    }

    /// Whether an earlier match of the ticket has failed.
    pub fn is_rematch(&self) -> bool {
        self.requeue.as_ref().is_some_and(|requeue| requeue.requeues > 0)
    }

    /// Whether the player is still in the party that the ticket is of. A ticket without a party is only of players who
    /// are in none.
    pub fn is_in_party_of_ticket(&self) -> bool {
        self.requeue.as_ref().is_none_or(|requeue| requeue.party == self.party)
    }

    /// The ticket as it waits again after the match has failed; `None` if it is not requeued: its queue does not
    /// requeue, it was requeued often enough, it is about to expire, or the player is no longer in its party.
    pub(super) fn requeued(&self, now: OffsetDateTime) -> Option<Queued> {
        let Requeue { rank, latencies, attributes, group, expires_at, requeues, party } = self.requeue.clone()?;
        let queued = Queued {
            ticket: self.ticket,
            queue: self.queue.clone(),
            rank,
            latencies,
            attributes,
            group,
            waiting_since: self.waiting_since,
            expires_at,
            requeues: requeues + 1,
            absences: self.absences,
            party,
        };
        let may_wait =
            queued.requeues <= MAX_REQUEUES && now + MIN_CHANCE <= expires_at && self.is_in_party_of_ticket();
        may_wait.then_some(queued)
    }
}
