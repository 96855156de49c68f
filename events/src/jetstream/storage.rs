//! Whether the log stores what is appended, as this process knows it.
//!
//! The committer reports the outcomes of its commits here, and the worker runtime reports the size of the stream. The
//! workers tell each other what they find: a worker that appends nothing cannot find it out by itself.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::Instant;

/// The subject on which workers tell each other about a [`Trouble`]. The message is not stored.
pub const TROUBLE: &str = "svc.log.trouble";

/// From this share of its size on, in percent, the log is nearly full: the gateway refuses new tickets. The rest of the
/// room is for what must still happen, such as results and cancelled tickets.
pub const NEARLY_FULL: u64 = 95;

/// How many commits in a row must be lost, and for how long, before the log counts as not storing. A commit is lost if
/// the server does not confirm it, but answers that it is not stored. Two commits can be lost when the leader changes,
/// and a slow election can take longer than eight seconds.
const LOST_COMMITS: u32 = 3;
const LOST_FOR: time::Duration = time::Duration::seconds(8);

/// How long the message of another worker counts. It repeats its message more often than that.
const HEARD_FOR: Duration = Duration::from_secs(10);

/// Why the log stores nothing. The times say since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Trouble {
    /// It holds as many bytes as it may.
    Full {
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
    },
    /// nats-server answers reads, but stores nothing, although the stream has room. It had a write error, such as a
    /// full disk, and keeps the error until it is restarted.
    NotStoring {
        #[serde(with = "time::serde::rfc3339")]
        since: OffsetDateTime,
    },
}

impl Trouble {
    /// The label of the metric.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Full { .. } => "full",
            Self::NotStoring { .. } => "not-storing",
        }
    }

    /// Since when the log stores nothing.
    pub const fn since(self) -> OffsetDateTime {
        match self {
            Self::Full { since } | Self::NotStoring { since } => since,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.since().replace_nanosecond(0).unwrap_or(self.since());
        let since = since.format(&Rfc3339).unwrap_or_else(|_| since.to_string());
        match self {
            Self::Full { .. } => write!(
                f,
                "full since {since}; it stores events again when old ones expire, or when you give the stream GARAGE \
                 more room"
            ),
            Self::NotStoring { .. } => write!(
                f,
                "not storing since {since}: nats-server answers reads, but stores no event, although the stream has \
                 room; its disk is or was full, so make room on the disk and then restart this nats-server"
            ),
        }
    }
}

/// Clones share the knowledge.
#[derive(Debug, Clone, Default)]
pub struct Storage(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    full_since: Option<OffsetDateTime>,
    /// When an append was last refused, because the log was full.
    refused: Option<Instant>,
    lost: Option<Lost>,
    /// What another worker said last, and when.
    heard: Option<(Trouble, Instant)>,
    /// When this process last stored something.
    stored: Option<Instant>,
    /// The share of its size that the log uses, in percent.
    used: u64,
}

/// The commits that were lost since the last one that was stored.
#[derive(Debug, Clone, Copy)]
struct Lost {
    /// When the first of them was sent.
    since: OffsetDateTime,
    count: u32,
    /// Whether they are enough for [`Trouble::NotStoring`].
    certain: bool,
    /// The number of the connection. A restarted server has lost its write error, and the connection to it.
    connection: u64,
    /// The log's last sequence when it was measured first after the loss. If it grows, another worker could append.
    last_sequence: Option<u64>,
}

impl Storage {
    /// What this process knows by itself.
    pub fn own_trouble(&self) -> Option<Trouble> {
        self.known().own_trouble()
    }

    /// What this process knows by itself, or else what another worker said in the last seconds.
    pub fn trouble(&self) -> Option<Trouble> {
        let known = self.known();
        let stored_since = |heard: Instant| known.stored.is_some_and(|stored| stored + HEARD_FOR > heard);
        let heard = known.heard.filter(|(_, at)| at.elapsed() < HEARD_FOR && !stored_since(*at));
        known.own_trouble().or(heard.map(|(trouble, _)| trouble))
    }

    /// The share of its size that the log used when it was last measured, in percent.
    pub fn used(&self) -> u64 {
        self.known().used
    }

    /// Whether new tickets may be appended: the log is neither full nor nearly full.
    pub fn has_room_for_tickets(&self) -> bool {
        self.used() < NEARLY_FULL && !matches!(self.trouble(), Some(Trouble::Full { .. }))
    }

    /// What operators should know: the trouble, or that the log is nearly full.
    pub fn remark(&self) -> Option<String> {
        let (trouble, used) = (self.trouble(), self.used());
        let nearly = || format!("{used} % full; from {NEARLY_FULL} % on, new tickets are refused");
        trouble.map(|trouble| trouble.to_string()).or_else(|| (used >= NEARLY_FULL).then(nearly))
    }

    /// The size of the stream, its limit if it has one, and its last sequence. `connection` is the number of the current
    /// connection.
    pub fn measured(&self, bytes: u64, limit: Option<u64>, last_sequence: u64, connection: u64) {
        let mut known = self.known();
        let before = known.used;
        known.used = limit.filter(|limit| *limit > 0).map_or(0, |limit| bytes.saturating_mul(100) / limit);
        // The server or the account can be full while the stream is far below its own limit.
        let recently_refused = known.refused.is_some_and(|at| at.elapsed() < HEARD_FOR);
        if known.used < NEARLY_FULL && (before >= NEARLY_FULL || !recently_refused) {
            known.full_since = None;
        }
        let lost = known.lost.filter(|lost| lost.connection == connection);
        let lost = lost.map(|lost| Lost { last_sequence: lost.last_sequence.or(Some(last_sequence)), ..lost });
        known.lost = lost.filter(|lost| lost.last_sequence == Some(last_sequence));
    }

