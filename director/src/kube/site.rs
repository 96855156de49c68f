//! One namespace of one cluster: creates, finds, lists and deletes the instances there.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, anyhow};
use garage_events::{
    crash::{Point, effect},
    env::{Env, System},
    failure::NO_CAPACITY,
    id::Region,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ObjectMeta, PartialObjectMeta},
};
use serde_json::json;
use time::OffsetDateTime;

use super::{
    TIMEOUT,
    addresses::{Known, NodeAddresses},
    dry_run::{Verdict, dry_run},
    manifest::{self, Purpose},
    pod_status::{self, PodStatus},
    pods::{ObservedPod, PodCache},
    refusal::{Cause, Refusal, ignore_missing, request},
    template::PodSettings,
};
use crate::{
    backend::{CreateError, Created, Exit, ExitKind, Instance, Name, Order, Placed, State, Unavailable},
    config,
};

/// Seconds after the session's hard end at which the cluster ends the pod.
const GRACE: i64 = 60;

pub(super) struct Site {
    pods: Api<Pod>,
    secrets: Api<Secret>,
    /// The secrets' metadata only.
    secret_metadata: Api<PartialObjectMeta<Secret>>,
    /// The context in the kubeconfig. `None` means the current context.
    context: Option<String>,
    namespace: String,
    cache: PodCache,
    addresses: NodeAddresses,
    /// How long a pod may wait for a node before its attempt fails.
    max_wait: time::Duration,
    /// The running instances whose address is known.
    placed: Mutex<HashMap<Name, Placed>>,
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
            context: context.map(Into::into),
            namespace,
            cache: PodCache::default(),
            addresses: NodeAddresses::new(Api::all(client), config.node_address.clone()),
            max_wait: time::Duration::seconds(config.pod_max_wait.into()),
            placed: Mutex::default(),
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

