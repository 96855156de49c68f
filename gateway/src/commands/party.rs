//! Commands on parties: load the party and its players, decide, append. After a conflict, start again with a new load.

use std::{collections::BTreeMap, time::Duration};

use garage_events::{
    env::Env,
    id::{PartyId, PlayerId, QueueName, TicketId},
    jetstream::storage::Storage,
    log::{self, AppendError, Decision, Log, Player, ReadError},
    party::{self, Command, Decided, Party, Rejection},
    player::Queued,
};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use super::{load, rejected};
use crate::{
    absence::AbsenceWait,
    problem::Problem,
    queue_status::QueueStatuses,
    ticket::{self, Queueing, Ticket},
};

/// How many decisions of a command on a party may conflict before the client gets a 503. When several commands on one party
/// conflict, one of them is stored in each round. A party has at most 10 members, and each member has one command at a
/// time on a gateway. So a command is stored even if all members send one at the same moment, and some join.
const MAX_TRIES: u32 = 20;

/// How long a command waits before its next try if too many others on the same party wait for a commit in this gateway.
/// A commit takes about this long.
const BUSY_WAIT: Duration = Duration::from_millis(5);

/// For how long a command does this. A command has 10 s in total.
const MAX_BUSY: Duration = Duration::from_secs(5);

/// The party that a player is in, and how it was loaded. `None` if the player is in none, or if it has ended.
///
/// # Errors
/// [`ReadError`]
pub(crate) async fn of(
    log: &impl Log,
    player: &Player,
    now: OffsetDateTime,
) -> Result<Option<(PartyId, log::Party, Party)>, ReadError> {
    let Some(id) = player.state.party() else { return Ok(None) };
    let loaded = log.party(id).await?;
    Ok(loaded.state.open(now).map(|party| (id, loaded, party)))
}

/// The effect of a command.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) id: PartyId,
    /// The party after the command. If the command ended the party: just before its end.
    pub(crate) party: Party,
    /// The sequence of the party's event; `None` if the command changed nothing.
    pub(crate) seq: Option<u64>,
    /// How many players have a new event.
    pub(crate) players: usize,
}

/// Which party a command is about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// The party that the player is in.
    Own,
    /// A party that the player creates or joins.
    Other(PartyId),
}

/// Carries out the command of a player. A member who is away is back first, unless the command says that they are away
/// or leave.
///
/// # Errors
/// [`Problem`]: a 404 if there is no such party for the player, a 403 if only the leader may do this, a 409 if the state
/// of the party or of a player does not allow it.
pub(crate) async fn run(
    log: &impl Log,
    env: &impl Env,
    me: &PlayerId,
    target: Target,
    command: Command,
) -> Result<Done, Problem> {
    let mut tries = Tries { conflicts: 0, busy_until: Instant::now() + MAX_BUSY };
    loop {
        let (player, now) = (log.player(me).await?, env.now());
        let own = of(log, &player, now).await?;
        let (id, loaded) = match (target, &own) {
            (Target::Own, None) => return Err(no_party()),
            (Target::Own, Some((id, loaded, _))) => (*id, loaded.clone()),
            (Target::Other(id), Some((own, loaded, _))) if *own == id => (id, loaded.clone()),
            (Target::Other(id), _) => (id, log.party(id).await?),
        };
        // The request has created the party already, or an earlier try of it.
        if let (Command::Create { .. }, Some((own, _, party))) = (&command, &own)
            && *own == id
        {
            return Ok(Done { id, party: party.clone(), seq: None, players: 0 });
        }
        let player = if own.is_some() { player } else { player.without_party() };
        let mut players = members(log, loaded.state.open(now).as_ref(), me).await?;
        players.insert(me.clone(), player);
        let is_away =
            own.is_some_and(|(own, _, party)| own == id && party.member(me).is_some_and(|member| member.away));
        let first = is_away && !matches!(command, Command::Away { .. } | Command::Leave { .. });
        let now_due = if first { Command::Return { player: me.clone() } } else { command.clone() };
        let decided = match party::decide(id, &loaded.state, &players, now_due, now) {
            Ok(decided) => decided,
            Err(Rejection::NoChange) => {
                let party = loaded.state.open(now).ok_or_else(no_party)?;
                return Ok(Done { id, party, seq: None, players: 0 });
            }
            Err(rejection) => return Err(refused(&rejection, me, id, loaded.state.open(now).as_ref())),
        };
        let cause = loaded.last.as_ref().map(|last| last.id);
        let decision = decided.decision(env, (id, loaded.head), &players, cause);
        if let Some(sequences) = commit(&mut tries, log, decision).await?
            && !first
        {
            let Decided { event, players } = decided;
            let (seq, party) = (sequences.first().copied(), event.party().clone());
            tracing::debug!(player.id = %me, party.id = %id, event.seq = seq, "changed a party");
            return Ok(Done { id, party, seq, players: players.len() });
        }
    }
}

