//! A cache of the cluster's pods and secrets, kept up to date by watches. It holds only the fields that the director
//! needs.

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

/// The longest pause before a watch is retried.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// How long the cache counts as out of date after a repeated error. Longer than [`MAX_PAUSE`], so that it stays out of
/// date until the next retry.
const STALE: Duration = Duration::from_secs(10);

/// The maximum number of objects in one page of a list.
const PAGE: u32 = 500;

/// How long a deleted pod is remembered, so that the watch can handle its exit. If the log is unavailable for longer,
/// the session's timer fails the attempt.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Garage's pods and secrets in one namespace. Clones share one cache.
#[derive(Debug, Clone, Default)]
pub(super) struct PodCache(Arc<Mutex<Index>>);

#[derive(Debug, Default)]
struct Index {
    pods: HashMap<Name, ObservedPod>,
    /// Pods that disappeared and that this director did not delete.
    deleted: HashMap<Name, DeletedPod>,
    /// The secrets, each with the time of its creation.
    secrets: HashMap<Name, OffsetDateTime>,
    pod_watch: WatchState,
    secret_watch: WatchState,
}

/// The part of a pod that the director needs.
#[derive(Debug, Clone)]
pub(super) struct ObservedPod {
    pub(super) created: OffsetDateTime,
    pub(super) pod_status: PodStatus,
}

impl ObservedPod {
    /// The node that it is on, unless it has ended.
    pub(super) fn node(&self) -> Option<&str> {
        match &self.pod_status {
            PodStatus::Bound(node) => Some(node),
            PodStatus::Waiting(_) | PodStatus::Over(_) => None,
        }
    }

    pub(super) fn is_on(&self, node: &str) -> bool {
        self.node() == Some(node)
    }
}

#[derive(Debug)]
struct DeletedPod {
    /// When this director learned of the deletion.
    since: Instant,
    created: OffsetDateTime,
    exit: Exit,
}

/// Whether a watch works.
#[derive(Debug, Default)]
struct WatchState {
    /// Whether a full list was ever received.
    listed: bool,
    /// The number of errors since the last event.
    errors: u32,
    /// The text of the last error, and when it occurred.
    error: Option<(String, Instant)>,
}

impl WatchState {
    fn failed(&mut self, error: &watcher::Error) {
        let text = error.to_string();
        if self.errors == 0 {
            tracing::warn!("the watch of the cluster was interrupted; retrying: {text}");
        }
        self.errors += 1;
        self.error = Some((text, Instant::now()));
    }

    fn check(&self) -> Result<(), Unavailable> {
        match &self.error {
            // A single error is an interrupted connection. The watch continues where it stopped.
            Some((text, at)) if !self.listed || (self.errors > 1 && at.elapsed() < STALE) => {
                Err(Unavailable(anyhow!("cannot watch the cluster: {text}")))
            }
            _ if !self.listed => Err(Unavailable(anyhow!("the cluster's pods and secrets are not listed yet"))),
            _ => Ok(()),
        }
    }
}

impl PodCache {
    fn index(&self) -> MutexGuard<'_, Index> {
        // Nothing panics halfway through a change, so the index is consistent even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the cluster. Failed requests are retried.
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
            let mut index = self.index();
            match event {
                Ok(event) => {
                    index.pod_watch.errors = 0;
                    index.apply_pod(event, &mut listing);
                }
                Err(error) => index.pod_watch.failed(&error),
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
            let mut index = self.index();
            if event.is_ok() {
                index.secret_watch.errors = 0;
            }
            match event {
                Ok(watcher::Event::Init) => listing.clear(),
                Ok(watcher::Event::InitApply(secret)) => listing.extend(entry(&secret)),
                Ok(watcher::Event::InitDone) => {
                    index.secrets = std::mem::take(&mut listing);
                    index.secret_watch.listed = true;
                }
                Ok(watcher::Event::Apply(secret)) => index.secrets.extend(entry(&secret)),
                Ok(watcher::Event::Delete(secret)) => {
                    if let Some((name, _)) = entry(&secret) {
                        index.secrets.remove(&name);
                    }
                }
                Err(error) => index.secret_watch.failed(&error),
            }
        }
    }

    /// Returns the pods that exist, the pods that disappeared, and the secrets without a pod.
    ///
    /// # Errors
    /// [`Unavailable`] when the cache is empty or out of date.
    pub(super) fn snapshot(&self) -> Result<Snapshot, Unavailable> {
        let mut index = self.index();
        index.deleted.retain(|_, deleted| deleted.since.elapsed() < REMEMBERED);
        index.pod_watch.check()?;
        index.secret_watch.check()?;
        let without_pod = index
            .secrets
            .iter()
            .filter(|(name, _)| !index.pods.contains_key(name) && !index.deleted.contains_key(name));
        Ok(Snapshot {
            pods: index.pods.clone(),
            deleted: index.deleted.iter().map(|(name, pod)| (*name, pod.created, pod.exit.clone())).collect(),
            secrets: without_pod.map(|(name, created)| (*name, *created)).collect(),
        })
    }

    /// Forgets a deleted pod, because this director deleted it itself.
    pub(super) fn forget_deleted(&self, name: Name) {
        self.index().deleted.remove(&name);
    }
}

/// The content of the cache at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) pods: HashMap<Name, ObservedPod>,
    /// Pods that disappeared, each with the time of its creation and how it ended.
    pub(super) deleted: Vec<(Name, OffsetDateTime, Exit)>,
    /// Secrets without a pod, each with the time of its creation.
    pub(super) secrets: Vec<(Name, OffsetDateTime)>,
}

impl Index {
    fn apply_pod(&mut self, event: watcher::Event<Pod>, listing: &mut HashMap<Name, ObservedPod>) {
        match event {
            watcher::Event::Init => listing.clear(),
            watcher::Event::InitApply(pod) => listing.extend(entry(&pod)),
            watcher::Event::InitDone => {
                let before = std::mem::replace(&mut self.pods, std::mem::take(listing));
                for (name, pod) in before {
                    if !self.pods.contains_key(&name) {
                        self.record_end(name, pod.created, pod.pod_status, pod_status::removed(&Default::default()));
                    }
                }
                self.pod_watch.listed = true;
            }
            watcher::Event::Apply(pod) => {
                if let Some((name, observed)) = entry(&pod) {
                    self.deleted.remove(&name);
                    self.pods.insert(name, observed);
                } else if let Ok(name) = pod.name_any().parse() {
                    // Somebody removed its labels, so the pod does not belong to Garage any more.
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
        self.deleted.insert(name, DeletedPod { since: Instant::now(), created, exit });
    }
}

fn entry(pod: &Pod) -> Option<(Name, ObservedPod)> {
    let created = pod_status::time(pod.metadata.creation_timestamp.as_ref());
    manifest::instance(&pod.metadata).map(|name| (name, ObservedPod { created, pod_status: pod_status::of(pod) }))
}

/// The pauses between retries. Each is twice as long as the one before, up to [`MAX_PAUSE`].
#[derive(Debug, Default)]
struct Pauses(u32);

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = Duration::from_millis(200 << self.0.min(10));
        self.0 += 1;
        Some(pause.min(MAX_PAUSE))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = 0;
    }
}
