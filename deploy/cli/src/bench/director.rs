//! `garage bench director`: how quickly a director makes pods, beside the cluster itself.

mod stage;

use std::{
    fs, future,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;
use futures::{StreamExt, TryStreamExt, future::try_join, stream};
use garage_apiserver::ApiServer;
use garage_director::{
    backend::Order,
    kube::{
        baseline_client::{BaselineClient, Coming},
        cluster::Cluster,
    },
};
use garage_stack::process::{Launch, Process};
use garage_worker::Shutdown;

use self::stage::Stage;
use super::unless;
use crate::report::{percentile, say, table};

/// Pods that the bare client asks for at a time: a director has as many reactions.
const AT_ONCE: usize = 16;

/// How long the pods of a round may take to come, or to go.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// A pod that no node takes: only the making of it is measured.
const POD: &str = "spec: {nodeSelector: {garage/bench: nobody}}\n";

/// Pods that a director makes a second, beside a client that only asks the cluster for them.
///
/// A round is as many sessions as --pods, appended to a log at once, until the cluster has a pod of each; or as many
/// pods made by the same three requests each, 16 at a time, without a director. They take turns. No pod ever runs, and
/// nothing but the namespace is left.
#[derive(Debug, clap::Args)]
pub(crate) struct Director {
    /// The file that says where the cluster is and as whom to ask it; by default the cluster is a double of the API
    /// server, in a process of its own.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The namespace of the cluster that the pods are in, and nobody else's; made when it is not there.
    #[arg(long, value_name = "NAME", default_value = "garage-bench")]
    namespace: String,
    /// The image that the pods name.
    #[arg(long, default_value = "garage-gameserver:bench")]
    image: String,
    /// Pods of a round.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pods: u32,
    /// Rounds of each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

impl Director {
    pub(super) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let folder = tempfile::Builder::new().prefix("garage-bench-").tempdir()?;
        let double = match self.kubeconfig {
            Some(_) => None,
            None => Some(Double::start(folder.path()).await?),
        };
        let kubeconfig = match (&self.kubeconfig, &double) {
            (Some(file), _) => std::path::absolute(file)?,
            (None, _) => folder.path().join("kubeconfig"),
        };
        let cluster = Cluster::find(&kubeconfig, &self.namespace).await?;
        cluster.prepare().await?;
        ensure!(cluster.left().await?.is_empty(), "a Garage has pods in namespace {}; take another", self.namespace);
        let template = folder.path().join("pod.yaml");
        fs::write(&template, POD)?;
        let flags = [
            ("--backend", Path::new("kube")),
            ("--kubeconfig", &kubeconfig),
            ("--namespace", Path::new(&self.namespace)),
            ("--image", Path::new(&self.image)),
            ("--pod-template", &template),
            // They wait for a node for as long as they are there.
            ("--pod-patience", Path::new("1000000")),
            ("--seal-key-file", &folder.path().join("seal.key")),
            ("--token-key-file", &folder.path().join("token.pub.pem")),
        ];
        let flags = flags.map(|(flag, value)| format!("{flag}={}", value.display()));
        let notified = ["garage-director"].into_iter().chain(flags.iter().map(String::as_str));
        let baseline = BaselineClient::new(&cluster, &garage_director::Config::try_parse_from(notified)?.kube)?;
        let result = unless(&shutdown, self.measure(folder.path(), &cluster, &baseline, &flags)).await;
        // The director has ended: nobody makes any more.
        let cleared = try_join(cluster.clear(MAX_WAIT), baseline.cluster().clear(MAX_WAIT)).await;
        result.and(cleared.map(drop))
    }

    async fn measure(
        &self,
        folder: &Path,
        cluster: &Cluster,
        baseline: &BaselineClient,
        flags: &[String],
    ) -> anyhow::Result<()> {
        let stage = Stage::start(folder, flags).await?;
        // What the first requests bring about is no round's.
        directed(&stage, cluster, AT_ONCE).await?;
        asked(&stage, baseline, AT_ONCE).await?;
        let count = usize::try_from(self.pods)?;
        let (mut by_director, mut by_client) = (Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            if round % 2 == 0 {
                by_director.push(directed(&stage, cluster, count).await?);
                by_client.push(asked(&stage, baseline, count).await?);
            } else {
                by_client.push(asked(&stage, baseline, count).await?);
                by_director.push(directed(&stage, cluster, count).await?);
            }
            say(format!("  round {round} of {}", self.rounds));
        }
        let at = self.kubeconfig.as_ref().map_or_else(
            || "a double of the API server, in a process of its own".to_owned(),
            |file| format!("the cluster of {}", file.display()),
        );
        say(format!("\n{} rounds of {} pods each, in turn, on {at}", self.rounds, self.pods));
        let client = Rates::of(by_client, self.pods);
        let director = Rates::of(by_director, self.pods);
        let rows = [client.row("a client alone, 16 at a time (limit)", &client), director.row("a director", &client)];
        table(&["pods a second", "median", "least", "most", "of the limit"], &rows);
        Ok(())
    }
}

/// A round of the director's: from the first append until the last pod is there.
async fn directed(stage: &Stage, cluster: &Cluster, count: usize) -> anyhow::Result<Duration> {
    let mut coming = Coming::watch(cluster).await?;
    let began = Instant::now();
    let appended = stage.sessions(count);
    let come = async { tokio::time::timeout(MAX_WAIT, coming.until(count)).await.context("the pods do not come")? };
    let (sessions, ()) = try_join(appended, come).await?;
    let took = began.elapsed();
    stage.close(&sessions).await?;
    cluster.wait_empty(MAX_WAIT).await?;
    Ok(took)
}

/// The same pods without a director.
async fn asked(stage: &Stage, baseline: &BaselineClient, count: usize) -> anyhow::Result<Duration> {
    let orders = (0..count).map(|_| stage.order()).collect::<anyhow::Result<Vec<Order>>>()?;
    let mut coming = Coming::watch(baseline.cluster()).await?;
    let began = Instant::now();
    let making = stream::iter(&orders).map(|order| baseline.make(order)).buffer_unordered(AT_ONCE);
    let made = making.try_for_each(|()| future::ready(Ok(())));
    try_join(made, coming.until(count)).await?;
    let took = began.elapsed();
    baseline.cluster().clear(MAX_WAIT).await?;
    Ok(took)
}

/// Pods a second, of all rounds, in order.
#[derive(Debug)]
struct Rates(Vec<f64>);

impl Rates {
    fn of(rounds: Vec<Duration>, pods: u32) -> Self {
        let mut rates: Vec<f64> = rounds.into_iter().map(|took| f64::from(pods) / took.as_secs_f64()).collect();
        rates.sort_by(f64::total_cmp);
        Self(rates)
    }

    fn row(&self, name: &str, limit: &Self) -> Vec<String> {
        let at = |share| percentile(&self.0, share).unwrap_or(f64::NAN);
        let most = percentile(&limit.0, 0.5).unwrap_or(f64::NAN);
        let rates = [0.5, 0.0, 1.0].map(|share| format!("{:.0}", at(share)));
        [name.to_owned()].into_iter().chain(rates).chain([format!("{:.2}", at(0.5) / most)]).collect()
    }
}

/// A double of the API server, for `garage bench director`.
#[derive(Debug, clap::Args)]
pub(crate) struct Double {
    /// Where the kubeconfig is written, once it serves.
    kubeconfig: PathBuf,
}

impl Double {
    async fn start(folder: &Path) -> anyhow::Result<Process> {
        let kubeconfig = folder.join("kubeconfig");
        let mut process = Launch::new("the double", std::env::current_exe()?, folder.join("double.log"))
            .args(["bench", "api-server"])
            .arg(&kubeconfig)
            .spawn()?;
        process.wait_until("serve", async || kubeconfig.exists()).await?;
        Ok(process)
    }

    pub(super) async fn run(self) -> anyhow::Result<()> {
        let double = ApiServer::start().await?;
        // Whole, or not there.
        let unfinished = self.kubeconfig.with_extension("unfinished");
        fs::write(&unfinished, double.kubeconfig())?;
        fs::rename(unfinished, self.kubeconfig)?;
        future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_rates_and_what_part_of_the_limit_they_are() {
        let rates = |millis: &[u64]| Rates::of(millis.iter().copied().map(Duration::from_millis).collect(), 100);
        let limit = rates(&[500, 250, 1_000]);
        assert_eq!(limit.row("limit", &limit), ["limit", "200", "100", "400", "1.00"]);
        assert_eq!(rates(&[1_000]).row("ours", &limit), ["ours", "100", "100", "100", "0.50"]);
    }
}
