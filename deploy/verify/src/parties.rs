//! Checks parties: who is a member according to the party's events and according to the players' events.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use garage_events::{
    event::Event as _,
    id::{PartyId, PlayerId},
    party::{Created, Disbanded, Event, MAX_INVITATIONS, MAX_MEMBERS, MemberJoined, MemberLeft, Party},
    player::{self, Queued},
};
use time::OffsetDateTime;

use crate::{
    players::Players,
    violation::{Rule, Violation},
};

/// All parties of the log.
#[derive(Debug, Default)]
pub(crate) struct Parties {
    all: HashMap<PartyId, Status>,
    /// The time of the last event of a player or a party.
    now: Option<OffsetDateTime>,
}

/// The state of a party.
#[derive(Debug, Default)]
enum Status {
    /// The last event cannot be read, or is older than the log.
    #[default]
    Unknown,
    /// The sequence of the party's last event.
    Open(Box<Party>, u64),
    Ended,
}

/// The events of one commit that parties are checked with.
#[derive(Debug, Default)]
pub(crate) struct PartyChanges {
    parties: Vec<(PartyId, u64, Event)>,
    players: BTreeMap<PlayerId, PlayerChange>,
    /// The later one of the times at which the commit was decided and stored.
    at: Option<OffsetDateTime>,
}

#[derive(Debug)]
struct PlayerChange {
    seq: u64,
    /// The party before the event; the outer `None` if it is not known.
    before: Option<Option<PartyId>>,
    event: player::Event,
}

impl PartyChanges {
    /// Adds an event of a party, and the later one of the times at which it was decided and stored.
    pub(crate) fn party(&mut self, id: PartyId, seq: u64, at: OffsetDateTime, event: &Event) {
        self.parties.push((id, seq, event.clone()));
        self.at = self.at.max(Some(at));
    }

    /// Adds an event of a player, and the player's party before it, if that is known.
    pub(crate) fn player(
        &mut self,
        id: &PlayerId,
        seq: u64,
        at: OffsetDateTime,
        (before, event): (Option<Option<PartyId>>, &player::Event),
    ) {
        self.players.insert(id.clone(), PlayerChange { seq, before, event: event.clone() });
        self.at = self.at.max(Some(at));
    }

    /// The player's party after the commit; `None` if the commit has no event of the player.
    fn party_of(&self, player: &PlayerId) -> Option<Option<PartyId>> {
        self.players.get(player).map(|change| player::State::evolve(&change.event).party())
    }

    /// Whether the commit has an event of this party that such a test accepts.
    fn has(&self, id: PartyId, is_it: impl Fn(&Event) -> bool) -> bool {
        self.parties.iter().any(|(party, _, event)| *party == id && is_it(event))
    }
}

impl Parties {
    /// Marks a party's state as unknown. The party's next event contains the whole state again.
    pub(crate) fn forget(&mut self, id: PartyId) {
        self.all.insert(id, Status::Unknown);
    }

    /// Checks the events of one commit. `is_whole` says whether the log has the whole commit.
    pub(crate) fn check(&mut self, changes: &PartyChanges, is_whole: bool, found: &mut Vec<Violation>) {
        self.now = self.now.max(changes.at);
        if is_whole {
            for (player, change) in &changes.players {
                if let Err(what) = self.check_player(player, change, changes) {
                    found.push(Violation::new(Rule::Party, [change.seq], what).player(player));
                }
            }
        }
        for (id, seq, event) in &changes.parties {
            let before = self.all.get(id);
            let mut checked = check_state(event.party()).and_then(|()| check_transition(before, event));
            if is_whole {
                checked = checked.and_then(|()| check_members(*id, event, changes));
            }
            if let Err(what) = checked {
                let before = if let Some(Status::Open(_, before)) = before { *before } else { 0 };
                found.push(Violation::new(Rule::Party, [before, *seq], what).party(*id));
            }
            let status = match event {
                Event::Disbanded(_) => Status::Ended,
                open => Status::Open(Box::new(open.party().clone()), *seq),
            };
            self.all.insert(*id, status);
        }
    }

    /// Checks that the members of each open party are in it according to their own events.
    pub(crate) fn finish(&self, players: &Players) -> Vec<Violation> {
        let mut found = Vec::new();
        for (id, status) in &self.all {
            let Status::Open(party, seq) = status else { continue };
            if self.has_ended(*id) {
                continue;
            }
            for member in party.players() {
                let own = players.party(member);
                if own.is_some_and(|own| own != Some(*id)) {
                    let what = "the party has a member whose own events say otherwise";
                    found.push(Violation::new(Rule::Party, [*seq], what).player(member).party(*id));
                }
            }
        }
        found.sort_by(|one, other| one.seqs.cmp(&other.seqs).then_with(|| one.player.cmp(&other.player)));
        found
    }

    /// Whether a party has ended, or may have ended: it is not known.
    fn has_ended(&self, id: PartyId) -> bool {
        match self.all.get(&id) {
            Some(Status::Open(party, _)) => self.now.is_some_and(|now| party.ends_at() <= now),
            Some(Status::Unknown | Status::Ended) | None => true,
        }
    }