/// Records that a member has disconnected and has not reconnected in time. `ended` is when their socket ended: a player
/// who joined the party after that time is not away. Returns whether this cancelled the ticket of the party. A player
/// who is in no party is not an error.
///
/// # Errors
/// [`ReadError`], or another error if the log does not answer.
pub(crate) async fn away(
    log: &impl Log,
    env: &impl Env,
    player: &PlayerId,
    ended: OffsetDateTime,
) -> anyhow::Result<bool> {
    let own = of(log, &log.player(player).await?, env.now()).await?;
    let joined_before = |party: &Party| party.member(player).is_some_and(|member| member.joined_at <= ended);
    if !own.is_some_and(|(_, _, party)| joined_before(&party)) {
        return Ok(false);
    }
    match run(log, env, player, Target::Own, Command::Away { player: player.clone() }).await {
        Ok(done) => {
            if done.seq.is_some() {
                metrics::counter!("garage_gateway_party_members_away_total").increment(1);
            }
            Ok(done.players > 0)
        }
        // In the meantime, the player has left the party.
        Err(problem) if problem.is_clients() => Ok(false),
        Err(problem) => anyhow::bail!("{problem:?}"),
    }
}

/// Whether a player is in a party that another player leads.
///
/// # Errors
/// [`ReadError`]
pub(crate) async fn is_led_by_another(
    log: &impl Log,
    id: &PlayerId,
    player: &Player,
    now: OffsetDateTime,
) -> Result<bool, ReadError> {
    Ok(of(log, player, now).await?.is_some_and(|(_, _, party)| party.leader != *id))
}

