//! A test double of the Kubernetes API server, over HTTP: as much of it as Garage's director uses, and as a test needs
//! that plays scheduler and kubelet. Statuses, shapes and order are those of a real API server (1.36);
//! `tests/recorded/` holds what was recorded of it, and the tests hold the double against that.
//!
//! - `store`: objects, revisions and what watches see of them; `rules`: what the server fills in and refuses;
//!   `rights`: who may do what; `call`, `serve`: requests and answers.
//! - [`proxy`]: what a server does only on a bad day, in front of the double or of a real one.
//!
//! There is no garbage collector and no controller in it: what a director leaves behind stays.

#![expect(clippy::indexing_slicing, reason = "what a JSON object does not have is null, and is made where it is set")]

mod call;
pub mod proxy;
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

use crate::{rights::Denied, store::Store};

/// A running server. Dropping it ends it.
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
    /// The last revision, for who watches.
    revision: watch::Sender<u64>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        // A change is whole before anything can panic.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApiServer {
    /// Starts one on a free port of this machine.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { store: Mutex::default(), denied: Denied::default(), revision: watch::Sender::new(0) });
        let behind = Arc::clone(&shared);
        let serving = tokio::spawn(serve::run(listener, move |request| serve::answer(request, Arc::clone(&behind))));
        Ok(Self { shared, address, serving })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What clients find it by.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        kubeconfig(&self.url())
    }

    /// Takes a right from everybody, as roles name it: `create`, `pods`.
    pub fn deny(&self, verb: &str, resource: &str) {
        self.shared.denied.add(verb, resource);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// JSON, which is YAML too.
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
