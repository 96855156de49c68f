//! The log, judged message by message.

use std::collections::HashMap;

use garage_events::{event::Recorded, inventory, jetstream::follow::Message, session, subject::Aggregate};

use super::{
    event::{Event, What},
    gathering::{Commit, Extent, Gathering},
    heads::{Heads, Sight},
    payments::Payments,
    players::Players,
    secrets::Secrets,
    sessions::{Sessions, Standing},
    together::Together,
    violation::{Rule, Violation},
};

/// Judges a log. It keeps where each aggregate's history ends, what lives, and who was paid.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    secrets: Secrets,
    gathering: Gathering,
    heads: Heads,
    players: Players,
    sessions: Sessions,
    payments: Payments,
    /// The log's first message, and the last one seen.
    first: u64,
    last: u64,
    events: u64,
}

/// Whether anything may still be under way at the log's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Sessions may be open, tickets waiting, and players unpaid.
    Open,
    /// Nothing may.
    Settled,
}

/// What a log held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    pub(crate) events: u64,
    pub(crate) players: u64,
    pub(crate) sessions: u64,
    pub(crate) tickets: u64,
    pub(crate) paid: u64,
    /// Sessions that are not closed, tickets that wait, and payments due.
    pub(crate) open: u64,
    /// Aggregates whose beginning the log has forgotten.
    pub(crate) midway: u64,
}

/// The events of one commit, sorted by their aggregates.
#[derive(Default)]
struct Changes {
    all: Vec<Change>,
    places: HashMap<Aggregate, usize>,
}

/// The events of an aggregate in one commit.
#[derive(Default)]
struct Change {
    events: Vec<Event>,
    /// Whether another aggregate's came between them.
    apart: bool,
}

impl Checker {
    /// Of a log in which these secrets must not be.
    pub(crate) fn new(secrets: Secrets) -> Self {
        Self { secrets, ..Self::default() }
    }

    /// Whether it is in the midst of a commit, so that it has not judged all that it was given.
    pub(crate) fn is_open(&self) -> bool {
        self.gathering.is_open()
    }

