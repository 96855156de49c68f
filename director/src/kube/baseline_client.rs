//! A client that sends only the three requests of an instance: `garage bench director` measures the cluster's own limit
//! with it.

use std::collections::HashSet;

use anyhow::{Context, bail};
use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    core::PartialObjectMeta,
    runtime::{WatchStreamExt, watcher},
};
use serde_json::json;

use super::{
    cluster::Cluster,
    manifest,
    refusal::{Refusal, request},
    template::PodSettings,
};
use crate::{backend::Order, config};

/// The value of the managed-by label, instead of Garage's own, so that no director touches these instances.
const MANAGED_BY: &str = "garage-bench";

/// Creates instances without a director.
#[derive(Clone)]
pub struct BaselineClient {
    cluster: Cluster,
    secrets: Api<Secret>,
    secret_metadata: Api<PartialObjectMeta<Secret>>,
    pods: Api<Pod>,
    settings: PodSettings,
}

impl BaselineClient {
    /// Uses the same image, pull policy and pod template as a director with this configuration.
    ///
    /// # Errors
    /// When the pod template cannot be used.
    pub fn new(cluster: &Cluster, config: &config::Kube, games: &config::Process) -> anyhow::Result<Self> {
        let cluster = cluster.clone().with_owner(MANAGED_BY);
        let settings = PodSettings::load(config, games)?;
        Ok(Self {
            secrets: cluster.secrets(),
            secret_metadata: cluster.secret_metadata(),
            pods: cluster.pods(),
            cluster,
            settings,
        })
    }

    /// The cluster, restricted to the instances of this client.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Creates one instance: the secret, the pod, and the pod as the secret's owner.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn create(&self, order: &Order) -> anyhow::Result<()> {
        let name = order.name().to_string();
        let post = PostParams::default();
        let mut secret = manifest::secret(order)?;
        let mut pod = manifest::pod(&order.into(), &[], 900, &self.settings)?;
        for labels in [secret.labels_mut(), pod.labels_mut()] {
            labels.insert(manifest::MANAGED_BY.0.into(), MANAGED_BY.into());
        }
        let refused = |refusal: Refusal| refusal.unavailable("create an instance").0;
        request(self.secrets.create(&post, &secret)).await.map_err(refused)?;
        let pod = request(self.pods.create(&post, &pod)).await.map_err(refused)?;
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod.uid()});
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        request(self.secret_metadata.patch(&name, &PatchParams::default(), &patch)).await.map_err(refused)?;
        Ok(())
    }
}

/// Watches new pods appear.
pub struct PodArrivals(BoxStream<'static, watcher::Result<watcher::Event<PartialObjectMeta<Pod>>>>);

impl PodArrivals {
    /// Starts to watch a cluster that has no pods yet.
    ///
    /// # Errors
    /// When the watch fails.
    pub async fn watch(cluster: &Cluster) -> anyhow::Result<Self> {
        let events = watcher(cluster.pod_metadata(), watcher::Config::default().labels(&cluster.selector()));
        let mut events = events.default_backoff().boxed();
        while let Some(event) = events.next().await {
            if matches!(event?, watcher::Event::InitDone) {
                break;
            }
        }
        Ok(Self(events))
    }

    /// Waits until `count` pods have appeared.
    ///
    /// # Errors
    /// When the watch is interrupted, because pods may have appeared meanwhile.
    pub async fn wait_for(&mut self, count: usize) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        while seen.len() < count {
            match self.0.next().await {
                Some(Ok(watcher::Event::Apply(pod))) => drop(seen.insert(pod.name_any())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("cannot watch the pods"),
                None => bail!("the watch of pods ended"),
            }
        }
        Ok(())
    }
}
