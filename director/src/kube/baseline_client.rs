//! What a cluster can do by itself: the three requests of an instance, from a client that asks for nothing else.

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

use super::{Refusal, ask, cluster::Cluster, manifest, template};
use crate::{backend::Order, config};

/// In the place of Garage's own label, so that no director takes these instances for its own.
const MANAGED_BY: &str = "garage-bench";

/// Makes instances without a director.
#[derive(Clone)]
pub struct BaselineClient {
    cluster: Cluster,
    secrets: Api<Secret>,
    labels: Api<PartialObjectMeta<Secret>>,
    pods: Api<Pod>,
    terms: manifest::Terms,
}

impl BaselineClient {
    /// On the terms of a director of this configuration.
    ///
    /// # Errors
    /// When what is said of pods cannot be used.
    pub fn new(cluster: &Cluster, config: &config::Kube) -> anyhow::Result<Self> {
        let cluster = cluster.clone().of(MANAGED_BY);
        let terms = manifest::Terms {
            image: config.image.clone().unwrap_or_default(),
            pull_policy: config.pull_policy.to_string(),
            template: template(config)?,
            arguments: Vec::new(),
        };
        Ok(Self { secrets: cluster.secrets(), labels: cluster.labels(), pods: cluster.pods(), cluster, terms })
    }

    /// The cluster, with nothing in it but these instances.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Makes one: the secret, the pod, the pod as the secret's owner.
    ///
    /// # Errors
    /// When the cluster refuses.
    pub async fn make(&self, order: &Order) -> anyhow::Result<()> {
        let name = order.name().to_string();
        let post = PostParams::default();
        let mut secret = manifest::secret(order)?;
        let mut pod = manifest::pod(order, &[], 900, &self.terms)?;
        for labels in [secret.labels_mut(), pod.labels_mut()] {
            labels.insert(manifest::MANAGED_BY.0.into(), MANAGED_BY.into());
        }
        let refused = |refusal: Refusal| refusal.unavailable("make an instance").0;
        ask(self.secrets.create(&post, &secret)).await.map_err(refused)?;
        let pod = ask(self.pods.create(&post, &pod)).await.map_err(refused)?;
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod.uid()});
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        ask(self.labels.patch(&name, &PatchParams::default(), &patch)).await.map_err(refused)?;
        Ok(())
    }
}

/// Sees pods as they come.
pub struct Coming(BoxStream<'static, watcher::Result<watcher::Event<PartialObjectMeta<Pod>>>>);

impl Coming {
    /// Watches the pods of a cluster that has none yet.
    ///
    /// # Errors
    /// When they cannot be watched.
    pub async fn watch(cluster: &Cluster) -> anyhow::Result<Self> {
        let events = watcher(cluster.names(), watcher::Config::default().labels(&cluster.selector()));
        let mut events = events.default_backoff().boxed();
        while let Some(event) = events.next().await {
            if matches!(event?, watcher::Event::InitDone) {
                break;
            }
        }
        Ok(Self(events))
    }

    /// Waits until so many have come.
    ///
    /// # Errors
    /// When the watch is cut: which came meanwhile is not known.
    pub async fn until(&mut self, count: usize) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        while seen.len() < count {
            match self.0.next().await {
                Some(Ok(watcher::Event::Apply(pod))) => drop(seen.insert(pod.name_any())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("cannot watch pods come"),
                None => bail!("the watch of pods ended"),
            }
        }
        Ok(())
    }
}
