//! A player's commands: load, decide, append. After a conflict, start again with a new load.

pub(crate) mod party;

use futures::{FutureExt, future::try_join_all};
use garage_events::{
    env::Env,
    id::{PlayerId, QueueName, TicketId},
    jetstream::storage::Storage,
    log::{AppendError, Decision, Log, Player, ReadError},
    player::{self, CancelReason, Command, Event, Queued, Rejection, State},
    subject::Aggregate,
};
use uuid::Uuid;

use crate::{
    absence::AbsenceWait,
    problem::Problem,
    queue_status::QueueStatuses,
    ticket::{self, Cancelling, Queueing, Ticket},
};

/// How many decisions a command tries before the client gets a 503. A try fails only if another process appends an
/// event of the player between the load and the append, which are a few milliseconds apart.
const MAX_TRIES: u32 = 5;

/// Queues a player with `ticket`. `queued` makes the event. It is awaited only if the player gets a new ticket, because
/// it may have to ask the inventory worker for the rank. So a repeated request for an existing ticket works even if the
/// inventory worker is down. A closed queue accepts no new ticket, but a repeated request still gets the existing
/// ticket, and so does a log that is nearly full.
///
/// Returns `None`, and appends nothing, if the player is in a party: a party queues as a whole.
///
/// # Errors
/// [`Problem`]: a 409 if the player already waits, is in a match, or has to wait after missed matches, a 503 if the queue is closed, the log is nearly full
/// or the log does not answer.
pub async fn queue(
    log: &impl Log,
    env: &impl Env,
    (queue_statuses, storage, absence_wait): (&QueueStatuses, &Storage, &AbsenceWait),
    id: &PlayerId,
    (queue, ticket): (&QueueName, TicketId),
    queued: impl Future<Output = Result<Queued, Problem>>,
) -> Result<Option<Ticket>, Problem> {
    let mut tries = Tries::default();
    let queued = queued.shared();
    loop {
        let player = log.player(id).await?;
        let event = match ticket::queue(&player, ticket, env.now(), absence_wait) {
            Ok(Queueing::Have(ticket)) => return Ok(Some(ticket)),
            Ok(Queueing::First(event)) => {
                // The next round decides on the request, in the state after this event.
                tries.append(log, env, id, &player, event).await?;
                continue;
            }
            Ok(Queueing::Append) => {
                if party::of(log, &player, env.now()).await?.is_some() {
                    return Ok(None);
                }
                queue_statuses.check_open(queue)?;
                if !storage.has_room_for_tickets() {
                    return Err(Problem::log_full());
                }
                // The decision adds what the request does not know, such as the matches that the player missed.
                let command = Command::Queue(queued.clone().await?);
                // If the state names a party, that party has ended.
                let state = player.state.clone().with_party(None);
                player::decide(&state, command).map_err(|rejection| rejected(&rejection))?
            }
            Ok(Queueing::Wait(until, absences)) => return Err(Problem::absent(until, absences, env.now())),
            Err(rejection) => return Err(rejected(&rejection)),
        };
        if let Some(seq) = tries.append(log, env, id, &player, event.clone()).await?
            && let Some(queued) = Ticket::of(&event, seq)
        {
            tracing::debug!(player.id = %id, ticket.id = %ticket, event.seq = seq, "queued");
            return Ok(Some(queued));
        }
    }
}

/// Cancels a player's ticket, for all players of its group in one commit. If the ticket has already ended without a
/// match, this does nothing.
///
/// # Errors
/// [`Problem`]: a 409 if the ticket is matched, a 404 if it is not the player's latest ticket.
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
        let mut changes = vec![(id.clone(), player.clone(), event)];
        if let State::Waiting(waiting) = &player.state {
            for (member, found) in load(log, waiting.group.iter().filter(|member| *member != id)).await? {
                // A member who no longer waits with this ticket needs no event.
                if let Cancelling::Append(event) = ticket::cancel(&found, ticket, CancelReason::Party) {
                    changes.push((member, found, event));
                }
            }
        }
        if let Some(sequences) = tries.append_all(log, env, changes).await? {
            tracing::debug!(player.id = %id, ticket.id = %ticket, event.seq = sequences.first(), "cancelled");
            return Ok(());
        }
    }
}

