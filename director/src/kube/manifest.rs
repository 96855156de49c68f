//! What is made for a game: a Secret with its configuration, and a Pod that mounts it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, json};

use crate::backend::{Name, Order};

/// The label by which everything of Garage's is known, and its value.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "garage");
const SESSION: &str = "garage/session";
const ATTEMPT: &str = "garage/attempt";

/// The name of the game server's container.
const CONTAINER: &str = "gameserver";
/// Where its configuration is mounted, and the file's name there.
const FOLDER: &str = "/run/garage";
const FILE: &str = "config.json";

/// What of a pod is the same for all games.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    /// The game server's image.
    pub(super) image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub(super) pull_policy: String,
    /// What pods have besides, by the operator's word.
    pub(super) template: Value,
    /// What the game server is started with besides its configuration.
    pub(super) arguments: Vec<String>,
}

/// What a pod has if neither its operator nor Garage says otherwise: room for the reference game, and a user that is
/// nobody on any machine.
fn defaults() -> Value {
    json!({"spec": {
        // The game server ends at once when it is told to; its players are told by their session.
        "terminationGracePeriodSeconds": 5,
        "securityContext": {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532},
        "containers": [{
            "name": CONTAINER,
            "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}},
        }],
    }})
}

/// The pod of an instance, which is ended by the cluster itself after so many seconds.
pub(super) fn pod(order: &Order, selector: &[(String, String)], seconds: i64, terms: &Terms) -> anyhow::Result<Pod> {
    let name = order.name();
    let mut arguments = vec!["--config".to_owned(), format!("{FOLDER}/{FILE}")];
    arguments.extend(terms.arguments.iter().cloned());
    let selector: BTreeMap<_, _> = selector.iter().cloned().collect();
    let selector = (!selector.is_empty()).then_some(selector);
    let ours = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name.to_string(),
            "labels": labels(order),
            // Whoever empties a machine waits for the game.
            "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
        },
        "spec": {
            "hostNetwork": true,
            "dnsPolicy": "ClusterFirstWithHostNet",
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "activeDeadlineSeconds": seconds,
            "nodeSelector": selector,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": CONTAINER,
                "image": terms.image,
                "imagePullPolicy": terms.pull_policy,
                "args": arguments,
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "garage-config", "mountPath": FOLDER, "readOnly": true}],
            }],
            "volumes": [{
                "name": "garage-config",
                "secret": {"secretName": name.to_string(), "defaultMode": 0o400},
            }],
            // A machine that is gone for half a minute is gone for the game.
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
            ],
        },
    });
    let mut pod = defaults();
    overlay(&mut pod, &terms.template);
    overlay(&mut pod, &ours);
    Ok(serde_json::from_value(pod)?)
}

/// The secret of an instance: what its game server is told.
pub(super) fn secret(order: &Order) -> anyhow::Result<Secret> {
    let config = serde_json::to_string(&order.config)?;
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(order.name().to_string()),
            labels: Some(serde_json::from_value(labels(order))?),
            ..ObjectMeta::default()
        },
        string_data: Some([(FILE.to_owned(), config)].into()),
        immutable: Some(true),
        ..Secret::default()
    })
}

/// By these people find them: `kubectl get pods -L garage/session,garage/queue`.
fn labels(order: &Order) -> Value {
    json!({
        MANAGED_BY.0: MANAGED_BY.1,
        "app.kubernetes.io/name": "garage-gameserver",
        SESSION: order.config.session.to_string(),
        ATTEMPT: order.config.attempt.to_string(),
        "garage/queue": order.queue.to_string(),
        "garage/region": order.region.to_string(),
    })
}

/// The instance that an object is of; none if it is not Garage's.
pub(super) fn instance(metadata: &ObjectMeta) -> Option<Name> {
    let label = |label: &str| metadata.labels.as_ref()?.get(label).map(String::as_str);
    let name: Name = metadata.name.as_deref()?.parse().ok()?;
    let ours = label(MANAGED_BY.0) == Some(MANAGED_BY.1)
        && label(SESSION) == Some(name.session.to_string().as_str())
        && label(ATTEMPT) == Some(name.attempt.to_string().as_str());
    ours.then_some(name)
}

/// Lays what wins over what is there. In lists, what has the same name is one; the others stand beside each other.
fn overlay(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (field, value) in over {
                overlay(under.entry(field.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(under), Value::Array(over)) if over.iter().all(Value::is_object) => {
            for value in over {
                let same = |one: &&mut Value| value.get("name").is_some() && one.get("name") == value.get("name");
                match under.iter_mut().find(same) {
                    Some(one) => overlay(one, value),
                    None => under.push(value.clone()),
                }
            }
        }
        // Nothing is said of it.
        (_, Value::Null) => {}
        (under, over) => under.clone_from(over),
    }
}
