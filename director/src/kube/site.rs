//! One namespace of one cluster: creates, finds, lists and deletes the instances there.

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
    failure::NO_CAPACITY,
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
    TIMEOUT, ignore_missing,
    manifest::{self, PodSettings},
    node,
    pod_status::{self, PodStatus},
    pods::{ObservedPod, PodCache},
    request,
};
use crate::{
    backend::{CreateError, Created, Exit, ExitKind, Instance, Name, Order, Placed, State, Unavailable},
    config,
};

/// How long a node's address is cached.
const ADDRESS_TTL: Duration = Duration::from_secs(60);

/// Seconds after the session's hard end at which the cluster ends the pod.
const GRACE: i64 = 60;

pub(super) struct Site {
    pods: Api<Pod>,
    secrets: Api<Secret>,
    /// The secrets' metadata only.
    secret_metadata: Api<PartialObjectMeta<Secret>>,
    nodes: Api<Node>,
    /// The context in the kubeconfig. `None` means the current context.
    context: Option<String>,
    namespace: String,
    cache: PodCache,
    address_sources: Vec<node::Source>,
    /// How long a pod may wait for a node before its attempt fails.
    max_wait: time::Duration,
    /// The addresses of nodes, each with the time when it was read.
    addresses: Mutex<HashMap<String, (IpAddr, Instant)>>,
}

impl Site {
    /// Prepares the connection to the cluster, with the given context of the kubeconfig. Nothing is sent yet.
    pub(super) async fn open(config: &config::Kube, context: Option<&str>) -> anyhow::Result<Self> {
        let mut cluster = match &config.kubeconfig {
            Some(path) => {
                let invalid = || format!("cannot use {} (--kubeconfig)", path.display());
                let kubeconfig = Kubeconfig::read_from(path).with_context(invalid)?;
                let options = KubeConfigOptions { context: context.map(Into::into), ..KubeConfigOptions::default() };
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(invalid)?
            }
            None => kube::Config::incluster()
                .context("cannot find a cluster: set --kubeconfig, or run the director in a pod")?,
        };
        cluster.connect_timeout = Some(TIMEOUT);
        let namespace = config.namespace.clone().unwrap_or_else(|| cluster.default_namespace.clone());
        let client = Client::try_from(cluster).context("cannot create a client for the cluster")?;
        Ok(Self {
            pods: Api::namespaced(client.clone(), &namespace),
            secrets: Api::namespaced(client.clone(), &namespace),
            secret_metadata: Api::namespaced(client.clone(), &namespace),
            nodes: Api::all(client),
            context: context.map(Into::into),
            namespace,
            cache: PodCache::default(),
            address_sources: config.node_address.clone(),
            max_wait: time::Duration::seconds(config.pod_max_wait.into()),
            addresses: Mutex::default(),
        })
    }

    pub(super) fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Watches the cluster and keeps the cache up to date, for as long as the future is polled.
    pub(super) async fn watch(&self) -> anyhow::Result<()> {
        self.cache.clone().watch(self.pods.clone(), self.secret_metadata.clone()).await
    }

    pub(super) async fn create(
        &self,
        order: &Order,
        selector: &[(String, String)],
        settings: &PodSettings,
    ) -> Result<Created, CreateError> {
        let name = order.name();
        let object = name.to_string();
        let seconds = (order.config.ends_at - System.now()).whole_seconds().max(0) + GRACE;
        let pod = manifest::pod(order, selector, seconds, settings).map_err(Unavailable)?;
        let secret = manifest::secret(order).map_err(Unavailable)?;
        let post = PostParams::default();

        match request(effect(Point::SecretMade, self.secrets.create(&post, &secret))).await {
            Ok(_) => {}
            Err(refusal) if refusal.is("AlreadyExists") => {
                let found = request(self.secret_metadata.get(&object)).await;
                check_owner(name, "secret", &found.map_err(|error| error.unavailable("read the secret"))?.metadata)?;
            }
            Err(refusal) => return Err(refusal.on_create("create the secret")),
        }
        let (pod, created) = match request(effect(Point::PodMade, self.pods.create(&post, &pod))).await {
            // The scheduler cannot have assigned a node yet.
            Ok(pod) => (pod, Created::Waiting),
            Err(refusal) if refusal.is("AlreadyExists") => {
                let found = request(self.pods.get(&object)).await.map_err(|error| error.unavailable("read the pod"))?;
                check_owner(name, "pod", &found.metadata)?;
                let created = self.created(name, &found).await?.ok_or(CreateError::Over)?;
                (found, created)
            }
            Err(refusal) => return Err(refusal.on_create("create the pod")),
        };
        self.set_owner(&object, &pod).await?;
        tracing::info!(pod.name = %name, "pod created");
        Ok(created)
    }

