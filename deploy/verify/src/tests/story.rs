//! A log written by hand. Events get the same numbers and expectations as from the committer, even if they are not
//! allowed.

use std::collections::HashMap;

use async_nats::HeaderMap;
use garage_events::{
    event::Envelope,
    game::{Placing, Ports},
    id::{QueueName, SessionId, TicketId},
    inventory,
    jetstream::follow::Message,
    log::Head,
    player::{self, Address, Ending, Queued, Released},
    session::{self, Closed, Finished, Matched, Member, Opened, PodReady, PodRequested, PodScheduled, Team},
    subject::Aggregate,
};
use serde_json::Value;
use time::{Duration, OffsetDateTime, macros::datetime};
use uuid::Uuid;

use crate::{
    checker::{Checker, End, Summary},
    secrets::Secrets,
    violation::Violation,
};

pub(super) const BEGAN: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);

/// An event, ready to be written to the log.
#[derive(Debug, Clone)]
pub(super) struct StoryEvent {
    type_name: &'static str,
    token: &'static str,
    data: Value,
}

impl StoryEvent {
    pub(super) fn player(event: impl Into<player::Event>) -> Self {
        Self::of(&event.into())
    }

    pub(super) fn session(event: impl Into<session::Event>) -> Self {
        Self::of(&event.into())
    }

    pub(super) fn inventory(event: impl Into<inventory::Event>) -> Self {
        Self::of(&event.into())
    }

    fn of(event: &impl garage_events::event::Event) -> Self {
        Self { type_name: event.type_name(), token: event.token(), data: event.data().unwrap() }
    }
}

/// A log that a test writes.
#[derive(Debug, Clone, Default)]
pub(super) struct Story {
    pub(super) messages: Vec<Message>,
    /// The rule sets that are stored.
    pub(super) rule_sets: Vec<String>,
    heads: HashMap<Aggregate, Head>,
    commits: u128,
}

impl Story {
    /// A finished match of anna and bert: 15 messages. The session's messages are 3, 6 to 9, 12 and 13.
    pub(super) fn finished(number: u128) -> Self {
        let mut story = Self::default();
        let players = [("anna", 1), ("bert", 2)];
        story.matched(number, &players);
        story.served(number, 1);
        story.opens(number, &players);
        story.ends(number, vec![placing("anna", 1), placing("bert", 2)], &players);
        story
    }

    /// A finished match with two more messages, the payments.
    pub(super) fn played(number: u128) -> Self {
        let mut story = Self::finished(number);
        story.paid("anna", number, 1);
        story.paid("bert", number, 2);
        story
    }

