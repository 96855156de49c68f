//! Makes matches of a pool that changes: tickets come and go, and time passes. It makes the same matches as an empty
//! engine into which the same tickets are inserted, but looks only at tickets whose neighbours have changed.
//!
//! - Each ticket has **neighbours**: in each location that it can use, the tickets next to it in the order of a number of
//!   the rule set, among those that have the values in common which all players of a match must share.
//! - A ticket's **search** tries matches of the ticket, as the oldest one, with its younger neighbours.
//! - A ticket is **due** when its search could have another result than the last one: a neighbour has come; a neighbour
//!   has left and another ticket takes its place; or the ticket or a neighbour has reached an age at which the rules
//!   change. If the last search ended early, the ticket is due whenever a neighbour comes or leaves.
//!
//! A **cycle** searches for a match of each due ticket. With an odd seed, the tickets are tried in random order,
//! otherwise the oldest first. So the result depends on the tickets, the time and the seed, and not on what happened
//! before.

mod index;

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    ops::Bound,
    sync::Arc,
};

use index::{Index, Neighbours};

use crate::{
    matcher::Match,
    plan::Plan,
    rule_set::{ExpansionAge, RuleSet},
    ticket::Ticket,
};

pub use crate::search::Bounds;

/// A ticket's place in the order of tickets: since when it waits, in milliseconds, and a number that differs between
/// tickets, such as the sequence of an event. The lowest place is the oldest ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub since_ms: i64,
    pub number: u64,
}

/// How much a part of a cycle may do.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The maximum number of matches.
    pub matches: usize,
    /// How much work it may take: the number of players whose values are looked at. The last search may take more.
    pub work: usize,
}

impl Limits {
    /// Everything in one part.
    pub const NONE: Self = Self { matches: usize::MAX, work: usize::MAX };
}

/// A ticket that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting<K> {
    pub key: K,
    pub place: Place,
    /// From this time on, it cannot be matched, and the engine forgets it. In milliseconds.
    pub expires_ms: i64,
    pub ticket: Ticket,
}

/// A part of a cycle.
#[derive(Debug)]
pub struct Part<K> {
    /// The matches. Their tickets are no longer in the engine.
    pub matches: Vec<Match<Waiting<K>>>,
    /// How many searches ended before they had tried every match.
    pub bounded: u64,
    pub end: End,
}

/// Why a part ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The cycle is finished.
    Finished,
    /// The maximum number of matches is made.
    Matches,
    /// The work is used up.
    Work,
}

/// See the module. `K` identifies a ticket.
#[derive(Debug)]
pub struct Engine<K> {
    rule_set: Arc<RuleSet>,
    plan: Plan,
    bounds: Bounds,
    now_ms: i64,
    slots: Vec<Option<Slot<K>>>,
    free: Vec<u32>,
    known: HashMap<K, u32>,
    index: Index,
    /// When a ticket expires or reaches the next age at which the rules change.
    timers: BTreeSet<(i64, u32)>,
    due: BTreeSet<Due>,
    /// The order of the cycle, unless it is the order of the tickets.
    shuffled: Option<Shuffled>,
    /// The ticket of the last search of the cycle.
    searched: Option<(u64, Place, u32)>,
}

/// The due tickets in an order that depends on a seed.
#[derive(Debug)]
struct Shuffled {
    seed: u64,
    due: BTreeSet<(u64, Place, u32)>,
}

/// A due ticket: its place, and the number of its slot.
type Due = (Place, u32);

/// A ticket in the engine.
#[derive(Debug)]
struct Slot<K> {
    waiting: Waiting<K>,
    /// Where it is in the index.
    spots: index::Spots,
    is_due: bool,
    /// Whether its last search ended before it had tried every match.
    is_bounded: bool,
}

impl<K: Copy + Eq + Hash> Engine<K> {
    /// An engine without tickets.
    pub fn new(rule_set: Arc<RuleSet>, bounds: Bounds) -> Self {
        let mut plan = Plan::new(&rule_set);
        plan.side = bounds.neighbours.unwrap_or(plan.side);
        Self::with_plan(rule_set, plan, bounds)
    }

    fn with_plan(rule_set: Arc<RuleSet>, plan: Plan, bounds: Bounds) -> Self {
        Self {
            rule_set,
            plan,
            bounds,
            now_ms: i64::MIN,
            slots: Vec::new(),
            free: Vec::new(),
            known: HashMap::new(),
            index: Index::default(),
            timers: BTreeSet::new(),
            due: BTreeSet::new(),
            shuffled: None,
            searched: None,
        }
    }

