//! Tests that every pod meets the security level of its namespace, and stricter rules of this repository.

use serde_json::{Value, json};

use crate::support::{Pod, overlays};

/// The volume types that the pod security level `restricted` allows.
const VOLUMES: [&str; 7] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"];

/// The rules that a pod violates, of the level `restricted` and of this repository.
fn violations(pod: &Pod<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut require = |met: bool, what: String| found.extend((!met).then_some(what));
    let security = &pod.spec["securityContext"];
    require(security["runAsNonRoot"] == true && security["runAsUser"].as_u64() > Some(0), "may run as root".into());
    require(security["seccompProfile"]["type"] == "RuntimeDefault", "has no seccomp profile".into());
    for shared in ["hostNetwork", "hostPID", "hostIPC"] {
        require(pod.spec.get(shared).is_none(), format!("has {shared}"));
    }
    for volume in pod.spec["volumes"].as_array().into_iter().flatten() {
        let kinds: Vec<_> = volume.as_object().unwrap().keys().filter(|key| *key != "name").collect();
        let allowed = kinds.iter().all(|kind| VOLUMES.contains(&kind.as_str()) || *kind == "secret");
        require(allowed, format!("has the volume {volume}"));
    }
    let uses_the_api = pod.name == "director";
    require(
        pod.spec["automountServiceAccountToken"] == uses_the_api,
        "has an API token it does not need, or lacks one".into(),
    );
    require(pod.spec["serviceAccountName"].is_string(), "has the default service account".into());
    require(pod.spec["enableServiceLinks"] == false, "has service links in its environment".into());
    let lists = [&pod.spec["initContainers"], &pod.spec["containers"]];
    for container in lists.into_iter().filter_map(Value::as_array).flatten() {
        let security = &container["securityContext"];
        let name = container["name"].as_str().unwrap();
        require(security["allowPrivilegeEscalation"] == false, format!("{name} may escalate its privileges"));
        require(security["capabilities"] == json!({"drop": ["ALL"]}), format!("{name} has capabilities"));
        require(security["readOnlyRootFilesystem"] == true, format!("{name} may write to its image"));
        let ports = container["ports"].as_array().into_iter().flatten();
        require(ports.clone().all(|port| port.get("hostPort").is_none()), format!("{name} uses a host port"));
        let resources = &container["resources"];
        let bounded = resources["requests"]["cpu"].is_string() && resources["requests"]["memory"].is_string();
        require(
            bounded && resources["limits"]["memory"].is_string(),
            format!("{name} has no resource requests or no memory limit"),
        );
    }
    found
}

#[test]
fn every_pod_meets_the_level_restricted_and_cannot_write_to_its_image() {
    for overlay in overlays() {
        let pods: Vec<_> = overlay.pods().collect();
        assert!(pods.len() >= 9, "{pods:?}");
        for pod in pods {
            assert_eq!(violations(&pod), Vec::<String>::new(), "{}: {}", overlay.name, pod.name);
        }
    }
}

#[test]
fn a_pod_that_is_not_confined_is_reported() {
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
        assert_eq!(violations(&Pod { spec: &spec, ..gateway }).len(), 1, "{path}");
    }
}

#[test]
fn workers_run_in_a_restricted_namespace_and_games_in_a_privileged_one() {
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
fn every_worker_has_a_liveness_and_a_readiness_probe() {
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