    /// Another worker has said this.
    pub fn heard(&self, trouble: Trouble) {
        self.known().heard = Some((trouble, Instant::now()));
    }

    /// A commit was stored.
    pub(super) fn stored(&self) {
        let mut known = self.known();
        (known.full_since, known.lost, known.stored) = (None, None, Some(Instant::now()));
    }

    /// A commit was refused, because the log is full.
    pub(super) fn refused(&self, at: OffsetDateTime) {
        let mut known = self.known();
        known.lost = None;
        known.full_since.get_or_insert(at);
        known.refused = Some(Instant::now());
    }

    /// A commit that was sent at `sent` on this connection was lost. `now` is the time at which the server said so.
    pub(super) fn lost(&self, sent: OffsetDateTime, now: OffsetDateTime, connection: u64) {
        let mut known = self.known();
        let first = Lost { since: sent, count: 0, certain: false, connection, last_sequence: None };
        let mut lost = known.lost.filter(|lost| lost.connection == connection).unwrap_or(first);
        lost.count = lost.count.saturating_add(1);
        lost.certain |= lost.count >= LOST_COMMITS && now - lost.since >= LOST_FOR;
        known.lost = Some(lost);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // A panic under the lock cannot leave it half changed: nothing in between can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn own_trouble(&self) -> Option<Trouble> {
        let lost = self.lost.filter(|lost| lost.certain).map(|lost| Trouble::NotStoring { since: lost.since });
        lost.or(self.full_since.map(|since| Trouble::Full { since }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + time::Duration::seconds(seconds)
    }

    #[test]
    fn the_log_is_not_storing_after_three_lost_commits_and_eight_seconds_on_one_connection() {
        let storage = Storage::default();
        storage.lost(at(0), at(5), 1);
        assert_eq!(storage.own_trouble(), None, "one lost commit");
        storage.lost(at(5), at(10), 1);
        assert_eq!(storage.own_trouble(), None, "two lost commits, as in a slow election");
        storage.lost(at(10), at(15), 1);
        assert_eq!(storage.own_trouble(), Some(Trouble::NotStoring { since: at(0) }));
        storage.measured(1, Some(100), 7, 1);
        assert!(storage.own_trouble().is_some(), "a restart is needed, and the connection is the same");
        storage.measured(1, Some(100), 7, 2);
        assert_eq!(storage.own_trouble(), None, "the server was restarted");
        for sent in [0, 2, 4] {
            storage.lost(at(sent), at(sent + 2), 2);
            assert_eq!(storage.own_trouble(), None, "too early");
        }
        storage.lost(at(6), at(8), 2);
        storage.measured(1, Some(100), 7, 2);
        assert!(storage.own_trouble().is_some());
        storage.measured(1, Some(100), 8, 2);
        assert_eq!(storage.own_trouble(), None, "another worker has stored something");
        storage.lost(at(20), at(25), 2);
        storage.stored();
        storage.lost(at(30), at(35), 2);
        assert_eq!(storage.own_trouble(), None, "something was stored in between");
    }

    #[test]
    fn a_full_log_is_full_since_the_first_refusal_until_it_stores_or_has_shrunk() {
        let storage = Storage::default();
        storage.measured(99, Some(100), 7, 1);
        assert_eq!((storage.trouble(), storage.has_room_for_tickets()), (None, false));
        assert_eq!(storage.remark().as_deref(), Some("99 % full; from 95 % on, new tickets are refused"));
        storage.refused(at(1));
        storage.refused(at(2));
        assert_eq!(storage.trouble(), Some(Trouble::Full { since: at(1) }));
        storage.stored();
        assert_eq!(storage.trouble(), None);
        storage.refused(at(3));
        storage.measured(95, Some(100), 7, 1);
        assert_eq!(storage.trouble(), Some(Trouble::Full { since: at(3) }));
        storage.measured(94, Some(100), 7, 1);
        assert_eq!((storage.trouble(), storage.has_room_for_tickets()), (None, true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_on_a_full_server_is_full_for_ten_seconds_after_a_refusal() {
        let storage = Storage::default();
        storage.measured(10, Some(100), 7, 1);
        storage.refused(at(1));
        storage.measured(10, Some(100), 7, 1);
        assert_eq!((storage.trouble(), storage.has_room_for_tickets()), (Some(Trouble::Full { since: at(1) }), false));
        tokio::time::advance(HEARD_FOR).await;
        storage.measured(10, Some(100), 7, 1);
        assert_eq!((storage.trouble(), storage.has_room_for_tickets()), (None, true), "the next append finds out");
    }

    #[tokio::test(start_paused = true)]
    async fn what_another_worker_says_counts_for_ten_seconds_unless_this_one_stores() {
        let (storage, full) = (Storage::default(), Trouble::Full { since: at(1) });
        storage.heard(full);
        assert_eq!((storage.own_trouble(), storage.trouble()), (None, Some(full)));
        tokio::time::advance(HEARD_FOR).await;
        assert_eq!(storage.trouble(), None);
        storage.heard(full);
        storage.stored();
        assert_eq!(storage.trouble(), None);
    }

    #[test]
    fn the_text_names_the_time_and_the_cure() {
        let full = Trouble::Full { since: at(1) }.to_string();
        assert!(full.starts_with("full since 1970-01-01T00:00:01Z; ") && full.contains("more room"), "{full}");
        let stuck = Trouble::NotStoring { since: at(1) }.to_string();
        assert!(stuck.starts_with("not storing since 1970-01-01T00:00:01Z: ") && stuck.contains("restart"), "{stuck}");
    }
}
