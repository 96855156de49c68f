//! Parties: players who queue together, and stay together after the match. Events, state, and the decider.
//!
//! Every event carries the whole state of the party. The last event is therefore enough to know the state.
//!
//! Which party a player is in, is a part of the player's own state ([`crate::player::State::party`]). So a decision about
//! a party often changes players too, and the expected sequence of the player ensures that nobody is in two parties.

mod decide;

use std::collections::BTreeMap;

use garage_rules::rule_set::{MAX_TICKET, Value};
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

use crate::{
    event::events,
    id::{PlayerId, QueueName, Region, TicketId},
};

pub use decide::{Command, Decided, Proof, Rejection, decide};

events! {
    /// The events of a party.
    "party" {
        /// A player created the party, and leads it.
        Created = "created" at PartyChanged,
        /// A member invited a player.
        Invited = "invited" at PartyChanged,
        /// A player joined the party.
        MemberJoined = "member-joined" at PartyChanged,
        /// A member left the party, or the leader removed them.
        MemberLeft = "member-left" at PartyChanged,
        /// The leader made another member the leader.
        LeaderChanged = "leader-changed" at PartyChanged,
        /// A member is ready for the next match, or no longer ready.
        ReadyChanged = "ready-changed" at PartyChanged,
        /// The party has a new code for joining.
        CodeChanged = "code-changed" at PartyChanged,
        /// The leader queued the party. All members got the ticket in the same commit.
        PartyQueued = "party-queued" at PartyChanged,
        /// A member disconnected and did not reconnect within the grace period.
        MemberAway = "member-away" at PartyChanged,
        /// A member who was away is back.
        MemberReturned = "member-returned" at PartyChanged,
        /// The party has ended. It is the last event of a party, but a party can also end without it: see [`LIFETIME`].
        Disbanded = "disbanded" at PartyChanged,
    }
}

/// The maximum number of members. It is the maximum number of players of a ticket.
pub const MAX_MEMBERS: usize = MAX_TICKET;

/// The maximum number of open invitations of a party. Each event of the party carries all of them.
pub const MAX_INVITATIONS: usize = 20;

/// How long an invitation is valid.
pub const INVITATION_LIFETIME: Duration = Duration::HOUR;

/// How long a code is valid.
pub const CODE_LIFETIME: Duration = Duration::HOUR;

/// How long after [`Party::renewed_at`] the party ends. It must end before the log drops the event by which a member
/// joined, and with it the knowledge that the player is a member: the log keeps events for 12 h. The difference of 4 h
/// allows for a last ticket, which lasts an hour at most, for its match, and for clocks that differ.
pub const LIFETIME: Duration = Duration::hours(8);

/// An open party.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Party {
    /// The longest-standing member first. At least one and at most [`MAX_MEMBERS`], each once.
    pub members: Vec<Member>,
    /// One of the members.
    pub leader: PlayerId,
    /// The players who may join without a code. At most [`MAX_INVITATIONS`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub invited: BTreeMap<PlayerId, Invitation>,
    /// The code with which anybody may join.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<JoinCode>,
    /// When the party was created or last queued. See [`LIFETIME`].
    #[serde(with = "time::serde::rfc3339")]
    pub renewed_at: OffsetDateTime,
    /// The last ticket of the party, whether it has ended or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<TicketId>,
}

impl Party {
    /// The member that this player is.
    pub fn member(&self, player: &PlayerId) -> Option<&Member> {
        self.members.iter().find(|member| member.player == *player)
    }

    /// The members' players, the longest-standing first.
    pub fn players(&self) -> impl Iterator<Item = &PlayerId> {
        self.members.iter().map(|member| &member.player)
    }

    /// When the party ends.
    pub fn ends_at(&self) -> OffsetDateTime {
        self.renewed_at + LIFETIME
    }

    /// The same party without the invitations and the code that have expired.
    #[must_use]
    fn at(mut self, now: OffsetDateTime) -> Self {
        self.invited.retain(|_, invitation| now < invitation.expires_at);
        self.code = self.code.filter(|code| now < code.expires_at);
        self
    }

    /// Makes the longest-standing member who is not away the leader, or the longest-standing one if all are away.
    fn choose_leader(&mut self) {
        let next = self.members.iter().find(|member| !member.away).or(self.members.first());
        if let Some(next) = next {
            self.leader = next.player.clone();
        }
    }
}

/// A member of a party.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    pub player: PlayerId,
    #[serde(with = "time::serde::rfc3339")]
    pub joined_at: OffsetDateTime,
    /// The member's values for the next ticket. Absent if the member is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Readiness>,
    /// Whether the member's last socket closed, and the member did not reconnect within the grace period.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub away: bool,
}

