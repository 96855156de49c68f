//! One namespace of one cluster, and what a director does there.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use garage_events::{
    crash::{Point, effect},
    env::{Env, System},
};
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ObjectMeta, PartialObjectMeta},
};
use serde_json::json;

use super::{
    ANSWER, ask, gone,
    manifest::{self, Terms},
    node,
    pod_status::{self, PodStatus},
    pods::{ObservedPod, Pods},
};
use crate::{
    backend::{CreateError, Exit, How, Instance, Made, Name, Order, Placed, State, Unavailable},
    config,
};

/// How long a node's address is good for.
const ADDRESS: Duration = Duration::from_secs(60);

/// How long a pod may outlive its session's hard end before the cluster ends it.
const GRACE: i64 = 60;

pub(super) struct Site {
    pods: Api<Pod>,
    secrets: Api<Secret>,
    /// The secrets without what is in them.
    labels: Api<PartialObjectMeta<Secret>>,
    nodes: Api<Node>,
    /// Its kubeconfig's context; none for the one that this is set to.
    context: Option<String>,
    namespace: String,
    known: Pods,
    addresses: Vec<node::Source>,
    max_wait: time::Duration,
    /// Of nodes that were asked for: their addresses, and when they were.
    asked: Mutex<HashMap<String, (IpAddr, Instant)>>,
}

impl Site {
    /// Finds the cluster, by a context of the kubeconfig if one is said; nothing is asked of it yet.
    pub(super) async fn open(config: &config::Kube, context: Option<&str>) -> anyhow::Result<Self> {
        let mut cluster = match &config.kubeconfig {
            Some(path) => {
                let wrong = || format!("cannot use {} (--kubeconfig)", path.display());
                let kubeconfig = Kubeconfig::read_from(path).with_context(wrong)?;
                let options = KubeConfigOptions { context: context.map(Into::into), ..KubeConfigOptions::default() };
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(wrong)?
            }
            None => kube::Config::incluster().context("this is no pod of a cluster, and there is no --kubeconfig")?,
        };
        cluster.connect_timeout = Some(ANSWER);
        let namespace = config.namespace.clone().unwrap_or_else(|| cluster.default_namespace.clone());
        let client = Client::try_from(cluster).context("cannot make a client of the cluster")?;
        Ok(Self {
            pods: Api::namespaced(client.clone(), &namespace),
            secrets: Api::namespaced(client.clone(), &namespace),
            labels: Api::namespaced(client.clone(), &namespace),
            nodes: Api::all(client),
            context: context.map(Into::into),
            namespace,
            known: Pods::default(),
            addresses: config.node_address.clone(),
            max_wait: time::Duration::seconds(config.pod_max_wait.into()),
            asked: Mutex::default(),
        })
    }

    pub(super) fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Watches the cluster, for as long as it is polled.
    pub(super) async fn watch(&self) -> anyhow::Result<()> {
        self.known.clone().watch(self.pods.clone(), self.labels.clone()).await
    }

    pub(super) async fn create(
        &self,
        order: &Order,
        selector: &[(String, String)],
        terms: &Terms,
    ) -> Result<Made, CreateError> {
        let name = order.name();
        let named = name.to_string();
        let seconds = (order.config.ends_at - System.now()).whole_seconds().max(0) + GRACE;
        let pod = manifest::pod(order, selector, seconds, terms).map_err(Unavailable)?;
        let secret = manifest::secret(order).map_err(Unavailable)?;
        let post = PostParams::default();

        match ask(effect(Point::SecretMade, self.secrets.create(&post, &secret))).await {
            Ok(_) => {}
            Err(refusal) if refusal.is("AlreadyExists") => {
                let found = ask(self.labels.get(&named)).await;
                ours(name, "secret", &found.map_err(|error| error.unavailable("read the secret"))?.metadata)?;
            }
            Err(refusal) => return Err(refusal.of_making("make the secret")),
        }
        let (pod, made) = match ask(effect(Point::PodMade, self.pods.create(&post, &pod))).await {
            // No scheduler is that quick.
            Ok(pod) => (pod, Made::Waiting),
            Err(refusal) if refusal.is("AlreadyExists") => {
                let found = ask(self.pods.get(&named)).await.map_err(|error| error.unavailable("read the pod"))?;
                ours(name, "pod", &found.metadata)?;
                let made = self.made(name, &found).await?.ok_or(CreateError::Over)?;
                (found, made)
            }
            Err(refusal) => return Err(refusal.of_making("make the pod")),
        };
        self.own(&named, &pod).await?;
        tracing::info!(pod.name = %name, "pod made");
        Ok(made)
    }

