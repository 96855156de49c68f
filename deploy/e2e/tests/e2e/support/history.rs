//! What the log says, and what it may say at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use garage_events::{
    event::Envelope,
    id::{PlayerId, SessionId},
    subject::Aggregate,
};
use garage_stack::bot::Frame;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

/// An event of the log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) time: OffsetDateTime,
    pub(crate) subject: String,
    pub(crate) aggregate: Aggregate,
    pub(crate) id: Uuid,
    pub(crate) n: u64,
    pub(crate) type_name: String,
    pub(crate) data: Value,
}

impl Event {
    pub(super) fn of(seq: u64, time: OffsetDateTime, subject: &str, body: &[u8]) -> Self {
        let envelope = Envelope::from_slice(body).unwrap();
        Self {
            seq,
            time,
            subject: subject.to_owned(),
            aggregate: Aggregate::of(subject).unwrap(),
            id: envelope.id,
            n: envelope.n,
            type_name: envelope.type_name,
            data: serde_json::from_str(envelope.data.get()).unwrap(),
        }
    }

    /// A text in its data.
    pub(crate) fn text(&self, field: &str) -> &str {
        self.data.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number in its data.
    pub(crate) fn number(&self, field: &str) -> u64 {
        self.data.get(field).and_then(Value::as_u64).unwrap_or_default()
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys and loadouts would bury the rest.
        let data: String = self.data.to_string().chars().take(200).collect();
        write!(f, "{:>5} {} {:>3} {:<14} {} {data}", self.seq, self.time.time(), self.n, self.type_name, self.aggregate)
    }
}

/// A player's matchmaking, from his name.
pub(crate) fn of_player<'a>(events: &'a [Event], name: &str) -> Vec<&'a Event> {
    let id = Aggregate::Player(PlayerId::from_foreign(name).unwrap());
    events.iter().filter(|event| event.aggregate == id).collect()
}

/// What happened to a player's belongings, from his name.
pub(crate) fn of_belongings<'a>(events: &'a [Event], name: &str) -> impl Iterator<Item = &'a Event> {
    let id = Aggregate::Inventory(PlayerId::from_foreign(name).unwrap());
    events.iter().filter(move |event| event.aggregate == id)
}

/// What a player was paid, from his name.
pub(crate) fn paid<'a>(events: &'a [Event], name: &str) -> Vec<&'a Event> {
    of_belongings(events, name).filter(|event| event.type_name == "RewardGranted").collect()
}

/// A session.
pub(crate) fn of_session(events: &[Event], session: SessionId) -> Vec<&Event> {
    events.iter().filter(|event| event.aggregate == Aggregate::Session(session)).collect()
}

/// Every session of the log, the oldest first.
pub(crate) fn sessions(events: &[Event]) -> Vec<SessionId> {
    let begun = events.iter().filter(|event| event.type_name == "Matched");
    let ids = begun.filter_map(|event| match event.aggregate {
        Aggregate::Session(id) => Some(id),
        Aggregate::Player(_) | Aggregate::Inventory(_) => None,
    });
    ids.collect()
}

/// The types of events.
pub(crate) fn types<'a>(events: &[&'a Event]) -> Vec<&'a str> {
    events.iter().map(|event| event.type_name.as_str()).collect()
}

/// The types of a session's events. A server's report and the news of where it was placed may come in either order; here
/// the place comes first.
pub(crate) fn steps<'a>(session: &[&'a Event]) -> Vec<&'a str> {
    let mut steps = types(session);
    while let Some(at) = steps.windows(2).position(|two| two == ["PodReady", "PodScheduled"]) {
        steps.swap(at, at + 1);
    }
    steps
}

/// How many events are of a type. A match is counted by its session.
pub(crate) fn count(events: &[Event], type_name: &str) -> usize {
    let counted = |event: &&Event| {
        event.type_name == type_name && (type_name != "Matched" || matches!(event.aggregate, Aggregate::Session(_)))
    };
    events.iter().filter(counted).count()
}

/// What a player was told must be what the log says of him, event by event.
pub(crate) fn assert_notified(events: &[Event], name: &str, frames: &[Frame]) {
    let received: Vec<_> = frames.iter().map(|frame| (frame.seq, frame.n, &frame.type_name, &frame.data)).collect();
    let said = of_player(events, name);
    let said: Vec<_> = said.iter().map(|event| (event.seq, event.n, &event.type_name, &event.data)).collect();
    assert_eq!(received, said, "what {name} was told, and what the log says of him");
}

/// Whether every session is closed, and whoever finished one is paid.
pub(crate) fn is_over(events: &[Event]) -> bool {
    let mut paid = count(events, "RewardGranted");
    for session in sessions(events) {
        let history = of_session(events, session);
        match history.last() {
            Some(closed) if closed.type_name == "Closed" => {
                let results = closed.data.get("results").and_then(Value::as_array).map_or(0, Vec::len);
                if paid < results {
                    return false;
                }
                paid -= results;
            }
            _ => return false,
        }
    }
    true
}

