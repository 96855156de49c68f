//! Game servers as pods of a Kubernetes cluster, as a user runs them.

use std::{fs, path::Path, process::Command};

use garage_apiserver::ApiServer;
use garage_stack::{bot::Bot, process::Launch, workers::binary};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    demo::Demo,
    support::{acquire_permit, cluster::Cluster, until},
};

#[tokio::test]
async fn a_demo_on_a_cluster_succeeds_and_leaves_no_pod_and_no_secret() {
    let _permit = acquire_permit().await;
    let cluster = Cluster::new().await;
    let mut demo = Demo::start_with(&cluster.flags(), &[]);
    demo.assert_succeeds().await;
    let message = format!("no pod and no secret of this Garage is left in namespace {}", cluster.namespace());
    assert!(demo.printed().contains(&message));
    cluster.assert_empty().await;
    assert_eq!(cluster.pods_created().await, 2, "one pod per match");
    cluster.remove().await;
}

#[tokio::test]
async fn a_demo_on_a_cluster_that_is_interrupted_leaves_no_pod_and_no_secret() {
    let _permit = acquire_permit().await;
    let cluster = Cluster::new().await;
    let mut demo = Demo::start_with(&cluster.flags(), &[("GARAGE_GAME_ARG", "--distance-m 50000")]);
    cluster.until_running(2).await;
    demo.process.signal(Signal::SIGINT).unwrap();
    assert_eq!(demo.code().await, Some(1));
    assert!(demo.printed().contains("error: interrupted"));
    cluster.assert_empty().await;
    demo.assert_nothing_left().await;
    cluster.remove().await;
}

#[tokio::test]
async fn pods_reach_nats_at_the_advertised_address() {
    let _permit = acquire_permit().await;
    let cluster = Cluster::new().await;
    // Every 127.x.x.x address is this machine. Without the flag, NATS listens at 127.0.0.1.
    let mut demo = Demo::start_with(&[&cluster.flags()[..], &["--advertise", "127.0.0.2"]].concat(), &[]);
    demo.assert_succeeds().await;
    cluster.remove().await;
}

#[tokio::test]
async fn garage_up_that_is_stopped_during_a_race_leaves_no_pod_and_no_secret() {
    let _permit = acquire_permit().await;
    let cluster = Cluster::new().await;
    let folder = tempfile::Builder::new().prefix("garage-e2e-up-").tempdir().unwrap();
    let root = folder.path().join("root");
    let mut up = Launch::new("garage up", binary("garage").unwrap(), folder.path().join("printed"))
        .args(["up", "--root", root.to_str().unwrap()])
        .args(cluster.flags())
        .env("GARAGE_KEY_POOL", "4")
        .env("GARAGE_GAME_ARG", "--distance-m 50000")
        .spawn()
        .unwrap();
    let printed = || fs::read_to_string(folder.path().join("printed")).unwrap_or_default();
    let gateway = until("garage up is ready", async || {
        let printed = printed();
        let gateway = printed.lines().find_map(|line| line.strip_prefix("export GATEWAY="))?;
        printed.contains("Press Ctrl-C to stop").then(|| gateway.to_owned())
    })
    .await;
    let bots = ["anna", "bert"]
        .map(|name| Bot::new(reqwest::Client::new(), &gateway, name, &token(name, &root.join("secrets/jwt.key"))));
    let _racing = bots.map(|bot| tokio::spawn(async move { bot.play("ranked").await }));
    cluster.until_running(1).await;
    up.signal(Signal::SIGINT).unwrap();
    let status = until("the process has ended", async || up.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0), "{}", printed());
    assert!(printed().contains("no pod and no secret of this Garage is left"), "{}", printed());
    cluster.assert_empty().await;
    cluster.remove().await;
}

fn token(player: &str, key: &Path) -> String {
    let mut garage = Command::new(binary("garage").unwrap());
    let created =
        garage.args(["token", player, "--rank", "0"]).env("GARAGE_GATEWAY_JWT_KEY_FILE", key).output().unwrap();
    assert!(created.status.success(), "{created:?}");
    String::from_utf8(created.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn an_unusable_cluster_is_reported_before_anything_starts() {
    for (denied, messages) in [
        (("create", "namespaces"), ["namespaces is forbidden", "`kubectl create namespace games`"]),
        (("patch", "secrets"), ["may not patch secrets in namespace games", "bind a role"]),
    ] {
        let simulated = ApiServer::start().await.unwrap();
        simulated.deny(denied.0, denied.1);
        assert_refused(&simulated.kubeconfig(), &messages).await;
    }
    let simulated = ApiServer::start().await.unwrap();
    create_secret_of_another_garage(&simulated).await;
    assert_refused(&simulated.kubeconfig(), &["pods (0) and secrets (1) are in namespace games", "another namespace"])
        .await;
    assert_refused("{", &["cannot use", "(--kubeconfig)"]).await;
    let kubeconfig = simulated.kubeconfig();
    let unauthorized = kubeconfig.replace(&simulated.url(), &start_unauthorized_server().await);
    assert_refused(&unauthorized, &["get a kubeconfig whose credentials are valid: Unauthorized (401)"]).await;
    drop(simulated);
    assert_refused(&kubeconfig, &["cannot reach it; check that it runs and is reachable from this machine"]).await;
}

/// An API server that rejects all credentials.
async fn start_unauthorized_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "Unauthorized", "reason": "Unauthorized", "code": 401})
    .to_string();
    let head = "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length";
    let answer = format!("{head}: {}\r\n\r\n{status}", status.len());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // One read returns a whole request, as it has no body.
            if stream.read(&mut [0; 4_096]).await.unwrap() > 0 {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    url
}

