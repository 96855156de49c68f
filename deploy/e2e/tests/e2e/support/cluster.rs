//! The Kubernetes cluster of a test: a simulated API server, or the cluster of `GARAGE_TEST_KUBECONFIG`. By default the
//! tests act as the kubelet and run processes. With `GARAGE_TEST_KUBELET=real`, the cluster's own kubelet runs
//! `GARAGE_TEST_IMAGE`.

use std::{
    collections::BTreeSet,
    env, fs,
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex},
};

use futures::StreamExt;
use garage_apiserver::ApiServer;
use garage_events::env::{Env, System};
use garage_stack::workers::binary;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::{kubelet::Kubelet, until};

/// A namespace of a cluster. `garage` creates the namespace.
pub(crate) struct Cluster {
    simulated: Option<ApiServer>,
    kubelet: Option<Kubelet>,
    kubeconfig: PathBuf,
    namespace: String,
    image: String,
    client: Client,
    pods: Api<Pod>,
    secrets: Api<Secret>,
    /// The names of all pods that were ever created, as a watch reports them.
    created: Arc<Mutex<BTreeSet<String>>>,
    watch: JoinHandle<()>,
    _folder: TempDir,
}

impl Cluster {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("garage-e2e-cluster-").tempdir().unwrap();
        let (simulated, kubeconfig) = match env::var_os("GARAGE_TEST_KUBECONFIG") {
            Some(file) => (None, PathBuf::from(file)),
            None => {
                let simulated = ApiServer::start().await.unwrap();
                let file = folder.path().join("kubeconfig");
                fs::write(&file, simulated.kubeconfig()).unwrap();
                (Some(simulated), file)
            }
        };
        let config = Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let namespace = format!("garage-{}", System.id().simple());
        let (kubelet, image) = if env::var("GARAGE_TEST_KUBELET").is_ok_and(|kubelet| kubelet == "real") {
            assert!(simulated.is_none(), "GARAGE_TEST_KUBELET=real needs GARAGE_TEST_KUBECONFIG");
            (None, env::var("GARAGE_TEST_IMAGE").expect("GARAGE_TEST_KUBELET=real needs GARAGE_TEST_IMAGE"))
        } else {
            let program = binary("garage-gameserver").unwrap();
            (Some(Kubelet::start(client.clone(), &namespace, &program).await), "gameserver:test".into())
        };
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let created = Arc::default();
        Self {
            simulated,
            kubelet,
            kubeconfig,
            image,
            watch: tokio::spawn(record_pods(pods.clone(), Arc::clone(&created))),
            created,
            pods,
            secrets: Api::namespaced(client.clone(), &namespace),
            namespace,
            client,
            _folder: folder,
        }
    }

    /// The flags of `garage up` and `garage demo` for this cluster.
    pub(crate) fn flags(&self) -> [&str; 8] {
        let kubeconfig = self.kubeconfig.to_str().unwrap();
        let (namespace, image) = (self.namespace.as_str(), self.image.as_str());
        ["--director", "kube", "--kubeconfig", kubeconfig, "--namespace", namespace, "--image", image]
    }

    /// The namespace's name.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Waits until exactly `count` pods run.
    pub(crate) async fn until_running(&self, count: usize) {
        until("the expected number of pods run", async || {
            let pods = self.pods.list(&ListParams::default()).await.unwrap();
            let runs = |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
            (pods.items.iter().filter(runs).count() == count).then_some(())
        })
        .await;
    }

    /// Asserts that the namespace has no pod and no secret, and the kubelet no process.
    pub(crate) async fn assert_empty(&self) {
        let all = ListParams::default();
        let pods = self.pods.list(&all).await.unwrap().items;
        let secrets = self.secrets.list(&all).await.unwrap().items;
        let names = pods.iter().map(ResourceExt::name_any).chain(secrets.iter().map(ResourceExt::name_any));
        assert_eq!(names.collect::<Vec<_>>(), [""; 0]);
        if let Some(kubelet) = &self.kubelet {
            assert_eq!(kubelet.running(), 0);
        }
    }

    /// The number of pods created so far.
    pub(crate) async fn pods_created(&self) -> usize {
        // The watch reports this pod after all pods that were created before it.
        let last = json!({"metadata": {"name": "last"}, "spec": {
            "nodeSelector": {"nobody": "has-it"}, "containers": [{"name": "none", "image": "none"}]}});
        self.pods.create(&PostParams::default(), &serde_json::from_value(last).unwrap()).await.unwrap();
        until("the watch reports the last pod", async || self.created.lock().unwrap().contains("last").then_some(()))
            .await;
        self.pods.delete("last", &DeleteParams::default()).await.unwrap();
        self.created.lock().unwrap().len() - 1
    }

    /// Removes the namespace and the node from a cluster that outlives the test.
    pub(crate) async fn remove(&self) {
        if self.simulated.is_none() {
            if let Some(kubelet) = &self.kubelet {
                let nodes: Api<Node> = Api::all(self.client.clone());
                nodes.delete(kubelet.node(), &DeleteParams::default()).await.unwrap();
            }
            let namespaces: Api<Namespace> = Api::all(self.client.clone());
            namespaces.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

async fn record_pods(pods: Api<Pod>, created: Arc<Mutex<BTreeSet<String>>>) {
    let mut events = pin!(watcher(pods, watcher::Config::default()).default_backoff());
    while let Some(event) = events.next().await {
        if let Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event {
            created.lock().unwrap().insert(pod.name_any());
        }
    }
}