impl Member {
    fn new(player: PlayerId, joined_at: OffsetDateTime) -> Self {
        Self { player, joined_at, ready: None, away: false }
    }
}

/// What a member's part of the next ticket contains. The member states it before the queue is known.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Readiness {
    /// See [`crate::player::Queued::rank`]. Absent if the rating of the player decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<i32>,
    /// See [`crate::player::Queued::latencies`].
    pub latencies: BTreeMap<Region, u32>,
    /// The attributes that the member's client sent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, Value>,
    /// The claims of the member's token that queues use as attributes, by the name of the claim.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, Value>,
}

/// A player may join without a code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The member who invited the player. They may have left since.
    pub by: PlayerId,
    /// See [`INVITATION_LIFETIME`].
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// A code with which anybody may join. The log never holds the code itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinCode {
    /// SHA-256 of the code, in lower-case hex.
    pub sha256: String,
    /// See [`CODE_LIFETIME`].
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// See [`Event::Created`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Created {
    #[serde(flatten)]
    pub state: Party,
}

/// See [`Event::Invited`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Invited {
    pub player: PlayerId,
    #[serde(flatten)]
    pub state: Party,
}

/// See [`Event::MemberJoined`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberJoined {
    pub player: PlayerId,
    #[serde(flatten)]
    pub state: Party,
}

/// See [`Event::MemberLeft`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberLeft {
    pub player: PlayerId,
    pub why: Leaving,
    #[serde(flatten)]
    pub state: Party,
}

/// Why a player is no longer a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leaving {
    Left,
    /// The leader removed the player.
    Kicked,
}

/// See [`Event::LeaderChanged`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaderChanged {
    #[serde(flatten)]
    pub state: Party,
}

/// See [`Event::ReadyChanged`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReadyChanged {
    pub player: PlayerId,
    #[serde(flatten)]
    pub state: Party,
}

/// See [`Event::CodeChanged`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CodeChanged {
    #[serde(flatten)]
    pub state: Party,
}

/// See [`Event::PartyQueued`]. The ticket is in the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartyQueued {
    pub queue: QueueName,
    #[serde(flatten)]
    pub state: Party,
}

/// See [`Event::MemberAway`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberAway {
    pub player: PlayerId,
    #[serde(flatten)]
    pub state: Party,
}

/// See [`Event::MemberReturned`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberReturned {
    pub player: PlayerId,
    #[serde(flatten)]
    pub state: Party,
}

/// See [`Event::Disbanded`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Disbanded {
    pub why: Disbanding,
    /// The party just before its end, with the members who were left.
    #[serde(flatten)]
    pub state: Party,
}

/// Why a party was disbanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disbanding {
    /// The leader disbanded it.
    Disbanded,
    /// The last member left.
    Empty,
}

impl Event {
    /// The party after the event. For [`Event::Disbanded`], it is the party just before its end.
    pub fn party(&self) -> &Party {
        match self {
            Self::Created(Created { state })
            | Self::Invited(Invited { state, .. })
            | Self::MemberJoined(MemberJoined { state, .. })
            | Self::MemberLeft(MemberLeft { state, .. })
            | Self::LeaderChanged(LeaderChanged { state })
            | Self::ReadyChanged(ReadyChanged { state, .. })
            | Self::CodeChanged(CodeChanged { state })
            | Self::PartyQueued(PartyQueued { state, .. })
            | Self::MemberAway(MemberAway { state, .. })
            | Self::MemberReturned(MemberReturned { state, .. })
            | Self::Disbanded(Disbanded { state, .. }) => state,
        }
    }
}

/// The state of a party.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum State {
    /// The log has no event of the party.
    #[default]
    New,
    Open(Party),
    /// The party was disbanded.
    Ended,
}

impl State {
    /// The state after an event. It does not depend on the state before, because each event carries the whole state.
    #[must_use]
    pub fn evolve(event: &Event) -> Self {
        match event {
            Event::Disbanded(_) => Self::Ended,
            Event::Created(_)
            | Event::Invited(_)
            | Event::MemberJoined(_)
            | Event::MemberLeft(_)
            | Event::LeaderChanged(_)
            | Event::ReadyChanged(_)
            | Event::CodeChanged(_)
            | Event::PartyQueued(_)
            | Event::MemberAway(_)
            | Event::MemberReturned(_) => Self::Open(event.party().clone()),
        }
    }

    /// The party, if it is open at this time, without what has expired. `None` if the party has ended, or never existed:
    /// a player whose state names such a party is in no party.
    pub fn open(&self, now: OffsetDateTime) -> Option<Party> {
        match self {
            Self::Open(party) if now < party.ends_at() => Some(party.clone().at(now)),
            Self::Open(_) | Self::New | Self::Ended => None,
        }
    }
}

#[cfg(test)]
mod tests;