    /// Stores events in one commit. All events of an aggregate expect its head from before the commit.
    pub(super) fn commit(&mut self, changes: Vec<(Aggregate, Vec<StoryEvent>)>) {
        self.commits += 1;
        let commit = id(self.commits);
        let count: usize = changes.iter().map(|(_, events)| events.len()).sum();
        let (before, mut number) = (self.heads.clone(), 0);
        for (aggregate, events) in changes {
            let Head { seq: expected, n } = before.get(&aggregate).copied().unwrap_or_default();
            for (StoryEvent { type_name, token, mut data }, n) in events.into_iter().zip(n + 1..) {
                number += 1;
                let seq = self.messages.last().map_or(0, |last| last.seq) + 1;
                let (owner, subject) = match &aggregate {
                    Aggregate::Player(player) => (("player", player.to_string()), aggregate.filter()),
                    Aggregate::Party(party) => (("party", party.to_string()), aggregate.filter()),
                    Aggregate::Inventory(player) => {
                        (("player", player.to_string()), aggregate.filter().replace('>', token))
                    }
                    Aggregate::Session(session) => {
                        (("session", session.to_string()), aggregate.filter().replace('>', token))
                    }
                };
                data[owner.0] = owner.1.into();
                let time = BEGAN + Duration::seconds(seq.try_into().unwrap());
                let envelope = Envelope {
                    id: id(1_000 + u128::from(seq)),
                    n,
                    type_name: type_name.into(),
                    v: 1,
                    at: BEGAN,
                    correlation: commit,
                    cause: None,
                    data: serde_json::value::to_raw_value(&data).unwrap(),
                };
                let mut headers = HeaderMap::new();
                headers.insert("Garage-Type", type_name);
                headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string().as_str());
                headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", aggregate.filter().as_str());
                if count > 1 {
                    headers.insert("Nats-Batch-Id", commit.to_string().as_str());
                    headers.insert("Nats-Batch-Sequence", number.to_string().as_str());
                }
                if count > 1 && number == count {
                    headers.insert("Nats-Batch-Commit", "1");
                }
                let body = serde_json::to_vec(&envelope).unwrap().into();
                self.messages.push(Message { seq, time, subject, headers: Some(headers), body, pending: 0 });
                self.heads.insert(aggregate.clone(), Head { seq, n });
            }
        }
    }

    pub(super) fn player(&mut self, name: &str, event: impl Into<player::Event>) {
        self.commit(vec![(of_player(name), vec![StoryEvent::player(event)])]);
    }

    pub(super) fn session(&mut self, number: u128, event: impl Into<session::Event>) {
        self.commit(vec![(of_session(number), vec![StoryEvent::session(event)])]);
    }

    pub(super) fn queue(&mut self, name: &str, number: u128) {
        self.player(name, queued(number));
    }

    /// Queues players, each with a ticket, and matches them.
    pub(super) fn matched(&mut self, number: u128, players: &[(&str, u128)]) {
        for (name, ticket) in players {
            self.queue(name, *ticket);
        }
        let mut changes = vec![(of_session(number), vec![StoryEvent::session(matched(players))])];
        for (name, ticket) in players {
            changes.push((of_player(name), vec![StoryEvent::player(is_matched(*ticket, number, name))]));
        }
        self.commit(changes);
    }

    /// Starts a game server for a session.
    pub(super) fn served(&mut self, number: u128, attempt: u32) {
        self.session(number, requested(attempt));
        self.session(number, ready(attempt));
        self.session(number, scheduled(attempt));
    }

    /// Opens a session with the server of attempt 1.
    pub(super) fn opens(&mut self, number: u128, players: &[(&str, u128)]) {
        let mut changes = vec![(of_session(number), vec![StoryEvent::session(opened(1))])];
        for (name, ticket) in players {
            changes.push((of_player(name), vec![StoryEvent::player(player_matched(number, *ticket))]));
        }
        self.commit(changes);
    }

    /// Finishes and closes a session.
    pub(super) fn ends(&mut self, number: u128, results: Vec<Placing>, players: &[(&str, u128)]) {
        let finished = Finished { attempt: 1, results: results.clone(), teams: Vec::new() };
        let closed = Closed { why: Ending::Finished, results, teams: Vec::new() };
        let mut changes = vec![(of_session(number), vec![StoryEvent::session(finished), StoryEvent::session(closed)])];
        for (name, number_of_ticket) in players {
            let released = Released {
                ticket: ticket(*number_of_ticket),
                session: session(number),
                why: Ending::Finished,
                reason: None,
                absences: 0,
                party: None,
            };
            changes.push((of_player(name), vec![StoryEvent::player(released)]));
        }
        self.commit(changes);
    }

    pub(super) fn paid(&mut self, name: &str, number: u128, place: u32) {
        let reward = inventory::RewardGranted { session: session(number), place, amount: 10, balance: 10 };
        self.commit(vec![(Aggregate::Inventory(name.parse().unwrap()), vec![StoryEvent::inventory(reward)])]);
    }

    /// The same log without its first messages.
    pub(super) fn forgetting(&self, count: usize) -> Self {
        Self { messages: self.messages[count..].to_vec(), ..self.clone() }
    }

    /// Changes a message's body.
    pub(super) fn edit(&mut self, seq: u64, edit: impl FnOnce(&mut Value)) {
        let message = self.message(seq);
        let mut body = serde_json::from_slice(&message.body).unwrap();
        edit(&mut body);
        message.body = body.to_string().into();
    }

    /// Changes a message's header.
    pub(super) fn header(&mut self, seq: u64, name: &'static str, value: &str) {
        self.message(seq).headers.as_mut().unwrap().insert(name, value);
    }

    /// Changes the sequence that a message expected.
    pub(super) fn expect(&mut self, seq: u64, expected: Option<&str>, filter: Option<&str>) {
        let names = ["Nats-Expected-Last-Subject-Sequence", "Nats-Expected-Last-Subject-Sequence-Subject"];
        let mut headers = HeaderMap::new();
        for (name, values) in self.message(seq).headers.as_ref().unwrap().iter() {
            let name: &str = name.as_ref();
            if !names.contains(&name) {
                headers.insert(name, values[0].clone());
            }
        }
        for (name, value) in names.into_iter().zip([expected, filter]) {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        self.message(seq).headers = Some(headers);
    }

    /// Removes a message, and decrements the sequence of every later one.
    pub(super) fn remove(&mut self, seq: u64) {
        self.messages.retain(|message| message.seq != seq);
        for message in self.messages.iter_mut().filter(|message| message.seq > seq) {
            message.seq -= 1;
        }
    }

    fn message(&mut self, seq: u64) -> &mut Message {
        self.messages.iter_mut().find(|message| message.seq == seq).unwrap()
    }

    /// Checks the log. Returns the violations and the counts.
    pub(super) fn check(&self, end: End) -> (Vec<Violation>, Summary) {
        let (checker, mut found) = self.read();
        let (last, summary) = checker.finish(end);
        found.extend(last);
        (found, summary)
    }

    /// A checker that has read the log.
    pub(super) fn checker(&self) -> Checker {
        self.read().0
    }

    fn read(&self) -> (Checker, Vec<Violation>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "swordfish-of-the-studio\n").unwrap();
        let mut secrets = Secrets::default();
        secrets.add(file.path()).unwrap();
        let mut checker = Checker::new(secrets);
        self.rule_sets.iter().for_each(|text| checker.add_rule_set(text));
        let found = self.messages.iter().flat_map(|message| checker.take(message.clone())).collect();
        (checker, found)
    }
}

