//! The rules of the API server: the defaults that it sets, its validation, and how it merges patches.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::quantity;

/// An error answer: the status code, and a body of kind `Status`.
pub(crate) fn refusal(code: u16, reason: &str, message: &str, details: Value) -> (u16, Value) {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code,
    });
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    if !details.is_null() {
        status["details"] = details;
    }
    (code, status)
}

pub(crate) fn not_found(resource: &str, name: &str) -> (u16, Value) {
    let message = format!("{resource} \"{name}\" not found");
    refusal(404, "NotFound", &message, json!({"name": name, "kind": resource}))
}

pub(crate) fn exists(resource: &str, name: &str) -> (u16, Value) {
    let message = format!("{resource} \"{name}\" already exists");
    refusal(409, "AlreadyExists", &message, json!({"name": name, "kind": resource}))
}

pub(crate) fn kind_of(resource: &str) -> &'static str {
    match resource {
        "pods" => "Pod",
        "secrets" => "Secret",
        "nodes" => "Node",
        "namespaces" => "Namespace",
        "limitranges" => "LimitRange",
        _ => "ResourceQuota",
    }
}

#[expect(clippy::disallowed_methods, reason = "the simulated server has its own clock, like a real cluster")]
pub(crate) fn now() -> String {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    now.format(&Rfc3339).unwrap_or_default()
}

#[expect(clippy::disallowed_methods, reason = "the simulated server generates its own object ids, like a real cluster")]
fn uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Validates a new object. Returns the first error in the order in which a real server checks.
pub(crate) fn invalid(resource: &str, object: &Value) -> Option<(u16, Value)> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let refuse = |field: &str, reason: &str, problem: String| {
        let kind = kind_of(resource);
        let causes = json!([{"reason": reason, "message": problem, "field": field}]);
        let message = format!("{kind} \"{name}\" is invalid: {field}: {problem}");
        Some(refusal(422, "Invalid", &message, json!({"name": name, "kind": kind, "causes": causes})))
    };
    if !is_subdomain(name) {
        let problem = format!(
            "Invalid value: \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
             '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
             validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        );
        return refuse("metadata.name", "FieldValueInvalid", problem);
    }
    if resource != "pods" {
        return None;
    }
    let spec = &object["spec"];
    let policy = spec["restartPolicy"].as_str().unwrap_or("Always");
    if !["Always", "OnFailure", "Never"].contains(&policy) {
        let problem =
            format!("Unsupported value: \"{policy}\": supported values: \"Always\", \"OnFailure\", \"Never\"");
        return refuse("spec.restartPolicy", "FieldValueNotSupported", problem);
    }
    for (i, container) in array(&spec["containers"]).iter().enumerate() {
        let resources = &container["resources"];
        for (resource, request) in resources["requests"].as_object().into_iter().flatten() {
            let (request, limit) = (request.as_str().unwrap_or_default(), resources["limits"][resource].as_str());
            if let Some(limit) = limit.filter(|limit| quantity::exceeds(request, limit)) {
                let problem =
                    format!("Invalid value: \"{request}\": must be less than or equal to {resource} limit of {limit}");
                return refuse(&format!("spec.containers[{i}].resources.requests"), "FieldValueInvalid", problem);
            }
        }
    }
    if spec["hostNetwork"] == true {
        for (i, container) in array(&spec["containers"]).iter().enumerate() {
            for (j, port) in array(&container["ports"]).iter().enumerate() {
                if !port["hostPort"].is_null() && port["hostPort"] != port["containerPort"] {
                    let problem = format!(
                        "Invalid value: {}: must match `containerPort` when `hostNetwork` is true",
                        port["hostPort"]
                    );
                    return refuse(&format!("spec.containers[{i}].ports[{j}].hostPort"), "FieldValueInvalid", problem);
                }
            }
        }
    }
    None
}

