//! The log in memory, under the rules of the one on JetStream and the same contract (`tests/contract`).
//!
//! It commits as that one does: decisions of the same instant share commits, and each expects its aggregates' heads. It
//! keeps no time of its own; its timestamps are its world's.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use time::OffsetDateTime;
use tokio::sync::{oneshot, watch};

use crate::{
    env::Env,
    event::{Event, Recorded},
    id::{PlayerId, SessionId},
    inventory,
    log::{
        Append, AppendError, Decision, Head, Load, Player, ReadError, Session,
        encode::{Change, Encoded, take},
    },
    player,
    subject::Aggregate,
};

/// What may go wrong, as three real nodes show it when one of them dies: how many of a hundred calls it hits. By
/// default nothing does. There is no conflict without a cause among them: the real log never tells of one either.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Appends that are stored, and whose submitter hears [`AppendError::Unavailable`].
    pub lost_answers: u32,
    /// Appends that are not stored, and whose submitter hears the same.
    pub lost_appends: u32,
    /// Reads that end with [`ReadError::Unavailable`].
    pub lost_reads: u32,
    /// Reads that are answered by a node that led until lately: without the last events, and perhaps with a part of a
    /// commit.
    pub stale_reads: u32,
    /// What such a node knows at least: the sequence up to which it led.
    pub led_until: u64,
    /// Refusals that do not say which aggregate has moved, so that the conflict may name another of the decision.
    pub unnamed_conflicts: u32,
    /// Ordered reads whose next message comes later than it could, perhaps in the midst of a commit.
    pub late_messages: u32,
}

/// The most messages that a stale read lacks.
const STALE: u64 = 16;

/// A message of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its sequence, from 1 without a hole.
    pub seq: u64,
    /// The world's time when it was stored.
    pub time: OffsetDateTime,
    /// Its subject.
    pub subject: String,
    /// Its body, an [`Envelope`](crate::event::Envelope).
    pub body: Bytes,
    /// Which commit it came with, counted from 1.
    pub commit: u64,
}

/// The log in memory. Clones are one log, as are the connections of several processes to one server.
#[derive(Debug, Clone)]
pub struct SimLog<W> {
    env: W,
    state: Arc<Mutex<State>>,
    /// The sequence of the last message, for those who wait for the next.
    end: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    messages: Vec<Message>,
    /// The sequences of each aggregate's messages, by its filter.
    aggregates: HashMap<Arc<str>, Vec<u64>>,
    commits: u64,
    waiting: Vec<Submission>,
    faults: Faults,
    dice: StdRng,
}

#[derive(Debug)]
struct Submission {
    decision: Encoded,
    reply: oneshot::Sender<Result<Vec<u64>, AppendError>>,
}

impl AsRef<Encoded> for Submission {
    fn as_ref(&self) -> &Encoded {
        &self.decision
    }
}

impl<W: Env> SimLog<W> {
    /// An empty log without faults.
    pub fn new(env: W) -> Self {
        let state = State {
            messages: Vec::new(),
            aggregates: HashMap::new(),
            commits: 0,
            waiting: Vec::new(),
            faults: Faults::default(),
            dice: StdRng::seed_from_u64(0),
        };
        Self { env, state: Arc::new(Mutex::new(state)), end: watch::Sender::new(0) }
    }

    /// From now on these faults, drawn from the seed.
    pub fn set_faults(&self, faults: Faults, seed: u64) {
        let mut state = self.state();
        state.faults = faults;
        state.dice = StdRng::seed_from_u64(seed);
    }

