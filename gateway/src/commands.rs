//! A player's commands: load, decide, append, and again from the start when he has moved meanwhile.

use garage_events::{
    env::Env,
    id::{PlayerId, TicketId},
    log::{AppendError, Decision, Log, Player},
    player::{CancelReason, Event, Queued, Rejection},
    subject::Aggregate,
};
use uuid::Uuid;

use crate::{
    problem::Problem,
    queue_status::QueueStatuses,
    ticket::{self, Cancelling, Queueing, Ticket},
};

/// Decisions tried before the client is asked to come back. Each further one means that somebody else moved the player
/// between our read and our write, a few milliseconds.
const TRIES: u32 = 5;

/// Makes a player wait. A queue that is closed takes nobody anew; who has a ticket already has it still. His rank is asked
/// for only if he is to wait: who may give it may be down, and a ticket that is there does not depend on that.
///
/// # Errors
/// [`Problem`], which is the client's when he waits already, or is in a match.
pub async fn queue(
    log: &impl Log,
    env: &impl Env,
    queue_statuses: &QueueStatuses,
    id: &PlayerId,
    mut ticket_request: Queued,
    rank: impl Future<Output = Result<i32, Problem>>,
) -> Result<Ticket, Problem> {
    let mut tries = Tries::default();
    let mut rank = Some(rank);
    loop {
        let player = log.player(id).await?;
        let event = match ticket::queue(&player, &ticket_request, env.now()) {
            Ok(Queueing::Have(ticket)) => return Ok(ticket),
            Ok(Queueing::First(event)) => {
                // The wish is decided on in the next round, on what the log then holds.
                tries.append(log, env, id, &player, event).await?;
                continue;
            }
            Ok(Queueing::Append) => {
                queue_statuses.admit(&ticket_request.queue)?;
                if let Some(rank) = rank.take() {
                    ticket_request.rank = rank.await?;
                }
                Event::from(ticket_request.clone())
            }
            Err(rejection) => return Err(rejected(&rejection)),
        };
        if let Some(seq) = tries.append(log, env, id, &player, event.clone()).await? {
            tracing::debug!(player.id = %id, ticket.id = %ticket_request.ticket, event.seq = seq, "queued");
            return Ok(Ticket::of(&event, seq));
        }
    }
}

/// Makes a player no longer wait with a ticket.
///
/// # Errors
/// [`Problem`], which is the client's when it is too late, or he has another ticket.
pub async fn cancel(
    log: &impl Log,
    env: &impl Env,
    id: &PlayerId,
    ticket: TicketId,
    reason: CancelReason,
) -> Result<(), Problem> {
    let mut tries = Tries::default();
    loop {
        let player = log.player(id).await?;
        let event = match ticket::cancel(&player, ticket, reason) {
            Cancelling::Append(event) => event,
            Cancelling::Done => return Ok(()),
            Cancelling::Matched(session) => return Err(Problem::in_session(session)),
            Cancelling::Unknown => return Err(unknown()),
        };
        if let Some(seq) = tries.append(log, env, id, &player, event).await? {
            tracing::debug!(player.id = %id, ticket.id = %ticket, event.seq = seq, "cancelled");
            return Ok(());
        }
    }
}

/// A ticket that is not the player's latest, whether it is another's or was never drawn: he must not learn which.
pub(crate) fn unknown() -> Problem {
    Problem::not_found("the player's latest ticket is another one")
}

fn rejected(rejection: &Rejection) -> Problem {
    match rejection {
        Rejection::Waiting { ticket } => Problem::waiting(*ticket),
        Rejection::InSession { session } => Problem::in_session(*session),
        Rejection::NotWaiting { .. } | Rejection::NotExpired { .. } | Rejection::NotInSession { .. } => {
            Problem::unavailable("the player's state keeps changing; try again")
        }
    }
}

#[derive(Default)]
struct Tries(u32);

impl Tries {
    /// Appends a player's event; `None` when he has moved, and there are tries left.
    async fn append(
        &mut self,
        log: &impl Log,
        env: &impl Env,
        id: &PlayerId,
        player: &Player,
        event: Event,
    ) -> Result<Option<u64>, AppendError> {
        self.0 += 1;
        let about =
            garage_events::player::State::evolve(&event).ticket().map_or_else(Uuid::nil, |ticket| ticket.uuid());
        // A new wish answers nothing; all that ends one answers the event that it ends.
        let cause = player.last.as_ref().map(|last| last.id).filter(|_| !matches!(event, Event::Queued(_)));
        let decision = Decision::new(env, about, cause);
        let decision = decision.change(env, Aggregate::Player(id.clone()), player.head, [event]);
        match log.append(decision).await {
            Ok(sequences) => Ok(sequences.first().copied()),
            Err(AppendError::Conflict(_)) if self.0 < TRIES => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use garage_events::{
        env::System,
        event::Recorded,
        id::SessionId,
        inventory,
        log::{Append, Load, ReadError, Session},
    };
    use time::OffsetDateTime;

    use super::*;

    type Ending = fn(Aggregate) -> AppendError;

    /// A log that lets nobody in: players are new, and each append ends the same way.
    #[derive(Clone)]
    struct Closed {
        appends: Arc<AtomicU32>,
        error: Ending,
    }

    impl Load for Closed {
        async fn player(&self, _: &PlayerId) -> Result<Player, ReadError> {
            Ok(Player::default())
        }

        async fn session(&self, _: SessionId) -> Result<Session, ReadError> {
            Ok(Session::default())
        }

        async fn inventory(&self, _: &PlayerId) -> Result<Option<Recorded<inventory::Event>>, ReadError> {
            Ok(None)
        }
    }

    impl Append for Closed {
        async fn append(&self, decision: Decision) -> Result<Vec<u64>, AppendError> {
            self.appends.fetch_add(1, Ordering::Relaxed);
            Err((self.error)(decision.aggregates().next().unwrap().clone()))
        }
    }

    #[tokio::test]
    async fn a_conflict_is_decided_again_a_few_times_and_anything_else_is_not() {
        let cases: [(Ending, u32); 3] = [
            (AppendError::Conflict, TRIES),
            (|_| AppendError::Unavailable("down".into()), 1),
            (|_| AppendError::Refused("full".into()), 1),
        ];
        for (error, tries) in cases {
            let log = Closed { appends: Arc::default(), error };
            let now = OffsetDateTime::UNIX_EPOCH;
            let ticket_request = Queued {
                ticket: TicketId::new(System.id()),
                queue: "ranked".parse().unwrap(),
                rank: 1,
                latencies: Default::default(),
                attributes: Default::default(),
                waiting_since: now,
                expires_at: now,
            };
            let (queue_statuses, ann, rank) = (QueueStatuses::default(), "ann".parse().unwrap(), async { Ok(1) });
            let problem = queue(&log, &System, &queue_statuses, &ann, ticket_request, rank).await.unwrap_err();
            assert_eq!((problem.status().as_u16(), log.appends.load(Ordering::Relaxed)), (503, tries));
        }
    }
}
