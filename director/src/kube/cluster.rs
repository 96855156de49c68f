//! A cluster as whoever sets a Garage up on it sees it: whether games can run there, and what is left of them.

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

use super::{ANSWER, Refusal, ask, gone, manifest};

/// What a director does with a namespace, in the words of roles.
const RIGHTS: [(&str, &[&str]); 3] = [
    ("pods", &["create", "delete", "get", "list", "watch"]),
    ("secrets", &["create", "delete", "get", "list", "patch", "watch"]),
    ("nodes", &["get"]),
];

/// Requests at a time; as many as a director has reactions.
const AT_ONCE: usize = 16;

/// Between two looks at what is on its way.
const POLL: Duration = Duration::from_millis(100);

/// One namespace of a cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    namespace: String,
    /// Where it is, and who says so, for errors.
    place: String,
    /// Whose instances it is about, by their label.
    owner: &'static str,
}

/// What there is in a namespace of Garage's, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// Pods, those on their way out too.
    pub pods: Vec<String>,
    /// Secrets.
    pub secrets: Vec<String>,
}

impl Left {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.secrets.is_empty()
    }
}

impl Cluster {
    /// Finds the cluster; nothing is asked of it yet.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub async fn find(kubeconfig: &Path, namespace: &str) -> anyhow::Result<Self> {
        let wrong = || format!("cannot use {} (--kubeconfig)", kubeconfig.display());
        let read = Kubeconfig::read_from(kubeconfig).with_context(wrong)?;
        let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
        let mut config = config.with_context(wrong)?;
        config.connect_timeout = Some(ANSWER);
        let place = format!("cluster {} of {}", config.cluster_url, kubeconfig.display());
        let client = Client::try_from(config).with_context(wrong)?;
        Ok(Self { client, namespace: namespace.to_owned(), place, owner: manifest::MANAGED_BY.1 })
    }

    /// The same, as far as somebody else's instances go.
    pub(super) fn of(self, owner: &'static str) -> Self {
        Self { owner, ..self }
    }

    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(super) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The pods without what they are.
    pub(super) fn names(&self) -> Api<PartialObjectMeta<Pod>> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The secrets without what is in them.
    pub(super) fn labels(&self) -> Api<PartialObjectMeta<Secret>> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// What finds the instances by their label.
    pub(super) fn selector(&self) -> String {
        format!("{}={}", manifest::MANAGED_BY.0, self.owner)
    }

    /// Sees to it that games can run: the cluster answers, the namespace is there or is made, and whoever the kubeconfig
    /// says may do what a director does.
    ///
    /// # Errors
    /// What is in the way, and what to do about it.
    pub async fn prepare(&self) -> anyhow::Result<()> {
        let reached = ask(self.client.apiserver_version()).await;
        reached.map_err(|refusal| self.refused(refusal, "reach it; see that it runs, and can be reached from here"))?;
        self.have_namespace().await?;
        let rights = RIGHTS.iter().flat_map(|(resource, verbs)| verbs.iter().map(move |verb| (*resource, *verb)));
        let asked = try_join_all(rights.map(async |(resource, verb)| {
            let allowed = self.allowed(verb, resource).await?;
            anyhow::Ok((!allowed).then(|| format!("{verb} {resource}")))
        }));
        let lacking: Vec<_> = asked.await?.into_iter().flatten().collect();
        ensure!(
            lacking.is_empty(),
            "{}: whoever it is asked as may not {} in namespace {}, as a director does; bind a role that allows it",
            self.place,
            lacking.join(", "),
            self.namespace
        );
        Ok(())
    }

    async fn have_namespace(&self) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        let name = &self.namespace;
        match ask(namespaces.get(name)).await {
            Ok(_) => return Ok(()),
            // Who has rights in a namespace alone cannot look; what he may do there is asked next.
            Err(refusal) if refusal.is("Forbidden") => return Ok(()),
            Err(refusal) if refusal.is("NotFound") => {}
            Err(refusal) => return Err(self.refused(refusal, &format!("look for namespace {name}"))),
        }
        let wanted = Namespace {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        match ask(namespaces.create(&PostParams::default(), &wanted)).await {
            Ok(_) => Ok(()),
            Err(refusal) if refusal.is("AlreadyExists") => Ok(()),
            Err(refusal) => {
                let what = format!("make namespace {name}; have somebody `kubectl create namespace {name}`");
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
        let answer = ask(reviews.create(&PostParams::default(), &review)).await;
        let answer = answer.map_err(|refusal| self.refused(refusal, "ask what may be done there"))?;
        Ok(matches!(answer.status, Some(SubjectAccessReviewStatus { allowed: true, .. })))
    }

    fn refused(&self, refusal: Refusal, what: &str) -> anyhow::Error {
        let unknown = refusal.is("Unauthorized");
        let what = if unknown { "be known there; get a kubeconfig whose credentials are valid" } else { what };
        refusal.unavailable(what).0.context(self.place.clone())
    }

    /// What of Garage's there is.
    ///
    /// # Errors
    /// When the cluster does not tell.
    pub async fn left(&self) -> anyhow::Result<Left> {
        let (pods, secrets) = self.all().await?;
        Ok(Left {
            pods: pods.iter().map(ResourceExt::name_any).collect(),
            secrets: secrets.iter().map(ResourceExt::name_any).collect(),
        })
    }

    async fn all(&self) -> anyhow::Result<(Vec<PartialObjectMeta<Pod>>, Vec<PartialObjectMeta<Secret>>)> {
        let ours = ListParams::default().labels(&self.selector());
        let (pods, secrets) = (self.pods(), self.secrets());
        let listed = try_join(ask(pods.list_metadata(&ours)), ask(secrets.list_metadata(&ours))).await;
        let what = || format!("list what is in namespace {}", self.namespace);
        let (pods, secrets) = listed.map_err(|refusal| self.refused(refusal, &what()))?;
        Ok((pods.items, secrets.items))
    }

    /// Waits until nothing of Garage's is there.
    ///
    /// # Errors
    /// What is there still after so long.
    pub async fn wait_empty(&self, max_wait: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + max_wait;
        while !self.is_empty_by(deadline).await? {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Removes all of Garage's, and waits until it is gone.
    ///
    /// # Errors
    /// What is there still after so long, or why it cannot be removed.
    pub async fn clear(&self, max_wait: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + max_wait;
        loop {
            // Not only once: what a director asked for when it was killed may still be made.
            self.remove().await?;
            if self.is_empty_by(deadline).await? {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether nothing is there; past the deadline something is an error.
    async fn is_empty_by(&self, deadline: Instant) -> anyhow::Result<bool> {
        let left = self.left().await?;
        if !left.is_empty() && Instant::now() >= deadline {
            let names: Vec<_> = left.pods.iter().chain(&left.secrets).map(String::as_str).collect();
            bail!("still in namespace {}: {}", self.namespace, names.join(", "));
        }
        Ok(left.is_empty())
    }

    async fn remove(&self) -> anyhow::Result<()> {
        let (pods, secrets) = self.all().await?;
        let (pod_api, secret_api) = (self.pods(), self.secrets());
        let exact = |metadata: &ObjectMeta| {
            let only = Preconditions { uid: metadata.uid.clone(), resource_version: None };
            DeleteParams::default().preconditions(only)
        };
        // Those on their way out are asked for no more.
        let pods = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let removed = stream::iter(pods)
            .map(async |pod| gone(ask(pod_api.delete(&pod.name_any(), &exact(&pod.metadata))).await, "delete a pod"));
        removed.buffer_unordered(AT_ONCE).try_collect::<()>().await.map_err(|error| error.0)?;
        let removed = stream::iter(secrets).map(async |secret| {
            gone(ask(secret_api.delete(&secret.name_any(), &exact(&secret.metadata))).await, "delete a secret")
        });
        removed.buffer_unordered(AT_ONCE).try_collect::<()>().await.map_err(|error| error.0)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client knows secrets.
        f.debug_struct("Cluster")
            .field("place", &self.place)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}
