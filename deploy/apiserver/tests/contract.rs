//! Compares the simulated API server's answers with the recorded answers of a real API server.
#![cfg(test)]

use std::{fs, path::Path, time::Duration};

use garage_apiserver::{
    ApiServer,
    proxy::{Answer, Proxy},
};
use kube::{Client, config::Kubeconfig};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(120);

/// A recorded request with its answer, or a recorded watch.
fn recorded(name: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/recorded/{name}.json"));
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// Replaces the values that differ from run to run by a constant.
fn comparable(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fixed = |field: &String, value: &Value| match field.as_str() {
                "uid" | "resourceVersion" | "creationTimestamp" | "deletionTimestamp" | "lastTransitionTime"
                    if value.is_string() =>
                {
                    Value::from("differs from run to run")
                }
                _ => comparable(value),
            };
            Value::Object(fields.iter().map(|(field, value)| (field.clone(), fixed(field, value))).collect())
        }
        Value::Array(items) => items.iter().map(comparable).collect(),
        value => value.clone(),
    }
}

/// A simulated API server, and a proxy in front of it. The tests send their requests to the proxy.
struct Fixture {
    server: ApiServer,
    proxy: Proxy,
    url: String,
    client: reqwest::Client,
}

impl Fixture {
    /// Starts a simulated API server with the namespaces and nodes that the real server had before the recordings.
    async fn new() -> Self {
        let server = ApiServer::start().await.unwrap();
        let config = Kubeconfig::from_yaml(&server.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
        let proxy = Proxy::start(Client::try_from(config).unwrap()).await.unwrap();
        let fixture = Self { server, url: proxy.url(), proxy, client: reqwest::Client::new() };
        for namespace in ["games", "games-quota"] {
            let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            assert_eq!(fixture.send("POST", "/api/v1/namespaces", &body, "application/json").await.0, 201);
        }
        for (name, addresses) in [
            ("node-a", json!([["InternalIP", "10.0.0.11"], ["ExternalIP", "203.0.113.11"], ["Hostname", "node-a"]])),
            ("node-b", json!([["InternalIP", "10.0.0.12"], ["Hostname", "node-b"]])),
        ] {
            let addresses = addresses.as_array().unwrap();
            let addresses: Value =
                addresses.iter().map(|address| json!({"type": address[0], "address": address[1]})).collect();
            let amount = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
            let time = "2026-11-22T05:00:00Z";
            let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": time, "lastTransitionTime": time,
                "reason": "KubeletReady"});
            let status =
                json!({"capacity": amount, "allocatable": amount, "conditions": [ready], "addresses": addresses});
            let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": status});
            assert_eq!(fixture.send("POST", "/api/v1/nodes", &body, "application/json").await.0, 201);
        }
        fixture
    }

    async fn send(&self, method: &str, path: &str, body: &Value, kind: &str) -> (u16, Value) {
        let url = format!("{}{path}", self.url);
        let mut request = self.client.request(method.parse().unwrap(), url);
        if !body.is_null() {
            request = request.header("content-type", kind).body(body.to_string());
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
    }

    /// Sends a recorded request, and compares the answer with the recorded one.
    async fn replay(&self, name: &str) {
        let recorded = recorded(name);
        let mut body = recorded["request"]["body"].clone();
        let kind = body.as_object_mut().and_then(|body| body.remove("content_type"));
        let kind = kind.or_else(|| recorded["request"].get("content_type").cloned());
        let kind = kind.as_ref().and_then(Value::as_str).unwrap_or("application/json").to_owned();
        let (method, path) = (recorded["request"]["method"].as_str().unwrap(), recorded["request"]["path"].as_str());
        let (status, answer) = self.send(method, path.unwrap(), &body, &kind).await;
        assert_eq!(status, recorded["response"]["status"], "{name}: {answer}");
        let (answer, expected) = (comparable(&answer), comparable(&recorded["response"]["body"]));
        assert!(answer == expected, "{name}\nanswered {answer:#}\nrecorded {expected:#}");
    }

    async fn replay_all(&self, names: &[&str]) {
        for name in names {
            self.replay(name).await;
        }
    }

    /// Creates a pod that differs from the recorded one only by its name and session.
    async fn create(&self, name: &str) -> (u16, Value) {
        let mut pod = recorded("pod_create")["request"]["body"].clone();
        pod["metadata"]["name"] = name.into();
        pod["metadata"]["labels"]["garage/session"] = name.into();
        self.send("POST", "/api/v1/namespaces/games/pods", &pod, "application/json").await
    }

    async fn bind(&self, name: &str, node: &str) {
        let mut binding = recorded("pod_bind")["request"]["body"].clone();
        binding["metadata"]["name"] = name.into();
        binding["target"]["name"] = node.into();
        let path = format!("/api/v1/namespaces/games/pods/{name}/binding");
        assert_eq!(self.send("POST", &path, &binding, "application/json").await.0, 201);
    }

    async fn status(&self, name: &str, status: Value) {
        let path = format!("/api/v1/namespaces/games/pods/{name}/status");
        let kind = "application/strategic-merge-patch+json";
        assert_eq!(self.send("PATCH", &path, &json!({"status": status}), kind).await.0, 200);
    }

    async fn watch(&self, query: &str) -> Watch {
        let url = format!("{}/api/v1/namespaces/games/pods?watch=true&{query}", self.url);
        Watch { response: self.client.get(url).send().await.unwrap(), read: Vec::new() }
    }
}

