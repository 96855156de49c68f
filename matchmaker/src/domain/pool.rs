//! The pool of waiting players, folded from the log.
//!
//! No operation reads the whole pool, except those that list it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use garage_events::{
    id::{PlayerId, QueueName, TicketId},
    log::{Head, Player},
    player::{Event, State},
    rules::millis,
};
use time::OffsetDateTime;

use super::packed::{ByPlayer, Names, PackedPlayer, Players, Position, WaitingPlayer, nanos};

/// The maximum number of changed tickets that a queue remembers. A reader who has missed more than these reads all
/// tickets again.
const MAX_CHANGES: usize = 100_000;

/// The waiting players by queue: a fold of the log up to a sequence. Two other things are known about single players, and
/// are not part of the fold:
///
/// - A newer state, from the outcome of a commit. The player is *ahead* of the fold.
/// - A *claim*: a decision on the player is being committed, and its outcome is not known yet.
///
/// The ticket of such a player is *hidden*: it cannot be matched.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    /// The fold alone.
    folded: HashSet<ByPlayer>,
    /// Players whose state is newer than the fold. It overrides the fold.
    ahead: HashMap<PlayerId, PlayerRecord>,
    /// See [`Pool::claim`].
    claims: HashSet<PlayerId>,
    /// The sequence of the last folded event.
    seq: u64,
    /// Indexes of what is above. Each method that changes a player calls `unlink` before and `link` after that.
    queues: BTreeMap<QueueName, Index>,
    names: Names,
}

#[derive(Debug, Clone, PartialEq)]
struct PlayerRecord {
    /// The sequence of the player's last known event.
    seq: u64,
    /// `None` if the player no longer waits.
    entry: Option<Arc<PackedPlayer>>,
}

/// The players of a queue.
#[derive(Debug, Clone, Default)]
struct Index {
    /// The players of the fold, by their place in the queue.
    by_place: BTreeMap<Position, Arc<PackedPlayer>>,
    /// The players who wait according to their newest known state and are not claimed, by their expiry.
    by_expiry: BTreeMap<Position, Arc<PackedPlayer>>,
    /// The tickets of the fold with players who are ahead or claimed: the sequences of these players' events, and when
    /// the ticket expires.
    hidden: BTreeMap<TicketId, (BTreeSet<u64>, OffsetDateTime)>,
    /// The number of players who wait according to their newest known state.
    depth: usize,
    /// See [`Pool::changes`]. `None` if nobody reads them.
    changes: Option<BTreeMap<TicketId, PlayerId>>,
}

/// See [`Pool::changes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Nothing is known about the past. Replace everything that you have by [`Pool::tickets`].
    All,
    /// Only these tickets may have changed. Each has one of its players, for [`Pool::available`].
    Only(BTreeMap<TicketId, PlayerId>),
}

impl Pool {
    /// A fold up to this sequence, without entries. The caller inserts them.
    pub(super) fn at(seq: u64) -> Self {
        Self { seq, ..Self::default() }
    }

    /// Makes room for this many further players in the fold.
    pub(super) fn reserve(&mut self, players: usize) {
        self.folded.reserve(players);
    }

    /// Folds the next event of the log. A claim of the player remains.
    pub fn fold(&mut self, player: &PlayerId, head: Head, event: &Event) {
        self.seq = self.seq.max(head.seq);
        let entry = self.pack(player, head, State::evolve(event));
        self.unlink(player);
        if self.ahead.get(player).is_some_and(|known| known.seq <= head.seq) {
            self.ahead.remove(player);
        }
        self.folded.remove(player);
        self.folded.extend(entry.map(ByPlayer));
        self.link(player);
    }

    /// Adopts the state of a player that was read from the log, and ends a claim of the player. Returns false if the pool
    /// already has newer state: a NATS node may lag behind the other nodes for a while.
    pub fn learn(&mut self, player: &PlayerId, found: Player, now: OffsetDateTime) -> bool {
        self.release(player);
        let seq = found.head.seq;
        if self.ahead.get(player).is_some_and(|known| seq < known.seq) {
            return false;
        }
        if let Some(entry) = self.ticket_of(player)
            && seq < entry.head().seq
        {
            // A node never lags behind for as long as a ticket is valid. If the ticket has expired, the log has deleted
            // the player's events because of their age.
            let deleted = entry.expires_at() <= now;
            if deleted {
                self.unlink(player);
                self.folded.remove(player);
                self.link(player);
            }
            return deleted;
        }
        if seq > self.seq {
            let entry = self.pack(player, found.head, found.state);
            self.put_ahead(player, PlayerRecord { seq, entry });
        }
        true
    }

