//! The cluster of a test: a double with a kubelet of processes, or that of `GARAGE_TEST_KUBECONFIG`, whose kubelet is a
//! real one if `GARAGE_TEST_KUBELET` is `real`; then it runs `GARAGE_TEST_IMAGE`.

use std::{env, fs, path::PathBuf};

use garage_apiserver::ApiServer;
use garage_events::world::{System, World};
use garage_stack::workers::binary;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use tempfile::TempDir;

use super::{kubelet::Kubelet, until};

/// A namespace of a cluster, which is there once something makes it.
pub(crate) struct Cluster {
    pub(crate) double: Option<ApiServer>,
    kubelet: Option<Kubelet>,
    kubeconfig: PathBuf,
    namespace: String,
    image: String,
    client: Client,
    pods: Api<Pod>,
    secrets: Api<Secret>,
    _folder: TempDir,
}

impl Cluster {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("garage-e2e-cluster-").tempdir().unwrap();
        let (double, kubeconfig) = match env::var_os("GARAGE_TEST_KUBECONFIG") {
            Some(file) => (None, PathBuf::from(file)),
            None => {
                let double = ApiServer::start().await.unwrap();
                let file = folder.path().join("kubeconfig");
                fs::write(&file, double.kubeconfig()).unwrap();
                (Some(double), file)
            }
        };
        let config = Kubeconfig::read_from(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        let namespace = format!("garage-{}", System.id().simple());
        let (kubelet, image) = if env::var("GARAGE_TEST_KUBELET").is_ok_and(|kubelet| kubelet == "real") {
            assert!(double.is_none(), "GARAGE_TEST_KUBELET=real needs GARAGE_TEST_KUBECONFIG");
            (None, env::var("GARAGE_TEST_IMAGE").expect("GARAGE_TEST_KUBELET=real needs GARAGE_TEST_IMAGE"))
        } else {
            let program = binary("garage-gameserver").unwrap();
            (Some(Kubelet::start(client.clone(), &namespace, &program).await), "gameserver:test".into())
        };
        Self {
            double,
            kubelet,
            kubeconfig,
            image,
            pods: Api::namespaced(client.clone(), &namespace),
            secrets: Api::namespaced(client.clone(), &namespace),
            namespace,
            client,
            _folder: folder,
        }
    }

    /// What `garage up` and `garage demo` are told of it.
    pub(crate) fn flags(&self) -> [&str; 8] {
        let kubeconfig = self.kubeconfig.to_str().unwrap();
        let (namespace, image) = (self.namespace.as_str(), self.image.as_str());
        ["--director", "kube", "--kubeconfig", kubeconfig, "--namespace", namespace, "--image", image]
    }

    /// The namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Waits until so many pods run.
    pub(crate) async fn until_running(&self, count: usize) {
        until("the pods run", async || {
            let pods = self.pods.list(&ListParams::default()).await.unwrap();
            let runs = |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
            (pods.items.iter().filter(runs).count() == count).then_some(())
        })
        .await;
    }

    /// No pod and no secret is there, nor a process of the kubelet's.
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

    /// Removes the namespace from a cluster that is there for longer than the test.
    pub(crate) async fn remove(self) {
        if self.double.is_none() {
            let namespaces: Api<Namespace> = Api::all(self.client.clone());
            namespaces.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
        }
    }
}
