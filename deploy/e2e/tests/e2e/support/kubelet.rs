//! A scheduler and a kubelet whose containers are processes of this machine: a program in the place of every image.
//! They know the cluster by its API alone. A pod that asks for a certain node waits for ever.

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

/// Between two looks at the processes.
const POLL: Duration = Duration::from_millis(20);

/// Dropping it ends its processes.
pub(crate) struct Kubelet {
    node: String,
    containers: Containers,
    working: JoinHandle<()>,
}

/// By the names of their pods; those that are over stay as long as these.
type Containers = Arc<Mutex<BTreeMap<String, Container>>>;

struct Container {
    pod: Pod,
    process: Process,
    started: String,
    over: bool,
    /// When it is killed, once it was told to end.
    deadline: Option<Instant>,
}

struct Work {
    node: String,
    program: PathBuf,
    folder: TempDir,
    pods: Api<Pod>,
    secrets: Api<Secret>,
    containers: Containers,
}

impl Kubelet {
    /// Makes a node, on which the program is run for each pod of the namespace.
    pub(crate) async fn start(client: Client, namespace: &str, program: &Path) -> Self {
        let node = format!("node-of-{namespace}");
        let addresses = [json!({"type": "InternalIP", "address": "127.0.0.1"})];
        let made = json!({"metadata": {"name": node}, "status": {"addresses": addresses}});
        let nodes: Api<Node> = Api::all(client.clone());
        nodes.create(&PostParams::default(), &serde_json::from_value(made).unwrap()).await.unwrap();
        let containers = Containers::default();
        let work = Work {
            node: node.clone(),
            program: program.to_owned(),
            folder: tempfile::Builder::new().prefix("garage-kubelet-").tempdir().unwrap(),
            pods: Api::namespaced(client.clone(), namespace),
            secrets: Api::namespaced(client, namespace),
            containers: Arc::clone(&containers),
        };
        Self { node, containers, working: tokio::spawn(work.run()) }
    }

    /// The name of its node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// How many of its processes run.
    pub(crate) fn running(&self) -> usize {
        self.containers.lock().unwrap().values().filter(|container| !container.over).count()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.working.abort();
        for container in self.containers.lock().unwrap().values_mut() {
            container.process.kill();
        }
    }
}

impl Work {
    async fn run(self) {
        let mut events = pin!(watcher(self.pods.clone(), watcher::Config::default()).default_backoff());
        let mut looks = tokio::time::interval(POLL);
        loop {
            tokio::select! {
                event = events.next() => match event.expect("a watch goes on for ever") {
                    Ok(watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) => self.seen(pod).await,
                    Ok(watcher::Event::Delete(pod)) => self.gone(&pod),
                    Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                    Err(error) => eprintln!("the kubelet's watch: {error}"),
                },
                _ = looks.tick() => self.look().await,
            }
        }
    }

    async fn seen(&self, pod: Pod) {
        let spec = pod.spec.as_ref().unwrap();
        let known = self.containers.lock().unwrap().contains_key(&pod.name_any());
        match (spec.node_name.as_deref(), pod.metadata.deletion_timestamp.is_some()) {
            (None, false) if spec.node_selector.is_none() => self.bind(&pod).await,
            (Some(node), false) if node == self.node && !known => self.start(pod).await,
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
        // None of our variables: a container has those of its pod.
        let process = Launch::new(&name, "/usr/bin/env", self.folder.path().join("logs").join(&name))
            .arg("-i")
            .arg(&self.program)
            .args(args)
            .spawn()
            .unwrap();
        let started = now();
        self.tell(&pod, "Running", &json!({"running": {"startedAt": started}})).await;
        let container = Container { pod, process, started, over: false, deadline: None };
        self.containers.lock().unwrap().insert(name, container);
    }

    /// Tells the pod's process to end. One that is over already, or was never started, is gone at once.
    async fn end(&self, pod: &Pod) {
        let received = match self.containers.lock().unwrap().get_mut(&pod.name_any()) {
            Some(container) if !container.over => {
                let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
                let deadline = Instant::now() + Duration::from_secs(grace.try_into().unwrap());
                container.deadline.get_or_insert(deadline);
                // It may have ended in this moment; then the next look sees it.
                let _ = container.process.terminate();
                true
            }
            _ => false,
        };
        if !received {
            self.remove(pod).await;
        }
    }

    async fn look(&self) {
        let mut ended = Vec::new();
        for container in self.containers.lock().unwrap().values_mut().filter(|container| !container.over) {
            let late = container.deadline.is_some_and(|deadline| Instant::now() > deadline);
            let code = match container.process.try_wait().unwrap() {
                Some(status) => status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
                None if late => {
                    container.process.kill();
                    137
                }
                None => continue,
            };
            container.over = true;
            ended.push((container.pod.clone(), container.started.clone(), code, container.deadline.is_some()));
        }
        for (pod, started, code, received) in ended {
            let (phase, reason) = if code == 0 { ("Succeeded", "Completed") } else { ("Failed", "Error") };
            let terminated = json!({"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()});
            self.tell(&pod, phase, &json!({"terminated": terminated})).await;
            if received {
                self.remove(&pod).await;
            }
        }
    }

    /// Writes the pod's status.
    async fn tell(&self, pod: &Pod, phase: &str, state: &Value) {
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

    fn gone(&self, pod: &Pod) {
        if let Some(mut container) = self.containers.lock().unwrap().remove(&pod.name_any()) {
            container.process.kill();
        }
        // One that was never started has none.
        let _ = fs::remove_dir_all(self.folder.path().join(pod.name_any()));
    }
}

/// What a pod or secret may be at any time.
fn unless_gone<T>(answer: kube::Result<T>) -> Option<T> {
    match answer {
        Ok(answer) => Some(answer),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => None,
        Err(error) => panic!("the kubelet: {error}"),
    }
}

/// Mounts a secret.
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
