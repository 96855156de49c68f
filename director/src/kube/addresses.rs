//! The public addresses of nodes. A node is read when an instance on it has no address yet, and not again while its
//! instances run.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    node,
    refusal::{Refusal, request},
};

/// How long a node's address is used for new instances.
const TTL: Duration = Duration::from_secs(60);

/// How long after a node without a usable answer it is read again.
const RETRY: Duration = Duration::from_secs(2);

/// How long to wait for nodes. A read that takes longer continues, and its answer is used later: a slow answer about
/// one node must not delay the instances on others.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// Nodes read at the same time.
const CONCURRENCY: usize = 16;

/// Reads the addresses of nodes. Clones share what they have read.
#[derive(Clone)]
pub(super) struct NodeAddresses(Arc<Inner>);

struct Inner {
    nodes: Api<Node>,
    sources: Vec<node::Source>,
    permits: Semaphore,
    /// What is known of each node, and since when.
    known: Mutex<HashMap<String, (Known, Instant)>>,
}

/// What is known of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Known {
    /// A request is on its way.
    Asked,
    /// Clients reach the node at this address.
    Public(IpAddr),
    /// The node has no address of the kinds that the director looks for.
    NoAddress,
    /// The cluster has no node of this name any more.
    Gone,
    /// The node could not be read.
    Unreadable(String),
}

impl Known {
    /// Whether it still holds after this time.
    fn holds(&self, age: Duration) -> bool {
        match self {
            // The request has a time-out of its own.
            Self::Asked => true,
            Self::Public(_) => age < TTL,
            Self::NoAddress | Self::Gone | Self::Unreadable(_) => age < RETRY,
        }
    }
}

impl NodeAddresses {
    pub(super) fn new(nodes: Api<Node>, sources: Vec<node::Source>) -> Self {
        let permits = Semaphore::new(CONCURRENCY);
        Self(Arc::new(Inner { nodes, sources, permits, known: Mutex::default() }))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, (Known, Instant)>> {
        // Nothing panics halfway through a change, so the map is consistent even after a panic.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of these nodes after reading those that are not known yet, as far as they answer soon.
    pub(super) async fn of(&self, nodes: impl IntoIterator<Item = String>) -> HashMap<String, Known> {
        let nodes: Vec<_> = nodes.into_iter().collect();
        let new: Vec<_> = {
            let mut known = self.known();
            known.retain(|_, (known, since)| known.holds(since.elapsed()));
            let new = nodes.iter().filter(|node| !known.contains_key(*node)).cloned().collect::<Vec<_>>();
            known.extend(new.iter().map(|node| (node.clone(), (Known::Asked, Instant::now()))));
            new
        };
        let reads = new.into_iter().map(|node| tokio::spawn(self.clone().read(node)));
        let _ = timeout(MAX_WAIT, join_all(reads)).await;
        let known = self.known();
        nodes.into_iter().filter_map(|node| known.get(&node).map(|(known, _)| (node.clone(), known.clone()))).collect()
    }

    async fn read(self, node: String) {
        let permit = self.0.permits.acquire().await;
        let found = match request(self.0.nodes.get(&node)).await {
            Ok(found) => node::public_ip(&found, &self.0.sources).map_or(Known::NoAddress, Known::Public),
            Err(refusal) if refusal.is("NotFound") => Known::Gone,
            Err(refusal) => Known::Unreadable(unreadable(&node, refusal)),
        };
        drop(permit);
        self.known().insert(node, (found, Instant::now()));
    }
}

fn unreadable(node: &str, refusal: Refusal) -> String {
    refusal.unavailable(&format!("read node {node}")).to_string()
}