/// Queues a group of players with one ticket, in one commit. `queued` makes the event of each player. It is awaited only
/// if the players get a new ticket.
///
/// # Errors
/// [`Problem`]: the same as for [`queue`], of the first player for whom the request is not possible.
pub async fn queue_group(
    log: &impl Log,
    env: &impl Env,
    (queue_statuses, storage, absence_wait): (&QueueStatuses, &Storage, &AbsenceWait),
    (queue, ticket): (&QueueName, TicketId),
    players: &[PlayerId],
    queued: impl Future<Output = Result<Vec<Queued>, Problem>>,
) -> Result<Ticket, Problem> {
    let mut tries = Tries::default();
    let queued = queued.shared();
    'again: loop {
        let now = env.now();
        let found = load(log, players.iter()).await?;
        for (id, player) in &found {
            match ticket::queue(player, ticket, now, absence_wait) {
                // The players were queued together, so the others have the ticket too, or had it.
                Ok(Queueing::Have(ticket)) => return Ok(ticket),
                Ok(Queueing::First(event)) => {
                    // Each player of the group may have an expired ticket, so this does not count as a try.
                    Tries::default().append_all(log, env, vec![(id.clone(), player.clone(), event)]).await?;
                    continue 'again;
                }
                Ok(Queueing::Append) => {
                    if let Some((party, _, _)) = party::of(log, player, now).await? {
                        return Err(Problem::in_party(party).about(id));
                    }
                }
                Ok(Queueing::Wait(until, absences)) => return Err(Problem::absent(until, absences, now).about(id)),
                Err(rejection) => return Err(rejected(&rejection).about(id)),
            }
        }
        queue_statuses.check_open(queue)?;
        if !storage.has_room_for_tickets() {
            return Err(Problem::log_full());
        }
        let events = found.into_iter().zip(queued.clone().await?).map(|((id, player), queued)| {
            // If the state names a party, that party has ended.
            let state = player.state.clone().with_party(None);
            let event = player::decide(&state, Command::Queue(queued));
            let event = event.map_err(|rejection| rejected(&rejection).about(&id))?;
            Ok::<_, Problem>((id, player, event))
        });
        let changes = events.collect::<Result<Vec<_>, _>>()?;
        let first = changes.first().map(|(_, _, event)| event.clone());
        if let (Some(sequences), Some(first)) = (tries.append_all(log, env, changes).await?, first) {
            let seq = sequences.first().copied().unwrap_or_default();
            if let Some(queued) = Ticket::of(&first, seq) {
                tracing::debug!(ticket.id = %ticket, event.seq = seq, players = players.len(), "queued a group");
                return Ok(queued);
            }
        }
    }
}

/// Loads several players.
async fn load(log: &impl Log, players: impl Iterator<Item = &PlayerId>) -> Result<Vec<(PlayerId, Player)>, ReadError> {
    try_join_all(players.map(async |player| Ok((player.clone(), log.player(player).await?)))).await
}

/// The answer for a ticket that is not the player's latest. It does not reveal whether another player has this ticket.
pub(crate) fn unknown() -> Problem {
    Problem::not_found("this is not the player's latest ticket; GET /v1/players/me returns that ticket")
}

fn rejected(rejection: &Rejection) -> Problem {
    match rejection {
        Rejection::Waiting { ticket } => Problem::waiting(*ticket),
        Rejection::InSession { session } => Problem::in_session(*session),
        Rejection::InParty { party } => Problem::in_party(*party),
        Rejection::NotWaiting { .. }
        | Rejection::NotExpired { .. }
        | Rejection::NotRequeued { .. }
        | Rejection::NotInSession { .. } => {
            Problem::unavailable("the player's state changed several times during the request; try again")
        }
    }
}

/// Counts the tries of one command.
#[derive(Default)]
struct Tries(u32);

impl Tries {
    /// Appends a player's event, and returns its sequence; `None` after a conflict if another try is allowed.
    async fn append(
        &mut self,
        log: &impl Log,
        env: &impl Env,
        id: &PlayerId,
        player: &Player,
        event: Event,
    ) -> Result<Option<u64>, AppendError> {
        let sequences = self.append_all(log, env, vec![(id.clone(), player.clone(), event)]).await?;
        Ok(sequences.and_then(|sequences| sequences.first().copied()))
    }

