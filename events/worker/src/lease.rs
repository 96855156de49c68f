//! Leases: of several instances of a worker, one at a time does a thing (see [`garage_events::lease`]).
//!
//! The holder renews his entry by compare-and-set. Another instance takes it over, by compare-and-set too, once it has
//! seen the same revision for `LENGTH` by its own monotonic clock. The holder stops believing that he holds it
//! `MARGIN` before that: he counts from before he sent his last renewal, the others from after it was stored. So two
//! believe it at the same time only where a process or a clock was stopped, and then for as long as that.

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
    env::{Env, System},
    jetstream::publish,
    lease::{self, Tenure},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{Health, Shutdown, runtime::keep_trying};

/// How long an entry must have stood still before another instance takes it over: as long as nobody leads after a
/// crash. A restart that follows one is not to wait for longer than it takes to read a snapshot.
const LENGTH: Duration = Duration::from_secs(2);

/// How much earlier its holder gives it up for lost. Clocks that run apart by a thousandth need far less; the rest is
/// for what he has just begun.
const MARGIN: Duration = Duration::from_millis(400);

/// How long a renewal is good for; also how long the server has to answer.
const BELIEF: Duration = LENGTH.saturating_sub(MARGIN);

/// Between two renewals: one may be lost.
const RENEW: Duration = Duration::from_millis(500);

/// Between two looks at what another holds: how long nobody leads after a clean end.
const LOOK: Duration = Duration::from_millis(200);

/// What an instance holds. Dropping it gives everything back.
#[derive(Debug)]
pub struct Leases {
    /// Until when each of them is believed to be held.
    held: watch::Receiver<BTreeMap<String, Instant>>,
    candidate: watch::Sender<bool>,
    _end: tokio_util::sync::DropGuard,
}

impl Leases {
    /// From now on what is free is taken. Before, an instance that is not ready yet only watches, so that it loses no
    /// time should the holder be gone.
    pub fn compete(&self) {
        self.candidate.send_replace(true);
    }

    /// Whether this instance holds a lease.
    pub fn holds(&self, name: &str) -> bool {
        self.held.borrow().get(name).is_some_and(|until| Instant::now() < *until)
    }

    /// Waits until one was taken, or lost to another. One that could not be renewed runs out without a sign.
    pub async fn changed(&mut self) {
        if self.held.changed().await.is_err() {
            // Nobody keeps them any more, and nothing will change.
            std::future::pending::<()>().await;
        }
    }
}

/// Begins to keep leases; the task that is returned does it until the [`Leases`] are dropped.
pub fn keep(
    context: Context,
    names: Vec<String>,
    health: Health,
) -> (Leases, impl Future<Output = anyhow::Result<()>>) {
    let (held, seen) = watch::channel(BTreeMap::new());
    let (candidate, competes) = watch::channel(false);
    let end = Shutdown::new();
    let leases = Leases { held: seen, candidate, _end: end.clone().drop_guard() };
    let me = me();
    tracing::info!(lease.holder = me, "this instance's name");
    let keeping = async move {
        let bucket = keep_trying("the leases", || context.get_stream_no_info(lease::STREAM));
        let Some(bucket) = end.run_until_cancelled(bucket).await else { return Ok(()) };
        let keeper = |name| Keeper { context: &context, bucket: &bucket, me: &me, name, held: &held, health: &health };
        let keepers: Vec<_> = names.into_iter().map(keeper).collect();
        join_all(keepers.iter().map(|keeper| keeper.keep(competes.clone(), &end))).await;
        Ok(())
    };
    (leases, keeping)
}

/// This instance, as no other is called, and as people find it.
fn me() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}/{}", host.trim(), std::process::id(), System.id())
}

/// Why an entry was not written.
enum NotPut {
    /// Somebody else has written it.
    Moved,
    /// It is unknown whether it was written.
    Unknown(String),
}

/// Who keeps one lease.
struct Keeper<'a> {
    context: &'a Context,
    bucket: &'a Stream<()>,
    me: &'a str,
    name: String,
    held: &'a watch::Sender<BTreeMap<String, Instant>>,
    health: &'a Health,
}

