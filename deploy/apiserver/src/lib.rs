//! A test double of the Kubernetes API server, over HTTP: as much of it as Garage's director uses, and as a test needs
//! that plays scheduler and kubelet. Statuses, shapes and order are those of a real API server (1.36);
//! `tests/recorded/` holds what was recorded of it, and the tests hold the double against that.
//!
//! - `store`: objects, revisions and what watches see of them; `rules`: what the server fills in and refuses;
//!   `rights`: who may do what; `serve`: requests and answers.
//!
//! There is no garbage collector and no controller in it: what a director leaves behind stays. What a real server
//! does only on a bad day is asked for here: [`ApiServer::fail`], [`ApiServer::forget`] and [`ApiServer::cut`].

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

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// As roles name it: `get`, `list`, `watch`, `create`, `patch`, `delete`.
    pub verb: &'static str,
    /// As roles name it: `pods`, `pods/status`.
    pub resource: String,
    /// The object's name; empty where the request names none.
    pub name: String,
    /// The answer's.
    pub status: u16,
}

/// Requests that are to go wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Of this verb.
    pub verb: &'static str,
    /// On this resource.
    pub resource: &'static str,
    /// How many.
    pub times: usize,
    /// How.
    pub answer: Answer,
}

/// How a request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// 401.
    Unauthorized,
    /// 403 for want of a right.
    Forbidden,
    /// 429, with `Retry-After`.
    TooMany,
    /// 500.
    Internal,
    /// 410.
    Gone,
    /// The connection ends without an answer. What was asked for is done all the same.
    Lost,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    denied: Denied,
    /// The last revision, for who watches.
    revision: watch::Sender<u64>,
    /// How often all watches were cut.
    cuts: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    store: Store,
    asked: Vec<Asked>,
    faults: Vec<Fault>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A change is whole before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            denied: Denied::default(),
            revision: watch::Sender::new(0),
            cuts: watch::Sender::new(0),
        });
        let serving = tokio::spawn(serve::run(listener, Arc::clone(&shared)));
        Ok(Self { shared, address, serving })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What clients find it by: JSON, which is YAML too.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        let name = "double";
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": self.url()}}],
            "users": [{"name": name, "user": {}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        })
        .to_string()
    }

    /// What was asked so far, in order of the answers.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state().asked.clone()
    }

    /// Lets the next requests of a kind go wrong.
    pub fn fail(&self, fault: Fault) {
        self.shared.state().faults.push(fault);
    }

    /// Takes a right from everybody, as roles name it: `create`, `pods`.
    pub fn deny(&self, verb: &str, resource: &str) {
        self.shared.denied.add(verb, resource);
    }

    /// Forgets what happened so far, as etcd does when it compacts: who watches from before is told 410.
    pub fn forget(&self) {
        self.shared.state().store.forget();
    }

    /// Cuts every watch in the middle of a line.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.serving.abort();
        self.cut();
    }
}