    /// Appends one event of each player, in one commit.
    async fn append_all(
        &mut self,
        log: &impl Log,
        env: &impl Env,
        changes: Vec<(PlayerId, Player, Event)>,
    ) -> Result<Option<Vec<u64>>, AppendError> {
        self.0 += 1;
        let Some((_, player, event)) = changes.first() else { return Ok(Some(Vec::new())) };
        let about = State::evolve(event).ticket().map_or_else(Uuid::nil, |ticket| ticket.uuid());
        // A new ticket has no cause. Every other event is caused by the last event of the player who acts.
        let cause = player.last.as_ref().map(|last| last.id).filter(|_| !matches!(event, Event::Queued(_)));
        let mut decision = Decision::new(env, about, cause);
        for (id, player, event) in changes {
            decision = decision.change(env, Aggregate::Player(id), player.head, [event]);
        }
        match log.append(decision).await {
            Ok(sequences) => Ok(Some(sequences)),
            Err(AppendError::Conflict(_)) if self.0 < MAX_TRIES => Ok(None),
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
        env::{Simulated, System},
        event::Recorded,
        id::{PartyId, SessionId},
        inventory,
        log::{Append, Head, Load, Party, ReadError, Session},
        player::{Ending, Released},
        sim::SimLog,
    };
    use time::OffsetDateTime;

    use super::*;

    type MakeError = fn(Aggregate) -> AppendError;

    /// A log in which every player is new, and every append fails with the same error.
    #[derive(Clone)]
    struct FailingLog {
        appends: Arc<AtomicU32>,
        error: MakeError,
    }

    impl Load for FailingLog {
        async fn player(&self, _: &PlayerId) -> Result<Player, ReadError> {
            Ok(Player::default())
        }

        async fn party(&self, _: PartyId) -> Result<Party, ReadError> {
            Ok(Party::default())
        }

        async fn session(&self, _: SessionId) -> Result<Session, ReadError> {
            Ok(Session::default())
        }

        async fn inventory(&self, _: &PlayerId) -> Result<Option<Recorded<inventory::Event>>, ReadError> {
            Ok(None)
        }
    }

    impl Append for FailingLog {
        async fn append(&self, decision: Decision) -> Result<Vec<u64>, AppendError> {
            self.appends.fetch_add(1, Ordering::Relaxed);
            Err((self.error)(decision.aggregates().next().unwrap().clone()))
        }
    }

    fn queued() -> Queued {
        Queued {
            ticket: TicketId::new(System.id()),
            queue: "ranked".parse().unwrap(),
            rank: 1,
            latencies: Default::default(),
            attributes: Default::default(),
            group: Vec::new(),
            waiting_since: OffsetDateTime::UNIX_EPOCH,
            expires_at: OffsetDateTime::UNIX_EPOCH,
            requeues: 0,
            absences: 0,
            party: None,
        }
    }

    #[tokio::test]
    async fn a_ticket_carries_the_number_of_missed_matches_on() {
        let log = SimLog::new(Simulated::at(OffsetDateTime::UNIX_EPOCH));
        let ann: PlayerId = "ann".parse().unwrap();
        let (ticket, session) = (TicketId::new(System.id()), SessionId::new(System.id()));
        let released = Released { ticket, session, why: Ending::Finished, reason: None, absences: 1, party: None };
        let decision = Decision::new(&System, session.uuid(), None);
        let aggregate = Aggregate::Player(ann.clone());
        let decision = decision.change(&System, aggregate, Head::default(), [Event::from(released)]);
        log.append(decision).await.unwrap();

        let queued = queued();
        let open = (&QueueStatuses::default(), &Storage::default(), &AbsenceWait::default());
        let (name, ticket) = (queued.queue.clone(), queued.ticket);
        queue(&log, &System, open, &ann, (&name, ticket), async { Ok(queued) }).await.unwrap();
        assert_eq!(log.player(&ann).await.unwrap().state.absences(), 1);
    }

    #[tokio::test]
    async fn a_command_retries_after_a_conflict_but_not_after_another_error() {
        let cases: [(MakeError, u32); 5] = [
            (AppendError::Conflict, MAX_TRIES),
            (|_| AppendError::Unavailable("down".into()), 1),
            (|_| AppendError::Full("full".into()), 1),
            (AppendError::Busy, 1),
            (|_| AppendError::Refused("invalid".into()), 1),
        ];
        for (error, tries) in cases {
            let log = FailingLog { appends: Arc::default(), error };
            let queued = queued();
            let (open, ann) =
                ((&QueueStatuses::default(), &Storage::default(), &AbsenceWait::default()), "ann".parse().unwrap());
            let (name, ticket) = (queued.queue.clone(), queued.ticket);
            let queued = async { Ok(queued) };
            let problem = queue(&log, &System, open, &ann, (&name, ticket), queued).await.unwrap_err();
            assert_eq!((problem.status().as_u16(), log.appends.load(Ordering::Relaxed)), (503, tries));
        }
    }
}