    /// Asks whether the cluster would create a pod for this region.
    pub(super) async fn dry_run(
        &self,
        region: Option<&Region>,
        selector: &[(String, String)],
        settings: &PodSettings,
    ) -> anyhow::Result<Verdict> {
        let pod = manifest::pod(&manifest::example(region)?, selector, GRACE, settings)?;
        Ok(dry_run(&self.pods, &self.namespace, &pod).await)
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
        let pod = manifest::pod(&Purpose::from(order), selector, seconds, settings).map_err(Unavailable)?;
        let secret = manifest::secret(order).map_err(Unavailable)?;
        let post = PostParams::default();

        match request(effect(Point::SecretMade, self.secrets.create(&post, &secret))).await {
            Ok(_) => {}
            Err(refusal) => {
                let found = self.existing(&refusal, self.secret_metadata.get_opt(&object), "read the secret").await?;
                let found = found.ok_or_else(|| refusal.on_create("create the secret"))?;
                check_owner(name, "secret", &found.metadata)?;
            }
        }
        let (pod, created) = match request(effect(Point::PodMade, self.pods.create(&post, &pod))).await {
            // The scheduler cannot have assigned a node yet.
            Ok(pod) => (pod, Created::Waiting),
            Err(refusal) => {
                let found = self.existing(&refusal, self.pods.get_opt(&object), "read the pod").await?;
                let found = found.ok_or_else(|| refusal.on_create("create the pod"))?;
                check_owner(name, "pod", &found.metadata)?;
                let created = created(&found).ok_or(CreateError::Over)?;
                (found, created)
            }
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

    /// Looks for an object whose creation was refused. An earlier request may have created it: the API server asks its
    /// quotas and admission rules first, and says only then that an object exists.
    async fn existing<T>(
        &self,
        refusal: &Refusal,
        lookup: impl Future<Output = kube::Result<Option<T>>>,
        what: &str,
    ) -> Result<Option<T>, Unavailable> {
        let cause = refusal.cause();
        if refusal.is("AlreadyExists") || matches!(cause, Cause::Quota | Cause::Admission | Cause::Invalid) {
            return request(lookup).await.map_err(|error| error.unavailable(what));
        }
        Ok(None)
    }

    pub(super) async fn find(&self, name: Name) -> Result<Option<Created>, Unavailable> {
        let pod = match request(self.pods.get(&name.to_string())).await {
            Ok(pod) if manifest::instance(&pod.metadata) == Some(name) => pod,
            Ok(_) => return Ok(None),
            Err(refusal) if refusal.is("NotFound") => return Ok(None),
            Err(refusal) => return Err(refusal.unavailable("read the pod")),
        };
        let created = created(&pod);
        if created.is_some() {
            self.set_owner(&name.to_string(), &pod).await?;
        }
        Ok(created)
    }

    fn placed(&self) -> MutexGuard<'_, HashMap<Name, Placed>> {
        // Nothing panics halfway through a change, so the map is consistent even after a panic.
        self.placed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self, pod: PodStatus, created: OffsetDateTime, name: Name, nodes: &HashMap<String, Known>) -> State {
        let failed = |reason, message| State::Exited(Exit { kind: ExitKind::Failed(reason), message: Some(message) });
        match pod {
            PodStatus::Over(exit) => State::Exited(exit),
            PodStatus::Waiting(Some(message)) if System.now() - created > self.max_wait => failed(NO_CAPACITY, message),
            PodStatus::Waiting(_) => State::Waiting,
            PodStatus::Bound(node) => match nodes.get(&node) {
                Some(Known::Public(ip)) => State::Running(Placed { pod: name.to_string(), node, public_ip: *ip }),
                Some(Known::NoAddress) => {
                    failed("no-public-ip", format!("node {node} has no address that matches --node-address"))
                }
                Some(Known::Gone) => failed("node-lost", format!("node {node} does not exist any more")),
                Some(Known::Asked | Known::Unreadable(_)) | None => State::Waiting,
            },
        }
    }

    /// Lists the instances, and says whether nodes could not be read. Instances on these nodes are listed as waiting.
    pub(super) async fn list(&self) -> Result<(Vec<Instance>, Option<Unavailable>), Unavailable> {
        let snapshot = self.cache.snapshot()?;
        let placed = {
            let mut placed = self.placed();
            placed.retain(|name, placed| snapshot.pods.get(name).is_some_and(|pod| pod.is_on(&placed.node)));
            placed.clone()
        };
        let new = snapshot.pods.iter().filter(|(name, _)| !placed.contains_key(name));
        let unknown: HashSet<_> = new.filter_map(|(_, pod)| pod.node().map(ToOwned::to_owned)).collect();
        let nodes = self.addresses.of(unknown).await;
        let mut instances = Vec::new();
        for (name, ObservedPod { created, pod_status }) in snapshot.pods {
            let state = match placed.get(&name) {
                Some(placed) => State::Running(placed.clone()),
                None => self.state(pod_status, created, name, &nodes),
            };
            if let State::Running(new) = &state {
                self.placed().insert(name, new.clone());
            }
            instances.push(Instance { name, created, state });
        }
        let deleted = snapshot.deleted.into_iter().map(|(name, created, exit)| (name, created, State::Exited(exit)));
        let claimed = snapshot.secrets.into_iter().map(|(name, created)| (name, created, State::Claimed));
        instances.extend(deleted.chain(claimed).map(|(name, created, state)| Instance { name, created, state }));
        let unreadable = nodes.into_values().find_map(|known| match known {
            Known::Unreadable(error) => Some(Unavailable(anyhow!(error))),
            Known::Asked | Known::Public(_) | Known::NoAddress | Known::Gone => None,
        });
        Ok((instances, unreadable))
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

/// A pod that exists; `None` if it has exited. Its node is read when the instances are listed.
fn created(pod: &Pod) -> Option<Created> {
    match pod_status::of(pod) {
        PodStatus::Waiting(_) | PodStatus::Bound(_) => Some(Created::Waiting),
        PodStatus::Over(_) => None,
    }
}
