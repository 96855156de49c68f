//! A cluster as `garage up` and `garage bench` see it: checks whether game servers can run there, and removes
//! leftover pods and secrets.

use std::{fmt, path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use futures::{
    StreamExt, TryStreamExt,
    future::{try_join, try_join_all},
    stream,
};
use k8s_openapi::{
    api::{
        authorization::v1::{
            ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReviewStatus,
        },
        core::v1::{Namespace, Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, Preconditions},
    config::{KubeConfigOptions, Kubeconfig},
    core::PartialObjectMeta,
};
use tokio::time::Instant;

use super::{
    TIMEOUT,
    dry_run::{Verdict, dry_run},
    manifest,
    refusal::{Refusal, ignore_missing, request},
    template::PodSettings,
};
use crate::config;

/// The rights that a director needs, as roles name them: a resource, and verbs.
const RIGHTS: [(&str, &[&str]); 3] = [
    ("pods", &["create", "delete", "get", "list", "watch"]),
    ("secrets", &["create", "delete", "get", "list", "patch", "watch"]),
    ("nodes", &["get"]),
];

/// Requests sent at the same time: as many as a director has reactions.
const CONCURRENCY: usize = 16;

/// Time between two checks while waiting for objects to disappear.
const POLL: Duration = Duration::from_millis(100);

/// One namespace of a cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    /// The cluster's URL and the kubeconfig that names it, for error messages.
    description: String,
    /// The value of the managed-by label that the instances have.
    owner: &'static str,
}

/// The names of the pods and secrets in a namespace that belong to Garage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remaining {
    /// Includes pods that are being deleted.
    pub pods: Vec<String>,
    /// Includes secrets without a pod.
    pub secrets: Vec<String>,
}

impl Remaining {
    /// Whether there are neither pods nor secrets.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.secrets.is_empty()
    }
}

