//! Game servers as pods of a Kubernetes cluster.
//!
//! For each instance there is a Secret with what its game server is told, and a Pod that mounts it, both called
//! `game-<session>-<attempt>`. They are made in three requests, secret, pod, owner, and a director that dies between
//! any two is followed by one that finds what is there and goes on: what exists already is looked at, and is right if
//! its labels say that it is of this instance. The secret is owned by its pod, so that it goes with it should nobody
//! else remove it; before there is a pod, it is an instance that was claimed, and swept as one.
//!
//! Nobody waits for the scheduler. What becomes of pods is watched ([`pods`]) and read ([`fate`]).

pub mod bare;
pub mod cluster;
mod fate;
mod manifest;
pub mod node;
mod pods;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    future::Future,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use garage_events::{
    crash::{Point, effect},
    id::Region,
    queue::Queues,
    world::{System, World},
};
use garage_worker::Shutdown;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ObjectMeta, PartialObjectMeta, Status},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use self::{
    fate::Fate,
    pods::{Pods, Seen},
};
use crate::{
    backend::{Backend, CreateError, Exit, How, Instance, Made, Name, Order, Placed, State, Unavailable},
    config,
};

/// How long the API server has to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a node's address is good for.
const ADDRESS: Duration = Duration::from_secs(60);

/// How long a pod may outlive its session's hard end before the cluster ends it.
const GRACE: i64 = 60;

/// Game servers as pods. Clones are one backend.
#[derive(Clone)]
pub struct KubeBackend(Arc<Inner>);

struct Inner {
    pods: Api<Pod>,
    secrets: Api<Secret>,
    /// The secrets without what is in them.
    labels: Api<PartialObjectMeta<Secret>>,
    nodes: Api<Node>,
    namespace: String,
    known: Pods,
    terms: manifest::Terms,
    regions: BTreeMap<Region, Vec<(String, String)>>,
    addresses: Vec<node::Source>,
    patience: time::Duration,
    /// Of nodes that were asked for: their addresses, and when they were.
    asked: Mutex<HashMap<String, (IpAddr, Instant)>>,
}

/// Checks what can be checked without a cluster.
pub(crate) fn check(config: &config::Kube) -> anyhow::Result<()> {
    template(config)?;
    regions(config)?;
    config.image.as_ref().context("the game server's image is not said (--image)")?;
    if let Some(path) = &config.kubeconfig {
        Kubeconfig::read_from(path).with_context(|| format!("cannot use {} (--kubeconfig)", path.display()))?;
    }
    Ok(())
}

fn template(config: &config::Kube) -> anyhow::Result<Value> {
    let Some(path) = &config.pod_template else { return Ok(json!({})) };
    let wrong = || format!("{} (--pod-template) is no pod", path.display());
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let template: Value = serde_saphyr::from_str(&text).with_context(wrong)?;
    // What it says has to fit a pod; a word that is none is refused by name.
    serde_json::from_value::<Pod>(template.clone()).with_context(wrong)?;
    Ok(template)
}

/// The regions that there are; none says that every region is this cluster.
fn regions(config: &config::Kube) -> anyhow::Result<BTreeMap<Region, Vec<(String, String)>>> {
    let mut regions: BTreeMap<Region, Vec<_>> = BTreeMap::new();
    for config::Selected { region, label } in &config.region {
        regions.entry(region.clone()).or_default().extend(label.clone());
    }
    if let Some(path) = &config.queues {
        let queues = Queues::load(path)?;
        for (queue, region) in
            queues.queues.iter().flat_map(|(name, queue)| queue.regions.keys().map(move |r| (name, r)))
        {
            ensure!(
                regions.is_empty() || regions.contains_key(region),
                "queue {queue} is played in {region}, which no --region says where to find"
            );
        }
    }
    Ok(regions)
}

impl KubeBackend {
    /// Finds the cluster; nothing is asked of it yet.
    ///
    /// # Errors
    /// When what is said of it cannot be used.
    pub async fn open(config: &config::Kube, games: &config::Process) -> anyhow::Result<Self> {
        let mut cluster = match &config.kubeconfig {
            Some(path) => {
                let wrong = || format!("cannot use {} (--kubeconfig)", path.display());
                let kubeconfig = Kubeconfig::read_from(path).with_context(wrong)?;
                let options = KubeConfigOptions::default();
                kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.with_context(wrong)?
            }
            None => kube::Config::incluster().context("this is no pod of a cluster, and there is no --kubeconfig")?,
        };
        cluster.connect_timeout = Some(ANSWER);
        let namespace = config.namespace.clone().unwrap_or_else(|| cluster.default_namespace.clone());
        let client = Client::try_from(cluster).context("cannot make a client of the cluster")?;
        let ports = games.game_ports.iter().flat_map(|ports| ["--ports".to_owned(), ports.to_string()]);
        let further = games.game_arg.iter().filter(|argument| !argument.is_empty()).cloned();
        Ok(Self(Arc::new(Inner {
            pods: Api::namespaced(client.clone(), &namespace),
            secrets: Api::namespaced(client.clone(), &namespace),
            labels: Api::namespaced(client.clone(), &namespace),
            nodes: Api::all(client),
            namespace,
            known: Pods::default(),
            terms: manifest::Terms {
                image: config.image.clone().context("the game server's image is not said (--image)")?,
                pull_policy: config.pull_policy.to_string(),
                template: template(config)?,
                arguments: ports.chain(further).collect(),
            },
            regions: regions(config)?,
            addresses: config.node_address.clone(),
            patience: time::Duration::seconds(config.pod_patience.into()),
            asked: Mutex::default(),
        })))
    }