/// Records that a member who was away is back. A player who is in no party is not an error.
///
/// # Errors
/// [`Problem`] if the log does not answer.
pub(crate) async fn returned(log: &impl Log, env: &impl Env, player: &PlayerId) -> Result<(), Problem> {
    match run(log, env, player, Target::Own, Command::Return { player: player.clone() }).await {
        Err(problem) if !problem.is_clients() => Err(problem),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// A leader's request for a ticket of their party.
pub(crate) trait Request {
    /// The event of each member. It may leave out members who are not ready.
    ///
    /// # Errors
    /// [`Problem`] if the queue can never match the party.
    fn queued(&self, party: &Party) -> impl Future<Output = Result<BTreeMap<PlayerId, Queued>, Problem>> + Send;
}

/// Queues all members of the leader's party with one ticket, in one commit. The events of the `request` are awaited only
/// if the party gets a new ticket.
///
/// # Errors
/// [`Problem`]: the same as for [`super::queue`], of the first member for whom the request is not possible; a 409 if the
/// player is not the leader or a member is not ready.
pub(crate) async fn queue(
    log: &impl Log,
    env: &impl Env,
    (queue_statuses, storage, absence_wait): (&QueueStatuses, &Storage, &AbsenceWait),
    me: &PlayerId,
    (queue, ticket): (&QueueName, TicketId),
    request: &impl Request,
) -> Result<Ticket, Problem> {
    let mut tries = Tries { conflicts: 0, busy_until: Instant::now() + MAX_BUSY };
    'again: loop {
        let (player, now) = (log.player(me).await?, env.now());
        if let Some(ticket) = Ticket::latest(&player).filter(|latest| latest.ticket == ticket) {
            return Ok(ticket);
        }
        let own = of(log, &player, now).await?;
        let (id, loaded, party) = own.ok_or_else(|| {
            Problem::unavailable("the player has just left their party; try again, to queue without it")
        })?;
        if party.member(me).is_some_and(|member| member.away) {
            returned(log, env, me).await?;
            continue;
        }
        if party.leader != *me {
            return Err(Problem::in_party(id));
        }
        let mut players = members(log, Some(&party), me).await?;
        players.insert(me.clone(), player);
        for (member, found) in &players {
            let about = |problem: Problem| if member == me { problem } else { problem.about(member) };
            match ticket::queue(found, ticket, now, absence_wait) {
                Ok(Queueing::Have(_) | Queueing::Append) => {}
                Ok(Queueing::First(event)) => {
                    // Each member may have an expired ticket, so this does not count as a try.
                    super::Tries::default().append(log, env, member, found, event).await?;
                    continue 'again;
                }
                Ok(Queueing::Wait(until, absences)) => return Err(about(Problem::absent(until, absences, now))),
                Err(rejection) => return Err(about(rejected(&rejection))),
            }
        }
        queue_statuses.check_open(queue)?;
        if !storage.has_room_for_tickets() {
            return Err(Problem::log_full());
        }
        let command = Command::Queue { by: me.clone(), queued: request.queued(&party).await? };
        let decided = party::decide(id, &loaded.state, &players, command, now)
            .map_err(|rejection| refused(&rejection, me, id, Some(&party)))?;
        let decision = decided.decision(env, (id, loaded.head), &players, None);
        let Some(sequences) = commit(&mut tries, log, decision).await? else { continue };
        // The party's event is the first one. Those of the players follow, in their order.
        let mine = decided.players.iter().zip(sequences.into_iter().skip(1)).find(|((player, _), _)| *player == me);
        let ticket = mine.and_then(|((_, event), seq)| Ticket::of(event, seq));
        // The decision has an event of each member.
        let ticket = ticket.ok_or_else(super::unknown)?;
        tracing::debug!(party.id = %id, ticket.id = %ticket.ticket, event.seq = ticket.seq, "queued a party");
        return Ok(ticket);
    }
}

/// What a command has tried.
struct Tries {
    conflicts: u32,
    /// Until when it tries again if others wait for a commit.
    busy_until: Instant,
}

/// Appends a decision, and returns the sequences of its events; `None` if it is not stored and another try is allowed.
async fn commit(tries: &mut Tries, log: &impl Log, decision: Decision) -> Result<Option<Vec<u64>>, AppendError> {
    match log.append(decision).await {
        Ok(sequences) => Ok(Some(sequences)),
        Err(AppendError::Conflict(_)) if tries.conflicts + 1 < MAX_TRIES => {
            tries.conflicts += 1;
            Ok(None)
        }
        Err(AppendError::Busy(_)) if Instant::now() < tries.busy_until => {
            sleep(BUSY_WAIT).await;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Loads all members except for one player, who is loaded already.
async fn members(
    log: &impl Log,
    party: Option<&Party>,
    me: &PlayerId,
) -> Result<BTreeMap<PlayerId, Player>, ReadError> {
    let others = party.into_iter().flat_map(Party::players).filter(|player| *player != me);
    Ok(load(log, others).await?.into_iter().collect())
}

/// The answer if a player is in no party, is not invited to one, or has a wrong code. It does not reveal which.
pub(crate) fn no_party() -> Problem {
    Problem::not_found(
        "there is no such party: the player is in none, is not invited, or the code is wrong or has expired",
    )
}

/// The answer to a rejected command of a player.
fn refused(rejection: &Rejection, me: &PlayerId, id: PartyId, party: Option<&Party>) -> Problem {
    match rejection {
        Rejection::Ended | Rejection::NotInvited => no_party(),
        Rejection::NotMember { player } if player == me => no_party(),
        Rejection::NotMember { player } => Problem::not_found("the player is not a member of the party").about(player),
        Rejection::Exists => Problem::unprocessable(
            "the Idempotency-Key was already used for a party that has ended, or that the player has left; use a new key",
        ),
        Rejection::NotLeader => Problem::not_leader(party.map(|party| &party.leader)),
        Rejection::AlreadyMember => Problem::in_party(id),
        Rejection::Full => Problem::party_full(format!("the party has {} members already", party::MAX_MEMBERS)),
        Rejection::TooManyInvitations => {
            Problem::party_full(format!("the party has {} open invitations already", party::MAX_INVITATIONS))
        }
        Rejection::PartyWaits { ticket } => Problem::party_waits(*ticket),
        Rejection::Away { player } => Problem::not_ready([player]),
        Rejection::NotReady { players } => Problem::not_ready(players),
        Rejection::Player { player, rejection } if player == me => rejected(rejection),
        Rejection::Player { player, rejection } => rejected(rejection).about(player),
        // The caller handles it.
        Rejection::NoChange => Problem::unavailable("the party has changed during the request; try again"),
    }
}
