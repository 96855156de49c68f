//! What is in the cluster, kept in memory by watching it: of each pod and secret only what is needed.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::anyhow;
use futures::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, ResourceExt,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, utils::Backoff, watcher},
};
use time::OffsetDateTime;

use super::{
    manifest,
    pod_status::{self, PodStatus},
};
use crate::backend::{Exit, Name, Unavailable};

/// The longest pause before a watch is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// For how long after an error that was not the first what is known is taken for stale: longer than a pause.
const STALE: Duration = Duration::from_secs(10);

/// The most pods of a page of a list.
const PAGE: u32 = 500;

/// For how long a pod that is gone is remembered, so that its end is judged. What is not by then, as the log cannot be
/// reached, is met by its session's deadline.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The pods and secrets of Garage. Clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Pods(Arc<Mutex<Index>>);

#[derive(Debug, Default)]
struct Index {
    pods: HashMap<Name, ObservedPod>,
    /// Pods that were there, and are no more, and that nobody has removed here.
    gone: HashMap<Name, Gone>,
    secrets: HashMap<Name, OffsetDateTime>,
    pods_watched: Watched,
    secrets_watched: Watched,
}

/// A pod, as far as it is of interest.
#[derive(Debug, Clone)]
pub(super) struct ObservedPod {
    pub(super) created: OffsetDateTime,
    pub(super) pod_status: PodStatus,
}

#[derive(Debug)]
struct Gone {
    since: Instant,
    created: OffsetDateTime,
    exit: Exit,
}

/// How a watch goes.
#[derive(Debug, Default)]
struct Watched {
    listed: bool,
    /// Errors since the last good news, the last one's text, and when it came.
    errors: u32,
    error: Option<(String, Instant)>,
}

impl Watched {
    fn failed(&mut self, error: &watcher::Error) {
        let text = error.to_string();
        if self.errors == 0 {
            tracing::warn!("the watch was interrupted; going on: {text}");
        }
        self.errors += 1;
        self.error = Some((text, Instant::now()));
    }

    fn check(&self) -> Result<(), Unavailable> {
        match &self.error {
            // One error is a connection that was cut; the watch goes on from there.
            Some((text, at)) if !self.listed || (self.errors > 1 && at.elapsed() < STALE) => {
                Err(Unavailable(anyhow!("the cluster cannot be watched: {text}")))
            }
            _ if !self.listed => Err(Unavailable(anyhow!("the cluster has not been looked through yet"))),
            _ => Ok(()),
        }
    }
}

impl Pods {
    fn known(&self) -> MutexGuard<'_, Index> {
        // Each change is whole: a panic of another holder leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the cluster. What fails is tried again.
    pub(super) async fn watch(self, pods: Api<Pod>, secrets: Api<PartialObjectMeta<Secret>>) -> anyhow::Result<()> {
        let (label, value) = manifest::MANAGED_BY;
        let ours = || watcher::Config::default().labels(&format!("{label}={value}")).page_size(PAGE);
        let pods = self.clone().follow_pods(watcher(pods, ours()).backoff(Pauses::default()));
        let secrets = self.follow_secrets(watcher(secrets, ours()).backoff(Pauses::default()));
        tokio::select! {
            () = pods => Err(anyhow!("the watch of pods ended")),
            () = secrets => Err(anyhow!("the watch of secrets ended")),
        }
    }

    async fn follow_pods(self, events: impl Stream<Item = watcher::Result<watcher::Event<Pod>>>) {
        pin_mut!(events);
        let mut listing = HashMap::new();
        while let Some(event) = events.next().await {
            let mut known = self.known();
            match event {
                Ok(event) => {
                    known.pods_watched.errors = 0;
                    known.pod(event, &mut listing);
                }
                Err(error) => known.pods_watched.failed(&error),
            }
        }
    }

