//! Game servers as pods of a Kubernetes cluster.
//!
//! For each instance there is a Secret with what its game server is told, and a Pod that mounts it, both called
//! `game-<session>-<attempt>`. They are made in three requests, secret, pod, owner, and a director that dies between
//! any two is followed by one that finds what is there and goes on: what exists already is looked at, and is right if
//! its labels say that it is of this instance. The secret is owned by its pod, so that it goes with it should nobody
//! else remove it; before there is a pod, it is an instance that was claimed, and swept as one.
//!
//! Nobody waits for the scheduler. What becomes of pods is watched (`pods`) and read (`pod_status`).

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
    id::Region,
    queue::Queues,
};
use garage_worker::Shutdown;
use k8s_openapi::api::core::v1::Pod;
use kube::{config::Kubeconfig, core::Status};
use serde_json::{Value, json};
use tokio::time::timeout;

use self::{manifest::Terms, site::Site};
use crate::{
    backend::{Backend, CreateError, DELETED, Exit, How, Instance, Listed, Made, Name, Order, State, Unavailable},
    config,
};

/// How long the API server has to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Game servers as pods. Clones are one backend.
#[derive(Clone)]
pub struct KubeBackend(Arc<Inner>);

struct Inner {
    /// Each is another cluster.
    sites: Vec<Site>,
    /// Where each region is; none says that every region is the first site.
    regions: BTreeMap<Region, RegionSite>,
    terms: Terms,
    /// Instances that the log knows, and no site has.
    lost_pods: Mutex<HashSet<Name>>,
}

/// Where a region is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RegionSite {
    /// The kubeconfig's context; none for the one that it is set to.
    context: Option<String>,
    /// The labels of its nodes.
    selector: Vec<(String, String)>,
}

/// Checks what can be checked without a cluster.
pub(crate) fn check(config: &config::Kube) -> anyhow::Result<()> {
    template(config)?;
    let regions = regions(config)?;
    config.image.as_ref().context("the game server's image is not said (--image)")?;
    let Some(path) = &config.kubeconfig else {
        let context = regions.values().find_map(|place| place.context.as_ref());
        ensure!(context.is_none(), "--region names a context, and there is no --kubeconfig that has it");
        return Ok(());
    };
    let wrong = || format!("cannot use {} (--kubeconfig)", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(wrong)?;
    for context in regions.values().filter_map(|place| place.context.as_ref()) {
        let there = kubeconfig.contexts.iter().any(|named| named.name == *context);
        ensure!(there, "{} (--kubeconfig) has no context {context}, which --region names", path.display());
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

/// Where the regions are; none says that every region is the one cluster.
fn regions(config: &config::Kube) -> anyhow::Result<BTreeMap<Region, RegionSite>> {
    let mut regions: BTreeMap<Region, RegionSite> = BTreeMap::new();
    for config::Selected { region, context, label } in &config.region {
        let place = RegionSite { context: context.clone(), selector: Vec::new() };
        let place = regions.entry(region.clone()).or_insert(place);
        ensure!(place.context == *context, "--region says of {region} that it is in two clusters");
        place.selector.extend(label.clone());
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
    /// Finds the clusters; nothing is asked of them yet.
    ///
    /// # Errors
    /// When what is said of one cannot be used.
    pub async fn open(config: &config::Kube, games: &config::Process) -> anyhow::Result<Self> {
        let regions = regions(config)?;
        let mut contexts: Vec<_> = regions.values().map(|place| place.context.as_deref()).collect();
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
        let further = games.game_arg.iter().filter(|argument| !argument.is_empty()).cloned();
        let terms = Terms {
            image: config.image.clone().context("the game server's image is not said (--image)")?,
            pull_policy: config.pull_policy.to_string(),
            template: template(config)?,
            arguments: ports.chain(further).collect(),
        };
        Ok(Self(Arc::new(Inner { sites, regions, terms, lost_pods: Mutex::default() })))
    }

    /// The namespace that games run in.
    pub fn namespace(&self) -> &str {
        self.0.sites.first().map_or("", Site::namespace)
    }

    /// Watches the clusters until `shutdown`.
    ///
    /// # Errors
    /// None; what fails is tried again.
    pub async fn watch(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let watching = select_all(self.0.sites.iter().map(|site| Box::pin(site.watch())));
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            (ended, ..) = watching => ended,
        }
    }
}

impl KubeBackend {
    /// Notes which instances are missing.
    fn miss(&self, lost_pods: HashSet<Name>) {
        *self.0.lost_pods.lock().unwrap_or_else(PoisonError::into_inner) = lost_pods;
    }

    /// What the clusters have.
    async fn listed(&self) -> Listed {
        let mut all = Listed { instances: Vec::new(), whole: Ok(()) };
        for listed in join_all(self.0.sites.iter().map(Site::list)).await {
            match listed {
                Ok(instances) => all.instances.extend(instances),
                Err(error) => all.whole = Err(error),
            }
        }
        all
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

/// One that is not there, or no longer this one, is gone.
fn gone<T>(deleted: Result<T, Refusal>, what: &str) -> Result<(), Unavailable> {
    match deleted {
        Err(refusal) if !refusal.is("NotFound") && !refusal.is("Conflict") => Err(refusal.unavailable(what)),
        Ok(_) | Err(_) => Ok(()),
    }
}

impl Inner {
    /// Where an instance is to be made.
    fn place(&self, region: &Region) -> Option<(&Site, &[(String, String)])> {
        if self.regions.is_empty() {
            return Some((self.sites.first()?, &[]));
        }
        let place = self.regions.get(region)?;
        let site = self.sites.iter().find(|site| site.context() == place.context.as_deref())?;
        Some((site, &place.selector))
    }
}

impl Backend for KubeBackend {
    async fn create(&self, order: &Order) -> Result<Made, CreateError> {
        let Some((site, selector)) = self.0.place(&order.region) else {
            let message = format!("no --region says where {} is", order.region);
            return Err(CreateError::Refused { reason: "region-unknown", message });
        };
        site.create(order, selector, &self.0.terms).await
    }

    async fn find(&self, name: Name) -> Result<Option<Made>, Unavailable> {
        // Whether it is in none of them is known once all have answered.
        let mut unknown = Ok(None);
        for site in &self.0.sites {
            match site.find(name).await {
                Ok(Some(made)) => return Ok(Some(made)),
                Ok(None) => {}
                Err(error) => unknown = Err(error),
            }
        }
        unknown
    }

    async fn list(&self) -> Listed {
        let mut listed = self.listed().await;
        let mut lost_pods = self.0.lost_pods.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for instance in listed.instances.iter().filter(|instance| lost_pods::has_pod(instance)) {
            lost_pods.remove(&instance.name);
        }
        listed.instances.retain(|instance| !lost_pods.contains(&instance.name));
        listed.instances.extend(lost_pods.into_iter().map(|name| Instance {
            name,
            created: System.now(),
            state: State::Exited(Exit { how: How::Failed(DELETED), message: Some("the pod is gone".into()) }),
        }));
        listed
    }

    async fn delete(&self, name: Name) -> Result<bool, Unavailable> {
        let mut there = Ok(false);
        for site in &self.0.sites {
            match site.delete(name).await {
                Ok(deleted) => there = there.map(|there| there || deleted),
                Err(error) => there = Err(error),
            }
        }
        there
    }
}