    /// Makes the pod the owner of its secret, so that Kubernetes deletes the secret with the pod.
    async fn set_owner(&self, name: &str, pod: &Pod) -> Result<(), Unavailable> {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod.uid()});
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        let params = PatchParams::default();
        let patched = request(effect(Point::OwnerSet, self.secret_metadata.patch(name, &params, &patch))).await;
        patched.map(drop).map_err(|error| error.unavailable("set the pod as the owner of its secret"))
    }

    /// Whether the pod is placed or waits for a node; `None` if it has exited.
    async fn created(&self, name: Name, pod: &Pod) -> Result<Option<Created>, Unavailable> {
        Ok(match pod_status::of(pod) {
            PodStatus::Waiting(_) => Some(Created::Waiting),
            // If the node has no public address, the watch fails the attempt: see `state`.
            PodStatus::Bound(node) => {
                Some(self.address(&node).await?.map_or(Created::Waiting, |ip| Created::Placed(placed(name, node, ip))))
            }
            PodStatus::Over(_) => None,
        })
    }

    pub(super) async fn find(&self, name: Name) -> Result<Option<Created>, Unavailable> {
        let pod = match request(self.pods.get(&name.to_string())).await {
            Ok(pod) if manifest::instance(&pod.metadata) == Some(name) => pod,
            Ok(_) => return Ok(None),
            Err(refusal) if refusal.is("NotFound") => return Ok(None),
            Err(refusal) => return Err(refusal.unavailable("read the pod")),
        };
        let created = self.created(name, &pod).await?;
        if created.is_some() {
            self.set_owner(&name.to_string(), &pod).await?;
        }
        Ok(created)
    }

    /// A node's public address, if it has one.
    async fn address(&self, name: &str) -> Result<Option<IpAddr>, Unavailable> {
        if let Some((ip, at)) = self.addresses().get(name)
            && at.elapsed() < ADDRESS_TTL
        {
            return Ok(Some(*ip));
        }
        let node = request(self.nodes.get(name)).await;
        let node = node.map_err(|error| error.unavailable(&format!("read the node {name}")))?;
        let ip = node::public_ip(&node, &self.address_sources);
        let mut addresses = self.addresses();
        addresses.retain(|_, (_, at)| at.elapsed() < ADDRESS_TTL);
        if let Some(ip) = ip {
            addresses.insert(name.to_owned(), (ip, Instant::now()));
        }
        Ok(ip)
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<String, (IpAddr, Instant)>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn state(&self, name: Name, pod: ObservedPod) -> Result<State, Unavailable> {
        Ok(match pod.pod_status {
            PodStatus::Over(exit) => State::Exited(exit),
            PodStatus::Waiting(Some(message)) if System.now() - pod.created > self.max_wait => {
                State::Exited(Exit { kind: ExitKind::Failed(NO_CAPACITY), message: Some(message) })
            }
            PodStatus::Waiting(_) => State::Waiting,
            PodStatus::Bound(node) => match self.address(&node).await? {
                Some(ip) => State::Running(placed(name, node, ip)),
                None => {
                    let message = format!("node {node} has no address that matches --node-address");
                    State::Exited(Exit { kind: ExitKind::Failed("no-public-ip"), message: Some(message) })
                }
            },
        })
    }

    pub(super) async fn list(&self) -> Result<Vec<Instance>, Unavailable> {
        let snapshot = self.cache.snapshot()?;
        let mut instances = Vec::new();
        for (name, pod) in snapshot.pods {
            let created = pod.created;
            instances.push(Instance { name, created, state: self.state(name, pod).await? });
        }
        let deleted = snapshot.deleted.into_iter().map(|(name, created, exit)| (name, created, State::Exited(exit)));
        let claimed = snapshot.secrets.into_iter().map(|(name, created)| (name, created, State::Claimed));
        instances.extend(deleted.chain(claimed).map(|(name, created, state)| Instance { name, created, state }));
        Ok(instances)
    }

    pub(super) async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
        let mut any = false;
        // Delete the pod first: if the director dies in between, the remaining secret still counts as an instance.
        let object = name.to_string();
        let pod = request(self.pods.get_metadata_opt(&object)).await;
        let pod = pod.map_err(|error| error.unavailable("look for the pod"))?;
        if let Some(target) = pod.and_then(|pod| deletion_of(name, &pod.metadata)) {
            let deletion = self.pods.delete(&target.0, &target.1);
            ignore_missing(request(effect(Point::PodDeleted, deletion)).await, "delete the pod")?;
            any = true;
            tracing::info!(pod.name = %name, "pod deleted");
        }
        let secret = request(self.secret_metadata.get_opt(&object)).await;
        let secret = secret.map_err(|error| error.unavailable("look for the secret"))?;
        if let Some(target) = secret.and_then(|secret| deletion_of(name, &secret.metadata)) {
            let deletion = self.secrets.delete(&target.0, &target.1);
            ignore_missing(request(effect(Point::SecretDeleted, deletion)).await, "delete the secret")?;
            any = true;
        }
        self.cache.forget_deleted(name);
        Ok(any)
    }
}

/// Returns `Ok` if an object that has the instance's name belongs to the instance.
fn check_owner(name: Name, kind: &str, metadata: &ObjectMeta) -> Result<(), CreateError> {
    if manifest::instance(metadata) == Some(name) {
        return Ok(());
    }
    let message = format!("there is already a {kind} {name} that does not belong to Garage");
    Err(CreateError::Refused { reason: "name-taken", message })
}

/// The name and the parameters to delete exactly this object, by its UID. `None` if the object does not belong to the
/// instance, or is being deleted already.
fn deletion_of(name: Name, metadata: &ObjectMeta) -> Option<(String, DeleteParams)> {
    if manifest::instance(metadata) != Some(name) || metadata.deletion_timestamp.is_some() {
        return None;
    }
    let only = Preconditions { uid: metadata.uid.clone(), resource_version: None };
    Some((name.to_string(), DeleteParams::default().preconditions(only)))
}

fn placed(name: Name, node: String, public_ip: IpAddr) -> Placed {
    Placed { pod: name.to_string(), node, public_ip }
}