async fn create_secret_of_another_garage(simulated: &ApiServer) {
    let http = reqwest::Client::new();
    let namespaces = format!("{}/api/v1/namespaces", simulated.url());
    let labels = json!({"app.kubernetes.io/managed-by": "garage"});
    for (path, object) in [
        ("", json!({"metadata": {"name": "games"}})),
        ("/games/secrets", json!({"metadata": {"name": "theirs", "labels": labels}})),
    ] {
        let created = http.post(format!("{namespaces}{path}")).json(&object).send().await.unwrap();
        assert_eq!(created.status(), 201);
    }
}

#[tokio::test]
async fn a_cluster_that_refuses_the_pods_is_reported_before_anything_starts() {
    let simulated = ApiServer::start().await.unwrap();
    let labels = json!({"pod-security.kubernetes.io/enforce": "baseline"});
    let namespace = json!({"metadata": {"name": "games", "labels": labels}});
    let created = reqwest::Client::new()
        .post(format!("{}/api/v1/namespaces", simulated.url()))
        .body(namespace.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(created.status(), 201);
    let messages = [
        "violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)",
        "`kubectl label --overwrite namespace games pod-security.kubernetes.io/enforce=privileged`",
    ];
    assert_refused(&simulated.kubeconfig(), &messages).await;

    let folder = tempfile::tempdir().unwrap();
    let (kubeconfig, log) = (folder.path().join("kubeconfig"), folder.path().join("printed"));
    fs::write(&kubeconfig, simulated.kubeconfig()).unwrap();
    let mut bench = Launch::new("garage bench director", binary("garage").unwrap(), &log)
        .args(["bench", "director", "--namespace", "games", "--kubeconfig", kubeconfig.to_str().unwrap()])
        .env("TMPDIR", folder.path())
        .spawn()
        .unwrap();
    let status = until("the process has ended", async || bench.try_wait().unwrap()).await;
    let printed = fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(1), "{printed}");
    for words in messages {
        assert!(printed.contains(words), "{words}: {printed}");
    }
}

async fn assert_refused(kubeconfig: &str, messages: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kubeconfig");
    fs::write(&file, kubeconfig).unwrap();
    let flags = ["--director", "kube", "--image", "i", "--namespace", "games", "--kubeconfig", file.to_str().unwrap()];
    let mut demo = Demo::start_with(&flags, &[]);
    assert_eq!(demo.code().await, Some(1));
    let printed = demo.printed();
    assert!(printed.starts_with("error: "), "{printed}");
    for words in messages {
        assert!(printed.contains(words), "{words}: {printed}");
    }
}

#[tokio::test]
async fn the_director_benchmark_prints_rates_and_leaves_no_pod_and_no_secret() {
    let _permit = acquire_permit().await;
    let cluster = Cluster::new().await;
    let folder = tempfile::Builder::new().prefix("garage-e2e-bench-").tempdir().unwrap();
    let log = folder.path().join("printed");
    let mut bench = Launch::new("garage bench director", binary("garage").unwrap(), &log)
        .args(["bench", "director", "--pods", "20", "--rounds", "2"])
        .args(&cluster.flags()[2..])
        .env("TMPDIR", folder.path())
        .spawn()
        .unwrap();
    let status = until("the process has ended", async || bench.try_wait().unwrap()).await;
    let printed = fs::read_to_string(&log).unwrap();
    assert_eq!(status.code(), Some(0), "{printed}");
    for row in ["a client alone, 16 at a time (limit)", "a director"] {
        let rates = printed.lines().find_map(|line| line.trim_start().strip_prefix(row)).unwrap();
        let rates: Vec<f64> = rates.split_whitespace().map(|rate| rate.parse().unwrap()).collect();
        assert!(rates.len() == 4 && rates.iter().all(|rate| *rate > 0.0), "{printed}");
    }
    cluster.assert_empty().await;
    assert_eq!(
        cluster.pods_created().await,
        2 * (16 + 2 * 20),
        "client and director: 16 pods first, then two rounds of 20"
    );
    cluster.remove().await;
}

#[tokio::test]
async fn cluster_flags_require_the_kube_director_and_each_other() {
    for (flags, code, message) in [
        (&["--image", "i"][..], 1, "--image requires --director kube"),
        (&["--director", "kube", "--image", "i"], 2, "--kubeconfig <FILE>"),
        (&["--director", "kube", "--kubeconfig", "f"], 2, "--image <IMAGE>"),
    ] {
        let mut demo = Demo::start_with(flags, &[]);
        assert_eq!(demo.code().await, Some(code));
        assert!(demo.printed().contains(message), "{}", demo.printed());
    }
}
