//! The log in memory, for tests. It follows the same rules as the log on JetStream, and passes the same contract tests
//! (`tests/contract`).
//!
//! Like the real log, it commits decisions that are appended at the same time together, and checks the expected
//! sequence of each aggregate. Its timestamps come from its [`Env`]. It does not limit how many decisions on one
//! aggregate wait ([`AppendError::Busy`]), because it does not know which decisions come from the same process.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_nats::HeaderMap;
use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use time::OffsetDateTime;
use tokio::sync::{Notify, oneshot};

use crate::{
    env::Env,
    event::{Event, Recorded},
    id::{PartyId, PlayerId, SessionId},
    inventory,
    jetstream::{follow, written},
    log::{
        Append, AppendError, Decision, Load, Party, Player, ReadError, Session,
        encode::{Change, Encoded, take},
    },
    subject::Aggregate,
};

/// The faults to inject, each as a percentage of calls. They are the faults of a real cluster of three nodes when one
/// of them dies. By default there are none. There is no fault that reports a conflict without a cause, because the real
/// log does not do that.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Appends that are stored, but return [`AppendError::Unavailable`].
    pub lost_answers: u32,
    /// Appends that are not stored, and return [`AppendError::Unavailable`].
    pub lost_appends: u32,
    /// Reads that fail with [`ReadError::Unavailable`].
    pub lost_reads: u32,
    /// Reads that are answered by a node that has just lost the leadership. The last events are missing, and the answer
    /// may end in the middle of a commit.
    pub stale_reads: u32,
    /// Not a percentage: the last sequence for which that node was the leader. A stale read includes at least this one.
    pub led_until: u64,
    /// Conflicts for which the server does not say which aggregate has changed, so that the error may name another
    /// aggregate of the decision.
    pub unnamed_conflicts: u32,
    /// Ordered reads whose next message is delayed, possibly in the middle of a commit.
    pub late_messages: u32,
}

/// The maximum number of messages that are missing in a stale read.
const MAX_STALE: u64 = 16;

/// A message of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Sequence in the log, from 1 without gaps.
    pub seq: u64,
    /// When it was stored, by the clock of the log's [`Env`].
    pub time: OffsetDateTime,
    pub subject: String,
    /// The same headers as in the real log, except the batch headers: see [`batches`].
    pub headers: HeaderMap,
    /// An [`Envelope`](crate::event::Envelope).
    pub body: Bytes,
    /// The number of the commit with this message, from 1.
    pub commit: u64,
}

/// Converts messages to the form in which a reader of the real log gets them, with the batch headers of each commit.
pub fn batches(messages: &[Message]) -> impl Iterator<Item = follow::Message> {
    messages.chunk_by(|one, next| one.commit == next.commit).flat_map(|commit| {
        (1..).zip(commit).map(|(number, message)| {
            let mut headers = message.headers.clone();
            if commit.len() > 1 {
                headers.insert(written::BATCH, message.commit.to_string().as_str());
                headers.insert(written::BATCH_NUMBER, number.to_string().as_str());
                if number == commit.len() {
                    headers.insert(written::BATCH_COMMIT, "1");
                }
            }
            let Message { seq, time, subject, body, .. } = message.clone();
            follow::Message { seq, time, subject, headers: Some(headers), body, pending: 0 }
        })
    })
}

/// The log in memory. All clones share the same log, like the connections of several processes to one server.
#[derive(Debug, Clone)]
pub struct SimLog<W> {
    env: W,
    state: Arc<Mutex<State>>,
    /// The sequence of the last message. Readers wait for it to change.
    /// Wakes the readers after an append.
    appended: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    messages: Vec<Message>,
    /// The sequences of each aggregate's messages, by its filter.
    aggregates: HashMap<Arc<str>, Vec<u64>>,
    commits: u64,
    waiting: Vec<Submission>,
    faults: Faults,
    rng: StdRng,
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
    /// Creates an empty log without faults.
    pub fn new(env: W) -> Self {
        let state = State {
            messages: Vec::new(),
            aggregates: HashMap::new(),
            commits: 0,
            waiting: Vec::new(),
            faults: Faults::default(),
            rng: StdRng::seed_from_u64(0),
        };
        Self { env, state: Arc::new(Mutex::new(state)), appended: Arc::default() }
    }