    async fn follow_secrets(
        self,
        events: impl Stream<Item = watcher::Result<watcher::Event<PartialObjectMeta<Secret>>>>,
    ) {
        pin_mut!(events);
        let mut listing = HashMap::new();
        let entry = |secret: &PartialObjectMeta<Secret>| {
            let created = pod_status::time(secret.metadata.creation_timestamp.as_ref());
            manifest::instance(&secret.metadata).map(|name| (name, created))
        };
        while let Some(event) = events.next().await {
            let mut known = self.known();
            if event.is_ok() {
                known.secrets_watched.errors = 0;
            }
            match event {
                Ok(watcher::Event::Init) => listing.clear(),
                Ok(watcher::Event::InitApply(secret)) => listing.extend(entry(&secret)),
                Ok(watcher::Event::InitDone) => {
                    known.secrets = std::mem::take(&mut listing);
                    known.secrets_watched.listed = true;
                }
                Ok(watcher::Event::Apply(secret)) => known.secrets.extend(entry(&secret)),
                Ok(watcher::Event::Delete(secret)) => {
                    if let Some((name, _)) = entry(&secret) {
                        known.secrets.remove(&name);
                    }
                }
                Err(error) => known.secrets_watched.failed(&error),
            }
        }
    }

    /// Every pod that is there; those that are there no more, with how they ended; and secrets that no pod has.
    ///
    /// # Errors
    /// [`Unavailable`] when it is not known.
    pub(super) fn list(&self) -> Result<Snapshot, Unavailable> {
        let mut known = self.known();
        known.gone.retain(|_, gone| gone.since.elapsed() < REMEMBERED);
        known.pods_watched.check()?;
        known.secrets_watched.check()?;
        let alone =
            known.secrets.iter().filter(|(name, _)| !known.pods.contains_key(name) && !known.gone.contains_key(name));
        Ok(Snapshot {
            pods: known.pods.iter().map(|(name, seen)| (*name, seen.clone())).collect(),
            gone: known.gone.iter().map(|(name, gone)| (*name, gone.created, gone.exit.clone())).collect(),
            secrets: alone.map(|(name, created)| (*name, *created)).collect(),
        })
    }

    /// An instance was removed here: that it is gone is no news.
    pub(super) fn removed(&self, name: Name) {
        self.known().gone.remove(&name);
    }
}

/// What is known of the cluster.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) pods: Vec<(Name, ObservedPod)>,
    pub(super) gone: Vec<(Name, OffsetDateTime, Exit)>,
    pub(super) secrets: Vec<(Name, OffsetDateTime)>,
}

impl Index {
    fn pod(&mut self, event: watcher::Event<Pod>, listing: &mut HashMap<Name, ObservedPod>) {
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(pod) => listing.extend(entry(&pod)),
            watcher::Event::InitDone => {
                let before = std::mem::replace(&mut self.pods, std::mem::take(listing));
                for (name, seen) in before {
                    if !self.pods.contains_key(&name) {
                        self.record_end(name, seen.created, seen.pod_status, pod_status::removed(&Default::default()));
                    }
                }
                self.pods_watched.listed = true;
            }
            watcher::Event::Apply(pod) => {
                if let Some((name, seen)) = entry(&pod) {
                    self.gone.remove(&name);
                    self.pods.insert(name, seen);
                } else if let Ok(name) = pod.name_any().parse() {
                    // Somebody took its labels: it is Garage's no more.
                    self.pods.remove(&name);
                }
            }
            watcher::Event::Delete(pod) => {
                if let Some((name, ObservedPod { created, pod_status })) = entry(&pod)
                    && self.pods.remove(&name).is_some()
                {
                    self.record_end(name, created, pod_status, pod_status::removed(&pod.status.unwrap_or_default()));
                }
            }
        }
    }

    fn record_end(&mut self, name: Name, created: OffsetDateTime, pod_status: PodStatus, removed: Exit) {
        let exit = match pod_status {
            PodStatus::Over(exit) => exit,
            PodStatus::Waiting(_) | PodStatus::Bound(_) => removed,
        };
        self.gone.insert(name, Gone { since: Instant::now(), created, exit });
    }
}

fn entry(pod: &Pod) -> Option<(Name, ObservedPod)> {
    let created = pod_status::time(pod.metadata.creation_timestamp.as_ref());
    manifest::instance(&pod.metadata).map(|name| (name, ObservedPod { created, pod_status: pod_status::of(pod) }))
}

/// The pauses between tries: each twice the one before.
#[derive(Debug, Default)]
struct Pauses(u32);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = Duration::from_millis(200 << self.0.min(10));
        self.0 += 1;
        Some(pause.min(PAUSE))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = 0;
    }
}