fn is_subdomain(name: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = |label: &str| {
        label.starts_with(alphanumeric)
            && label.ends_with(alphanumeric)
            && label.chars().all(|c| alphanumeric(c) || c == '-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

pub(crate) fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Sets the fields that the object does not have.
fn set_defaults(object: &mut Value, defaults: Value) {
    if object.is_null() {
        *object = Value::Object(Map::new());
    }
    if let (Some(object), Value::Object(defaults)) = (object.as_object_mut(), defaults) {
        for (field, value) in defaults {
            object.entry(field).or_insert(value);
        }
    }
}

/// Adds the fields that a real server adds to a new object before it stores the object.
pub(crate) fn complete(resource: &str, namespace: &str, object: &mut Value) {
    set_defaults(object, json!({"kind": kind_of(resource), "apiVersion": "v1"}));
    let metadata = &mut object["metadata"];
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata["uid"] = uid().into();
    metadata["creationTimestamp"] = now().into();
    match resource {
        "pods" => complete_pod(object),
        "secrets" => {
            set_defaults(object, json!({"type": "Opaque"}));
            if let Some(Value::Object(texts)) = object.as_object_mut().and_then(|secret| secret.remove("stringData")) {
                for (file, text) in texts {
                    object["data"][file] = STANDARD.encode(text.as_str().unwrap_or_default()).into();
                }
            }
        }
        "nodes" => {
            let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
            set_defaults(&mut object["spec"], json!({"taints": [taint]}));
            let info: Map<_, _> = [
                "kernelVersion",
                "osImage",
                "containerRuntimeVersion",
                "kubeletVersion",
                "kubeProxyVersion",
                "operatingSystem",
                "architecture",
            ]
            .map(|field| (field.to_owned(), Value::from("")))
            .into_iter()
            .collect();
            let endpoints = json!({"kubeletEndpoint": {"Port": 0}});
            set_defaults(&mut object["status"], json!({"daemonEndpoints": endpoints, "nodeInfo": info}));
        }
        _ => {}
    }
}

fn complete_pod(pod: &mut Value) {
    pod["metadata"]["generation"] = 1.into();
    let spec = &mut pod["spec"];
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        let image = container["image"].as_str().unwrap_or_default();
        // An image without a tag has the tag `latest`, which may change, so it is always pulled.
        let tagged = image.rsplit('/').next().is_some_and(|name| name.contains(':')) && !image.ends_with(":latest");
        let defaults = json!({
            "resources": {},
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": if tagged { "IfNotPresent" } else { "Always" },
        });
        set_defaults(container, defaults);
    }
    let defaults = json!({
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "priority": 0,
        "enableServiceLinks": true,
        "preemptionPolicy": "PreemptLowerPriority",
    });
    set_defaults(spec, defaults);
    let tolerated = array(&spec["tolerations"]).to_vec();
    for condition in ["not-ready", "unreachable"] {
        let key = format!("node.kubernetes.io/{condition}");
        if !tolerated.iter().any(|toleration| toleration["key"] == key.as_str()) {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            match spec["tolerations"].as_array_mut() {
                Some(tolerations) => tolerations.push(toleration),
                None => spec["tolerations"] = json!([toleration]),
            }
        }
    }
    pod["status"] = json!({"phase": "Pending", "qosClass": quality(&pod["spec"])});
}

/// The quality-of-service class of a pod, from the resources of its containers.
fn quality(spec: &Value) -> &'static str {
    let containers = array(&spec["containers"]);
    let requests = |container: &Value| container.pointer("/resources/requests").is_some();
    let limited = |container: &Value| container.pointer("/resources/limits").is_some();
    let equal = |container: &Value| {
        let resources = &container["resources"];
        resources["limits"]["cpu"].is_string()
            && resources["limits"]["memory"].is_string()
            && (!requests(container) || resources["limits"] == resources["requests"])
    };
    if containers.iter().all(equal) {
        "Guaranteed"
    } else if containers.iter().any(|container| requests(container) || limited(container)) {
        "Burstable"
    } else {
        "BestEffort"
    }
}

/// Reduces an object, or each object of a list, to its metadata. An error answer stays as it is.
pub(crate) fn only_metadata(object: &mut Value) {
    let only = |object: &Value| json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]});
    if let Some(items) = object.get("items") {
        let items = array(items).iter().map(only).collect::<Vec<_>>();
        *object = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
            "items": items});
    } else if object["kind"] != "Status" {
        *object = only(object);
    }
}

/// Applies a JSON merge patch (RFC 7396).
pub(crate) fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return object.clone_from(patch) };
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    for (field, value) in patch {
        match (value, object.as_object_mut()) {
            (Value::Null, Some(object)) => drop(object.remove(field)),
            (value, _) => merge(&mut object[field], value),
        }
    }
}

/// Merges a patch into the status of a pod, as a real server does: conditions are merged by their type, and the
/// conditions of the patch come first.
pub(crate) fn merge_status(pod: &mut Value, patch: &Value) {
    let mut patch = patch.get("status").cloned().unwrap_or_default();
    if let Some(conditions) = patch["conditions"].as_array_mut() {
        let existing = array(&pod["status"]["conditions"]).to_vec();
        let find = |kind: &Value| existing.iter().find(|old| old["type"] == *kind);
        for new in conditions.iter_mut() {
            let mut merged = find(&new["type"]).cloned().unwrap_or_else(|| json!({}));
            if merged["status"] != new["status"] {
                merged = json!({});
            }
            merge(&mut merged, new);
            set_defaults(&mut merged, json!({"lastProbeTime": null}));
            *new = merged;
        }
        let kept: Vec<_> =
            existing.iter().filter(|old| !conditions.iter().any(|new| new["type"] == old["type"])).cloned().collect();
        conditions.extend(kept);
    }
    for container in patch["containerStatuses"].as_array_mut().into_iter().flatten() {
        set_defaults(container, json!({"lastState": {}}));
    }
    if let Some(patch) = patch.as_object_mut() {
        patch.retain(|_, value| !value.is_null());
    }
    let conditions = patch.get("conditions").cloned();
    merge(&mut pod["status"], &patch);
    // The merge drops null fields, but a real server stores `lastProbeTime: null`.
    if let Some(conditions) = conditions {
        pod["status"]["conditions"] = conditions;
    }
}

/// Assigns a pod to a node, as the scheduler's binding does.
pub(crate) fn bind(pod: &mut Value, node: &str) {
    pod["spec"]["nodeName"] = node.into();
    let condition = json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": now()});
    merge_status(pod, &json!({"status": {"conditions": [condition]}}));
}

/// Whether a pod has ended.
pub(crate) fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}