struct Watch {
    response: reqwest::Response,
    read: Vec<u8>,
}

impl Watch {
    /// The next event. `None` at the end of the watch.
    async fn next(&mut self) -> Option<Value> {
        tokio::time::timeout(DEADLINE, async {
            loop {
                if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<_> = self.read.drain(..=end).collect();
                    return Some(serde_json::from_slice(&line).unwrap());
                }
                self.read.extend(self.response.chunk().await.ok()??);
            }
        })
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn requests_for_pods_and_a_watch_are_answered_as_recorded() {
    let fixture = Fixture::new().await;
    fixture.replay_all(&["pod_list_empty", "pod_get_missing"]).await;
    let (_, list) = fixture.send("GET", "/api/v1/namespaces/games/pods", &Value::Null, "").await;
    let from = list["metadata"]["resourceVersion"].as_str().unwrap();
    let selector = "labelSelector=app.kubernetes.io%2Fmanaged-by%3Dgarage";
    let mut watch = fixture.watch(&format!("allowWatchBookmarks=true&resourceVersion={from}&{selector}")).await;
    fixture.replay_all(&["pod_create", "pod_create_again", "pod_unschedulable_status", "pod_bind"]).await;
    fixture.replay_all(&["pod_status_image_pull_backoff", "pod_status_running", "pod_get_running"]).await;
    fixture.replay_all(&["pod_list_one", "pod_status_succeeded", "pod_delete_grace", "pod_delete_missing"]).await;
    // The recordings show these three requests only through the watch.
    fixture.create("game-4").await;
    fixture.bind("game-4", "node-b").await;
    let running = recorded("pod_status_running")["request"]["body"]["status"].clone();
    fixture.status("game-4", running).await;
    fixture.replay_all(&["pod_status_failed_oom", "pod_status_evicted", "pod_delete_bound_default_grace"]).await;
    fixture.create("game-5").await;
    for expected in recorded("pod_watch")["events"].as_array().unwrap() {
        let mut seen = watch.next().await.unwrap();
        while seen["type"] == "BOOKMARK" && expected["type"] != "BOOKMARK" {
            seen = watch.next().await.unwrap();
        }
        assert_eq!(seen["type"], expected["type"]);
        if seen["type"] != "BOOKMARK" {
            let (seen, expected) = (comparable(&seen["object"]), comparable(&expected["object"]));
            assert!(seen == expected, "seen {seen:#}\nrecorded {expected:#}");
        }
    }
}

#[tokio::test]
async fn invalid_and_forbidden_requests_are_refused_as_recorded() {
    let fixture = Fixture::new().await;
    fixture.replay_all(&["node_get_external_ip", "node_get_internal_only", "node_get_missing"]).await;
    fixture.replay_all(&["pod_create_invalid_name", "pod_create_hostnetwork_port_mismatch"]).await;
    fixture.replay_all(&["pod_create_invalid_restart_policy", "watch_bad_resource_version"]).await;
    let path = "/api/v1/namespaces/games-quota";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}});
    assert_eq!(fixture.send("POST", &format!("{path}/resourcequotas"), &quota, "application/json").await.0, 201);
    let first = recorded("pod_create")["request"]["body"].clone();
    assert_eq!(fixture.send("POST", &format!("{path}/pods"), &first, "application/json").await.0, 201);
    fixture.replay("pod_create_quota_exceeded").await;
    for (name, answer) in [("unauthorized", Answer::Unauthorized), ("forbidden_rbac", Answer::Forbidden)] {
        fixture.proxy.fail("list", "pods", answer);
        fixture.replay(name).await;
    }
}

