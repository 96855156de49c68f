//! The configuration file of a nats-server.

use std::{net::SocketAddr, path::Path};

use serde_json::{Value, json};

use super::operator::Operator;

pub(super) struct Server<'a> {
    pub(super) name: &'a str,
    pub(super) client: SocketAddr,
    pub(super) monitor: SocketAddr,
    pub(super) store: &'a Path,
    pub(super) operator: &'a Operator,
    pub(super) cluster: Option<Cluster<'a>>,
}

pub(super) struct Cluster<'a> {
    pub(super) listen: SocketAddr,
    pub(super) peers: Vec<SocketAddr>,
    pub(super) password: &'a str,
    /// Whether nodes may tell each other where the others listen.
    pub(super) discoverable: bool,
}

/// The file's text. Values are written as JSON, which this format contains, so that nothing needs thought about quotes.
pub(super) fn server(server: &Server<'_>) -> String {
    // sync_interval: without `always` an acknowledged write is lost with the machine for up to two minutes.
    // limits.batch: with the defaults, 50 openings whose writers died stop every commit for 10 s.
    let mut config = json!({
        "server_name": server.name,
        "listen": server.client.to_string(),
        "http": server.monitor.to_string(),
        "jetstream": {
            "store_dir": server.store,
            "sync_interval": "always",
            // What Garage's streams set aside, and room for the history; by default it is three quarters of what the
            // disk has free, which may be too little, and then `garage init` fails.
            "max_file_store": 16_u64 << 30,
            "limits": { "batch": { "max_inflight_per_stream": 500, "timeout": "2s" } },
        },
    });
    if let Some(fields) = config.as_object_mut() {
        fields.extend(server.operator.settings());
        if let Some(cluster) = &server.cluster {
            fields.insert("cluster".to_owned(), routes(cluster));
        }
    }
    format!("{config:#}\n")
}

fn routes(cluster: &Cluster<'_>) -> Value {
    let routes = cluster.peers.iter().map(|peer| format!("nats-route://route:{}@{peer}", cluster.password));
    let mut config = json!({
        "name": "garage",
        "listen": cluster.listen.to_string(),
        // Clients are given all addresses anyway.
        "no_advertise": true,
        "authorization": { "user": "route", "password": cluster.password },
        "routes": routes.collect::<Vec<_>>(),
    });
    if let (false, Some(fields)) = (cluster.discoverable, config.as_object_mut()) {
        // Nodes gossip where each listens and connect there directly, past the proxies. No option stops it
        // (`no_advertise` is about clients), so they are told a place where nobody is.
        fields.insert("advertise".to_owned(), json!("127.0.0.1:1"));
    }
    config
}
