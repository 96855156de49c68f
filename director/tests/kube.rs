//! Tests the whole director with a real NATS and Redis, and with pods as game servers. `GARAGE_TEST_KUBECONFIG` names
//! the cluster; if it is not set, the tests use a simulated API server. The director's requests pass through a proxy,
//! which can make them fail.
//!
//! The tests act as scheduler and kubelet, through the same API. With `GARAGE_TEST_KUBELET=real` the cluster's own
//! scheduler and kubelet run the image `GARAGE_TEST_IMAGE`. Some tests need something that a real kubelet cannot be
//! made to do. These tests then print a message and end.
#![cfg(test)]

#[path = "kube/admission.rs"]
mod admission;
#[path = "kube/nodes.rs"]
mod nodes;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    sync::LazyLock,
    time::{Duration, Instant},
};

use clap::Parser;
use futures::future::join_all;
use garage_apiserver::{
    ApiServer,
    proxy::{Answer, Proxy},
};
use garage_director::backend::Name;
use garage_events::{
    env::{Env, System},
    failure::NO_CAPACITY,
    game::{self, Car, Loadout, Stats},
    id::{PlayerId, QueueName, SessionId, TicketId},
    jetstream::{JetStreamLog, setup},
    log::{Append, Decision, Load, Session},
    player,
    projection::parked_key,
    reaction::decide_session,
    session::{Command, Event, Matched, Member, PodFailed, PodRequested, PodScheduled, Team},
    subject::{Aggregate, Report, ReportKind},
};
use garage_stack::servers::{Nats, Redis, Role};
use garage_worker::{Shutdown, seal::SealKey};
use k8s_openapi::api::core::v1::{LimitRange, Namespace, Node, Pod, ResourceQuota, Secret, ServiceAccount};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use rsa::{
    RsaPrivateKey,
    pkcs8::{EncodePrivateKey, LineEnding},
};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(120);
const FINGERPRINT: &str = "f00d";
const SEAL: [u8; 32] = [9; 32];
const OURS: &str = "app.kubernetes.io/managed-by=garage";

// Generated for this test with `openssl genpkey -algorithm ed25519 | openssl pkey -pubout`.
const TOKEN: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAu+uiWnok4oQmhpShKCapgw9QiTa/9u+CUzLxQqmAHoc=
-----END PUBLIC KEY-----
";

/// The game's private key.
static KEY: LazyLock<String> = LazyLock::new(|| {
    let key = RsaPrivateKey::new(&mut rand::rng(), 2_048).unwrap();
    key.to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
});

/// Repeats `check` until it returns a value. Panics after the deadline.
async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    // The pauses grow, because a hundred concurrent waits would overload a real API server.
    let mut pause = Duration::from_millis(10);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "no success within {DEADLINE:?}: {what}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Whether the cluster's own scheduler and kubelet run the pods.
fn kubelet_is_real() -> bool {
    env::var("GARAGE_TEST_KUBELET").is_ok_and(|kubelet| kubelet == "real")
}

/// Whether the test must end, because a real kubelet runs the pods and cannot be made to do this.
fn impossible_with_real_kubelet(what: &str) -> bool {
    if kubelet_is_real() {
        eprintln!("not tested: a real kubelet cannot be made to {what}");
    }
    kubelet_is_real()
}

fn image() -> String {
    env::var("GARAGE_TEST_IMAGE").unwrap_or_else(|_| "gameserver:test".into())
}

/// A namespace of a cluster, with its own node. Dropping it removes both.
struct Cluster {
    /// `None` if `GARAGE_TEST_KUBECONFIG` names a real cluster.
    _simulated: Option<ApiServer>,
    proxy: Proxy,
    config: kube::Config,
    client: Client,
    namespace: String,
    node: String,
    pods: Api<Pod>,
    secrets: Api<Secret>,
    nodes: Api<Node>,
    quotas: Api<ResourceQuota>,
}

impl Cluster {
    async fn new() -> Self {
        let (simulated, kubeconfig) = match env::var_os("GARAGE_TEST_KUBECONFIG") {
            Some(file) => (None, Kubeconfig::read_from(PathBuf::from(file)).unwrap()),
            None => {
                let simulated = ApiServer::start().await.unwrap();
                let kubeconfig = Kubeconfig::from_yaml(&simulated.kubeconfig()).unwrap();
                (Some(simulated), kubeconfig)
            }
        };
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(config.clone()).unwrap();
        let namespace = format!("garage-{}", System.id().simple());
        let post = PostParams::default();
        let named = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
        Api::<Namespace>::all(client.clone()).create(&post, &named).await.unwrap();
        // Every pod needs the default service account, which a cluster without controllers does not create. The
        // simulated API server does not need it.
        let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
        let _ = Api::<ServiceAccount>::namespaced(client.clone(), &namespace).create(&post, &account).await;
        let cluster = Self {
            _simulated: simulated,
            proxy: Proxy::start(client.clone()).await.unwrap(),
            node: format!("node-{namespace}"),
            pods: Api::namespaced(client.clone(), &namespace),
            secrets: Api::namespaced(client.clone(), &namespace),
            quotas: Api::namespaced(client.clone(), &namespace),
            nodes: Api::all(client.clone()),
            config,
            client,
            namespace,
        };
        cluster.add_node(&cluster.node, &[("InternalIP", "10.0.0.11"), ("ExternalIP", "203.0.113.11")]).await;
        cluster
    }

    /// Makes the director's next request of this kind fail.
    fn fail(&self, verb: &'static str, resource: &'static str, answer: Answer) {
        self.proxy.fail(verb, resource, answer);
    }

    /// Makes the director's next dry run of a pod fail.
    fn fail_dry_run(&self, answer: Answer) {
        self.proxy.fail_dry_run("pods", answer);
    }