    /// The number of tickets.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there are no tickets.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// When the next ticket expires or reaches an age at which the rules change, in milliseconds.
    pub fn next_change(&self) -> Option<i64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Replaces all tickets. Faster than single inserts. `now_ms` is at most the time of the next cycle.
    pub fn fill(&mut self, now_ms: i64, tickets: impl IntoIterator<Item = Waiting<K>>) {
        *self = Self { now_ms, ..Self::with_plan(Arc::clone(&self.rule_set), self.plan.clone(), self.bounds) };
        let tickets = tickets.into_iter();
        let expected = tickets.size_hint().0;
        self.slots.reserve(expected);
        self.known.reserve(expected);
        let mut entries = Vec::with_capacity(expected);
        let mut timers = Vec::with_capacity(expected);
        for waiting in tickets {
            let (place, timer) = (waiting.place, self.timer(&waiting));
            let Some(number) = self.add(waiting) else { continue };
            let Some(slot) = self.slots.get_mut(slot_index(number)).and_then(Option::as_mut) else { continue };
            entries.extend(self.index.entries(&slot.spots, place, number));
            timers.push((timer, number));
            // A ticket without neighbours is due only if it can be a match alone.
            slot.is_due = slot.waiting.ticket.players.len() >= self.plan.least;
        }
        let slots = &mut self.slots;
        self.index.fill(entries, &self.plan, |entry| {
            if let Some(slot) = slots.get_mut(slot_index(entry.slot)).and_then(Option::as_mut) {
                slot.is_due = true;
            }
        });
        let slots = self.slots.iter().zip(0_u32..).filter_map(|(slot, number)| Some((slot.as_ref()?, number)));
        let due = slots.filter(|(slot, _)| slot.is_due).map(|(slot, number)| (slot.waiting.place, number));
        self.due = due.collect();
        self.timers = timers.into_iter().collect();
    }

    /// Inserts a ticket. A ticket that is known already is replaced.
    pub fn insert(&mut self, waiting: Waiting<K>) {
        self.remove(&waiting.key);
        let (place, timer) = (waiting.place, self.timer(&waiting));
        let Some(number) = self.add(waiting) else { return };
        let Some(slot) = self.slot(number) else { return };
        let entries: Vec<_> = self.index.entries(&slot.spots, place, number).collect();
        for entry in entries {
            self.index.insert(entry);
        }
        self.timers.insert((timer, number));
        self.mark(number);
        self.arrived(number);
    }

    /// Removes a ticket. Returns whether it was known.
    pub fn remove(&mut self, key: &K) -> bool {
        let Some(number) = self.known.get(key).copied() else { return false };
        self.take(number);
        true
    }

    /// Begins a cycle. If `now_ms` is before that of an earlier cycle, the time of that cycle counts: tickets do not
    /// become younger. With an odd seed, tickets are tried in random order, otherwise the oldest first. The seed
    /// decides the random order. It helps if the work is never enough for all: the oldest tickets do not keep the
    /// others waiting forever.
    pub fn begin(&mut self, now_ms: i64, seed: u64) {
        self.advance(now_ms);
        let shuffled = |seed: u64| {
            let entry = |(place, number): &Due| (mixed(seed, place.number), *place, *number);
            Shuffled { seed, due: self.due.iter().map(entry).collect() }
        };
        self.shuffled = (!seed.is_multiple_of(2)).then(|| shuffled(seed));
        self.searched = None;
    }