    /// Sequence of the last message that a filter selects; 0 when there is none.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub fn last_sequence(&self, filter: &str) -> Result<u64, ReadError> {
        let (state, end) = self.readable()?;
        let known = state.messages.iter().rev().skip_while(|message| message.seq > end);
        Ok(known.into_iter().find(|message| selects(filter, &message.subject)).map_or(0, |last| last.seq))
    }

    /// The first message from a sequence on that a filter selects.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub fn next(&self, filter: &str, from: u64) -> Result<Option<Message>, ReadError> {
        let (state, end) = self.readable()?;
        let known = state.from(from).take_while(|message| message.seq <= end);
        Ok(known.into_iter().find(|message| selects(filter, &message.subject)).cloned())
    }

    /// All messages that a filter selects, whatever the faults: for who judges what happened.
    pub fn messages(&self, filter: &str) -> Vec<Message> {
        self.state().messages.iter().filter(|message| selects(filter, &message.subject)).cloned().collect()
    }

    /// Reads the messages that one of the filters selects, in order, from a sequence on (1 is the beginning).
    pub fn follow(&self, filters: Vec<String>, from: u64) -> Follow {
        Follow { state: Arc::clone(&self.state), end: self.end.subscribe(), filters, next: from.max(1) }
    }

    fn history<E: Event>(&self, aggregate: &Aggregate) -> Result<Vec<Recorded<E>>, ReadError> {
        let (state, end) = self.readable()?;
        let known = state.of(&aggregate.filter()).iter().filter(|seq| **seq <= end);
        known.filter_map(|seq| state.from(*seq).next()).map(decode).collect()
    }

    fn last<E: Event>(&self, aggregate: &Aggregate) -> Result<Option<Recorded<E>>, ReadError> {
        let (state, end) = self.readable()?;
        let last = state.of(&aggregate.filter()).iter().rev().find(|seq| **seq <= end);
        last.and_then(|seq| state.from(*seq).next()).map(decode).transpose()
    }

    /// The log, and up to where whoever answers a read knows it.
    fn readable(&self) -> Result<(MutexGuard<'_, State>, u64), ReadError> {
        let mut state = self.state();
        let Faults { lost_reads, stale_reads, .. } = state.faults;
        if state.hit(lost_reads) {
            return Err(ReadError::Unavailable("the read was lost".into()));
        }
        let mut end = state.end();
        if state.hit(stale_reads) {
            let known = state.faults.led_until.min(end);
            end = end.saturating_sub(state.dice.random_range(1..=STALE)).max(known);
        }
        Ok((state, end))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Commits all that waits, in as many commits as it takes.
    fn commit(&self) {
        let mut state = self.state();
        let mut waiting = std::mem::take(&mut state.waiting);
        while !waiting.is_empty() {
            let group = take(&mut waiting, &HashSet::new());
            state.commit(group, self.env.now());
        }
        let end = state.end();
        drop(state);
        self.end.send_replace(end);
    }
}

impl State {
    fn end(&self) -> u64 {
        self.messages.last().map_or(0, |message| message.seq)
    }

    fn from(&self, seq: u64) -> impl Iterator<Item = &Message> {
        let before = usize::try_from(seq.saturating_sub(1)).unwrap_or(usize::MAX);
        self.messages.get(before..).unwrap_or_default().iter()
    }

    fn of(&self, aggregate: &str) -> &[u64] {
        self.aggregates.get(aggregate).map(Vec::as_slice).unwrap_or_default()
    }

    /// The last sequence of an aggregate, as the server sees it within a commit: of the commit's own messages it knows
    /// those that share a subject, but not those that share no more than a filter. So it accepts two decisions on one
    /// session in a commit, and both are stored; who commits has to keep them apart.
    fn head(&self, change: &Change, before: u64) -> u64 {
        let mut known = self.of(&change.filter).iter().rev();
        let literal = matches!(change.aggregate, Aggregate::Player(_));
        known.find(|seq| literal || **seq <= before).copied().unwrap_or_default()
    }

    fn hit(&mut self, percent: u32) -> bool {
        percent > 0 && self.dice.random_range(0..100) < percent
    }

    /// One commit: the decisions of which an aggregate has moved go back, the others are stored.
    fn commit(&mut self, group: Vec<Submission>, now: OffsetDateTime) {
        self.commits += 1;
        let before = self.end();
        for Submission { decision, reply } in group {
            // Who no longer waits for the answer has gone; the events stay.
            let _ = reply.send(self.store(&decision, before, now));
        }
    }

    /// Stores a decision, which shares a commit with all that is stored after `before`.
    fn store(&mut self, decision: &Encoded, before: u64, now: OffsetDateTime) -> Result<Vec<u64>, AppendError> {
        let lost = || AppendError::Unavailable("the answer was lost".into());
        if self.hit(self.faults.lost_appends) {
            return Err(lost());
        }
        if let Some(moved) = decision.changes.iter().find(|change| self.head(change, before) != change.head.seq) {
            let named = if self.hit(self.faults.unnamed_conflicts) { decision.suspect() } else { None };
            return Err(AppendError::Conflict(named.unwrap_or(&moved.aggregate).clone()));
        }
        let first = self.end() + 1;
        for ((change, message), seq) in decision.messages().zip(first..) {
            let (subject, body) = (message.subject.clone(), message.body.clone());
            self.messages.push(Message { seq, time: now, subject, body, commit: self.commits });
            self.aggregates.entry(Arc::clone(&change.filter)).or_default().push(seq);
        }
        if self.hit(self.faults.lost_answers) { Err(lost()) } else { Ok((first..=self.end()).collect()) }
    }
}

