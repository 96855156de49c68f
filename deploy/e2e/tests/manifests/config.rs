//! The programs know their settings and accept their values.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::support::{Overlay, Pod, overlays, program, run, secrets_yaml, variables, yaml};

/// Whether the program, run with these arguments, has a setting of this name.
pub(crate) fn has_setting(image: &str, args: &[&str], variable: &str) -> bool {
    let args = [args, &["--help"]].concat();
    let (helped, help) = run(&program(image), &args, &[], "");
    assert!(helped, "{image}: {help}");
    [']', '='].iter().any(|end| help.contains(&format!("[env: {variable}{end}")))
}

/// The short name of one of Garage's images, without registry and tag.
fn ours(container: &Value) -> Option<&str> {
    let image = container["image"].as_str()?;
    let (name, _) = image.split_once("garage/")?.1.split_once(':')?;
    Some(name)
}

fn args(container: &Value) -> Vec<&str> {
    let given = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    given.filter(|arg| *arg != "--help").collect()
}

#[test]
fn every_variable_is_a_setting_of_its_program() {
    let mut seen = 0;
    for overlay in overlays() {
        for (pod, container) in overlay.containers() {
            let Some(image) = ours(container) else { continue };
            for variable in variables(container).keys() {
                assert!(variable.starts_with("GARAGE_") || *variable == "RUST_LOG", "{pod}: {variable}");
                assert!(
                    has_setting(image, &args(container), variable),
                    "{pod}: garage/{image} has no setting {variable}"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn a_variable_without_a_setting_is_found() {
    assert!(has_setting("gateway", &[], "GARAGE_NATS_URL") && has_setting("gateway", &[], "GARAGE_QUEUES"));
    assert!(!has_setting("gateway", &[], "GARAGE_NATS") && !has_setting("gateway", &[], "GARAGE_QUEUE"));
}

type Secrets = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

fn secrets(folder: &Path) -> Secrets {
    let data = |secret: &Value| {
        let entries = secret["data"].as_object().unwrap().iter();
        entries.map(|(key, value)| (key.clone(), STANDARD.decode(value.as_str().unwrap()).unwrap())).collect()
    };
    let objects = yaml(&secrets_yaml(folder));
    objects.iter().map(|secret| (secret["metadata"]["name"].as_str().unwrap().into(), data(secret))).collect()
}

/// Writes the files that a pod mounts to a folder. Returns the pod's variables, with the paths of these files.
fn mounted(overlay: &Overlay, pod: &Pod<'_>, secrets: &Secrets, folder: &Path) -> Vec<(String, String)> {
    let container = &pod.spec["containers"][0];
    let mut variables: Vec<_> =
        variables(container).into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let mut volumes = pod.spec["volumes"].as_array().into_iter().flatten();
        let volume = volumes.find(|volume| volume["name"] == mount["name"]).unwrap();
        let files: BTreeMap<String, Vec<u8>> = if let Some(name) = volume["secret"]["secretName"].as_str() {
            secrets
                .get(name)
                .unwrap_or_else(|| panic!("{}: secrets.sh does not create the secret {name}", pod.name))
                .clone()
        } else if let Some(name) = volume["configMap"]["name"].as_str() {
            let data = overlay.object("ConfigMap", name)["data"].as_object().unwrap();
            data.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().into())).collect()
        } else {
            continue;
        };
        let path = mount["mountPath"].as_str().unwrap();
        let here = folder.join(pod.name).join(path.trim_start_matches('/'));
        fs::create_dir_all(&here).unwrap();
        for (name, content) in files {
            fs::write(here.join(name), content).unwrap();
        }
        for (_, value) in &mut variables {
            *value = value.replace(&format!("{path}/"), &format!("{}/", here.display()));
        }
    }
    variables
}

#[test]
fn every_worker_accepts_its_settings_and_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    fs::create_dir(&files).unwrap();
    // The certificate authority of a managed database, which an operator provides.
    fs::write(files.join("mysql-ca.pem"), "a certificate").unwrap();
    let secrets = secrets(&files);
    for overlay in overlays() {
        for pod in overlay.pods().filter(|pod| pod.labels["garage/worker"] == "true") {
            let mut variables = mounted(overlay, &pod, &secrets, &folder.path().join(overlay.name));
            if pod.name == "director" && !has_setting("director", &[], "GARAGE_BACKEND") {
                // A director without this setting runs games as processes only, and needs a folder for them.
                variables.push(("GARAGE_INSTANCES".into(), "/instances".into()));
            }
            let (accepted, text) = run(&program("cli"), &["config", pod.name], &variables, "");
            assert!(accepted, "{}: {}: {text}", overlay.name, pod.name);
            // Every file that a variable names exists.
            for (name, path) in variables.iter().filter(|(name, _)| {
                name.ends_with("_FILE") || name == "GARAGE_NATS_CREDENTIALS" || name == "GARAGE_GAME_SIGNING_KEY"
            }) {
                assert!(Path::new(path).is_file(), "{}: {name} is {path}", pod.name);
            }
        }
    }
}

#[test]
fn every_secret_has_one_reader_and_is_created_once() {
    let folder = tempfile::tempdir().unwrap();
    let first = secrets(folder.path());
    let unsigned = |secrets: &Secrets| {
        let mut unsigned = secrets.clone();
        // These are signed again with the same seeds.
        let signed = |name: &str| name == "nats.creds" || name == "operator.conf";
        unsigned.values_mut().for_each(|files| files.retain(|name, _| !signed(name)));
        unsigned
    };
    assert_eq!(unsigned(&secrets(folder.path())), unsigned(&first), "an existing secret changed");
    let created: BTreeSet<_> = first.keys().map(String::as_str).collect();
    for overlay in overlays() {
        let mut read = BTreeSet::new();
        for pod in overlay.pods() {
            for volume in pod.spec["volumes"].as_array().into_iter().flatten() {
                if let Some(name) = volume["secret"]["secretName"].as_str() {
                    assert!(read.insert(name), "{name} has a second reader besides {}", pod.name);
                }
            }
        }
        assert!(read.is_subset(&created), "{read:?}");
        let unread: Vec<_> = created.difference(&read).collect();
        assert!(unread.is_empty() || unread == [&"mariadb"], "{}: no pod reads {unread:?}", overlay.name);
    }
    // The manifests contain no secret.
    for overlay in overlays() {
        let text = format!("{:?}", overlay.objects);
        assert!(!text.contains("PRIVATE KEY") && overlay.objects.iter().all(|object| object["kind"] != "Secret"));
        for secret in first.values().flat_map(BTreeMap::values) {
            assert!(!text.contains(String::from_utf8_lossy(secret).trim()));
        }
    }
}
