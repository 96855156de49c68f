//! `garage bench director`: how fast a director creates pods, compared with a client that only sends the requests.

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
        baseline_client::{BaselineClient, PodArrivals},
        cluster::Cluster,
    },
};
use garage_stack::process::{Launch, Process};
use garage_worker::Shutdown;

use self::stage::Stage;
use super::interruptible;
use crate::{
    games,
    report::{percentile, say, table},
};

/// Concurrent requests of the baseline client. A director runs as many reactions at the same time.
const CONCURRENCY: usize = 16;

/// How long the cluster may take to create or to remove the pods of a round.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// A pod that fits no node. It never runs, because only its creation is measured.
const POD: &str = "spec: {nodeSelector: {garage/bench: nobody}}\n";

/// Measures the pods that a director creates per second, and a client that only sends the requests.
///
/// In a director's round, --pods sessions are appended to a log at once. The round ends when the cluster has a pod for
/// each. In a client's round, a client creates as many pods with the same three requests each, 16 pods at a time. The
/// rounds alternate. No pod ever runs. At the end, all pods are removed; a new namespace stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Director {
    /// The kubeconfig file with the cluster and your account. The default is a simulated API server in a separate
    /// process.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The namespace of the pods. It is created if it does not exist, and must contain no pods of another Garage.
    #[arg(long, value_name = "NAME", default_value = "garage-bench")]
    namespace: String,
    /// The image of the pods. It is never pulled.
    #[arg(long, default_value = "garage-gameserver:bench")]
    image: String,
    /// Pods per round.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pods: u32,
    /// Rounds of the director, and rounds of the client.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

impl Director {
    pub(super) async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let folder = tempfile::Builder::new().prefix("garage-bench-").tempdir()?;
        let simulated = match self.kubeconfig {
            Some(_) => None,
            None => Some(SimulatedApiServer::start(folder.path()).await?),
        };
        let kubeconfig = match (&self.kubeconfig, &simulated) {
            (Some(file), _) => std::path::absolute(file)?,
            (None, _) => folder.path().join("kubeconfig"),
        };
        let cluster = Cluster::find(&kubeconfig, &self.namespace).await?;
        cluster.prepare().await?;
        ensure!(
            cluster.remaining().await?.is_empty(),
            "namespace {} contains pods of a Garage; use another one",
            self.namespace
        );
        let template = folder.path().join("pod.yaml");
        fs::write(&template, POD)?;
        let flags = [
            ("--backend", Path::new("kube")),
            ("--kubeconfig", &kubeconfig),
            ("--namespace", Path::new(&self.namespace)),
            ("--image", Path::new(&self.image)),
            ("--pod-template", &template),
            // The director must not fail pods that wait for a node.
            ("--pod-patience", Path::new("1000000")),
            ("--seal-key-file", &folder.path().join("seal.key")),
            ("--token-key-file", &folder.path().join("token.pub.pem")),
        ];
        let flags = flags.map(|(flag, value)| format!("{flag}={}", value.display()));
        let line = ["garage-director"].into_iter().chain(flags.iter().map(String::as_str));
        let config = garage_director::Config::try_parse_from(line)?;
        cluster.admits(&config.kube, &config.process, games::MAX_ADMISSION).await?;
        let baseline = BaselineClient::new(&cluster, &config.kube, &config.process)?;
        let result = interruptible(&shutdown, self.measure(folder.path(), &cluster, &baseline, &flags)).await;
        // The director has stopped, so no new pod can appear.
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
        // Warms up: connections and caches are not part of a round.
        director_round(&stage, cluster, CONCURRENCY).await?;
        client_round(&stage, baseline, CONCURRENCY).await?;
        let count = usize::try_from(self.pods)?;
        let (mut by_director, mut by_client) = (Vec::new(), Vec::new());
        for round in 1..=self.rounds {
            if round % 2 == 0 {
                by_director.push(director_round(&stage, cluster, count).await?);
                by_client.push(client_round(&stage, baseline, count).await?);
            } else {
                by_client.push(client_round(&stage, baseline, count).await?);
                by_director.push(director_round(&stage, cluster, count).await?);
            }
            say(format!("  round {round} of {}", self.rounds));
        }
        let at = self.kubeconfig.as_ref().map_or_else(
            || "a simulated API server in a separate process".to_owned(),
            |file| format!("the cluster in {}", file.display()),
        );
        say(format!("\n{} rounds of {} pods for each, on {at}", self.rounds, self.pods));
        let client = Rates::of(by_client, self.pods);
        let director = Rates::of(by_director, self.pods);
        let rows = [client.row("a client alone, 16 at a time (limit)", &client), director.row("a director", &client)];
        table(&["pods per second", "median", "lowest", "highest", "share of the limit"], &rows);
        Ok(())
    }
}

