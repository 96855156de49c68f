//! A scheduler and a kubelet for tests. Containers are processes of this machine, and every image is the same program.
//! Both use only the cluster's API. They never schedule a pod that has a node selector.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt},
        process::ExitStatusExt,
    },
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::StreamExt;
use garage_events::env::{Env, System};
use garage_stack::process::{Launch, Process};
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinHandle;

/// How often the processes are checked.
const POLL: Duration = Duration::from_millis(20);

/// The running kubelet. Dropping it kills its processes.
pub(crate) struct Kubelet {
    node: String,
    containers: Containers,
    task: JoinHandle<()>,
}

/// The containers by pod name. An exited container stays until its pod is deleted.
type Containers = Arc<Mutex<BTreeMap<String, Container>>>;

struct Container {
    pod: Pod,
    process: Process,
    started: String,
    exited: bool,
    /// When it is killed. `None` until its pod is being deleted.
    deadline: Option<Instant>,
}

struct KubeletTask {
    node: String,
    program: PathBuf,
    folder: TempDir,
    pods: Api<Pod>,
    secrets: Api<Secret>,
    containers: Containers,
}

impl Kubelet {
    /// Creates a node that runs the program for each pod of the namespace.
    pub(crate) async fn start(client: Client, namespace: &str, program: &Path) -> Self {
        let node = format!("node-of-{namespace}");
        let addresses = [json!({"type": "InternalIP", "address": "127.0.0.1"})];
        let node_object = json!({"metadata": {"name": node}, "status": {"addresses": addresses}});
        let nodes: Api<Node> = Api::all(client.clone());
        nodes.create(&PostParams::default(), &serde_json::from_value(node_object).unwrap()).await.unwrap();
        let containers = Containers::default();
        let work = KubeletTask {
            node: node.clone(),
            program: program.to_owned(),
            folder: tempfile::Builder::new().prefix("garage-kubelet-").tempdir().unwrap(),
            pods: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client, namespace),
            containers: Arc::clone(&containers),
        };
        Self { node, containers, task: tokio::spawn(work.run()) }
    }

    /// The node's name.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// The number of running processes.
    pub(crate) fn running(&self) -> usize {
        self.containers.lock().unwrap().values().filter(|container| !container.exited).count()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
        for container in self.containers.lock().unwrap().values_mut() {
            container.process.kill();
        }
    }
}

impl KubeletTask {
    async fn run(self) {
        let mut events = pin!(watcher(self.pods.clone(), watcher::Config::default()).default_backoff());
        let mut ticks = tokio::time::interval(POLL);
        loop {
            tokio::select! {
                event = events.next() => match event.expect("a watch never ends") {
                    Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => self.on_applied(pod).await,
                    Ok(watcher::Event::Delete(pod)) => self.on_deleted(&pod),
                    Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                    Err(error) => eprintln!("the kubelet's watch: {error}"),
                },
                _ = ticks.tick() => self.check_processes().await,
            }
        }
    }

    async fn on_applied(&self, pod: Pod) {
        let spec = pod.spec.as_ref().unwrap();
        let started_before = self.containers.lock().unwrap().contains_key(&pod.name_any());
        match (spec.node_name.as_deref(), pod.metadata.deletion_timestamp.is_some()) {
            (None, false) if spec.node_selector.is_none() => self.bind(&pod).await,
            (Some(node), false) if node == self.node && !started_before => self.start(pod).await,
            (Some(node), true) if node == self.node => self.end(&pod).await,
            _ => {}
        }
    }

