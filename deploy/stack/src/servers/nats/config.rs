//! The configuration file of a nats-server.

use std::{net::SocketAddr, path::Path};

use serde_json::{Value, json};

use garage_nats::Operator;

pub(super) struct Server<'a> {
    pub(super) name: &'a str,
    pub(super) client: SocketAddr,
    pub(super) monitor: SocketAddr,
    pub(super) store: &'a Path,
    pub(super) max_file_store: u64,
    pub(super) operator: &'a Operator,
    pub(super) cluster: Option<Cluster<'a>>,
}

pub(super) struct Cluster<'a> {
    pub(super) listen: SocketAddr,
    pub(super) peers: Vec<SocketAddr>,
    pub(super) password: &'a str,
    /// Whether nodes may announce the addresses of the other nodes to each other.
    pub(super) discoverable: bool,
}

/// The text of the configuration file. The format is a superset of JSON, so JSON takes care of quoting.
pub(super) fn server(server: &Server<'_>) -> String {
    // sync_interval: without `always`, a crash of the machine can lose acknowledged writes of up to two minutes.
    // limits.batch: with the defaults, 50 incomplete batches of dead writers block every commit for 10 s.
    let mut config = json!({
        "server_name": server.name,
        "listen": server.client.to_string(),
        "http": server.monitor.to_string(),
        "jetstream": {
            "store_dir": server.store,
            "sync_interval": "always",
            // The default, three quarters of the free disk space, may be too small, and then `garage init` fails.
            "max_file_store": server.max_file_store,
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
        // Clients are configured with all addresses.
        "no_advertise": true,
        "authorization": { "user": "route", "password": cluster.password },
        "routes": routes.collect::<Vec<_>>(),
    });
    if let (false, Some(fields)) = (cluster.discoverable, config.as_object_mut()) {
        // Nodes announce their addresses to each other, and would connect directly, past the proxies. No option
        // disables this (`no_advertise` affects only clients), so each node announces an address where no server
        // listens.
        fields.insert("advertise".to_owned(), json!("127.0.0.1:1"));
    }
    config
}
