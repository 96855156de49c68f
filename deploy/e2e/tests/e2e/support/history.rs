//! Reads the log's events, and checks the rules that every log obeys.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use garage_events::{
    event::Envelope,
    id::{PlayerId, SessionId},
    jetstream::follow::Message,
    subject::Aggregate,
};
use garage_stack::bot::Frame;
use garage_verify::{Checker, End};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

/// An event of the log.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) time: OffsetDateTime,
    pub(crate) subject: String,
    pub(crate) aggregate: Aggregate,
    pub(crate) id: Uuid,
    pub(crate) n: u64,
    pub(crate) type_name: String,
    pub(crate) data: Value,
    pub(super) message: Message,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        let parts = |event: &Self| (event.seq, event.time, event.subject.clone(), event.message.body.clone());
        parts(self) == parts(other)
    }
}

impl Event {
    pub(super) fn of(message: Message) -> Self {
        let envelope = Envelope::from_slice(&message.body).unwrap();
        Self {
            seq: message.seq,
            time: message.time,
            subject: message.subject.clone(),
            aggregate: Aggregate::of(&message.subject).unwrap(),
            id: envelope.id,
            n: envelope.n,
            data: serde_json::from_str(envelope.data.get()).unwrap(),
            type_name: envelope.type_name,
            message,
        }
    }

    /// A text field of its data; empty if absent.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.data.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// A numeric field of its data; 0 if absent.
    pub(crate) fn number(&self, field: &str) -> u64 {
        self.data.get(field).and_then(Value::as_u64).unwrap_or_default()
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Cut: keys and loadouts are long.
        let data: String = self.data.to_string().chars().take(200).collect();
        write!(f, "{:>5} {} {:>3} {:<14} {} {data}", self.seq, self.time.time(), self.n, self.type_name, self.aggregate)
    }
}

/// The matchmaking events of a player.
pub(crate) fn of_player<'a>(events: &'a [Event], name: &str) -> Vec<&'a Event> {
    let id = Aggregate::Player(PlayerId::from_foreign(name).unwrap());
    events.iter().filter(|event| event.aggregate == id).collect()
}

/// The inventory events of a player.
pub(crate) fn of_belongings<'a>(events: &'a [Event], name: &str) -> impl Iterator<Item = &'a Event> {
    let id = Aggregate::Inventory(PlayerId::from_foreign(name).unwrap());
    events.iter().filter(move |event| event.aggregate == id)
}

/// The rewards of a player.
pub(crate) fn paid<'a>(events: &'a [Event], name: &str) -> Vec<&'a Event> {
    of_belongings(events, name).filter(|event| event.type_name == "RewardGranted").collect()
}

/// The events of a session.
pub(crate) fn of_session(events: &[Event], session: SessionId) -> Vec<&Event> {
    events.iter().filter(|event| event.aggregate == Aggregate::Session(session)).collect()
}

/// Every session of the log, oldest first.
pub(crate) fn sessions(events: &[Event]) -> Vec<SessionId> {
    let matched = events.iter().filter(|event| event.type_name == "Matched");
    let ids = matched.filter_map(|event| match event.aggregate {
        Aggregate::Session(id) => Some(id),
        Aggregate::Player(_) | Aggregate::Inventory(_) | Aggregate::Party(_) => None,
    });
    ids.collect()
}

/// The types of these events.
pub(crate) fn types<'a>(events: &[&'a Event]) -> Vec<&'a str> {
    events.iter().map(|event| event.type_name.as_str()).collect()
}

/// The types of a session's events. `PodReady` and `PodScheduled` come in either order; here `PodScheduled` always
/// comes first.
pub(crate) fn steps<'a>(session: &[&'a Event]) -> Vec<&'a str> {
    let mut steps = types(session);
    while let Some(at) = steps.windows(2).position(|two| two == ["PodReady", "PodScheduled"]) {
        steps.swap(at, at + 1);
    }
    steps
}

/// The number of events of a type. `Matched` counts sessions, not their players.
pub(crate) fn count(events: &[Event], type_name: &str) -> usize {
    let counted = |event: &&Event| {
        event.type_name == type_name && (type_name != "Matched" || matches!(event.aggregate, Aggregate::Session(_)))
    };
    events.iter().filter(counted).count()
}

