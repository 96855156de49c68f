//! The settings that all pods share, and the operator's pod template.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Container, Pod, SecurityContext};
use serde_json::{Value, json};

use super::{manifest, quantity::billionths};
use crate::config;

/// The settings that all pods share.
#[derive(Debug, Clone)]
pub(super) struct PodSettings {
    pub(super) image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub(super) pull_policy: String,
    /// The operator's pod template, from `--pod-template`. An empty object if there is none.
    pub(super) template: Value,
    /// The game server's arguments in addition to `--config`.
    pub(super) arguments: Vec<String>,
}

impl PodSettings {
    /// Reads the pod template, and checks it as far as that is possible without a cluster.
    ///
    /// # Errors
    /// When there is no image, or when the template cannot be used or contradicts itself.
    pub(super) fn load(config: &config::Kube, games: &config::Process) -> anyhow::Result<Self> {
        let template = config.pod_template.as_deref().map_or_else(|| Ok(json!({})), read)?;
        let ports = games.game_ports.iter().flat_map(|ports| ["--ports".to_owned(), ports.to_string()]);
        let additional = games.game_arg.iter().filter(|argument| !argument.is_empty()).cloned();
        let settings = Self {
            image: config.image.clone().context("no image for game servers is set (--image)")?,
            pull_policy: config.pull_policy.to_string(),
            template,
            arguments: ports.chain(additional).collect(),
        };
        let pod = manifest::pod(&manifest::example(None)?, &[], 0, &settings)?;
        let file = config.pod_template.as_deref().unwrap_or(Path::new("the default pod"));
        check(&pod).with_context(|| format!("{} (--pod-template)", file.display()))?;
        Ok(settings)
    }
}

fn read(path: &Path) -> anyhow::Result<Value> {
    let invalid = || format!("{} (--pod-template) is not a pod", path.display());
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let template: Value = serde_saphyr::from_str(&text).with_context(invalid)?;
    // The template must have the structure of a pod. The error names the field that does not fit.
    serde_json::from_value::<Pod>(template.clone()).with_context(invalid)?;
    Ok(template)
}

/// Checks that the pod does not contradict itself.
fn check(pod: &Pod) -> anyhow::Result<()> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let user = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        check_resources(container)?;
        let own = container.security_context.as_ref();
        let user = own.and_then(|context: &SecurityContext| context.run_as_user).or(user);
        ensure!(
            user != Some(0),
            "container {} runs as user 0, but game servers must not run as root; set another runAsUser",
            container.name
        );
    }
    Ok(())
}

fn check_resources(Container { name, resources, .. }: &Container) -> anyhow::Result<()> {
    let Some(resources) = resources else { return Ok(()) };
    let limits = resources.limits.iter().flatten();
    for (resource, quantity) in resources.requests.iter().flatten().chain(limits) {
        ensure!(
            billionths(&quantity.0).is_some_and(|value| value >= 0),
            "container {name}: {:?} is not a quantity of {resource}, such as 500m or 64Mi",
            quantity.0
        );
    }
    for (resource, request) in resources.requests.iter().flatten() {
        let Some(limit) = resources.limits.as_ref().and_then(|limits| limits.get(resource)) else { continue };
        ensure!(
            billionths(&request.0) <= billionths(&limit.0),
            "container {name} requests {} of {resource}, but its limit is {}; raise the limit or lower the request",
            request.0,
            limit.0
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(template: Value) -> Result<Value, String> {
        let settings = PodSettings { image: "i".into(), pull_policy: "Never".into(), template, arguments: Vec::new() };
        let pod = manifest::pod(&manifest::example(None).unwrap(), &[], 0, &settings).unwrap();
        check(&pod).map_err(|error| format!("{error:#}"))?;
        Ok(serde_json::to_value(pod).unwrap()["spec"]["containers"][0]["resources"].take())
    }

    fn with(resources: Value) -> Value {
        json!({"spec": {"containers": [{"name": "gameserver", "resources": resources}]}})
    }

    #[test]
    fn resources_in_a_template_replace_the_defaults_whole() {
        let defaults =
            json!({"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "1", "memory": "128Mi"}});
        assert_eq!(checked(json!({})), Ok(defaults));
        for own in [json!({"requests": {"cpu": "2"}}), json!({"limits": {"memory": "32Mi"}})] {
            assert_eq!(checked(with(own.clone())), Ok(own));
        }
        assert_eq!(checked(with(json!({}))), Ok(json!({})));
        // Resources of the whole pod would contradict a container's defaults.
        assert_eq!(checked(json!({"spec": {"resources": {"limits": {"cpu": "500m"}}}})), Ok(Value::Null));
    }

    #[test]
    fn a_template_that_contradicts_itself_is_refused() {
        let side = json!([{"name": "side", "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}}]);
        for (template, expected) in [
            (
                with(json!({"requests": {"cpu": "1.5"}, "limits": {"cpu": "1"}})),
                "requests 1.5 of cpu, but its limit is 1",
            ),
            (with(json!({"limits": {"cpu": "two"}})), "\"two\" is not a quantity of cpu"),
            (with(json!({"requests": {"cpu": "-1"}})), "\"-1\" is not a quantity of cpu"),
            (json!({"spec": {"containers": side}}), "container side requests 2Gi of memory, but its limit is 1Gi"),
            (json!({"spec": {"initContainers": side}}), "container side requests 2Gi of memory"),
            (json!({"spec": {"securityContext": {"runAsUser": 0}}}), "container gameserver runs as user 0"),
        ] {
            let refused = checked(template).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
        checked(with(json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "1024Mi"}}))).unwrap();
    }
}