    async fn bind(&self, pod: &Pod) {
        let name = pod.name_any();
        let target = json!({"apiVersion": "v1", "kind": "Node", "name": self.node});
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target});
        let params = PostParams::default();
        unless_gone(self.pods.create_subresource::<Value, Value>("binding", &name, &params, &binding).await);
    }

    async fn start(&self, pod: Pod) {
        let name = pod.name_any();
        let spec = pod.spec.as_ref().unwrap();
        let container = &spec.containers[0];
        let mut args = container.args.clone().unwrap_or_default();
        for volume in spec.volumes.iter().flatten() {
            let Some(source) = &volume.secret else { continue };
            let Some(secret) = unless_gone(self.secrets.get(source.secret_name.as_ref().unwrap()).await) else {
                return;
            };
            let folder = self.folder.path().join(&name).join(&volume.name);
            write(&folder, &secret, u32::try_from(source.default_mode.unwrap_or(0o644)).unwrap());
            let mounts = container.volume_mounts.iter().flatten().filter(|mount| mount.name == volume.name);
            for mount in mounts {
                let there = folder.to_str().unwrap();
                args.iter_mut().for_each(|arg| *arg = arg.replace(&mount.mount_path, there));
            }
        }
        // Without this process's environment: a container has the variables of its pod.
        let process = Launch::new(&name, "/usr/bin/env", self.folder.path().join("logs").join(&name))
            .arg("-i")
            .arg(&self.program)
            .args(args)
            .spawn()
            .unwrap();
        let started = now();
        self.write_status(&pod, "Running", &json!({"running": {"startedAt": started}})).await;
        let container = Container { pod, process, started, exited: false, deadline: None };
        self.containers.lock().unwrap().insert(name, container);
    }

    /// Terminates the pod's process. A pod whose process has exited or never started is removed at once.
    async fn end(&self, pod: &Pod) {
        let terminating = match self.containers.lock().unwrap().get_mut(&pod.name_any()) {
            Some(container) if !container.exited => {
                let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
                let deadline = Instant::now() + Duration::from_secs(grace.try_into().unwrap());
                container.deadline.get_or_insert(deadline);
                // This fails if it has just exited; then the next check notices.
                let _ = container.process.terminate();
                true
            }
            _ => false,
        };
        if !terminating {
            self.remove(pod).await;
        }
    }

    async fn check_processes(&self) {
        let mut ended = Vec::new();
        for container in self.containers.lock().unwrap().values_mut().filter(|container| !container.exited) {
            let overdue = container.deadline.is_some_and(|deadline| Instant::now() > deadline);
            let code = match container.process.try_wait().unwrap() {
                Some(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
                None if overdue => {
                    container.process.kill();
                    137
                }
                None => continue,
            };
            container.exited = true;
            ended.push((container.pod.clone(), container.started.clone(), code, container.deadline.is_some()));
        }
        for (pod, started, code, terminating) in ended {
            let (phase, reason) = if code == 0 { ("Succeeded", "Completed") } else { ("Failed", "Error") };
            let terminated = json!({"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()});
            self.write_status(&pod, phase, &json!({"terminated": terminated})).await;
            if terminating {
                self.remove(&pod).await;
            }
        }
    }

    /// Writes the pod's status.
    async fn write_status(&self, pod: &Pod, phase: &str, state: &Value) {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let status = json!({"name": container.name, "image": container.image, "imageID": "",
            "ready": phase == "Running", "restartCount": 0, "state": state});
        let status = json!({"status": {"phase": phase, "hostIP": "127.0.0.1", "containerStatuses": [status]}});
        let patch = Patch::Strategic(status);
        unless_gone(self.pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await);
    }

    async fn remove(&self, pod: &Pod) {
        let only = Preconditions { uid: pod.uid(), resource_version: None };
        let now = DeleteParams::default().grace_period(0).preconditions(only);
        unless_gone(self.pods.delete(&pod.name_any(), &now).await);
    }

    fn on_deleted(&self, pod: &Pod) {
        if let Some(mut container) = self.containers.lock().unwrap().remove(&pod.name_any()) {
            container.process.kill();
        }
        // A pod that never started has no folder.
        let _ = fs::remove_dir_all(self.folder.path().join(pod.name_any()));
    }
}

/// `None` if the pod or secret is deleted or changed in the meantime.
fn unless_gone<T>(answer: kube::Result<T>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => None,
        Err(error) => panic!("the kubelet: {error}"),
    }
}

/// Writes a secret's files to a folder, as a mount shows them.
fn write(folder: &Path, secret: &Secret, mode: u32) {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).unwrap();
    for (name, content) in secret.data.iter().flatten() {
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(folder.join(name));
        std::io::Write::write_all(&mut file.unwrap(), &content.0).unwrap();
    }
}

fn now() -> String {
    System.now().replace_nanosecond(0).unwrap().format(&Rfc3339).unwrap()
}
