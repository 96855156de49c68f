//! Runs game servers as pods of a Kubernetes cluster.
//!
//! Each instance consists of a Secret with the game server's configuration, and a Pod that mounts it. Both are named
//! `game-<session>-<attempt>`. The director makes three requests: create the secret, create the pod, and set the pod as
//! the secret's owner. If a director dies in between, another one continues: an object that exists already is accepted
//! if its labels belong to this instance. Kubernetes deletes the secret with its owner, the pod, in case no director
//! does. A secret without a pod counts as a claimed instance, and is removed like any other orphan.
//!
//! The director does not wait for the scheduler. It watches the pods (`pods`) and interprets their status
//! (`pod_status`).

pub mod baseline_client;
pub mod cluster;
pub(crate) mod lost_pods;
mod manifest;
pub mod node;
mod pod_status;
mod pods;
mod site;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use futures::future::{join_all, select_all};
use garage_events::{
    env::{Env, System},
    failure::NO_CAPACITY,
    id::Region,
    queue::Queues,
};
use garage_worker::Shutdown;
use k8s_openapi::api::core::v1::Pod;
use kube::{config::Kubeconfig, core::Status};
use serde_json::{Value, json};
use tokio::time::timeout;

use self::{manifest::PodSettings, site::Site};
use crate::{
    backend::{
        Backend, CreateError, Created, DELETED, Exit, ExitKind, Instance, Listing, Name, Order, State, Unavailable,
    },
    config,
};

/// How long to wait for an answer of the API server.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Runs game servers as pods. Clones share one backend.
#[derive(Clone)]
pub struct KubeBackend(Arc<Inner>);

struct Inner {
    /// One for each cluster.
    sites: Vec<Site>,
    /// The location of each region. If it is empty, every region is in the first site.
    regions: BTreeMap<Region, RegionSite>,
    settings: PodSettings,
    /// Instances that are placed according to the log, but that no cluster has.
    lost_pods: Mutex<HashSet<Name>>,
}

/// The location of a region.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RegionSite {
    /// The context in the kubeconfig. `None` means the current context.
    context: Option<String>,
    /// Labels that the region's nodes must have.
    selector: Vec<(String, String)>,
}

/// Checks the configuration, as far as that is possible without a cluster.
pub(crate) fn check(config: &config::Kube) -> anyhow::Result<()> {
    template(config)?;
    let regions = regions(config)?;
    config.image.as_ref().context("no image for game servers is set (--image)")?;
    let Some(path) = &config.kubeconfig else {
        let context = regions.values().find_map(|region| region.context.as_ref());
        ensure!(context.is_none(), "--region names a context, but there is no --kubeconfig to find it in");
        return Ok(());
    };
    let invalid = || format!("cannot use {} (--kubeconfig)", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(invalid)?;
    for context in regions.values().filter_map(|region| region.context.as_ref()) {
        let exists = kubeconfig.contexts.iter().any(|named| named.name == *context);
        ensure!(exists, "{} (--kubeconfig) has no context {context}, which --region names", path.display());
    }
    Ok(())
}

fn template(config: &config::Kube) -> anyhow::Result<Value> {
    let Some(path) = &config.pod_template else { return Ok(json!({})) };
    let invalid = || format!("{} (--pod-template) is not a pod", path.display());
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let template: Value = serde_saphyr::from_str(&text).with_context(invalid)?;
    // The template must have the structure of a pod. The error names the field that does not fit.
    serde_json::from_value::<Pod>(template.clone()).with_context(invalid)?;
    Ok(template)
}

/// The location of each region. If it is empty, every region is the whole cluster.
fn regions(config: &config::Kube) -> anyhow::Result<BTreeMap<Region, RegionSite>> {
    let mut regions: BTreeMap<Region, RegionSite> = BTreeMap::new();
    for config::RegionSelector { region, context, label } in &config.region {
        let site = RegionSite { context: context.clone(), selector: Vec::new() };
        let site = regions.entry(region.clone()).or_insert(site);
        ensure!(site.context == *context, "--region puts {region} in two clusters");
        site.selector.extend(label.clone());
    }
    if let Some(path) = &config.queues {
        let queues = Queues::load(path)?;
        for (queue, region) in
            queues.queues.iter().flat_map(|(name, queue)| queue.regions.keys().map(move |r| (name, r)))
        {
            ensure!(
                regions.is_empty() || regions.contains_key(region),
                "queue {queue} has region {region}, which no --region defines"
            );
        }
    }
    Ok(regions)
}

impl KubeBackend {
    /// Prepares the connections to the clusters. Nothing is sent yet.
    ///
    /// # Errors
    /// When the configuration or the kubeconfig cannot be used.
    pub async fn open(config: &config::Kube, games: &config::Process) -> anyhow::Result<Self> {
        let regions = regions(config)?;
        let mut contexts: Vec<_> = regions.values().map(|region| region.context.as_deref()).collect();
        contexts.sort_unstable();
        contexts.dedup();
        if contexts.is_empty() {
            contexts.push(None);
        }
        let mut sites = Vec::new();
        for context in contexts {
            sites.push(Site::open(config, context).await?);
        }
        let ports = games.game_ports.iter().flat_map(|ports| ["--ports".to_owned(), ports.to_string()]);
        let additional = games.game_arg.iter().filter(|argument| !argument.is_empty()).cloned();
        let settings = PodSettings {
            image: config.image.clone().context("no image for game servers is set (--image)")?,
            pull_policy: config.pull_policy.to_string(),
            template: template(config)?,
            arguments: ports.chain(additional).collect(),
        };
        Ok(Self(Arc::new(Inner { sites, regions, settings, lost_pods: Mutex::default() })))
    }

    /// The namespace that game servers run in.
    pub fn namespace(&self) -> &str {
        self.0.sites.first().map_or("", Site::namespace)
    }

    /// Watches the clusters until `shutdown`.
    ///
    /// # Errors
    /// None. Failed requests are retried.
    pub async fn watch(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let watching = select_all(self.0.sites.iter().map(|site| Box::pin(site.watch())));
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            (ended, ..) = watching => ended,
        }
    }
}