    /// Records that a player no longer waits, because of the event with this sequence. Ends a claim of the player.
    pub fn mark_gone(&mut self, player: &PlayerId, seq: u64) {
        self.release(player);
        if seq > self.seq {
            self.put_ahead(player, PlayerRecord { seq, entry: None });
        }
    }

    fn put_ahead(&mut self, player: &PlayerId, record: PlayerRecord) {
        self.unlink(player);
        self.ahead.insert(player.clone(), record);
        self.link(player);
    }

    /// Hides the ticket of a player while a decision on the player is being committed, so that there is no second
    /// decision on it. It also does not expire meanwhile.
    ///
    /// A claim is about the player, not about one ticket. It is not part of the fold, and not of a snapshot. It ends with
    /// [`Pool::release`], [`Pool::mark_gone`] or [`Pool::learn`], and not when an event of the player is folded: that may
    /// be an older event than the outcome of the decision.
    pub fn claim(&mut self, player: &PlayerId) {
        if !self.claims.contains(player) {
            self.unlink(player);
            self.claims.insert(player.clone());
            self.link(player);
        }
    }

    /// Ends a claim without an outcome: nothing has been stored.
    pub fn release(&mut self, player: &PlayerId) {
        if self.claims.contains(player) {
            self.unlink(player);
            self.claims.remove(player);
            self.link(player);
        }
    }

    /// Inserts an entry into the fold.
    pub(super) fn insert(&mut self, waiting: WaitingPlayer) {
        let player = waiting.player.clone();
        let entry = self.packed(waiting);
        self.unlink(&player);
        self.folded.replace(ByPlayer(Arc::new(entry)));
        self.link(&player);
    }

    /// `None` if the player does not wait in this state.
    fn pack(&mut self, player: &PlayerId, head: Head, state: State) -> Option<Arc<PackedPlayer>> {
        match state {
            State::Waiting(queued) => {
                let player = player.clone();
                Some(Arc::new(self.packed(WaitingPlayer { player, head, queued })))
            }
            State::New | State::Proposed(_) | State::Matched(_) | State::Playing(_) | State::Idle { .. } => None,
        }
    }

    fn packed(&mut self, mut waiting: WaitingPlayer) -> PackedPlayer {
        let group = std::mem::take(&mut waiting.queued.group);
        let others = group.iter().filter(|member| **member != waiting.player);
        let mut others = others.filter_map(|member| self.ticket_of(member));
        let shared = others.find(|other| other.group() == group).map(|other| Arc::clone(other.shared_group()));
        PackedPlayer::new(waiting, shared.unwrap_or_else(|| group.into()), &mut self.names)
    }

    /// The entry of a player in the fold, and the entry according to the player's newest known state.
    fn entries(&self, player: &PlayerId) -> [Option<Arc<PackedPlayer>>; 2] {
        let folded = self.folded.get(player).map(|entry| Arc::clone(&entry.0));
        let newest = self.ahead.get(player).map_or_else(|| folded.clone(), |known| known.entry.clone());
        [folded, newest]
    }

    /// Removes what the indexes have about a player.
    fn unlink(&mut self, player: &PlayerId) {
        let [folded, newest] = self.entries(player);
        let is_hidden = self.ahead.contains_key(player) || self.claims.contains(player);
        if let Some(entry) = &folded
            && let Some(index) = self.queues.get_mut(entry.queue())
        {
            index.by_place.remove(&entry.place());
            if is_hidden && let Some((events, _)) = index.hidden.get_mut(&entry.ticket()) {
                events.remove(&entry.head().seq);
                if events.is_empty() {
                    index.hidden.remove(&entry.ticket());
                }
            }
            index.note(entry);
        }
        if let Some(entry) = &newest
            && let Some(index) = self.queues.get_mut(entry.queue())
        {
            index.depth -= 1;
            index.by_expiry.remove(&entry.expiry());
        }
        for entry in [folded, newest].into_iter().flatten() {
            if self.queues.get(entry.queue()).is_some_and(Index::is_unused) {
                self.queues.remove(entry.queue());
            }
        }
    }

