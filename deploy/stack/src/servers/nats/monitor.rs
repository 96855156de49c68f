//! What a node says about itself on its monitoring port.
//!
//! A few lines of HTTP instead of a client, which would take proxies from the environment even for loopback.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The cluster's assignments group as one node sees it.
pub(super) struct Meta {
    pub(super) leader: Option<String>,
    size: u64,
}

impl Meta {
    /// Whether it is complete: a leader, and that many nodes.
    pub(super) fn knows(&self, nodes: usize) -> bool {
        self.leader.is_some() && u64::try_from(nodes) == Ok(self.size)
    }
}

/// `None` when the node does not answer. A node without a cluster knows no leader and no other.
pub(super) async fn meta(monitor: SocketAddr) -> Option<Meta> {
    let jsz = json(monitor, "/jsz").await?;
    let meta = jsz.get("meta_cluster");
    let leader = meta.and_then(|meta| meta.get("leader")?.as_str());
    let leader = leader.filter(|name| !name.is_empty()).map(str::to_owned);
    let size = meta.and_then(|meta| meta.get("cluster_size")?.as_u64()).unwrap_or(0);
    Some(Meta { leader, size })
}

/// Whether the health check at the path succeeds.
pub(super) async fn healthy(monitor: SocketAddr, path: &str) -> bool {
    get(monitor, path).await.is_some_and(|(status, _)| status == 200)
}

/// The body at the path, parsed. `None` when the node does not answer.
pub(super) async fn json(monitor: SocketAddr, path: &str) -> Option<Value> {
    let (_, body) = get(monitor, path).await?;
    serde_json::from_str(&body).ok()
}

async fn get(monitor: SocketAddr, path: &str) -> Option<(u16, String)> {
    let exchange = async {
        let mut connection = TcpStream::connect(monitor).await?;
        // In HTTP 1.0 the end of the body is the end of the connection.
        connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: {monitor}\r\n\r\n").as_bytes()).await?;
        let mut response = String::new();
        connection.read_to_string(&mut response).await?;
        std::io::Result::Ok(response)
    };
    // A paused node accepts and does not answer.
    let response = tokio::time::timeout(Duration::from_secs(2), exchange).await.ok()?.ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
}
