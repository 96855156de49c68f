//! Tests of compose.yaml and the Dockerfile that do not need Docker.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use crate::{
    config::has_setting,
    support::{images, root, secrets_yaml, yaml},
};

fn services() -> Value {
    let text = fs::read_to_string(root().join("deploy/local/compose.yaml")).unwrap();
    yaml(&text)[0]["services"].take()
}

#[test]
fn every_variable_of_a_service_is_a_setting_of_its_program() {
    let services = services();
    let mut ours = BTreeSet::new();
    for (name, service) in services.as_object().unwrap() {
        let Some(image) = service["image"].as_str().unwrap().strip_prefix("garage/") else { continue };
        let (image, tag) = image.split_once(':').unwrap();
        assert_eq!(tag, env!("CARGO_PKG_VERSION"), "{name}");
        let command: Vec<_> = service["command"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for variable in service["environment"].as_object().unwrap().keys() {
            assert!(has_setting(image, &command, variable), "{name}: garage/{image} has no setting {variable}");
        }
        assert_eq!(service["build"]["target"], image, "{name}");
        ours.insert(image.to_owned());
    }
    // In compose.yaml, game servers are child processes of the director and come with its image.
    assert_eq!(ours, images().into_iter().filter(|image| image != "gameserver").collect());
}

#[test]
fn every_mounted_file_is_in_the_repository_or_created_by_the_script() {
    let folder = tempfile::tempdir().unwrap();
    secrets_yaml(folder.path());
    for (name, service) in services().as_object().unwrap() {
        let mut inside = BTreeSet::new();
        for volume in service["volumes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let parts: Vec<_> = volume.split(':').collect();
            inside.insert(parts[1]);
            let found = match parts[0].strip_prefix("../../target/compose/secrets/") {
                Some(secret) => folder.path().join(secret).is_file(),
                None if parts[0].starts_with("../../target/compose/") => parts[0].ends_with(name.as_str()),
                None => root().join("deploy/local").join(parts[0]).is_file(),
            };
            assert!(found, "{name}: {volume}");
        }
        // Every file that a variable names is mounted.
        for (variable, value) in service["environment"].as_object().into_iter().flatten() {
            let path = value.as_str().unwrap();
            assert!(!path.starts_with("/etc/garage/") || inside.contains(path), "{name}: {variable} is {path}");
        }
    }
}

#[test]
fn the_dockerfile_builds_the_same_images_with_the_same_compiler() {
    let text = fs::read_to_string(root().join("deploy/images/Dockerfile")).unwrap();
    let targets: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("FROM base AS ")).collect();
    assert_eq!(targets, images());
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(text.contains(&format!("FROM rust:{version}-")), "the workspace needs rust {version}");
}
