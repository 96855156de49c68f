//! Tests of the deployment: the manifests render, they match the Kubernetes schema, and they fit the programs that they
//! configure.
//!
//! The tests need no cluster. For tests that need one, see `deploy/docs/testing.md`.
#![cfg(test)]

mod compose;
mod config;
mod pods;
mod rights;
mod support;

use std::fs;

use crate::support::{OVERLAYS, images, overlay, overlays, render, root, validate};

/// The oldest Kubernetes version that has everything the manifests use, and the newest one with a published schema.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];

#[test]
fn every_object_and_every_secret_matches_the_kubernetes_schema() {
    let folder = tempfile::tempdir().unwrap();
    let secrets = folder.path().join("secrets.yaml");
    fs::write(&secrets, support::secrets_yaml(&folder.path().join("secrets"))).unwrap();
    for name in OVERLAYS {
        let file = folder.path().join(format!("{name}.yaml"));
        fs::write(&file, render(name)).unwrap();
        for version in VERSIONS {
            validate(version, &[&file, &secrets]);
        }
    }
}

#[test]
fn every_overlay_is_tested() {
    let folders = fs::read_dir(root().join("deploy/kubernetes/overlays")).unwrap();
    let mut names: Vec<_> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, OVERLAYS);
}

#[test]
fn every_image_has_the_version_of_this_workspace() {
    let version = env!("CARGO_PKG_VERSION");
    for overlay in overlays() {
        for (pod, container) in overlay.containers() {
            let image = container["image"].as_str().unwrap();
            let (name, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{pod}: {image} has no tag"));
            assert!(tag.starts_with(|c: char| c.is_ascii_digit()), "{pod}: {image} has a tag that may move");
            if name.contains("garage/") {
                assert_eq!(tag, version, "{pod}: {image}");
                let short = name.rsplit('/').next().unwrap();
                assert!(images().iter().any(|known| known == short), "{pod}: build.sh does not build {image}");
            }
        }
    }
}

#[test]
fn the_guide_names_the_job_as_it_is_and_says_how_to_run_it_again() {
    let guide = fs::read_to_string(root().join("deploy/docs/kubernetes.md")).unwrap();
    let start = guide.split("\n## 5. Start\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let at = |command: &str| start.find(command).unwrap_or_else(|| panic!("step 5 does not say `{command}`"));
    assert!(at("wait --for=condition=complete --timeout=10m job/init") < at("logs job/init"));
    let again = at("kubectl --namespace garage delete job init --ignore-not-found\nkubectl apply -k ");
    assert!(at("logs job/init") < again);
    for overlay in overlays() {
        let job = overlay.object("Job", "init");
        assert_eq!(job["metadata"]["namespace"], "garage");
        let minutes = |field: &str| job["spec"][field].as_u64().unwrap() / 60;
        at(&format!("tries again until {} minutes after its start", minutes("activeDeadlineSeconds")));
        at(&format!("deletes the job {} minutes after its end", minutes("ttlSecondsAfterFinished")));
    }
}

#[test]
fn every_selector_selects_a_pod() {
    for overlay in overlays() {
        for object in &overlay.objects {
            let selector = match object["kind"].as_str().unwrap() {
                "Service" => &object["spec"]["selector"],
                "PodDisruptionBudget" => &object["spec"]["selector"]["matchLabels"],
                "NetworkPolicy" => &object["spec"]["podSelector"]["matchLabels"],
                _ => continue,
            };
            let labels = selector.as_object().into_iter().flatten().collect::<Vec<_>>();
            let namespace = &object["metadata"]["namespace"];
            let found = overlay.pods().any(|pod| {
                *pod.namespace == *namespace && labels.iter().all(|(key, value)| pod.labels[key.as_str()] == **value)
            });
            assert!(found, "{}: {} {}", overlay.name, object["kind"], object["metadata"]["name"]);
        }
    }
}

#[test]
fn game_pods_run_on_the_nodes_that_pull_their_image() {
    for overlay in overlays() {
        let template = overlay.object("ConfigMap", "pod-template")["data"]["pod-template.yaml"].as_str().unwrap();
        let template = &support::yaml(template)[0];
        let image = overlay.pods().find(|pod| pod.name == "image").unwrap();
        assert_eq!(template["spec"]["nodeSelector"], image.spec["nodeSelector"]);
        assert_eq!(template["spec"]["tolerations"], image.spec["tolerations"]);
        overlay.object("PriorityClass", template["spec"]["priorityClassName"].as_str().unwrap());
        // The init container runs the game server with --help, which prints its usage and exits.
        let pull = &image.spec["initContainers"][0];
        assert!(pull["image"].as_str().unwrap().contains("garage/gameserver:") && pull["args"][0] == "--help");
        // It is the image that the director starts.
        let director = overlay.pods().find(|pod| pod.name == "director").unwrap();
        assert_eq!(support::variables(&director.spec["containers"][0])["GARAGE_IMAGE"], pull["image"]);
    }
}

#[test]
fn nats_has_one_node_in_development_and_three_in_production() {
    for (name, nodes) in [("dev", 1), ("production", 3)] {
        let overlay = overlay(name);
        assert_eq!(overlay.object("StatefulSet", "nats")["spec"]["replicas"], nodes);
        let init = &overlay.pods().find(|pod| pod.name == "init").unwrap().spec["containers"][0];
        assert_eq!(support::variables(init)["GARAGE_REPLICAS"], nodes.to_string());
    }
}