    /// Injects these faults from now on. The same seed gives the same sequence of faults.
    pub fn set_faults(&self, faults: Faults, seed: u64) {
        let mut state = self.state();
        state.faults = faults;
        state.rng = StdRng::seed_from_u64(seed);
    }

    /// The sequence of the last message that a filter selects; 0 if there is none.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub fn last_sequence(&self, filter: &str) -> Result<u64, ReadError> {
        let (state, end) = self.readable()?;
        let known = state.messages.iter().rev().skip_while(|message| message.seq > end);
        Ok(known.into_iter().find(|message| selects(filter, &message.subject)).map_or(0, |last| last.seq))
    }

    /// The first message with at least this sequence that a filter selects.
    ///
    /// # Errors
    /// [`ReadError::Unavailable`]
    pub fn next(&self, filter: &str, from: u64) -> Result<Option<Message>, ReadError> {
        let (state, end) = self.readable()?;
        let known = state.from(from).take_while(|message| message.seq <= end);
        Ok(known.into_iter().find(|message| selects(filter, &message.subject)).cloned())
    }

    /// All messages that a filter selects, without faults, for checks at the end of a test.
    pub fn messages(&self, filter: &str) -> Vec<Message> {
        self.state().messages.iter().filter(|message| selects(filter, &message.subject)).cloned().collect()
    }

    /// Reads the messages that one of the filters selects, in order, from a sequence on; 1 is the beginning.
    pub fn follow(&self, filters: Vec<String>, from: u64) -> Follow {
        Follow { state: Arc::clone(&self.state), appended: Arc::clone(&self.appended), filters, next: from.max(1) }
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

    /// The log, and the last sequence that is known to the node that answers this read.
    fn readable(&self) -> Result<(MutexGuard<'_, State>, u64), ReadError> {
        let mut state = self.state();
        let Faults { lost_reads, stale_reads, .. } = state.faults;
        if state.draw(lost_reads) {
            return Err(ReadError::Unavailable("the read was lost".into()));
        }
        let mut end = state.end();
        if state.draw(stale_reads) {
            let known = state.faults.led_until.min(end);
            end = end.saturating_sub(state.rng.random_range(1..=MAX_STALE)).max(known);
        }
        Ok((state, end))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Commits all waiting decisions, in as many commits as necessary.
    fn commit(&self) {
        let mut state = self.state();
        let mut waiting = std::mem::take(&mut state.waiting);
        while !waiting.is_empty() {
            let group = take(&mut waiting, &HashSet::new());
            state.commit(group, self.env.now());
        }
        drop(state);
        self.appended.notify_waiters();
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

    /// The last sequence of an aggregate, as the server sees it within a commit that begins after the sequence
    /// `before`. Among the messages of the commit itself, the server sees messages with the same subject, but not
    /// messages that only match the same filter. So if a commit holds two decisions on one session, the server stores
    /// both. The committer must prevent this.
    fn head(&self, change: &Change, before: u64) -> u64 {
        let mut known = self.of(&change.filter).iter().rev();
        let literal = change.aggregate.has_one_subject();
        known.find(|seq| literal || **seq <= before).copied().unwrap_or_default()
    }

    /// Draws whether a fault with this percentage occurs.
    fn draw(&mut self, percent: u32) -> bool {
        percent > 0 && self.rng.random_range(0..100) < percent
    }

    /// Performs one commit: decisions with a conflict fail, and the others are stored.
    fn commit(&mut self, group: Vec<Submission>, now: OffsetDateTime) {
        self.commits += 1;
        let before = self.end();
        for Submission { decision, reply } in group {
            // If the caller no longer waits, nobody needs the answer. The events stay stored.
            let _ = reply.send(self.store(&decision, before, now));
        }
    }

    /// Stores a decision, as a part of the commit that begins after the sequence `before`.
    fn store(&mut self, decision: &Encoded, before: u64, now: OffsetDateTime) -> Result<Vec<u64>, AppendError> {
        let lost = || AppendError::Unavailable("the answer was lost".into());
        if self.draw(self.faults.lost_appends) {
            return Err(lost());
        }
        if let Some(changed) = decision.changes.iter().find(|change| self.head(change, before) != change.head.seq) {
            let named = if self.draw(self.faults.unnamed_conflicts) { decision.likely_conflict() } else { None };
            return Err(AppendError::Conflict(named.unwrap_or(&changed.aggregate).clone()));
        }
        let first = self.end() + 1;
        for ((change, message), seq) in decision.messages().zip(first..) {
            let (subject, body) = (message.subject.clone(), message.body.clone());
            let headers = written::headers(message.type_name, change.head.seq, &change.filter);
            self.messages.push(Message { seq, time: now, subject, headers, body, commit: self.commits });
            self.aggregates.entry(Arc::clone(&change.filter)).or_default().push(seq);
        }
        if self.draw(self.faults.lost_answers) { Err(lost()) } else { Ok((first..=self.end()).collect()) }
    }
}

/// Whether a filter selects a subject. As on the server, `*` matches one token, and `>` at the end one or more.
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
    // A poisoned lock is still consistent: no method panics between two changes.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W: Env> Load for SimLog<W> {
    async fn player(&self, id: &PlayerId) -> Result<Player, ReadError> {
        Ok(Player::of(self.last(&Aggregate::Player(id.clone()))?))
    }

    async fn party(&self, id: PartyId) -> Result<Party, ReadError> {
        Ok(Party::of(self.last(&Aggregate::Party(id))?))
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
        // Let other tasks submit at the same time. The first one that continues commits for all.
        tokio::task::yield_now().await;
        if outcome.is_empty() {
            self.commit();
        }
        outcome.try_recv().unwrap_or_else(|_| Err(AppendError::Unavailable("the log has stopped".into())))
    }
}

/// A continuous, ordered read; see [`SimLog::follow`].
#[derive(Debug)]
pub struct Follow {
    state: Arc<Mutex<State>>,
    appended: Arc<Notify>,
    filters: Vec<String>,
    next: u64,
}

impl Follow {
    /// Waits for the next message, however long it takes. Dropping the future does not lose a message.
    pub async fn next(&mut self) -> Message {
        let notify = Arc::clone(&self.appended);
        loop {
            // Created before the check, so that no append is missed.
            let appended = notify.notified();
            if self.late() {
                tokio::task::yield_now().await;
                continue;
            }
            if let Some(message) = self.stored() {
                return message;
            }
            appended.await;
        }
    }

    fn late(&self) -> bool {
        let mut state = lock(&self.state);
        let late = state.faults.late_messages;
        state.draw(late)
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
    use crate::{env::Simulated, log::Head, player, session};

    /// Puts two decisions on one aggregate in one commit, which the committer would prevent. Returns how many are
    /// stored.
    fn commit_two_decisions<E: crate::event::Event>(aggregate: &Aggregate, event: &E) -> usize {
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
    fn two_decisions_in_one_commit_conflict_only_if_they_share_a_subject() {
        let session = Aggregate::Session(SessionId::new(uuid::Uuid::nil()));
        assert_eq!(commit_two_decisions(&session, &session::Event::from(session::Failed { reason: "x".into() })), 2);
        let player = Aggregate::Player("anna".parse().unwrap());
        let (ticket, session) = (crate::id::TicketId::new(uuid::Uuid::nil()), SessionId::new(uuid::Uuid::nil()));
        let released =
            player::Released { ticket, session, why: player::Ending::Failed, reason: None, absences: 0, party: None };
        assert_eq!(commit_two_decisions(&player, &player::Event::from(released)), 1);
    }
}
