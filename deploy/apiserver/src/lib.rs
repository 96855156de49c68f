//! A simulated Kubernetes API server for tests, over HTTP. It supports the requests of Garage's director, and the
//! requests of tests that act as scheduler and kubelet. Status codes, bodies and the order of events are the same as in
//! a real API server (1.36): `tests/recorded/` contains recorded answers of a real server, and the tests compare this
//! server's answers with them.
//!
//! - `store`: objects, their revisions, and the changes that watches report.
//! - `rules`: the defaults that the server sets, its validation, and how it merges patches.
//! - `admission`: what a namespace admits: Pod Security, LimitRange, webhooks and quotas.
//! - `rights`: the rights of clients.
//! - `call` and `serve`: requests and answers.
//! - [`proxy`]: makes requests fail, in front of the simulated or a real API server.
//!
//! This server has no garbage collector and no controllers, so objects that a director forgets to delete stay.

#![expect(
    clippy::indexing_slicing,
    reason = "a missing field of a JSON value reads as null, and assigning to it creates it"
)]

mod admission;
mod call;
pub mod proxy;
mod quantity;
mod rights;
mod rules;
mod serve;
mod store;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{admission::Webhooks, rights::Denied, store::Store};

/// A running server. Dropping it stops the server.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    denied: Denied,
    webhooks: Webhooks,
    /// The latest revision. Watches wait for it to change.
    revision: watch::Sender<u64>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        // Nothing panics halfway through a change, so the store is consistent even after a panic.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApiServer {
    /// Starts a server on a free port of this machine.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            denied: Denied::default(),
            webhooks: Webhooks::default(),
            revision: watch::Sender::new(0),
        });
        let state = Arc::clone(&shared);
        let serving = tokio::spawn(serve::run(listener, move |request| serve::answer(request, Arc::clone(&state))));
        Ok(Self { shared, address, serving })
    }

    /// The server's base URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig for this server, in JSON.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        kubeconfig(&self.url())
    }

    /// Denies a right to all clients. Verb and resource are as in roles, for example `create` and `pods`.
    pub fn deny(&self, verb: &str, resource: &str) {
        self.shared.denied.add(verb, resource);
    }

    /// Adds an admission webhook that denies every pod with this message.
    pub fn deny_pods(&self, webhook: &str, message: &str) {
        self.shared.webhooks.add(webhook, message);
    }

    /// Grants a right that [`deny`](Self::deny) took.
    pub fn allow(&self, verb: &str, resource: &str) {
        self.shared.denied.remove(verb, resource);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A kubeconfig with one context. It is JSON, which is also valid YAML.
fn kubeconfig(url: &str) -> String {
    let name = "test";
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": url}}],
        "users": [{"name": name, "user": {}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    })
    .to_string()
}