    /// The sessions that the log has.
    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Takes the next message, and tells what does not hold.
    pub(crate) fn take(&mut self, message: Message) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.last == 0 {
            self.first = message.seq;
            self.heads.begin(message.seq);
        } else if message.seq != self.last + 1 {
            let what = format!("the log has nothing from {} to {}", self.last + 1, message.seq.saturating_sub(1));
            found.push(Violation::new(Rule::Readable, [self.last, message.seq], what));
        }
        self.last = message.seq;
        self.events += 1;
        self.look_for_secrets(&message, &mut found);
        for commit in self.gathering.take(message, &mut found) {
            self.judge(commit, &mut found);
        }
        found
    }

    /// Ends with the log, and tells what does not hold then, and what there was.
    pub(crate) fn finish(mut self, end: End) -> (Vec<Violation>, Summary) {
        let mut found = Vec::new();
        if let Some(commit) = self.gathering.close(&mut found) {
            self.judge(commit, &mut found);
        }
        let under_way = self.under_way();
        let summary = Summary {
            events: self.events,
            players: self.players.count(),
            sessions: self.sessions.begun,
            tickets: self.players.tickets,
            paid: self.payments.count,
            open: under_way.len() as u64,
            midway: self.heads.midway,
        };
        if end == End::Settled {
            found.extend(under_way);
        }
        (found, summary)
    }

    /// What is under way, in the log's order.
    fn under_way(&self) -> Vec<Violation> {
        let settled = |seq, what: &str| Violation::new(Rule::Settled, [seq], what);
        let waiting =
            self.players.waiting().map(|(player, seq)| settled(seq, "the player's ticket waits").player(player));
        let open =
            self.sessions.open().map(|(session, seq)| settled(seq, "the session is not closed").session(session));
        let unpaid = self.payments.unpaid().map(|(player, session, seq)| {
            settled(seq, "the player has not been paid for the match").player(player).session(session)
        });
        let mut all: Vec<_> = waiting.chain(open).chain(unpaid).collect();
        all.sort_by(|one, other| one.seqs.cmp(&other.seqs).then_with(|| one.player.cmp(&other.player)));
        all
    }

    fn look_for_secrets(&self, message: &Message, found: &mut Vec<Violation>) {
        let headers = message.headers.iter().flat_map(async_nats::HeaderMap::iter).flat_map(|(_, values)| values);
        let headers = headers.filter_map(|value| self.secrets.find(value.as_str().as_bytes()));
        if let Some(what) = self.secrets.find(&message.body).into_iter().chain(headers).next() {
            let violation = Violation::new(Rule::Secret, [message.seq], format!("{what} is in the message"));
            found.push(Aggregate::of(&message.subject).iter().fold(violation, Violation::of));
        }
    }

    fn judge(&mut self, commit: Commit, found: &mut Vec<Violation>) {
        let mut changes = Changes::default();
        for message in &commit.messages {
            match Event::of(message) {
                Ok(event) => changes.add(event),
                Err(violation) => {
                    found.push(violation);
                    self.lose(message);
                }
            }
        }
        let mut together = Together::default();
        for Change { events, apart } in &changes.all {
            judge_decision(events, *apart, found);
            let sight = self.heads.judge(events, found);
            self.judge_change(events, sight, &mut together, found);
        }
        // Of one whose beginning is forgotten it is not known what stood there.
        if commit.extent != Extent::Cut {
            together.judge(found);
        }
    }

    /// From now on nothing is known of the aggregate of a message that cannot be read.
    fn lose(&mut self, message: &Message) {
        let Some(aggregate) = Aggregate::of(&message.subject) else { return };
        match &aggregate {
            Aggregate::Player(player) => self.players.meet(player),
            Aggregate::Session(session) => self.sessions.lose(*session),
            Aggregate::Inventory(_) => {}
        }
        self.heads.lose(aggregate, message.seq);
    }

    fn judge_change(&mut self, events: &[Event], sight: Sight, together: &mut Together, found: &mut Vec<Violation>) {
        let Some(Event { aggregate, .. }) = events.first() else { return };
        match aggregate {
            Aggregate::Player(player) => {
                if sight == Sight::Midway {
                    self.players.meet(player);
                }
                for event in events {
                    if let What::Player(what) = &event.what {
                        self.players.judge(player, event.seq, what, found);
                        together.player(player, event.seq, what);
                    }
                }
            }
            Aggregate::Session(session) => {
                if sight == Sight::Midway {
                    self.sessions.lose(*session);
                }
                let recorded: Vec<Recorded<session::Event>> = events.iter().filter_map(Event::of_session).collect();
                for event in &recorded {
                    together.session(*session, event.seq, &event.event, self.sessions.players(*session));
                }
                self.sessions.judge(*session, &recorded, found);
                for event in recorded {
                    if let session::Event::Finished(finished) = &event.event {
                        self.payments.owe(*session, event.seq, &finished.results);
                    }
                }
            }
            Aggregate::Inventory(player) => {
                for event in events {
                    if let What::Inventory(inventory::Event::RewardGranted(reward)) = &event.what {
                        let forgotten = Some(&Standing::Unknown).filter(|_| self.first > 1);
                        let standing = self.sessions.get(reward.session).or(forgotten);
                        self.payments.pay(player, event.seq, reward, standing, found);
                    }
                }
            }
        }
    }
}

impl Changes {
    /// Puts an event to those of its aggregate.
    fn add(&mut self, event: Event) {
        let end = self.all.len();
        let place = *self.places.entry(event.aggregate.clone()).or_insert(end);
        if place == end {
            self.all.push(Change::default());
        }
        if let Some(change) = self.all.get_mut(place) {
            change.apart |= place + 1 < end;
            change.events.push(event);
        }
    }
}

/// One commit holds one decision on an aggregate at most; and the decision on a player is one event.
fn judge_decision(events: &[Event], apart: bool, found: &mut Vec<Violation>) {
    let [first, .., last] = events else { return };
    let is_one = events.iter().all(|event| event.decision == first.decision);
    if apart || !is_one || matches!(first.aggregate, Aggregate::Player(_)) {
        let what = format!("two decisions in one commit, {} and {}", first.type_name(), last.type_name());
        found.push(Violation::new(Rule::Committed, events.iter().map(|event| event.seq), what).of(&first.aggregate));
    }
}