    /// Checks that a player joins and leaves a party only together with the party, and is in one at most.
    fn check_player(&self, player: &PlayerId, change: &PlayerChange, commit: &PartyChanges) -> Result<(), String> {
        let after = player::State::evolve(&change.event).party();
        let moved = change.before.filter(|before| *before != after);
        if let Some(before) = moved {
            let was_removed = |left: PartyId| {
                commit.has(left, |event| match event {
                    Event::MemberLeft(left) => left.player == *player,
                    Event::Disbanded(disbanded) => disbanded.state.member(player).is_some(),
                    _ => false,
                })
            };
            if let Some(left) = before.filter(|left| !was_removed(*left) && !self.has_ended(*left)) {
                return Err(format!("the player leaves party {left}, which still has them as a member"));
            }
            let was_added = |joined: PartyId| {
                commit.has(joined, |event| match event {
                    Event::Created(created) => created.state.leader == *player,
                    Event::MemberJoined(joined) => joined.player == *player,
                    _ => false,
                })
            };
            if let Some(joined) = after.filter(|joined| !was_added(*joined)) {
                return Err(format!("the player joins party {joined} without an event of the party"));
            }
        }
        match &change.event {
            player::Event::Queued(Queued { party: Some(party), ticket, .. }) => {
                let is_queued =
                    |event: &Event| matches!(event, Event::PartyQueued(queued) if queued.state.ticket == Some(*ticket));
                if !commit.has(*party, is_queued) {
                    return Err(format!("the player of party {party} is queued without the party"));
                }
            }
            player::Event::Requeued(requeued) => {
                let queued = &requeued.queued;
                let waits_too = |member: &&PlayerId| match commit.players.get(*member).map(|change| &change.event) {
                    Some(player::Event::Requeued(other)) => {
                        other.queued.ticket == queued.ticket && other.queued.party == queued.party
                    }
                    _ => false,
                };
                if let Some(missing) = queued.group.iter().find(|member| !waits_too(member)) {
                    return Err(format!("ticket {} is requeued without {missing}", queued.ticket));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Checks what is true of every party.
fn check_state(party: &Party) -> Result<(), String> {
    let members: BTreeSet<_> = party.players().collect();
    if members.len() != party.members.len() {
        return Err("the party has a member twice".into());
    }
    if members.is_empty() || members.len() > MAX_MEMBERS {
        return Err(format!("the party has {} members", members.len()));
    }
    if !members.contains(&party.leader) {
        return Err("the leader is not a member".into());
    }
    if party.invited.len() > MAX_INVITATIONS {
        return Err(format!("the party has {} invitations", party.invited.len()));
    }
    Ok(())
}

/// Checks that the members change only as the type of the event says.
fn check_transition(before: Option<&Status>, event: &Event) -> Result<(), String> {
    let name = event.type_name();
    let before: BTreeSet<_> = match (before, event) {
        (None, Event::Created(_)) => BTreeSet::new(),
        (None, _) => return Err(format!("the first event of the party is {name}")),
        (Some(Status::Ended), _) => return Err(format!("{name} after the end of the party")),
        (Some(_), Event::Created(_)) => return Err("the party is created a second time".into()),
        (Some(Status::Unknown), _) => return Ok(()),
        (Some(Status::Open(party, _)), _) => party.players().collect(),
    };
    let mut expected = before;
    match event {
        Event::Created(Created { state }) => drop(expected.insert(&state.leader)),
        Event::MemberJoined(MemberJoined { player, .. }) => drop(expected.insert(player)),
        Event::MemberLeft(MemberLeft { player, .. }) => drop(expected.remove(player)),
        Event::Invited(_)
        | Event::LeaderChanged(_)
        | Event::ReadyChanged(_)
        | Event::CodeChanged(_)
        | Event::PartyQueued(_)
        | Event::MemberAway(_)
        | Event::MemberReturned(_)
        | Event::Disbanded(_) => {}
    }
    let after: BTreeSet<_> = event.party().players().collect();
    if after == expected { Ok(()) } else { Err(format!("{name} changes the members in another way than it says")) }
}

/// Checks that the players whose membership or ticket changes have events of their own in the commit.
fn check_members(id: PartyId, event: &Event, commit: &PartyChanges) -> Result<(), String> {
    let joins = |player: &PlayerId| match commit.party_of(player) {
        Some(Some(party)) if party == id => Ok(()),
        _ => Err(format!("{player} joins the party without an event of their own")),
    };
    // A member whose own events already name another party needs no event. `finish` finds it, unless the time of the
    // party was over.
    let leaves = |player: &PlayerId| match commit.party_of(player) {
        Some(Some(party)) if party == id => Err(format!("{player} leaves the party, but their own event names it")),
        _ => Ok(()),
    };
    match event {
        Event::Created(Created { state }) => joins(&state.leader),
        Event::MemberJoined(MemberJoined { player, .. }) => joins(player),
        Event::MemberLeft(MemberLeft { player, .. }) => leaves(player),
        Event::Disbanded(Disbanded { state, .. }) => state.players().try_for_each(leaves),
        Event::PartyQueued(queued) => {
            let members: Vec<_> = queued.state.players().cloned().collect();
            let group = if members.len() > 1 { members.as_slice() } else { &[] };
            members.iter().try_for_each(|member| match commit.players.get(member).map(|change| &change.event) {
                Some(player::Event::Queued(own))
                    if own.party == Some(id) && queued.state.ticket == Some(own.ticket) && own.group == group =>
                {
                    Ok(())
                }
                _ => Err(format!("the party is queued without {member}, or with another ticket")),
            })
        }
        Event::Invited(_)
        | Event::LeaderChanged(_)
        | Event::ReadyChanged(_)
        | Event::CodeChanged(_)
        | Event::MemberAway(_)
        | Event::MemberReturned(_) => Ok(()),
    }
}