/// What holds in every log, whatever went wrong: no hole and no double, nobody in two matches, each step of a session
/// once for each attempt, each player paid
/// once for each match that was finished, no coin from nowhere, and each rating moved by a match from where it was.
pub(crate) fn check(events: &[Event]) {
    let ids: BTreeSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), events.len(), "an event is in the log twice");
    let mut aggregates: BTreeMap<&Aggregate, Vec<&Event>> = BTreeMap::new();
    for event in events {
        aggregates.entry(&event.aggregate).or_default().push(event);
    }
    for (aggregate, history) in &aggregates {
        for (event, n) in history.iter().zip(1..) {
            assert_eq!(event.n, n, "{aggregate} has a hole or a double: {:?}", types(history));
        }
        match aggregate {
            Aggregate::Player(_) => check_player(aggregate, history),
            Aggregate::Session(_) => check_session(aggregate, history, &aggregates),
            Aggregate::Inventory(_) => {
                check_paid(aggregate, history, &aggregates);
                check_balance(aggregate, history);
                check_ratings(aggregate, history);
            }
        }
    }
}

fn check_player(player: &Aggregate, history: &[&Event]) {
    let mut before = "";
    let mut session = "";
    for event in history {
        let follows = match &*event.type_name {
            "Queued" => ["", "Cancelled", "TimedOut", "Released"].contains(&before),
            "Cancelled" | "TimedOut" | "Matched" => before == "Queued",
            "PlayerMatched" => before == "Matched" && event.text("session") == session,
            "Released" => ["Matched", "PlayerMatched"].contains(&before) && event.text("session") == session,
            _ => false,
        };
        assert!(follows, "{player}: {} after {before}, of {session}: {:?}", event.type_name, types(history));
        before = &event.type_name;
        if event.type_name == "Matched" {
            session = event.text("session");
        }
    }
}

fn check_session(session: &Aggregate, history: &[&Event], all: &BTreeMap<&Aggregate, Vec<&Event>>) {
    let types = types(history);
    let mut seen = BTreeSet::new();
    let mut attempt = 0;
    for event in history {
        // Once for each attempt; what is of no attempt, once.
        assert!(
            seen.insert((&event.type_name, event.number("attempt"))),
            "{session}: {} again: {types:?}",
            event.type_name
        );
        match &*event.type_name {
            "PodRequested" => {
                attempt += 1;
                assert_eq!(event.number("attempt"), attempt, "{session}: attempts are counted: {types:?}");
            }
            "PodScheduled" | "PodReady" | "PodFailed" | "Opened" | "Finished" => {
                assert_eq!(event.number("attempt"), attempt, "{session}: of the present attempt: {types:?}");
            }
            _ => {}
        }
    }
    let opened = types.iter().filter(|name| **name == "Opened").count();
    assert!(opened <= 1, "{session} was opened twice: {types:?}");
    if let Some(at) = types.iter().position(|name| *name == "Closed") {
        assert_eq!(at, types.len() - 1, "{session} goes on after its end: {types:?}");
    }
    let mut members = BTreeSet::new();
    for team in history[0].data["teams"].as_array().unwrap() {
        for member in team["players"].as_array().unwrap() {
            let player: PlayerId = member["player"].as_str().unwrap().parse().unwrap();
            let received = all.get(&Aggregate::Player(player.clone())).unwrap();
            let id = history[0].subject.split('.').nth(2).unwrap();
            let count = |name: &str| {
                received.iter().filter(|event| event.type_name == name && event.text("session") == id).count()
            };
            assert_eq!(count("Matched"), 1, "{player} was matched with {session}");
            assert_eq!(count("PlayerMatched"), opened, "{player} was told of {session} when it opened");
            assert_eq!(
                count("Released"),
                usize::from(types.last() == Some(&"Closed")),
                "{player} was released of {session}"
            );
            assert!(members.insert(player), "{session} has a player twice");
        }
    }
}

fn check_paid(owner: &Aggregate, history: &[&Event], all: &BTreeMap<&Aggregate, Vec<&Event>>) {
    let mut paid = BTreeSet::new();
    for event in history.iter().filter(|event| event.type_name == "RewardGranted") {
        let session = event.text("session");
        assert!(paid.insert(session), "{owner} was paid twice for {session}");
        let finished = all.get(&Aggregate::Session(session.parse().unwrap())).unwrap();
        assert!(types(finished).contains(&"Finished"), "{owner} was paid for {session}, which was not finished");
    }
}

/// Each event must leave in the wallet what the one before it left, and what it brings or takes.
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

/// Each match moves a rating once, right before it pays, from where the last one left it.
fn check_ratings(owner: &Aggregate, history: &[&Event]) {
    let mut rating = serde_json::json!(1_500.0);
    for (at, event) in history.iter().enumerate().filter(|(_, event)| event.type_name == "RatingChanged") {
        let paid = history.get(at + 1).map(|next| (&*next.type_name, next.text("session")));
        assert_eq!(paid, Some(("RewardGranted", event.text("session"))), "{owner}: {:?}", types(history));
        assert_eq!(event.data["before"], rating, "{owner}: {:?}", types(history));
        rating = event.data["rating"].clone();
    }
}