    /// The namespace that games run in.
    pub fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// Watches the cluster until `shutdown`.
    ///
    /// # Errors
    /// None; what fails is tried again.
    pub async fn watch(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let inner = &self.0;
        inner.known.clone().watch(inner.pods.clone(), inner.labels.clone(), shutdown).await
    }
}

/// Asks the cluster, and no longer than it has to answer.
async fn ask<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, Refusal> {
    match timeout(ANSWER, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Refusal::Status(status)),
        Ok(Err(error)) => Err(Refusal::Unreached(error.into())),
        Err(_) => Err(Refusal::Unreached(anyhow!("no answer within {} s", ANSWER.as_secs()))),
    }
}

/// Why the cluster did not do what it was asked for.
enum Refusal {
    /// It says so.
    Status(Box<Status>),
    /// It did not answer.
    Unreached(anyhow::Error),
}

impl Refusal {
    fn is(&self, reason: &str) -> bool {
        matches!(self, Self::Status(status) if status.reason == reason)
    }

    fn unavailable(self, what: &str) -> Unavailable {
        let error = match self {
            Self::Status(status) => anyhow!("{} ({})", status.message, status.code),
            Self::Unreached(error) => error,
        };
        Unavailable(error.context(format!("cannot {what}")))
    }

    /// What can never be made is refused; what an operator, or time, may mend is tried again.
    fn of_making(self, what: &str) -> CreateError {
        let refused = |reason, status: &Status| CreateError::Refused { reason, message: status.message.clone() };
        match &self {
            Self::Status(status) if status.code == 403 && status.message.contains("exceeded quota") => {
                refused("quota-exceeded", status)
            }
            Self::Status(status) if status.code == 422 => refused("pod-invalid", status),
            _ => self.unavailable(what).into(),
        }
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

impl Inner {
    async fn create(&self, order: &Order) -> Result<Made, CreateError> {
        let name = order.name();
        let named = name.to_string();
        let none = Vec::new();
        let selector = match self.regions.get(&order.region) {
            Some(selector) => selector,
            None if self.regions.is_empty() => &none,
            None => {
                let message = format!("no --region says where {} is", order.region);
                return Err(CreateError::Refused { reason: "region-unknown", message });
            }
        };
        let seconds = (order.config.ends_at - System.now()).whole_seconds().max(0) + GRACE;
        let pod = manifest::pod(order, selector, seconds, &self.terms).map_err(Unavailable)?;
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
        Ok(match fate::of(pod) {
            Fate::Waiting(_) => Some(Made::Waiting),
            // A node without an address is for who looks after instances to judge.
            Fate::Bound(node) => {
                Some(self.address(&node).await?.map_or(Made::Waiting, |ip| Made::Placed(placed(name, node, ip))))
            }
            Fate::Over(_) => None,
        })
    }

    async fn find(&self, name: Name) -> Result<Option<Made>, Unavailable> {
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

    async fn state(&self, name: Name, seen: Seen) -> Result<State, Unavailable> {
        Ok(match seen.fate {
            Fate::Over(exit) => State::Exited(exit),
            Fate::Waiting(Some(said)) if System.now() - seen.created > self.patience => {
                State::Exited(Exit { how: How::Failed("unschedulable"), message: Some(said) })
            }
            Fate::Waiting(_) => State::Waiting,
            Fate::Bound(node) => match self.address(&node).await? {
                Some(ip) => State::Running(placed(name, node, ip)),
                None => {
                    let message = format!("the node {node} has no address that --node-address asks for");
                    State::Exited(Exit { how: How::Failed("no-public-ip"), message: Some(message) })
                }
            },
        })
    }

    async fn list(&self) -> Result<Vec<Instance>, Unavailable> {
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

    async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
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

/// What deletes this very object; none if it is not Garage's, or on its way already.
fn exact(name: Name, metadata: &ObjectMeta) -> Option<(String, DeleteParams)> {
    if manifest::instance(metadata) != Some(name) || metadata.deletion_timestamp.is_some() {
        return None;
    }
    let only = Preconditions { uid: metadata.uid.clone(), resource_version: None };
    Some((name.to_string(), DeleteParams::default().preconditions(only)))
}

/// One that is not there, or no longer this one, is gone.
fn gone<T>(deleted: Result<T, Refusal>, what: &str) -> Result<(), Unavailable> {
    match deleted {
        Err(refusal) if !refusal.is("NotFound") && !refusal.is("Conflict") => Err(refusal.unavailable(what)),
        Ok(_) | Err(_) => Ok(()),
    }
}

fn placed(name: Name, node: String, public_ip: IpAddr) -> Placed {
    Placed { pod: name.to_string(), node, public_ip }
}

impl Backend for KubeBackend {
    async fn create(&self, order: &Order) -> Result<Made, CreateError> {
        self.0.create(order).await
    }

    async fn find(&self, name: Name) -> Result<Option<Made>, Unavailable> {
        self.0.find(name).await
    }

    async fn list(&self) -> Result<Vec<Instance>, Unavailable> {
        self.0.list().await
    }

    async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
        self.0.delete(name).await
    }
}
