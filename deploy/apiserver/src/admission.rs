//! Admission: rules of the cluster and of the namespace, which a new object must meet although it is valid.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::{
    call::Call,
    quantity, rules,
    store::{Selector, Store},
};

/// Admission webhooks that deny every pod: the name of each, and its message.
#[derive(Debug, Default)]
pub(crate) struct Webhooks(Mutex<Vec<(String, String)>>);

impl Webhooks {
    pub(crate) fn add(&self, name: &str, message: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name.into(), message.into()));
    }

    fn denial(&self) -> Option<(u16, Value)> {
        let webhooks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, message) = webhooks.first()?;
        let message = format!("admission webhook \"{name}\" denied the request: {message}");
        Some(rules::refusal(403, "Forbidden", &message, Value::Null))
    }
}

/// Refuses a valid object that the namespace does not admit. A real server also asks in this order, and before it looks
/// whether an object of this name exists.
pub(crate) fn refused(call: &Call, object: &Value, state: &Store, webhooks: &Webhooks) -> Option<(u16, Value)> {
    let is_pod = call.resource == "pods";
    let of_pod = || {
        let found = beyond_limits(call, object, state).or_else(|| below_security_level(call, object, state))?;
        Some(forbidden(call, object, &found))
    };
    is_pod
        .then(of_pod)
        .flatten()
        .or_else(|| is_pod.then(|| webhooks.denial()).flatten())
        .or_else(|| over_quota(call, object, state))
}

fn forbidden(call: &Call, object: &Value, why: &str) -> (u16, Value) {
    let (resource, name) = (&call.resource, name_of(object));
    let message = format!("{resource} \"{name}\" is forbidden: {why}");
    rules::refusal(403, "Forbidden", &message, json!({"name": name, "kind": resource}))
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Pod Security: the namespace's label names a level. Of the rules of `baseline` and `restricted`, only the one about
/// the host's network is simulated.
fn below_security_level(call: &Call, pod: &Value, state: &Store) -> Option<String> {
    let namespace = state.get(&("namespaces".into(), String::new(), call.namespace.clone()))?;
    let level = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"].as_str()?;
    let refused = ["baseline", "restricted"].contains(&level) && pod["spec"]["hostNetwork"] == true;
    refused.then(|| format!("violates PodSecurity \"{level}:latest\": host namespaces (hostNetwork=true)"))
}

/// The maximum per container of a LimitRange. Defaults, minimums and ratios are not simulated.
fn beyond_limits(call: &Call, pod: &Value, state: &Store) -> Option<String> {
    let mut found = Vec::new();
    for range in state.list("limitranges", &call.namespace, &Selector::default()) {
        for item in rules::array(&range["spec"]["limits"]).iter().filter(|item| item["type"] == "Container") {
            for (resource, max) in item["max"].as_object().into_iter().flatten() {
                for container in rules::array(&pod["spec"]["containers"]) {
                    let max = max.as_str().unwrap_or_default();
                    let limit = container["resources"]["limits"][resource].as_str();
                    match limit {
                        None => found
                            .push(format!("maximum {resource} usage per Container is {max}.  No limit is specified")),
                        Some(limit) if quantity::exceeds(limit, max) => {
                            found
                                .push(format!("maximum {resource} usage per Container is {max}, but limit is {limit}"));
                        }
                        Some(_) => {}
                    }
                }
            }
        }
    }
    match found.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        all => Some(format!("[{}]", all.join(", "))),
    }
}

fn over_quota(call: &Call, object: &Value, state: &Store) -> Option<(u16, Value)> {
    let Call { resource, namespace, .. } = call;
    let all = Selector::default();
    let used = state.list(resource, namespace, &all).iter().filter(|object| !rules::is_over(object)).count();
    for quota in state.list("resourcequotas", namespace, &all) {
        let Some(hard) = quota["spec"]["hard"][resource].as_str().and_then(|hard| hard.parse::<usize>().ok()) else {
            continue;
        };
        if used >= hard {
            let quota = quota["metadata"]["name"].as_str().unwrap_or_default();
            let why = format!(
                "exceeded quota: {quota}, requested: {resource}=1, used: {resource}={used}, limited: {resource}={hard}"
            );
            return Some(forbidden(call, object, &why));
        }
    }
    None
}
