//! A waiting player in a form that takes little memory. A million of them may wait. In the pool of each matchmaker, a
//! player takes 450 bytes: about 300 here, and 150 for the indexes. A queue's leader also has the engine's index.

use std::{
    borrow::Borrow,
    collections::HashSet,
    hash::{Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

use garage_events::{
    id::{PartyId, PlayerId, QueueName, Region, TicketId},
    log::Head,
    player::Queued,
};
use garage_rules::rule_set::Value;
use time::OffsetDateTime;

/// A player who waits for a match.
#[derive(Debug, Clone, PartialEq)]
pub struct WaitingPlayer {
    /// The player's id.
    pub player: PlayerId,
    /// The player's last event. The next append to the player expects it.
    pub head: Head,
    /// The ticket: queue, rank, latencies and expiry.
    pub queued: Queued,
}

/// A [`WaitingPlayer`] of a pool. It cannot change, so a snapshot can share it.
///
/// It exists because the maps of a [`Queued`] alone take 500 bytes. Here they are sorted lists of their exact length, and
/// all players share the names of queues, regions and attributes.
#[derive(Debug, PartialEq)]
pub struct PackedPlayer {
    player: PlayerId,
    head: Head,
    ticket: TicketId,
    queue: QueueName,
    latencies: Box<[(Region, u32)]>,
    attributes: Box<[(Arc<str>, Value)]>,
    /// The players of a group share it.
    group: Arc<[PlayerId]>,
    waiting_since: OffsetDateTime,
    expires_at: OffsetDateTime,
    rank: i32,
    requeues: u32,
    absences: u32,
    party: Option<PartyId>,
}

/// A position in an index by time: nanoseconds since 1970, then the sequence of the player's last event, which no other
/// player has.
pub(super) type Position = (i64, u64);

/// The time of a [`Position`]. The years 1677 to 2262 are exact; other times count as the first or last of these.
pub(super) fn nanos(at: OffsetDateTime) -> i64 {
    let nanos = at.unix_timestamp_nanos();
    i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX })
}

impl PackedPlayer {
    /// `group` is equal to the group in the ticket, and may be shared.
    pub(super) fn new(waiting: WaitingPlayer, group: Arc<[PlayerId]>, names: &mut Names) -> Self {
        let WaitingPlayer { player, head, queued } = waiting;
        let latencies = queued.latencies.into_iter();
        let attributes = queued.attributes.into_iter();
        Self {
            player: group.iter().find(|member| **member == player).cloned().unwrap_or(player),
            head,
            ticket: queued.ticket,
            queue: share(&mut names.queues, queued.queue),
            latencies: latencies.map(|(region, latency)| (share(&mut names.regions, region), latency)).collect(),
            attributes: attributes.map(|(name, value)| (share(&mut names.attributes, name.into()), value)).collect(),
            group,
            waiting_since: queued.waiting_since,
            expires_at: queued.expires_at,
            rank: queued.rank,
            requeues: queued.requeues,
            absences: queued.absences,
            party: queued.party,
        }
    }

    /// The same player as an independent value.
    pub fn unpack(&self) -> WaitingPlayer {
        let queued = Queued {
            ticket: self.ticket,
            queue: self.queue.clone(),
            rank: self.rank,
            latencies: self.latencies.iter().cloned().collect(),
            attributes: self.attributes().map(|(name, value)| (name.into(), value.clone())).collect(),
            group: self.group.to_vec(),
            waiting_since: self.waiting_since,
            expires_at: self.expires_at,
            requeues: self.requeues,
            absences: self.absences,
            party: self.party,
        };
        WaitingPlayer { player: self.player.clone(), head: self.head, queued }
    }

    pub fn player(&self) -> &PlayerId {
        &self.player
    }

    /// The player's last event. The next append to the player expects it.
    pub fn head(&self) -> Head {
        self.head
    }

    pub fn ticket(&self) -> TicketId {
        self.ticket
    }

    pub fn queue(&self) -> &QueueName {
        &self.queue
    }

    pub fn rank(&self) -> i32 {
        self.rank
    }

    /// In milliseconds, sorted by region.
    pub fn latencies(&self) -> &[(Region, u32)] {
        &self.latencies
    }

    /// Sorted by name.
    pub fn attributes(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.attributes.iter().map(|(name, value)| (&**name, value))
    }

    /// The players of the ticket, this one included. Empty if the player is alone.
    pub fn group(&self) -> &[PlayerId] {
        &self.group
    }

    pub fn waiting_since(&self) -> OffsetDateTime {
        self.waiting_since
    }

    pub fn expires_at(&self) -> OffsetDateTime {
        self.expires_at
    }

    /// The group, to share it with its other players.
    pub(super) fn shared_group(&self) -> &Arc<[PlayerId]> {
        &self.group
    }

    /// The place in the queue: when the wait began. So a requeued ticket is ahead of the tickets that came after it.
    pub(super) fn place(&self) -> Position {
        (nanos(self.waiting_since), self.head.seq)
    }

    /// The position in the order of expiry.
    pub(super) fn expiry(&self) -> Position {
        (nanos(self.expires_at), self.head.seq)
    }
}

/// The players of a ticket, the first in the queue first. There is at least one.
#[derive(Debug, Clone, PartialEq)]
pub enum Players<'a> {
    /// A player without a group.
    Alone([&'a PackedPlayer; 1]),
    /// The players of a group.
    Group(Vec<&'a PackedPlayer>),
}

impl Players<'_> {
    /// The same players as independent values.
    pub fn unpack(&self) -> Vec<WaitingPlayer> {
        self.iter().map(|player| player.unpack()).collect()
    }
}

impl<'a> Deref for Players<'a> {
    type Target = [&'a PackedPlayer];

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Alone(player) => player,
            Self::Group(players) => players,
        }
    }
}

/// The names that waiting players share. Only few are in use.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    queues: HashSet<QueueName>,
    regions: HashSet<Region>,
    attributes: HashSet<Arc<str>>,
}

#[cfg(test)]
impl Names {
    /// The number of all names.
    pub(super) fn len(&self) -> usize {
        self.queues.len() + self.regions.len() + self.attributes.len()
    }
}

/// The maximum number of names of a kind. If there are more, the set starts again with none, so that it cannot grow with
/// the number of events. Players who wait already keep their names.
const MAX_NAMES: usize = 1_000;

/// Returns the name of the set that is equal to this one.
fn share<T: Clone + Eq + Hash>(names: &mut HashSet<T>, name: T) -> T {
    if let Some(shared) = names.get(&name) {
        return shared.clone();
    }
    if names.len() >= MAX_NAMES {
        names.clear();
    }
    names.insert(name.clone());
    name
}

/// An entry of a set that is searched by player.
#[derive(Debug, Clone)]
pub(super) struct ByPlayer(pub(super) Arc<PackedPlayer>);

impl Borrow<PlayerId> for ByPlayer {
    fn borrow(&self) -> &PlayerId {
        &self.0.player
    }
}

impl Hash for ByPlayer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.player.hash(state);
    }
}

impl PartialEq for ByPlayer {
    fn eq(&self, other: &Self) -> bool {
        self.0.player == other.0.player
    }
}

impl Eq for ByPlayer {}
