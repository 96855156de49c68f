//! The decider: which events of a party and of players a command results in.

use std::collections::BTreeMap;

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    CODE_LIFETIME, CodeChanged, Created, Disbanded, Disbanding, Event, INVITATION_LIFETIME, Invitation, Invited,
    JoinCode, LeaderChanged, Leaving, MAX_INVITATIONS, MAX_MEMBERS, Member, MemberAway, MemberJoined, MemberLeft,
    MemberReturned, Party, PartyQueued, Readiness, ReadyChanged, State,
};
use crate::{
    env::Env,
    id::{PartyId, PlayerId, TicketId},
    log::{Decision, Head, Player},
    player::{self, CancelReason, Queued},
    subject::Aggregate,
};

/// How old an invitation must be before it is renewed. So nobody can notify a player again and again.
const RENEWED_AFTER: Duration = Duration::minutes(10);

/// What a gateway can request for a party.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Create the party.
    Create { by: PlayerId },
    /// Invite a player, or renew their invitation.
    Invite { by: PlayerId, player: PlayerId },
    /// Join the party.
    Join { player: PlayerId, proof: Proof },
    /// Leave the party. The last member who leaves ends it.
    Leave { player: PlayerId },
    /// Remove a member. Only the leader may.
    Kick { by: PlayerId, player: PlayerId },
    /// End the party. Only the leader may.
    Disband { by: PlayerId },
    /// Make another member the leader. Only the leader may.
    HandOver { by: PlayerId, to: PlayerId },
    /// Replace the code. Only the leader may.
    ChangeCode {
        by: PlayerId,
        /// SHA-256 of the new code, in lower-case hex.
        sha256: String,
    },
    /// Be ready for the next match with these values, or no longer be ready.
    SetReady { player: PlayerId, ready: Option<Readiness> },
    /// Queue all members with one ticket. Only the leader may.
    Queue {
        by: PlayerId,
        /// The event of each member. The queue and the ticket of the leader's event count for all. The decision sets
        /// `group` and `party`.
        queued: BTreeMap<PlayerId, Queued>,
    },
    /// Record that a member has disconnected and not reconnected in time. The ticket of a member who waits is cancelled
    /// for all.
    Away { player: PlayerId },
    /// Record that a member who was away is back.
    Return { player: PlayerId },
}

/// Why a player may join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A member has invited the player.
    Invitation,
    /// The player knows the code with this SHA-256, in lower-case hex.
    Code(String),
}

/// Why a command was rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("party already exists")]
    Exists,
    /// The party has ended, or never existed.
    #[error("party has ended")]
    Ended,
    /// The player is not a member.
    #[error("player {player} is not in the party")]
    NotMember { player: PlayerId },
    #[error("only the leader may do this")]
    NotLeader,
    /// The player is not invited, or the code is wrong or has expired.
    #[error("player is not invited")]
    NotInvited,
    /// The invited player is a member.
    #[error("player is already in the party")]
    AlreadyMember,
    #[error("party has {MAX_MEMBERS} members")]
    Full,
    #[error("party has {MAX_INVITATIONS} open invitations")]
    TooManyInvitations,
    /// The party waits in a queue with this ticket.
    #[error("party waits with ticket {ticket}")]
    PartyWaits { ticket: TicketId },
    /// The new leader, or the member who is ready, is away.
    #[error("player {player} is away")]
    Away { player: PlayerId },
    /// These members are away or not ready, or have just joined.
    #[error("{} members are not ready", players.len())]
    NotReady { players: Vec<PlayerId> },
    /// The state of this player does not allow the command. If the player is in a party that has ended, forget it
    /// ([`Player::without_party`]) and decide again.
    #[error("player {player}: {rejection}")]
    Player { player: PlayerId, rejection: player::Rejection },
    /// The command changes nothing.
    #[error("the command changes nothing")]
    NoChange,
}

/// The events of a decision: one of the party, and at most one of each player.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    pub event: Event,
    pub players: BTreeMap<PlayerId, player::Event>,
}

impl Decided {
    /// The decision to append. `party` is the head of the party and `players` are the players, as they were loaded for
    /// [`decide()`].
    pub fn decision(
        &self,
        env: &impl Env,
        (id, party): (PartyId, Head),
        players: &BTreeMap<PlayerId, Player>,
        cause: Option<Uuid>,
    ) -> Decision {
        let ticket = match &self.event {
            Event::PartyQueued(queued) => queued.state.ticket,
            _ => None,
        };
        let correlation = ticket.map_or(id.uuid(), |ticket| ticket.uuid());
        let decision = Decision::new(env, correlation, cause);
        let decision = decision.change(env, Aggregate::Party(id), party, [self.event.clone()]);
        self.players.iter().fold(decision, |decision, (player, event)| {
            let head = players.get(player).map(|player| player.head).unwrap_or_default();
            decision.change(env, Aggregate::Player(player.clone()), head, [event.clone()])
        })
    }
}