/// The messages are those of the sources of Kubernetes 1.36: no cluster that refused such pods was recorded.
#[tokio::test]
async fn pods_that_the_namespace_does_not_admit_are_refused_also_in_a_dry_run() {
    let fixture = Fixture::new().await;
    let refused = async |path: &str| {
        let body = recorded("pod_create")["request"]["body"].clone();
        let (status, answer) = fixture.send("POST", path, &body, "application/json").await;
        (status, answer["reason"].as_str().unwrap_or_default().to_owned(), answer["message"].to_string())
    };
    let (pods, dry) = ("/api/v1/namespaces/games/pods", "/api/v1/namespaces/games/pods?dryRun=All");
    // A dry run is answered like a creation, but nothing is created, so it can be repeated.
    for _ in 0..2 {
        assert_eq!(refused(dry).await.0, 201);
    }
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "500m"}}]}});
    let ranges = "/api/v1/namespaces/games/limitranges";
    assert_eq!(fixture.send("POST", ranges, &range, "application/json").await.0, 201);
    for path in [dry, pods] {
        let (status, reason, message) = refused(path).await;
        assert_eq!((status, reason.as_str()), (403, "Forbidden"));
        assert!(message.contains("is forbidden: maximum cpu usage per Container is 500m, but limit is 1"), "{message}");
    }
    assert_eq!(fixture.send("DELETE", &format!("{ranges}/r"), &Value::Null, "").await.0, 200);

    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    let merge = "application/merge-patch+json";
    assert_eq!(fixture.send("PATCH", "/api/v1/namespaces/games", &labels, merge).await.0, 200);
    for path in [dry, pods] {
        let (status, reason, message) = refused(path).await;
        assert_eq!((status, reason.as_str()), (403, "Forbidden"));
        let expected = "violates PodSecurity \\\"baseline:latest\\\": host namespaces (hostNetwork=true)";
        assert!(message.contains(expected), "{message}");
    }
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
    assert_eq!(fixture.send("PATCH", "/api/v1/namespaces/games", &labels, merge).await.0, 200);

    fixture.server.deny_pods("pods.example.com", "no host network");
    for path in [dry, pods] {
        let (status, reason, message) = refused(path).await;
        assert_eq!((status, reason.as_str()), (403, "Forbidden"));
        let expected = "\"admission webhook \\\"pods.example.com\\\" denied the request: no host network\"";
        assert_eq!(message, expected);
    }
}

#[tokio::test]
async fn a_pod_that_requests_more_than_its_limit_is_invalid() {
    let fixture = Fixture::new().await;
    let mut pod = recorded("pod_create")["request"]["body"].clone();
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1500m"}, "limits": {"cpu": "1"}});
    let (status, answer) = fixture.send("POST", "/api/v1/namespaces/games/pods", &pod, "application/json").await;
    let problem = "Invalid value: \"1500m\": must be less than or equal to cpu limit of 1";
    let field = "spec.containers[0].resources.requests";
    assert_eq!((status, &answer["reason"]), (422, &json!("Invalid")));
    let message = format!("Pod \"{}\" is invalid: {field}: {problem}", pod["metadata"]["name"].as_str().unwrap());
    assert_eq!(answer["message"], message);
    assert_eq!(
        answer["details"]["causes"],
        json!([{"reason": "FieldValueInvalid", "message": problem, "field": field}])
    );
}

#[tokio::test]
async fn a_full_quota_refuses_also_an_object_that_exists_already() {
    let fixture = Fixture::new().await;
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "1"}}});
    let path = "/api/v1/namespaces/games/resourcequotas";
    assert_eq!(fixture.send("POST", path, &quota, "application/json").await.0, 201);
    let (created, again) = (fixture.create("game-1").await, fixture.create("game-1").await);
    assert_eq!((created.0, again.0, &again.1["reason"]), (201, 403, &json!("Forbidden")));
}

#[tokio::test]
async fn requests_for_secrets_are_answered_as_recorded() {
    let fixture = Fixture::new().await;
    fixture.replay_all(&["secret_create", "secret_create_again"]).await;
    // The owner in the recorded request is a pod that this server does not have. The server does not check owners.
    let mut set_owner = recorded("secret_set_owner");
    let path = set_owner["request"]["path"].as_str().unwrap().to_owned();
    let kind = "application/merge-patch+json";
    let mut body = set_owner["request"]["body"].take();
    body.as_object_mut().unwrap().remove("content_type");
    let (status, secret) = fixture.send("PATCH", &path, &body, kind).await;
    assert_eq!(status, 200);
    assert_eq!(comparable(&secret), comparable(&set_owner["response"]["body"]));
    assert_eq!(fixture.send("DELETE", &path, &Value::Null, "").await.0, 200);
    assert_eq!(fixture.send("GET", &path, &Value::Null, "").await.0, 404);
}

