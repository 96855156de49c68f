//! The game servers of a local Garage: processes on this machine, or pods in a Kubernetes cluster.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Parser;
use garage_director::{
    Config,
    config::{Kind, PullPolicy},
    kube::cluster::Cluster,
};
use garage_stack::workers;

use crate::report::say;

/// How long the cluster may take to remove pods. It is many times the termination grace period of a game server.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// How long a cluster may take until it admits pods into a new namespace.
pub(crate) const MAX_ADMISSION: Duration = Duration::from_secs(30);

/// The flags that select how game servers run.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// How game servers run: as processes on this machine, or as pods in a Kubernetes cluster. Everything else runs on
    /// this machine. At the end, all remaining pods and their secrets are removed.
    #[arg(long, default_value = "process", value_name = "KIND")]
    director: Kind,
    /// The kubeconfig file with the cluster and your account.
    #[arg(long, value_name = "FILE", required_if_eq("director", "kube"))]
    kubeconfig: Option<PathBuf>,
    /// The namespace of the game servers. It is created if it does not exist, and must contain no game servers of
    /// another Garage. The default is `garage`.
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// The image of the game server. Its entry point is the game server.
    #[arg(long, required_if_eq("director", "kube"))]
    image: Option<String>,
    /// When a node pulls the image. The default is `IfNotPresent`.
    #[arg(long, value_name = "POLICY")]
    pull_policy: Option<PullPolicy>,
    /// The address of this machine at which pods reach NATS. NATS then listens on all addresses. The default is
    /// 127.0.0.1, for a cluster on this machine, whose pods use the network of the host.
    #[arg(long, value_name = "IP")]
    advertise: Option<IpAddr>,
}

/// Where game servers run. `None`: as processes on this machine.
#[derive(Debug)]
pub(crate) struct Games(Option<(Cluster, workers::Pods)>);

impl Flags {
    /// Checks that game servers can run in the cluster, that it admits their pods, and that the namespace contains none.
    /// Creates a namespace that does not exist.
    pub(crate) async fn prepare(self) -> anyhow::Result<Games> {
        let Self { director, kubeconfig, namespace, image, pull_policy, advertise } = self;
        if director == Kind::Process {
            let given = [
                ("--kubeconfig", kubeconfig.is_some()),
                ("--namespace", namespace.is_some()),
                ("--image", image.is_some()),
                ("--pull-policy", pull_policy.is_some()),
                ("--advertise", advertise.is_some()),
            ];
            let unused = given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag);
            ensure!(unused.is_none(), "{} requires --director kube", unused.unwrap_or_default());
            return Ok(Games(None));
        }
        let (kubeconfig, image) = kubeconfig.zip(image).context("--director kube needs --kubeconfig and --image")?;
        let namespace = namespace.unwrap_or_else(|| "garage".into());
        let cluster = Cluster::find(&kubeconfig, &namespace).await?;
        cluster.prepare().await?;
        // The director would remove game servers that its log does not know, and `clear` removes all others at the end.
        let remaining = cluster.remaining().await?;
        ensure!(
            remaining.is_empty(),
            "pods ({}) and secrets ({}) are in namespace {namespace}, of another Garage or of one that was killed; use \
             another namespace, or, if nobody plays there, run `kubectl -n {namespace} delete pods,secrets -l \
             app.kubernetes.io/managed-by=garage`",
            remaining.pods.len(),
            remaining.secrets.len()
        );
        let pods = workers::Pods {
            kubeconfig: std::path::absolute(kubeconfig)?,
            namespace,
            image,
            pull_policy: pull_policy.unwrap_or(PullPolicy::IfNotPresent).to_string(),
            advertise: advertise.unwrap_or(Ipv4Addr::LOCALHOST.into()),
        };
        let template = tempfile::NamedTempFile::new()?;
        fs::write(&template, workers::POD)?;
        let config = director_config(&pods, template.path())?;
        cluster.admits(&config.kube, &config.process, MAX_ADMISSION).await?;
        Ok(Games(Some((cluster, pods))))
    }
}

/// The configuration that the director of a stack will have, as far as it shapes the pods. Like that director, it also
/// reads the environment.
fn director_config(pods: &workers::Pods, template: &Path) -> anyhow::Result<Config> {
    let mut flags = vec![
        ("--backend", Path::new("kube")),
        ("--kubeconfig", &pods.kubeconfig),
        ("--namespace", Path::new(&pods.namespace)),
        ("--image", Path::new(&pods.image)),
        ("--pull-policy", Path::new(&pods.pull_policy)),
        // Required, but not read here.
        ("--seal-key-file", Path::new("none")),
        ("--token-key-file", Path::new("none")),
    ];
    if env::var_os("GARAGE_POD_TEMPLATE").is_none() {
        flags.push(("--pod-template", template));
    }
    let flags = flags.into_iter().map(|(flag, value)| format!("{flag}={}", value.display()));
    Ok(Config::try_parse_from(["garage-director".to_owned()].into_iter().chain(flags))?)
}

impl Games {
    /// The same setting in the form that a stack takes.
    pub(crate) fn options(&self) -> workers::Games {
        self.0.as_ref().map_or(workers::Games::Process, |(_, pods)| workers::Games::Kube(pods.clone()))
    }

    /// Waits until the director has removed every pod and secret. Call it when all sessions are closed.
    pub(crate) async fn wait_none_left(&self) -> anyhow::Result<()> {
        let Some((cluster, _)) = &self.0 else { return Ok(()) };
        cluster.wait_empty(MAX_WAIT).await.context("all sessions are closed, but the cluster is not empty")?;
        self.say_none_left();
        Ok(())
    }

    /// Removes all remaining pods and secrets, after the director has stopped. Returns `ended`, or the error if the
    /// removal fails after a success.
    pub(crate) async fn clear(&self, ended: anyhow::Result<()>) -> anyhow::Result<()> {
        let Some((cluster, _)) = &self.0 else { return ended };
        match cluster.clear(MAX_WAIT).await.context("cannot remove all pods and secrets of this Garage") {
            Ok(()) => self.say_none_left(),
            Err(error) if ended.is_ok() => return Err(error),
            // The earlier error is returned, so this one is printed.
            Err(error) => say(format!("FAILED  {error:#}")),
        }
        ended
    }

    fn say_none_left(&self) {
        if let Some((_, pods)) = &self.0 {
            say(format!("no pod and no secret of this Garage is left in namespace {}", pods.namespace));
        }
    }
}
