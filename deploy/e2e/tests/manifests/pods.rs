//! That every pod is confined as its namespace asks, and more than that.

use serde_json::{Value, json};

use crate::support::{Pod, overlays};

/// Volumes that the level `restricted` allows.
const VOLUMES: [&str; 7] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"];

/// What the level `restricted` says of a pod, and what this repository says besides.
fn complaints(pod: &Pod<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut hold = |holds: bool, what: String| found.extend((!holds).then_some(what));
    let security = &pod.spec["securityContext"];
    hold(security["runAsNonRoot"] == true && security["runAsUser"].as_u64() > Some(0), "may be root".into());
    hold(security["seccompProfile"]["type"] == "RuntimeDefault", "has no seccomp profile".into());
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        hold(pod.spec.get(shared).is_none(), format!("has {shared}"));
    }
    for volume in pod.spec["volumes"].as_array().into_iter().flatten() {
        let kinds: Vec<_> = volume.as_object().unwrap().keys().filter(|key| *key != "name").collect();
        let allowed = kinds.iter().all(|kind| VOLUMES.contains(&kind.as_str()) || *kind == "secret");
        hold(allowed, format!("has the volume {volume}"));
    }
    let talks_to_the_api = pod.name == "director";
    hold(pod.spec["automountServiceAccountToken"] == talks_to_the_api, "has a token, or lacks it".into());
    hold(pod.spec["serviceAccountName"].is_string(), "has the default account".into());
    hold(pod.spec["enableServiceLinks"] == false, "is told of services in variables".into());
    let lists = [&pod.spec["initContainers"], &pod.spec["containers"]];
    for container in lists.into_iter().filter_map(Value::as_array).flatten() {
        let security = &container["securityContext"];
        let name = container["name"].as_str().unwrap();
        hold(security["allowPrivilegeEscalation"] == false, format!("{name} may become more"));
        hold(security["capabilities"] == json!({"drop": ["ALL"]}), format!("{name} has capabilities"));
        hold(security["readOnlyRootFilesystem"] == true, format!("{name} may write its image"));
        let ports = container["ports"].as_array().into_iter().flatten();
        hold(ports.clone().all(|port| port.get("hostPort").is_none()), format!("{name} has a port of the host"));
        let resources = &container["resources"];
        let bounded = resources["requests"]["cpu"].is_string() && resources["requests"]["memory"].is_string();
        hold(bounded && resources["limits"]["memory"].is_string(), format!("{name} may take what it likes"));
    }
    found
}

#[test]
fn every_pod_meets_the_level_restricted_and_cannot_write_its_image() {
    for overlay in overlays() {
        let pods: Vec<_> = overlay.pods().collect();
        assert!(pods.len() >= 9, "{pods:?}");
        for pod in pods {
            assert_eq!(complaints(&pod), Vec::<String>::new(), "{}: {}", overlay.name, pod.name);
        }
    }
}

#[test]
fn a_pod_that_is_not_confined_is_complained_of() {
    for (path, value) in [
        ("/securityContext/runAsUser", json!(0)),
        ("/securityContext/seccompProfile/type", json!("Unconfined")),
        ("/volumes/0", json!({"name": "x", "hostPath": {"path": "/"}})),
        ("/automountServiceAccountToken", json!(true)),
        ("/containers/0/securityContext/allowPrivilegeEscalation", json!(true)),
        ("/containers/0/securityContext/capabilities/drop", json!([])),
        ("/containers/0/securityContext/readOnlyRootFilesystem", json!(false)),
        ("/containers/0/resources/limits", json!({})),
    ] {
        let gateway = overlays()[0].pods().find(|pod| pod.name == "gateway").unwrap();
        let mut spec = gateway.spec.clone();
        *spec.pointer_mut(path).unwrap_or_else(|| panic!("no {path}")) = value;
        assert_eq!(complaints(&Pod { spec: &spec, ..gateway }).len(), 1, "{path}");
    }
}

#[test]
fn workers_are_where_nothing_else_is_allowed_and_only_games_may_use_their_node() {
    for overlay in overlays() {
        let level =
            |name| &overlay.object("Namespace", name)["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
        assert_eq!((level("garage"), level("garage-games")), (&json!("restricted"), &json!("privileged")));
        for pod in overlay.pods() {
            let expected = if pod.name == "image" { "garage-games" } else { "garage" };
            assert_eq!(pod.namespace, expected, "{}", pod.name);
        }
    }
}

#[test]
fn every_worker_says_whether_it_lives_and_whether_it_is_ready() {
    for overlay in overlays() {
        for pod in overlay.pods().filter(|pod| pod.labels["garage/worker"] == "true") {
            let container = &pod.spec["containers"][0];
            assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/livez", "port": "admin"}));
            assert_eq!(container["readinessProbe"]["httpGet"], json!({"path": "/readyz", "port": "admin"}));
            let ports = container["ports"].as_array().unwrap();
            assert!(ports.iter().any(|port| port["name"] == "admin" && port["containerPort"] == 9000), "{}", pod.name);
        }
        assert_eq!(overlay.pods().filter(|pod| pod.labels["garage/worker"] == "true").count(), 5);
    }
}
