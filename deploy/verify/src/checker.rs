//! Checks the log message by message.

use std::collections::HashMap;

use garage_events::{
    event::Recorded, id::PlayerId, inventory, jetstream::follow::Message, rules::RuleSetId, session, subject::Aggregate,
};

use crate::{
    commits::{Assembler, Commit, Extent},
    counterparts::Counterparts,
    event::{Event, Payload},
    heads::{Heads, PriorState},
    parties::{Parties, PartyChanges},
    payments::Payments,
    players::Players,
    rules::RuleSets,
    secrets::Secrets,
    sessions::{SessionStatus, Sessions},
    violation::{Rule, Violation},
};

/// Checks a log. It remembers the last event of each aggregate, the live sessions, and the payments.
#[derive(Debug, Default)]
pub struct Checker {
    secrets: Secrets,
    commits: Assembler,
    heads: Heads,
    players: Players,
    parties: Parties,
    sessions: Sessions,
    payments: Payments,
    rule_sets: RuleSets,
    /// Sequence of the log's first message; 0 before it.
    first: u64,
    /// Sequence of the message that was checked last; 0 before the first.
    last: u64,
    events: u64,
}

/// Whether anything may be unfinished at the end of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Sessions may be open, tickets waiting, and players unpaid.
    Open,
    /// Every session must be closed, every ticket ended, and every player paid.
    Settled,
}

/// Counts over a whole log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    pub events: u64,
    pub players: u64,
    pub sessions: u64,
    pub tickets: u64,
    pub paid: u64,
    /// Sessions that are not closed, tickets that wait, and payments due.
    pub open: u64,
    /// Aggregates that began before the first message of the log.
    pub truncated: u64,
}

/// The events of one commit, grouped by aggregate.
#[derive(Default)]
struct Changes {
    all: Vec<Change>,
    positions: HashMap<Aggregate, usize>,
}

/// The events of an aggregate in one commit.
#[derive(Default)]
struct Change {
    events: Vec<Event>,
    /// Whether events of another aggregate are between them.
    interleaved: bool,
}

impl Checker {
    /// A checker for a new log, which must not contain these secrets.
    pub fn new(secrets: Secrets) -> Self {
        Self { secrets, ..Self::default() }
    }

    /// Adds the text of a rule set, before the first match that it made.
    pub fn add_rule_set(&mut self, text: &str) {
        self.rule_sets.add(text);
    }

    /// Whether the checker has the text of a rule set.
    pub fn has_rule_set(&self, id: &RuleSetId) -> bool {
        self.rule_sets.has(id)
    }

    /// Whether the last message was in the middle of a commit. Then some messages are not checked yet.
    pub fn is_open(&self) -> bool {
        self.commits.is_open()
    }

