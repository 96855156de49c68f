//! What is deployed: that it renders, that an API server would take it, and that the programs are what it takes them for.
//!
//! Nothing here needs a cluster. What only one can tell is in `deploy/kubernetes/README.md`.
#![cfg(test)]

mod compose;
mod config;
mod pods;
mod rights;
mod support;

use std::fs;

use crate::support::{OVERLAYS, images, overlay, overlays, render, root, validate};

/// The oldest that has all that the manifests use, and the newest whose schema there is.
const VERSIONS: [&str; 2] = ["1.30", "1.37"];

#[test]
fn an_api_server_takes_every_object_of_every_overlay_and_every_secret() {
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
fn every_overlay_there_is_is_tested() {
    let folders = fs::read_dir(root().join("deploy/kubernetes/overlays")).unwrap();
    let mut names: Vec<_> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, OVERLAYS);
}

#[test]
fn every_image_is_of_one_version() {
    let version = env!("CARGO_PKG_VERSION");
    for overlay in overlays() {
        for (pod, container) in overlay.containers() {
            let image = container["image"].as_str().unwrap();
            let (name, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{pod}: {image} has no tag"));
            assert!(tag.starts_with(|c: char| c.is_ascii_digit()), "{pod}: {image} may be another tomorrow");
            if name.contains("garage/") {
                assert_eq!(tag, version, "{pod}: {image}");
                let short = name.rsplit('/').next().unwrap();
                assert!(images().iter().any(|known| known == short), "{pod}: nobody builds {image}");
            }
        }
    }
}

#[test]
fn what_selects_pods_selects_some() {
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
fn games_go_where_their_image_is_brought() {
    for overlay in overlays() {
        let template = overlay.object("ConfigMap", "pod-template")["data"]["pod-template.yaml"].as_str().unwrap();
        let template = &support::yaml(template)[0];
        let image = overlay.pods().find(|pod| pod.name == "image").unwrap();
        assert_eq!(template["spec"]["nodeSelector"], image.spec["nodeSelector"]);
        assert_eq!(template["spec"]["tolerations"], image.spec["tolerations"]);
        overlay.object("PriorityClass", template["spec"]["priorityClassName"].as_str().unwrap());
        // What it runs there is the game server, which says how it is used and ends.
        let pull = &image.spec["initContainers"][0];
        assert!(pull["image"].as_str().unwrap().contains("garage/gameserver:") && pull["args"][0] == "--help");
        // And what the director makes games of.
        let director = overlay.pods().find(|pod| pod.name == "director").unwrap();
        assert_eq!(support::variables(&director.spec["containers"][0])["GARAGE_IMAGE"], pull["image"]);
    }
}

#[test]
fn a_development_cluster_is_one_node_and_a_production_one_three() {
    for (name, nodes) in [("dev", 1), ("production", 3)] {
        let overlay = overlay(name);
        assert_eq!(overlay.object("StatefulSet", "nats")["spec"]["replicas"], nodes);
        let init = &overlay.pods().find(|pod| pod.name == "init").unwrap().spec["containers"][0];
        assert_eq!(support::variables(init)["GARAGE_REPLICAS"], nodes.to_string());
    }
}