    /// Has the secret go with its pod.
    async fn own(&self, name: &str, pod: &Pod) -> Result<(), Unavailable> {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod.uid()});
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        let params = PatchParams::default();
        let owned = ask(effect(Point::OwnerSet, self.labels.patch(name, &params, &patch))).await;
        owned.map(drop).map_err(|error| error.unavailable("make the pod own its secret"))
    }

    /// How far a pod has come; none if it is over.
    async fn made(&self, name: Name, pod: &Pod) -> Result<Option<Made>, Unavailable> {
        Ok(match pod_status::of(pod) {
            PodStatus::Waiting(_) => Some(Made::Waiting),
            // A node without an address is for who looks after instances to judge.
            PodStatus::Bound(node) => {
                Some(self.address(&node).await?.map_or(Made::Waiting, |ip| Made::Placed(placed(name, node, ip))))
            }
            PodStatus::Over(_) => None,
        })
    }

    pub(super) async fn find(&self, name: Name) -> Result<Option<Made>, Unavailable> {
        let pod = match ask(self.pods.get(&name.to_string())).await {
            Ok(pod) if manifest::instance(&pod.metadata) == Some(name) => pod,
            Ok(_) => return Ok(None),
            Err(refusal) if refusal.is("NotFound") => return Ok(None),
            Err(refusal) => return Err(refusal.unavailable("read the pod")),
        };
        let made = self.made(name, &pod).await?;
        if made.is_some() {
            self.own(&name.to_string(), &pod).await?;
        }
        Ok(made)
    }

    /// A node's public address; none if it has none.
    async fn address(&self, name: &str) -> Result<Option<IpAddr>, Unavailable> {
        if let Some((ip, at)) = self.asked().get(name)
            && at.elapsed() < ADDRESS
        {
            return Ok(Some(*ip));
        }
        let node = ask(self.nodes.get(name)).await;
        let node = node.map_err(|error| error.unavailable(&format!("read the node {name}")))?;
        let ip = node::public_ip(&node, &self.addresses);
        let mut asked = self.asked();
        asked.retain(|_, (_, at)| at.elapsed() < ADDRESS);
        if let Some(ip) = ip {
            asked.insert(name.to_owned(), (ip, Instant::now()));
        }
        Ok(ip)
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<String, (IpAddr, Instant)>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn state(&self, name: Name, seen: ObservedPod) -> Result<State, Unavailable> {
        Ok(match seen.pod_status {
            PodStatus::Over(exit) => State::Exited(exit),
            PodStatus::Waiting(Some(said)) if System.now() - seen.created > self.max_wait => {
                State::Exited(Exit { how: How::Failed("unschedulable"), message: Some(said) })
            }
            PodStatus::Waiting(_) => State::Waiting,
            PodStatus::Bound(node) => match self.address(&node).await? {
                Some(ip) => State::Running(placed(name, node, ip)),
                None => {
                    let message = format!("the node {node} has no address that --node-address asks for");
                    State::Exited(Exit { how: How::Failed("no-public-ip"), message: Some(message) })
                }
            },
        })
    }

    pub(super) async fn list(&self) -> Result<Vec<Instance>, Unavailable> {
        let listed = self.known.list()?;
        let mut instances = Vec::new();
        for (name, seen) in listed.pods {
            let created = seen.created;
            instances.push(Instance { name, created, state: self.state(name, seen).await? });
        }
        let gone = listed.gone.into_iter().map(|(name, created, exit)| (name, created, State::Exited(exit)));
        let claimed = listed.secrets.into_iter().map(|(name, created)| (name, created, State::Claimed));
        instances.extend(gone.chain(claimed).map(|(name, created, state)| Instance { name, created, state }));
        Ok(instances)
    }

    pub(super) async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
        let mut there = false;
        // The pod first: what it leaves, a secret, is an instance still.
        let named = name.to_string();
        let pod = ask(self.pods.get_metadata_opt(&named)).await;
        let pod = pod.map_err(|error| error.unavailable("look for the pod"))?;
        if let Some(exact) = pod.and_then(|pod| exact(name, &pod.metadata)) {
            let deleted = self.pods.delete(&exact.0, &exact.1);
            gone(ask(effect(Point::PodDeleted, deleted)).await, "delete the pod")?;
            there = true;
            tracing::info!(pod.name = %name, "pod deleted");
        }
        let secret = ask(self.labels.get_opt(&named)).await;
        let secret = secret.map_err(|error| error.unavailable("look for the secret"))?;
        if let Some(exact) = secret.and_then(|secret| exact(name, &secret.metadata)) {
            let deleted = self.secrets.delete(&exact.0, &exact.1);
            gone(ask(effect(Point::SecretDeleted, deleted)).await, "delete the secret")?;
            there = true;
        }
        self.known.removed(name);
        Ok(there)
    }
}

/// `Ok` when what is there in an instance's place is of this instance.
fn ours(name: Name, kind: &str, metadata: &ObjectMeta) -> Result<(), CreateError> {
    if manifest::instance(metadata) == Some(name) {
        return Ok(());
    }
    let message = format!("there is a {kind} {name} already, which is not Garage's");
    Err(CreateError::Refused { reason: "name-taken", message })
}

/// What deletes this very object; none if it is not Garage's, or on its way already.
fn exact(name: Name, metadata: &ObjectMeta) -> Option<(String, DeleteParams)> {
    if manifest::instance(metadata) != Some(name) || metadata.deletion_timestamp.is_some() {
        return None;
    }
    let only = Preconditions { uid: metadata.uid.clone(), resource_version: None };
    Some((name.to_string(), DeleteParams::default().preconditions(only)))
}

fn placed(name: Name, node: String, public_ip: IpAddr) -> Placed {
    Placed { pod: name.to_string(), node, public_ip }
}
