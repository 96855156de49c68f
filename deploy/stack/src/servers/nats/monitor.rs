//! Reads the monitoring port of a node.
//!
//! It uses a minimal HTTP implementation, because a client library would use the proxies from the environment even for
//! loopback.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The name of the meta leader in the view of this node. `None` if there is no leader or no cluster.
pub(super) async fn leader(monitor: SocketAddr) -> Option<String> {
    let jsz = json(monitor, "/jsz").await?;
    let leader = jsz.get("meta_cluster")?.get("leader")?.as_str()?;
    (!leader.is_empty()).then(|| leader.to_owned())
}

/// The number of other nodes that this node is connected to. There are several connections to each.
pub(super) async fn peers(monitor: SocketAddr) -> Option<usize> {
    let routez = json(monitor, "/routez").await?;
    let routes = routez.get("routes")?.as_array()?;
    let remotes: BTreeSet<_> = routes.iter().filter_map(|route| route.get("remote_id")?.as_str()).collect();
    Some(remotes.len())
}

/// Whether the health check at the path succeeds.
pub(super) async fn healthy(monitor: SocketAddr, path: &str) -> bool {
    get(monitor, path).await.is_some_and(|(status, _)| status == 200)
}

/// The reason of a failed health check, if it means that the node has stopped to store messages: one node keeps the
/// write error of a stream, and a node of a cluster disables JetStream.
pub(super) async fn store_fault(monitor: SocketAddr) -> Option<String> {
    let healthz = json(monitor, "/healthz").await?;
    let error = healthz.get("error")?.as_str()?;
    let stopped = ["write error", "JetStream not enabled"];
    stopped.iter().any(|text| error.contains(text)).then(|| error.to_owned())
}

/// The JSON body at the path. `None` when the node does not answer.
async fn json(monitor: SocketAddr, path: &str) -> Option<Value> {
    let (_, body) = get(monitor, path).await?;
    serde_json::from_str(&body).ok()
}

async fn get(monitor: SocketAddr, path: &str) -> Option<(u16, String)> {
    let exchange = async {
        let mut connection = TcpStream::connect(monitor).await?;
        // In HTTP 1.0 the server closes the connection after the body.
        connection.write_all(format!("GET {path} HTTP/1.0\r\nHost: {monitor}\r\n\r\n").as_bytes()).await?;
        let mut response = String::new();
        connection.read_to_string(&mut response).await?;
        std::io::Result::Ok(response)
    };
    // A paused node accepts connections but does not answer.
    let response = tokio::time::timeout(Duration::from_secs(2), exchange).await.ok()?.ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
}
