//! The implementations of the log, and access to their raw messages.

use std::future::Future;

use async_nats::jetstream::message::StreamMessage;
use garage_events::{
    env::Simulated,
    event::Envelope,
    jetstream::{JetStreamLog, follow},
    log::Log,
    sim::{self, SimLog},
    subject::STREAM,
};
use time::OffsetDateTime;

use crate::servers::{self, Access};

/// Opens handles to one log.
pub(crate) trait Fixture: Sync {
    type Log: Raw;

    /// Opens a new handle, like another process.
    fn open(&self) -> impl Future<Output = Self::Log> + Send;
}

/// A log with access to its raw messages.
pub(crate) trait Raw: Log {
    type Follow: Follow;

    /// The first message with at least this sequence that the filter selects.
    fn raw(&self, filter: &str, from: u64) -> impl Future<Output = Option<Stored>> + Send;

    /// The sequence of the last message that the filter selects.
    fn end(&self, filter: &str) -> impl Future<Output = u64> + Send;

    /// Starts a continuous, ordered read.
    fn follow(&self, filters: Vec<String>, from: u64) -> Self::Follow;
}

/// A continuous, ordered read.
pub(crate) trait Follow: Send {
    /// The sequence, subject and envelope of the next message.
    fn next(&mut self) -> impl Future<Output = (u64, String, Envelope)> + Send;
}

/// A stored message.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) seq: u64,
    pub(crate) time: OffsetDateTime,
    pub(crate) subject: String,
    pub(crate) envelope: Envelope,
    pub(crate) body: Vec<u8>,
    /// The commit that the message belongs to; `None` if it was committed alone.
    pub(crate) commit: Option<String>,
}

/// All messages that the filter selects.
pub(crate) async fn all<L: Raw>(log: &L, filter: &str) -> Vec<Stored> {
    range(log, filter, 1, u64::MAX).await
}

/// The messages that the filter selects with sequences `from` to `to`, inclusive.
pub(crate) async fn range<L: Raw>(log: &L, filter: &str, from: u64, to: u64) -> Vec<Stored> {
    let mut found = Vec::new();
    let mut from = from;
    while let Some(stored) = log.raw(filter, from).await.filter(|stored| stored.seq <= to) {
        from = stored.seq + 1;
        found.push(stored);
    }
    found
}

/// The log in memory.
pub(crate) struct Sim(SimLog<Simulated>);

impl Sim {
    pub(crate) fn new() -> Self {
        Self(SimLog::new(Simulated::at(OffsetDateTime::UNIX_EPOCH + time::Duration::days(20_000))))
    }
}

impl Fixture for Sim {
    type Log = SimLog<Simulated>;

    async fn open(&self) -> SimLog<Simulated> {
        self.0.clone()
    }
}

impl Raw for SimLog<Simulated> {
    type Follow = sim::Follow;

    async fn raw(&self, filter: &str, from: u64) -> Option<Stored> {
        self.next(filter, from).unwrap().map(|message| Stored {
            seq: message.seq,
            time: message.time,
            envelope: Envelope::from_slice(&message.body).unwrap(),
            subject: message.subject,
            body: message.body.to_vec(),
            commit: Some(message.commit.to_string()),
        })
    }

    async fn end(&self, filter: &str) -> u64 {
        self.last_sequence(filter).unwrap()
    }

    fn follow(&self, filters: Vec<String>, from: u64) -> sim::Follow {
        Self::follow(self, filters, from)
    }
}

impl Follow for sim::Follow {
    async fn next(&mut self) -> (u64, String, Envelope) {
        let message = Self::next(self).await;
        (message.seq, message.subject, Envelope::from_slice(&message.body).unwrap())
    }
}

/// The log on JetStream. Each handle has its own connection, to the next node in turn.
pub(crate) struct JetStream {
    access: &'static Access,
    opened: std::sync::atomic::AtomicUsize,
}

impl JetStream {
    /// Uses the nodes that several cases share.
    pub(crate) async fn shared(nodes: usize) -> Self {
        Self { access: servers::shared(nodes).await, opened: 0.into() }
    }
}

impl Fixture for JetStream {
    type Log = JetStreamLog;

    async fn open(&self) -> JetStreamLog {
        let node = self.opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.access.log(node).await
    }
}

impl Raw for JetStreamLog {
    type Follow = follow::Follow;

    async fn raw(&self, filter: &str, from: u64) -> Option<Stored> {
        self.next(filter, from).await.unwrap().map(stored)
    }

    async fn end(&self, filter: &str) -> u64 {
        self.last_sequence(filter).await.unwrap()
    }

    fn follow(&self, filters: Vec<String>, from: u64) -> follow::Follow {
        follow::Follow::new(self.context().clone(), STREAM, filters, from)
    }
}

fn stored(message: StreamMessage) -> Stored {
    Stored {
        seq: message.sequence,
        time: message.time,
        subject: message.subject.to_string(),
        envelope: Envelope::from_slice(&message.payload).unwrap(),
        body: message.payload.to_vec(),
        commit: message.headers.get("Nats-Batch-Id").map(|id| id.to_string()),
    }
}

impl Follow for follow::Follow {
    async fn next(&mut self) -> (u64, String, Envelope) {
        let message = Self::next(self).await;
        (message.seq, message.subject, Envelope::from_slice(&message.body).unwrap())
    }
}