    /// Inserts what the indexes must have about a player.
    fn link(&mut self, player: &PlayerId) {
        let [folded, newest] = self.entries(player);
        let is_claimed = self.claims.contains(player);
        let is_hidden = is_claimed || self.ahead.contains_key(player);
        if let Some(entry) = folded {
            let index = self.index(&entry);
            if is_hidden {
                let new = || (BTreeSet::new(), entry.expires_at());
                index.hidden.entry(entry.ticket()).or_insert_with(new).0.insert(entry.head().seq);
            }
            index.note(&entry);
            index.by_place.insert(entry.place(), entry);
        }
        if let Some(entry) = newest {
            let index = self.index(&entry);
            index.depth += 1;
            if !is_claimed {
                index.by_expiry.insert(entry.expiry(), entry);
            }
        }
    }

    fn index(&mut self, entry: &PackedPlayer) -> &mut Index {
        self.queues.entry(entry.queue().clone()).or_default()
    }

    /// The sequence of the last folded event.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// The waiting players according to the fold alone, without newer states. Entries are shared.
    pub fn folded(&self) -> Vec<Arc<PackedPlayer>> {
        let mut folded = Vec::with_capacity(self.folded.len());
        folded.extend(self.queues.values().flat_map(|index| index.by_place.values()).cloned());
        folded
    }

    /// The number of players in the fold.
    pub(crate) fn len(&self) -> usize {
        self.queues.values().map(|index| index.by_place.len()).sum()
    }

    /// The queues that have players in the fold.
    pub fn queues(&self) -> impl Iterator<Item = &QueueName> {
        self.queues.iter().filter(|(_, index)| !index.by_place.is_empty()).map(|(name, _)| name)
    }