impl Keeper<'_> {
    async fn keep(&self, mut competes: watch::Receiver<bool>, end: &Shutdown) {
        // The revision that stands there, and since when it was seen to; of an entry that never was, since ever.
        let mut seen: (u64, Option<Instant>) = (0, None);
        while !end.is_cancelled() {
            match self.look().await {
                Ok((revision, holder)) => {
                    if seen.0 != revision {
                        seen = (revision, Some(Instant::now()));
                    }
                    let ours = holder.as_deref() == Some(self.me);
                    // One that is there no more was not given back: somebody removed it while it was held, perhaps.
                    let given_back = revision > 0 && holder.is_none();
                    let stands_still = seen.1.is_none_or(|since| since.elapsed() >= LENGTH);
                    self.tell(holder.as_deref());
                    if (ours || given_back || stands_still) && *competes.borrow() {
                        self.hold(revision, end).await;
                    }
                }
                Err(reason) => {
                    tracing::warn!(lease = self.name, reason, "lease cannot be read");
                    self.tell(None);
                }
            }
            tokio::select! {
                () = end.cancelled() => {}
                () = sleep(LOOK) => {}
                // Taken at once by who was not ready before.
                Ok(()) = competes.changed() => {}
            }
        }
    }

    /// Takes the lease in the place of a revision, and renews it for as long as that goes well.
    async fn hold(&self, mut revision: u64, end: &Shutdown) {
        loop {
            let sent = Instant::now();
            match self.put(revision, Some(self.me)).await {
                Ok(stored) => {
                    revision = stored;
                    self.believe(sent);
                }
                Err(NotPut::Moved) => return self.lose(),
                // It was stored, or not; until the last renewal runs out it does not matter.
                Err(NotPut::Unknown(reason)) => {
                    return tracing::warn!(lease = self.name, reason, "lease not renewed");
                }
            }
            tokio::select! {
                () = sleep(RENEW) => {}
                () = end.cancelled() => {
                    self.lose();
                    if let Err(NotPut::Unknown(reason)) = self.put(revision, None).await {
                        tracing::warn!(lease = self.name, reason, "lease not given back; it will run out");
                    }
                    return;
                }
            }
        }
    }

    fn believe(&self, sent: Instant) {
        let anew = self.held.send_if_modified(|held| {
            held.insert(self.name.clone(), sent + BELIEF).is_none_or(|until| until <= Instant::now())
        });
        if anew {
            tracing::info!(lease = self.name, "lease taken");
        }
        self.tell(Some(self.me));
    }

    fn lose(&self) {
        if self.held.send_if_modified(|held| held.remove(&self.name).is_some()) {
            tracing::info!(lease = self.name, "lease no longer held");
        }
        self.tell(None);
    }

    /// Tells operators who holds it: this instance, whatever the entry says, only while it believes so.
    fn tell(&self, entry: Option<&str>) {
        let here = self.held.borrow().get(&self.name).is_some_and(|until| Instant::now() < *until);
        metrics::gauge!("garage_lease_held", "lease" => self.name.clone()).set(f64::from(u8::from(here)));
        let text = match entry.filter(|holder| *holder != self.me) {
            _ if here => "held here".into(),
            Some(holder) => format!("held by {holder}"),
            None => "held by nobody that is known".into(),
        };
        self.health.note(format!("lease {}", self.name), text);
    }

    /// The entry's revision, 0 when there is none, and who holds it; told by the bucket's leader.
    async fn look(&self) -> Result<(u64, Option<String>), String> {
        let subject = lease::subject(&self.name);
        match timeout(BELIEF, self.bucket.get_last_raw_message_by_subject(&subject)).await {
            Ok(Ok(message)) => {
                // One that was deleted with a KV client has no body.
                let tenure = serde_json::from_slice(&message.payload).unwrap_or(Tenure { holder: None });
                Ok((message.sequence, tenure.holder))
            }
            Ok(Err(error)) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok((0, None)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }

    async fn put(&self, expected: u64, holder: Option<&str>) -> Result<u64, NotPut> {
        let unknown = |error: &dyn std::fmt::Display| NotPut::Unknown(error.to_string());
        let tenure = Tenure { holder: holder.map(Into::into) };
        let body = serde_json::to_vec(&tenure).map_err(|error| unknown(&error))?;
        let message = PublishMessage::build().payload(body.into()).expected_last_subject_sequence(expected);
        let sent = publish(self.context, Point::LeaseKept, lease::subject(&self.name), message);
        match timeout(BELIEF, sent).await {
            Ok(Ok(ack)) => Ok(ack.sequence),
            Ok(Err(error)) if error.kind() == PublishErrorKind::WrongLastSequence => Err(NotPut::Moved),
            Ok(Err(error)) => Err(unknown(&error)),
            Err(_) => Err(unknown(&"no answer")),
        }
    }
}