    /// Makes matches: the next ones of the cycle that has begun. So a cycle can be made in parts, and has the same matches
    /// as in one. Between the parts, no ticket may come or go.
    pub fn run(&mut self, limits: Limits) -> Part<K> {
        let mut part = Part { matches: Vec::new(), bounded: 0, end: End::Finished };
        let mut work = limits.work;
        loop {
            if part.matches.len() >= limits.matches {
                return Part { end: End::Matches, ..part };
            }
            if work == 0 {
                return Part { end: End::Work, ..part };
            }
            // A search may make tickets due that come earlier in the order. They are left for the next cycle.
            let next = match (&mut self.shuffled, self.searched) {
                (Some(shuffled), _) => shuffled.due.pop_first(),
                (None, None) => self.due.first().map(|(place, number)| (0, *place, *number)),
                (None, Some((_, place, number))) => {
                    let after = (Bound::Excluded((place, number)), Bound::Unbounded);
                    self.due.range(after).next().map(|(place, number)| (0, *place, *number))
                }
            };
            let Some((_, place, number)) = next else { return part };
            self.searched = next;
            if !self.due.remove(&(place, number)) {
                continue;
            }
            let attempt = self.search(number);
            work = work.saturating_sub(attempt.work);
            part.bounded += u64::from(attempt.bounded);
            if let Some(slot) = self.slots.get_mut(slot_index(number)).and_then(Option::as_mut) {
                slot.is_due = false;
                slot.is_bounded = attempt.bounded;
            }
            let Some(found) = attempt.found else { continue };
            let mut marked = Vec::new();
            let mut taken = |number: &u32| {
                let (waiting, due) = self.take(*number)?;
                marked.extend(due);
                Some(waiting)
            };
            let teams = found.teams.iter().map(|team| team.iter().filter_map(&mut taken).collect()).collect();
            let found = Match { teams, evaluation: found.evaluation };
            part.matches.push(found);
            if let Some(Shuffled { seed, due }) = &mut self.shuffled {
                let later = marked.into_iter().map(|(place, number)| (mixed(*seed, place.number), place, number));
                due.extend(later.filter(|entry| Some(*entry) > self.searched));
            }
        }
    }

