//! The order of tickets, by which their neighbours are found.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    ops::Bound,
};

use super::Place;
use crate::{
    plan::Plan,
    rule_set::{RuleKind, RuleSet, Value},
    ticket::{Ticket, accepts},
};

/// Tickets in an order. They are divided into buckets: the tickets of a match have a bucket in common.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeSet<Entry>,
    locations: HashMap<Box<str>, u32>,
    buckets: HashMap<Bucket, u32>,
    /// The buckets by number, each with its number of tickets.
    tickets: Vec<Option<(Bucket, u32)>>,
    free: Vec<u32>,
}

/// What the tickets of a bucket have in common: the number of a location that they can use, and values. The number is 0
/// if they need no location.
type Bucket = (u32, Box<[Common]>);

/// The maximum number of locations. Tickets that can only use others are not matched.
const MAX_LOCATIONS: u32 = 100_000;

/// A value that all players of a match have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Common {
    None,
    Text(Box<str>),
    Number(i64),
}

/// A ticket in one of its buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    bucket: u32,
    /// See [`ordered`].
    number: i64,
    pub(super) place: Place,
    pub(super) slot: u32,
}

/// Where a ticket is in the index.
#[derive(Debug)]
pub(super) struct Spots {
    number: i64,
    buckets: Box<[u32]>,
}

/// The entries next to one, in both directions, each beginning with the nearest.
pub(super) struct Neighbours {
    pub(super) before: Vec<Entry>,
    pub(super) after: Vec<Entry>,
}

impl Index {
    /// The spots of a ticket. It has none if it cannot be matched at any age.
    pub(super) fn spots(&mut self, plan: &Plan, rule_set: &RuleSet, ticket: &Ticket) -> Spots {
        let common: Box<[Common]> = plan.common_values(ticket).map(Common::of).collect();
        let needs_location = ticket.players.iter().any(|player| !player.latencies.is_empty());
        let buckets: Box<[u32]> = match needs_location {
            false => self.join((0, common)).into_iter().collect(),
            true => {
                let usable = ticket.locations().filter(|location| is_usable(plan, rule_set, ticket, location));
                let number = |location| {
                    let location = self.location(location)?;
                    self.join((location, common.clone()))
                };
                usable.filter_map(number).collect()
            }
        };
        Spots { number: ordered(plan.number(ticket)), buckets }
    }

    /// The number of a location.
    fn location(&mut self, name: &str) -> Option<u32> {
        if let Some(number) = self.locations.get(name) {
            return Some(*number);
        }
        let number = u32::try_from(self.locations.len()).ok()? + 1;
        (number <= MAX_LOCATIONS).then(|| {
            self.locations.insert(name.into(), number);
            number
        })
    }

    /// Adds a ticket to a bucket.
    fn join(&mut self, bucket: Bucket) -> Option<u32> {
        if let Some(number) = self.buckets.get(&bucket) {
            let (_, tickets) = self.tickets.get_mut(super::slot_index(*number))?.as_mut()?;
            *tickets += 1;
            return Some(*number);
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                let number = u32::try_from(self.tickets.len()).ok()?;
                self.tickets.push(None);
                number
            }
        };
        *self.tickets.get_mut(super::slot_index(number))? = Some((bucket.clone(), 1));
        self.buckets.insert(bucket, number);
        Some(number)
    }

    /// Removes a ticket from its buckets. Its entries are removed already.
    pub(super) fn release(&mut self, spots: &Spots) {
        for number in &spots.buckets {
            let Some(of_number) = self.tickets.get_mut(super::slot_index(*number)) else { continue };
            let Some((_, tickets)) = of_number else { continue };
            *tickets -= 1;
            if *tickets == 0
                && let Some((bucket, _)) = of_number.take()
            {
                self.buckets.remove(&bucket);
                self.free.push(*number);
            }
        }
    }

    /// The entries of a ticket.
    pub(super) fn entries<'s>(
        &self,
        spots: &'s Spots,
        place: Place,
        slot: u32,
    ) -> impl Iterator<Item = Entry> + use<'s> {
        let number = spots.number;
        spots.buckets.iter().map(move |bucket| Entry { bucket: *bucket, number, place, slot })
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry);
    }

    /// Fills an empty index. Calls `found` for each entry that has neighbours.
    pub(super) fn fill(&mut self, mut entries: Vec<Entry>, plan: &Plan, mut found: impl FnMut(&Entry)) {
        entries.sort_unstable();
        let is_near = |one: &Entry, other: &Entry| is_near(one, other, plan);
        for run in entries.chunk_by(is_near).filter(|run| run.len() > 1) {
            run.iter().for_each(&mut found);
        }
        self.entries = entries.into_iter().collect();
    }

    pub(super) fn remove(&mut self, entry: &Entry) {
        self.entries.remove(entry);
    }

    /// The neighbours of an entry, which need not be in the index.
    pub(super) fn neighbours(&self, entry: &Entry, plan: &Plan) -> Neighbours {
        let is_near = |other: &&Entry| is_near(entry, other, plan);
        let after = self.entries.range((Bound::Excluded(entry), Bound::Unbounded));
        let before = self.entries.range(..entry).rev();
        Neighbours {
            before: before.take_while(is_near).take(plan.side).copied().collect(),
            after: after.take_while(is_near).take(plan.side).copied().collect(),
        }
    }
}

impl Common {
    fn of(value: Option<&Value>) -> Self {
        match value {
            Some(Value::Text(text)) => Self::Text(text.as_str().into()),
            Some(Value::Number(number)) => Self::Number(ordered(*number)),
            Some(Value::TextList(_) | Value::NumberMap(_)) | None => Self::None,
        }
    }
}

/// Whether the latency rules allow a location at some age.
fn is_usable(plan: &Plan, rule_set: &RuleSet, ticket: &Ticket, location: &str) -> bool {
    plan.latencies.iter().filter_map(|index| rule_set.rules.get(*index)).all(|rule| {
        rule.kind.all().any(|(_, kind)| match kind {
            RuleKind::Latency(latency) => accepts(latency, ticket, location),
            _ => true,
        })
    })
}

/// Whether two tickets could be in one match, as far as the index can say.
pub(super) fn is_near(one: &Entry, other: &Entry, plan: &Plan) -> bool {
    let distance = (number_of(one.number) - number_of(other.number)).abs();
    // Two infinite numbers have no distance. They must be near each other in both directions.
    one.bucket == other.bucket && distance.partial_cmp(&plan.reach()) != Some(Ordering::Greater)
}

/// An integer with the order of a number. Negative zero and zero are the same.
fn ordered(number: f64) -> i64 {
    let bits = (number + 0.0).to_bits().cast_signed();
    bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed()
}

/// The number of [`ordered`].
fn number_of(ordered: i64) -> f64 {
    f64::from_bits((ordered ^ ((ordered >> 63).cast_unsigned() >> 1).cast_signed()).cast_unsigned())
}