/// A round of the director: from the first append until the last pod exists.
async fn director_round(stage: &Stage, cluster: &Cluster, count: usize) -> anyhow::Result<Duration> {
    let mut arrivals = PodArrivals::watch(cluster).await?;
    let began = Instant::now();
    let appended = stage.sessions(count);
    let arrived = async {
        tokio::time::timeout(MAX_WAIT, arrivals.wait_for(count)).await.context("not all pods were created in time")?
    };
    let (sessions, ()) = try_join(appended, arrived).await?;
    let took = began.elapsed();
    stage.close(&sessions).await?;
    cluster.wait_empty(MAX_WAIT).await?;
    Ok(took)
}

/// A round of the baseline client: the same pods without a director.
async fn client_round(stage: &Stage, baseline: &BaselineClient, count: usize) -> anyhow::Result<Duration> {
    let orders = (0..count).map(|_| stage.order()).collect::<anyhow::Result<Vec<Order>>>()?;
    let mut arrivals = PodArrivals::watch(baseline.cluster()).await?;
    let began = Instant::now();
    let creating = stream::iter(&orders).map(|order| baseline.create(order)).buffer_unordered(CONCURRENCY);
    let created = creating.try_for_each(|()| future::ready(Ok(())));
    try_join(created, arrivals.wait_for(count)).await?;
    let took = began.elapsed();
    baseline.cluster().clear(MAX_WAIT).await?;
    Ok(took)
}

/// Pods per second of each round, sorted.
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
        let limit = percentile(&limit.0, 0.5).unwrap_or(f64::NAN);
        let rates = [0.5, 0.0, 1.0].map(|share| format!("{:.0}", at(share)));
        [name.to_owned()].into_iter().chain(rates).chain([format!("{:.2}", at(0.5) / limit)]).collect()
    }
}

/// Runs the simulated API server for `bench director`, which starts it as a separate process.
#[derive(Debug, clap::Args)]
pub(crate) struct SimulatedApiServer {
    /// The kubeconfig file to write when the server is ready.
    kubeconfig: PathBuf,
}

impl SimulatedApiServer {
    async fn start(folder: &Path) -> anyhow::Result<Process> {
        let kubeconfig = folder.join("kubeconfig");
        let mut process = Launch::new("the simulated API server", std::env::current_exe()?, folder.join("server.log"))
            .args(["bench", "api-server"])
            .arg(&kubeconfig)
            .spawn()?;
        process.wait_until("serve", async || kubeconfig.exists()).await?;
        Ok(process)
    }

    pub(super) async fn run(self) -> anyhow::Result<()> {
        let simulated = ApiServer::start().await?;
        // A rename, so that the file appears only when it is complete.
        let unfinished = self.kubeconfig.with_extension("unfinished");
        fs::write(&unfinished, simulated.kubeconfig())?;
        fs::rename(unfinished, self.kubeconfig)?;
        future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_the_rates_and_their_share_of_the_limit() {
        let rates = |millis: &[u64]| Rates::of(millis.iter().copied().map(Duration::from_millis).collect(), 100);
        let limit = rates(&[500, 250, 1_000]);
        assert_eq!(limit.row("limit", &limit), ["limit", "200", "100", "400", "1.00"]);
        assert_eq!(rates(&[1_000]).row("ours", &limit), ["ours", "100", "100", "100", "0.50"]);
    }
}