/// Decides on a party and its players.
///
/// `players` must hold all members of the party, and the player who creates or joins it. A player who is missing counts
/// as new; then the append fails with a conflict if they are not.
///
/// # Errors
/// [`Rejection`] if the state does not allow the command.
pub fn decide(
    id: PartyId,
    state: &State,
    players: &BTreeMap<PlayerId, Player>,
    command: Command,
    now: OffsetDateTime,
) -> Result<Decided, Rejection> {
    let open = state.open(now).map(|party| OpenParty { id, party, players, now });
    match (command, open) {
        (Command::Create { by }, _) => create(id, state, players, by, now),
        (_, None) => Err(Rejection::Ended),
        (Command::Invite { by, player }, Some(open)) => open.invite(&by, player),
        (Command::Join { player, proof }, Some(open)) => open.join(player, &proof),
        (Command::Leave { player }, Some(open)) => open.leave(player, Leaving::Left),
        (Command::Kick { by, player }, Some(open)) => {
            open.check_leader(&by)?;
            let why = if by == player { Leaving::Left } else { Leaving::Kicked };
            open.leave(player, why)
        }
        (Command::Disband { by }, Some(open)) => {
            open.check_leader(&by)?;
            open.disband(Disbanding::Disbanded)
        }
        (Command::HandOver { by, to }, Some(open)) => open.hand_over(&by, to),
        (Command::ChangeCode { by, sha256 }, Some(open)) => open.change_code(&by, sha256),
        (Command::SetReady { player, ready }, Some(open)) => open.set_ready(player, ready),
        (Command::Queue { by, queued }, Some(open)) => open.queue(&by, &queued),
        (Command::Away { player }, Some(open)) => open.away(player),
        (Command::Return { player }, Some(open)) => open.come_back(player),
    }
}

fn create(
    id: PartyId,
    state: &State,
    players: &BTreeMap<PlayerId, Player>,
    by: PlayerId,
    now: OffsetDateTime,
) -> Result<Decided, Rejection> {
    match state {
        State::New => {}
        State::Open(_) | State::Ended => return Err(Rejection::Exists),
    }
    let joined = joined(id, players, &by)?;
    let state = Party {
        members: vec![Member::new(by.clone(), now)],
        leader: by.clone(),
        invited: BTreeMap::new(),
        code: None,
        renewed_at: now,
        ticket: None,
    };
    Ok(Decided { event: Created { state }.into(), players: BTreeMap::from([(by, joined)]) })
}

/// The event of a player who joins.
fn joined(id: PartyId, players: &BTreeMap<PlayerId, Player>, player: &PlayerId) -> Result<player::Event, Rejection> {
    let new = Player::default();
    player::join_party(players.get(player).unwrap_or(&new), id)
        .map_err(|rejection| Rejection::Player { player: player.clone(), rejection })
}

/// A decision that changes no player.
fn only(event: impl Into<Event>) -> Decided {
    Decided { event: event.into(), players: BTreeMap::new() }
}

/// An open party and its players.
struct OpenParty<'a> {
    id: PartyId,
    party: Party,
    players: &'a BTreeMap<PlayerId, Player>,
    now: OffsetDateTime,
}