pub(super) fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub(super) fn ticket(number: u128) -> TicketId {
    TicketId::new(id(number))
}

pub(super) fn session(number: u128) -> SessionId {
    SessionId::new(id(number))
}

pub(super) fn queue() -> QueueName {
    "ranked".parse().unwrap()
}

pub(super) fn of_player(name: &str) -> Aggregate {
    Aggregate::Player(name.parse().unwrap())
}

pub(super) fn of_session(number: u128) -> Aggregate {
    Aggregate::Session(session(number))
}

/// A ticket that times out after a minute.
pub(super) fn queued(number: u128) -> Queued {
    Queued {
        ticket: ticket(number),
        queue: queue(),
        rank: 0,
        latencies: [].into(),
        attributes: [].into(),
        group: Vec::new(),
        waiting_since: BEGAN,
        expires_at: BEGAN + Duration::MINUTE,
        requeues: 0,
        absences: 0,
        party: None,
    }
}

/// A session in which every player is a team, named after the player.
pub(super) fn matched(players: &[(&str, u128)]) -> Matched {
    let member = |name: &str, number| Member { player: name.parse().unwrap(), ticket: ticket(number), rank: 0 };
    let team = |(name, number): &(&str, u128)| Team { name: (*name).into(), players: vec![member(name, *number)] };
    let (queue, region) = (queue(), "eu".parse().unwrap());
    Matched {
        queue,
        region,
        teams: players.iter().map(team).collect(),
        latencies: Default::default(),
        rules: "band-region-fifo/2".into(),
        pool_seq: 0,
        clock: BEGAN,
        seed: 0,
        skipped: Vec::new(),
        left_out: Vec::new(),
        search_steps: None,
    }
}

/// The player's event of a match.
pub(super) fn is_matched(number: u128, of: u128, team: &str) -> player::Matched {
    let (ticket, session) = (ticket(number), session(of));
    player::Matched {
        ticket,
        queue: queue(),
        session,
        team: team.into(),
        waiting_since: BEGAN,
        requeue: None,
        absences: 0,
        party: None,
    }
}

pub(super) fn requested(attempt: u32) -> PodRequested {
    let (region, fingerprint) = ("eu".parse().unwrap(), address().fingerprint);
    PodRequested { attempt, region, loadouts: vec![], public_key: String::new(), fingerprint, ends_at: None }
}

pub(super) fn scheduled(attempt: u32) -> PodScheduled {
    PodScheduled { attempt, pod: "game".into(), node: "here".into(), public_ip: address().ip }
}

pub(super) fn ready(attempt: u32) -> PodReady {
    PodReady { attempt, ports: address().ports }
}

pub(super) fn opened(attempt: u32) -> Opened {
    Opened { attempt, address: address() }
}

pub(super) fn player_matched(of: u128, number: u128) -> player::PlayerMatched {
    player::PlayerMatched {
        ticket: ticket(number),
        queue: queue(),
        session: session(of),
        address: address(),
        absences: 0,
        party: None,
    }
}

pub(super) fn address() -> Address {
    Address { ip: [203, 0, 113, 7].into(), ports: Ports { tcp_port: 1, udp_port: 2 }, fingerprint: "ab12".into() }
}

pub(super) fn placing(name: &str, place: u32) -> Placing {
    Placing { player: name.parse().unwrap(), place, time_ms: Some(9), joined: true }
}
