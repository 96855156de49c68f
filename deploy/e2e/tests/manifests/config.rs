//! That the programs know what they are told, and take it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::support::{Overlay, Pod, overlays, program, run, secrets_yaml, variables, yaml};

/// Whether the program, with these arguments, has a setting of that name.
pub(crate) fn knows(image: &str, args: &[&str], variable: &str) -> bool {
    let args = [args, &["--help"]].concat();
    let (helped, help) = run(&program(image), &args, &[], "");
    assert!(helped, "{image}: {help}");
    [']', '='].iter().any(|end| help.contains(&format!("[env: {variable}{end}")))
}

/// The name of an image of ours, without registry and tag.
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
fn every_variable_is_a_setting_of_the_program_that_is_given_it() {
    let mut seen = 0;
    for overlay in overlays() {
        for (pod, container) in overlay.containers() {
            let Some(image) = ours(container) else { continue };
            for variable in variables(container).keys() {
                assert!(variable.starts_with("GARAGE_") || *variable == "RUST_LOG", "{pod}: {variable}");
                assert!(knows(image, &args(container), variable), "{pod}: garage/{image} does not know {variable}");
                seen += 1;
            }
        }
    }
    assert!(seen > 40, "{seen}");
}

#[test]
fn a_variable_that_no_program_has_is_noticed() {
    assert!(knows("gateway", &[], "GARAGE_NATS_URL") && knows("gateway", &[], "GARAGE_QUEUES"));
    assert!(!knows("gateway", &[], "GARAGE_NATS") && !knows("gateway", &[], "GARAGE_QUEUE"));
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

/// Lays out in a folder what is mounted into a pod, and says the variables with the paths that the files have there.
fn mounted(overlay: &Overlay, pod: &Pod<'_>, secrets: &Secrets, folder: &Path) -> Vec<(String, String)> {
    let container = &pod.spec["containers"][0];
    let mut variables: Vec<_> =
        variables(container).into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        let mut volumes = pod.spec["volumes"].as_array().into_iter().flatten();
        let volume = volumes.find(|volume| volume["name"] == mount["name"]).unwrap();
        let files: BTreeMap<String, Vec<u8>> = if let Some(name) = volume["secret"]["secretName"].as_str() {
            secrets.get(name).unwrap_or_else(|| panic!("{}: nobody makes the secret {name}", pod.name)).clone()
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
fn every_worker_takes_its_settings_with_the_secrets_that_are_made_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    fs::create_dir(&files).unwrap();
    // An authority that a managed database may have.
    fs::write(files.join("mysql-ca.pem"), "a certificate").unwrap();
    let secrets = secrets(&files);
    for overlay in overlays() {
        for pod in overlay.pods().filter(|pod| pod.labels["garage/worker"] == "true") {
            let mut variables = mounted(overlay, &pod, &secrets, &folder.path().join(overlay.name));
            if pod.name == "director" && !knows("director", &[], "GARAGE_BACKEND") {
                // Until then it knows only games that are processes, and needs a folder for them.
                variables.push(("GARAGE_INSTANCES".into(), "/instances".into()));
            }
            let (taken, text) = run(&program("cli"), &["config", pod.name], &variables, "");
            assert!(taken, "{}: {}: {text}", overlay.name, pod.name);
            // Each file that is named is there.
            for (name, path) in variables.iter().filter(|(name, _)| {
                name.ends_with("_FILE") || name == "GARAGE_NATS_CREDENTIALS" || name == "GARAGE_GAME_SIGNING_KEY"
            }) {
                assert!(Path::new(path).is_file(), "{}: {name} is {path}", pod.name);
            }
        }
    }
}

#[test]
fn every_secret_is_for_one_reader_and_is_made_once() {
    let folder = tempfile::tempdir().unwrap();
    let first = secrets(folder.path());
    let kept = |secrets: &Secrets| {
        let mut kept = secrets.clone();
        // What is signed with the seeds is signed anew.
        let signed = |name: &str| name == "nats.creds" || name == "operator.conf";
        kept.values_mut().for_each(|files| files.retain(|name, _| !signed(name)));
        kept
    };
    assert_eq!(kept(&secrets(folder.path())), kept(&first), "what is there stays");
    let made: BTreeSet<_> = first.keys().map(String::as_str).collect();
    for overlay in overlays() {
        let mut read = BTreeSet::new();
        for pod in overlay.pods() {
            for volume in pod.spec["volumes"].as_array().into_iter().flatten() {
                if let Some(name) = volume["secret"]["secretName"].as_str() {
                    assert!(read.insert(name), "{name} has another reader than {}", pod.name);
                }
            }
        }
        assert!(read.is_subset(&made), "{read:?}");
        let left: Vec<_> = made.difference(&read).collect();
        assert!(left.is_empty() || left == [&"mariadb"], "{}: nobody reads {left:?}", overlay.name);
    }
    // None is in the manifests.
    for overlay in overlays() {
        let text = format!("{:?}", overlay.objects);
        assert!(!text.contains("PRIVATE KEY") && overlay.objects.iter().all(|object| object["kind"] != "Secret"));
        for secret in first.values().flat_map(BTreeMap::values) {
            assert!(!text.contains(String::from_utf8_lossy(secret).trim()));
        }
    }
}
