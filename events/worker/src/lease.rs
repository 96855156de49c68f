//! Leases: they elect one of several instances of a worker for a job (see [`garage_events::lease`]).
//!
//! The holder renews its entry by compare-and-set. Another instance takes the lease over, also by compare-and-set,
//! when it has seen the same revision for `TAKEOVER_AFTER` by its own monotonic clock. The holder stops relying on the
//! lease `SAFETY_MARGIN` earlier. In addition, the holder counts from before it sent its last renewal, and the other
//! instances count from after that renewal was stored. So two instances rely on the lease at the same time only if a
//! process or a clock was paused, and only for as long as the pause.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    Context,
    context::PublishErrorKind,
    message::PublishMessage,
    stream::{LastRawMessageErrorKind, Stream},
};
use futures::future::join_all;
use garage_events::{
    crash::Point,
    deadline::changed,
    env::{Env, System},
    jetstream::publish,
    lease::{self, LeaseEntry},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{Health, Shutdown, runtime::keep_trying};

/// How long an entry must be unchanged before another instance takes the lease over. The time is short, so that an
/// instance that restarts after a crash does not wait longer than it takes to read a snapshot.
const TAKEOVER_AFTER: Duration = Duration::from_millis(1_700);

/// The longest time that nobody holds a lease after its holder was killed or paused, at worst just after a renewal.
/// Another instance sees the renewal at its next check and waits from then on. The rest is for the server's answers.
const MAX_VACANT: Duration = Duration::from_secs(2);
const _: () = assert!(CHECK_INTERVAL.as_millis() + TAKEOVER_AFTER.as_millis() < MAX_VACANT.as_millis());

/// How much earlier the holder considers the lease lost. Clock drift of 0.1 % needs far less; the rest lets the holder
/// finish what it has just started.
const SAFETY_MARGIN: Duration = Duration::from_millis(300);

/// How long the holder relies on a renewal. Also the time-out of each request to the server.
const VALIDITY: Duration = TAKEOVER_AFTER.saturating_sub(SAFETY_MARGIN);

/// Interval between renewals. The holder keeps the lease even if one renewal is lost.
const RENEW_INTERVAL: Duration = Duration::from_millis(500);

/// How often an instance checks a lease that it does not hold. After a clean shutdown of the holder, nobody holds the
/// lease for this long.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// The leases that this instance holds. Dropping it releases all of them.
#[derive(Debug)]
pub struct Leases {
    /// The time until which each lease is considered held.
    held: watch::Receiver<BTreeMap<String, Instant>>,
    candidate: watch::Sender<bool>,
    end: Shutdown,
}

impl Leases {
    /// Starts to acquire free leases. Before this call, the instance only observes them. It can then take over at once
    /// if the holder has stopped meanwhile.
    pub fn compete(&self) {
        self.candidate.send_replace(true);
    }

    /// Whether this instance holds the lease right now.
    pub fn holds(&self, name: &str) -> bool {
        self.held.borrow().get(name).is_some_and(|until| Instant::now() < *until)
    }

    /// Waits until a lease is acquired, or lost to another instance. A lease that expires because it could not be
    /// renewed causes no notification.
    pub async fn changed(&mut self) {
        if changed(&mut self.held, &self.end).await.is_err() {
            // The task of `keep` has ended, so nothing changes any more.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// Acquires and renews the leases with these names; `point` is the crash point of each write. The returned task does the
/// work until the [`Leases`] are dropped.
pub fn keep(
    context: Context,
    names: Vec<String>,
    point: Point,
    health: Health,
) -> (Leases, impl Future<Output = anyhow::Result<()>>) {
    let (held, seen) = watch::channel(BTreeMap::new());
    let (candidate, competes) = watch::channel(false);
    let end = Shutdown::new();
    let leases = Leases { held: seen, candidate, end: end.clone() };
    let instance = instance_name();
    tracing::info!(lease.holder = instance, "this instance holds leases under this name");
    let keeping = async move {
        let bucket = keep_trying("the leases", || context.get_stream_no_info(lease::STREAM));
        let Some(bucket) = end.run_until_cancelled(bucket).await else { return Ok(()) };
        let keeper = |name| Keeper {
            context: &context,
            bucket: &bucket,
            instance: &instance,
            name,
            point,
            held: &held,
            health: &health,
        };
        let keepers: Vec<_> = names.into_iter().map(keeper).collect();
        join_all(keepers.iter().map(|keeper| keeper.keep(competes.clone(), &end))).await;
        Ok(())
    };
    (leases, keeping)
}

/// A name that is unique, and that lets operators find the process: `host/process id/UUID`.
fn instance_name() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}/{}", host.trim(), std::process::id(), System.id())
}

/// Why writing an entry failed.
enum WriteError {
    /// Another instance has written a newer revision.
    Conflict,
    /// The outcome is unknown: the entry may have been written.
    Unknown(String),
}

/// Acquires and renews one lease.
struct Keeper<'a> {
    context: &'a Context,
    bucket: &'a Stream<()>,
    /// The name of this instance.
    instance: &'a str,
    /// The name of the lease.
    name: String,
    point: Point,
    held: &'a watch::Sender<BTreeMap<String, Instant>>,
    health: &'a Health,
}

impl Keeper<'_> {
    async fn keep(&self, mut competes: watch::Receiver<bool>, end: &Shutdown) {
        // The current revision and when it was first seen. An entry that has never existed has no such time, and counts
        // as expired.
        let mut seen: (u64, Option<Instant>) = (0, None);
        while !end.is_cancelled() {
            let mut next_check = CHECK_INTERVAL;
            match self.read().await {
                Ok((revision, holder)) => {
                    if seen.0 != revision {
                        seen = (revision, Some(Instant::now()));
                    }
                    let ours = holder.as_deref() == Some(self.instance);
                    // A missing entry (revision 0) does not count as released: it may have been deleted while the lease
                    // was held.
                    let released = revision > 0 && holder.is_none();
                    let left = seen.1.map_or(Duration::ZERO, |since| TAKEOVER_AFTER.saturating_sub(since.elapsed()));
                    let expired = left.is_zero();
                    if !expired {
                        // Check again when the lease expires, and not only after another interval.
                        next_check = CHECK_INTERVAL.min(left);
                    }
                    self.report(holder.as_deref());
                    if (ours || released || expired) && *competes.borrow() {
                        self.hold(revision, end).await;
                    }
                }
                Err(reason) => {
                    tracing::warn!(lease = self.name, reason, "cannot read the lease");
                    self.report(None);
                }
            }
            tokio::select! {
                () = end.cancelled() => {}
                () = sleep(next_check) => {}
                // This instance has just become ready: take a free lease at once.
                Ok(()) = changed(&mut competes, end) => {}
            }
        }
    }

    /// Acquires the lease if its entry still has this revision, and renews it until that fails or `end` is cancelled.
    async fn hold(&self, mut revision: u64, end: &Shutdown) {
        loop {
            let sent = Instant::now();
            match self.write(revision, Some(self.instance)).await {
                Ok(stored) => {
                    revision = stored;
                    self.mark_held(sent);
                }
                Err(WriteError::Conflict) => return self.mark_lost(),
                // Whether it was stored does not matter yet: this instance still holds the lease until the validity of
                // the last renewal ends.
                Err(WriteError::Unknown(reason)) => {
                    return tracing::warn!(lease = self.name, reason, "lease not renewed");
                }
            }
            tokio::select! {
                () = sleep(RENEW_INTERVAL) => {}
                () = end.cancelled() => {
                    self.mark_lost();
                    if let Err(WriteError::Unknown(reason)) = self.write(revision, None).await {
                        tracing::warn!(lease = self.name, reason, "lease not released; it will expire");
                    }
                    return;
                }
            }
        }
    }

    fn mark_held(&self, sent: Instant) {
        let acquired = self.held.send_if_modified(|held| {
            held.insert(self.name.clone(), sent + VALIDITY).is_none_or(|until| until <= Instant::now())
        });
        if acquired {
            tracing::info!(lease = self.name, "lease acquired");
        }
        self.report(Some(self.instance));
    }

    fn mark_lost(&self) {
        if self.held.send_if_modified(|held| held.remove(&self.name).is_some()) {
            tracing::info!(lease = self.name, "lease no longer held");
        }
        self.report(None);
    }

    /// Reports the holder in /readyz and as a metric. This instance counts as the holder only while its last renewal is
    /// valid, whatever the entry says.
    fn report(&self, entry: Option<&str>) {
        let here = self.held.borrow().get(&self.name).is_some_and(|until| Instant::now() < *until);
        metrics::gauge!("garage_lease_held", "lease" => self.name.clone()).set(f64::from(u8::from(here)));
        let text = match entry.filter(|holder| *holder != self.instance) {
            _ if here => "held by this instance".into(),
            Some(holder) => format!("held by {holder}"),
            None => "no known holder".into(),
        };
        self.health.note(format!("lease {}", self.name), text);
    }

    /// Reads the entry's revision (0 if there is no entry) and its holder, from the leader of the bucket's stream.
    async fn read(&self) -> Result<(u64, Option<String>), String> {
        let subject = lease::subject(&self.name);
        match timeout(VALIDITY, self.bucket.get_last_raw_message_by_subject(&subject)).await {
            Ok(Ok(message)) => {
                // An entry that was deleted with a KV client has no body.
                let entry = serde_json::from_slice(&message.payload).unwrap_or(LeaseEntry { holder: None });
                Ok((message.sequence, entry.holder))
            }
            Ok(Err(error)) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((0, None)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }

    /// Writes the entry if it still has the `expected` revision, and returns the new revision.
    async fn write(&self, expected: u64, holder: Option<&str>) -> Result<u64, WriteError> {
        let unknown = |error: &dyn std::fmt::Display| WriteError::Unknown(error.to_string());
        let entry = LeaseEntry { holder: holder.map(Into::into) };
        let body = serde_json::to_vec(&entry).map_err(|error| unknown(&error))?;
        let message = PublishMessage::build().payload(body.into()).expected_last_subject_sequence(expected);
        let sent = publish(self.context, self.point, lease::subject(&self.name), message);
        match timeout(VALIDITY, sent).await {
            Ok(Ok(ack)) => Ok(ack.sequence),
            Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => Err(WriteError::Conflict),
            Ok(Err(error)) => Err(unknown(&error)),
            Err(_) => Err(unknown(&"no answer")),
        }
    }
}