    async fn add_node(&self, name: &str, addresses: &[(&str, &str)]) {
        let addresses: Vec<_> =
            addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
        let labels = json!({"garage-test": self.namespace});
        let node = json!({"metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses}});
        let node = serde_json::from_value(node).unwrap();
        self.nodes.create(&PostParams::default(), &node).await.unwrap();
    }

    /// Waits for the pod of an instance.
    async fn pod(&self, name: Name) -> Pod {
        until("the pod", async || self.pods.get_opt(&name.to_string()).await.unwrap()).await
    }

    /// Assigns the pod to a node, as the scheduler does.
    async fn bind_to(&self, name: Name, node: &str) {
        self.pod(name).await;
        if kubelet_is_real() {
            return;
        }
        let target = json!({"apiVersion": "v1", "kind": "Node", "name": node});
        let binding =
            json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name.to_string()}, "target": target});
        let _: Value =
            self.pods.create_subresource("binding", &name.to_string(), &PostParams::default(), &binding).await.unwrap();
    }

    async fn bind(&self, name: Name) {
        self.bind_to(name, &self.node).await;
    }

    /// Writes a pod's status, as the kubelet or the scheduler does.
    async fn status(&self, name: Name, status: Value) {
        self.pod(name).await;
        if kubelet_is_real() {
            return;
        }
        let patch = Patch::Strategic(json!({"status": status}));
        self.pods.patch_status(&name.to_string(), &PatchParams::default(), &patch).await.unwrap();
    }

    async fn container(&self, name: Name, phase: &str, state: Value) {
        let status = json!({"name": "gameserver", "image": image(), "imageID": "", "ready": false, "restartCount": 0,
            "state": state});
        self.status(name, json!({"phase": phase, "containerStatuses": [status]})).await;
    }

    /// Confirms that a pod that is being deleted has ended, as the kubelet does.
    async fn confirm_deletion(&self, name: Name) {
        until("the deletion of the pod", async || {
            let pod = self.pods.get_opt(&name.to_string()).await.unwrap();
            pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()).then_some(())
        })
        .await;
        if kubelet_is_real() {
            return;
        }
        let now = DeleteParams::default().grace_period(0);
        let _ = self.pods.delete(&name.to_string(), &now).await;
    }

    async fn gone(&self, name: Name) {
        until("pod and secret to be gone", async || {
            let pod = self.pods.get_opt(&name.to_string()).await.unwrap();
            let secret = self.secrets.get_opt(&name.to_string()).await.unwrap();
            (pod.is_none() && secret.is_none()).then_some(())
        })
        .await;
    }

    /// Waits until the quota takes effect: until the API server admits no pod.
    async fn wait_for_quota(&self) {
        let status = Patch::Merge(json!({"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}));
        self.quotas.patch_status("q", &PatchParams::default(), &status).await.unwrap();
        let container = json!({"name": "x", "image": "x"});
        let pod = json!({"metadata": {"name": "one-more"}, "spec": {"containers": [container]}});
        let pod = serde_json::from_value(pod).unwrap();
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        until("the quota to take effect", async || {
            let refused = self.pods.create(&dry, &pod).await.err()?;
            refused.to_string().contains("exceeded quota").then_some(())
        })
        .await;
    }

    /// The requests of directors that change something: verb, resource and status code.
    fn changes(&self) -> Vec<(&'static str, String, Option<u16>)> {
        let changing = ["create", "patch", "delete"];
        let requests = self.proxy.requests().into_iter();
        let requests = requests.filter(|request| changing.contains(&request.verb) && !request.dry_run);
        requests.map(|request| (request.verb, request.resource, request.status)).collect()
    }

    /// The number of objects that directors created.
    fn created(&self) -> usize {
        self.changes().iter().filter(|(verb, _, status)| *verb == "create" && *status == Some(201)).count()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self._simulated.is_some() {
            return;
        }
        let (config, namespace) = (self.config.clone(), self.namespace.clone());
        let remove = async move {
            // A client works only on the runtime that it was made on. The test's own runtime waits for this thread, and
            // may be shutting down.
            let Ok(client) = Client::try_from(config) else { return };
            let (now, ours) = (DeleteParams::default().grace_period(0), format!("garage-test={namespace}"));
            let _ =
                Api::<Node>::all(client.clone()).delete_collection(&now, &ListParams::default().labels(&ours)).await;
            let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
            let _ = pods.delete_collection(&now, &ListParams::default()).await;
            let _ = Api::<Namespace>::all(client).delete(&namespace, &DeleteParams::default()).await;
        };
        let removing = std::thread::spawn(|| {
            tokio::runtime::Runtime::new().unwrap().block_on(async { tokio::time::timeout(DEADLINE, remove).await })
        });
        let _ = removing.join();
    }
}

type Director = (Shutdown, tokio::task::JoinHandle<anyhow::Result<()>>);

/// Directors with their NATS, Redis and cluster. Dropping it stops them all.
struct Fixture {
    folder: tempfile::TempDir,
    nats: Nats,
    redis: Redis,
    log: JetStreamLog,
    cluster: Cluster,
    /// The running directors, the oldest first.
    directors: Vec<Director>,
    /// Additional flags for the directors.
    flags: Vec<String>,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("seal"), "09".repeat(32)).unwrap();
        fs::write(folder.path().join("token.pem"), TOKEN).unwrap();
        // With a real kubelet, many pods of a test share few cores. Otherwise the template names another scheduler, so
        // that the cluster's own one leaves the pods to the test.
        let resources = "containers: [{name: gameserver, resources: {requests: {cpu: 10m, memory: 16Mi}}}]";
        let template = match kubelet_is_real() {
            true => format!("spec: {{{resources}}}"),
            false => format!("spec: {{schedulerName: the-test, {resources}}}"),
        };
        fs::write(folder.path().join("pod.yaml"), template).unwrap();
        let nats = Nats::start(folder.path(), 1).await.unwrap();
        let redis = Redis::start(folder.path()).await.unwrap();
        let admin = nats.connect(Role::Admin).await.unwrap();
        setup::init(admin.clone(), 1).await.unwrap();
        let log = JetStreamLog::open(admin).await.unwrap();
        let cluster = Cluster::new().await;
        fs::write(folder.path().join("kubeconfig"), cluster.proxy.kubeconfig()).unwrap();
        let fixture = Self { folder, nats, redis, log, cluster, directors: Vec::new(), flags: Vec::new() };
        // A real game server needs credentials to start. In this test any user will do.
        let credentials = fs::read_to_string(fixture.nats.credentials(Role::Admin)).unwrap();
        let secrets =
            game::Secrets { private_key: game::Secret::new(KEY.as_str()), credentials: game::Secret::new(credentials) };
        let sealed = SealKey::new(&SEAL).seal(&serde_json::to_vec(&secrets).unwrap(), FINGERPRINT).unwrap();
        let client = redis::Client::open(fixture.redis.url_with_password()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let () = redis::cmd("SET").arg(parked_key(FINGERPRINT)).arg(sealed).query_async(&mut connection).await.unwrap();
        fixture
    }

    /// A fixture with one running director.
    async fn started() -> Self {
        let mut fixture = Self::new().await;
        fixture.start();
        fixture
    }

    fn path(&self, file: &str) -> String {
        self.folder.path().join(file).to_str().unwrap().to_owned()
    }

    fn config(&self) -> garage_director::Config {
        let file = |path: &Path| path.to_str().unwrap().to_owned();
        let flags = [
            ("--backend", "kube".to_owned()),
            ("--kubeconfig", self.path("kubeconfig")),
            ("--namespace", self.cluster.namespace.clone()),
            ("--image", image()),
            ("--game-ports", "7000-7100".to_owned()),
            ("--nats-url", self.nats.url()),
            ("--nats-credentials", file(&self.nats.credentials(Role::Director))),
            ("--redis-url", self.redis.url()),
            ("--redis-password-file", file(self.redis.password_file())),
            ("--seal-key-file", self.path("seal")),
            ("--token-key-file", self.path("token.pem")),
            ("--pod-template", self.path("pod.yaml")),
        ];
        // With a real kubelet, nodes may have only an internal address.
        let address = kubelet_is_real().then(|| ("--node-address", "external-ip,internal-ip".to_owned()));
        let given = |flag: &str| self.flags.iter().any(|own| own.split('=').next() == Some(flag));
        let defaults = flags.into_iter().chain(address).filter(|(flag, _)| !given(flag));
        let line = defaults.map(|(flag, value)| format!("{flag}={value}")).chain(self.flags.clone());
        garage_director::Config::try_parse_from(["director".to_owned()].into_iter().chain(line)).unwrap()
    }

    fn start(&mut self) {
        let shutdown = Shutdown::new();
        let director = tokio::spawn(garage_director::run(self.config(), shutdown.clone()));
        self.directors.push((shutdown, director));
    }

    /// Waits until the oldest director ends by itself. Returns its error.
    async fn start_up_error(&mut self) -> String {
        let (_, director) = self.directors.remove(0);
        let ended = tokio::time::timeout(DEADLINE, director).await.expect("the director ends").unwrap();
        format!("{:#}", ended.unwrap_err())
    }

    async fn stop(&mut self) {
        let (shutdown, director) = self.directors.remove(0);
        shutdown.cancel();
        tokio::time::timeout(DEADLINE, director).await.unwrap().unwrap().unwrap();
    }

    /// Kills the oldest director.
    async fn kill(&mut self) {
        let (_, director) = self.directors.remove(0);
        director.abort();
        let _ = director.await;
    }

    /// Appends a session that requests its first server.
    async fn session(&self) -> Name {
        self.session_in("eu").await
    }

    async fn session_in(&self, region: &str) -> Name {
        let id = SessionId::new(System.id());
        let player: PlayerId = format!("p{}", System.id().simple()).parse().unwrap();
        let (ticket, team) = (TicketId::new(System.id()), "red".to_owned());
        let queue: QueueName = "ranked".parse().unwrap();
        let joined = player::Matched {
            ticket,
            queue: queue.clone(),
            session: id,
            team: team.clone(),
            waiting_since: System.now(),
            requeue: None,
            absences: 0,
            party: None,
        };
        let matched = Matched {
            queue,
            region: region.parse().unwrap(),
            teams: vec![Team { name: team, players: vec![Member { player: player.clone(), ticket, rank: 1 }] }],
            latencies: Default::default(),
            rules: "v1".into(),
            pool_seq: 1,
            clock: System.now(),
            seed: 0,
            skipped: Vec::new(),
            left_out: Vec::new(),
            search_steps: None,
        };
        let events = [Event::from(matched), requested(region).into()];
        let decision = Decision::new(&System, id.uuid(), None);
        let decision = decision.change(&System, Aggregate::Session(id), Default::default(), events);
        let joined = [player::Event::from(joined)];
        let decision = decision.change(&System, Aggregate::Player(player), Default::default(), joined);
        self.log.append(decision).await.unwrap();
        Name { session: id, attempt: 1 }
    }

    async fn close(&self, name: Name) {
        let command = Command::Fail { reason: "test".into() };
        decide_session(&self.log, &System, name.session, command, None).await.unwrap().unwrap();
    }

    async fn load(&self, name: Name) -> Session {
        self.log.session(name.session).await.unwrap()
    }

    async fn event<T>(&self, name: Name, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        until(what, async || self.load(name).await.history.iter().find_map(|recorded| pick(&recorded.event))).await
    }

    async fn scheduled(&self, name: Name) -> PodScheduled {
        let pick = |event: &Event| match event {
            Event::PodScheduled(data) => Some(data.clone()),
            _ => None,
        };
        self.event(name, "pod-scheduled", pick).await
    }

    async fn failed(&self, name: Name) -> PodFailed {
        let pick = |event: &Event| match event {
            Event::PodFailed(data) => Some(data.clone()),
            _ => None,
        };
        self.event(name, "pod-failed", pick).await
    }

    /// Waits until the attempt fails with this reason and a message that contains `message`, and until its pod and
    /// secret are gone.
    async fn wait_for_failure(&self, name: Name, reason: &str, message: &str) {
        let failed = self.failed(name).await;
        assert_eq!(failed.reason, reason, "{}", failed.message);
        assert!(failed.message.contains(message), "{}", failed.message);
        self.cluster.confirm_deletion(name).await;
        self.cluster.gone(name).await;
    }
}

fn requested(region: &str) -> PodRequested {
    let car = Car {
        id: "brick".parse().unwrap(),
        model: "m".into(),
        texture: "t".into(),
        stats: Stats { power_kw: 100.0, mass_kg: 1000.0, grip: 1.0, drag_m2: 0.6 },
    };
    PodRequested {
        attempt: 1,
        region: region.parse().unwrap(),
        loadouts: vec![Loadout { player: "p1".parse().unwrap(), car, items: BTreeMap::new() }],
        public_key: "public".into(),
        fingerprint: FINGERPRINT.into(),
        ends_at: None,
    }
}

#[tokio::test]
async fn a_requested_server_is_a_pod_with_its_configuration_in_a_file() {
    let mut fixture = Fixture::new().await;
    let template = "
metadata:
  labels: {team: racing}
spec:
  schedulerName: the-test
  priorityClassName: system-cluster-critical
  restartPolicy: Always
  tolerations: [{key: games, operator: Exists}]
  containers:
    - name: gameserver
      image: not-this-one
      resources: {requests: {cpu: '2'}}
      env: [{name: RUST_LOG, value: debug}]
";
    fs::write(fixture.path("pod.yaml"), template).unwrap();
    fixture.flags = vec![
        format!("--pod-template={}", fixture.path("pod.yaml")),
        "--region=eu=topology.kubernetes.io/region=europe-west1".into(),
    ];
    fixture.start();
    let name = fixture.session().await;
    let pod = serde_json::to_value(fixture.cluster.pod(name).await).unwrap();
    let labels = &pod["metadata"]["labels"];
    for (label, value) in [
        ("app.kubernetes.io/managed-by", "garage"),
        ("garage/session", name.session.to_string().as_str()),
        ("garage/attempt", "1"),
        ("garage/queue", "ranked"),
        ("garage/region", "eu"),
        ("team", "racing"),
    ] {
        assert_eq!(labels[label], value, "{label}");
    }
    assert_eq!(pod["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"], "false");
    let spec = &pod["spec"];
    for (field, value) in [
        ("hostNetwork", json!(true)),
        ("dnsPolicy", json!("ClusterFirstWithHostNet")),
        ("restartPolicy", json!("Never")),
        ("priorityClassName", json!("system-cluster-critical")),
        ("automountServiceAccountToken", json!(false)),
        ("enableServiceLinks", json!(false)),
        ("nodeSelector", json!({"topology.kubernetes.io/region": "europe-west1"})),
    ] {
        assert_eq!(spec[field], value, "{field}");
    }
    let seconds = spec["activeDeadlineSeconds"].as_i64().unwrap();
    assert!((900..=960).contains(&seconds), "{seconds} s: the session's 15 minutes and a minute");
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 3);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(spec["securityContext"]["seccompProfile"], json!({"type": "RuntimeDefault"}));
    let container = &spec["containers"][0];
    assert_eq!(spec["containers"].as_array().unwrap().len(), 1);
    assert_eq!(container["image"], image());
    assert_eq!(container["args"], json!(["--config", "/run/garage/config.json", "--ports", "7000-7100"]));
    assert_eq!(container["resources"], json!({"requests": {"cpu": "2"}}), "those of the template, not merged");
    assert_eq!(container["env"], json!([{"name": "RUST_LOG", "value": "debug"}]));
    let expected = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]}});
    assert_eq!(container["securityContext"], expected);
    assert!(!pod.to_string().contains("PRIVATE KEY"));

    let secret = fixture.cluster.secrets.get(&name.to_string()).await.unwrap();
    let config: game::Config = serde_json::from_slice(&secret.data.as_ref().unwrap()["config.json"].0).unwrap();
    assert_eq!(config.private_key.expose(), KEY.as_str());
    assert_eq!(config.players, requested("eu").loadouts);
    assert_eq!(secret.labels()["garage/session"], name.session.to_string());
    until("the pod to own its secret", async || {
        let secret = fixture.cluster.secrets.get(&name.to_string()).await.unwrap();
        (secret.owner_references().first()?.uid == pod["metadata"]["uid"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_pod_takes_three_requests_and_is_scheduled_once_it_has_a_node() {
    let fixture = Fixture::started().await;
    let name = fixture.session().await;
    fixture.cluster.bind(name).await;
    let scheduled = fixture.scheduled(name).await;
    assert_eq!((scheduled.pod, scheduled.attempt), (name.to_string(), 1));
    let pod = fixture.cluster.pod(name).await;
    assert_eq!(Some(&scheduled.node), pod.spec.unwrap().node_name.as_ref());
    if !kubelet_is_real() {
        let expected = (fixture.cluster.node.as_str(), "203.0.113.11".to_owned());
        assert_eq!((scheduled.node.as_str(), scheduled.public_ip.to_string()), expected);
    }
    let made = |verb, resource: &str, status| (verb, resource.to_owned(), Some(status));
    let expected = [made("create", "secrets", 201), made("create", "pods", 201), made("patch", "secrets", 200)];
    assert_eq!(fixture.cluster.changes(), expected);
}

#[tokio::test]
async fn node_address_sources_are_tried_in_the_given_order() {
    if impossible_with_real_kubelet("run pods on nodes with such addresses") {
        return;
    }
    let mut fixture = Fixture::new().await;
    let [both, internal] = ["both", "internal"].map(|node| format!("{node}-{}", fixture.cluster.namespace));
    fixture.cluster.add_node(&both, &[("InternalIP", "10.0.0.12"), ("ExternalIP", "203.0.113.12")]).await;
    fixture.cluster.add_node(&internal, &[("InternalIP", "2001:db8::12")]).await;
    for node in [&both, &internal] {
        let metadata =
            json!({"metadata": {"annotations": {"public": "198.51.100.7"}, "labels": {"public": "2001-db8--7"}}});
        fixture.cluster.nodes.patch(node, &PatchParams::default(), &Patch::Merge(metadata)).await.unwrap();
    }
    for (sources, of_both, of_internal) in [
        ("external-ip,internal-ip", "203.0.113.12", "2001:db8::12"),
        ("external-ip,annotation:public,internal-ip", "203.0.113.12", "198.51.100.7"),
        ("annotation:public,external-ip", "198.51.100.7", "198.51.100.7"),
        ("label:none,label:public", "2001:db8::7", "2001:db8::7"),
        ("internal-ip", "10.0.0.12", "2001:db8::12"),
    ] {
        fixture.flags = vec![format!("--node-address={sources}")];
        fixture.start();
        for (node, address) in [(&both, of_both), (&internal, of_internal)] {
            let name = fixture.session().await;
            fixture.cluster.bind_to(name, node).await;
            assert_eq!(fixture.scheduled(name).await.public_ip.to_string(), address, "{sources}");
        }
        fixture.stop().await;
    }
}

#[tokio::test]
async fn a_node_without_a_public_address_fails_the_attempt() {
    if impossible_with_real_kubelet("run pods on a node without an address") {
        return;
    }
    let fixture = Fixture::started().await;
    let node = format!("internal-{}", fixture.cluster.namespace);
    fixture.cluster.add_node(&node, &[("InternalIP", "10.0.0.12")]).await;
    let name = fixture.session().await;
    fixture.cluster.bind_to(name, &node).await;
    let message = format!("node {node} has no address that matches --node-address");
    fixture.wait_for_failure(name, "no-public-ip", &message).await;
}

#[tokio::test]
async fn a_creation_is_completed_once_after_the_answer_to_any_of_its_requests_is_lost() {
    for (verb, resource) in [("create", "secrets"), ("create", "pods"), ("patch", "secrets")] {
        let fixture = Fixture::started().await;
        fixture.cluster.fail(verb, resource, Answer::Lost);
        let name = fixture.session().await;
        fixture.cluster.bind(name).await;
        fixture.scheduled(name).await;
        let pod = fixture.cluster.pod(name).await;
        until("the pod to own its secret", async || {
            let secret = fixture.cluster.secrets.get(&name.to_string()).await.unwrap();
            (Some(&secret.owner_references().first()?.uid) == pod.metadata.uid.as_ref()).then_some(())
        })
        .await;
        // The request whose answer was lost has no status code, so it does not count.
        assert_eq!(fixture.cluster.created(), if verb == "create" { 1 } else { 2 }, "{verb} {resource}");
    }
}

#[tokio::test]
async fn a_pod_that_gets_a_node_while_no_director_runs_is_scheduled_by_the_next_director() {
    let mut fixture = Fixture::started().await;
    let name = fixture.session().await;
    let stream = fixture.log.context().get_stream_no_info(setup::DIRECTOR.stream).await.unwrap();
    fixture.cluster.pod(name).await;
    until("the acknowledgement of the request", async || {
        let info = stream.consumer_info(setup::DIRECTOR.name).await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
    })
    .await;
    fixture.stop().await;
    fixture.cluster.bind(name).await;
    fixture.start();
    fixture.scheduled(name).await;
}

#[tokio::test]
async fn a_server_that_is_ready_is_left_running() {
    let fixture = Fixture::started().await;
    let (ready, closed) = (fixture.session().await, fixture.session().await);
    for name in [ready, closed] {
        fixture.cluster.bind(name).await;
        fixture.scheduled(name).await;
        fixture.cluster.container(name, "Running", json!({"running": {}})).await;
    }
    let report = game::Ready { ports: game::Ports { tcp_port: 7000, udp_port: 7001 } };
    let command = Command::Ready { attempt: 1, report };
    decide_session(&fixture.log, &System, ready.session, command, None).await.unwrap().unwrap();
    // Once the director has handled the end of the other session, it has also seen that this server is ready.
    fixture.close(closed).await;
    fixture.cluster.confirm_deletion(closed).await;
    fixture.cluster.gone(closed).await;
    let history = fixture.load(ready).await.history;
    assert!(matches!(history.last().unwrap().event, Event::PodReady(_)), "{history:?}");
    assert!(fixture.cluster.pod(ready).await.metadata.deletion_timestamp.is_none());
}

#[tokio::test]
async fn a_pod_that_disappears_while_no_director_runs_fails_the_attempt() {
    let mut fixture = Fixture::started().await;
    let (lost, kept) = (fixture.session().await, fixture.session().await);
    for name in [lost, kept] {
        fixture.cluster.bind(name).await;
        fixture.scheduled(name).await;
    }
    fixture.stop().await;
    let at_once = DeleteParams::default().grace_period(0);
    fixture.cluster.pods.delete(&lost.to_string(), &at_once).await.unwrap();
    until("the pod to be gone", async || {
        fixture.cluster.pods.get_opt(&lost.to_string()).await.unwrap().is_none().then_some(())
    })
    .await;
    fixture.start();
    fixture.wait_for_failure(lost, "deleted", "the pod is gone").await;
    let history = fixture.load(kept).await.history;
    assert!(matches!(history.last().unwrap().event, Event::PodScheduled(_)), "{history:?}");
}

#[tokio::test]
async fn if_a_director_dies_after_it_created_a_pod_the_next_director_schedules_it() {
    let mut fixture = Fixture::started().await;
    let name = fixture.session().await;
    let created = fixture.cluster.pod(name).await;
    fixture.kill().await;
    fixture.cluster.bind(name).await;
    fixture.start();
    fixture.scheduled(name).await;
    until("the pod to own its secret", async || {
        let secret = fixture.cluster.secrets.get(&name.to_string()).await.unwrap();
        (Some(&secret.owner_references().first()?.uid) == created.metadata.uid.as_ref()).then_some(())
    })
    .await;
    assert_eq!(fixture.cluster.pod(name).await.metadata.uid, created.metadata.uid);
    assert_eq!(fixture.cluster.created(), 2);
}

#[tokio::test]
async fn two_directors_both_create_pods_and_one_of_them_monitors_the_pods() {
    let mut fixture = Fixture::started().await;
    fixture.start();
    let mut names = Vec::new();
    for _ in 0..20 {
        names.push(fixture.session().await);
    }
    for name in &names {
        fixture.cluster.bind(*name).await;
    }
    for name in &names {
        fixture.scheduled(*name).await;
    }
    assert_eq!(fixture.cluster.created(), 2 * names.len());
    // Stop one director. If it was the leader, the other one takes over.
    fixture.stop().await;
    let name = names[0];
    fixture.cluster.pods.delete(&name.to_string(), &DeleteParams::default()).await.unwrap();
    fixture.wait_for_failure(name, "deleted", "").await;
}

#[tokio::test]
async fn a_director_uses_exactly_the_verbs_that_its_role_allows() {
    let mut fixture = Fixture::started().await;
    let (name, other) = (fixture.session().await, fixture.session().await);
    fixture.cluster.bind(name).await;
    fixture.scheduled(name).await;
    fixture.close(name).await;
    fixture.cluster.confirm_deletion(name).await;
    fixture.cluster.gone(name).await;
    // After a lost answer, the director reads the object that exists already: this uses `get`.
    fixture.stop().await;
    fixture.cluster.pod(other).await;
    fixture.cluster.fail("create", "secrets", Answer::Lost);
    fixture.cluster.fail("create", "pods", Answer::Lost);
    fixture.start();
    let again = fixture.session().await;
    fixture.cluster.bind(again).await;
    fixture.scheduled(again).await;
    let requests = fixture.cluster.proxy.requests();
    let used: BTreeSet<_> = requests.iter().map(|request| format!("{} {}", request.resource, request.verb)).collect();
    let allowed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/base/director.verbs");
    let allowed = fs::read_to_string(allowed).unwrap();
    let allowed: BTreeSet<_> =
        allowed.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(str::to_owned).collect();
    assert_eq!(used, allowed);
}

#[tokio::test]
async fn the_pod_and_the_secret_of_a_closed_session_are_removed() {
    let fixture = Fixture::started().await;
    let (bound, waiting) = (fixture.session().await, fixture.session().await);
    fixture.cluster.bind(bound).await;
    fixture.scheduled(bound).await;
    fixture.cluster.pod(waiting).await;
    for name in [bound, waiting] {
        fixture.close(name).await;
        fixture.cluster.confirm_deletion(name).await;
        fixture.cluster.gone(name).await;
        let history = fixture.load(name).await.history;
        assert!(!history.iter().any(|recorded| matches!(recorded.event, Event::PodFailed(_))), "{history:?}");
    }
}

#[tokio::test]
async fn a_pod_that_fits_no_node_fails_the_attempt_after_the_maximum_wait() {
    let mut fixture = Fixture::new().await;
    let greedy =
        "spec: {containers: [{name: gameserver, resources: {requests: {cpu: '5000'}, limits: {cpu: '5000'}}}]}";
    fs::write(fixture.path("greedy.yaml"), greedy).unwrap();
    fixture.flags = vec!["--pod-patience=1".into()];
    if kubelet_is_real() {
        fixture.flags.push(format!("--pod-template={}", fixture.path("greedy.yaml")));
    }
    fixture.start();
    let name = fixture.session().await;
    let message = "0/2 nodes are available: 2 Insufficient cpu.";
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
    fixture.cluster.status(name, json!({"conditions": [condition]})).await;
    fixture.wait_for_failure(name, NO_CAPACITY, "Insufficient cpu").await;
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_fails_the_attempt() {
    let mut fixture = Fixture::new().await;
    if kubelet_is_real() {
        fixture.flags = vec!["--image=garage.invalid/none:1".into()];
    }
    fixture.start();
    let name = fixture.session().await;
    fixture.cluster.bind(name).await;
    let message = "Back-off pulling image \"gameserver:test\"";
    let waiting = json!({"reason": "ImagePullBackOff", "message": message});
    fixture.cluster.container(name, "Pending", json!({"waiting": waiting})).await;
    fixture.wait_for_failure(name, "image-not-pulled", "Back-off pulling image").await;
}

#[tokio::test]
async fn a_server_that_crashes_before_it_is_ready_fails_the_attempt() {
    let mut fixture = Fixture::new().await;
    fixture.flags = vec!["--game-arg=--no-such-flag".into()];
    fixture.start();
    let name = fixture.session().await;
    fixture.cluster.bind(name).await;
    let terminated = json!({"exitCode": 2, "reason": "Error"});
    fixture.cluster.container(name, "Failed", json!({"terminated": terminated})).await;
    fixture.wait_for_failure(name, "exited", "exit code 2").await;
}

#[tokio::test]
async fn a_server_that_takes_too_much_memory_fails_the_attempt() {
    if impossible_with_real_kubelet("run out of memory at will") {
        return;
    }
    let fixture = Fixture::started().await;
    let name = fixture.session().await;
    fixture.cluster.bind(name).await;
    let terminated = json!({"exitCode": 137, "reason": "OOMKilled"});
    fixture.cluster.container(name, "Failed", json!({"terminated": terminated})).await;
    fixture.wait_for_failure(name, "out-of-memory", "exit code 137: out of memory (OOMKilled)").await;
}

#[tokio::test]
async fn an_evicted_pod_fails_the_attempt_with_the_message_of_the_node() {
    if impossible_with_real_kubelet("evict a pod") {
        return;
    }
    let fixture = Fixture::started().await;
    let name = fixture.session().await;
    fixture.cluster.bind(name).await;
    let message = "The node was low on resource: memory.";
    fixture.cluster.status(name, json!({"phase": "Failed", "reason": "Evicted", "message": message})).await;
    fixture.wait_for_failure(name, "evicted", message).await;
}

#[tokio::test]
async fn a_lost_node_fails_the_attempt() {
    if impossible_with_real_kubelet("lose its node") {
        return;
    }
    let fixture = Fixture::started().await;
    let name = fixture.session().await;
    fixture.cluster.bind(name).await;
    fixture.scheduled(name).await;
    let message = "Taint manager: deleting due to NoExecute taint";
    let condition =
        json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": message});
    fixture.cluster.status(name, json!({"conditions": [condition]})).await;
    fixture.cluster.pods.delete(&name.to_string(), &DeleteParams::default()).await.unwrap();
    fixture.wait_for_failure(name, "node-lost", message).await;
}

#[tokio::test]
async fn a_pod_that_somebody_else_deletes_fails_the_attempt() {
    let fixture = Fixture::started().await;
    for grace in [30, 0] {
        let name = fixture.session().await;
        fixture.cluster.bind(name).await;
        fixture.scheduled(name).await;
        let with = DeleteParams::default().grace_period(grace);
        fixture.cluster.pods.delete(&name.to_string(), &with).await.unwrap();
        fixture.wait_for_failure(name, "deleted", "the pod was deleted, but not by Garage").await;
    }
}

#[tokio::test]
async fn a_pod_that_succeeds_after_it_reported_its_results_has_not_failed() {
    if impossible_with_real_kubelet("race without players") {
        return;
    }
    let fixture = Fixture::started().await;
    let (reported, silent) = (fixture.session().await, fixture.session().await);
    let report = Report { session: reported.session, attempt: 1, kind: ReportKind::Finished };
    fixture.log.context().publish(report.to_string(), "{}".into()).await.unwrap().await.unwrap();
    for name in [reported, silent] {
        fixture.cluster.bind(name).await;
        fixture.scheduled(name).await;
        let terminated = json!({"exitCode": 0, "reason": "Completed"});
        fixture.cluster.container(name, "Succeeded", json!({"terminated": terminated})).await;
    }
    fixture.wait_for_failure(silent, "exited", "exit code 0").await;
    // The pod that reported its results ended first, so by now the director has handled its exit too.
    let history = fixture.load(reported).await.history;
    assert!(matches!(history.last().unwrap().event, Event::PodScheduled(_)), "{history:?}");
}

#[tokio::test]
async fn a_temporary_refusal_of_a_pod_is_retried_and_an_exceeded_quota_fails_the_attempt() {
    let fixture = Fixture::started().await;
    for answer in [Answer::Forbidden, Answer::Unauthorized, Answer::Internal, Answer::TooMany] {
        fixture.cluster.fail("create", "pods", answer);
    }
    let name = fixture.session().await;
    fixture.cluster.bind(name).await;
    fixture.scheduled(name).await;
    fixture.close(name).await;
    fixture.cluster.confirm_deletion(name).await;
    fixture.cluster.gone(name).await;

    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}});
    let quota = serde_json::from_value(quota).unwrap();
    fixture.cluster.quotas.create(&PostParams::default(), &quota).await.unwrap();
    fixture.cluster.wait_for_quota().await;
    let name = fixture.session().await;
    let failed = fixture.failed(name).await;
    let message =
        format!("pods \"{name}\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0");
    assert_eq!((failed.reason.as_str(), failed.message), (NO_CAPACITY, message));
    fixture.cluster.gone(name).await;
}

#[tokio::test]
async fn orphans_are_removed_and_objects_of_others_are_left_alone() {
    let mut fixture = Fixture::new().await;
    fixture.flags = vec!["--orphan-grace=0".into()];
    let needed = fixture.session().await;
    let [orphan, secret, foreign] = [(); 3].map(|()| Name { session: SessionId::new(System.id()), attempt: 1 });
    let labels = |name: Name| {
        json!({"app.kubernetes.io/managed-by": "garage", "garage/session": name.session.to_string(),
            "garage/attempt": name.attempt.to_string()})
    };
    let pod = |name: &str, labels: Value| -> Pod {
        let container = json!({"name": "gameserver", "image": image()});
        let metadata = json!({"name": name, "labels": labels});
        serde_json::from_value(
            json!({"metadata": metadata, "spec": {"schedulerName": "the-test", "containers": [container]}}),
        )
        .unwrap()
    };
    let post = PostParams::default();
    let others = [
        pod(&foreign.to_string(), json!({"app.kubernetes.io/managed-by": "helm"})),
        pod("game-of-others", json!({"app.kubernetes.io/managed-by": "garage"})),
    ];
    for pod in [pod(&orphan.to_string(), labels(orphan))].iter().chain(&others) {
        fixture.cluster.pods.create(&post, pod).await.unwrap();
    }
    let alone = json!({"metadata": {"name": secret.to_string(), "labels": labels(secret)}});
    fixture.cluster.secrets.create(&post, &serde_json::from_value(alone).unwrap()).await.unwrap();
    fixture.start();
    fixture.cluster.gone(orphan).await;
    fixture.cluster.gone(secret).await;
    fixture.cluster.bind(needed).await;
    fixture.scheduled(needed).await;
    let remaining = fixture.cluster.pods.list(&ListParams::default()).await.unwrap();
    let mut remaining: Vec<_> = remaining.iter().map(ResourceExt::name_any).collect();
    let mut expected = vec![needed.to_string(), foreign.to_string(), "game-of-others".into()];
    remaining.sort();
    expected.sort();
    assert_eq!(remaining, expected);
}

#[tokio::test]
async fn a_foreign_pod_with_the_name_of_an_instance_fails_the_attempt_and_is_left_alone() {
    let mut fixture = Fixture::new().await;
    let name = fixture.session().await;
    let taken = json!({"metadata": {"name": name.to_string()}, "spec": {"schedulerName": "the-test", "containers": [{"name": "x", "image": "x"}]}});
    let taken = serde_json::from_value(taken).unwrap();
    fixture.cluster.pods.create(&PostParams::default(), &taken).await.unwrap();
    fixture.start();
    let failed = fixture.failed(name).await;
    let message = format!("there is already a pod {name} that does not belong to Garage");
    assert_eq!((failed.reason.as_str(), failed.message), ("name-taken", message));
    until("its secret to be gone", async || {
        fixture.cluster.secrets.get_opt(&name.to_string()).await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(fixture.cluster.pods.get_opt(&name.to_string()).await.unwrap().is_some());
}

#[tokio::test]
async fn the_watch_continues_after_it_is_interrupted_expired_or_refused() {
    let fixture = Fixture::started().await;
    let before = fixture.session().await;
    fixture.cluster.bind(before).await;
    fixture.scheduled(before).await;
    for answers in [vec![], vec![Answer::Gone], vec![Answer::Internal, Answer::TooMany, Answer::Gone]] {
        for answer in answers {
            fixture.cluster.fail("watch", "pods", answer);
        }
        fixture.cluster.proxy.cut();
        let name = fixture.session().await;
        fixture.cluster.bind(name).await;
        fixture.scheduled(name).await;
    }
    let history = fixture.load(before).await.history;
    assert!(matches!(history.last().unwrap().event, Event::PodScheduled(_)), "{history:?}");
}

#[tokio::test]
async fn the_configuration_is_refused_if_a_queue_has_an_undefined_region() {
    let mut fixture = Fixture::new().await;
    let queues = "[queues.ranked]\nplayers = 2\nrank_band = 200\ntimeout_s = 120\nregions = { eu = 120, us = 120 }\n";
    fs::write(fixture.path("queues.toml"), queues).unwrap();
    fixture.flags = vec![format!("--queues={}", fixture.path("queues.toml")), "--region=eu".into()];
    let refused = format!("{:#}", fixture.config().check().unwrap_err());
    assert_eq!(refused, "queue ranked has region us, which no --region defines");
    fixture.flags.push("--region=us=zone=b".into());
    fixture.config().check().unwrap();
    fixture.flags = vec![format!("--queues={}", fixture.path("queues.toml"))];
    fixture.config().check().unwrap();
}

#[tokio::test]
async fn a_region_may_be_another_cluster_and_its_failure_does_not_affect_other_clusters() {
    let mut fixture = Fixture::new().await;
    let far = ApiServer::start().await.unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&far.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let namespace = fixture.cluster.namespace.clone();
    let post = PostParams::default();
    let named = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
    Api::<Namespace>::all(client.clone()).create(&post, &named).await.unwrap();
    let addresses = json!([{"type": "ExternalIP", "address": "198.51.100.1"}]);
    let node = json!({"metadata": {"name": "far-node"}, "status": {"addresses": addresses}});
    Api::<Node>::all(client.clone()).create(&post, &serde_json::from_value(node).unwrap()).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client, &namespace);

    let mut kubeconfig: Value = serde_json::from_str(&fixture.cluster.proxy.kubeconfig()).unwrap();
    let add = |list: &str, entry: Value, kubeconfig: &mut Value| kubeconfig[list].as_array_mut().unwrap().push(entry);
    add("clusters", json!({"name": "far", "cluster": {"server": far.url()}}), &mut kubeconfig);
    add("contexts", json!({"name": "far", "context": {"cluster": "far", "user": "test"}}), &mut kubeconfig);
    fs::write(fixture.path("kubeconfig"), kubeconfig.to_string()).unwrap();
    fixture.flags = vec!["--region=eu".into(), "--region=us@far".into()];
    fixture.config().check().unwrap();
    fixture.start();

    let (near_game, far_game) = (fixture.session_in("eu").await, fixture.session_in("us").await);
    fixture.cluster.bind(near_game).await;
    fixture.scheduled(near_game).await;
    let target = json!({"apiVersion": "v1", "kind": "Node", "name": "far-node"});
    let metadata = json!({"name": far_game.to_string()});
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target});
    until("the pod in the far cluster", async || pods.get_opt(&far_game.to_string()).await.unwrap()).await;
    let _: Value = pods.create_subresource("binding", &far_game.to_string(), &post, &binding).await.unwrap();
    assert_eq!(fixture.scheduled(far_game).await.public_ip.to_string(), "198.51.100.1");
    assert!(fixture.cluster.pods.get_opt(&far_game.to_string()).await.unwrap().is_none());

    drop(far);
    let next = fixture.session_in("eu").await;
    fixture.cluster.bind(next).await;
    fixture.scheduled(next).await;
    fixture.close(near_game).await;
    fixture.cluster.confirm_deletion(near_game).await;
    fixture.cluster.gone(near_game).await;
    let history = fixture.load(far_game).await.history;
    assert!(matches!(history.last().unwrap().event, Event::PodScheduled(_)), "{history:?}");

    fixture.flags = vec!["--region=us@nowhere".into()];
    let refused = format!("{:#}", fixture.config().check().unwrap_err());
    assert!(refused.ends_with("has no context nowhere, which --region names"), "{refused}");
}

#[tokio::test]
async fn a_thousand_closed_sessions_leave_no_pod_and_no_secret() {
    let fixture = Fixture::started().await;
    // A node with a kubelet runs about a hundred pods.
    let at_once = if kubelet_is_real() { 25 } else { 100 };
    for _ in 0..1_000 / at_once {
        let game = async || {
            let name = fixture.session().await;
            fixture.cluster.bind(name).await;
            fixture.scheduled(name).await;
            fixture.close(name).await;
            fixture.cluster.confirm_deletion(name).await;
            fixture.cluster.gone(name).await;
        };
        join_all((0..at_once).map(|_| game())).await;
    }
    let all = ListParams::default();
    let pods = fixture.cluster.pods.list(&all).await.unwrap();
    let secrets = fixture.cluster.secrets.list(&all.labels(OURS)).await.unwrap();
    assert_eq!((pods.items.len(), secrets.items.len()), (0, 0));
    assert_eq!(fixture.cluster.created(), 2_000);
}