    /// The tickets of a queue that can be matched now, the oldest first. See [`Pool::available`]. The iterator is lazy:
    /// `take(n)` reads only the first n tickets and the hidden tickets before them.
    ///
    /// Everybody can compute the same tickets again from the log, without those of [`Pool::left_out`].
    pub fn tickets(&self, queue: &QueueName) -> impl Iterator<Item = Players<'_>> {
        let index = self.queues.get(queue);
        let entries = index.into_iter().flat_map(|index| index.by_place.values().map(move |entry| (index, entry)));
        entries.filter_map(|(index, entry)| {
            // A group is listed at the place of its first player.
            self.complete(index, entry, |member| member.place() >= entry.place())
        })
    }

    /// The players of a ticket, if it can be matched now. `player` is any of them. All players of the ticket must be in
    /// the fold with this ticket: while the events of one commit are folded, a group is incomplete. And none may be
    /// hidden: neither is a newer state of theirs known, nor are they claimed.
    pub fn available(&self, ticket: TicketId, player: &PlayerId) -> Option<Players<'_>> {
        let entry = self.ticket_of(player).filter(|entry| entry.ticket() == ticket)?;
        self.complete(self.queues.get(entry.queue())?, entry, |_| true)
    }

    /// The players of an entry's ticket, if it can be matched and each of them passes the test.
    fn complete<'a>(
        &'a self,
        index: &Index,
        entry: &'a PackedPlayer,
        test: impl Fn(&PackedPlayer) -> bool,
    ) -> Option<Players<'a>> {
        if index.hidden.contains_key(&entry.ticket()) {
            return None;
        }
        if entry.group().is_empty() {
            return Some(Players::Alone([entry]));
        }
        let member = |member: &PlayerId| {
            let same = |other: &&PackedPlayer| {
                other.ticket() == entry.ticket() && other.queue() == entry.queue() && other.group() == entry.group()
            };
            self.ticket_of(member).filter(same).filter(|other| test(other))
        };
        let mut players = entry.group().iter().map(member).collect::<Option<Vec<_>>>()?;
        players.sort_unstable_by_key(|player| player.place());
        players.iter().any(|player| player.player() == entry.player()).then_some(Players::Group(players))
    }

    /// The hidden tickets of the fold: those with a player who is ahead or claimed, unless they have expired. For each,
    /// [`Pool::seq`] minus the sequence of the last event of the first of these players; ascending. `None` if there are
    /// more than `max`.
    pub fn left_out(&self, queue: &QueueName, now: OffsetDateTime, max: usize) -> Option<Vec<u64>> {
        let hidden = self.queues.get(queue).into_iter().flat_map(|index| index.hidden.values());
        let waiting = hidden.filter(|(_, expires_at)| millis(*expires_at) > millis(now));
        let first = waiting.filter_map(|(events, _)| events.first()).map(|seq| self.seq - seq);
        let mut left_out: Vec<u64> = first.take(max.saturating_add(1)).collect();
        left_out.sort_unstable();
        Some(left_out).filter(|left_out| left_out.len() <= max)
    }

    /// Whether [`Pool::changes`] would return something.
    pub fn has_changes(&self, queue: &QueueName) -> bool {
        let changes = self.queues.get(queue).and_then(|index| index.changes.as_ref());
        changes.is_none_or(|changes| !changes.is_empty())
    }

    /// The tickets of a queue that may have become available or unavailable, or have other players, since the last call.
    /// Use it to keep your own index of the available tickets in step: for each change, remove the ticket from your
    /// index, and insert it again if [`Pool::available`] returns its players.
    ///
    /// The first call returns [`Changes::All`] and starts to record changes. So does a call after very many changes,
    /// because the pool does not keep them forever, and the first call on another pool.
    pub fn changes(&mut self, queue: &QueueName) -> Changes {
        let index = self.queues.entry(queue.clone()).or_default();
        index.changes.replace(BTreeMap::new()).map_or(Changes::All, Changes::Only)
    }

    /// The ticket with which a player waits, according to the fold alone.
    pub fn ticket_of(&self, player: &PlayerId) -> Option<&PackedPlayer> {
        self.folded.get(player).map(|entry| &*entry.0)
    }

    /// The number of players who wait in a queue, according to their newest known state.
    pub fn depth(&self, queue: &QueueName) -> usize {
        self.queues.get(queue).map_or(0, |index| index.depth)
    }

    /// Tickets in a queue that have expired, at most `limit`, in the order of their expiry. Each has those of its players
    /// who still wait according to their newest known state. Tickets with a claimed player are left out.
    pub fn expired(&self, queue: &QueueName, now: OffsetDateTime, limit: usize) -> Vec<Players<'_>> {
        let entries = self.queues.get(queue).map(|index| index.by_expiry.range(..=(nanos(now), u64::MAX)));
        let entries = entries.into_iter().flatten().map(|(_, entry)| entry);
        let mut groups = HashSet::new();
        let tickets = entries.filter(|entry| entry.expires_at() <= now).filter_map(|entry| {
            if !entry.group().contains(entry.player()) {
                return Some(Players::Alone([entry]));
            }
            let is_new = groups.insert(entry.ticket());
            (is_new && !self.is_claimed(entry)).then(|| {
                let newest = |member| match self.ahead.get(member) {
                    Some(known) => known.entry.as_deref(),
                    None => self.ticket_of(member),
                };
                let mut players: Vec<_> = entry.group().iter().filter_map(newest).collect();
                players.retain(|player| player.ticket() == entry.ticket() && player.expires_at() <= now);
                players.sort_unstable_by_key(|player| player.place());
                Players::Group(players)
            })
        });
        tickets.take(limit).collect()
    }

    /// When the next ticket of a queue expires, without those with a claimed player.
    pub fn next_expiry(&self, queue: &QueueName) -> Option<OffsetDateTime> {
        let mut entries = self.queues.get(queue)?.by_expiry.values();
        entries.find(|entry| !self.is_claimed(entry)).map(|entry| entry.expires_at())
    }

    /// Whether a player of the ticket is claimed.
    fn is_claimed(&self, entry: &PackedPlayer) -> bool {
        self.claims.contains(entry.player()) || entry.group().iter().any(|player| self.claims.contains(player))
    }
}

/// The indexes follow from the rest, and the recorded changes depend on who reads them.
impl PartialEq for Pool {
    fn eq(&self, other: &Self) -> bool {
        let same_entry = |entry: &ByPlayer| other.folded.get(entry).is_some_and(|found| found.0 == entry.0);
        self.seq == other.seq
            && self.folded.len() == other.folded.len()
            && self.folded.iter().all(same_entry)
            && self.ahead == other.ahead
            && self.claims == other.claims
    }
}

impl Index {
    /// Records a change of an entry's ticket.
    fn note(&mut self, entry: &PackedPlayer) {
        if let Some(changes) = &mut self.changes {
            changes.insert(entry.ticket(), entry.player().clone());
            if changes.len() > MAX_CHANGES {
                self.changes = None;
            }
        }
    }

    fn is_unused(&self) -> bool {
        self.by_place.is_empty() && self.depth == 0 && self.changes.is_none()
    }
}

#[cfg(test)]
mod tests;
