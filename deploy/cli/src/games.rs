//! What runs the game servers of a local Garage: processes of this machine, or the pods of a cluster.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, ensure};
use garage_director::{
    config::{Kind, PullPolicy},
    kube::cluster::Cluster,
};
use garage_stack::workers;

use crate::report::say;

/// How long the cluster has to be rid of pods: many times the grace that game servers have.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// What is said of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// What runs game servers: processes of this machine, or a Kubernetes cluster. All else runs here in either case.
    /// Of pods nothing is left in the end: those that run still are removed, with their secrets.
    #[arg(long, default_value = "process", value_name = "WHAT")]
    director: Kind,
    /// The file that says where the cluster is and as whom to ask it.
    #[arg(long, value_name = "FILE", required_if_eq("director", "kube"))]
    kubeconfig: Option<PathBuf>,
    /// The namespace of the cluster that game servers run in, and nobody else's do; made when it is not there. By
    /// default `garage`.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// The game server's image.
    #[arg(long, required_if_eq("director", "kube"))]
    image: Option<String>,
    /// When a node pulls the image; by default when it has none of that name.
    #[arg(long, value_name = "POLICY")]
    pull_policy: Option<PullPolicy>,
    /// The address of this machine by which pods reach NATS, which listens there too. By default 127.0.0.1, which pods
    /// reach that run on this machine: they have its network.
    #[arg(long, value_name = "IP")]
    advertise: Option<IpAddr>,
}

/// What runs game servers, and can.
#[derive(Debug)]
pub(crate) struct Games(Option<(Cluster, workers::Pods)>);

impl Flags {
    /// Sees to it that game servers can run there, and none does yet.
    pub(crate) async fn prepare(self) -> anyhow::Result<Games> {
        let Self { director, kubeconfig, namespace, image, pull_policy, advertise } = self;
        if director == Kind::Process {
            let said = [
                ("--kubeconfig", kubeconfig.is_some()),
                ("--namespace", namespace.is_some()),
                ("--image", image.is_some()),
                ("--pull-policy", pull_policy.is_some()),
                ("--advertise", advertise.is_some()),
            ];
            let idle = said.into_iter().find(|(_, said)| *said).map(|(flag, _)| flag);
            ensure!(idle.is_none(), "{} is of use with --director kube only", idle.unwrap_or_default());
            return Ok(Games(None));
        }
        let (kubeconfig, image) = kubeconfig.zip(image).context("--director kube needs --kubeconfig and --image")?;
        let namespace = namespace.unwrap_or_else(|| "garage".into());
        let cluster = Cluster::find(&kubeconfig, &namespace).await?;
        cluster.prepare().await?;
        // A director takes for orphans what its log does not know, and what it leaves is removed in the end.
        let left = cluster.left().await?;
        ensure!(
            left.is_empty(),
            "a Garage's pods ({}) and secrets ({}) are in namespace {namespace}: another's, or of one that was killed; take \
             another namespace, or, if nobody plays there, `kubectl -n {namespace} delete pods,secrets -l \
             app.kubernetes.io/managed-by=garage`",
            left.pods.len(),
            left.secrets.len()
        );
        let pods = workers::Pods {
            kubeconfig: std::path::absolute(kubeconfig)?,
            namespace,
            image,
            pull_policy: pull_policy.unwrap_or(PullPolicy::IfNotPresent).to_string(),
            advertise: advertise.unwrap_or(Ipv4Addr::LOCALHOST.into()),
        };
        Ok(Games(Some((cluster, pods))))
    }
}

impl Games {
    /// What a stack is to be told.
    pub(crate) fn options(&self) -> workers::Games {
        self.0.as_ref().map_or(workers::Games::Process, |(_, pods)| workers::Games::Kube(pods.clone()))
    }

    /// Waits until the director has removed every pod and secret: of closed sessions none is to be left.
    pub(crate) async fn wait_none_left(&self) -> anyhow::Result<()> {
        let Some((cluster, _)) = &self.0 else { return Ok(()) };
        cluster.wait_empty(MAX_WAIT).await.context("all sessions are closed, and yet")?;
        self.say_none_left();
        Ok(())
    }

    /// Removes what is left of a Garage whose director is gone, however it ended.
    pub(crate) async fn clear(&self, ended: anyhow::Result<()>) -> anyhow::Result<()> {
        let Some((cluster, _)) = &self.0 else { return ended };
        match cluster.clear(MAX_WAIT).await.context("what this Garage has in the cluster is not all removed") {
            Ok(()) => self.say_none_left(),
            Err(error) if ended.is_ok() => return Err(error),
            // Why it ended is the error; this has to be known besides.
            Err(error) => say(format!("FAILED  {error:#}")),
        }
        ended
    }

    fn say_none_left(&self) {
        if let Some((_, pods)) = &self.0 {
            say(format!("no pod and no secret of it is left in namespace {}", pods.namespace));
        }
    }
}
