//! The overlays as kubectl renders them, and the programs that check them.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{Seek, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

use serde_json::Value;

pub(crate) const OVERLAYS: [&str; 2] = ["dev", "production"];

/// The time-out of every program that the tests run, in seconds. The downloads of pip take the longest.
const TIMEOUT_S: &str = "120";

/// An overlay, rendered.
#[derive(Debug)]
pub(crate) struct Overlay {
    pub(crate) name: &'static str,
    pub(crate) objects: Vec<Value>,
}

/// The pod template of a workload, with the workload's name.
#[derive(Debug)]
pub(crate) struct Pod<'a> {
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a Value,
    pub(crate) labels: &'a Value,
    pub(crate) spec: &'a Value,
}

impl Overlay {
    pub(crate) fn object(&self, kind: &str, name: &str) -> &Value {
        // The name of a rendered ConfigMap ends in a hash of its content.
        let named = |object: &&Value| {
            let full = object["metadata"]["name"].as_str().unwrap();
            full == name || kind == "ConfigMap" && full.rsplit_once('-').is_some_and(|(start, _)| start == name)
        };
        let mut found = self.objects.iter().filter(|object| object["kind"] == kind).filter(named);
        found.next().unwrap_or_else(|| panic!("{}: no {kind} {name}", self.name))
    }

    pub(crate) fn pods(&self) -> impl Iterator<Item = Pod<'_>> {
        self.objects.iter().filter_map(|object| {
            let template = object["spec"].get("template")?;
            let (name, namespace) = (object["metadata"]["name"].as_str()?, &object["metadata"]["namespace"]);
            Some(Pod { name, namespace, labels: &template["metadata"]["labels"], spec: &template["spec"] })
        })
    }

    /// All containers, including init containers, with the names of their workloads.
    pub(crate) fn containers(&self) -> Vec<(&str, &Value)> {
        let all = self.pods().flat_map(|pod| {
            let lists = [&pod.spec["initContainers"], &pod.spec["containers"]];
            let containers = lists.into_iter().filter_map(Value::as_array).flatten();
            containers.map(|container| (pod.name, container)).collect::<Vec<_>>()
        });
        all.collect()
    }
}

pub(crate) fn overlays() -> &'static [Overlay] {
    static RENDERED: LazyLock<Vec<Overlay>> =
        LazyLock::new(|| OVERLAYS.into_iter().map(|name| Overlay { name, objects: yaml(&render(name)) }).collect());
    &RENDERED
}

pub(crate) fn overlay(name: &str) -> &'static Overlay {
    overlays().iter().find(|overlay| overlay.name == name).unwrap()
}

/// The variables of a container that have a literal value.
pub(crate) fn variables(container: &Value) -> BTreeMap<&str, &str> {
    let entries = container["env"].as_array().into_iter().flatten();
    entries.filter_map(|entry| Some((entry["name"].as_str()?, entry["value"].as_str()?))).collect()
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The names of the images that `deploy/images/build.sh` builds.
pub(crate) fn images() -> Vec<String> {
    let script = fs::read_to_string(root().join("deploy/images/build.sh")).unwrap();
    let list = script.lines().find_map(|line| line.strip_prefix("ALL=(")).unwrap().trim_end_matches(')');
    list.split(' ').map(ToOwned::to_owned).collect()
}

/// The program of an image, from this build.
pub(crate) fn program(image: &str) -> PathBuf {
    let name = if image == "cli" { "garage".to_owned() } else { format!("garage-{image}") };
    garage_stack::workers::binary(&name).unwrap()
}

/// Runs a program to its end. Returns whether it succeeded, and its output: first stdout, then stderr.
pub(crate) fn run(program: &Path, args: &[&str], variables: &[(String, String)], input: &str) -> (bool, String) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(input.as_bytes()).unwrap();
    file.rewind().unwrap();
    let mut command = Command::new("timeout");
    command.arg(TIMEOUT_S).arg(program).args(args).stdin(file);
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("GARAGE_")) {
        command.env_remove(name);
    }
    let output = command.envs(variables.iter().cloned()).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[track_caller]
fn succeed(program: &Path, args: &[&str], input: &str) -> String {
    let (succeeded, text) = run(program, args, &[], input);
    assert!(succeeded, "{} {args:?}:\n{text}", program.display());
    text
}

/// kubectl from the `PATH`, or else the one that `install.sh --tests` installed.
fn kubectl() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|file| file.is_file());
    let home = PathBuf::from(env::var_os("HOME").unwrap_or_default());
    let cache = env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
    let bin = fs::read_dir(cache.join("garage/bin")).into_iter().flatten().flatten().map(|entry| entry.path());
    let installed = bin.map(|folder| folder.join("kubectl")).find(|file| file.is_file());
    on_path.or(installed).expect("kubectl is not installed; run deploy/local/install.sh --tests")
}

pub(crate) fn render(overlay: &str) -> String {
    let folder = root().join("deploy/kubernetes/overlays").join(overlay);
    succeed(&kubectl(), &["kustomize", folder.to_str().unwrap()], "")
}

/// The Secrets as an operator creates them. Their files stay in the folder.
pub(crate) fn secrets_yaml(folder: &Path) -> String {
    let path = env::var("PATH").unwrap_or_default();
    let path = format!("{path}:{}", kubectl().parent().unwrap().display());
    let script = root().join("deploy/kubernetes/secrets.sh");
    let garage = ("GARAGE".into(), program("cli").display().to_string());
    let (created, text) = run(&script, &[folder.to_str().unwrap()], &[("PATH".into(), path), garage], "");
    assert!(created, "{text}");
    text
}

/// Python with PyYAML and kubernetes-validate, in a virtual environment in the build folder. Later runs use it again.
fn python() -> PathBuf {
    static INSTALLED: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kubernetes-validate");
        let versions = Path::new(env!("CARGO_MANIFEST_DIR")).join("kubernetes-validate.txt");
        let bin = folder.join("bin");
        succeed(Path::new("python3"), &["-m", "venv", folder.to_str().unwrap()], "");
        succeed(&bin.join("pip"), &["install", "-q", "--no-deps", "-r", versions.to_str().unwrap()], "");
        bin.join("python")
    });
    INSTALLED.clone()
}

/// The documents of a YAML text.
pub(crate) fn yaml(text: &str) -> Vec<Value> {
    let program = "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d]))";
    serde_json::from_str(&succeed(&python(), &["-c", program], text)).unwrap()
}

/// Validates manifest files against the schema of a Kubernetes version. Unknown fields are errors.
#[track_caller]
pub(crate) fn validate(version: &str, files: &[&Path]) {
    let files = files.iter().map(|file| file.to_str().unwrap());
    let args: Vec<_> = ["-m", "kubernetes_validate", "--strict", "-k", version].into_iter().chain(files).collect();
    succeed(&python(), &args, "");
}
