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

mod addresses;
pub mod baseline_client;
pub mod cluster;
mod dry_run;
pub(crate) mod lost_pods;
mod manifest;
pub mod node;
mod pod_status;
mod pods;
mod quantity;
mod refusal;
mod site;
mod template;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, ensure};
use futures::future::{join_all, select_all, try_join_all};
use garage_events::{
    env::{Env, System},
    id::Region,
    queue::Queues,
};
use garage_worker::Shutdown;
use kube::config::Kubeconfig;

use self::{dry_run::Verdict, site::Site, template::PodSettings};
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
pub(crate) fn check(config: &config::Kube, games: &config::Process) -> anyhow::Result<()> {
    PodSettings::load(config, games)?;
    let regions = regions(config)?;
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
        let settings = PodSettings::load(config, games)?;
        Ok(Self(Arc::new(Inner { sites, regions, settings, lost_pods: Mutex::default() })))
    }

    /// The namespace that game servers run in.
    pub fn namespace(&self) -> &str {
        self.0.sites.first().map_or("", Site::namespace)
    }

    /// Asks each cluster whether it would create a game server's pod, with a dry run for each region. A cluster that does
    /// not answer is not an error: the director waits for it.
    ///
    /// # Errors
    /// Why a cluster would refuse every pod, and what to do.
    pub async fn dry_run(&self) -> anyhow::Result<()> {
        let regions: Vec<_> = match self.0.regions.keys().map(Some).collect::<Vec<_>>() {
            none if none.is_empty() => vec![None],
            regions => regions,
        };
        let verdicts = regions.into_iter().map(async |region| {
            let (site, selector) = match region {
                Some(region) => self.0.site_for(region).context("a region has no cluster")?,
                None => (self.0.sites.first().context("no cluster is set")?, &[][..]),
            };
            site.dry_run(region, selector, &self.0.settings).await
        });
        for verdict in try_join_all(verdicts).await? {
            match verdict {
                Verdict::Admitted => {}
                Verdict::Refused(error) => return Err(error),
                Verdict::Unknown(error) => tracing::warn!("{error}; the director starts nevertheless"),
            }
        }
        Ok(())
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

    fn is_lost(&self, name: Name) -> bool {
        self.0.lost_pods.lock().unwrap_or_else(PoisonError::into_inner).contains(&name)
    }

    /// Lists the instances of all clusters, without the lost instances.
    async fn list_existing(&self) -> Listing {
        let mut all = Listing { instances: Vec::new(), complete: Ok(()), unplaced: None };
        for listed in join_all(self.0.sites.iter().map(Site::list)).await {
            match listed {
                Ok((instances, unplaced)) => {
                    all.instances.extend(instances);
                    all.unplaced = all.unplaced.or(unplaced);
                }
                Err(error) => all.complete = Err(error),
            }
        }
        all
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