#[tokio::test]
async fn a_deleted_pod_on_a_node_exists_until_its_kubelet_confirms_the_end() {
    let fixture = Fixture::new().await;
    fixture.create("game-1").await;
    fixture.bind("game-1", "node-a").await;
    let path = "/api/v1/namespaces/games/pods/game-1";
    let (status, pod) = fixture.send("DELETE", path, &Value::Null, "").await;
    assert_eq!((status, &pod["metadata"]["deletionGracePeriodSeconds"]), (200, &json!(30)));
    assert!(fixture.send("GET", path, &Value::Null, "").await.1["metadata"]["deletionTimestamp"].is_string());
    let now = json!({"gracePeriodSeconds": 0});
    assert_eq!(fixture.send("DELETE", path, &now, "application/json").await.0, 200);
    assert_eq!(fixture.send("GET", path, &Value::Null, "").await.0, 404);
}

#[tokio::test]
async fn a_deletion_with_the_uid_of_another_object_is_refused() {
    let fixture = Fixture::new().await;
    fixture.create("game-1").await;
    let path = "/api/v1/namespaces/games/pods/game-1";
    let other = json!({"preconditions": {"uid": "ba12927a-0bc9-48ed-9bca-deb908c497f6"}});
    let (status, refusal) = fixture.send("DELETE", path, &other, "application/json").await;
    assert_eq!((status, &refusal["reason"]), (409, &json!("Conflict")));
    assert_eq!(fixture.send("GET", path, &Value::Null, "").await.0, 200);
}

#[tokio::test]
async fn a_list_has_pages_and_can_be_filtered_by_label() {
    let fixture = Fixture::new().await;
    for name in ["a", "b", "c"] {
        fixture.create(name).await;
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let path = "/api/v1/namespaces/games/pods";
    let (_, first) = fixture.send("GET", &format!("{path}?limit=2"), &Value::Null, "").await;
    assert_eq!(names(&first), ["a", "b"]);
    let next = first["metadata"]["continue"].as_str().unwrap();
    let (_, rest) = fixture.send("GET", &format!("{path}?limit=2&continue={next}"), &Value::Null, "").await;
    assert_eq!(names(&rest), ["c"]);
    assert!(rest["metadata"]["continue"].is_null());
    let (_, one) = fixture.send("GET", &format!("{path}?labelSelector=garage%2Fsession%3Db"), &Value::Null, "").await;
    assert_eq!(names(&one), ["b"]);
}

#[tokio::test]
async fn a_watch_from_an_expired_revision_gets_an_error_event() {
    let fixture = Fixture::new().await;
    fixture.proxy.fail("watch", "pods", Answer::Gone);
    let mut watch = fixture.watch("resourceVersion=1").await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!((&event["object"]["reason"], watch.next().await), (&json!("Expired"), None));
}

#[tokio::test]
async fn a_client_that_wants_only_metadata_gets_only_metadata() {
    let fixture = Fixture::new().await;
    fixture.replay("secret_create").await;
    let path = recorded("secret_create")["request"]["path"].as_str().unwrap().to_owned();
    let accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let list = fixture.client.get(format!("{}{path}", fixture.url)).header("accept", accept).send().await.unwrap();
    let list: Value = list.json().await.unwrap();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    let secret = list["items"][0].as_object().unwrap();
    assert_eq!(secret.keys().collect::<Vec<_>>(), ["apiVersion", "kind", "metadata"]);
    assert_eq!(secret["kind"], "PartialObjectMetadata");
}

#[tokio::test]
async fn the_proxy_makes_the_requested_number_of_requests_fail_and_logs_them() {
    let fixture = Fixture::new().await;
    let mut watch = fixture.watch("resourceVersion=1").await;
    for answer in [Answer::TooMany, Answer::Internal] {
        fixture.proxy.fail("create", "pods", answer);
    }
    let codes = [fixture.create("game-1").await.0, fixture.create("game-1").await.0, fixture.create("game-1").await.0];
    assert_eq!(codes, [429, 500, 201]);
    assert_eq!(watch.next().await.unwrap()["type"], "ADDED");
    fixture.proxy.cut();
    assert_eq!(watch.next().await, None);
    let requests = fixture.proxy.requests().into_iter().filter(|request| request.resource == "pods");
    let requests: Vec<_> = requests.map(|request| (request.verb, request.status)).collect();
    let expected = [("watch", None), ("create", Some(429)), ("create", Some(500)), ("create", Some(201))];
    assert_eq!(requests, expected);
}
