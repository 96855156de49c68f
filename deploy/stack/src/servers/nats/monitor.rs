//! What a node says about itself on its monitoring port.
//!
//! A few lines of HTTP instead of a client, which would take proxies from the environment even for loopback.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The node that leads the cluster's assignments, as this one sees it. `None` also without a cluster.
pub(super) async fn leader(monitor: SocketAddr) -> Option<String> {
    let jsz = json(monitor, "/jsz").await?;
    let leader = jsz.get("meta_cluster")?.get("leader")?.as_str()?;
    (!leader.is_empty()).then(|| leader.to_owned())
}

/// How many other nodes it is connected to; it keeps several connections to each.
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

/// The body at the path, parsed. `None` when the node does not answer.
async fn json(monitor: SocketAddr, path: &str) -> Option<Value> {
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
