//! The proxies between the nodes of a cluster.

use std::{io, net::SocketAddr};

use crate::proxy::Proxy;

/// One proxy for each ordered pair of nodes. A cut then affects exactly the intended pairs, no matter which node opened
/// the connection.
#[derive(Debug)]
pub(super) struct Routes {
    links: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    from: usize,
    to: usize,
    proxy: Proxy,
}

impl Routes {
    pub(super) async fn start(nodes: &[SocketAddr]) -> io::Result<Self> {
        let mut links = Vec::new();
        for from in 0..nodes.len() {
            for (to, target) in nodes.iter().enumerate().filter(|(to, _)| *to != from) {
                links.push(Link { from, to, proxy: Proxy::start(*target).await? });
            }
        }
        Ok(Self { links })
    }

    /// The addresses at which the node reaches the others.
    pub(super) fn from(&self, node: usize) -> Vec<SocketAddr> {
        self.links.iter().filter(|link| link.from == node).map(|link| link.proxy.address()).collect()
    }

    /// The proxies of all routes from or to the node.
    pub(super) fn of(&self, node: usize) -> impl Iterator<Item = &Proxy> {
        self.links.iter().filter(move |link| link.from == node || link.to == node).map(|link| &link.proxy)
    }
}