    /// Whether a new cycle would search.
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Adds a ticket to everything but the index, the timers and the due tickets.
    fn add(&mut self, waiting: Waiting<K>) -> Option<u32> {
        let spots = self.index.spots(&self.plan, &self.rule_set, &waiting.ticket);
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                let number = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(None);
                number
            }
        };
        self.known.insert(waiting.key, number);
        *self.slots.get_mut(slot_index(number))? = Some(Slot { waiting, spots, is_due: false, is_bounded: false });
        Some(number)
    }

    /// Removes a ticket. Returns it, and the tickets that became due.
    fn take(&mut self, number: u32) -> Option<(Waiting<K>, Vec<Due>)> {
        let slot = self.slots.get_mut(slot_index(number))?.take()?;
        let place = slot.waiting.place;
        self.free.push(number);
        self.known.remove(&slot.waiting.key);
        if slot.is_due {
            self.due.remove(&(place, number));
        }
        self.timers.remove(&(self.timer(&slot.waiting), number));
        let mut due = Vec::new();
        for entry in self.index.entries(&slot.spots, place, number).collect::<Vec<_>>() {
            self.index.remove(&entry);
            let Neighbours { before, after } = self.index.neighbours(&entry, &self.plan);
            // Each of the neighbours has lost one neighbour, and got another one from the other side.
            for (position, neighbour) in before.iter().enumerate() {
                let gained = self.plan.side.checked_sub(position + 1).and_then(|position| after.get(position));
                if let Some(gained) = gained
                    && index::is_near(neighbour, gained, &self.plan)
                {
                    due.extend(self.fits_to(neighbour.slot, gained.slot));
                }
            }
            due.extend(before.iter().chain(&after).map(|entry| entry.slot).filter(|other| self.is_bounded(*other)));
        }
        self.index.release(&slot.spots);
        let marked = due.into_iter().filter_map(|number| Some((self.mark(number)?, number)));
        Some((slot.waiting, marked.collect()))
    }

    /// Of two tickets, the older one, if the two fit together and it is not due already.
    fn fits_to(&self, one: u32, other: u32) -> Option<u32> {
        let (first, second) = (self.slot(one)?, self.slot(other)?);
        let (older, is_due) = match first.waiting.place < second.waiting.place {
            true => (one, first.is_due),
            false => (other, second.is_due),
        };
        let (one, other) = (&first.waiting.ticket, &second.waiting.ticket);
        (!is_due && self.rule_set.fit(&self.plan, one, other, self.now_ms)).then_some(older)
    }

    /// Makes the older neighbours of a ticket due.
    fn arrived(&mut self, number: u32) {
        let Some(slot) = self.slot(number) else { return };
        let mut due = Vec::new();
        for entry in self.index.entries(&slot.spots, slot.waiting.place, number) {
            let Neighbours { before, after } = self.index.neighbours(&entry, &self.plan);
            for neighbour in before.iter().chain(&after) {
                let older = self.fits_to(neighbour.slot, number).filter(|older| *older == neighbour.slot);
                due.extend(older);
                due.extend(Some(neighbour.slot).filter(|other| self.is_bounded(*other)));
            }
        }
        due.into_iter().for_each(|number| {
            self.mark(number);
        });
    }

    /// Makes a ticket due. Returns its place, unless it is due already.
    fn mark(&mut self, number: u32) -> Option<Place> {
        let slot = self.slots.get_mut(slot_index(number))?.as_mut()?;
        if slot.is_due {
            return None;
        }
        slot.is_due = true;
        self.due.insert((slot.waiting.place, number));
        Some(slot.waiting.place)
    }

    /// Lets time pass: tickets expire, or reach ages at which the rules change.
    fn advance(&mut self, now_ms: i64) {
        self.now_ms = self.now_ms.max(now_ms);
        while let Some((at, number)) = self.timers.first().copied().filter(|(at, _)| *at <= self.now_ms) {
            self.timers.remove(&(at, number));
            let Some(slot) = self.slot(number) else { continue };
            if slot.waiting.expires_ms <= self.now_ms {
                self.take(number);
                continue;
            }
            self.timers.insert((self.timer(&slot.waiting), number));
            self.mark(number);
            // If the newest ticket of a match decides its age, the ticket may now be matched with older ones.
            if self.rule_set.algorithm.expansion_age == ExpansionAge::Newest {
                self.arrived(number);
            }
        }
    }

    /// When a ticket expires or reaches the next age at which the rules change.
    fn timer(&self, waiting: &Waiting<K>) -> i64 {
        let reaches = |age: &u64| {
            let age_ms = i64::try_from(*age).unwrap_or(i64::MAX).saturating_mul(1_000);
            waiting.place.since_ms.saturating_add(age_ms)
        };
        let next = self.plan.ages.iter().map(reaches).find(|at| *at > self.now_ms);
        next.map_or(waiting.expires_ms, |next| next.min(waiting.expires_ms))
    }

    fn search(&self, number: u32) -> Search {
        let none = Search { found: None, bounded: false, work: 1 };
        let Some(Slot { waiting: anchor, spots, .. }) = self.slot(number) else { return none };
        let mut younger: Vec<(Place, u32)> = Vec::new();
        for entry in self.index.entries(spots, anchor.place, number) {
            let Neighbours { before, after } = self.index.neighbours(&entry, &self.plan);
            let is_younger = |entry: &&index::Entry| entry.place > anchor.place;
            younger.extend(before.iter().chain(&after).filter(is_younger).map(|entry| (entry.place, entry.slot)));
        }
        // A ticket that can use several of the locations is there several times.
        younger.sort_unstable();
        younger.dedup();
        let size = |number: &u32| self.slot(*number).map_or(0, |slot| slot.waiting.ticket.players.len());
        let players: usize = younger.iter().map(|(_, number)| size(number)).sum();
        if anchor.ticket.players.len() + players < self.plan.least {
            return Search { work: 1 + younger.len(), ..none };
        }
        let mut slots = vec![number];
        let mut tickets = vec![&anchor.ticket];
        for (_, number) in &younger {
            if let Some(Slot { waiting: other, .. }) = self.slot(*number)
                && self.rule_set.fit(&self.plan, &anchor.ticket, &other.ticket, self.now_ms)
            {
                slots.push(*number);
                tickets.push(&other.ticket);
            }
        }
        let attempt = self.rule_set.match_of(&self.plan, &tickets, self.now_ms, self.bounds);
        let found = attempt.found.and_then(|found| found.map(|index| slots.get(index).copied()));
        Search { found, bounded: attempt.bounded, work: 1 + younger.len() + attempt.work }
    }

    fn slot(&self, number: u32) -> Option<&Slot<K>> {
        self.slots.get(slot_index(number))?.as_ref()
    }

    fn is_bounded(&self, number: u32) -> bool {
        self.slot(number).is_some_and(|slot| slot.is_bounded)
    }
}

/// The outcome of a search. Tickets are numbers of slots.
struct Search {
    found: Option<Match<u32>>,
    bounded: bool,
    work: usize,
}

fn slot_index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A number that looks random, but is the same for the same arguments on every machine and with every build: the
/// recorded seed must give the same order later. (SplitMix64; Steele, Lea and Flood, 2014.)
fn mixed(seed: u64, number: u64) -> u64 {
    let step = number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = seed.wrapping_add(step);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::mixed;

    #[test]
    fn a_seed_gives_the_same_order_with_every_build() {
        // A recorded match must be made again in the same way.
        assert_eq!([mixed(0, 0), mixed(7, 1)], [16_294_208_416_658_607_535, 309_689_372_594_955_804]);
    }
}