impl OpenParty<'_> {
    /// Checks that the player is a member, according to the party and to the player's own state.
    fn check_member(&self, player: &PlayerId) -> Result<(), Rejection> {
        let is_member = self.party.member(player).is_some() && self.has_joined(player);
        if is_member { Ok(()) } else { Err(Rejection::NotMember { player: player.clone() }) }
    }

    /// Whether the player's own state names this party. A member for whom this is false has joined another party when
    /// the time of this one seemed to be over, on a gateway whose clock is ahead.
    fn has_joined(&self, player: &PlayerId) -> bool {
        self.players.get(player).is_some_and(|found| found.state.party() == Some(self.id))
    }

    fn check_leader(&self, player: &PlayerId) -> Result<(), Rejection> {
        self.check_member(player)?;
        if self.party.leader == *player { Ok(()) } else { Err(Rejection::NotLeader) }
    }

    /// The ticket with which a member of this party waits.
    fn waits_with(&self, player: &PlayerId) -> Option<TicketId> {
        match self.players.get(player).map(|found| &found.state) {
            Some(player::State::Waiting(Queued { ticket, party: Some(party), .. })) if *party == self.id => {
                Some(*ticket)
            }
            _ => None,
        }
    }

    /// The ticket with which the party waits. It is the same for all members who wait.
    fn waiting(&self) -> Option<TicketId> {
        self.party.players().find_map(|player| self.waits_with(player))
    }

    /// Cancels the ticket of all members who wait, except for one member.
    fn cancelled_except(&self, except: &PlayerId) -> BTreeMap<PlayerId, player::Event> {
        let others = self.party.players().filter(|player| *player != except);
        others.filter_map(|player| Some((player.clone(), self.cancelled(player, CancelReason::Party)?))).collect()
    }

    fn cancelled(&self, player: &PlayerId, reason: CancelReason) -> Option<player::Event> {
        let ticket = self.waits_with(player)?;
        let found = self.players.get(player)?;
        player::decide(&found.state, player::Command::Cancel { ticket, reason }).ok()
    }

    /// The event of a member who leaves; `None` if their own state does not name this party.
    fn left(&self, player: &PlayerId, reason: CancelReason) -> Result<Option<player::Event>, Rejection> {
        let found = self.players.get(player).filter(|_| self.has_joined(player));
        let left = found.map(|found| player::leave_party(found, reason)).transpose();
        left.map_err(|rejection| Rejection::Player { player: player.clone(), rejection })
    }

    fn invite(mut self, by: &PlayerId, player: PlayerId) -> Result<Decided, Rejection> {
        self.check_member(by)?;
        if self.party.member(&player).is_some() {
            return Err(Rejection::AlreadyMember);
        }
        if self.party.invited.len() >= MAX_INVITATIONS && !self.party.invited.contains_key(&player) {
            return Err(Rejection::TooManyInvitations);
        }
        let invitation = Invitation { by: by.clone(), expires_at: self.now + INVITATION_LIFETIME };
        let is_fresh = |known: &Invitation| invitation.expires_at - known.expires_at < RENEWED_AFTER;
        if self.party.invited.get(&player).is_some_and(is_fresh) {
            return Err(Rejection::NoChange);
        }
        self.party.invited.insert(player.clone(), invitation);
        Ok(only(Invited { player, state: self.party }))
    }

    fn join(mut self, player: PlayerId, proof: &Proof) -> Result<Decided, Rejection> {
        // First of all, so that the answer tells nothing about the party to a player who may not join.
        let may_join = match proof {
            Proof::Invitation => self.party.invited.contains_key(&player),
            Proof::Code(sha256) => self.party.code.as_ref().is_some_and(|code| code.sha256 == *sha256),
        };
        if self.check_member(&player).is_ok() {
            return Err(Rejection::NoChange);
        }
        if !may_join {
            return Err(Rejection::NotInvited);
        }
        let joined = joined(self.id, self.players, &player)?;
        if let Some(ticket) = self.waiting() {
            return Err(Rejection::PartyWaits { ticket });
        }
        // A member who is in the list, but not in this party by their own state, joins again.
        self.party.members.retain(|member| member.player != player);
        if self.party.members.len() >= MAX_MEMBERS {
            return Err(Rejection::Full);
        }
        self.party.invited.remove(&player);
        self.party.members.push(Member::new(player.clone(), self.now));
        if self.party.member(&self.party.leader).is_none_or(|leader| leader.away) {
            self.party.choose_leader();
        }
        let event = MemberJoined { player: player.clone(), state: self.party };
        Ok(Decided { event: event.into(), players: BTreeMap::from([(player, joined)]) })
    }

    fn leave(mut self, player: PlayerId, why: Leaving) -> Result<Decided, Rejection> {
        if self.party.member(&player).is_none() {
            return Err(Rejection::NotMember { player });
        }
        if self.party.members.len() == 1 {
            return self.disband(Disbanding::Empty);
        }
        let (mut players, reason) = match (self.waits_with(&player), why) {
            (None, _) => (BTreeMap::new(), CancelReason::Party),
            (Some(_), Leaving::Left) => (self.cancelled_except(&player), CancelReason::Player),
            (Some(_), Leaving::Kicked) => (self.cancelled_except(&player), CancelReason::Party),
        };
        players.extend(self.left(&player, reason)?.map(|event| (player.clone(), event)));
        self.party.members.retain(|member| member.player != player);
        if why == Leaving::Kicked {
            // The player knows it.
            self.party.code = None;
        }
        if self.party.leader == player {
            self.party.choose_leader();
        }
        Ok(Decided { event: MemberLeft { player, why, state: self.party }.into(), players })
    }

    fn disband(self, why: Disbanding) -> Result<Decided, Rejection> {
        let reason = |player: &PlayerId| match *player == self.party.leader {
            true => CancelReason::Player,
            false => CancelReason::Party,
        };
        let left = |player: &PlayerId| Some((player.clone(), self.left(player, reason(player)).transpose()?));
        let players = self.party.players().filter_map(left).map(|(player, event)| Ok((player, event?)));
        let players = players.collect::<Result<_, Rejection>>()?;
        Ok(Decided { event: Disbanded { why, state: self.party }.into(), players })
    }

    fn hand_over(mut self, by: &PlayerId, to: PlayerId) -> Result<Decided, Rejection> {
        self.check_leader(by)?;
        self.check_member(&to)?;
        if self.party.leader == to {
            return Err(Rejection::NoChange);
        }
        if self.party.member(&to).is_some_and(|member| member.away) {
            return Err(Rejection::Away { player: to });
        }
        self.party.leader = to;
        Ok(only(LeaderChanged { state: self.party }))
    }

    fn change_code(mut self, by: &PlayerId, sha256: String) -> Result<Decided, Rejection> {
        self.check_leader(by)?;
        self.party.code = Some(JoinCode { sha256, expires_at: self.now + CODE_LIFETIME });
        Ok(only(CodeChanged { state: self.party }))
    }

    fn set_ready(mut self, player: PlayerId, ready: Option<Readiness>) -> Result<Decided, Rejection> {
        self.check_member(&player)?;
        let not_member = || Rejection::NotMember { player: player.clone() };
        let member = self.party.members.iter_mut().find(|member| member.player == player).ok_or_else(not_member)?;
        if member.ready == ready {
            return Err(Rejection::NoChange);
        }
        if member.away {
            return Err(Rejection::Away { player });
        }
        member.ready = ready;
        Ok(only(ReadyChanged { player, state: self.party }))
    }

    fn queue(mut self, by: &PlayerId, queued: &BTreeMap<PlayerId, Queued>) -> Result<Decided, Rejection> {
        self.check_leader(by)?;
        if let Some(ticket) = self.waiting() {
            return Err(Rejection::PartyWaits { ticket });
        }
        let is_ready =
            |member: &&Member| !member.away && self.has_joined(&member.player) && queued.contains_key(&member.player);
        let unready = self
            .party
            .members
            .iter()
            .filter(|member| !is_ready(member) || (member.player != *by && member.ready.is_none()));
        let unready: Vec<_> = unready.map(|member| member.player.clone()).collect();
        let Some(leader) = queued.get(by).filter(|_| unready.is_empty()) else {
            return Err(Rejection::NotReady { players: unready });
        };
        let (ticket, queue) = (leader.ticket, leader.queue.clone());
        let group: Vec<_> =
            if self.party.members.len() > 1 { self.party.players().cloned().collect() } else { Vec::new() };
        let events = queued.iter().filter(|(player, _)| self.party.member(player).is_some()).map(|(player, queued)| {
            let (queue, group, party) = (queue.clone(), group.clone(), Some(self.id));
            let command = player::Command::Queue(Queued { ticket, queue, group, party, ..queued.clone() });
            let new = player::State::New;
            let state = self.players.get(player).map_or(&new, |found| &found.state);
            let event = player::decide(state, command);
            let event = event.map_err(|rejection| Rejection::Player { player: player.clone(), rejection })?;
            Ok((player.clone(), event))
        });
        let players = events.collect::<Result<BTreeMap<_, _>, Rejection>>()?;
        self.party.members.iter_mut().for_each(|member| member.ready = None);
        let state = Party { renewed_at: self.now, ticket: Some(ticket), ..self.party };
        Ok(Decided { event: PartyQueued { queue, state }.into(), players })
    }

    fn away(mut self, player: PlayerId) -> Result<Decided, Rejection> {
        self.check_member(&player)?;
        let cancelled = self.cancelled(&player, CancelReason::Disconnected);
        let mut players = if cancelled.is_some() { self.cancelled_except(&player) } else { BTreeMap::new() };
        players.extend(cancelled.map(|event| (player.clone(), event)));
        if players.is_empty() && self.party.member(&player).is_some_and(|member| member.away) {
            return Err(Rejection::NoChange);
        }
        for member in self.party.members.iter_mut().filter(|member| member.player == player) {
            (member.away, member.ready) = (true, None);
        }
        if self.party.leader == player {
            self.party.choose_leader();
        }
        Ok(Decided { event: MemberAway { player, state: self.party }.into(), players })
    }

    fn come_back(mut self, player: PlayerId) -> Result<Decided, Rejection> {
        self.check_member(&player)?;
        if self.party.member(&player).is_some_and(|member| !member.away) {
            return Err(Rejection::NoChange);
        }
        let leader_is_away = self.party.member(&self.party.leader).is_none_or(|leader| leader.away);
        if leader_is_away {
            self.party.leader = player.clone();
        }
        for member in self.party.members.iter_mut().filter(|member| member.player == player) {
            member.away = false;
        }
        Ok(only(MemberReturned { player, state: self.party }))
    }
}
