//! The NATS servers for the tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
};

use async_nats::{
    Client, ConnectOptions,
    jetstream::{
        self,
        stream::{Config, DiscardPolicy},
    },
};
use garage_events::{
    jetstream::{JetStreamLog, setup},
    subject::{ALL, STREAM},
};
use garage_stack::{
    proxy::Proxy,
    servers::{Nats, Role},
    small_disk::SmallDisk,
};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::ending::until;

/// Connects to the nodes of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) urls: Vec<String>,
    credentials: String,
}

impl Access {
    fn of(nats: &Nats) -> Self {
        let credentials = fs::read_to_string(nats.credentials(Role::Admin)).unwrap();
        let urls = nats.url().split(',').map(str::to_owned).collect();
        Self { urls, credentials }
    }

    /// Connects to the first of these URLs that answers. After each loss of the connection, it reconnects in the same
    /// way.
    pub(crate) async fn connect(&self, urls: &[String]) -> Client {
        let options = ConnectOptions::with_credentials(&self.credentials).unwrap();
        options.retain_servers_order().ignore_discovered_servers().connect(urls).await.unwrap()
    }

    /// Connects to a node, or to the next one if it is down. Nodes are counted from 0, modulo their number.
    pub(crate) async fn connect_to(&self, node: usize) -> Client {
        let mut urls = self.urls.clone();
        let first = node % urls.len();
        urls.rotate_left(first);
        self.connect(&urls).await
    }

    /// Starts a proxy in front of a node, and connects through it. The connection cannot use another path.
    pub(crate) async fn proxied(&self, node: usize) -> (Proxy, Client) {
        let target = self.urls[node].trim_start_matches("nats://").parse().unwrap();
        let proxy = Proxy::start(target).await.unwrap();
        let client = self.connect(&[format!("nats://{}", proxy.address())]).await;
        (proxy, client)
    }

    /// Opens the log through a connection to a node.
    pub(crate) async fn log(&self, node: usize) -> JetStreamLog {
        JetStreamLog::open(self.connect_to(node).await).await.unwrap()
    }
}

/// The nodes for all cases that do not damage them. The first case starts them, and they end with this process.
pub(crate) async fn shared(nodes: usize) -> &'static Access {
    static ONE: OnceCell<(Access, Nats)> = OnceCell::const_new();
    static THREE: OnceCell<(Access, Nats)> = OnceCell::const_new();
    let cell = match nodes {
        1 => &ONE,
        3 => &THREE,
        _ => panic!("there is no shared cluster of {nodes} nodes"),
    };
    let start = || async {
        let root = folder(nodes);
        let nats = Nats::start(&root, nodes).await.unwrap();
        let access = Access::of(&nats);
        init(&access, nodes).await;
        (access, nats)
    };
    &cell.get_or_init(start).await.0
}

/// A folder that lives as long as this process. Nothing is dropped at the end of a process, so the folders of earlier
/// processes are removed here.
fn folder(nodes: usize) -> PathBuf {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in fs::read_dir(parent).unwrap().flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|name| name.strip_prefix("contract-")?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Ignore errors: another process may remove it at the same time.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    parent.join(format!("contract-{}-{nodes}", process::id()))
}

async fn init(access: &Access, nodes: usize) {
    let client = access.connect_to(0).await;
    // A cluster that has just formed cannot always place a stream immediately.
    until("the streams exist", async || setup::init(client.clone(), nodes).await.ok()).await;
}

/// A cluster for one test, which may kill its nodes.
pub(crate) struct Cluster {
    pub(crate) nats: Nats,
    pub(crate) access: Access,
    // Must be dropped after the servers, which write to it.
    _root: TempDir,
}

impl Cluster {
    /// Starts nodes and creates the streams.
    pub(crate) async fn start(nodes: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        let nats = Nats::start(root.path(), nodes).await.unwrap();
        Self::with(nats, root).await
    }

    /// Starts nodes whose routes can be cut, and creates the streams.
    pub(crate) async fn start_cuttable(nodes: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        let nats = Nats::start_cuttable(root.path(), nodes).await.unwrap();
        Self::with(nats, root).await
    }

    /// Starts nodes without any stream.
    pub(crate) async fn start_unconfigured(nodes: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        let nats = Nats::start(root.path(), nodes).await.unwrap();
        let access = Access::of(&nats);
        Self { nats, access, _root: root }
    }

    /// Starts nodes, of which the first one has a disk that the test can fill, and creates the streams. The disk
    /// must be dropped after the cluster.
    pub(crate) async fn start_on_small_disk(nodes: usize) -> (SmallDisk, Self) {
        let root = tempfile::tempdir().unwrap();
        let disk = SmallDisk::mount(root.path(), &["nats-1/jetstream"], 40).unwrap_or_else(|error| panic!("{error}"));
        let nats = Nats::start(root.path(), nodes).await.unwrap();
        (disk, Self::with(nats, root).await)
    }

    /// Starts nodes that store at most `max_file_store` bytes, and creates the log only.
    pub(crate) async fn start_limited(nodes: usize, max_file_store: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let nats = Nats::start_limited(root.path(), nodes, max_file_store).await.unwrap();
        let access = Access::of(&nats);
        let log = Config {
            name: STREAM.into(),
            subjects: vec![ALL.into()],
            discard: DiscardPolicy::New,
            allow_atomic_publish: true,
            allow_direct: true,
            ..Default::default()
        };
        jetstream::new(access.connect_to(0).await).create_stream(log).await.unwrap();
        Self { nats, access, _root: root }
    }

    async fn with(nats: Nats, root: TempDir) -> Self {
        let access = Access::of(&nats);
        init(&access, nats.nodes()).await;
        Self { nats, access, _root: root }
    }

    /// Waits until the log has a leader, and returns its node. `asked` is the connection for the requests.
    pub(crate) async fn leader(&self, asked: &Client) -> usize {
        until("the log has a leader", async || leader(asked).await).await
    }
}

/// The node that leads the log; `None` if there is no leader.
pub(crate) async fn leader(asked: &Client) -> Option<usize> {
    let context = async_nats::jetstream::new(asked.clone());
    let info = context.get_stream(STREAM).await.ok()?.cached_info().clone();
    let name = info.cluster?.leader?;
    name.strip_prefix("nats-")?.parse::<usize>().ok()?.checked_sub(1)
}