/// Asserts that a player received exactly the events that the log has for the player.
pub(crate) fn assert_notified(events: &[Event], name: &str, frames: &[Frame]) {
    let received: Vec<_> = frames.iter().map(|frame| (frame.seq, frame.n, &frame.type_name, &frame.data)).collect();
    let logged = of_player(events, name);
    let logged: Vec<_> = logged.iter().map(|event| (event.seq, event.n, &event.type_name, &event.data)).collect();
    assert_eq!(received, logged, "{name}: received frames (left) and the log's events (right)");
}

/// Whether every session is closed, and every player who joined a finished match is paid.
pub(crate) fn is_over(events: &[Event]) -> bool {
    let mut paid = count(events, "RewardGranted");
    let begun = events.iter().filter(|event| ["Proposed", "Matched"].contains(&&*event.type_name));
    let begun: BTreeSet<_> = begun.map(|event| &event.aggregate).collect();
    for session in begun.into_iter().filter_map(|aggregate| match aggregate {
        Aggregate::Session(session) => Some(*session),
        Aggregate::Player(_) | Aggregate::Party(_) | Aggregate::Inventory(_) => None,
    }) {
        let history = of_session(events, session);
        match history.last() {
            Some(closed) if closed.type_name == "Closed" => {
                let results = closed.data.get("results").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let joined =
                    results.iter().filter(|placing| placing.get("joined") != Some(&Value::Bool(false))).count();
                if paid < joined {
                    return false;
                }
                paid -= joined;
            }
            _ => return false,
        }
    }
    true
}

/// Checks the rules that every log obeys, under any faults. These are the rules of `garage verify`, and two more: each
/// balance follows from the previous balance, and each rating change starts from the previous rating.
pub(crate) fn check<'a>(events: &[Event], rule_sets: impl Iterator<Item = &'a String>) {
    let mut checker = Checker::default();
    rule_sets.for_each(|text| checker.add_rule_set(text));
    let mut violations: Vec<_> = events.iter().flat_map(|event| checker.take(event.message.clone())).collect();
    violations.extend(checker.finish(End::Open).0);
    assert!(violations.is_empty(), "{violations:#?}");
    let ids: BTreeSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), events.len(), "an event is in the log twice");
    let mut histories: BTreeMap<&Aggregate, Vec<&Event>> = BTreeMap::new();
    for event in events {
        histories.entry(&event.aggregate).or_default().push(event);
    }
    for (aggregate, history) in &histories {
        match aggregate {
            Aggregate::Player(_) | Aggregate::Party(_) => {}
            Aggregate::Session(_) => check_steps(aggregate, history),
            Aggregate::Inventory(_) => {
                check_balance(aggregate, history);
                check_ratings(aggregate, history);
            }
        }
    }
}

/// Checks that a session has each event once per attempt, or per acceptance, and counts its attempts from 1. The rules of `garage verify` use
/// the deciders, so a decider that repeats a step is found only here.
fn check_steps(session: &Aggregate, history: &[&Event]) {
    let (mut seen, mut attempt) = (BTreeSet::new(), 0);
    for event in history {
        let step = (&event.type_name, event.number("attempt"), event.number("accepted"));
        assert!(seen.insert(step), "{session} repeats {}: {:?}", event.type_name, types(history));
        if event.type_name == "PodRequested" {
            attempt += 1;
        }
        assert!([0, attempt].contains(&step.1), "{session} mixes attempts: {:?}", types(history));
    }
}

/// Checks that each event's balance is the previous balance plus or minus the event's amount.
fn check_balance(owner: &Aggregate, history: &[&Event]) {
    let mut balance = 1_000;
    for event in history {
        balance = match &*event.type_name {
            "RewardGranted" => balance + event.number("amount"),
            "CarSold" | "ItemSold" => balance + event.number("price"),
            "CarPurchased" | "ItemPurchased" => balance - event.number("price"),
            _ => continue,
        };
        assert_eq!(event.number("balance"), balance, "{owner}: {:?}", types(history));
    }
}

/// Checks that each match changes a rating once, directly before the reward, and starts from the previous rating.
fn check_ratings(owner: &Aggregate, history: &[&Event]) {
    let mut rating = serde_json::json!(1_500.0);
    for (at, event) in history.iter().enumerate().filter(|(_, event)| event.type_name == "RatingChanged") {
        let paid = history.get(at + 1).map(|next| (&*next.type_name, next.text("session")));
        assert_eq!(paid, Some(("RewardGranted", event.text("session"))), "{owner}: {:?}", types(history));
        assert_eq!(event.data["before"], rating, "{owner}: {:?}", types(history));
        rating = event.data["rating"].clone();
    }
}