impl Cluster {
    /// Reads the kubeconfig of the cluster. Nothing is sent to the cluster yet.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn find(kubeconfig: &Path, namespace: &str) -> anyhow::Result<Self> {
        let invalid = || format!("cannot use {} (--kubeconfig)", kubeconfig.display());
        let read = Kubeconfig::read_from(kubeconfig).with_context(invalid)?;
        let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
        let mut config = config.with_context(invalid)?;
        config.connect_timeout = Some(TIMEOUT);
        let description = format!("cluster {} of {}", config.cluster_url, kubeconfig.display());
        let client = Client::try_from(config).with_context(invalid)?;
        Ok(Self { client, namespace: namespace.to_owned(), description, owner: manifest::MANAGED_BY.1 })
    }

    /// The same cluster, for instances with another value of the managed-by label.
    pub(super) fn with_owner(self, owner: &'static str) -> Self {
        Self { owner, ..self }
    }

    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(super) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The pods' metadata only.
    pub(super) fn pod_metadata(&self) -> Api<PartialObjectMeta<Pod>> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The secrets' metadata only.
    pub(super) fn secret_metadata(&self) -> Api<PartialObjectMeta<Secret>> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The label selector of the instances.
    pub(super) fn selector(&self) -> String {
        format!("{}={}", manifest::MANAGED_BY.0, self.owner)
    }

    /// Makes sure that game servers can run: the cluster answers, the namespace exists or is created, and the user of
    /// the kubeconfig has the rights that a director needs.
    ///
    /// # Errors
    /// The first problem, and how to solve it.
    pub async fn prepare(&self) -> anyhow::Result<()> {
        let version = request(self.client.apiserver_version()).await;
        version.map_err(|refusal| {
            self.refused(refusal, "reach it; check that it runs and is reachable from this machine")
        })?;
        self.ensure_namespace().await?;
        let rights = RIGHTS.iter().flat_map(|(resource, verbs)| verbs.iter().map(move |verb| (*resource, *verb)));
        let reviews = try_join_all(rights.map(async |(resource, verb)| {
            let allowed = self.allowed(verb, resource).await?;
            anyhow::Ok((!allowed).then(|| format!("{verb} {resource}")))
        }));
        let missing: Vec<_> = reviews.await?.into_iter().flatten().collect();
        ensure!(
            missing.is_empty(),
            "{}: the kubeconfig's user may not {} in namespace {}; bind a role with the rights of a director",
            self.description,
            missing.join(", "),
            self.namespace
        );
        Ok(())
    }

    /// Makes sure that the cluster admits the pods of a director with this configuration, with a dry run of one pod. If
    /// the namespace is new, the cluster may need some seconds before it admits any pod.
    ///
    /// # Errors
    /// Why the pod would be refused and what to do, or why there is no answer after `max_wait`.
    pub async fn admits(
        &self,
        config: &config::Kube,
        games: &config::Process,
        max_wait: Duration,
    ) -> anyhow::Result<()> {
        let settings = PodSettings::load(config, games)?;
        let deadline = Instant::now() + max_wait;
        loop {
            let pod = manifest::pod(&manifest::example(None)?, &[], 900, &settings)?;
            match dry_run(&self.pods(), &self.namespace, &pod).await {
                Verdict::Admitted => return Ok(()),
                Verdict::Refused(error) => return Err(error.context(self.description.clone())),
                Verdict::Unknown(error) if Instant::now() >= deadline => {
                    return Err(error.0.context(self.description.clone()));
                }
                Verdict::Unknown(_) => tokio::time::sleep(POLL).await,
            }
        }
    }

    async fn ensure_namespace(&self) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let name = &self.namespace;
        match request(namespaces.get(name)).await {
            Ok(_) => return Ok(()),
            // A user with rights in a single namespace may not read namespaces. Their rights are checked next.
            Err(refusal) if refusal.is("Forbidden") => return Ok(()),
            Err(refusal) if refusal.is("NotFound") => {}
            Err(refusal) => return Err(self.refused(refusal, &format!("look for namespace {name}"))),
        }
        let wanted = Namespace {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        match request(namespaces.create(&PostParams::default(), &wanted)).await {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.is("AlreadyExists") => Ok(()),
            Err(refusal) => {
                let what =
                    format!("create namespace {name}; ask an administrator to run `kubectl create namespace {name}`");
                Err(self.refused(refusal, &what))
            }
        }
    }

    async fn allowed(&self, verb: &str, resource: &str) -> anyhow::Result<bool> {
        let namespace = (resource != "nodes").then(|| self.namespace.clone());
        let attributes = ResourceAttributes {
            namespace,
            verb: Some(verb.into()),
            resource: Some(resource.into()),
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = request(reviews.create(&PostParams::default(), &review)).await;
        let answer = answer.map_err(|refusal| self.refused(refusal, "check the rights in the namespace"))?;
        Ok(matches!(answer.status, Some(SubjectAccessReviewStatus { allowed: true, .. })))
    }

    fn refused(&self, refusal: Refusal, what: &str) -> anyhow::Error {
        let unauthorized = refusal.is("Unauthorized");
        let what = if unauthorized { "log in; get a kubeconfig whose credentials are valid" } else { what };
        refusal.unavailable(what).0.context(self.description.clone())
    }

    /// Lists Garage's pods and secrets.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn remaining(&self) -> anyhow::Result<Remaining> {
        let (pods, secrets) = self.list().await?;
        Ok(Remaining {
            pods: pods.iter().map(ResourceExt::name_any).collect(),
            secrets: secrets.iter().map(ResourceExt::name_any).collect(),
        })
    }

    async fn list(&self) -> anyhow::Result<(Vec<PartialObjectMeta<Pod>>, Vec<PartialObjectMeta<Secret>>)> {
        let ours = ListParams::default().labels(&self.selector());
        let (pods, secrets) = (self.pods(), self.secrets());
        let listed = try_join(request(pods.list_metadata(&ours)), request(secrets.list_metadata(&ours))).await;
        let what = || format!("list the pods and secrets in namespace {}", self.namespace);
        let (pods, secrets) = listed.map_err(|refusal| self.refused(refusal, &what()))?;
        Ok((pods.items, secrets.items))
    }

    /// Waits until no pod and no secret of Garage remains.
    ///
    /// # Errors
    /// The names of the pods and secrets that remain after `max_wait`.
    pub async fn wait_empty(&self, max_wait: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + max_wait;
        while !self.is_empty_by(deadline).await? {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Deletes all pods and secrets of Garage, and waits until they are gone.
    ///
    /// # Errors
    /// The names of the pods and secrets that remain after `max_wait`, or the reason why one cannot be deleted.
    pub async fn clear(&self, max_wait: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + max_wait;
        loop {
            // Repeat the deletion: requests of a director that was just killed may still create objects.
            self.delete_all().await?;
            if self.is_empty_by(deadline).await? {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether no pod and no secret remains. After the deadline, any that remains is an error.
    async fn is_empty_by(&self, deadline: Instant) -> anyhow::Result<bool> {
        let remaining = self.remaining().await?;
        if !remaining.is_empty() && Instant::now() >= deadline {
            let names: Vec<_> = remaining.pods.iter().chain(&remaining.secrets).map(String::as_str).collect();
            bail!("still in namespace {}: {}", self.namespace, names.join(", "));
        }
        Ok(remaining.is_empty())
    }

    async fn delete_all(&self) -> anyhow::Result<()> {
        let (pods, secrets) = self.list().await?;
        let (pod_api, secret_api) = (self.pods(), self.secrets());
        let exact = |metadata: &ObjectMeta| {
            let only = Preconditions { uid: metadata.uid.clone(), resource_version: None };
            DeleteParams::default().preconditions(only)
        };
        // Skip pods that are being deleted already.
        let pods = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let removed = stream::iter(pods).map(async |pod| {
            ignore_missing(request(pod_api.delete(&pod.name_any(), &exact(&pod.metadata))).await, "delete a pod")
        });
        removed.buffer_unordered(CONCURRENCY).try_collect::<()>().await.map_err(|error| error.0)?;
        let removed = stream::iter(secrets).map(async |secret| {
            ignore_missing(
                request(secret_api.delete(&secret.name_any(), &exact(&secret.metadata))).await,
                "delete a secret",
            )
        });
        removed.buffer_unordered(CONCURRENCY).try_collect::<()>().await.map_err(|error| error.0)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client holds credentials, so it is left out.
        f.debug_struct("Cluster")
            .field("description", &self.description)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}