/// As the server matches: `*` is one token, `>` at the end is one or more.
fn selects(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in filter.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

fn decode<E: Event>(message: &Message) -> Result<Recorded<E>, ReadError> {
    let seq = message.seq;
    Recorded::decode(seq, message.time, &message.body).map_err(|source| ReadError::Unreadable { seq, source })
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // A panic of another holder leaves nothing half done: no method panics between two changes.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Env> Load for SimLog<W> {
    async fn player(&self, id: &PlayerId) -> Result<Player, ReadError> {
        let Some(last) = self.last::<player::Event>(&Aggregate::Player(id.clone()))? else {
            return Ok(Player::default());
        };
        let (state, head) = (player::State::evolve(&last.event), Head { seq: last.seq, n: last.n });
        Ok(Player { state, head, last: Some(last) })
    }

    async fn session(&self, id: SessionId) -> Result<Session, ReadError> {
        Ok(Session::of(self.history(&Aggregate::Session(id))?))
    }

    async fn inventory(&self, id: &PlayerId) -> Result<Option<Recorded<inventory::Event>>, ReadError> {
        self.last(&Aggregate::Inventory(id.clone()))
    }
}

impl<W: Env> Append for SimLog<W> {
    async fn append(&self, decision: Decision) -> Result<Vec<u64>, AppendError> {
        let (reply, mut outcome) = oneshot::channel();
        self.state().waiting.push(Submission { decision: Encoded::new(decision)?, reply });
        // Lets the others of this instant submit too; who comes back first commits for all.
        tokio::task::yield_now().await;
        if outcome.is_empty() {
            self.commit();
        }
        outcome.try_recv().unwrap_or_else(|_| Err(AppendError::Unavailable("the log has stopped".into())))
    }
}

/// An ordered read, see [`SimLog::follow`].
#[derive(Debug)]
pub struct Follow {
    state: Arc<Mutex<State>>,
    end: watch::Receiver<u64>,
    filters: Vec<String>,
    next: u64,
}

impl Follow {
    /// The next message; waits for it as long as it takes. Dropping the wait loses nothing.
    pub async fn next(&mut self) -> Message {
        loop {
            self.end.mark_unchanged();
            if self.late() {
                tokio::task::yield_now().await;
                continue;
            }
            if let Some(message) = self.stored() {
                return message;
            }
            if self.end.changed().await.is_err() {
                // No log is left that could bring one.
                std::future::pending::<()>().await;
            }
        }
    }

    fn late(&self) -> bool {
        let mut state = lock(&self.state);
        let late = state.faults.late_messages;
        state.hit(late)
    }

    fn stored(&mut self) -> Option<Message> {
        let state = lock(&self.state);
        let wanted = |message: &&Message| self.filters.iter().any(|filter| selects(filter, &message.subject));
        let message = state.from(self.next).find(wanted).cloned();
        self.next = message.as_ref().map_or(state.end(), |message| message.seq) + 1;
        message
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::{env::Simulated, session};

    /// Stores two decisions on one aggregate as if nobody had kept them out of one commit; how many are stored.
    fn together<E: crate::event::Event>(aggregate: &Aggregate, event: &E) -> usize {
        let env = Simulated::at(datetime!(2026-01-01 00:00 UTC));
        let log = SimLog::new(env.clone());
        let submission = || {
            let decision = Decision::new(&env, env.id(), None);
            let decision = decision.change(&env, aggregate.clone(), Head::default(), [event.clone()]);
            Submission { decision: Encoded::new(decision).unwrap(), reply: oneshot::channel().0 }
        };
        log.state().commit(vec![submission(), submission()], env.now());
        log.state().messages.len()
    }

    #[test]
    fn two_decisions_in_one_commit_pass_unless_they_share_a_subject_as_on_the_server() {
        let session = Aggregate::Session(SessionId::new(uuid::Uuid::nil()));
        assert_eq!(together(&session, &session::Event::from(session::Failed { reason: "x".into() })), 2);
        let player = Aggregate::Player("anna".parse().unwrap());
        let (ticket, session) = (crate::id::TicketId::new(uuid::Uuid::nil()), SessionId::new(uuid::Uuid::nil()));
        let released = player::Released { ticket, session, why: player::Ending::Failed };
        assert_eq!(together(&player, &player::Event::from(released)), 1);
    }
}