impl KubeBackend {
    /// Replaces the set of lost instances.
    fn set_lost_pods(&self, lost_pods: HashSet<Name>) {
        *self.0.lost_pods.lock().unwrap_or_else(PoisonError::into_inner) = lost_pods;
    }

    /// Lists the instances of all clusters, without the lost instances.
    async fn list_existing(&self) -> Listing {
        let mut all = Listing { instances: Vec::new(), complete: Ok(()) };
        for listed in join_all(self.0.sites.iter().map(Site::list)).await {
            match listed {
                Ok(instances) => all.instances.extend(instances),
                Err(error) => all.complete = Err(error),
            }
        }
        all
    }
}

/// Sends a request to the API server, with a time-out.
async fn request<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Refusal> {
    match timeout(TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(kube::Error::Api(status))) => Err(Refusal::Status(status)),
        Ok(Err(error)) => Err(Refusal::Unreachable(error.into())),
        Err(_) => Err(Refusal::Unreachable(anyhow!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

/// Why a request to the API server failed.
enum Refusal {
    /// The server answered with an error.
    Status(Box<Status>),
    /// The server did not answer.
    Unreachable(anyhow::Error),
}

impl Refusal {
    fn is(&self, reason: &str) -> bool {
        matches!(self, Self::Status(status) if status.reason == reason)
    }

    fn unavailable(self, what: &str) -> Unavailable {
        let error = match self {
            Self::Status(status) => anyhow!("{} ({})", status.message, status.code),
            Self::Unreachable(error) => error,
        };
        Unavailable(error.context(format!("cannot {what}")))
    }

    /// Classifies a failed create request: refused if no retry can succeed, unavailable if the cause may go away.
    fn on_create(self, what: &str) -> CreateError {
        let refused = |reason, status: &Status| CreateError::Refused { reason, message: status.message.clone() };
        match &self {
            Self::Status(status) if status.code == 403 && status.message.contains("exceeded quota") => {
                refused(NO_CAPACITY, status)
            }
            Self::Status(status) if status.code == 422 => refused("pod-invalid", status),
            _ => self.unavailable(what).into(),
        }
    }
}

/// Treats "not found" and "conflict" as a successful deletion: the object is gone, or a new one has its name.
fn ignore_missing<T>(result: Result<T, Refusal>, what: &str) -> Result<(), Unavailable> {
    match result {
        Err(refusal) if !refusal.is("NotFound") && !refusal.is("Conflict") => Err(refusal.unavailable(what)),
        Ok(_) | Err(_) => Ok(()),
    }
}

impl Inner {
    /// The cluster and the node labels for a region.
    fn site_for(&self, region: &Region) -> Option<(&Site, &[(String, String)])> {
        if self.regions.is_empty() {
            return Some((self.sites.first()?, &[]));
        }
        let region = self.regions.get(region)?;
        let site = self.sites.iter().find(|site| site.context() == region.context.as_deref())?;
        Some((site, &region.selector))
    }
}

impl Backend for KubeBackend {
    async fn create(&self, order: &Order) -> Result<Created, CreateError> {
        let Some((site, selector)) = self.0.site_for(&order.region) else {
            let message = format!("no --region defines {}", order.region);
            return Err(CreateError::Refused { reason: "region-unknown", message });
        };
        site.create(order, selector, &self.0.settings).await
    }

    async fn find(&self, name: Name) -> Result<Option<Created>, Unavailable> {
        // "Not found" is certain only when all clusters have answered.
        let mut not_found = Ok(None);
        for site in &self.0.sites {
            match site.find(name).await {
                Ok(Some(created)) => return Ok(Some(created)),
                Ok(None) => {}
                Err(error) => not_found = Err(error),
            }
        }
        not_found
    }

    async fn list(&self) -> Listing {
        let mut listed = self.list_existing().await;
        let mut lost_pods = self.0.lost_pods.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for instance in listed.instances.iter().filter(|instance| lost_pods::has_pod(instance)) {
            lost_pods.remove(&instance.name);
        }
        listed.instances.retain(|instance| !lost_pods.contains(&instance.name));
        listed.instances.extend(lost_pods.into_iter().map(|name| Instance {
            name,
            created: System.now(),
            state: State::Exited(Exit { kind: ExitKind::Failed(DELETED), message: Some("the pod is gone".into()) }),
        }));
        listed
    }

    async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
        let mut result = Ok(false);
        for site in &self.0.sites {
            match site.delete(name).await {
                Ok(deleted) => result = result.map(|any| any || deleted),
                Err(error) => result = Err(error),
            }
        }
        result
    }
}