    /// The sessions of the log.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Checks the next message. Returns the violations found with it.
    pub fn take(&mut self, message: Message) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.last == 0 {
            self.first = message.seq;
            self.heads.begin(message.seq);
        } else if message.seq != self.last + 1 {
            let what = format!("messages {} to {} are missing", self.last + 1, message.seq.saturating_sub(1));
            found.push(Violation::new(Rule::Readable, [self.last, message.seq], what));
        }
        self.last = message.seq;
        self.events += 1;
        self.check_secrets(&message, &mut found);
        for commit in self.commits.take(message, &mut found) {
            self.check(commit, &mut found);
        }
        found
    }

    /// Ends the check at the end of the log. Returns the violations found there, and the counts.
    pub fn finish(mut self, end: End) -> (Vec<Violation>, Summary) {
        let mut found = Vec::new();
        if let Some(commit) = self.commits.close(&mut found) {
            self.check(commit, &mut found);
        }
        found.extend(self.parties.finish(&self.players));
        let unfinished = self.unfinished();
        let summary = Summary {
            events: self.events,
            players: self.players.count(),
            sessions: self.sessions.begun,
            tickets: self.players.tickets,
            paid: self.payments.count,
            open: unfinished.len() as u64,
            truncated: self.heads.truncated,
        };
        if end == End::Settled {
            found.extend(unfinished);
        }
        (found, summary)
    }

    /// Everything that is unfinished, in the order of the log.
    fn unfinished(&self) -> Vec<Violation> {
        let settled = |seq, what: &str| Violation::new(Rule::Settled, [seq], what);
        let waiting = self
            .players
            .waiting()
            .map(|(player, seq)| settled(seq, "the player's ticket is still waiting").player(player));
        let open =
            self.sessions.open().map(|(session, seq)| settled(seq, "the session is not closed").session(session));
        let unpaid = self.payments.unpaid().map(|(player, session, seq)| {
            settled(seq, "the player has not been paid for the match").player(player).session(session)
        });
        let mut all: Vec<_> = waiting.chain(open).chain(unpaid).collect();
        all.sort_by(|one, other| one.seqs.cmp(&other.seqs).then_with(|| one.player.cmp(&other.player)));
        all
    }

    fn check_secrets(&self, message: &Message, found: &mut Vec<Violation>) {
        let headers = message.headers.iter().flat_map(async_nats::HeaderMap::iter).flat_map(|(_, values)| values);
        let headers = headers.filter_map(|value| self.secrets.find(value.as_str().as_bytes()));
        if let Some(what) = self.secrets.find(&message.body).into_iter().chain(headers).next() {
            let violation = Violation::new(Rule::Secret, [message.seq], format!("{what} is in the message"));
            found.push(Aggregate::of(&message.subject).iter().fold(violation, Violation::of));
        }
    }

    fn check(&mut self, commit: Commit, found: &mut Vec<Violation>) {
        let mut changes = Changes::default();
        for message in &commit.messages {
            match Event::of(message) {
                Ok(event) => changes.add(event),
                Err(violation) => {
                    found.push(violation);
                    self.forget(message);
                }
            }
        }
        let (mut counterparts, mut parties) = (Counterparts::default(), PartyChanges::default());
        for Change { events, interleaved } in &changes.all {
            check_decision(events, *interleaved, found);
            let prior = self.heads.check(events, found);
            self.check_change(events, prior, (&mut counterparts, &mut parties), found);
        }
        // The counterparts may be in the part of the commit that the log no longer has.
        if commit.extent != Extent::Truncated {
            counterparts.check(found);
        }
        self.parties.check(&parties, commit.extent != Extent::Truncated, found);
    }

    /// Marks the state of an aggregate as unknown, after a message that cannot be read.
    fn forget(&mut self, message: &Message) {
        let Some(aggregate) = Aggregate::of(&message.subject) else { return };
        match &aggregate {
            Aggregate::Player(player) => self.players.forget(player),
            Aggregate::Session(session) => self.sessions.forget(*session),
            Aggregate::Party(party) => self.parties.forget(*party),
            Aggregate::Inventory(_) => {}
        }
        self.heads.skip(aggregate, message.seq);
    }

    fn check_change(
        &mut self,
        events: &[Event],
        prior: PriorState,
        (counterparts, parties): (&mut Counterparts, &mut PartyChanges),
        found: &mut Vec<Violation>,
    ) {
        let Some(Event { aggregate, .. }) = events.first() else { return };
        match aggregate {
            Aggregate::Player(player) => {
                if prior == PriorState::Truncated {
                    self.players.forget(player);
                }
                for event in events {
                    if let Payload::Player(payload) = &event.payload {
                        let party = if prior == PriorState::New { Some(None) } else { self.players.party(player) };
                        parties.player(player, event.seq, event.latest(), (party, payload));
                        self.players.check(player, event.seq, payload, found);
                        counterparts.player(player, event.seq, payload);
                    }
                }
            }
            Aggregate::Session(session) => {
                if prior == PriorState::Truncated {
                    self.sessions.forget(*session);
                }
                let recorded: Vec<Recorded<session::Event>> = events.iter().filter_map(Event::of_session).collect();
                for event in &recorded {
                    let made = match &event.event {
                        session::Event::Proposed(proposed) => Some(&proposed.matched),
                        // An accepted match was checked when it was proposed.
                        session::Event::Matched(matched) if self.sessions.players(*session).is_none() => Some(matched),
                        _ => None,
                    };
                    if let Some(matched) = made {
                        // The session's event is the first of its commit, so the players still wait.
                        let ticket = |player: &PlayerId| self.players.ticket(player);
                        self.rule_sets.check(*session, event.seq, matched, ticket, found);
                    }
                    counterparts.session(*session, event.seq, &event.event, self.sessions.players(*session));
                }
                self.sessions.check(*session, &recorded, found);
                for event in recorded {
                    if let session::Event::Finished(finished) = &event.event {
                        self.payments.add_results(*session, event.seq, finished);
                    }
                }
            }
            Aggregate::Party(party) => {
                if prior == PriorState::Truncated {
                    self.parties.forget(*party);
                }
                for event in events {
                    if let Payload::Party(payload) = &event.payload {
                        parties.party(*party, event.seq, event.latest(), payload);
                    }
                }
            }
            Aggregate::Inventory(player) => {
                for event in events {
                    if let Payload::Inventory(inventory::Event::RewardGranted(reward)) = &event.payload {
                        let forgotten = Some(&SessionStatus::Unknown).filter(|_| self.first > 1);
                        let status = self.sessions.get(reward.session).or(forgotten);
                        self.payments.check(player, event.seq, reward, status, found);
                    }
                }
            }
        }
    }
}

impl Changes {
    /// Adds an event to the change of its aggregate.
    fn add(&mut self, event: Event) {
        let end = self.all.len();
        let position = *self.positions.entry(event.aggregate.clone()).or_insert(end);
        if position == end {
            self.all.push(Change::default());
        }
        if let Some(change) = self.all.get_mut(position) {
            change.interleaved |= position + 1 < end;
            change.events.push(event);
        }
    }
}

/// Checks that a commit has at most one decision per aggregate. A decision on a player or a party is a single event.
fn check_decision(events: &[Event], interleaved: bool, found: &mut Vec<Violation>) {
    let [first, .., last] = events else { return };
    let is_one = events.iter().all(|event| event.decision == first.decision);
    if interleaved || !is_one || matches!(first.aggregate, Aggregate::Player(_) | Aggregate::Party(_)) {
        let what = format!("two decisions in one commit, {} and {}", first.type_name(), last.type_name());
        found.push(Violation::new(Rule::Committed, events.iter().map(|event| event.seq), what).of(&first.aggregate));
    }
}
