//! The Kubernetes objects of an instance: a Secret with the game server's configuration, and a Pod that mounts it.

use std::collections::BTreeMap;

use garage_events::{
    env::{Env, System},
    id::{QueueName, Region, SessionId},
};
use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::{Value, json};

use super::template::PodSettings;
use crate::backend::{Name, Order};

/// The label, and its value, that marks all objects of Garage.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "garage");
const SESSION: &str = "garage/session";
const ATTEMPT: &str = "garage/attempt";

/// The name of the game server's container. Operators use it in their pod template.
const CONTAINER: &str = "gameserver";
/// The folder that the secret is mounted at, and the name of the configuration file in it.
const FOLDER: &str = "/run/garage";
const FILE: &str = "config.json";

/// What a pod is for, as its name and labels say.
#[derive(Debug, Clone)]
pub(super) struct Purpose {
    pub(super) name: Name,
    pub(super) queue: QueueName,
    pub(super) region: Region,
}

impl From<&Order> for Purpose {
    fn from(order: &Order) -> Self {
        Self { name: order.name(), queue: order.queue.clone(), region: order.region.clone() }
    }
}

/// A purpose that no match has, for a pod that is never created.
pub(super) fn example(region: Option<&Region>) -> anyhow::Result<Purpose> {
    let name = Name { session: SessionId::new(System.id()), attempt: 1 };
    let region = region.map_or_else(|| "any".parse(), |region| Ok(region.clone()))?;
    Ok(Purpose { name, queue: "dry-run".parse()?, region })
}

/// The values that a pod gets unless the operator's template or Garage sets others: resources for the reference game,
/// and a user id that no account uses. Resources of the template replace the default ones whole: requests of the
/// template and default limits may contradict each other.
fn defaults(template: &Value) -> Value {
    let spec = &template["spec"];
    let containers = spec["containers"].as_array().into_iter().flatten();
    let mut holders = containers.filter(|container| container["name"] == CONTAINER).chain([spec]);
    let own_resources = holders.any(|holder| holder["resources"].is_object());
    let resources = json!({"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}});
    json!({"spec": {
        // The game server stops at once on SIGTERM. Players learn of the end from their session, not from the server.
        "terminationGracePeriodSeconds": 5,
        "securityContext": {"runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532},
        "containers": [{
            "name": CONTAINER,
            "resources": (!own_resources).then_some(resources),
        }],
    }})
}

/// The pod of an instance. The cluster ends it after `seconds`.
pub(super) fn pod(
    purpose: &Purpose,
    selector: &[(String, String)],
    seconds: i64,
    settings: &PodSettings,
) -> anyhow::Result<Pod> {
    let name = purpose.name;
    let mut arguments = vec!["--config".to_owned(), format!("{FOLDER}/{FILE}")];
    arguments.extend(settings.arguments.iter().cloned());
    let selector: BTreeMap<_, _> = selector.iter().cloned().collect();
    let selector = (!selector.is_empty()).then_some(selector);
    let ours = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name.to_string(),
            "labels": labels(purpose),
            // The autoscaler must not remove a node while a match is running on it.
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
                "image": settings.image,
                "imagePullPolicy": settings.pull_policy,
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
            // A match cannot continue after its node was unreachable for half a minute.
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
            ],
        },
    });
    let mut pod = defaults(&settings.template);
    overlay(&mut pod, &settings.template);
    overlay(&mut pod, &ours);
    Ok(serde_json::from_value(pod)?)
}

/// The secret of an instance. It holds the game server's configuration.
pub(super) fn secret(order: &Order) -> anyhow::Result<Secret> {
    let config = serde_json::to_string(&order.config)?;
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(order.name().to_string()),
            labels: Some(serde_json::from_value(labels(&order.into()))?),
            ..ObjectMeta::default()
        },
        string_data: Some([(FILE.to_owned(), config)].into()),
        immutable: Some(true),
        ..Secret::default()
    })
}

/// The labels of an instance's objects. `kubectl get pods -L garage/session,garage/queue` shows them.
fn labels(Purpose { name, queue, region }: &Purpose) -> Value {
    json!({
        MANAGED_BY.0: MANAGED_BY.1,
        "app.kubernetes.io/name": "garage-gameserver",
        SESSION: name.session.to_string(),
        ATTEMPT: name.attempt.to_string(),
        "garage/queue": queue.to_string(),
        "garage/region": region.to_string(),
    })
}

/// The instance that an object belongs to; `None` if it does not belong to Garage.
pub(super) fn instance(metadata: &ObjectMeta) -> Option<Name> {
    let label = |label: &str| metadata.labels.as_ref()?.get(label).map(String::as_str);
    let name: Name = metadata.name.as_deref()?.parse().ok()?;
    let ours = label(MANAGED_BY.0) == Some(MANAGED_BY.1)
        && label(SESSION) == Some(name.session.to_string().as_str())
        && label(ATTEMPT) == Some(name.attempt.to_string().as_str());
    ours.then_some(name)
}

/// Merges `over` into `under`; values from `over` win. In lists of objects, objects with the same `name` are merged and
/// all others are appended.
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
        // `null` means that `over` does not set this field.
        (_, Value::Null) => {}
        (under, over) => under.clone_from(over),
    }
}

#[cfg(test)]
mod tests {
    use garage_events::{
        game::{self, Car, Config, Loadout, Stats},
        queue::MAX_PLAYERS,
        session::size::{self, MAX_LOADOUT},
    };
    use time::macros::datetime;

    use super::*;

    #[test]
    fn the_secret_of_the_largest_match_is_below_the_limit_of_kubernetes() {
        let stats = Stats { power_kw: 80.0, mass_kg: 900.0, grip: 1.0, drag_m2: 0.6 };
        let car = Car { id: "a".parse().unwrap(), model: String::new(), texture: String::new(), stats };
        let mut loadout = Loadout { player: "p".repeat(128).parse().unwrap(), car, items: BTreeMap::new() };
        loadout.car.model = "m".repeat(MAX_LOADOUT - size::of_loadout(&loadout));
        // An RSA key and NATS credentials take less than 2 KiB each, a public key takes about 120 bytes.
        let (secret_text, public_key) = (|| game::Secret::new("s".repeat(2 << 10)), "k\n".repeat(60));
        let config = Config {
            session: SessionId::new(System.id()),
            attempt: u32::MAX,
            players: vec![loadout; MAX_PLAYERS],
            teams: Vec::new(),
            private_key: secret_text(),
            token_key: public_key.clone(),
            token_keys: ["a", "b"].map(|id| (id.repeat(64), public_key.clone())).into(),
            nats: game::Nats { url: "u".repeat(1 << 10), credentials: secret_text(), inbox: "i".repeat(64) },
            ready: "r".repeat(64),
            finished: "f".repeat(64),
            ends_at: datetime!(2026-01-01 00:00 UTC),
        };
        let order = Order { queue: "ranked".parse().unwrap(), region: "eu".parse().unwrap(), config };
        let data = secret(&order).unwrap().string_data.unwrap();
        let size: usize = data.iter().map(|(name, value)| name.len() + value.len()).sum();
        // Kubernetes limits the data of a secret to 1 MiB.
        assert!(size < 1 << 20, "{size} bytes");
    }
}
